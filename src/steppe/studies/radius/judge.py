"""Leave one task out: the constant of a unit is chosen on the other tasks, and judged on the one that was left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ...lab.bench.report import Share, fieller
from ...lab.judge.differences import Difference, between
from ...lab.trials.records import Final
from .design import SAM, row_of

GOAL = 0.8
"""The share of tuned SAM's gain that is to be kept on every task where SAM gains."""

_MOST = 1.5


@dataclass(frozen=True)
class Ran:
    """What was found on one task.

    Attributes:
        base: The row of the base.
        seeds: How many trainings each row had.
        finals: By row and seed; trainings that diverged are not there.
        higher_is_better: Whether a larger metric is better.
        own_split: Whether every seed draws its own split.
    """

    base: str
    seeds: int
    finals: Mapping[str, Mapping[int, Final]]
    higher_is_better: bool = True
    own_split: bool = False

    def diverged(self, row: str) -> int:
        """Return how many trainings of a row diverged."""
        return self.seeds - len(self.finals.get(row, {}))

    def validation_gains(self, row: str) -> list[float]:
        """Return by how much a row is better than the base in the validation metric, seed by seed."""
        return self._gains(row, lambda final: final.validation_metric)

    def test_gains(self, row: str) -> list[float]:
        """Return by how much a row is better than the base in the test metric, seed by seed."""
        return self._gains(row, lambda final: final.test_metric)

    def tested(self, row: str) -> Difference | None:
        """Return the gain of a row in the test metric with its interval; None with fewer than 3 pairs."""
        one, other = self.finals.get(row, {}), self.finals.get(self.base, {})
        return between(one, other, self.own_split) if self.higher_is_better else between(other, one, self.own_split)

    def _gains(self, row: str, metric: Callable[[Final], float | None]) -> list[float]:
        ours, theirs = self.finals.get(row, {}), self.finals.get(self.base, {})
        sign = 1.0 if self.higher_is_better else -1.0
        pairs = [(metric(ours[seed]), metric(theirs[seed])) for seed in sorted(theirs) if seed in ours]
        return [sign * (a - b) for a, b in pairs if a is not None and b is not None]


@dataclass(frozen=True)
class LeftOut:
    """What the constant that was chosen on the other tasks is worth on the one that was left out.

    Attributes:
        index: Which constant was chosen.
        constant: The constant.
        score: Its mean score over the other tasks.
        diverged: How many trainings diverged.
        gain: In the test metric over the base; None with fewer than 3 pairs.
        mean: The mean of the gains of the seeds that ended; None if none did.
        part: Of tuned SAM's mean gain, where that is significant.
        share: The same with Fieller's interval, where there is one.
    """

    index: int
    constant: float
    score: float
    diverged: int
    gain: Difference | None
    mean: float | None
    part: float | None = None
    share: Share | None = None

    @property
    def below(self) -> bool:
        """Whether it is significantly below the base, or did not always end."""
        return self.diverged > 0 or (self.gain is not None and self.gain.significant and self.gain.value < 0)


@dataclass(frozen=True)
class Judged:
    """What is said of one unit.

    Attributes:
        left_out: By task.
        worst: The smallest mean gain of all tasks; None if a training diverged somewhere.
        goal: Whether on every task where SAM gains significantly at least 80 % of that is kept, and it is nowhere
            significantly below the base; None if SAM gains nowhere and nothing is below the base: then nothing can be
            said.
    """

    left_out: Mapping[str, LeftOut]
    worst: float | None
    goal: bool | None


def score(ran: Ran, row: str) -> float:
    """Return the gain of a row in the validation metric, as a part of what tuned SAM gains, from -1.5 to 1.5.

    It is divided by SAM's mean gain, or by two standard errors of that if they are more. A row of which a training
    diverged has the least score.
    """
    gains = ran.validation_gains(row)
    if ran.diverged(row) or not gains:
        return -_MOST
    gain, unit = fmean(gains), _unit(ran.validation_gains(SAM))
    if unit == 0:
        return math.copysign(_MOST, gain) if gain else 0.0
    return min(max(gain / unit, -_MOST), _MOST)


def choose(runs: Sequence[Ran], entry: str, count: int) -> tuple[int, float]:
    """Return which of so many constants, from small to large, has the highest mean score, and this score.

    Of several that are as good it is the smallest.

    Args:
        runs: Of the tasks to choose on.
        entry: Who is judged.
        count: How many constants there are.
    """
    scores = [fmean(score(ran, row_of(entry, index)) for ran in runs) for index in range(count)]
    best = scores.index(max(scores))
    return best, scores[best]


def judge(runs: Mapping[str, Ran], entry: str, constants: Sequence[float]) -> Judged | None:
    """Judge a unit on every task by the constant that was chosen on the others.

    Args:
        runs: By task.
        entry: Who is judged.
        constants: From small to large.

    Returns:
        What is said of it; None if there are fewer than 2 tasks that it was trained on.
    """
    those = {task: ran for task, ran in runs.items() if row_of(entry, 0) in ran.finals}
    if len(those) < 2:
        return None
    found = {}
    for task, ran in those.items():
        index, mean = choose([other for name, other in those.items() if name != task], entry, len(constants))
        found[task] = _left_out(ran, row_of(entry, index), index, constants[index], mean)
    means = [one.mean for one in found.values() if one.mean is not None and not one.diverged]
    return Judged(found, min(means) if len(means) == len(found) else None, _goal(list(found.values())))


def helps(ran: Ran) -> bool:
    """Say whether tuned SAM gains significantly on test data."""
    gain = ran.tested(SAM)
    return gain is not None and gain.significant and gain.value > 0


def _left_out(ran: Ran, row: str, index: int, constant: float, mean: float) -> LeftOut:
    gains, diverged = ran.test_gains(row), ran.diverged(row)
    value = fmean(gains) if gains else None
    part = share = None
    if helps(ran) and value is not None:
        sam = ran.test_gains(SAM)
        part = value / fmean(sam)
        share = fieller(gains, sam)
    return LeftOut(index, constant, mean, diverged, ran.tested(row), value, part, share)


def _goal(found: Sequence[LeftOut]) -> bool | None:
    if any(one.below or (one.part is not None and one.part < GOAL) for one in found):
        return False
    return True if any(one.part is not None for one in found) else None


def _unit(gains: Sequence[float]) -> float:
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return max(fmean(gains) if gains else 0.0, 2 * error)
