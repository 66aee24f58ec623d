"""What a claim is: a statement of theory that a run of the library's optimizers can refute.

Imports nothing heavy, so that claims can be listed without waiting for torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, Protocol, final

LEVEL = 0.99
"""All intervals of one claim hold together with this probability (Student's t over seeds, corrected by Bonferroni)."""

_ROUNDING = 1e-9  # relative; a bound that is attained may be missed by this much in floating point

Parameters = Mapping[str, Any]
Numbers = Mapping[str, float]
Verdict = Literal["holds", "refuted"]


@final
@dataclass(frozen=True)
class Point:
    """One setting of a claim's parameters.

    Attributes:
        parameters: The setting.
        predicted: What theory says.
        measured: What runs gave, one for each seed.
    """

    parameters: Parameters
    predicted: Numbers
    measured: Sequence[Numbers]

    def values(self, name: str) -> list[float]:
        """Return a measured number for every seed."""
        return [one[name] for one in self.measured]


@final
@dataclass(frozen=True)
class Finding:
    """One number held against what is said of it.

    Attributes:
        quantity: Which number.
        relation: What it should be to the predicted number.
        parameters: Where.
        predicted: The bound or the value.
        measured: The mean over seeds; of a statement about every run, the worst.
        low: Lower end of the interval; of a statement about every run, the least.
        high: Upper end, or the largest.
        margin: How far from the border of the statement, in the number's own units: >= 0 if it holds.
        room: The margin in units of the bound, or of the tolerance of an equality.
    """

    quantity: str
    relation: Literal["<=", ">=", "="]
    parameters: Parameters
    predicted: float
    measured: float
    low: float
    high: float
    margin: float
    room: float


@final
@dataclass(frozen=True)
class Judgement:
    """What runs say of a claim.

    Attributes:
        verdict: It holds if every finding has a margin >= 0.
        findings: All of them.
    """

    verdict: Verdict
    findings: Sequence[Finding]

    @property
    def nearest(self) -> Finding:
        """The finding with the least room; that of a refuted claim is the worst."""
        return min(self.findings, key=lambda finding: finding.room)


class Check(Protocol):
    """Something that is said about measured numbers."""

    def count(self, points: Sequence[Point]) -> int:
        """How many findings it will have."""

    def findings(self, points: Sequence[Point], level: float) -> Iterator[Finding]:
        """Hold the numbers against the predicted ones, with intervals of this level."""


@final
@dataclass(frozen=True)
class Bound:
    """At every point a measured number is at most, or at least, the predicted one.

    Where there are seeds it is about their expectation, and the end of the interval must obey; or about every run.

    Args:
        quantity: Name of the measured number.
        relation: ``<=`` or ``>=``.
        predicted: Name of the predicted number.
        surely: Whether it is said of every run.
    """

    quantity: str
    relation: Literal["<=", ">="]
    predicted: str
    surely: bool = False

    def count(self, points: Sequence[Point]) -> int:
        return len(points)

    def findings(self, points: Sequence[Point], level: float) -> Iterator[Finding]:
        for point in points:
            values, bound = point.values(self.quantity), point.predicted[self.predicted]
            low, high = _ends(values) if self.surely else interval(values, level)
            sign, end = (1, high) if self.relation == "<=" else (-1, low)
            margin = sign * (bound - end) + _ROUNDING * abs(bound)
            shown = end if self.surely else fmean(values)
            yield _finding(self.quantity, self.relation, point.parameters, bound, shown, low, high, margin, abs(bound))


@final
@dataclass(frozen=True)
class Equal:
    """At every point a measured number is the predicted one.

    Without noise, and if it is about every run, all numbers must be within the tolerance. Otherwise it is about the
    expectation: the interval must contain the predicted number, and half its width must be within the tolerance.

    Args:
        quantity: Name of the measured number.
        predicted: Name of the predicted number.
        within: The tolerance, in units of the predicted number or of ``unit``.
        unit: Name of a parameter to measure the tolerance in.
        surely: Whether it is said of every run.
    """

    quantity: str
    predicted: str
    within: float
    unit: str | None = None
    surely: bool = False

    def count(self, points: Sequence[Point]) -> int:
        return len(points)

    def findings(self, points: Sequence[Point], level: float) -> Iterator[Finding]:
        for point in points:
            values, target = point.values(self.quantity), point.predicted[self.predicted]
            tolerance = self.within * abs(target if self.unit is None else point.parameters[self.unit])
            if self.surely or len(values) == 1:
                yield _all_near(self.quantity, point.parameters, target, values, tolerance)
                continue
            yield _mean_is(self.quantity, point.parameters, target, values, tolerance, level)


@final
@dataclass(frozen=True)
class Power:
    """A measured number goes with a power of a parameter: the slope of its logarithm is the predicted one.

    With seeds the interval of the slope, from one fit for each seed, must contain it and have half a width within the
    tolerance. Without, the whole interval, from the residuals of the fit, must be within the tolerance of it.

    Args:
        quantity: Name of the measured number.
        over: Name of the parameter.
        power: The predicted slope.
        within: The tolerance.
        each: Names of parameters; the points with equal ones make one fit.
    """

    quantity: str
    over: str
    power: float
    within: float
    each: tuple[str, ...] = ()

    def count(self, points: Sequence[Point]) -> int:
        return len(self._series(points))

    def findings(self, points: Sequence[Point], level: float) -> Iterator[Finding]:
        name = f"slope of log {self.quantity} over log {self.over}"
        for key, members in self._series(points).items():
            x = [math.log(point.parameters[self.over]) for point in members]
            runs = zip(*(point.values(self.quantity) for point in members), strict=True)
            logs = [[math.log(v) if 0 < v < math.inf else math.nan for v in run] for run in runs]
            where = dict(zip(self.each, key, strict=True))
            if len(logs) == 1:
                slope, error = _fit(x, logs[0])
                half = error * _quantile(level, max(1, len(x) - 2))
                ends = [slope - half, slope + half]
                yield _all_near(name, where, self.power, ends, self.within, shown=slope)
                continue
            yield _mean_is(name, where, self.power, [_fit(x, y)[0] for y in logs], self.within, level)

    def _series(self, points: Sequence[Point]) -> dict[tuple[Any, ...], list[Point]]:
        found: dict[tuple[Any, ...], list[Point]] = {}
        for point in points:
            found.setdefault(tuple(point.parameters[name] for name in self.each), []).append(point)
        return found


@final
@dataclass(frozen=True)
class Claim:
    """A statement, where to look, what theory says there, what runs give, and how to compare.

    Attributes:
        id: Its name, in kebab-case.
        source: The paper and what in it, or "ours" for what is derived here.
        statement: In words.
        formula: In symbols.
        grid: The settings to look at.
        predict: Returns what theory says for a setting.
        simulate: Returns what a run of the library's optimizers gives for a setting and a seed.
        checks: What must be true for the claim to hold.
        seeds: How many; 1 if nothing is random.
        expected: The verdict that is known. A statement that is refuted here stays, and says so.
        plot: Draws the points on the axes of matplotlib that it is given, or None.
    """

    id: str
    source: str
    statement: str
    formula: str
    grid: tuple[Parameters, ...]
    predict: Callable[[Parameters], Numbers]
    simulate: Callable[[Parameters, int], Numbers]
    checks: tuple[Check, ...]
    seeds: int = 1
    expected: Verdict = "holds"
    plot: Callable[[Sequence[Point], Any], None] | None = None

    def measure(self, parameters: Parameters) -> Point:
        """Run a setting of the grid with all seeds; no two settings have a seed in common."""
        first = self.seeds * self.grid.index(parameters)
        runs = [self.simulate(parameters, first + i) for i in range(self.seeds)]
        return Point(parameters, self.predict(parameters), runs)

    def judge(self, points: Sequence[Point]) -> Judgement:
        """Say whether the claim holds for what was measured.

        A number that is not finite, as of a run that diverged, refutes.
        """
        count = sum(check.count(points) for check in self.checks)
        level = 1 - (1 - LEVEL) / count
        findings = [finding for check in self.checks for finding in check.findings(points, level)]
        return Judgement("holds" if all(finding.margin >= 0 for finding in findings) else "refuted", findings)

    def run(self) -> Judgement:
        """Run all settings here, one after the other, and judge.

        Example:
            >>> from steppe.theory import CLAIMS
            >>> found = CLAIMS["sam-nonconvex-bound"].run()
            >>> found.verdict, round(found.nearest.predicted, 4), round(found.nearest.measured, 4)
            ('holds', 0.0863, 0.0658)
        """
        return self.judge([self.measure(parameters) for parameters in self.grid])


def interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Return the interval of the mean, by Student's t; of one value, that value twice.

    Args:
        values: Independent numbers, at least one.
        level: The probability to contain the expectation.

    Returns:
        Its ends; both are NaN if a value is not finite.

    Example:
        >>> [round(end, 6) for end in interval([1.0, 2.0, 3.0], level=0.95)]
        [-0.484138, 4.484138]
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    if len(values) == 1:
        return values[0], values[0]
    centre = fmean(values)
    half = _quantile(level, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return centre - half, centre + half


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if all(map(math.isfinite, values)) else (math.nan, math.nan)


def _quantile(level: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, freedom))


def _fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the slope of the line of least squares and its standard error, which 2 points leave open."""
    x0, y0 = fmean(x), fmean(y)
    spread = sum((a - x0) ** 2 for a in x)
    slope = sum((a - x0) * (b - y0) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - y0 - slope * (a - x0)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / (len(x) - 2) / spread) if len(x) > 2 else math.inf


def _all_near(
    quantity: str,
    parameters: Parameters,
    target: float,
    values: Sequence[float],
    tolerance: float,
    shown: float | None = None,
) -> Finding:
    low, high = _ends(values)
    worst = max(low, high, key=lambda value: abs(value - target))
    margin = tolerance - abs(worst - target)
    return _finding(quantity, "=", parameters, target, worst if shown is None else shown, low, high, margin, tolerance)


def _mean_is(
    quantity: str, parameters: Parameters, target: float, values: Sequence[float], tolerance: float, level: float
) -> Finding:
    low, high = interval(values, level)
    # The smaller of how far inside of the interval the target is, and of how much wider the interval could be.
    inside = min(target - low, high - target) + _ROUNDING * abs(target)
    margin = min(inside, tolerance - (high - low) / 2)
    return _finding(quantity, "=", parameters, target, fmean(values), low, high, margin, tolerance)


def _finding(
    quantity: str,
    relation: Literal["<=", ">=", "="],
    parameters: Parameters,
    predicted: float,
    measured: float,
    low: float,
    high: float,
    margin: float,
    unit: float,
) -> Finding:
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(margin)):
        margin = -math.inf
    room = margin / unit if unit > 0 else margin
    return Finding(quantity, relation, parameters, predicted, measured, low, high, margin, room)
