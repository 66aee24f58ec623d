"""Carry the study out: on every task the base and SAM choose, then all constants are trained; then it is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lab.comparing import comparison
from ...lab.crew.runner import Observer
from ...lab.errors import UserError, nearest
from ...lab.judge.comparison import Comparison
from ...lab.judge.stats import finals_of
from ...lab.plans.workers import Workers
from ...lab.tasks.sources import find_task
from ...lab.tuning.candidates import plan_of, tune
from .design import SAM, Job, Preset
from .judge import Judged, Ran, judge


@dataclass(frozen=True)
class Run:
    """What was found on one task.

    Attributes:
        job: The task.
        base: The setting that the base has chosen.
        sam: That of SAM.
        comparison: The base, tuned SAM, and every constant of everybody.
        ran: The same as it is judged.
    """

    job: Job
    base: Mapping[str, Any]
    sam: Mapping[str, Any]
    comparison: Comparison
    ran: Ran


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        preset: The name of the setting.
        design: The setting.
        runs: By task.
        judged: By who is judged, in order; without those that were trained on one task alone.
        out: The folder.
        command: That repeats it.
    """

    preset: str
    design: Preset
    runs: Mapping[str, Run]
    judged: Mapping[str, Judged]
    out: Path
    command: str

    @property
    def entries(self) -> list[str]:
        """Who is judged, in order."""
        return list(dict.fromkeys(entry for run in self.runs.values() for entry in self.design.entries(run.job)))


def tasks_of(design: Preset, asked: Sequence[str] | None, data: Path | None) -> list[str]:
    """Return the names of the tasks that are to be trained on.

    Args:
        design: The setting.
        asked: In place of all.
        data: The folder with data; without it the tasks that need some are left out.

    Raises:
        UserError: A task is unknown, or its data is not there.
    """
    for name in asked or ():
        if name not in design.jobs:
            raise UserError(f"--task: unknown task {name!r}{nearest(name, design.jobs)}")
        if design.jobs[name].data and data is None:
            raise UserError(f"--task: {name} needs data; give --data a folder with {design.jobs[name].data} in it")
    found = [name for name in design.jobs if name in (asked or design.jobs)]
    found = [name for name in found if data is not None or not design.jobs[name].data]
    for name in found:
        if data is not None and not (data / design.jobs[name].data).is_dir():
            raise UserError(f"--data: {name} needs a folder {design.jobs[name].data!r} in {str(data)!r}; there is none")
    return found


def carry_out(
    preset: str,
    design: Preset,
    tasks: Sequence[str],
    out: Path,
    workers: Workers,
    command: str,
    watch: Callable[[], AbstractContextManager[Observer]],
) -> Study:
    """Run all tasks, or what is missing of them, and judge all units.

    Args:
        preset: The name of the setting.
        design: The setting.
        tasks: Names of its tasks.
        out: The folder of the study; every task has one of its own in it.
        workers: Who carries trials out.
        command: That repeats it.
        watch: Makes what is told how it proceeds.

    Raises:
        UserError: Data or a package is missing.
        RunError: A trial failed, or every setting of the base or of SAM diverged; what was finished is kept.
    """
    for name in tasks:  # what is missing is missed before hours of training
        find_task(design.jobs[name].task).task()
    runs = {name: _run(design, design.jobs[name], out / name, workers, watch) for name in tasks}
    ran = {name: run.ran for name, run in runs.items()}
    entries = dict.fromkeys(entry for run in runs.values() for entry in design.entries(run.job))
    judged = {entry: judge(ran, entry, design.constants_of(entry)) for entry in entries}
    known = {entry: found for entry, found in judged.items() if found is not None}
    return Study(preset, design, runs, known, out, command)


def _run(
    design: Preset, job: Job, out: Path, workers: Workers, watch: Callable[[], AbstractContextManager[Observer]]
) -> Run:
    def chosen(row: str, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        with watch() as observer:
            found = tune(
                job.task, job.base, {row: settings}, seeds=design.tuning_seeds, epochs=job.epochs,
                out=out / "tuning", workers=workers, observer=observer,
            )  # fmt: skip
        return found[row].setting

    base = chosen(job.base, job.base_settings())
    sam = chosen(SAM, job.sam_settings(base))
    arms: dict[str, dict[str, Any]] = {job.base: base, SAM: sam, **design.arms(job, base)}
    plan = plan_of(job.task, job.base, arms, design.seeds, out, workers, epochs=job.epochs)
    with watch() as observer:
        compared = comparison.run(plan, observer)
    ran = Ran(
        base=job.base,
        seeds=design.seeds,
        finals={row: finals_of(compared.records, row) for row in arms},
        higher_is_better=plan.higher_is_better,
        own_split=any(record.config.own_split for record in compared.records),
    )
    return Run(job, base, sam, compared, ran)
