"""Every seed of every row as a dot, with the mean and its interval: where they are in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import MaxNLocator

from ...drawing.style import Look
from ..judge.stats import Row
from ..judge.words import decimals, with_interval


@dataclass(frozen=True)
class Scale:
    """Maps the test metric to 0..100 across the picture of the seeds."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Scale:
        """Make room for all seeds, and for the intervals as far as these leave room for the seeds."""
        values = [value for row in rows for value in row.test.values()]
        if not values:
            return cls(0.0, 1.0)
        low, high = min(values), max(values)
        spread = high - low
        ends = [end for row in rows if row.metric for end in (row.metric.low, row.metric.high) if end is not None]
        low, high = max(min([low, *ends]), low - spread), min(max([high, *ends]), high + spread)
        margin = 0.06 * (high - low) or 0.5
        return cls(low - margin, high + margin)

    def at(self, value: float) -> float:
        """Return the place of a number, within the picture."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of a few round numbers."""
        values = MaxNLocator(5).tick_values(self.low, self.high)
        return [(self.at(value), f"{value:g}") for value in values if self.low <= value <= self.high]


@dataclass(frozen=True)
class Line:
    """What is drawn in one line of the picture, in places of the scale.

    Attributes:
        name: Of the row.
        look: How it is drawn.
        label: The mean in words.
        dots: Seeds, their numbers in words, and where they are.
        mean: None if all trials diverged.
        bar: The ends of the mean's interval, if it has one.
        up: Seeds that the line above has too, their place here, and where the way there crosses the border.
        down: Likewise of the line below.
    """

    name: str
    look: Look
    label: str
    dots: list[tuple[int, str, float]]
    mean: float | None = None
    bar: tuple[float, float] | None = None
    up: list[tuple[int, float, float]] = field(default_factory=list)
    down: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def cut(self) -> bool:
        """Whether the interval goes on beyond the picture."""
        return self.bar is not None and (self.bar[0] == 0 or self.bar[1] == 100)


def lines(rows: Sequence[Row], looks: Mapping[str, Look], scale: Scale) -> list[Line]:
    """Say what is to be drawn.

    Args:
        rows: Of the table, in its order.
        looks: How they are drawn, by name.
        scale: Of the picture.
    """
    digits = decimals(rows)
    above, below = [None, *rows[:-1]], [*rows[1:], None]
    return [
        _line(row, looks[row.method], scale, digits, _ways(row, upper, scale), _ways(row, lower, scale))
        for row, upper, lower in zip(rows, above, below, strict=True)
    ]


def _line(
    row: Row,
    look: Look,
    scale: Scale,
    digits: int,
    up: list[tuple[int, float, float]],
    down: list[tuple[int, float, float]],
) -> Line:
    dots = [(seed, f"{value:.{digits}f}", scale.at(value)) for seed, value in row.test.items()]
    mean = row.metric
    if mean is None:
        return Line(row.method, look, "diverged", dots)
    bar = None if mean.low is None or mean.high is None else (scale.at(mean.low), scale.at(mean.high))
    return Line(row.method, look, with_interval(mean, digits), dots, scale.at(mean.value), bar, up, down)


def _ways(row: Row, neighbour: Row | None, scale: Scale) -> list[tuple[int, float, float]]:
    """Return half of the way from a row's dots to its neighbour's: lines may be of different heights."""
    others = {} if neighbour is None else neighbour.test
    return [
        (seed, scale.at(value), round((scale.at(value) + scale.at(others[seed])) / 2, 2))
        for seed, value in row.test.items()
        if seed in others
    ]
