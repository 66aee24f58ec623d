"""The paper's claims, each with numbers and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ...lab.judge.differences import Difference, paired
from ...lab.trials.records import Record
from ..verdicts import Verdict, corrected, verdict
from .design import MOMENTA, row

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Test metrics by task, row and seed."""


@dataclass(frozen=True)
class Claim:
    """What is said to be better than what, in the average over tasks.

    Attributes:
        text: In words.
        parts: Differences of sums of rows: every part is said to be above 0. A part is a list of (sign, row).
        published: What the paper reports.
    """

    text: str
    parts: tuple[tuple[tuple[int, str], ...], ...]
    published: str


@dataclass(frozen=True)
class Finding:
    """What this run says of a claim.

    Attributes:
        claim: The claim, with the parts that were tested.
        differences: Of every part: the mean over tasks, paired by seed. None with fewer than 3 seeds.
        wins: Of every part: on how many tasks its mean over seeds is above 0, and out of how many.
        verdict: From the signs and the p-values, which are corrected by Holm within the claim.
    """

    claim: Claim
    differences: tuple[Difference | None, ...]
    wins: tuple[tuple[int, int], ...]
    verdict: Verdict | None


def _above(better: str, worse: str, momentum: float) -> tuple[tuple[int, str], ...]:
    return ((1, row(better, momentum)), (-1, row(worse, momentum)))


CLAIMS = (
    Claim(
        "AdaSAM is above AMSGrad",
        tuple(_above("adasam", "amsgrad", momentum) for momentum in MOMENTA),
        "with momentum on 6 of 8 tasks, +0.28 on average; without on 6 of 8, +0.74",
    ),
    Claim(
        "SAM is above SGD",
        tuple(_above("sam", "sgd", momentum) for momentum in MOMENTA),
        "with momentum on 7 of 8 tasks; without on 8 of 8",
    ),
    Claim(
        "adaptive learning rates are above SGD's",
        tuple(_above(*pair, momentum) for momentum in MOMENTA for pair in (("amsgrad", "sgd"), ("adasam", "sam"))),
        "the adaptive rate matters more than the momentum",
    ),
    Claim(
        "AdaSAM gains more over AMSGrad without momentum",
        ((*_above("adasam", "amsgrad", 0.0), *((-sign, name) for sign, name in _above("adasam", "amsgrad", 0.9))),),
        "+0.74 without, +0.28 with",
    ),
)


def judge(claim: Claim, scores: Scores) -> Finding | None:
    """Test those parts of a claim whose rows were run; None if there is none.

    The parts are corrected by Holm together; what they come to says `steppe.studies.verdicts.verdict`.

    Args:
        claim: The claim.
        scores: Higher is better; a seed that is missing somewhere, for a trial diverged, is left out everywhere.
    """
    rows = set.intersection(*(set(of) for of in scores.values()))
    claim = replace(claim, parts=tuple(part for part in claim.parts if all(name in rows for _, name in part)))
    if not claim.parts:
        return None
    names = {name for part in claim.parts for _, name in part}
    seeds = sorted(set.intersection(*(set(of[name]) for of in scores.values() for name in names)))
    differences, wins = [], []
    for part in claim.parts:
        by_task = [
            {seed: sum(sign * of[name][seed] for sign, name in part) for seed in seeds} for of in scores.values()
        ]
        differences.append(paired([fmean(found[seed] for found in by_task) for seed in seeds]))
        wins.append((sum(bool(found) and fmean(found.values()) > 0 for found in by_task), len(by_task)))
    found = corrected(differences)
    return Finding(claim, found, tuple(wins), verdict(found, above=True))


def scores_of(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the test metrics of every task's records, of the trials that did not diverge."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for task, some in records.items():
        of = found.setdefault(task, {})
        for record in some:
            if record.final is not None and record.final.test_metric is not None:
                of.setdefault(record.config.row, {})[record.config.seed] = record.final.test_metric
    return found
