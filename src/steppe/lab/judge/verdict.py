"""The answer in words: does it help here, with which method, at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from .stats import COSTS, MINIMUM_PAIRS, Difference, Mean, Row

if TYPE_CHECKING:
    from ..plans.comparison import Plan
    from ..trials.records import Record


def verdict(plan: Plan, rows: Sequence[Row], records: Sequence[Record]) -> list[str]:
    """Say what the table shows, and no more.

    Args:
        plan: What was compared.
        rows: Of the table.
        records: Of all trials.

    Returns:
        One to four sentences; the first is the headline.
    """
    usable = [row for row in rows if row.metric is not None]
    if not usable:
        return ["No answer: every trial diverged, so there is nothing to compare. Try smaller learning rates."]
    sentences = _answer(plan, rows, usable)
    diverged = [f"{row.method} ({row.diverged} of {row.trials})" for row in rows if row.diverged]
    if diverged:
        sentences.append(f"Some trials diverged and are left out of the means: {', '.join(diverged)}.")
    base = next((row for row in usable if row.is_base), None)
    others = [row for row in usable if not row.is_base]
    better = [row for row in others if _sure(row) and _gain(row, plan.higher_is_better) > 0]
    best = _best(better or others, plan.higher_is_better)  # the one that the answer names
    if base is not None and best is not None:
        sentences.append(_cost(plan, base, best, records, decimals(usable)))
    return sentences


def decimals(rows: Sequence[Row]) -> int:
    """Return how many decimals show the metric of these rows."""
    return decimals_of(row.metric.value for row in rows if row.metric is not None)


def decimals_of(values: Iterable[float]) -> int:
    """Return how many decimals show numbers of this size: two for percentages, more for small losses."""
    largest = max(map(abs, values), default=0.0)
    return 2 if largest == 0 else min(8, max(2, 3 - math.floor(math.log10(largest))))


def signed(value: float, digits: int) -> str:
    """Format a number with its sign, but zero without one."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def with_interval(mean: Mean, digits: int) -> str:
    """Format a mean with its 95 % interval, if it has one."""
    if mean.low is None or mean.high is None:
        return f"{mean.value:.{digits}f}"
    return f"{mean.value:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def _answer(plan: Plan, rows: Sequence[Row], usable: Sequence[Row]) -> list[str]:
    others = [row for row in usable if not row.is_base]
    top = _best(usable, plan.higher_is_better)
    assert top is not None
    assert top.metric is not None
    value = with_interval(top.metric, decimals(usable))
    highest = f"The best mean test {plan.metric_name} is that of {top.method}: {value} (n={top.metric.n})."
    base = next((row for row in rows if row.is_base), None)
    if base is None:
        return [f"No comparison: the base {plan.base} is not among the methods, so no differences are stated.", highest]
    if base.metric is None:
        return [f"No comparison: every trial of the base {plan.base} diverged.", highest]
    if not others:
        reason = "is the only method here" if len(rows) == 1 else "is the only method that ever reached the end"
        return [f"No comparison: {plan.base} {reason}.", highest]
    tested = [row for row in others if row.difference is not None]
    if not tested:
        few = f"fewer than {MINIMUM_PAIRS} seeds are shared with the base; run it with --seeds 10"
        return [f"No answer yet: a difference cannot be told from chance when {few}.", highest]
    return _tested_answer(plan, base, tested, decimals(usable))


def _tested_answer(plan: Plan, base: Row, tested: Sequence[Row], digits: int) -> list[str]:
    better = [row for row in tested if _sure(row) and _gain(row, plan.higher_is_better) > 0]
    worse = [row for row in tested if _sure(row) and _gain(row, plan.higher_is_better) < 0]
    best = _best(better, plan.higher_is_better)
    also_worse = f" Significantly worse than {plan.base}: {_names(worse)}." if worse else ""
    if best is None:
        closest = max(tested, key=lambda row: _gain(row, plan.higher_is_better))
        return [
            f"No: none of the {len(tested)} methods tested is significantly better than {plan.base} here."
            if len(tested) > 1
            else f"No: {tested[0].method} is not significantly better than {plan.base} here.",
            f"The most favourable difference is that of {closest.method}: {_difference(closest, len(tested), digits)}."
            f"{also_worse}",
        ]
    rest = [row for row in better if row is not best]
    also = f" Also significantly better: {_names(rest)}." if rest else ""
    assert base.metric is not None
    assert best.metric is not None
    return [
        f"Yes: {best.method} takes the test {plan.metric_name} from {with_interval(base.metric, digits)} to "
        f"{with_interval(best.metric, digits)}.",
        f"The difference to {plan.base} is {_difference(best, len(tested), digits)}.{also}{also_worse}",
    ]


