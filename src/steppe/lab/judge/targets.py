"""How soon a method is as good as the base at its end: time to a target, as AlgoPerf counts it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from ..trials.records import Curve, Record


@dataclass(frozen=True)
class Target:
    """After how much a row has reached a validation metric, and stayed there: medians over its trials.

    Attributes:
        value: What was to be reached.
        reached: How many trials did.
        trials: Of how many.
        gradient_evaluations: Until then; None if half of the trials or more did not reach it, like the next two.
        examples: Whose gradient was computed.
        seconds: Of training.
    """

    value: float
    reached: int
    trials: int
    gradient_evaluations: float | None
    examples: float | None
    seconds: float | None


def value_of(base: Iterable[Record]) -> float | None:
    """Return the mean final validation metric of the base; None if it is not known."""
    curves = [record.curve.validation_metric for record in base if record.final is not None]
    return fmean(curve[-1] for curve in curves) if curves and all(curves) else None


def target(curves: Sequence[Curve], value: float, higher_is_better: bool) -> Target | None:
    """Return how soon trials reach a validation metric for good.

    Args:
        curves: Of the trials of a row.
        value: To be reached.
        higher_is_better: Whether a larger metric is better.

    Returns:
        None if a trial has no curve.

    Example:
        >>> curve = Curve(validation_metric=[5, 7, 6, 8, 7], gradient_evaluations=[10, 20, 30, 40, 50],
        ...               examples=[0] * 5, seconds=[1.0] * 5)
        >>> target([curve], 7.0, higher_is_better=True).gradient_evaluations
        40.0
    """
    if not curves or not all(curve.validation_metric for curve in curves):
        return None
    epochs = [_epoch(curve.validation_metric, value, higher_is_better) for curve in curves]

    def middle(name: str) -> float | None:
        spent = [
            math.inf if epoch is None else getattr(curve, name)[epoch]
            for curve, epoch in zip(curves, epochs, strict=True)
        ]
        found = float(median(spent))
        return found if math.isfinite(found) else None

    reached = sum(epoch is not None for epoch in epochs)
    return Target(value, reached, len(curves), middle("gradient_evaluations"), middle("examples"), middle("seconds"))


def _epoch(metrics: Sequence[float], value: float, higher_is_better: bool) -> int | None:
    """Return the first epoch, from 0, from which on the metric is at least that good; None if its last is not."""
    first = None
    for epoch in reversed(range(len(metrics))):
        if metrics[epoch] < value if higher_is_better else metrics[epoch] > value:
            break
        first = epoch
    return first
