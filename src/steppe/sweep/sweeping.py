"""Sweep over the hyper-parameters of one method: plan, run, choose on validation data, write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare import config
from ..compare.tasks import Task
from ..compare.verdict import decimals_of, with_error
from . import runner
from .definition import HEARTBEAT
from .grid import Setting, Value, words
from .planning import SweepPlan, plan
from .points import MOST_LOST, Point
from .runner import Observer
from .storage import shown_url


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        plan: What was swept.
        points: All settings and what has become of each.
    """

    plan: SweepPlan
    points: tuple[Point, ...]

    @property
    def ranked(self) -> list[Point]:
        """The settings all of whose seeds came to their end, the best by mean validation metric first."""
        sign = -1.0 if self.plan.definition.higher_is_better else 1.0
        found = [(point.validation.value, point) for point in self.points if point.validation is not None]
        return [point for _, point in sorted(found, key=lambda pair: (sign * pair[0], pair[1].slot))]

    @property
    def best(self) -> Point | None:
        """The first of those; None if there is none."""
        return next(iter(self.ranked), None)

    @property
    def setting(self) -> Setting | None:
        """The hyper-parameters of the best, as far as they were varied."""
        return self.best.setting if self.best is not None else None

    @property
    def edges(self) -> list[str]:
        """The hyper-parameters whose best value is the smallest or largest of the grid: better ones may lie beyond."""
        setting = self.setting or {}
        axes = {axis.name: axis.values for axis in self.plan.definition.grid if axis.numeric and len(axis.values) > 1}
        if self.plan.definition.sampler != "grid":
            return []
        return [name for name, values in axes.items() if setting.get(name) in (min(values), max(values))]

    @property
    def digits(self) -> int:
        """How many decimals show the metric."""
        return decimals_of(point.validation.value for point in self.ranked if point.validation is not None)

    @property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        asked, best = self.plan.definition, self.best
        sentences = []
        if best is None or best.validation is None or best.setting is None:
            sentences.append("No answer: no setting came to its end with finite numbers. Try smaller learning rates.")
        else:
            value = with_error(best.validation, self.digits)
            sentences.append(f"Best of {len(self.points)}: {words(best.setting)}, validation {asked.metric} {value}.")
            if best.test is not None:
                test = with_error(best.test, self.digits)
                sentences.append(f"Its test {asked.metric} is {test} (n={best.test.n}).")
        if self.edges:
            names = " and ".join(self.edges)
            lies = "lies" if len(self.edges) == 1 else "lie"
            sentences.append(f"The best {names} {lies} at the edge of the grid; a wider one may have better settings.")
        sentences += _others(self.points)
        return sentences

    @property
    def command(self) -> str:
        """The command line that joins this sweep, or shows it again."""
        return self.plan.command(shown_url(self.plan.storage))

    def __str__(self) -> str:
        """Return the table and the verdict as Markdown."""
        from .table import markdown

        return markdown(self)


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
        task: As of `steppe.compare.compare`.
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
    from .report import write_report

    found = Sweep(sweep_plan, tuple(runner.run(sweep_plan, observer)))
    write_report(found)
    return found


def _others(points: Sequence[Point]) -> list[str]:
    """Say what has become of settings that were not finished."""
    texts = {
        "diverged": "diverged",
        "pruned": "pruned (looked bad halfway)",
        "given up": f"given up ({MOST_LOST} workers died at it)",
    }
    counts = {state: sum(point.state == state for point in points) for state in texts}
    said = [f"{count} {texts[state]}" for state, count in counts.items() if count]
    return [f"Of {len(points)} settings, {', '.join(said)}."] if said else []
