"""What cannot be a base, and what cannot be loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


def check_base(base: object) -> None:
    if isinstance(base, type) and issubclass(base, Optimizer):
        raise TypeError(
            f"base must be an optimizer instance, got the class {base.__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"base must be an instance of torch.optim.Optimizer, got {type(base).__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    name = type(base).__name__
    if hasattr(base, "ascended"):
        raise TypeError(f"base must be a plain optimizer, got {name}, which is sharpness-aware itself.")
    if "rho" in base.defaults:
        raise ValueError(
            f"The groups of this {name} already have a 'rho': either it is wrapped by another sharpness-aware "
            "optimizer (make a new base), or it means something else by it, as Adadelta does (choose another base)."
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{name}.step() needs a closure of its own, so it cannot be given one gradient per step.")


def refuse_others(state_dict: Mapping[str, Any]) -> None:
    """Refuse what other SAMs save: copies of weights and gradients that the base would carry along, or choke on."""
    names = {*state_dict, *(name for entry in state_dict.get("state", {}).values() for name in entry)}
    theirs = sorted(names & {"base_optimizer", "e_w", "gv", "old_grad_p", "old_p"})
    if theirs:
        raise ValueError(
            f"This is the state of another package's sharpness-aware optimizer, with {', '.join(theirs)}. "
            "docs/migration.md has a few lines that take from it what belongs to the base."
        )
