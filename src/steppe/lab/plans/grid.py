"""What is varied: ``NAME=LOW:HIGH:COUNT``, with ``log`` behind it for equal ratios, or ``NAME=A,B,C``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import UserError
from ..trials.fields import Model

Value: TypeAlias = bool | float
Setting: TypeAlias = dict[str, Value]

MOST_SETTINGS = 10_000
_DIGITS = 4
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE = re.compile(r"([^:]+):([^:]+?)(?::\s*(\d{1,9}))?\s*:?\s*(log)?")
_FORMS = "write NAME=LOW:HIGH:COUNT, with log behind it for equal ratios, or NAME=A,B,C"


class Axis(Model):
    """One hyper-parameter and what it may be.

    Attributes:
        name: The hyper-parameter.
        values: Those of the grid, in ascending order if they are numbers; empty for a range without a count.
        low: The lower end of a range; None for a list.
        high: The upper end.
        log: Whether values of the range have equal ratios.
    """

    name: str
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return not isinstance(next(iter(self.values), None), bool)  # a list of both is refused

    @property
    def spread(self) -> bool:
        """Whether it is best drawn on a logarithmic scale."""
        if self.low is not None:
            return self.log
        return self.numeric and min(self.values) > 0 and max(self.values) >= 10 * min(self.values)

    def has(self, value: Value) -> bool:
        """Return whether this is one of the values that a sweep may try."""
        if self.low is not None and self.high is not None:
            return not isinstance(value, bool) and self.low <= value <= self.high
        return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values)

    @property
    def words(self) -> str:
        """As the user may write it."""
        if self.low is None or self.high is None:
            return f"{self.name}={','.join(shown(value) for value in self.values)}"
        count = str(len(self.values)) if self.values else ""
        ending = "".join(f":{part}" for part in [count + ("log" if self.log else "")] if part)
        return f"{self.name}={shown(self.low)}:{shown(self.high)}{ending}"


def shown(value: Any) -> str:
    """Return a value as short as it can be written without a loss."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "(" + ", ".join(map(shown, value)) + ")"
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def rounded(value: float) -> float:
    """Return a number with four significant digits, which can be read and pasted."""
    return float(f"{value:.{_DIGITS}g}")


def words(setting: Mapping[str, Any]) -> str:
    """Return a setting in words, such as ``rho 0.05, lr 0.1``; long numbers are rounded."""
    return ", ".join(f"{name} {_brief(value)}" for name, value in setting.items())


def _brief(value: Any) -> str:
    return shown(value) if isinstance(value, (bool, tuple)) else f"{value:.{_DIGITS}g}"


def parse(grid: Iterable[str] | Mapping[str, str | Sequence[Any]], counted: bool) -> tuple[Axis, ...]:
    """Read a grid.

    Args:
        grid: Texts ``NAME=VALUES``; or values by name, as a list or such a text.
        counted: Whether every range must say how many values it has.

    Returns:
        The axes, in order.

    Raises:
        UserError: A text has neither form, a range is not one, or a name or a value is there twice.

    Example:
        >>> parse(["rho=0.01:1:3log", "lr=0.1,0.2"], counted=True)[0].values
        (0.01, 0.1, 1.0)
    """
    if isinstance(grid, str):
        grid = grid.split()
    pairs = grid.items() if isinstance(grid, Mapping) else map(_split, grid)
    axes: list[Axis] = []
    for name, values in pairs:
        if any(axis.name == name for axis in axes):
            raise UserError(f"the grid names {name!r} twice; give all its values at once")
        axes.append(_axis(str(name), values, counted))
    if not axes:
        raise UserError("the grid is empty; give for example --grid rho=0.01:1:7log lr=0.001,0.01")
    if counted:
        count = math.prod(len(axis.values) for axis in axes)
        if count > MOST_SETTINGS:
            raise UserError(f"the grid has {count} settings, and {MOST_SETTINGS} are the most; make it coarser")
    return tuple(axes)


