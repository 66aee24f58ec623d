"""Numbers and names as tables and verdicts write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .differences import Difference
from .stats import Mean, Row


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


def names(rows: Sequence[Row]) -> str:
    """List methods.

    Example:
        >>> from .stats import Row
        >>> names([Row(name, False, 1, 0, {}) for name in ("sam", "usam", "gsam")])
        'sam, usam and gsam'
    """
    *first, last = [row.method for row in rows]
    return f"{', '.join(first)} and {last}" if first else last


def tested(difference: Difference, tests: int, digits: int) -> str:
    """Write a difference with all that is known of it."""
    corrected = f" corrected for {tests} methods" if tests > 1 else ""
    return (
        f"{signed(difference.value, digits)} (95 % interval {signed(difference.low, digits)} to "
        f"{signed(difference.high, digits)}, n={difference.n}, paired by seed, {probability(difference.p_holm)}"
        f"{corrected})"
    )


def probability(value: float) -> str:
    """Write a p."""
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"
