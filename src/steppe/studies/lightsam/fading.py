"""What a climb does to flatness, and what is left of that where it fades as training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...lab.judge.differences import Difference, paired
from ...lab.trials.records import Record
from ..verdicts import Verdict, corrected, verdict
from . import held
from .design import LIGHT

ALONE = "-alone"
"""Added to the name of a method that is trained with its best learning rate, but without climbing."""
HELD = "-held"
"""Added to the name of a method that climbs as far all along as it did in its first epoch."""

MEASURES = ("worst-case l2 adaptive", "largest eigenvalue")
"""Of flatness: one that does not change with the scale of the weights, and the one that is known best."""


@dataclass(frozen=True)
class Effect:
    """What is said to end flatter, in the geometric mean over tasks.

    Attributes:
        text: In words.
        measure: Of flatness.
        pairs: Rows; the first of each is said to be flatter.
        differences: Of every pair: log2 of the ratio of the measures, the mean over tasks, paired by seed. None with
            fewer than 3 seeds in which both ended on every task.
        verdict: From the signs and the p-values, which are corrected by Holm for the pairs.
    """

    text: str
    measure: str
    pairs: tuple[tuple[str, str], ...]
    differences: tuple[Difference | None, ...]
    verdict: Verdict | None


def arms(chosen: Mapping[str, Mapping[str, Any]], climbs: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return what to train besides the best settings.

    Args:
        chosen: By method, its best setting.
        climbs: By method with a radius, how far it climbs with that in its first epoch. Where it nowhere does, there is
            no length to hold.

    Example:
        >>> arms({"sgd": {"method": "sgd", "lr": 1.0}, "sam": {"method": "sam", "lr": 0.1, "rho": 0.4}}, {"sam": [0.4]})
        {'sam-alone': {'method': 'sam', 'lr': 0.1, 'rho': 0.0}}
    """
    found = {method + ALONE: {**chosen[method], "rho": 0.0} for method in climbs}
    for method in LIGHT:
        length = fmean(climbs[method]) if climbs.get(method) else 0.0
        if 0.0 < length < math.inf:
            name = f"{held.__name__}:{method.replace('-', '_')}"
            found[method + HELD] = {"method": name, "lr": chosen[method]["lr"], "rho": float(f"{length:.3g}")}
    return found


def effects(tasks: Sequence[Sequence[Record]]) -> tuple[Effect, ...]:
    """Judge what the climbs do to flatness.

    Args:
        tasks: Task by task, the records of the best settings and of `arms`.
    """

    def pairs_of(methods: Sequence[str], first: str, second: str) -> tuple[tuple[str, str], ...]:
        return tuple((method + first, method + second) for method in methods)

    steady = pairs_of(("sam", "adasam"), "", ALONE)
    fades, holds, both = (pairs_of(LIGHT, *ends) for ends in (("", ALONE), (HELD, ALONE), (HELD, "")))
    return tuple(
        _judged(text, measure, pairs, tasks)
        for measure in MEASURES
        for text, pairs in (
            ("SAM and AdaSAM, whose climbs do not fade, end flatter than without climbing", steady),
            ("LightSAM ends flatter than without climbing", fades),
            ("LightSAM ends flatter than without climbing if its climbs are held", holds),
            ("LightSAM ends flatter if its climbs are held than if they fade", both),
        )
    )


def factors(records: Sequence[Record], measure: str, first: str, second: str) -> dict[int, float]:
    """Return log2 of the ratio of a measure of two rows, by the seeds in which both have it."""
    of: dict[str, dict[int, float]] = {first: {}, second: {}}
    for record in records:
        value = (record.final.sharpness or {}).get(measure) if record.final is not None else None
        if record.config.row in of and value is not None and value > 0:
            of[record.config.row][record.config.seed] = math.log2(value)
    return {seed: value - of[second][seed] for seed, value in of[first].items() if seed in of[second]}


def _judged(text: str, measure: str, pairs: tuple[tuple[str, str], ...], tasks: Sequence[Sequence[Record]]) -> Effect:
    found = []
    for first, second in pairs:
        by_task = [factors(records, measure, first, second) for records in tasks]
        seeds = sorted(set.intersection(*map(set, by_task)))
        found.append(paired([fmean(of[seed] for of in by_task) for seed in seeds]))
    differences = corrected(found)
    return Effect(text, measure, pairs, differences, verdict(differences, above=False))
