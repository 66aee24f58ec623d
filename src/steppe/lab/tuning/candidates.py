"""Choose settings on the validation split, with the same budget for everybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..crew import runner
from ..crew.runner import Observer
from ..errors import RunError
from ..plans import comparison
from ..plans import options as config
from ..plans.comparison import FIRST_SEED, Plan
from ..plans.workers import Workers
from ..tasks.task import Task
from ..trials.records import Record


@dataclass(frozen=True)
class Tuned:
    """What was chosen for one row.

    Attributes:
        setting: The best of all settings that never diverged.
        score: Its mean validation metric.
        tried: All settings.
        scores: The mean validation metric of each; None where a seed diverged.
    """

    setting: dict[str, Any]
    score: float
    tried: tuple[dict[str, Any], ...]
    scores: tuple[float | None, ...]

    @property
    def edges(self) -> tuple[str, ...]:
        """The numbers among the hyper-parameters whose best value is the smallest or largest that was tried."""
        return tuple(key for key, value in self.setting.items() if _is_number(value) and self._on_edge(key))

    def _on_edge(self, key: str) -> bool:
        values = {setting[key] for setting in self.tried if key in setting}
        return len(values) > 1 and self.setting[key] in (min(values), max(values))


def tune(
    task: str | Callable[..., Task],
    base: str,
    candidates: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seeds: int = 2,
    epochs: int | None = None,
    out: Path,
    workers: Workers | None = None,
    observer: Observer | None = None,
) -> dict[str, Tuned]:
    """Try all candidates of all rows, and return the best of each by the final validation metric.

    Ties are settled by the validation loss, then by order.

    Args:
        task, base, candidates, seeds, epochs, out, workers, observer: As `try_all` takes them.

    Raises:
        UserError: The input is wrong; nothing was trained.
        RunError: A trial failed, or every candidate of a row diverged; what was finished is kept.
    """
    found, higher = try_all(
        task, base, candidates, seeds=seeds, epochs=epochs, out=out, workers=workers, observer=observer
    )
    sign = 1.0 if higher else -1.0
    best = {}
    for name, entries in candidates.items():
        scores = [_score(records) for records in found[name]]
        finite = [i for i, score in enumerate(scores) if score is not None]
        if not finite:
            raise RunError(f"every setting of {name} diverged on {found[name][0][0].config.task}")
        index = max(finite, key=lambda i: (sign * (scores[i] or 0.0), -_loss(found[name][i])))
        best[name] = Tuned(dict(entries[index]), scores[index] or 0.0, tuple(map(dict, entries)), tuple(scores))
    return best


def try_all(
    task: str | Callable[..., Task],
    base: str,
    candidates: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seeds: int = 2,
    epochs: int | None = None,
    out: Path,
    workers: Workers | None = None,
    observer: Observer | None = None,
) -> tuple[dict[str, list[list[Record]]], bool]:
    """Train with all candidates of all rows; the test split is not read.

    Args:
        task: As in `compare`.
        base: What wrapping methods wrap.
        candidates: By row: entries as in the ``settings`` of `compare`; without ``method`` the row's name is the
            method.
        seeds: How many, at least 1; they are counted from `FIRST_SEED`, which says what that means for tasks that take
            the seed.
        epochs: Of every trial; by default the task's own.
        out: Finished trials are kept in here.
        workers: Who carries trials out; by default processes here.
        observer: Is told how it proceeds.

    Returns:
        By row, for every candidate the records of its seeds; and whether a higher metric is better.

    Raises:
        UserError: The input is wrong; nothing was trained.
        RunError: A trial failed; what was finished is kept.
    """
    arms = {
        f"{name}@{i}": {"method": name, **entry}
        for name, entries in candidates.items()
        for i, entry in enumerate(entries)
    }
    asked = plan_of(task, base, arms, seeds, out, workers, epochs=epochs)
    asked = replace(asked, seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)))
    found = runner.run_trials(asked.trials(test=False), asked.source, out, asked.workers, observer)
    by_arm: dict[str, list[Record]] = {}
    for record in found:
        by_arm.setdefault(record.config.row, []).append(record)
    return {
        name: [by_arm[f"{name}@{i}"] for i in range(len(entries))] for name, entries in candidates.items()
    }, asked.higher_is_better


def plan_of(
    task: str | Callable[..., Task],
    base: str,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: int,
    out: Path,
    workers: Workers | None = None,
    *,
    epochs: int | None = None,
    measure: bool = False,
) -> Plan:
    """Plan a comparison of named entries, in their order; with ``measure`` the sharpness of what was trained too.

    Raises:
        UserError: The input is wrong.
    """
    settings = {
        name: {key: value for key, value in arm.items() if key != "method" or value != name}
        for name, arm in arms.items()
    }
    asked = {
        "base": base,
        "methods": list(arms),
        "settings": settings,
        "seeds": seeds,
        "epochs": epochs,
        **({"measure": True} if measure else {}),
    }
    return comparison.plan(task, config.from_flags(asked), out, workers)


def _score(group: Sequence[Record]) -> float | None:
    found = [record.final.validation_metric for record in group if record.final is not None]
    known = [value for value in found if value is not None]
    return fmean(known) if len(known) == len(group) else None


def _loss(group: Sequence[Record]) -> float:
    found = [record.final.validation_loss for record in group if record.final is not None]
    known = [value for value in found if value is not None]
    return fmean(known) if known else math.inf


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