def settings(axes: Sequence[Axis]) -> list[Setting]:
    """Return all settings of a grid, the last name varying fastest."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def probes(axes: Sequence[Axis]) -> list[Setting]:
    """Return settings that show whether a method takes whatever a sampler may choose: ends, inner points, all words."""
    choices = [
        axis.values if axis.low is None or axis.high is None else (axis.low, axis.high, _inside(axis)) for axis in axes
    ]
    first = {axis.name: choice[0] for axis, choice in zip(axes, choices, strict=True)}
    varied = [{**first, axis.name: value} for axis, choice in zip(axes, choices, strict=True) for value in choice]
    return [first, *varied]


def _inside(axis: Axis) -> float:
    assert axis.low is not None
    assert axis.high is not None
    return axis.low + (axis.high - axis.low) * 0.381966


def _split(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals or not _NAME.fullmatch(name.strip()):
        raise UserError(f"the grid has {text!r}, which names no hyper-parameter; {_FORMS}")
    return name.strip(), values.strip()


def _axis(name: str, values: str | Sequence[Any], counted: bool) -> Axis:
    if not isinstance(values, str):
        return _listed(name, list(values) if isinstance(values, Iterable) else [values], str(values))
    if ":" not in values:
        return _listed(name, [part.strip() for part in values.split(",")], values)
    found = _RANGE.fullmatch(values.strip())
    if found is None:
        raise UserError(f"the grid of {name!r} is {values!r}, which is no range; {_FORMS}")
    low, high = (_number(name, end, values) for end in found.group(1, 2))
    log = found.group(4) is not None
    if not (isinstance(low, float) and isinstance(high, float)):
        raise UserError(f"the grid of {name!r} is {values!r}, but a range needs numbers at its ends; {_FORMS}")
    if low >= high:
        raise UserError(f"the grid of {name!r} is {values!r}, but the lower end of a range must come first")
    if log and low <= 0:
        raise UserError(f"the grid of {name!r} is {values!r}, but a log range must begin above 0, got {shown(low)}")
    if found.group(3) is None:
        if counted:
            raise UserError(f"the grid of {name!r} is {values!r}, which does not say how many values; {_FORMS}")
        return Axis(name=name, low=low, high=high, log=log)
    count = int(found.group(3))
    if not 2 <= count <= MOST_SETTINGS:
        raise UserError(f"the grid of {name!r} is {values!r}, but a range has 2 to {MOST_SETTINGS} values, got {count}")
    values_between = _between(low, high, count, log)
    if not all(a < b < math.inf for a, b in itertools.pairwise(values_between)):
        raise UserError(f"the grid of {name!r} is {values!r}, whose values are too close or too far apart for numbers")
    return Axis(name=name, values=values_between, low=low, high=high, log=log)


def _between(low: float, high: float, count: int, log: bool) -> tuple[float, ...]:
    """Space values evenly, inner ones rounded so that they can be read and pasted, unless that makes two alike."""
    parts = [i / (count - 1) for i in range(1, count - 1)]
    ratio = math.log(high) - math.log(low) if log else 0.0
    exact = [low * _exp(ratio * part) if log else low + (high - low) * part for part in parts]
    found = (low, *map(rounded, exact), high)
    return found if all(a < b for a, b in itertools.pairwise(found)) else (low, *exact, high)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _listed(name: str, parts: list[Any], text: str) -> Axis:
    values = [_number(name, part, text) for part in parts]
    if not values:
        raise UserError(f"the grid of {name!r} has no value; {_FORMS}")
    kinds = {isinstance(value, bool) for value in values}
    if len(kinds) > 1:
        raise UserError(f"the grid of {name!r} is {text!r}, which mixes numbers with true and false")
    if len(set(values)) < len(values):
        raise UserError(f"the grid of {name!r} is {text!r}, which has a value twice")
    return Axis(name=name, values=tuple(sorted(values)))


def _number(name: str, part: Any, text: str) -> Value:
    if isinstance(part, bool):
        return part
    if isinstance(part, str) and part.strip().lower() in ("true", "false"):
        return part.strip().lower() == "true"
    try:
        value = float(part)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"the grid of {name!r} is {text!r}, of which {part!r} is no number, true or false; {_FORMS}")
    return value
