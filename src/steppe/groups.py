"""Parameter groups for sharpness-aware optimizers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def norm_layers(model: nn.Module, rho: float) -> list[dict[str, Any]]:
    """Return two parameter groups, of which only the normalization layers climb: SAM-ON.

    Args:
        model: has the parameters. Normalization layers are modules whose class has "norm" in its name, as
            `BatchNorm2d`, `LayerNorm`, `RMSNorm` and those of other libraries do.
        rho: radius of their group, >= 0. They are few, and their best radius is larger than that of all weights.

    Returns:
        ``[{"params": theirs, "rho": rho}, {"params": all others, "rho": 0.0}]``, for the base.

    Raises:
        ValueError: if the model has no normalization layer with parameters.

    Note:
        The norm of the climb is one over the group. Backward passes still compute all gradients, so a step costs what
        `SAM` costs, and a copy of the few parameters alone.

    Reference:
        Mueller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs, NeurIPS 2023
        (https://arxiv.org/abs/2306.04226).

    Example:
        >>> import torch
        >>> from steppe import SAM, norm_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
        >>> opt = SAM(torch.optim.SGD(norm_layers(model, rho=0.5), lr=0.1))
        >>> [(len(group["params"]), group["rho"]) for group in opt.param_groups]
        [(2, 0.5), (4, 0.0)]
    """
    norms = {
        p: None
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for p in module.parameters(recurse=False)
    }
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no normalization layer with parameters, which is a module whose class has "
            "'norm' in its name. Give all parameters to the base instead."
        )
    others = [p for p in model.parameters() if p not in norms]
    return [{"params": list(norms), "rho": rho}, {"params": others, "rho": 0.0}]


def found_again(
    groups: list[dict[str, Any]], group: dict[str, Any], params: list[Tensor], place: int
) -> dict[str, Any] | None:
    """Return what describes a group now: loading a state replaces dicts, and groups come and go.

    Args:
        groups: those that there are now.
        group: the dict that described it.
        params: its parameters then.
        place: where it stood then.

    Returns:
        The same dict, or the one that has its first parameter, or, if neither has any, the one in its place, or None
        if the group has gone.
    """
    for now in groups:
        if now is group:
            return now
    for now in groups:
        if now["params"] is params or (params and now["params"] and now["params"][0] is params[0]):
            return now
    if not params and place < len(groups) and not groups[place]["params"]:
        return groups[place]
    return None
