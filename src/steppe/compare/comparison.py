"""Compare methods on a task: plan the trials, run them, summarize, write the report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..methods import METHODS
from . import config, optimizers, records, runner
from .errors import UserError, nearest
from .records import Record, TrialConfig
from .runner import Observer
from .sources import TaskSource, find_task
from .stats import Row, summarize
from .tasks import Task, check_fit

_MOST_JOBS = 8  # unless asked for: every worker needs about 400 MB for torch


@dataclass(frozen=True)
class Plan:
    """What is compared, with every default filled in.

    Attributes:
        source: Where the task comes from.
        base: The base optimizer's name.
        settings: Hyper-parameters by method; its keys are the methods, in order.
        seeds: The seeds.
        epochs: Of every trial.
        batch_size: Of every trial.
        jobs: Worker processes.
        out: The folder for everything that is written.
        metric_name: What the task's metric is called.
        higher_is_better: Whether a larger metric is better.
    """

    source: TaskSource
    base: str
    settings: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    jobs: int
    out: Path
    metric_name: str
    higher_is_better: bool

    @property
    def command(self) -> str:
        """The command line of this comparison; with a file only where hyper-parameters are not the packaged ones."""
        words = ["steppe", "compare", "--task", self._task, "--methods", ",".join(self.settings), "--base", self.base]
        words += ["--seeds", str(len(self.seeds)), "--epochs", str(self.epochs), "--out", str(self.out)]
        if self.settings != _settings(self.source.name, self.base, tuple(self.settings), {}, check=False):
            words += ["--config", str(self.out / "config.yaml")]
        return shlex.join(words)

    @property
    def options(self) -> dict[str, Any]:
        """All of this as the content of a file for ``--config``."""
        return {
            "task": self._task,
            "methods": list(self.settings),
            "base": self.base,
            "seeds": len(self.seeds),
            "epochs": self.epochs,
            "out": str(self.out),
            "settings": {
                method: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
                for method, values in self.settings.items()
            },
        }

    @property
    def _task(self) -> str:
        return f"{self.source.path}:{self.source.function}" if self.source.path else self.source.name

    def trials(self, *, test: bool = True) -> list[TrialConfig]:
        """List all trials, seed by seed, so that methods are comparable early and timed under equal conditions.

        Args:
            test: Whether the test split is read at the end.

        Returns:
            One configuration a seed and method.
        """
        versions = records.library_versions()
        return [
            TrialConfig(
                task=self.source.name,
                task_digest=self.source.digest,
                method=method,
                base=self.base if optimizers.is_wrapper(method) else None,
                hyperparameters=settings,
                seed=seed,
                epochs=self.epochs,
                batch_size=self.batch_size,
                test=test,
                versions=versions,
            )
            for seed in self.seeds
            for method, settings in self.settings.items()
        ]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        plan: What was compared.
        records: Of all trials.
        rows: Of the table: the base first, then from best to worst.
    """

    plan: Plan
    records: list[Record]
    rows: list[Row]

    @property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        from .verdict import verdict

        return verdict(self.plan, self.rows, self.records)

    def __str__(self) -> str:
        """Return the table and the verdict as Markdown."""
        from .table import markdown

        return markdown(self)


