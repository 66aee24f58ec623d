"""What a grid says of a method: its best, its median, its worst, its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from ...lab.judge.stats import Mean, mean
from ...lab.trials.records import Record
from .design import Preset, Width

NEAR = 1.0
"""Points of the metric within which a setting is about as good as the best."""

STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "best": max,
    "median": median,
    "worst": min,
    "sd over the grid": pstdev,
    f"% within {NEAR:g} of the best": lambda values: 100 * sum(v >= max(values) - NEAR for v in values) / len(values),
}
"""Of the validation metrics of all settings with one seed."""


@dataclass(frozen=True)
class Grid:
    """All settings of one method on one task.

    Attributes:
        settings: Of the wide grid, radii in rows, learning rates in columns.
        values: By seed, the validation metric of every setting; of a diverged one that of guessing.
        diverged: By setting, how many seeds diverged.
        losses: By setting, the mean validation loss of the seeds that did not, by which ties are settled.
    """

    settings: Sequence[Mapping[str, object]]
    values: Mapping[int, Sequence[float]]
    diverged: Sequence[int]
    losses: Sequence[float] = ()

    @property
    def means(self) -> list[float]:
        """The mean over seeds of every setting."""
        return [sum(column) / len(column) for column in zip(*self.values.values(), strict=True)]

    def best(self, inside: Sequence[int]) -> int:
        """Return which setting, of those inside, has the best mean; one that never diverged, if there is one."""
        means, losses = self.means, self.losses or [0.0] * len(self.settings)
        return max(inside, key=lambda index: (not self.diverged[index], means[index], -losses[index]))

    def statistic(self, name: str, inside: Sequence[int]) -> dict[int, float]:
        """Return a statistic of the settings inside, by seed."""
        return {seed: STATISTICS[name]([values[i] for i in inside]) for seed, values in self.values.items()}


def grid(preset: Preset, settings: Sequence[Mapping[str, object]], records: Sequence[Sequence[Record]]) -> Grid:
    """Gather the records of a method's settings, one list per setting."""
    seeds = sorted({record.config.seed for record in records[0]})
    values = {seed: [preset.guessing] * len(settings) for seed in seeds}
    diverged = [0] * len(settings)
    losses: list[list[float]] = [[] for _ in settings]
    for index, group in enumerate(records):
        for record in group:
            if record.final is None or record.final.validation_metric is None:
                diverged[index] += 1
            else:
                values[record.config.seed][index] = record.final.validation_metric
                losses[index].append(math.inf if record.final.validation_loss is None else record.final.validation_loss)
    return Grid(settings, values, diverged, [fmean(found) if found else math.inf for found in losses])


def summary(found: Grid, preset: Preset, method: str, width: Width) -> dict[str, Mean]:
    """Return all statistics of a grid, as means over seeds."""
    inside = preset.inside(method, width)
    return {name: mean(list(found.statistic(name, inside).values())) for name in STATISTICS}
