"""Other packages' methods behind one signature, through what each of them documents; none is required.

pip install --no-deps pytorch-optimizer temperon heavyball opt_einsum
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch.optim import Optimizer

PACKAGES = ("pytorch-optimizer", "temperon", "heavyball")


def installed() -> dict[str, str]:
    """Return the versions of those packages that are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Peer(Optimizer):
    """An optimizer of another package, with the parameter groups that its learning rates are in.

    Args:
        theirs: has ``step(closure)``.
        groups: where its learning rates are.
        pass_before: whether a first pass must have been made before its ``step``.
    """

    def __init__(self, theirs: Any, groups: list[dict[str, Any]], *, pass_before: bool = False) -> None:
        super().__init__(groups, {})
        self.theirs, self.pass_before = theirs, pass_before

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take one step and return the loss of the first pass."""
        if not self.pass_before:
            return self.theirs.step(closure)
        loss = closure()
        self.theirs.step(closure)
        return loss


def pytorch_optimizer_sam(base: Optimizer, *, rho: float) -> Optimizer:
    """SAM of pytorch-optimizer."""
    from pytorch_optimizer import SAM

    theirs = SAM(_params(base), type(base), rho=rho, **_options(base))
    return Peer(theirs, theirs.param_groups, pass_before=True)


def pytorch_optimizer_looksam(base: Optimizer, *, rho: float, k: float, alpha: float) -> Optimizer:
    """LookSAM of pytorch-optimizer."""
    from pytorch_optimizer import LookSAM

    theirs = LookSAM(_params(base), type(base), rho=rho, k=int(k), alpha=alpha, **_options(base))
    return Peer(theirs, theirs.param_groups, pass_before=True)


def temperon(base: Optimizer, *, rho: float, steps: float, tail: float) -> Optimizer:
    """Temperon: SAM in the last part of the training."""
    from temperon import Temperon

    return Peer(Temperon(base, total_steps=int(steps), tail_frac=tail, rho=rho), base.param_groups)


def heavyball_sam(base: Optimizer, *, rho: float) -> Optimizer:
    """The SAM wrapper of heavyball, which climbs adaptively, around heavyball's optimizer of the same name."""
    import heavyball

    inner = {"AdamW": heavyball.AdamW, "SGD": heavyball.SGD}[type(base).__name__]
    given = {**base.defaults, "beta": base.defaults.get("momentum")}
    options = {name: given[name] for name in inspect.signature(inner).parameters if given.get(name) is not None}
    wrapped = inner(_params(base), **options)
    return Peer(heavyball.SAMWrapper(_params(base), wrapped, ball=rho), wrapped.param_groups)


def _params(base: Optimizer) -> list[Any]:
    return [p for group in base.param_groups for p in group["params"]]


def _options(base: Optimizer) -> dict[str, Any]:
    known = inspect.signature(type(base)).parameters
    return {name: value for name, value in base.defaults.items() if name in known and value is not None}
