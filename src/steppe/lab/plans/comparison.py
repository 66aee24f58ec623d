"""What is compared: every trial, with every default filled in."""

from __future__ import annotations

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
from ..trials.records import TrialConfig, library_versions
from . import options as config
from .arms import Arm, check_arms, find_arms, packaged
from .trackers import check_installed
from .workers import Workers, workers_of

FIRST_SEED = 1000
"""Of trials that choose settings; comparisons count their seeds from 0."""


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
        workers: Who carries trials out.
        out: The folder for everything that is written.
        metric_name: What the task's metric is called.
        higher_is_better: Whether a larger metric is better.
        keep_weights: Whether the final weights of every trial are written.
        measure: Whether sharpness is measured after training.
        log: The trackers that every trial becomes a run of.
    """

    source: TaskSource
    base: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    workers: Workers
    out: Path
    metric_name: str
    higher_is_better: bool
    keep_weights: bool = False
    measure: bool = False
    log: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the arms, in order."""
        return [arm.name for arm in self.arms]

    @property
    def title(self) -> str:
        """What is compared, in one line."""
        return f"{self.source.name}, base {self.base}, {self.length}, {counted(len(self.seeds), 'seed')}"

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
        words = ["steppe", "compare", "--task", self.task_words, "--methods", ",".join(self.names), "--base", self.base]
        words += ["--seeds", str(len(self.seeds)), "--epochs", str(self.epochs), "--out", str(self.out)]
        words += [f"--{name.replace('_', '-')}" for name in self._flags]
        words += ["--log", ",".join(self.log)] if self.log else []
        if any(arm != packaged(self.source.name, self.base, arm.method) for arm in self.arms):
            words += ["--config", str(self.out / "config.yaml")]
        return shlex.join(words)

    @property
    def options(self) -> dict[str, Any]:
        """All of this as the content of a file for ``--config``."""
        return {
            "task": self.task_words,
            "methods": self.names,
            "base": self.base,
            "seeds": len(self.seeds),
            "epochs": self.epochs,
            "out": str(self.out),
            **dict.fromkeys(self._flags, True),
            **({"log": list(self.log)} if self.log else {}),
            "settings": {arm.name: arm.entry for arm in self.arms},
        }

    @property
    def _flags(self) -> list[str]:
        return [name for name in ("keep_weights", "measure") if getattr(self, name)]

    @property
    def task_words(self) -> str:
        """The task as the command line names it."""
        return f"{self.source.path}:{self.source.function}" if self.source.path else self.source.name

    @property
    def project(self) -> str:
        """What this is called where several such are looked at."""
        return f"{self.source.file_name}-{self.base}"

    def trials(self, *, test: bool = True) -> list[TrialConfig]:
        """List all trials, seed by seed, so that methods are comparable early and timed under equal conditions.

        Args:
            test: Whether the test split is read at the end.

        Returns:
            One configuration a seed and arm.
        """
        versions = {**library_versions(), **(self.workers.host.versions if self.workers.host else {})}
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
    task: str | Callable[[], Task], options: config.Options, out: Path | None = None, workers: Workers | None = None
) -> Plan:
    """Fill in all defaults and check everything that can be checked before training.

    Args:
        task: See `compare`.
        options: Checked field by field already; ``task`` and ``out`` are not looked at.
        out: The folder, or None for the default.
        workers: Who carries trials out; by default whom `options` name.

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
    check_installed(options.log or ())
    workers = workers or workers_of(options)
    check_arms(arms, base, epochs, loaded.batch_size, size(loaded.train), workers.host.processes if workers.host else 1)
    folder = out or Path("runs") / f"{source.file_name}-{base}"
    check_writable(folder, "trials")
    return Plan(
        source=source,
        base=base,
        arms=arms,
        seeds=tuple(range(options.seeds or 10)),
        epochs=epochs,
        batch_size=loaded.batch_size,
        workers=workers,
        out=folder,
        metric_name=loaded.metric_name,
        higher_is_better=loaded.higher_is_better,
        keep_weights=bool(options.keep_weights),
        measure=bool(options.measure),
        log=options.log or (),
    )


def counted(number: int, what: str) -> str:
    """Say how many there are."""
    return f"{number} {what}{'' if number == 1 else 's'}"


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
