"""The answer in words: does it help here, with which method, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from .design import sight
from .differences import MINIMUM_PAIRS
from .group import Answer, answer
from .setting_words import how_set
from .stats import COSTS, Row
from .words import decimals, names, tested, with_interval

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
        One to seven sentences; the first is the headline.
    """
    usable = [row for row in rows if row.metric is not None]
    if not usable:
        return [_nothing(plan, records)]
    digits = decimals(usable)
    found = answer(usable, records, plan.cost, plan.higher_is_better)
    base = next((row for row in usable if row.is_base), None)
    if base is None or not found.tested:
        sentences = _untested(plan, rows, usable, digits)
    elif found.best:
        sentences = _yes(plan, base, found, digits)
    else:
        sentences = _no(plan, found, records, digits)
    if base is not None and found.tested:
        sentences.append(how_set(plan))
    diverged = [f"{row.method} ({row.diverged} of {row.trials})" for row in rows if row.diverged]
    if diverged:
        sentences.append(f"Some trials diverged and are left out of the means: {', '.join(diverged)}.")
    named = found.choice or _best([row for row in usable if not row.is_base], plan.higher_is_better)
    if base is not None and named is not None:
        cheaper = "" if found.choice in (None, *found.best[:1]) else f"The cheaper choice is {named.method}. "
        sentences.append(cheaper + _cost(plan, base, named, records, digits))
        sentences += _target(plan, base, named, digits)
    return sentences


def _nothing(plan: Plan, records: Sequence[Record]) -> str:
    """Say why no trial has numbers, as far as that can be seen."""
    text = "No answer: every trial diverged, so there is nothing to compare."
    lengths = {record.config.row: record.config.epochs for record in records}
    if plan.loop is None and all(len(record.curve.seconds) == lengths[record.config.row] for record in records):
        return (
            "No answer: every trial came to its end, but over the whole training or test data its loss or metric is "
            "not finite. Look for numbers that are not finite there."
        )
    return f"{text} Try smaller learning rates, and look for numbers that are not finite in the data."


def _untested(plan: Plan, rows: Sequence[Row], usable: Sequence[Row], digits: int) -> list[str]:
    others = [row for row in usable if not row.is_base]
    top = _best(usable, plan.higher_is_better)
    assert top is not None
    assert top.metric is not None
    value = with_interval(top.metric, digits)
    highest = f"The best mean test {plan.metric_name} is that of {top.method}: {value} (n={top.metric.n})."
    base = next((row for row in rows if row.is_base), None)
    if base is None:
        return [f"No comparison: the base {plan.base} is not among the methods, so no differences are stated.", highest]
    if base.metric is None:
        return [f"No comparison: every trial of the base {plan.base} diverged.", highest]
    if not others:
        reason = "is the only method here" if len(rows) == 1 else "is the only method that ever reached the end"
        return [f"No comparison: {plan.base} {reason}.", highest]
    few = f"fewer than {MINIMUM_PAIRS} seeds are shared with the base; run it with --seeds 10"
    return [f"No answer yet: a difference cannot be told from chance when {few}.", highest]


def _yes(plan: Plan, base: Row, found: Answer, digits: int) -> list[str]:
    best, tests = found.best, len(found.tested)
    assert base.metric is not None
    before = with_interval(base.metric, digits)
    values = [with_interval(row.metric, digits) for row in best if row.metric is not None]
    if len(best) == 1:
        headline = f"Yes: {best[0].method} takes the test {plan.metric_name} from {before} to {values[0]}."
    else:
        headline = (
            f"Yes: {names(best)}, which this design cannot tell apart, take the test {plan.metric_name} from {before} "
            f"to {', '.join(values[:-1])} and {values[-1]}."
        )
    assert best[0].difference is not None
    which = f" of {best[0].method}" if len(best) > 1 else ""
    text = f"The difference{which} to {plan.base} is {tested(best[0].difference, tests, digits)}."
    if found.also_better:
        text += f" Also significantly better, but less so: {names(found.also_better)}."
    return [headline, text + _worse(plan, found)]


def _no(plan: Plan, found: Answer, records: Sequence[Record], digits: int) -> list[str]:
    closest, tests = found.tested[0], len(found.tested)
    assert closest.difference is not None
    all_worse = len(found.worse) == tests
    who = f"none of the {tests} methods tested is" if tests > 1 else f"{closest.method} is not"
    if all_worse:
        who = f"{_all(tests)} methods tested are" if tests > 1 else f"{closest.method} is"
    headline = f"No: {who} significantly {'worse' if all_worse else 'better'} than {plan.base} here."
    difference = tested(closest.difference, tests, digits)
    if all_worse:
        which = "The difference" if tests == 1 else f"The smallest difference, that of {closest.method},"
        return [headline, f"{which} is {difference}."]
    sees = sight(closest, tests, records, digits, plan.higher_is_better)
    which = "The difference is" if tests == 1 else f"The most favourable difference is that of {closest.method}:"
    favourable = f"{which} {difference}."
    return [headline, favourable + _worse(plan, found), *([] if sees is None else [sees])]


def _all(tests: int) -> str:
    return "both" if tests == 2 else f"all of the {tests}"


def _worse(plan: Plan, found: Answer) -> str:
    return f" Significantly worse than {plan.base}: {names(found.worse)}." if found.worse else ""


def _cost(plan: Plan, base: Row, best: Row, records: Sequence[Record], digits: int) -> str:
    arms = {arm.name: arm for arm in plan.arms}
    units = COSTS[plan.cost]
    if not getattr(base, plan.cost):
        return f"{best.method} takes {best.relative_time or math.nan:.1f} times the training time of {base.method}."
    ratio = getattr(best, plan.cost) / getattr(base, plan.cost)
    times = f"as many {units} as" if abs(ratio - 1) < 0.05 else f"{ratio:.1f} times the {units} of"
    length, reference_length = (arms[row.method].length(plan.epochs) for row in (best, base))
    unit = length.rpartition(" ")[2].rstrip("s") + "s"
    frame = f"At equal {unit}" if length == reference_length else f"In {length}, against {reference_length},"
    frame = frame if plan.epochs else "In the same loop"
    text = f"{frame} {best.method} takes {times} {base.method}"
    if best.relative_time is not None:
        memory = f", with {best.relative_memory:.1f} times its memory" if best.relative_memory is not None else ""
        text += f" and {best.relative_time:.1f} times its training time{memory}"
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


def _target(plan: Plan, base: Row, named: Row, digits: int) -> list[str]:
    """Say after how much the row was as good as the base at its end, as far as that is known."""
    found = named.target
    if found is None or plan.loop is not None:
        return []
    what = f"the final validation {plan.metric_name} of {base.method} ({found.value:.{digits}f})"
    spent, whole = getattr(found, plan.cost), getattr(base, plan.cost)
    if spent is None or found.seconds is None or not whole or not base.seconds:
        return [f"It reached and kept {what} in {found.reached} of {found.trials} trials only."]
    return [
        f"It reached and kept {what} after {spent / whole:.1f} times the {COSTS[plan.cost]} and "
        f"{found.seconds / base.seconds:.1f} times the seconds that {base.method} had in all "
        f"({found.reached} of {found.trials} trials, median)."
    ]


def _best(rows: Sequence[Row], higher_is_better: bool) -> Row | None:
    """Return the row with the best mean; one with diverged trials only if there is no other."""
    whole = [row for row in rows if not row.diverged] or list(rows)
    sign = 1.0 if higher_is_better else -1.0
    return max(whole, key=lambda row: sign * row.metric.value if row.metric else float("-inf"), default=None)
