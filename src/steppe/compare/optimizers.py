"""From the name of a method and its hyper-parameters to an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from .._errors import UserError, nearest, one_line
from ..methods import METHODS

Value: TypeAlias = "float | bool | tuple[float, ...]"
Hyperparameters: TypeAlias = "Mapping[str, Value]"

BASES: dict[str, Callable[..., Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def check_base(base: str) -> None:
    """Refuse an unknown base.

    Raises:
        UserError: `base` is not in `BASES`.
    """
    if base not in BASES:
        raise UserError(f"unknown base {base!r}{nearest(base, BASES)}")


def names() -> list[str]:
    """Return the names of all methods, the bases first."""
    return [*BASES, *METHODS]


def check_methods(methods: Iterable[str], arms: Iterable[str] = ()) -> None:
    """Refuse an empty list of methods, unknown names and repetitions.

    Args:
        methods: The list.
        arms: Names that are known besides those of methods.

    Raises:
        UserError: With the nearest names.
    """
    seen: set[str] = set()
    known = [*names(), *arms]
    for method in methods:
        if method not in known:
            raise UserError(f"unknown method {method!r}{nearest(method, known)}")
        if method in seen:
            raise UserError(f"the method {method!r} is listed twice; list every method once")
        seen.add(method)
    if not seen:
        raise UserError(f"no method to compare; list at least one of {', '.join(known)}")


def is_wrapper(method: str) -> bool:
    """Return whether a method wraps a base optimizer instance (its first parameter is called ``base``)."""
    return method in METHODS and next(iter(_keywords(METHODS[method]))) == "base"


def has_radius(method: str) -> bool:
    """Return whether a method has a ``rho``."""
    return method in METHODS and "rho" in _keywords(METHODS[method])


def build(method: str, base: str, parameters: Iterable[nn.Parameter], hyperparameters: Hyperparameters) -> Optimizer:
    """Build the optimizer of a trial.

    Args:
        method: A name in `BASES` or in ``steppe.methods.METHODS``.
        base: The name of the optimizer that a wrapping method wraps; others ignore it.
        parameters: The model's parameters.
        hyperparameters: Those that a wrapping method takes go to it, all others to its base.

    Returns:
        The optimizer; its ``step`` takes a closure.

    Raises:
        UserError: A hyper-parameter is unknown, missing, or refused by the optimizer.

    Example:
        >>> build("sam", "sgd", nn.Linear(2, 1).parameters(), {"lr": 0.1, "rho": 0.05}).param_groups[0]["rho"]
        0.05
    """
    if not is_wrapper(method):
        make = BASES[method] if method in BASES else METHODS[method]
        known = _keywords(make)[1:]
        return _make(make, parameters, hyperparameters, method, known)
    own, inner = _keywords(METHODS[method])[1:], _keywords(BASES[base])[1:]
    for_base = {name: value for name, value in hyperparameters.items() if name not in own}
    for_method = {name: value for name, value in hyperparameters.items() if name in own}
    wrapped = _make(BASES[base], parameters, for_base, f"{method} over {base}", own + inner)
    return _make(METHODS[method], wrapped, for_method, method, own)


def check_hyperparameters(method: str, base: str, hyperparameters: Hyperparameters) -> None:
    """Try hyper-parameters on one parameter, before any trial starts.

    Raises:
        UserError: A hyper-parameter is unknown, missing, or refused by the optimizer.
    """
    build(method, base, [nn.Parameter(torch.zeros(1))], hyperparameters)


def _keywords(make: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(make).parameters)


def _make(
    make: Callable[..., Optimizer], first: Any, hyperparameters: Hyperparameters, label: str, known: list[str]
) -> Optimizer:
    for name in hyperparameters:
        if name not in known:
            raise UserError(f"{label} has no hyper-parameter {name!r}{nearest(name, known)}")
    required = [
        name
        for name, parameter in list(inspect.signature(make).parameters.items())[1:]
        if parameter.default is inspect.Parameter.empty and name not in hyperparameters
    ]
    if required:
        raise UserError(f"{label} needs a value for {required[0]!r}; give it in a file for --config, under settings")
    whole = [name for name in hyperparameters if inspect.signature(make).parameters[name].annotation in (int, "int")]
    for name in whole:
        if not float(hyperparameters[name]).is_integer():  # type: ignore[arg-type]
            raise UserError(f"{label} needs a whole number for {name!r}, got {hyperparameters[name]}")
    try:
        return make(first, **{**hyperparameters, **{name: int(hyperparameters[name]) for name in whole}})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        values = ", ".join(f"{name}={value}" for name, value in hyperparameters.items())
        raise UserError(f"{label} refuses {values}: {one_line(error)}") from error
