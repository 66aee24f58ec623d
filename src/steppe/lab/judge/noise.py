"""What a mean over seeds varies by, and what follows: its interval, its p, and what a design can see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, variance

LEVEL = 0.05
POWER = 0.8
"""How often a design should see what it is made to see."""

MOST_SEEDS = 1000
"""Beyond so many nobody is advised to go."""

_SMALLEST_P = 1e-12
_SHARES = [(i + 0.5) / 100 for i in range(100)]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Noise:
    """What the mean over seeds of a number, or of a difference of two, varies by.

    The interval of the mean is that of Zou's recovery of variances: with the variances A = seeds * (1 / n + overlap)
    and B = examples, its half width is the root of t(n - 1)^2 A + t(groups - 1)^2 B + z^2 step^2. Where A is all there
    is, that is Student's t.

    Attributes:
        n: Seeds, at least 2.
        seeds: The variance of one seed's number.
        examples: The part of the variance that stays however many seeds there are: that of other test examples.
        groups: Groups of test examples that `examples` was estimated from; 0 if they are not known.
        step: What one test example changes the number by, where outcomes are known: no test set sees less.
        overlap: Test examples for each training example, where every seed draws its own split, of one and the same
            data: the correction of Nadeau and Bengio (2003, equation 9). 0 for a fixed split.

    Example:
        >>> noise = Noise(n=4, seeds=1.0)
        >>> round(noise.half_width(), 3), round(noise.p(1.591), 3)  # 3.182 standard errors of 0.5, with 3 degrees
        (1.591, 0.05)
    """

    n: int
    seeds: float
    examples: float = 0.0
    groups: int = 0
    step: float = 0.0
    overlap: float = 0.0

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self._by_seeds(self.n) + self.examples + self.step**2)

    def half_width(self, level: float = LEVEL, n: int | None = None) -> float:
        """Return half of the interval that holds the true mean but for a share `level` of all such studies.

        Args:
            level: Above 0, below 1.
            n: Seeds, if not those that there are.
        """
        from scipy.special import ndtri, stdtrit

        n = n or self.n
        squares = float(stdtrit(n - 1, level / 2)) ** 2 * self._by_seeds(n) + float(ndtri(level / 2) * self.step) ** 2
        if self.examples:
            squares += float(stdtrit(self.groups - 1, level / 2)) ** 2 * self.examples
        return math.sqrt(squares)

    def p(self, value: float) -> float:
        """Return the smallest level whose interval around a mean leaves out zero; 1 for a mean of zero."""
        from scipy.optimize import brentq

        value = abs(value)
        if value == 0:
            return 1.0
        if self.half_width(_SMALLEST_P) < value:
            return _SMALLEST_P
        return float(brentq(lambda level: self.half_width(level) - value, _SMALLEST_P, 1.0, xtol=1e-15, rtol=1e-9))

    def smallest(self, tests: int = 1, n: int | None = None) -> float:
        """Return the smallest true difference that is found significant in four studies of five.

        The variance between seeds, which few seeds estimate badly, is taken to be too small as often as too large, and
        in the studies that would look it is estimated anew; for seeds alone that makes the noncentral t.

        Args:
            tests: So many differences are tested, and each is corrected for all of them.
            n: Seeds, if not those that there are.
        """
        from scipy.optimize import brentq
        from scipy.special import ndtr

        n = n or self.n
        seeds = self.seeds / _estimate(0.5, self.n)
        error = replace(self, n=n, seeds=seeds).error
        if error == 0:
            return 0.0
        level = LEVEL / tests
        widths = [replace(self, seeds=seeds * _estimate(share, n)).half_width(level, n) for share in _SHARES]
        return float(
            brentq(
                lambda true: fmean(ndtr((true - width) / error) for width in widths) - POWER, 0, widths[-1] + 9 * error
            )
        )

    def seeds_to_see(self, value: float, tests: int = 1) -> int | None:
        """Return how many seeds find such a difference significant in four studies of five; None if no number does."""
        found = next((n for n in _tries(self.n) if self.smallest(tests, n) <= abs(value)), None)
        if found is None or found == self.n:
            return found
        low, high = max(self.n, found // 2), found
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.smallest(tests, middle) <= abs(value) else (middle, high)
        return high

    def _by_seeds(self, n: int) -> float:
        return self.seeds * (1 / n + self.overlap)


def noise(
    values: Sequence[float],
    parts: Sequence[Sequence[float]] | None = None,
    step: float | None = None,
    overlap: float | None = None,
) -> Noise:
    """Estimate what the mean of one number a seed varies by.

    The variance over test examples is that of crossed effects: with the means of seeds, of groups, and what is left of
    the numbers after both, B = var(groups) / G - var(left) / (n G), but at least 0, and such that both together are no
    less than var(groups) / G.

    Args:
        values: One a seed, at least 2.
        parts: For each seed the same number for every group of test examples, the same groups for all seeds.
        step: What one test example changes the number by, or the unit that it is counted in: where the test examples
            are not the same for all seeds, or not known, no less spread between seeds is believed.
        overlap: See `Noise`; None for a fixed split.

    Example:
        >>> noise([1.0, 3.0], parts=[[0.0, 2.0], [2.0, 4.0]], step=0.5)
        Noise(n=2, seeds=2.0, examples=1.0, groups=2, step=0.5, overlap=0.0)
    """
    n = len(values)
    seeds = variance(values)
    if parts is None or overlap is not None:  # each seed's own examples, or unknown ones: in what seeds vary by
        return Noise(n, seeds + (step or 0.0) ** 2, overlap=overlap or 0.0)
    import numpy as np

    table = np.asarray(parts, dtype=float)
    count = table.shape[1]
    groups = table.mean(axis=0)
    left = table - table.mean(axis=1, keepdims=True) - groups + table.mean()
    of_groups = float(groups.var(ddof=1)) / count
    of_left = float((left**2).sum()) / ((n - 1) * (count - 1)) / (n * count)
    return Noise(n, seeds, max(0.0, of_groups - of_left, of_groups - seeds / n), count, step or 0.0)


def _estimate(share: float, n: int) -> float:
    """Return what a share of the estimates of a variance from n numbers are at most, in units of the variance."""
    from scipy.special import chdtri

    return float(chdtri(n - 1, 1 - share)) / (n - 1)


def resolution(differences: Sequence[float], values: Sequence[float] = ()) -> float:
    """Return the unit that numbers are counted in if there are ties among their differences, else 0.

    Args:
        differences: At least 2.
        values: What they are differences of: the smallest step between any two of them is the unit. Without them that
            of the differences is, and of differences that are all the same, their size.

    Example:
        >>> resolution([0.5, 0.25, 0.5]), resolution([2.0, 2.0, 2.0]), resolution([0.1, 0.2, 0.4])
        (0.25, 2.0, 0.0)
        >>> resolution([2.0, 2.0, 2.0], [60.0, 62.0, 60.5, 62.5, 61.5, 63.5])
        0.5
    """
    size = max(map(abs, differences))
    if size == 0 or not _gaps(differences)[0] <= _ROUNDING * size:
        return 0.0
    counted = values or differences
    most = max(map(abs, counted))
    return next((gap for gap in _gaps(counted) if gap > _ROUNDING * most), size)


def _gaps(values: Sequence[float]) -> list[float]:
    """Return how far neighbours are apart, from the smallest to the largest."""
    return sorted(b - a for a, b in pairwise(sorted(values)))


def _tries(n: int) -> list[int]:
    """Return numbers of seeds from those that there are to the most, each twice the last."""
    found = [n]
    while found[-1] < MOST_SEEDS:
        found.append(min(2 * found[-1], MOST_SEEDS))
    return found