def _difference(row: Row, tested: int, digits: int) -> str:
    difference: Difference | None = row.difference
    assert difference is not None
    return (
        f"{signed(difference.value, digits)} (95 % interval {signed(difference.low, digits)} to "
        f"{signed(difference.high, digits)}, "
        f"n={difference.n}, paired by seed, {_p(difference.p_holm)} corrected for "
        f"{tested} {'method' if tested == 1 else 'methods'})"
    )


def _p(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"


def _cost(plan: Plan, base: Row, best: Row, records: Sequence[Record], digits: int) -> str:
    arms = {arm.name: arm for arm in plan.arms}
    units = COSTS[plan.cost]
    if not getattr(base, plan.cost):
        return f"{best.method} takes {best.relative_time or math.nan:.1f} times the training time of {base.method}."
    ratio = getattr(best, plan.cost) / getattr(base, plan.cost)
    times = f"as many {units} as" if abs(ratio - 1) < 0.05 else f"{ratio:.1f} times the {units} of"
    length, reference_length = (arms[row.method].length(plan.epochs) for row in (best, base))
    unit = length.rpartition(" ")[2]
    frame = f"At equal {unit}" if length == reference_length else f"In {length}, against {reference_length},"
    frame = frame if plan.epochs else "In the same loop"
    text = f"{frame} {best.method} takes {times} {base.method}"
    if best.relative_time is not None:
        text += f" and {best.relative_time:.1f} times its training time"
    equal_cost = _at_equal_cost(plan.cost, base, best, records)
    if ratio < 1.05 or equal_cost is None:
        return text + "."
    epoch, epochs, value, reference = equal_cost
    high = ", its learning rate still high" if plan.loop is None and arms[best.method].schedules.lr.floor < 1 else ""
    return (
        f"{text}; after as many {units.rpartition(' ')[2]} as {base.method} had in all (epoch {epoch} of {epochs}"
        f"{high}) its validation {plan.metric_name} was {value:.{digits}f}, against {reference:.{digits}f}."
    )


def _at_equal_cost(cost: str, base: Row, best: Row, records: Sequence[Record]) -> tuple[int, int, float, float] | None:
    """Return epoch, of how many, and metric when a row had cost as much as the whole base, and the base's metric."""
    curves = {
        row.method: [record.curve for record in records if record.final and record.config.row == row.method]
        for row in (base, best)
    }
    if not all(curve.validation_metric for found in curves.values() for curve in found):  # a loop that tells nothing
        return None
    budget = min(getattr(curve, cost)[-1] for curve in curves[base.method])
    epoch = min(sum(spent <= budget for spent in getattr(curve, cost)) for curve in curves[best.method])
    if epoch == 0:
        return None
    value = fmean(curve.validation_metric[epoch - 1] for curve in curves[best.method])
    reference = fmean(curve.validation_metric[-1] for curve in curves[base.method])
    return epoch, len(curves[best.method][0].validation_metric), value, reference


def _best(rows: Sequence[Row], higher_is_better: bool) -> Row | None:
    """Return the row with the best mean; one with diverged trials only if there is no other."""
    whole = [row for row in rows if not row.diverged] or list(rows)
    sign = 1.0 if higher_is_better else -1.0
    return max(whole, key=lambda row: sign * row.metric.value if row.metric else float("-inf"), default=None)


def _gain(row: Row, higher_is_better: bool) -> float:
    value = row.difference.value if row.difference else 0.0
    return value if higher_is_better else -value


def _sure(row: Row) -> bool:
    return row.difference is not None and row.difference.significant


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(row.method for row in rows)
