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

from ...lab.judge.comparison import Comparison
from ...lab.judge.differences import Difference, paired
from ...lab.trials.records import Record

BATCHES = (4, 8, 16, 32)
LONGER = 4
"""Times the task's own number of updates: small batches need more of them."""
_SMOOTHED = 64
_TINY = 1e-12


@dataclass(frozen=True)
class SpeedUp:
    """Steps to a training loss, by batch size.

    Attributes:
        level: The loss; None if every training diverged.
        steps: By batch size and seed; a seed that diverged is missing.
        slope: Of log(steps) against log(batch size), fitted for every seed: mean and 95 % interval over seeds. -1 is
            the linear speed-up, -1/2 that by its square root.
        comparison: All trials.
    """

    level: float | None
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
            "updates": LONGER * setting["updates"],
            # Constant, so that no curve ends because its learning rate does.
            "schedules": {**schedules, "lr": "constant", "batch_size": {"kind": "constant", "size": size}},
        }
        for size in sizes
    }


def measure(comparison: Comparison, sizes: Sequence[int] = BATCHES) -> SpeedUp:
    """Find out how many steps every batch size takes to 1.25 times the lowest loss that all trainings reach."""
    curves = {
        size: {r.config.seed: curve(r, size) for r in comparison.records if r.config.row == _name(size) and r.final}
        for size in sizes
    }
    lowest = [min(loss for _, loss in points) for of in curves.values() for points in of.values()]
    if not lowest:
        return SpeedUp(None, {size: {} for size in sizes}, None, comparison)
    level = 1.25 * max(lowest)
    steps: dict[int, dict[int, float]] = {}
    for size, of in curves.items():
        found = {seed: steps_to(points, level) for seed, points in of.items()}
        steps[size] = {seed: value for seed, value in found.items() if value is not None}
    seeds = set.intersection(*(set(of) for of in steps.values()))
    slopes = [_slope(sizes, [steps[size][seed] for size in sizes]) for seed in sorted(seeds)]
    return SpeedUp(level, steps, paired(slopes), comparison)


def steps_to(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return after how many updates a curve has fallen to ``level``, or None.

    Between two points the logarithm of the loss is taken to be a straight line.
    """
    if points[0][1] <= level:
        return points[0][0]
    for (a, high), (b, low) in pairwise(points):
        if low <= level:
            return a + (b - a) * math.log(high / level) / math.log(high / low)
    return None


def curve(record: Record, size: int) -> list[tuple[float, float]]:
    """Return updates, and the training loss around them.

    Losses are running means over 64 examples, so that those of small batches are no noisier than those of large ones,
    and reach a loss no sooner by chance.

    Args:
        record: Of a trial with batches of one size.
        size: That size.
    """
    every, losses = record.curve.batch_loss_updates, [max(loss, _TINY) for loss in record.curve.batch_loss]
    width = min(max(1, round(_SMOOTHED / (size * every))), len(losses))
    # A number is the mean of losses after 0, 1, ..., every - 1 more updates.
    return [
        (every * (i + (width - 1) / 2) + (every - 1) / 2, fmean(losses[i : i + width]))
        for i in range(len(losses) - width + 1)
    ]


def _slope(sizes: Sequence[int], steps: Sequence[float]) -> float:
    xs, ys = [math.log(size) for size in sizes], [math.log(max(step, 1e-9)) for step in steps]
    x, y = fmean(xs), fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def table(found: SpeedUp) -> list[list[str]]:
    """Return the lines of the table, the head first."""
    lines = [["batch", "learning rate", f"steps to {_loss(found)}", "of the smallest batch's"]]
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
    if found.level is None:
        return "Every training diverged."
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
        some = [curve(r, size) for r in found.comparison.records if r.config.row == _name(size) and r.final is not None]
        if some:
            xs = [x for x, _ in some[0]]
            ys = [fmean(values) for values in zip(*([y for _, y in one] for one in some), strict=True)]
            left.plot(xs, ys, color=colour, label=f"b = {size}")
    left.set(yscale="log", xlabel="updates", ylabel="training loss")
    right.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"steps to {_loss(found)}")
    means = [(size, fmean(by_seed.values())) for size, by_seed in found.steps.items() if by_seed]
    if found.level is not None and means:
        left.axhline(found.level, color="#BBBBBB", linewidth=0.8)
        left.legend(frameon=False)
        points = [(size, value) for size, by_seed in found.steps.items() for value in by_seed.values()]
        right.plot(*zip(*points, strict=True), linestyle="none", marker="o", markersize=4, color="#4477AA")
        right.plot(*zip(*means, strict=True), color="#4477AA", label="mean")
        first, steps = means[0]
        ideal = [(size, steps * first / size) for size, _ in means]
        right.plot(*zip(*ideal, strict=True), color="#BBBBBB", linestyle="--", label="linear speed-up")
        right.legend(frameon=False)
    right.set_xticks(list(found.steps), [str(size) for size in found.steps])
    right.minorticks_off()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _loss(found: SpeedUp) -> str:
    return "a training loss" if found.level is None else f"a training loss of {found.level:.3g}"


def _name(size: int) -> str:
    return f"b{size}"
