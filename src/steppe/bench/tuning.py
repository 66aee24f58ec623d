"""Choose settings on the validation split, and compare what was chosen on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from .._errors import RunError
from ..compare import comparison, config, runner
from ..compare.comparison import Comparison, Plan
from ..compare.records import Record
from ..compare.runner import Observer
from .entries import Bench, Entry

FIRST_SEED = 1000
"""Of the tuning; the comparison counts its seeds from 0."""


@dataclass(frozen=True)
class Tuned:
    """What was chosen for one row.

    Attributes:
        setting: The best of all settings that never diverged.
        score: Its mean validation metric.
        edges: The hyper-parameters whose best value is the first or last of its grid.
    """

    setting: dict[str, Any]
    score: float
    edges: tuple[str, ...]


def tune(
    bench: Bench,
    rows: Mapping[str, Entry],
    seeds: int,
    out: Path,
    jobs: int | None,
    observer: Observer | None,
    epochs: int | None = None,
) -> dict[str, Tuned]:
    """Try all settings of all rows and return the best of each.

    Raises:
        RunError: A trial failed, or every setting of a row diverged; what was finished is kept.
    """
    tried = {name: entry.settings(bench, epochs) for name, entry in rows.items()}
    arms = {
        f"{name}@{i}": {"method": rows[name].method, **setting}
        for name, settings in tried.items()
        for i, setting in enumerate(settings)
    }
    asked = planned(bench, arms, seeds, out, jobs, epochs)
    asked = replace(asked, seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)))
    found = runner.run_trials(asked.trials(test=False), asked.source, out, asked.jobs, observer)
    by_arm: dict[str, list[Record]] = {}
    for record in found:
        by_arm.setdefault(record.config.row, []).append(record)
    best = {}
    for name, settings in tried.items():
        scores = [_score(by_arm[f"{name}@{i}"], asked.higher_is_better) for i in range(len(settings))]
        index = max(range(len(settings)), key=scores.__getitem__)
        if scores[index] == -float("inf"):
            raise RunError(f"every setting of {name} diverged on {bench.title}")
        edges = tuple(key for key in ("lr", "rho", "weight_decay") if _on_edge(key, settings, settings[index]))
        sign = 1.0 if asked.higher_is_better else -1.0
        best[name] = Tuned(settings[index], sign * scores[index], edges)
    return best


def compare(
    bench: Bench,
    rows: Mapping[str, Entry],
    tuned: Mapping[str, Tuned],
    seeds: int,
    out: Path,
    jobs: int | None,
    observer: Observer | None,
    epochs: int | None = None,
) -> Comparison:
    """Train every row with what was chosen for it, and read the test split."""
    arms = {name: {"method": rows[name].method, **tuned[name].setting} for name in rows}
    return comparison.run(planned(bench, arms, seeds, out, jobs, epochs), observer)


def planned(
    bench: Bench, arms: Mapping[str, Mapping[str, Any]], seeds: int, out: Path, jobs: int | None, epochs: int | None
) -> Plan:
    """Plan a comparison of named settings."""
    settings = {
        name: {key: value for key, value in arm.items() if key != "method" or value != name}
        for name, arm in arms.items()
    }
    asked = {
        "base": bench.base,
        "methods": list(arms),
        "settings": settings,
        "seeds": seeds,
        "epochs": epochs,
        "jobs": jobs,
    }
    return comparison.plan(bench.task, config.from_flags(asked), out)


def _score(group: Sequence[Record], higher: bool) -> float:
    finals = [record.final for record in group]
    if any(final is None for final in finals):
        return -float("inf")
    value = fmean(final.validation_metric for final in finals if final is not None)
    return value if higher else -value


def _on_edge(key: str, settings: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> bool:
    values = {setting[key] for setting in settings if key in setting}
    return len(values) > 1 and chosen[key] in (min(values), max(values))
