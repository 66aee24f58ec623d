"""Two rows of a table against each other, paired by seed, and test example by test example where they are known."""

from __future__ import annotations

from collections import Counter
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
    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    metrics = [(a.test_metric, b.test_metric) for a, b in pairs]
    both = [(a, b) for a, b in metrics if a is not None and b is not None]
    if len(both) < MINIMUM_PAIRS:
        return None
    values = [a - b for a, b in both]
    finals = [final for pair in pairs for final in pair]
    steps = [final.test_step for final in finals if final.test_step is not None]
    if len(steps) < len(finals):
        step = resolution(values, [metric for pair in both for metric in pair])
    else:
        step = max(steps) if _counted(finals) else 0.0
    return paired(
        values,
        _parts(pairs),
        step,
        fmean([(final.test_examples or 0) / (final.train_examples or 1) for final in finals]) if own_split else None,
    )


def grouped(finals: Sequence[Final]) -> int | None:
    """Return into how many groups of test examples all trials can be put; None if there are not two such groups.

    A trial whose metric took long has 20 in place of 100, each of which is five of the others.
    """
    counts = {len(final.test_parts or ()) for final in finals}
    fewest = min(counts, default=0)
    return fewest if fewest > 1 and all(count % fewest == 0 for count in counts) else None


def _counted(finals: Sequence[Final]) -> bool:
    """Return whether outcomes are counted, as those that are right or wrong.

    Then most groups of examples say the same as another group, and twenty trainings may differ in none of few examples
    and yet in the next ones. Numbers that are measured, as errors of a regression, show any difference that there is.
    """
    groups = [Counter(final.test_parts) for final in finals if final.test_parts]
    often = sum(count for found in groups for count in found.values() if count > 1)
    return not groups or 2 * often > sum(found.total() for found in groups)


def _parts(pairs: Sequence[tuple[Final, Final]]) -> list[list[float]] | None:
    count = grouped([final for pair in pairs for final in pair])
    if count is None:
        return None

    def of(final: Final) -> list[float]:
        parts = final.test_parts or []
        return [fmean(parts[group::count]) for group in range(count)]

    return [[x - y for x, y in zip(of(a), of(b), strict=True)] for a, b in pairs]
