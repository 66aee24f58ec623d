"""What is compared: every trial, with every default filled in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError, exits_raise, require
from ..files import check_writable
from ..tasks.sources import TaskSource, find_task
from ..tasks.task import Task, check_fit, size
from ..trials import optimizers
from ..trials.host import Host
from ..trials.records import TrialConfig, library_versions
from . import options as config
from .arms import Arm, check_arms, find_arms, packaged

FIRST_SEED = 1000
"""Of trials that choose settings; comparisons count their seeds from 0."""

_MOST_JOBS = 8  # unless asked for: every worker needs about 400 MB for torch


@dataclass(frozen=True)
class Plan:
    """What is compared, with every default filled in.

    Attributes:
        source: Where the task comes from.
        base: The base optimizer's name.
        arms: The rows of the table, in the order asked for.
        seeds: The seeds.
        epochs: Of every trial, unless its arm counts updates.
        batch_size: Of every trial, unless its arm schedules it.
        jobs: Worker processes.
        out: The folder for everything that is written.
        metric_name: What the task's metric is called.
        higher_is_better: Whether a larger metric is better.
        keep_weights: Whether the final weights of every trial are written.
        measure: Whether sharpness is measured after training.
        host: Where trials run, one after the other, if not in worker processes on the CPU.
        timeout: Seconds that a trial may take in a worker process; None sets no limit.
        crew: The address of a Dask scheduler, if its workers carry trials out.
    """

    source: TaskSource
    base: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    jobs: int
    out: Path
    metric_name: str
    higher_is_better: bool
    keep_weights: bool = False
    measure: bool = False
    host: Host | None = None
    timeout: float | None = None
    crew: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the arms, in order."""
        return [arm.name for arm in self.arms]

    @property
    def length(self) -> str:
        """How long a trial is, in words."""
        return " or ".join(dict.fromkeys(arm.length(self.epochs) for arm in self.arms))

    @property
    def cost(self) -> Literal["gradient_evaluations", "examples"]:
        """The field that tells what a trial costs: gradient evaluations, unless batches differ between arms."""
        alike = all(arm.schedules.batch_size == self.arms[0].schedules.batch_size for arm in self.arms)
        return "gradient_evaluations" if alike else "examples"

    @property
    def command(self) -> str:
        """The command line of this comparison; with a file only where the arms are not the packaged ones."""
        words = ["steppe", "compare", "--task", self._task, "--methods", ",".join(self.names), "--base", self.base]
        words += ["--seeds", str(len(self.seeds)), "--epochs", str(self.epochs), "--out", str(self.out)]
        words += [f"--{name.replace('_', '-')}" for name in self._flags]
        if any(arm != packaged(self.source.name, self.base, arm.method) for arm in self.arms):
            words += ["--config", str(self.out / "config.yaml")]
        return shlex.join(words)

    @property
    def options(self) -> dict[str, Any]:
        """All of this as the content of a file for ``--config``."""
        return {
            "task": self._task,
            "methods": self.names,
            "base": self.base,
            "seeds": len(self.seeds),
            "epochs": self.epochs,
            "out": str(self.out),
            **dict.fromkeys(self._flags, True),
            "settings": {arm.name: arm.entry for arm in self.arms},
        }

    @property
    def _flags(self) -> list[str]:
        return [name for name in ("keep_weights", "measure") if getattr(self, name)]

    @property
    def _task(self) -> str:
        return f"{self.source.path}:{self.source.function}" if self.source.path else self.source.name

    def trials(self, *, test: bool = True) -> list[TrialConfig]:
        """List all trials, seed by seed, so that methods are comparable early and timed under equal conditions.

        Args:
            test: Whether the test split is read at the end.

        Returns:
            One configuration a seed and arm.
        """
        versions = {**library_versions(), **(self.host.versions if self.host else {})}
        return [
            TrialConfig(
                task=self.source.name,
                task_digest=self.source.digest,
                method=arm.method,
                arm=None if arm.name == arm.method else arm.name,
                base=self.base if optimizers.is_wrapper(arm.method) else None,
                hyperparameters=arm.hyperparameters,
                seed=seed,
                epochs=self.epochs,
                batch_size=self.batch_size,
                schedules=arm.schedules,
                updates=arm.updates,
                test=test,
                measure=self.measure,
                versions=versions,
            )
            for seed in self.seeds
            for arm in self.arms
        ]


def plan(
    task: str | Callable[[], Task], options: config.Options, out: Path | None = None, host: Host | None = None
) -> Plan:
    """Fill in all defaults and check everything that can be checked before training.

    Args:
        task: See `compare`.
        options: Checked field by field already; its ``task`` and ``out`` are not looked at.
        out: The folder, or None for the default.
        host: Where trials run, if not in worker processes on the CPU.

    Returns:
        The plan.

    Raises:
        UserError: The input is wrong.
    """
    base = options.base or "adamw"
    optimizers.check_base(base)
    source = find_task(task)
    arms = find_arms(source.name, base, options)
    loaded = load(source)
    epochs = options.epochs or loaded.epochs
    if options.measure:
        require("hessian_eigenthings", "steppe.measure.quick")
    check_crew(options)
    check_arms(arms, base, epochs, loaded.batch_size, size(loaded.train), host.processes if host else 1)
    folder = out or Path("runs") / f"{source.file_name}-{base}"
    check_writable(folder, "trials")
    return Plan(
        source=source,
        base=base,
        arms=arms,
        seeds=tuple(range(options.seeds or 10)),
        epochs=epochs,
        batch_size=loaded.batch_size,
        jobs=options.jobs or usual_jobs(),
        out=folder,
        metric_name=loaded.metric_name,
        higher_is_better=loaded.higher_is_better,
        keep_weights=bool(options.keep_weights),
        measure=bool(options.measure),
        host=host,
        timeout=options.timeout,
        crew=options.crew,
    )


def check_crew(options: config.Options) -> None:
    """Refuse what those who carry trials out cannot do.

    Raises:
        UserError: A cluster is to end trials that take too long.
    """
    if options.crew is not None and options.timeout is not None:
        raise UserError("--timeout is of worker processes here; a Dask cluster has limits of its own: leave one out")


def load(source: TaskSource) -> Task:
    """Load a task and try it on two examples.

    Raises:
        UserError: The task does not fit together.
    """
    with exits_raise():
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


def usual_jobs() -> int:
    """Return how many worker processes there are unless the user says otherwise: one a core, but not on and on."""
    return min(cores(), _MOST_JOBS)
