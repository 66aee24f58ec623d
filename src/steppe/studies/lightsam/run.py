"""Carry the study out: grids on validation data, a comparison of the best on test data, the radii, the claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lab.comparing import comparison
from ...lab.crew.runner import Observer
from ...lab.judge.comparison import Comparison
from ...lab.plans.workers import Workers
from ...lab.tasks.sources import find_task
from ...lab.tuning.candidates import plan_of, try_all
from . import fading
from .claims import Finding, judged
from .design import Preset
from .grids import Grid, grid
from .radii import radii
from .untuned import Untuned, try_untuned

MIDDLE = "-middle"
"""Added to the name of a method that has the setting in the middle of its grid, which is the best on another task."""


@dataclass(frozen=True)
class Run:
    """What was found on one task.

    Attributes:
        metric: The name of the metric.
        grids: By method.
        chosen: Which setting of each was the best of the wide grid.
        comparison: The best and the middle of all grids, and the best without climbing and with climbs that do not
            fade, on test data, with their sharpness.
        radii: By method with a radius, how far it climbed at each step of each epoch of one training with its best
            setting.
    """

    metric: str
    grids: Mapping[str, Grid]
    chosen: Mapping[str, int]
    comparison: Comparison
    radii: Mapping[str, list[list[float]]]


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        preset: The name of the setting.
        design: The setting.
        runs: By task.
        findings: Claim by claim.
        effects: What climbs do to flatness, and what is left of that where they fade.
        untuned: What one setting for all tasks is worth; None if the tasks were the user's choice.
        out: The folder.
        command: That repeats it.
    """

    preset: str
    design: Preset
    runs: Mapping[str, Run]
    findings: tuple[Finding, ...]
    effects: tuple[fading.Effect, ...]
    untuned: Untuned | None
    out: Path
    command: str


def carry_out(
    preset: str,
    design: Preset,
    task: str | None,
    out: Path,
    workers: Workers,
    command: str,
    watch: Callable[[], AbstractContextManager[Observer]],
) -> Study:
    """Run all tasks, or what is missing of them, and judge the claims.

    Args:
        preset: The name of the setting.
        design: The setting.
        task: In place of the preset's: one that `steppe compare` knows, or a file of one's own.
        out: The folder of the study; every task has one of its own in it.
        workers: Who carries trials out.
        command: That repeats it.
        watch: Makes what is told how it proceeds.

    Raises:
        UserError: A task is wrong.
        RunError: A trial failed; what was finished is kept.
    """
    runs = {}
    for name in design.tasks if task is None else (task,):
        source = find_task(name)
        runs[source.name] = _run(design, name, out / source.file_name, workers, watch)
    grids = {name: run.grids for name, run in runs.items()}
    untuned = try_untuned(design, grids, design.held_out, out, workers, watch) if task is None else None
    effects = fading.effects([run.comparison.records for run in runs.values()])
    return Study(preset, design, runs, judged(design, grids), effects, untuned, out, command)


def _run(
    design: Preset,
    task: str,
    out: Path,
    workers: Workers,
    watch: Callable[[], AbstractContextManager[Observer]],
) -> Run:
    candidates = {method: design.settings(method) for method in design.centre}
    epochs = design.epochs
    with watch() as observer:
        found, _ = try_all(
            task, "sgd", candidates, seeds=design.seeds, epochs=epochs, out=out / "grids", workers=workers,
            observer=observer,
        )  # fmt: skip
    grids = {method: grid(design, candidates[method], found[method]) for method in candidates}
    chosen = {method: grids[method].best(design.inside(method, "wide")) for method in grids}
    arms: dict[str, dict[str, Any]] = {method: candidates[method][index] for method, index in chosen.items()}
    first = plan_of(task, "sgd", arms, 1, out, epochs=epochs)
    loaded = find_task(task).task()
    climbs = {trial.row: radii(trial, loaded) for trial in first.trials() if "rho" in arms[trial.row]}
    arms |= {
        **{method + MIDDLE: entries[len(entries) // 2] for method, entries in candidates.items()},
        **fading.arms(arms, {method: epochs[0] for method, epochs in climbs.items()}),
    }
    plan = plan_of(task, "sgd", arms, design.test_seeds, out, workers, epochs=epochs, measure=True)
    with watch() as observer:
        compared = comparison.run(plan, observer)
    return Run(metric=plan.metric_name, grids=grids, chosen=chosen, comparison=compared, radii=climbs)