def compare(
    task: str | Callable[[], Task] = "mnist1d",
    *,
    methods: Sequence[str] | None = None,
    base: str = "adamw",
    seeds: int = 10,
    epochs: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Train several methods on one task from several seeds and say which of them helps, and at what cost.

    Every finished trial is a file in ``out/trials``; the same call again skips it. The table (``table.md``,
    ``results.json``), ``curves.png``, ``report.html`` and all settings (``config.yaml``) are written to `out`. The
    trials run in processes of their own, so a script must call this under ``if __name__ == "__main__":``.

    Args:
        task: ``mnist1d``, ``digits``, ``FILE.py:FUNCTION``, or a function at the top level of a file that returns a
            `Task`.
        methods: Names from ``steppe.methods.METHODS``, ``adamw`` and ``sgd``; by default the base and all methods.
        base: ``adamw`` or ``sgd``: what the methods wrap and are compared with.
        seeds: How many seeds, at least 1; fewer than 3 allow no statement about significance.
        epochs: At least 1; by default the task's own.
        jobs: Worker processes, at least 1, one thread each; by default one a core, at most 8. No result depends on it.
        out: Where to write; by default ``runs/TASK-BASE``.
        settings: Hyper-parameters by method, over the packaged ones, such as ``{"sam": {"rho": 0.1}}``.
        observer: Is told how the comparison proceeds.

    Returns:
        Table, verdict and records.

    Raises:
        UserError: The input is wrong; nothing was trained.
        RunError: A trial failed; what was finished is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     found = compare("digits", methods=["adamw", "sam"], seeds=1, epochs=1, out=folder)
        >>> [(row.method, row.gradient_evaluations) for row in found.rows]
        [('adamw', 20.0), ('sam', 40.0)]
    """
    options = config.from_flags(
        {
            "methods": None if methods is None else list(methods),
            "base": base,
            "seeds": seeds,
            "epochs": epochs,
            "jobs": jobs,
            "settings": {name: dict(values) for name, values in (settings or {}).items()},
        },
        prefix="",
    )
    comparison_plan = plan(task, options, None if out is None else Path(out))
    return run(comparison_plan, observer)


def plan(task: str | Callable[[], Task], options: config.Options, out: Path | None = None) -> Plan:
    """Fill in all defaults and check everything that can be checked before training.

    Args:
        task: See `compare`.
        options: Checked field by field already; its ``task`` and ``out`` are not looked at.
        out: The folder, or None for the default.

    Returns:
        The plan.

    Raises:
        UserError: The input is wrong.
    """
    base = options.base or "adamw"
    optimizers.check_base(base)
    methods = (base, *METHODS) if options.methods is None else options.methods
    optimizers.check_methods(methods)
    source = find_task(task)
    settings = _settings(source.name, base, methods, options.settings)
    loaded = load(source)
    folder = out or Path("runs") / f"{source.name.replace('.py:', '-')}-{base}"
    records.check_writable(folder)
    return Plan(
        source=source,
        base=base,
        settings=settings,
        seeds=tuple(range(options.seeds or 10)),
        epochs=options.epochs or loaded.epochs,
        batch_size=loaded.batch_size,
        jobs=options.jobs or min(cores(), _MOST_JOBS),
        out=folder,
        metric_name=loaded.metric_name,
        higher_is_better=loaded.higher_is_better,
    )


def run(comparison_plan: Plan, observer: Observer | None = None) -> Comparison:
    """Carry out a plan and write its report.

    Args:
        comparison_plan: The plan.
        observer: Is told how the comparison proceeds.

    Returns:
        Table, verdict and records.

    Raises:
        RunError: A trial failed; what was finished is kept.
    """
    from .report import write_report

    found = runner.run_trials(
        comparison_plan.trials(), comparison_plan.source, comparison_plan.out, comparison_plan.jobs, observer
    )
    rows = summarize(found, comparison_plan.base, comparison_plan.higher_is_better)
    comparison = Comparison(comparison_plan, found, rows)
    write_report(comparison)
    return comparison


def load(source: TaskSource) -> Task:
    """Load a task and try it on two examples.

    Raises:
        UserError: The task does not fit together.
    """
    task = source.load()
    try:
        check_fit(task, source.path)
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from error
    return task


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _settings(
    task: str, base: str, methods: Sequence[str], own: Mapping[str, Mapping[str, Any]], check: bool = True
) -> dict[str, dict[str, Any]]:
    known = [*optimizers.BASES, *METHODS]
    for name in own:
        if name not in known:
            raise UserError(f"settings: unknown method {name!r}{nearest(name, known)}")
    found = {}
    for method in methods:
        wraps = optimizers.is_wrapper(method)
        found[method] = config.hyperparameters(task, base, method, wraps, own.get(method, {}))
        if check:
            optimizers.check_hyperparameters(method, base, found[method])
    return found
