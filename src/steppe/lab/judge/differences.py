"""Two rows of a table against each other, paired by seed, and test example by test example where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..trials.records import Final
from .noise import LEVEL, Noise, noise, resolution

MINIMUM_PAIRS = 3


@dataclass(frozen=True)
class Difference:
    """Method minus base, paired by seed.

    Attributes:
        value: The mean difference.
        low: Lower end of the 95 % interval, not corrected for the number of methods.
        high: Upper end.
        p: The level of the interval that just leaves out zero: of Student's paired t-test, if seeds are all it varies
            by.
        p_holm: The same, corrected by Holm for the number of methods.
        n: Pairs.
        noise: What it varies by.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    noise: Noise | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < LEVEL


def paired(
    differences: Sequence[float],
    parts: Sequence[Sequence[float]] | None = None,
    step: float | None = None,
    overlap: float | None = None,
) -> Difference | None:
    """Test whether the mean of paired differences is zero.

    Args:
        differences: One number a seed.
        parts: For each seed the differences of every group of test examples; see `noise`.
        step: What one test example changes a difference by; where that is not known, ties tell.
        overlap: Test examples for each training example, if every seed has its own split.

    Returns:
        The difference with its interval, not yet corrected; None with fewer than 3 numbers.
    """
    n = len(differences)
    if n < MINIMUM_PAIRS:
        return None
    found = noise(differences, parts, resolution(differences) if step is None else step, overlap)
    value, half = fmean(differences), found.half_width()
    p = found.p(value)
    return Difference(value, value - half, value + half, p, p, n, found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method.

    Args:
        p_values: From 0 to 1.

    Returns:
        The corrected values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def between(one: Mapping[int, Final], other: Mapping[int, Final], own_split: bool = False) -> Difference | None:
    """Return one row minus another in the test metric, paired by seed; see `paired`.

    With one split for all seeds the interval is for other seeds and other test examples where outcomes are known, and
    for other seeds alone where they are not. Where every seed draws its own split, it is for other seeds and splits.

    Args:
        one: What its trials have found, by seed.
        other: Likewise.
        own_split: Whether every seed draws its own split.

    Returns:
        Not yet corrected; None with fewer than 3 pairs.
    """
    seeds = [seed for seed in one if seed in other]
    pairs = [(one[seed], other[seed]) for seed in seeds]
    values = [
        a.test_metric - b.test_metric for a, b in pairs if a.test_metric is not None and b.test_metric is not None
    ]
    finals = [final for pair in pairs for final in pair]
    steps = [final.test_step for final in finals if final.test_step is not None]
    parts = [final.test_parts for final in finals if final.test_parts is not None]
    alike = len(parts) == len(finals) and len({len(part) for part in parts}) == 1 and len(parts[0]) > 1
    return paired(
        values,
        [_minus(a.test_parts or (), b.test_parts or ()) for a, b in pairs] if alike else None,
        max(steps) if len(steps) == len(finals) and steps else None,
        fmean([(final.test_examples or 0) / (final.train_examples or 1) for final in finals]) if own_split else None,
    )


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]
