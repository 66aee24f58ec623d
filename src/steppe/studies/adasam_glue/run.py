"""Carry the study out: settings chosen on validation data, a comparison for every task, the claims, the speed-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lab.comparing import comparison
from ...lab.crew.runner import Observer
from ...lab.judge.comparison import Comparison
from ...lab.plans.workers import Workers
from ...lab.tuning.candidates import Tuned, plan_of, tune
from . import speedup
from .claims import CLAIMS, Finding, judge, scores_of
from .design import Budget, Preset, row
from .speedup import SpeedUp


@dataclass(frozen=True)
class Job:
    """A task before it is run.

    Attributes:
        name: What it is called in tables.
        task: As `steppe compare` takes it.
        budget: How long it is trained.
        lr: Its own learning rate, for optimizers whose rates are relative.
    """

    name: str
    task: str
    budget: Budget
    lr: float = 1.0


@dataclass(frozen=True)
class Run:
    """What was found on one task.

    Attributes:
        comparison: All rows.
        tuned: What was chosen for each.
        budget: How long it was trained.
    """

    comparison: Comparison
    tuned: Mapping[str, Tuned]
    budget: Budget


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        title: The heading of the report.
        model: What was fine-tuned.
        optimizers: Which took part.
        momenta: With which beta1.
        runs: By task.
        findings: Claim by claim, of those whose rows were run.
        speedups: By task.
        tuned_on: The task on which settings were chosen for all; None if each chose its own.
        tuning_seeds: Of the choice.
        out: The folder.
        command: That repeats it.
    """

    title: str
    model: str
    optimizers: tuple[str, ...]
    momenta: tuple[float, ...]
    runs: Mapping[str, Run]
    findings: tuple[Finding, ...]
    speedups: Mapping[str, SpeedUp]
    tuned_on: str | None
    tuning_seeds: int
    out: Path
    command: str


@dataclass(frozen=True)
class Asked:
    """What is asked of every task.

    Attributes:
        design: The setting.
        optimizers: Out of `design.OPTIMIZERS`.
        momenta: Out of `design.MOMENTA`.
        seeds: Of the comparison.
        out: The folder of the study; every task has one of its own in it.
        workers: Who carries trials out.
    """

    design: Preset
    optimizers: tuple[str, ...]
    momenta: tuple[float, ...]
    seeds: int
    out: Path
    workers: Workers

    def candidates(self, job: Job) -> dict[str, list[dict[str, Any]]]:
        """Return what every row may choose from on a task."""
        return self.design.candidates(self.optimizers, self.momenta, job.budget, job.lr)


def choose(asked: Asked, job: Job, observer: Observer | None = None) -> dict[str, Tuned]:
    """Choose the settings of all rows on a task's validation split.

    Raises:
        RunError: A trial failed, or every setting of a row diverged; what was finished is kept.
    """
    return tune(
        job.task,
        "sgd",
        asked.candidates(job),
        seeds=asked.design.tuning_seeds,
        out=asked.out / job.name / "tuning",
        observer=observer,
        workers=asked.workers,
    )


def compare(asked: Asked, job: Job, tuned: Mapping[str, Tuned], observer: Observer | None = None) -> Run:
    """Train every row with what was chosen for it, and read the test split.

    Raises:
        RunError: A trial failed; what was finished is kept.
    """
    arms = {name: _at(choice.setting, job.budget) for name, choice in tuned.items()}
    plan = plan_of(job.task, "sgd", arms, asked.seeds, asked.out / job.name, asked.workers)
    return Run(comparison.run(plan, observer), tuned, job.budget)


def speed_up(asked: Asked, job: Job, tuned: Mapping[str, Tuned], observer: Observer | None = None) -> SpeedUp:
    """Train AdaSAM with several batch sizes.

    Raises:
        RunError: A trial failed; what was finished is kept.
    """
    setting = _at(tuned[row("adasam", asked.momenta[0])].setting, job.budget)
    arms = speedup.arms(setting, job.budget.batch)
    out = asked.out / f"{job.name}-speed-up"
    plan = plan_of(job.task, "sgd", arms, asked.seeds, out, asked.workers)
    return speedup.measure(comparison.run(plan, observer))


def carry_out(
    asked: Asked,
    jobs: Sequence[Job],
    title: str,
    model: str,
    command: str,
    watch: Callable[[str], AbstractContextManager[Observer]],
) -> Study:
    """Run all tasks, or what is missing of them, and judge the claims.

    Args:
        asked: Who takes part.
        jobs: The tasks.
        title: The heading of the report.
        model: What is fine-tuned, in words.
        command: That repeats it.
        watch: Makes what is told how it proceeds, given the name of a metric.

    Raises:
        RunError: A trial failed; what was finished is kept.
    """
    runs: dict[str, Run] = {}
    common: Mapping[str, Tuned] | None = None
    on = next((job for job in jobs if job.name == asked.design.tuned_on), None)
    if on is not None:
        with watch("metric") as observer:
            common = choose(asked, on, observer)
    for job in jobs:
        with watch("metric") as observer:
            tuned = choose(asked, job, observer) if common is None else common
        with watch("metric") as observer:
            runs[job.name] = compare(asked, job, tuned, observer)
    speedups = {}
    for job in jobs:
        if job.name in asked.design.speed_up and "adasam" in asked.optimizers:
            with watch("metric") as observer:
                speedups[job.name] = speed_up(asked, job, runs[job.name].tuned, observer)
    return Study(
        title=title,
        model=model,
        optimizers=asked.optimizers,
        momenta=asked.momenta,
        runs=runs,
        findings=judged(runs),
        speedups=speedups,
        tuned_on=None if on is None else on.name,
        tuning_seeds=asked.design.tuning_seeds,
        out=asked.out,
        command=command,
    )


def judged(runs: Mapping[str, Run]) -> tuple[Finding, ...]:
    """Judge all claims whose rows were run."""
    scores = scores_of({task: run.comparison.records for task, run in runs.items()})
    found: Sequence[Finding | None] = [judge(claim, scores) for claim in CLAIMS]
    return tuple(finding for finding in found if finding is not None)


def _at(setting: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Return a setting with the length of another task's trainings."""
    schedules = {
        **setting["schedules"],
        "lr": {**setting["schedules"]["lr"], "warmup": budget.warmup},
        "batch_size": {"kind": "constant", "size": budget.batch},
    }
    return {**setting, "updates": budget.updates, "schedules": schedules}
