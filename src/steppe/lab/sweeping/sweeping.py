"""Sweep over the hyper-parameters of one method: plan, run, choose on validation data, write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..judge.sweep import Sweep
from ..plans import options as config
from ..plans.definition import HEARTBEAT
from ..plans.grid import Value
from ..plans.sweep import SweepPlan, plan
from ..show import sweep_table
from ..show.sweep_report import write_report
from ..tasks.task import Task
from . import runner
from .runner import Observer


def sweep(
    task: str | Callable[[], Task] = "mnist1d",
    method: str = "sam",
    grid: Sequence[str] | Mapping[str, str | Sequence[Value]] = ("rho=0.01:1:7log",),
    *,
    base: str = "adamw",
    seeds: int = 3,
    epochs: int | None = None,
    sampler: str = "grid",
    trials: int | None = None,
    prune: bool = False,
    jobs: int | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    study: str | None = None,
    heartbeat: int = HEARTBEAT,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    schedules: Mapping[str, Any] | None = None,
    updates: int | None = None,
    observer: Observer | None = None,
) -> Sweep:
    """Try many settings of one method and find the best by the validation metric.

    Everything that is found is kept in a database, from which the same call, also on other machines at the same time,
    takes what is left: every setting is trained once, whoever comes and goes. When all are done, `out` has a heatmap
    (``heatmap.png``), the table (``table.md``, ``sweep.json``), ``report.html`` and ``best.yaml``, the best setting for
    ``steppe compare --config``. Settings are chosen on validation data; of the test data, only the number of the chosen
    one is looked at. Trainings run in processes of their own, so a script must call this under
    ``if __name__ == "__main__":``.

    It costs as many trainings as there are settings times seeds, less those of settings that diverge or are pruned.

    Args:
        task: As of `steppe.lab.compare`.
        method: The name of a method, or of an arm in `settings`.
        grid: What is varied: ``NAME=LOW:HIGH:COUNT`` for values at equal distances, ``NAME=LOW:HIGH:COUNTlog`` at equal
            ratios, ``NAME=A,B,C``; or values by name, such as ``{"rho": [0.05, 0.1], "lr": "1e-4:1e-1:4log"}``.
        base: ``adamw`` or ``sgd``: what the method wraps.
        seeds: Trainings of every setting, at least 1; they are seeds that no comparison uses.
        epochs: At least 1; by default the task's own.
        sampler: ``grid`` tries all; ``random`` and ``tpe`` (which learns from what was found) choose within the ranges,
            whose counts they ignore, or among the values listed.
        trials: How many settings ``random`` and ``tpe`` try, all workers together.
        prune: Whether a setting is given up if halfway or later its first seed is worse than the median of the others.
        jobs: Worker processes here, at least 1, one thread each; by default one a core, at most 8.
        out: Where to write; by default ``runs/sweep-TASK-BASE-METHOD``.
        storage: The database as a URL, such as ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE``; by default the
            file ``sweep.db`` in `out`, which serves the processes of one machine.
        study: The sweep's name in the database, by default made of task, base and method.
        heartbeat: Seconds between two signs of life of a worker; after three without one its setting goes to another.
        settings: As of `compare`: hyper-parameters that are not varied.
        schedules: As of `compare`.
        updates: Parameter updates of every training, in place of `epochs`.
        observer: Is told how the sweep proceeds.

    Returns:
        All settings, the best of them, the verdict.

    Raises:
        UserError: The input is wrong, or the database holds another sweep by this name; nothing was trained.
        RunError: A training failed; what was finished is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     found = sweep("digits", "sam", {"rho": [0.05, 0.1]}, seeds=1, epochs=1, jobs=1, out=folder)
        >>> sorted(point.setting["rho"] for point in found.ranked)
        [0.05, 0.1]
    """
    options = config.from_flags(
        {
            "base": base,
            "seeds": seeds,
            "epochs": epochs,
            "jobs": jobs,
            "out": None if out is None else str(out),
            "schedules": None if schedules is None else dict(schedules),
            "updates": updates,
            "settings": {name: dict(values) for name, values in (settings or {}).items()},
        },
        prefix="",
    )
    made = plan(
        task,
        grid,
        options.model_copy(update={"methods": (method,)}),
        sampler=sampler,
        trials=trials,
        prune=prune,
        heartbeat=heartbeat,
        storage=storage,
        study=study,
    )
    return run(made, observer)


def run(sweep_plan: SweepPlan, observer: Observer | None = None) -> Sweep:
    """Carry out a plan and write its report.

    Args:
        sweep_plan: The plan.
        observer: Is told how the sweep proceeds.

    Returns:
        All settings and what has become of each.

    Raises:
        RunError: A training failed; what was finished is kept.
    """
    found = Sweep(sweep_plan, tuple(runner.run(sweep_plan, observer)))
    found = replace(found, markdown=sweep_table.markdown(found))
    write_report(found)
    return found
