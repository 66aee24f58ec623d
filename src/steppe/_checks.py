"""What cannot be a base, what cannot be loaded, and who must not call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

_INSIDE = ("optimizer", "base_optimizer", "_base_optimizer", "optim", "original_optimizer")


def inner_optimizer(base: Any) -> Optimizer | None:
    """Return the optimizer that a wrapper has inside, or None if this is no wrapper."""
    attributes = vars(base)
    for name in _INSIDE:
        if isinstance(found := attributes.get(name), Optimizer):
            return found
    return None


def with_inner(base: Any) -> Iterator[Any]:
    """Return a base, and those that it wraps."""
    while base is not None:
        yield base
        base = inner_optimizer(base)


@contextmanager
def put_back_if_it_fails(base: Any) -> Iterator[None]:
    """Give a base, and all inside, the attributes that they had before, if the body raises."""
    kept = [(one, dict(vars(one))) for each in (base, *getattr(base, "bases", ())) for one in with_inner(each)]
    try:
        yield
    except BaseException:
        for one, attributes in kept:
            vars(one).clear()
            vars(one).update(attributes)
        raise


def stepped_by(base: Any) -> Optimizer:
    """Return whose steps count: accelerate's wrapper holds some back, and skips others."""
    found: Optimizer = base.optimizer if hasattr(base, "step_was_skipped") else base
    return found


def descends(base: Any, group: Mapping[str, Any]) -> bool:
    """Say whether a step goes down along the gradients of this group, and not up."""
    for one in getattr(base, "bases", ()):  # several together
        if any(group is other for other in one.param_groups):
            return descends(one, group)
    # Some packages' optimizers negate gradients by an attribute, which may be there beside the option of the groups;
    # their wrappers do so once more.
    *around, inmost = with_inner(base)
    # A group may say what its base knows nothing of, and goes down all the same.
    asked = "maximize" in getattr(inmost, "defaults", group) and bool(group.get("maximize", False))
    up = asked or bool(getattr(inmost, "maximize", False))
    for one in around:
        up ^= bool(getattr(one, "maximize", False))
    return not up


def refuse_classes(name: str, given: Iterable[Any]) -> None:
    """Refuse the arguments of other packages' SAM, which makes its base itself."""
    for one in given:
        if isinstance(one, type) and issubclass(one, Optimizer):
            raise TypeError(
                f"base must be an optimizer instance, got the class {one.__name__}. Write for example "
                f"{name}(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05), with the options of {one.__name__} in "
                "parentheses of its own."
            )


def check_base(base: object, called: str = "base") -> None:
    if isinstance(base, type) and issubclass(base, Optimizer):
        raise TypeError(
            f"{called} must be an optimizer instance, got the class {base.__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"{called} must be an instance of torch.optim.Optimizer, got {type(base).__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    for one in with_inner(base):
        _check_kind(one, base, called)
    if "rho" in getattr(base, "defaults", {}):
        raise ValueError(
            f"The groups of this {type(base).__name__} already have a 'rho': either it is wrapped by another "
            "sharpness-aware optimizer (make a new base), or it means something else by it, as Adadelta does (choose "
            "another base)."
        )
    if needs_closure(base):
        raise ValueError(
            f"{type(base).__name__}.step() needs a closure of its own, so it cannot be given one gradient per step."
        )


def needs_closure(opt: Optimizer) -> bool:
    """Say whether an optimizer cannot step without a closure."""
    closure = inspect.signature(opt.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _check_kind(one: Any, base: Any, called: str) -> None:
    name = type(one).__name__
    kinds = {kind.__name__.lower() for kind in type(one).__mro__}
    if hasattr(type(one), "ascended"):
        raise TypeError(f"{called} must be a plain optimizer, got {name}, which is sharpness-aware itself.")
    if "dpoptimizer" in kinds:
        raise TypeError(
            f"{called} must be a plain optimizer, got {name} of Opacus: it clips the gradients of single examples, in "
            "which those of both passes would pile up. Use it without a climb."
        )
    if {"adahessian", "sophiah"} & kinds:
        raise TypeError(
            f"{called} must step along gradients alone, got {name}, which differentiates them once more in its step: "
            "those of the sharp pass belong to weights that are gone by then. Use a base without second derivatives."
        )
    if not isinstance(getattr(one, "param_groups", None), list):
        wrapped = inner_optimizer(base)
        instead = "" if wrapped is None else f" Give the {type(wrapped).__name__} inside, and step the wrapper."
        raise TypeError(
            f"{called} must have a list of parameter groups, got {type(base).__name__} without one.{instead}"
        )


def called_by_checkpoint(frames: int = 12) -> bool:
    """Say whether torch.distributed.checkpoint is among those that call, not more than some frames away."""
    frame: Any = sys._getframe(1)
    for _ in range(frames):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict":
            return True
        frame = frame.f_back
    return False


def refuse_foreign_calls(opt: object, method: str) -> None:
    """Refuse torch.distributed.checkpoint, which would save a part, or step to see what state there is."""
    if called_by_checkpoint(frames=4):  # torch's own step around ours is in between
        raise TypeError(
            "torch.distributed.checkpoint.state_dict knows no optimizer state but that of parameters, and asks "
            f"{type(opt).__name__}.{method}(). Give it steppe.integrations.distributed.SharpnessAwareState(model, "
            "opt) in place of the optimizer's state."
        )


def refuse_others(state_dict: Mapping[str, Any]) -> None:
    """Refuse what other SAMs save: copies of weights and gradients that the base would carry along, or choke on."""
    names = {*state_dict, *(name for entry in state_dict.get("state", {}).values() for name in entry)}
    theirs = sorted(names & {"base_optimizer", "e_w", "gv", "old_grad_p", "old_p"})
    if theirs:
        raise ValueError(
            f"This is the state of another package's sharpness-aware optimizer, with {', '.join(theirs)}. "
            "docs/migration.md has a few lines that take from it what belongs to the base."
        )
