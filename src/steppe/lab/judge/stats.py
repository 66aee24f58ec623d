"""The numbers of the table: means, their intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from ..trials.records import Final, Record
from .differences import MINIMUM_PAIRS, Difference, between, holm
from .noise import LEVEL
from .targets import Target, target, value_of

COSTS = {"gradient_evaluations": "gradient evaluations", "examples": "example gradients"}
"""What trials may be charged for: a field of curves, records and rows, and its words."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        error: Its standard error; None if there is one number only.
        n: How many numbers.
        low: Lower end of the 95 % interval (Student's t); None if there is one number only.
        high: Upper end.
    """

    value: float
    error: float | None
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        method: The method's name, or that of the arm.
        is_base: Whether it is what the others are compared with.
        trials: How many were run.
        diverged: How many of them diverged.
        test: Test metric by seed, of the trials that did not diverge.
        metric: Mean test metric; None if all trials diverged, like the numbers below.
        difference: To the base; None with fewer than 3 pairs.
        train_loss: Mean loss over the training split at the end.
        gap: Mean of how much worse the metric is on test than on training data.
        gradient_evaluations: Mean per trial.
        examples: Mean number of examples whose gradient was computed, per trial.
        updates: Mean number of parameter updates per trial.
        seconds: Mean training time per trial.
        relative_time: Mean over seeds of training time divided by that of the base.
        relative_memory: Likewise of the most memory that a trial took on an accelerator.
        target: After how much its validation metric was that of the base at its end, and stayed there; None without a
            base, like what is not known.
        more: Mean of every further metric on the test split over the seeds where it is finite; None where it nowhere
            is.
        sharpness: Likewise of every measure of sharpness.
    """

    method: str
    is_base: bool
    trials: int
    diverged: int
    test: dict[int, float]
    metric: Mean | None = None
    difference: Difference | None = None
    train_loss: float | None = None
    gap: float | None = None
    gradient_evaluations: float | None = None
    examples: float | None = None
    updates: float | None = None
    seconds: float | None = None
    relative_time: float | None = None
    relative_memory: float | None = None
    target: Target | None = None
    more: dict[str, Mean | None] = field(default_factory=dict)
    sharpness: dict[str, Mean | None] = field(default_factory=dict)


def mean(values: Sequence[float]) -> Mean:
    """Return mean, standard error and 95 % interval.

    Args:
        values: At least one number.

    Returns:
        The mean, with the sample's standard deviation over the root of n as error.

    Example:
        >>> found = mean([1.0, 2.0, 3.0])
        >>> [round(number, 3) for number in (found.value, found.error, found.low, found.high)]
        [2.0, 0.577, -0.484, 4.484]
    """
    n, centre = len(values), fmean(values)
    if n < 2:
        return Mean(centre, None, n)
    error = stdev(values) / math.sqrt(n)
    half = half_width(error, n)
    return Mean(centre, error, n, centre - half, centre + half)


def half_width(error: float, n: int) -> float:
    """Return how far the 95 % interval reaches to either side of a mean of n numbers with this standard error."""
    from scipy import stats

    return float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error


def sharpness_and_metric(rows: Sequence[Row], measure: str) -> list[tuple[float, float]]:
    """Return the means of a measure of sharpness and of the test metric, of every row that has both."""
    return [
        (sharpness.value, row.metric.value)
        for row in rows
        if row.metric is not None and (sharpness := row.sharpness.get(measure)) is not None
    ]


def rank_correlation(rows: Sequence[Row], measure: str) -> float | None:
    """Return Spearman's rank correlation between a measure of sharpness and the test metric, over rows' means.

    Args:
        rows: Of the table.
        measure: The measure's name.

    Returns:
        From -1 to 1; None with fewer than 3 rows, or if all have the same value.
    """
    pairs = sharpness_and_metric(rows, measure)
    if len(pairs) < MINIMUM_PAIRS or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    from scipy import stats

    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def summarize(records: Sequence[Record], base: str, higher_is_better: bool) -> list[Row]:
    """Make the rows of the table: the base first, then the others from best to worst, those without numbers last.

    Args:
        records: All trials of one comparison.
        base: The row to compare with; it need not be among the records.
        higher_is_better: Whether a larger metric is better.

    Returns:
        One row a method or arm.
    """
    by_row: dict[str, dict[int, Record]] = {}
    for record in records:
        by_row.setdefault(record.config.row, {})[record.config.seed] = record
    reference = by_row.get(base, {})
    rows = [_row(name, trials, reference, name == base, higher_is_better) for name, trials in by_row.items()]
    return sorted(_correct(rows), key=lambda row: _rank(row, higher_is_better))


def _row(
    method: str, trials: Mapping[int, Record], reference: Mapping[int, Record], is_base: bool, higher: bool
) -> Row:
    finals = _finals(trials)
    row = Row(method, is_base, len(trials), len(trials) - len(finals), _tests(finals))
    if not finals:
        return row
    sign = 1.0 if higher else -1.0
    base_finals = _finals(reference)
    shared = [seed for seed in finals if seed in base_finals]
    own_split = any(record.config.own_split for record in trials.values())
    memory = [_ratio(trials[seed].peak_memory, reference[seed].peak_memory) for seed in shared]
    wanted = value_of(reference.values())
    return replace(
        row,
        metric=mean(list(row.test.values())),
        difference=None if is_base else between(finals, base_finals, own_split),
        train_loss=_mean_of_all([final.train_loss for final in finals.values()]),
        gap=_mean_of_all(
            [
                None if final.train_metric is None else sign * (final.train_metric - row.test[seed])
                for seed, final in finals.items()
            ]
        ),
        gradient_evaluations=fmean(trials[seed].gradient_evaluations for seed in finals),
        examples=fmean(trials[seed].examples for seed in finals),
        updates=fmean(trials[seed].updates for seed in finals),
        seconds=fmean(trials[seed].seconds for seed in finals),
        relative_time=fmean(trials[seed].seconds / reference[seed].seconds for seed in shared) if shared else None,
        relative_memory=_mean_of_all(memory) if memory else None,
        target=None if wanted is None else target([trials[seed].curve for seed in finals], wanted, higher),
        more=_means([final.test_more for final in finals.values()]),
        sharpness=_means([final.sharpness for final in finals.values()]),
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if one is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _ratio(value: int | None, reference: int | None) -> float | None:
    return value / reference if value is not None and reference else None


def finals_of(records: Sequence[Record], row: str) -> dict[int, Final]:
    """Return what the trials of a row have found, by seed; without those that diverged."""
    return _finals({record.config.seed: record for record in records if record.config.row == row})


def _finals(trials: Mapping[int, Record]) -> dict[int, Final]:
    return {seed: record.final for seed, record in sorted(trials.items()) if record.final is not None}


def _means(found: Sequence[Mapping[str, float | None] | None]) -> dict[str, Mean | None]:
    values: dict[str, list[float]] = {}
    for one in found:
        for name, value in (one or {}).items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {name: mean(numbers) if numbers else None for name, numbers in values.items()}


def _tests(finals: Mapping[int, Final]) -> dict[int, float]:
    return {seed: final.test_metric for seed, final in finals.items() if final.test_metric is not None}


def _correct(rows: Sequence[Row]) -> list[Row]:
    corrected = iter(holm([row.difference.p for row in rows if row.difference is not None]))
    return [
        row if row.difference is None else replace(row, difference=replace(row.difference, p_holm=next(corrected)))
        for row in rows
    ]


def _rank(row: Row, higher_is_better: bool) -> tuple[bool, bool, float]:
    value = 0.0 if row.metric is None else row.metric.value
    return (not row.is_base, row.metric is None, -value if higher_is_better else value)
