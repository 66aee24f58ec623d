"""Which settings of a sweep are not worth the rest of their training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .points import Point

_TO_COMPARE_WITH = 5  # settings that were finished, before one is pruned


def medians(others: Sequence[Point]) -> tuple[float, ...] | None:
    """Return what a setting is compared with after every epoch; None while too few others are finished.

    Args:
        others: The settings before it.
    """
    curves = [other.curve for other in others if other.state == "finished"]
    if len(curves) < _TO_COMPARE_WITH:
        return None
    return tuple(median(values) for values in zip(*curves, strict=False))


def falls_behind(curve: Sequence[float], bars: Sequence[float], higher_is_better: bool) -> int | None:
    """Return the first epoch, from 1, from half of the training on, at which all so far is worse than the median there.

    Learning rates fall while they train, so that large ones look bad at first: the first half is not looked at.

    Args:
        curve: The metric after every epoch so far.
        bars: The medians of others, after every epoch of a training.
        higher_is_better: Whether a larger metric is better.

    Example:
        >>> falls_behind([3.0, 2.0, 1.5], [2.0, 2.0, 1.0, 1.0], higher_is_better=False)
        3
    """
    choose = max if higher_is_better else min
    for epoch in range(max(1, -(-len(bars) // 2)), min(len(curve), len(bars)) + 1):
        best, bar = choose(curve[:epoch]), bars[epoch - 1]
        if best < bar if higher_is_better else best > bar:
            return epoch
    return None
