"""What single examples do to a metric: the jackknife, which leaves some of them out and looks what changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

_GROUPS = 100
_FEW_GROUPS = 20  # of metrics that take long; each of these is some of the others
_LONG = 0.2  # seconds
_FEWEST_BATCHES = 10
_ONE_VALUE = 0.01  # of the distance between two: nearer to one of them than this is that one
_ROUNDING = 2e-7  # of a metric that is computed in single precision


@dataclass(frozen=True)
class Outcomes:
    """What the examples of a split say about a metric on it.

    Attributes:
        parts: Pseudo-values of the metric over groups of examples. Of a metric that is a mean over examples, the means
            of the groups; of any, numbers whose mean is about the metric, and whose variance divided by their number
            is about the variance of the metric over draws of such examples.
        step: What one example can change the metric by; None if that is not known.
    """

    parts: list[float]
    step: float | None = None


def of_means(values: Tensor, step: float | None = None) -> Outcomes | None:
    """Return the outcomes of a metric that is the mean of one number for each example; None of less than two.

    Args:
        values: The numbers, of shape (n,); example i belongs to group i % G of G = min(n, 100).
        step: What one example can change the mean by, where that is known.

    Example:
        >>> of_means(torch.tensor([1.0, 0.0, 1.0, 1.0]))
        Outcomes(parts=[1.0, 0.0, 1.0, 1.0], step=0.25)
    """
    values = values.double()
    if len(values) < 2:
        return None
    groups = min(len(values), _GROUPS)
    parts = [float(values[group::groups].mean()) for group in range(groups)]
    found = step or _step(values.tolist(), len(values), float(values.mean()))
    return Outcomes([_rounded(part) for part in parts], found)


def of_metric(metric: Callable[[Tensor], float], whole: float, examples: int) -> Outcomes | None:
    """Return the outcomes of any metric; None of less than two examples.

    With n examples of which n_g are left out, the pseudo-value is h * whole - (h - 1) * rest with h = n / n_g: exactly
    the mean of those left out if the metric is a mean.

    Args:
        metric: Returns the metric over some examples, given their indices.
        whole: The metric over all of them.
        examples: How many there are; example i belongs to group i % G of G = min(n, 100), or of 20 if the metric takes
            long.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> of_metric(lambda indices: float(values[indices].mean()), 3.0, examples=3)
        Outcomes(parts=[1.0, 2.0, 6.0], step=1.5)
    """
    if examples < 2:
        return None

    def without(some: range) -> float:
        rest = torch.ones(examples, dtype=torch.bool)
        rest[some.start : some.stop : some.step] = False
        share = examples / len(some)
        return share * whole - (share - 1) * metric(rest.nonzero().squeeze(1))

    groups = min(examples, _GROUPS)
    if groups > _FEW_GROUPS and _seconds(lambda: without(range(0, examples, groups))) > _LONG:
        groups = _FEW_GROUPS
    parts = [without(range(group, examples, groups)) for group in range(groups)]
    single = parts if groups == examples else [without(range(i, i + 1)) for i in _telling(parts, examples)]
    return Outcomes([_rounded(part) for part in parts], _step(single, examples, whole))


def of_batches(losses: Sequence[tuple[float, int]]) -> Outcomes | None:
    """Return the outcomes of a loss of which only that of each batch is known; None of less than ten batches.

    Args:
        losses: The loss of every batch, and how many examples it has. Batch i belongs to group i % G of
            G = min(number of batches, 100).
    """
    if len(losses) < _FEWEST_BATCHES:
        return None
    groups = min(len(losses), _GROUPS)
    parts = [
        fmean([loss for loss, _ in losses[group::groups]], [n for _, n in losses[group::groups]])
        for group in range(groups)
    ]
    return Outcomes([_rounded(part) for part in parts])


def _seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, whatever else the machine did at the first or the second one."""
    found = []
    for _ in range(2):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def _telling(parts: list[float], examples: int) -> list[int]:
    """Return some examples, as many as groups: of the groups whose parts are the smallest and the largest."""
    groups = len(parts)
    ranked = sorted(range(groups), key=parts.__getitem__)
    ends = dict.fromkeys(group for pair in zip(ranked, reversed(ranked), strict=True) for group in pair)
    return [i for group in ends for i in range(group, examples, groups)[: groups // 2]][:groups]


def _step(single: list[float], examples: int, whole: float) -> float | None:
    """Return what an example can change the metric by, given pseudo-values of single ones."""
    low, high = min(single), max(single)
    noise = _ROUNDING * examples * abs(whole)
    if max(high, whole) - min(low, whole) <= noise:
        return None  # none of them changes anything
    near = _ONE_VALUE * (high - low)
    lower, upper = ([x for x in single if abs(x - end) <= near] for end in (low, high))
    if high - low > noise and len(lower) + len(upper) == len(single):  # right or wrong
        return _rounded((fmean(upper) - fmean(lower)) / examples)
    return _rounded(max(abs(x - whole) for x in single) / (examples - 1))


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
