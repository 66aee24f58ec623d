"""From a method, a base and their hyper-parameters to an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from ..._parts import need_fraction
from ...groups import norm_layers
from ...optimizer import SharpnessAware
from ...together import joined
from ...triggers import After, Always, Every, Randomly, Trigger
from ..errors import UserError, describe, exits_raise, nearest, one_line, shortened
from .finding import BASES, code_of, find, is_wrapper, keywords, refusal, shown, take_steps

Value: TypeAlias = "float | bool | tuple[float, ...]"
Hyperparameters: TypeAlias = "Mapping[str, Value]"

WHEN = ("every", "stretched", "after", "probability")
"""Hyper-parameters of methods that have a trigger: they climb every so many steps, from some step on, or at random."""

FRACTION = "fraction"
"""A hyper-parameter of methods with a clean pass: of the batch, the part that it sees."""

NORM_LAYERS = "norm_layers"
"""A hyper-parameter of methods with a radius: whether only normalization layers climb."""


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
        base: What a wrapping method wraps, as `find` knows it too; others ignore it.
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
    make, label = find(method), shown(method)
    own = keywords(make)[1:]
    given: dict[str, Any] = dict(hyperparameters)
    fraction = given.pop(FRACTION, None)
    if given.pop(NORM_LAYERS, False) and "rho" not in given:
        raise UserError(f"{label}: {NORM_LAYERS} needs a rho, the radius of these layers")
    if "trigger" in own:
        when = {name: given.pop(name) for name in WHEN if name in given}
        given |= {"trigger": _trigger(label, when)} if when else {}
    if not is_wrapper(method):
        made = _make(make, parameters, given, label, own, _files(method))
    else:
        for_base = {name: value for name, value in given.items() if name not in own}
        for_method = {name: value for name, value in given.items() if name in own}
        inner = find(base, "base")
        over = f"{label} over {shown(base)}"
        wrapped = _make(inner, parameters, for_base, over, [*own, *keywords(inner)[1:]], _files(base))
        made = _make(make, wrapped, for_method, label, own, _files(method, base))
    if fraction is not None:
        _check_fraction(label, made, fraction)
    return made


def needs_model(method: str, base: str) -> bool:
    """Return whether hyper-parameters can be tried on the parameters of a model alone, and not on one of any shape."""
    used = [method, base] if is_wrapper(method) else [method]
    return any(":" in words or (words in BASES and refusal(words, (1,)) is not None) for words in used)


def check_hyperparameters(
    method: str, base: str, hyperparameters: Hyperparameters, model: nn.Module | None = None
) -> None:
    """Try hyper-parameters, before any trial starts.

    Args:
        method: See `build`.
        base: See `build`.
        hyperparameters: See `build`.
        model: On whose parameters to try them, which are then what they were; by default on one number.

    Raises:
        UserError: A hyper-parameter is unknown, missing, or refused by the optimizer.
    """
    if model is None:
        _try(method, base, hyperparameters, [nn.Parameter(torch.zeros(1))])
        return
    weights = list(model.parameters())
    before = [weight.detach().clone() for weight in weights]
    try:
        _try(method, base, hyperparameters, weights, parameters_of(model, hyperparameters))
    except UserError as error:
        if _takes_matrices(method, base, hyperparameters):
            raise UserError(
                f"{error}. Give it the parameters that it takes, and another base the rest, in a function of your own: "
                "FILE.py:FUNCTION, as in docs/bring-your-own-method.md"
            ) from error
        raise
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = None


def _try(
    method: str,
    base: str,
    hyperparameters: Hyperparameters,
    weights: list[nn.Parameter],
    parameters: list[nn.Parameter] | list[dict[str, Any]] | None = None,
) -> None:
    made = build(method, base, weights if parameters is None else parameters, hyperparameters)
    if ":" in method and not _files(method):  # of a package, which may compile for minutes before its first step
        return
    try:
        with exits_raise():
            take_steps(made, weights)
    except (Exception, SystemExit) as error:
        raise _refused(shown(method), hyperparameters, error, _files(method, base)) from error


def _takes_matrices(method: str, base: str, hyperparameters: Hyperparameters) -> bool:
    """Return whether what a model's parameters do not fit is an optimizer of torch's that takes matrices alone."""
    words = base if is_wrapper(method) else method
    if words not in BASES or refusal(words, (1,)) is None:
        return False
    try:
        _try(method, base, hyperparameters, [nn.Parameter(torch.zeros(2, 2))])
    except UserError:
        return False
    return True


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


def _make(
    make: Callable[..., Any],
    first: Any,
    hyperparameters: Hyperparameters,
    label: str,
    known: list[str],
    files: Sequence[str],
) -> Optimizer:
    takes = inspect.signature(make).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    for name in hyperparameters:
        if name not in known and not open_ended:
            raise UserError(f"{label} has no hyper-parameter {name!r}{nearest(name, known)}")
    required = [
        name
        for name, parameter in list(takes.items())[1:]
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and name not in hyperparameters
    ]
    if required:
        raise UserError(f"{label} needs a value for {required[0]!r}; give it in a file for --config, under settings")
    given = {
        name: _fitting(label, name, takes[name], value) if name in takes else value
        for name, value in hyperparameters.items()
    }
    try:
        with exits_raise():
            made = make(first, **given)
            made = joined(made) if isinstance(made, (list, tuple)) else made
    except (Exception, SystemExit) as error:
        raise _refused(label, hyperparameters, error, files) from error
    if not isinstance(made, Optimizer):
        raise UserError(f"{label} must return an optimizer, or a list of them, got {type(made).__name__}")
    return made


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


def _files(*words: str) -> list[str]:
    """Return the user's files among those that optimizers are made by, to name the line where something fails."""
    codes = [code_of(one) for one in words if ":" in one]
    return [path for code in codes if code is not None for path in code.paths]


def _refused(label: str, hyperparameters: Hyperparameters, error: BaseException, files: Sequence[str]) -> UserError:
    values = ", ".join(f"{name}={value}" for name, value in hyperparameters.items()) or "its own defaults"
    return UserError(f"{label} refuses {values}: {_reason(error, files)}")


def _reason(error: BaseException, files: Sequence[str] = ()) -> str:
    if files:
        return describe(error, *files)
    text, plain = one_line(error), (AttributeError, ImportError, TypeError, ValueError)
    return shortened(text if isinstance(error, plain) else f"{type(error).__name__}: {text}")
