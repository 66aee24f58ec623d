"""Choose every row's settings on the validation split, and compare what was chosen on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..comparing import comparison
from ..crew.runner import Observer
from ..judge.comparison import Comparison
from ..plans.workers import Workers
from ..tuning.candidates import Tuned, plan_of
from ..tuning.candidates import tune as _tune
from .entries import Bench, Entry


def tune(
    bench: Bench,
    rows: Mapping[str, Entry],
    seeds: int,
    out: Path,
    workers: Workers,
    observer: Observer | None,
    epochs: int | None = None,
) -> dict[str, Tuned]:
    """Try all settings of all rows and return the best of each.

    Raises:
        RunError: A trial failed, or every setting of a row diverged; what was finished is kept.
    """
    candidates = {
        name: [{"method": entry.method, **setting} for setting in entry.settings(bench, epochs)]
        for name, entry in rows.items()
    }
    return _tune(
        bench.task,
        bench.base,
        candidates,
        seeds=seeds,
        epochs=epochs or bench.epochs,
        out=out,
        workers=workers,
        observer=observer,
    )


def compare(
    bench: Bench,
    tuned: Mapping[str, Tuned],
    seeds: int,
    out: Path,
    workers: Workers,
    observer: Observer | None,
    epochs: int | None = None,
) -> Comparison:
    """Train every row with what was chosen for it, and read the test split."""
    arms: dict[str, dict[str, Any]] = {name: choice.setting for name, choice in tuned.items()}
    plan = plan_of(bench.task, bench.base, arms, seeds, out, workers, epochs=epochs or bench.epochs)
    return comparison.run(plan, observer)
