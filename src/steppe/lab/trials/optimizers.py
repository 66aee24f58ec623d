"""From the name of a method and its hyper-parameters to an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from ..._parts import need_fraction
from ...groups import norm_layers
from ...methods import METHODS
from ...optimizer import SharpnessAware
from ...triggers import After, Always, Every, Randomly, Trigger
from ..errors import UserError, exits_raise, nearest, one_line, shortened

Value: TypeAlias = "float | bool | tuple[float, ...]"
Hyperparameters: TypeAlias = "Mapping[str, Value]"

BASES: dict[str, Callable[..., Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

WHEN = ("every", "stretched", "after", "probability")
"""Hyper-parameters of methods that have a trigger: they climb every so many steps, from some step on, or at random."""

FRACTION = "fraction"
"""A hyper-parameter of methods with a clean pass: of the batch, the part that it sees."""

NORM_LAYERS = "norm_layers"
"""A hyper-parameter of methods with a radius: whether only normalization layers climb."""


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


def find(method: str) -> Callable[..., Optimizer]:
    """Return what makes the optimizer.

    Args:
        method: A name in `BASES` or in ``steppe.methods.METHODS``, or ``MODULE:FUNCTION``: a function, or a class, that
            takes parameters or, if it calls its first argument ``base``, an optimizer instance, then hyper-parameters
            by name, and returns an optimizer whose ``step`` takes a closure.

    Raises:
        UserError: There is no such method, module or function.
    """
    module, colon, function = method.partition(":")
    if not colon:
        known: Mapping[str, Callable[..., Optimizer]] = {**BASES, **METHODS}
        if method not in known:
            raise UserError(f"unknown method {method!r}{nearest(method, known)}, or MODULE:FUNCTION")
        return known[method]
    try:
        with exits_raise():
            found: Callable[..., Optimizer] = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        raise UserError(f"the method {method!r} cannot be imported: {_reason(error)}") from error
    try:
        takes = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"the method {method!r} is no function or class whose parameters can be seen") from error
    if not takes:
        raise UserError(f"the method {method!r} takes no parameters to optimize")
    return found


def is_wrapper(method: str) -> bool:
    """Return whether a method wraps a base optimizer instance (its first parameter is called ``base``)."""
    return method not in BASES and next(iter(_keywords(find(method)))) == "base"


def has_radius(method: str) -> bool:
    """Return whether a method has a ``rho``."""
    return method not in BASES and "rho" in _keywords(find(method))


def parameters_of(model: nn.Module, hyperparameters: Hyperparameters) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return what the optimizer of a trial is given: the parameters, or groups of which one climbs.

    Raises:
        UserError: Only normalization layers are to climb, and the model has none.
    """
    if not hyperparameters.get(NORM_LAYERS, False):
        return list(model.parameters())
    try:
        return norm_layers(model, float(hyperparameters["rho"]))  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{NORM_LAYERS}: {one_line(error)}") from error


def build(
    method: str,
    base: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    hyperparameters: Hyperparameters,
) -> Optimizer:
    """Build the optimizer of a trial.

    Args:
        method: What `find` knows.
        base: The name of the optimizer that a wrapping method wraps; others ignore it.
        parameters: The model's parameters, as `parameters_of` returns them.
        hyperparameters: Those that a wrapping method takes go to it, all others to its base. Where it has a trigger
            those in `WHEN` make it; that in `FRACTION` belongs to the loop, that in `NORM_LAYERS` to `parameters_of`.

    Returns:
        The optimizer; its ``step`` takes a closure.

    Raises:
        UserError: A hyper-parameter is unknown, missing, or refused by the optimizer.

    Example:
        >>> build("sam", "sgd", nn.Linear(2, 1).parameters(), {"lr": 0.1, "rho": 0.05}).param_groups[0]["rho"]
        0.05
    """
    make = find(method)
    own = _keywords(make)[1:]
    given: dict[str, Any] = dict(hyperparameters)
    fraction = given.pop(FRACTION, None)
    if given.pop(NORM_LAYERS, False) and "rho" not in given:
        raise UserError(f"{method}: {NORM_LAYERS} needs a rho, the radius of these layers")
    if "trigger" in own:
        when = {name: given.pop(name) for name in WHEN if name in given}
        given |= {"trigger": _trigger(method, when)} if when else {}
    if not is_wrapper(method):
        made = _make(make, parameters, given, method, own)
    else:
        for_base = {name: value for name, value in given.items() if name not in own}
        for_method = {name: value for name, value in given.items() if name in own}
        wrapped = _make(BASES[base], parameters, for_base, f"{method} over {base}", [*own, *_keywords(BASES[base])[1:]])
        made = _make(make, wrapped, for_method, method, own)
    if fraction is not None:
        _check_fraction(method, made, fraction)
    return made


