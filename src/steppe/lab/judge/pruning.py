"""Which settings of a sweep are not worth the rest of their training."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from .points import Point

_TO_COMPARE_WITH = 5  # settings that were finished, before one is pruned


class Medians:
    """What a setting is compared with after every epoch: the medians of those before it that were finished."""

    def __init__(self) -> None:
        """None yet."""
        self._count = 0
        self._in_order: list[list[float]] = []  # of each epoch, so that one more costs nearly nothing

    def add(self, found: Point) -> None:
        """Take one more setting."""
        if found.state != "finished":
            return
        self._count += 1
        self._in_order = self._in_order or [[] for _ in found.curve]
        for values, value in zip(self._in_order, found.curve, strict=True):
            insort(values, value)

    @property
    def bars(self) -> tuple[float, ...] | None:
        """The medians, epoch by epoch; None while too few settings are finished."""
        if self._count < _TO_COMPARE_WITH:
            return None
        low, high = (self._count - 1) // 2, self._count // 2
        return tuple((values[low] + values[high]) / 2 for values in self._in_order)


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
