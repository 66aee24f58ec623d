"""A plain optimizer that follows an ascent's directions downhill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._scalars import on_host
from ._tensors import Ops
from .ascents import Ascent, Slope


def fitted(memory: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    """Return what is remembered of a parameter where that is now, and in its dtype: float32 if that is half.

    torch casts loaded state to the dtype of its parameter. Accumulators of half-precision parameters would lose bits,
    or vanish: eps^2 is far below the smallest half.
    """
    dtype = torch.promote_types(p.dtype.to_real(), torch.float32)

    def fit(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(p.device, dtype if value.is_floating_point() else value.dtype)

    return {name: fit(value) for name, value in memory.items()}


def load_uncast(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give ``optimizer`` the tensors of ``saved["state"]`` as they are `fitted`, and not as torch casts them."""
    names = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    owners = dict(zip(names, params, strict=True))
    for name, memory in saved["state"].items():
        loaded = deepcopy(memory)
        if name in owners:
            loaded = fitted(loaded, owners[name])
        optimizer.state[owners.get(name, name)] = loaded


def _hashable(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option


class Descent(Optimizer):
    """``w <- (1 - lr weight_decay) w - lr c d``, with the directions ``d`` and the factor ``c`` of an ascent.

    This is the base that `AMSGrad`, `AdaSAM` and `LightSAM` stand on: their papers' adaptive rates differ from torch's
    in having no bias correction and no additive eps.

    Args:
        params: as in every torch optimizer.
        lr: learning rate, >= 0; a number or a 0-dim tensor.
        ascent: whose directions to follow. Those of its fields that it names in ``group_options`` become group
            options, so that schedulers such as OneCycleLR reach them.
        weight_decay: decoupled weight decay, >= 0, multiplied by ``lr`` as in AdamW.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        ValueError: if ``lr`` or ``weight_decay`` is negative, or a group has ``maximize=True``: negate the loss.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        ascent: Ascent,
        *,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got shape {tuple(lr.shape)}.")
        if not isinstance(lr, Tensor) and not 0.0 <= lr < float("inf"):
            raise ValueError(f"lr must be a finite number >= 0, got {lr}.")
        if not 0.0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}.")
        self.ascent = ascent
        self.foreach = foreach
        options = {name: _hashable(getattr(ascent, name)) for name in ascent.group_options}
        super().__init__(params, {"lr": lr, **options, "weight_decay": weight_decay})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "ascent": self.ascent, "foreach": self.foreach}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does."""
        if param_group.get("maximize", False):
            raise ValueError("maximize=True is nothing that this optimizer can do. Minimize the negated loss instead.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. Returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # One call for all groups of equal options: the norm of AdaGradNorm is one over all of them.
        together: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for group in self.param_groups:
            together.setdefault(tuple(_hashable(group[name]) for name in self.ascent.group_options), []).append(group)
        for options, groups in together.items():
            names = self.ascent.group_options
            self._descend(replace(self.ascent, **dict(zip(names, options, strict=True))), groups)  # type: ignore[type-var]
        return loss

    def _descend(self, ascent: Ascent, groups: list[dict[str, Any]]) -> None:
        owners = [[p for p in group["params"] if p.grad is not None] for group in groups]
        flat = list(chain.from_iterable(owners))
        if not flat:
            return
        grads = [p.grad for p in flat if p.grad is not None]
        ops = Ops.choose(flat, self.foreach, grads)
        directions, factor = ascent.directions(Slope(flat, grads, self.state, ops, guarded=False))
        start = 0
        for group, members in zip(groups, owners, strict=True):
            if not members:
                continue
            params = ops.real(members)
            along = ascent.stretched(ops, params, directions[start : start + len(members)])
            if group["weight_decay"] != 0:
                ops.scale_(params, 1 - group["lr"] * group["weight_decay"])
            ops.move_(params, along, on_host(-group["lr"] * factor))
            start += len(members)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(dict(state_dict))
        load_uncast(self, state_dict)