def check_hyperparameters(method: str, base: str, hyperparameters: Hyperparameters) -> None:
    """Try hyper-parameters on one parameter, before any trial starts.

    Raises:
        UserError: A hyper-parameter is unknown, missing, or refused by the optimizer.
    """
    weight = nn.Parameter(torch.zeros(1))
    made = build(method, base, [weight], hyperparameters)
    if ":" in method:  # it may be made for other parameters than this one
        return

    def closure() -> torch.Tensor:
        made.zero_grad()
        loss = (weight - 1).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    try:
        for _ in range(2):
            made.step(closure)  # type: ignore[arg-type]
    except (Exception, SystemExit) as error:
        raise _refused(method, hyperparameters, error) from error


def _trigger(method: str, when: Mapping[str, Any]) -> Trigger:
    found: Trigger = Always()
    try:
        if "every" in when or "stretched" in when:
            found = Every(_whole("every", when.get("every", 1)), bool(when.get("stretched", False)))
        if "after" in when:
            found = found & After(_whole("after", when["after"]))
        if "probability" in when:
            found = found & Randomly(float(when["probability"]))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{method}: {_reason(error)}") from error
    return found


def _whole(name: str, value: Any) -> int:
    if isinstance(value, (bool, tuple)) or int(value) != value:
        raise ValueError(f"{name} must be a whole number of steps, got {value!r}.")
    return int(value)


def _check_fraction(method: str, made: Optimizer, fraction: Any) -> None:
    if not (isinstance(made, SharpnessAware) and made.ascent.needs_gradient):
        raise UserError(f"{method} has no clean pass, so no {FRACTION} of the batch for it")
    try:
        need_fraction(fraction)
    except ValueError as error:
        raise UserError(f"{method}: {error}") from error


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
    known_parameters = inspect.signature(make).parameters
    given = {name: _fitting(label, name, known_parameters[name], value) for name, value in hyperparameters.items()}
    try:
        with exits_raise():
            return make(first, **given)
    except (Exception, SystemExit) as error:
        raise _refused(label, hyperparameters, error) from error


def _fitting(label: str, name: str, parameter: inspect.Parameter, value: Value) -> Any:
    """Return a value as a parameter wants it: numbers of files are floats, also where whole ones are meant."""
    counts = parameter.annotation in (int, "int")
    if isinstance(value, (bool, tuple)):
        if counts or (isinstance(value, bool) and type(parameter.default) in (int, float)):
            raise UserError(f"{label} needs a number for {name!r}, got {value}")
        return value
    if counts and not float(value).is_integer():
        raise UserError(f"{label} needs a whole number for {name!r}, got {value}")
    return int(value) if counts or (type(parameter.default) is int and float(value).is_integer()) else value


def _refused(label: str, hyperparameters: Hyperparameters, error: BaseException) -> UserError:
    values = ", ".join(f"{name}={value}" for name, value in hyperparameters.items())
    return UserError(f"{label} refuses {values}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    text, plain = one_line(error), (AttributeError, ImportError, TypeError, ValueError)
    return shortened(text if isinstance(error, plain) else f"{type(error).__name__}: {text}")
