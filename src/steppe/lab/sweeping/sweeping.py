"""Sweep over the hyper-parameters of one method: plan, run, choose on validation data, write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..crew import runner
from ..crew.jobs import Crew
from ..crew.runner import Silence, Watching
from ..judge.points import Point
from ..judge.sweep import Sweep
from ..plans import options as config
from ..plans.grid import Value
from ..plans.sweep import SweepPlan, plan
from ..plans.workers import check_crew
from ..show import sweep_table
from ..show.console import watched
from ..show.sweep_console import ConsoleObserver
from ..show.sweep_report import write_report
from ..show.trackers import Trackers
from ..tasks.task import Task
from .search import Search

if TYPE_CHECKING:
    from .copying import StudyCopy


Observer: TypeAlias = Watching[Point]
"""Of a sweep: what is finished are settings."""


def sweep(
    task: str | Callable[..., Task] = "mnist1d",
    method: str | Callable[..., Any] = "sam",
    grid: Sequence[str] | Mapping[str, str | Sequence[Value]] = ("rho=0.01:1:7log",),
    *,
    base: str | Callable[..., Any] = "adamw",
    seeds: int = 3,
    epochs: int | None = None,
    sampler: str = "grid",
    trials: int | None = None,
    prune: bool = False,
    jobs: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    processes: int = 1,
    timeout: float | None = None,
    crew: str | Executor | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    study: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    schedules: Mapping[str, Any] | None = None,
    updates: int | None = None,
    log: str | Sequence[str] | None = None,
    observer: Observer | None = None,
) -> Sweep:
    """Try many settings of one method and find the best by the validation metric.

    Every finished trial is a file in ``out/trials``; the same call again skips it, also with a finer grid or more
    settings. When all are done, `out` has a heatmap (``heatmap.png``), the table (``table.md``, ``sweep.json``),
    ``report.html`` and ``best.yaml``, the best setting for ``steppe compare --config``. Settings are chosen on
    validation data; of the test data, only the number of the chosen one is looked at. Trainings run in processes of
    their own, so a script must call this under ``if __name__ == "__main__":``. Notebooks are as of `compare`.

    It costs as many trainings as there are settings times seeds, less those of settings that diverge or are pruned.

    Args:
        task: As of `steppe.lab.compare`. If it takes the seed, settings are chosen on other splits of the same data
            than a comparison has, whose test examples may be among what is trained on here.
        method: The name of a method, or of an arm in `settings`, or your own as of `steppe.lab.compare`.
        grid: What is varied: ``NAME=LOW:HIGH:COUNT`` for values at equal distances, ``NAME=LOW:HIGH:COUNTlog`` at equal
            ratios, ``NAME=A,B,C``; or values by name, such as ``{"rho": [0.05, 0.1], "lr": "1e-4:1e-1:4log"}``.
        base: What the method wraps, as of `steppe.lab.compare`.
        seeds: Trainings of every setting, at least 1; they are seeds that no comparison uses.
        epochs: At least 1; by default the task's own.
        sampler: ``grid`` tries all; ``random`` and ``tpe`` (which learns from what was found) choose within the ranges,
            whose counts they ignore, or among the values listed. What ``tpe`` tries depends on all settings before but
            the last three.
        trials: How many settings ``random`` and ``tpe`` try.
        prune: Whether a setting is given up if halfway or later its first seed is worse than the median of those
            before, the last three left out.
        jobs: As of `compare`; with 0, `prune` saves no time.
        device: As of `compare`.
        precision: As of `compare`.
        processes: As of `compare`.
        timeout: As of `compare`.
        crew: As of `compare`.
        out: Where to write; by default ``runs/sweep-TASK-BASE-METHOD-NAMES``, with the names
            of what is varied.
        storage: A database that gets a copy of what is found as a study of Optuna, for example for optuna-dashboard:
            a URL such as ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`` or ``sqlite:///FILE``.
        study: The sweep's name in the database, by default made of task, base and method.
        settings: As of `compare`: hyper-parameters that are not varied.
        schedules: As of `compare`.
        updates: Parameter updates of every training, in place of `epochs`.
        log: As of `compare`: every training that is not pruned becomes a run.
        observer: Is told how the sweep proceeds; by default as of `compare`.

    Returns:
        All settings, the best of them, the verdict.

    Raises:
        UserError: The input is wrong, or the database has another study by this name; nothing was trained.
        RunError: A training failed; what was finished is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     found = sweep("digits", "sam", {"rho": [0.05, 0.1]}, seeds=1, epochs=1, jobs=1, out=folder)
        >>> sorted(point.setting["rho"] for point in found.ranked)
        [0.05, 0.1]
    """
    check_crew(crew, timeout, jobs)
    options = config.of_call(
        {
            "base": base,
            "seeds": seeds,
            "epochs": epochs,
            "jobs": jobs,
            "device": device,
            "precision": precision,
            "processes": processes,
            "timeout": timeout,
            "crew": crew if isinstance(crew, str) else None,
            "out": None if out is None else str(out),
            "schedules": None if schedules is None else dict(schedules),
            "updates": updates,
            "log": log,
            "settings": {name: dict(values) for name, values in (settings or {}).items()},
        }
    )
    made = plan(
        task,
        grid,
        options.model_copy(update={"methods": (method,)}),
        sampler=sampler,
        trials=trials,
        prune=prune,
        storage=storage,
        study=study,
    )
    with watched(observer, lambda console: ConsoleObserver(made, console)) as observer:
        return run(made, observer, crew if isinstance(crew, Executor) else None)


def run(
    sweep_plan: SweepPlan,
    observer: Observer | None = None,
    executor: Executor | None = None,
    joined: Callable[[], Crew] | None = None,
) -> Sweep:
    """Carry out a plan and write its report.

    Args:
        sweep_plan: The plan.
        observer: Is told how the sweep proceeds.
        executor: Carries trials out, if not processes here or a cluster that the plan names.
        joined: Returns a crew that carries them out instead; it stays as it is.

    Returns:
        All settings and what has become of each.

    Raises:
        RunError: A training failed; what was finished is kept.
    """
    observer = observer or Silence()
    trackers = Trackers(sweep_plan, observer.warn)
    with _copy(sweep_plan) as copy:
        search = Search(sweep_plan)
        kept = search.news()
        observer.begin(sweep_plan.count, kept)
        _write(kept, copy)
        if not search.done:
            runner.note_changes(
                sweep_plan.out,
                [sweep_plan.trial({}, seed) for seed in sweep_plan.seeds],
                (),
                sweep_plan.source,
                sweep_plan.workers,
                observer.note,
                [axis.name for axis in sweep_plan.grid],
            )
        with runner.saying(lambda: _kept(search, sweep_plan)), _crew(search, sweep_plan, executor, joined) as crew:
            found = runner.carry_trials(
                search.following,
                crew,
                sweep_plan.source,
                sweep_plan.out,
                running=observer.running,
                warn=observer.warn,
                label=search.label,
                goes_on=search.goes_on if sweep_plan.prune else None,
                given_up=search.given_up,
                host=sweep_plan.workers.place,
                processes=sweep_plan.workers.processes,
            )
            with closing(found):
                for config, record in found:
                    if record is not None:
                        trackers.log(record)
                    search.ended(config, record)
                    _tell(search, copy, observer)
            _tell(search, copy, observer)
    swept = Sweep(sweep_plan, search.points)
    swept = replace(swept, summary=sweep_table.summary(swept))
    write_report(swept)
    return swept


def _tell(search: Search, copy: StudyCopy | None, observer: Observer) -> None:
    found = search.news()
    _write(found, copy)
    for point in found:
        observer.finished(point)


def _write(found: Sequence[Point], copy: StudyCopy | None) -> None:
    if copy is not None:
        for point in found:
            copy.add(point)


def _copy(sweep_plan: SweepPlan) -> AbstractContextManager[StudyCopy | None]:
    if sweep_plan.storage is None:
        return nullcontext()
    from .copying import StudyCopy

    return StudyCopy(sweep_plan)


def _crew(
    search: Search, sweep_plan: SweepPlan, executor: Executor | None, joined: Callable[[], Crew] | None
) -> AbstractContextManager[Crew]:
    if joined is not None and not search.done:
        return nullcontext(joined())
    most = 0 if search.done else sweep_plan.count * len(sweep_plan.seeds)
    return runner.joined(sweep_plan.workers, most, executor)


def _kept(search: Search, sweep_plan: SweepPlan) -> str:
    done = sum(point.state != "given up" for point in search.points)
    return f"{done} of {sweep_plan.count} settings are done and kept in {sweep_plan.out}"
