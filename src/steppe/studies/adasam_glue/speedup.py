"""Larger batches, fewer steps: the paper's Figure 1."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ...compare.comparison import Comparison
from ...compare.records import Record
from ...compare.stats import Difference, paired

BATCHES = (4, 8, 16, 32)


@dataclass(frozen=True)
class SpeedUp:
    """Steps to a training loss, by batch size.

    Attributes:
        level: The loss.
        steps: By batch size and seed; a seed that does not get there is missing.
        slope: Of log(steps) against log(batch size), fitted for every seed: mean and 95 % interval over seeds. -1 is
            the linear speed-up, -1/2 that by its square root.
        comparison: All trials.
    """

    level: float
    steps: Mapping[int, Mapping[int, float]]
    slope: Difference | None
    comparison: Comparison


def arms(setting: Mapping[str, Any], batch: int, sizes: Sequence[int] = BATCHES) -> dict[str, dict[str, Any]]:
    """Return a row for every batch size, with a learning rate in proportion to its square root.

    Args:
        setting: What was chosen for batches of ``batch``.
        batch: That batch size.
        sizes: Batch sizes.
    """
    schedules = setting["schedules"]
    return {
        _name(size): {
            **setting,
            "lr": setting["lr"] * math.sqrt(size / batch),
            # Constant, so that no curve ends because its learning rate does.
            "schedules": {**schedules, "lr": "constant", "batch_size": {"kind": "constant", "size": size}},
        }
        for size in sizes
    }


def measure(comparison: Comparison, sizes: Sequence[int] = BATCHES) -> SpeedUp:
    """Find out how many steps every batch size takes to the lowest loss that all of them reach in the mean."""
    by_size = {size: [r for r in comparison.records if r.config.row == _name(size)] for size in sizes}
    ends = [fmean(min(r.curve.train_loss) for r in records if r.final is not None) for records in by_size.values()]
    level = 1.25 * max(ends)
    steps: dict[int, dict[int, float]] = {}
    for size, records in by_size.items():
        found = {record.config.seed: steps_to(record, level) for record in records if record.final is not None}
        steps[size] = {seed: value for seed, value in found.items() if value is not None}
    seeds = set.intersection(*(set(of) for of in steps.values()))
    slopes = [_slope(sizes, [steps[size][seed] for size in sizes]) for seed in sorted(seeds)]
    return SpeedUp(level, steps, paired(slopes), comparison)


def steps_to(record: Record, level: float) -> float | None:
    """Return the number of updates after which a trial's training loss has fallen to ``level``, or None.

    A curve has the mean loss of every epoch, which belongs to its middle; between two of them the logarithm of the loss
    is taken to be a straight line.
    """
    points = curve(record)
    for (a, high), (b, low) in pairwise(points):
        if low <= level:
            if high <= level:
                return a
            return a + (b - a) * math.log(high / level) / math.log(high / low)
    return None


def curve(record: Record) -> list[tuple[float, float]]:
    """Return updates, in the middle of every epoch, and the mean training loss of the epoch."""
    per_update = record.gradient_evaluations / record.updates
    ends = [0.0, *(evaluations / per_update for evaluations in record.curve.gradient_evaluations)]
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    return list(zip(middles, record.curve.train_loss, strict=True))


def _slope(sizes: Sequence[int], steps: Sequence[float]) -> float:
    xs, ys = [math.log(size) for size in sizes], [math.log(max(step, 1e-9)) for step in steps]
    x, y = fmean(xs), fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def table(found: SpeedUp) -> list[list[str]]:
    """Return the lines of the table, the head first."""
    lines = [["batch", "learning rate", f"steps to a training loss of {found.level:.3g}", "of the smallest batch's"]]
    first: float | None = None
    for size, by_seed in found.steps.items():
        lr = next(r for r in found.comparison.records if r.config.row == _name(size)).config.hyperparameters["lr"]
        if not by_seed:
            lines.append([str(size), f"{lr:.3g}", "not reached", ""])
            continue
        mean = fmean(by_seed.values())
        first = mean if first is None else first
        spread = f" ({min(by_seed.values()):.0f} to {max(by_seed.values()):.0f}, n = {len(by_seed)})"
        lines.append([str(size), f"{lr:.3g}", f"{mean:.0f}{spread}", f"{mean / first:.2f}"])
    return lines


def verdict(found: SpeedUp) -> str:
    """Say what the slope is, next to what the theory has."""
    if found.slope is None:
        return "Too few seeds reach the loss with every batch size."
    slope = found.slope
    text = f"Fitted slope of log(steps) against log(batch): {slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
    return f"{text}, n = {slope.n} seeds; the linear speed-up is -1."


def png(found: SpeedUp) -> bytes:
    """Draw training loss against steps, and steps against the batch size."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, size in enumerate(found.steps):
        colour = ("#4477AA", "#66CCEE", "#228833", "#EE6677")[k % 4]
        some = [curve(r) for r in found.comparison.records if r.config.row == _name(size) and r.final is not None]
        if some:
            xs = [x for x, _ in some[0]]
            ys = [fmean(values) for values in zip(*([y for _, y in one] for one in some), strict=True)]
            left.plot(xs, ys, color=colour, label=f"b = {size}")
    left.axhline(found.level, color="#BBBBBB", linewidth=0.8)
    left.set(yscale="log", xlabel="updates", ylabel="training loss")
    left.legend(frameon=False)
    points = [(size, value) for size, by_seed in found.steps.items() for value in by_seed.values()]
    right.plot(*zip(*points, strict=True), linestyle="none", marker="o", markersize=4, color="#4477AA")
    means = [(size, fmean(by_seed.values())) for size, by_seed in found.steps.items() if by_seed]
    right.plot(*zip(*means, strict=True), color="#4477AA", label="mean")
    start = means[0]
    ideal = [(size, start[1] * start[0] / size) for size, _ in means]
    right.plot(*zip(*ideal, strict=True), color="#BBBBBB", linestyle="--", label="linear speed-up")
    right.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"steps to a loss of {found.level:.3g}")
    right.set_xticks(list(found.steps), [str(size) for size in found.steps])
    right.minorticks_off()
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _name(size: int) -> str:
    return f"b{size}"
