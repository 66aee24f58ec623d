"""What is compared: every trial, with every default filled in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..code.code import Code
from ..errors import UserError, exits_raise, require
from ..files import check_writable
from ..tasks.checks import check_fit
from ..tasks.loop import Loop
from ..tasks.metrics import direction_of
from ..tasks.sources import TaskSource, find_task
from ..tasks.task import Task
from ..trials.devices import accelerator, kind
from ..trials.finding import brought, is_wrapper, row_of
from ..trials.host import Host
from ..trials.records import Record, TrialConfig, library_versions
from . import options as config
from .arms import Arm, check_arms, find_arms, model_for, packaged
from .calls import call
from .rows import base_of, codes
from .trackers import check_installed
from .workers import Workers, workers_of

METRIC = "metric"
"""What the metric of a training loop is called until it has returned one."""

FIRST_SEED = 1000
"""Of trials that choose settings; comparisons count their seeds from 0.

Of a task that takes the seed those have other splits of the same data, drawn apart from those that are compared on. So
test examples of a comparison may be among the training data of those trials. This is meant: what is found is what
methods do on splits of this data, with settings that were chosen on other ones.
"""


_AnyPlan = TypeVar("_AnyPlan", bound="Plan")


@dataclass(frozen=True)
class Plan:
    """What is compared, with every default filled in.

    Attributes:
        source: Where the task comes from.
        base: What the base is called: as a row, if it is one.
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
        loop: What trains, if that is a loop of the user's own.
        log: The trackers that every trial becomes a run of.
        check: Whether one of the trials is repeated in the end.
        wrapped: What methods wrap, with its whole path if it is the user's own; None if that is ``base``.
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
    loop: Loop | None = None
    log: tuple[str, ...] = ()
    check: bool = True
    wrapped: str | None = None

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
        """The command line of this comparison; with a file only where the arms are not the packaged ones.

        Of what is in a notebook, and no file, the call from Python.
        """
        if self.source.cells:
            return self._call
        rows = ",".join(arm.words for arm in self.arms)
        words = ["steppe", "compare", "--task", self.task_words, "--methods", rows, "--base", self.base_words]
        words += ["--seeds", str(len(self.seeds)), "--epochs", str(self.epochs), "--out", str(self.out)]
        words += [word for name, value in self.workers.asked.items() for word in (f"--{name}", str(value))]
        words += [f"--{name.replace('_', '-')}" for name in self._flags]
        words += [] if self.check else ["--no-check"]
        words += ["--log", ",".join(self.log)] if self.log else []
        if not self._as_packaged:
            words += ["--config", str(self.out / "config.yaml")]
        elif self._untuned:
            words += ["--tune", "0"]
        return shlex.join(words)

    @property
    def _call(self) -> str:
        usual = self._as_packaged
        return call(
            "steppe.lab.compare",
            [self.task_words],
            {
                "methods": [arm.words for arm in self.arms] if usual else self.names,
                "base": self.base_words,
                "seeds": len(self.seeds),
                "epochs": self.epochs or None,
                **self._common,
                **self._unchecked,
                "settings": None if usual else self.options["settings"],
            },
            self.source.cells,
        )

    @property
    def _common(self) -> dict[str, Any]:
        """What calls of all kinds have."""
        return {
            **self.workers.asked,
            **dict.fromkeys(self._flags, True),
            "log": [*self.log] or None,
            "out": str(self.out),
        }

    @property
    def _as_packaged(self) -> bool:
        """Whether all rows are as they are if nobody says anything."""
        with brought(self.source.along):
            usual = [packaged(self.source.name, self.inner, arm.method) for arm in self.arms]
        return [*self.arms] == usual and self.base_words == self.inner and not self.tuned

    @property
    def _untuned(self) -> bool:
        """Whether there are rows that were not tuned, as they would be if nobody said anything."""
        left = any(arm.set_by == "default" and arm.choice is None for arm in self.arms)
        return left and self.source.name not in config.packaged_settings()

    @property
    def options(self) -> dict[str, Any]:
        """All of this as the content of a file for ``--config``."""
        usual = [arm.name for arm in self.arms if arm.set_by in ("default", "packaged")]
        named = {} if self.base_words == self.inner else {self.base: {"method": self.inner}}
        return {
            "task": self.task_words,
            "methods": self.names,
            "base": self.base_words,
            "seeds": len(self.seeds),
            "epochs": self.epochs,
            "out": str(self.out),
            **self.workers.asked,
            **dict.fromkeys(self._flags, True),
            **self._unchecked,
            **({"log": list(self.log)} if self.log else {}),
            "settings": {**named, **{arm.name: arm.entry for arm in self.arms}},
            **({"tune": 0} if self._untuned else {}),
            **({"tuned": self.tuned} if self.tuned else {}),
            **({"as_packaged": usual} if usual else {}),
        }

    @property
    def tuned(self) -> dict[str, Any]:
        """How rows got settings that were chosen on validation data, ready for JSON and YAML."""
        return {
            arm.name: arm.choice.model_dump(mode="json", exclude_defaults=True)
            for arm in self.arms
            if arm.choice is not None
        }

    @property
    def inner(self) -> str:
        """What methods wrap."""
        return self.wrapped or self.base

    @property
    def base_words(self) -> str:
        """The base as the command line names it."""
        return self.inner if row_of(self.inner) == self.base else self.base

    @property
    def _flags(self) -> list[str]:
        return [name for name in ("keep_weights", "measure") if getattr(self, name)]

    @property
    def _unchecked(self) -> dict[str, bool]:
        return {} if self.check else {"check": False}

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
        marks = self.workers.marks
        marks["versions"] = {**library_versions(), **marks["versions"]}
        own = {code.words: code for code in self.source.along}
        with brought(own.values()):
            wraps = {arm.method: is_wrapper(arm.method) for arm in self.arms}
        return [
            TrialConfig(
                task=self.source.name,
                task_digest=self.source.digest,
                method=_name(arm.method, own),
                method_digest=own[arm.method].digest if arm.method in own else None,
                arm=None if arm.name == arm.method else arm.name,
                base=_name(self.inner, own) if wraps[arm.method] else None,
                base_digest=own[self.inner].digest if wraps[arm.method] and self.inner in own else None,
                hyperparameters=arm.hyperparameters,
                seed=seed,
                own_split=self.source.takes_seed or None,
                epochs=self.epochs,
                batch_size=self.batch_size,
                schedules=arm.schedules,
                updates=arm.updates,
                test=test,
                measure=self.measure,
                **marks,
            )
            for seed in self.seeds
            for arm in self.arms
        ]


def _name(words: str, own: Mapping[str, Code]) -> str:
    return own[words].name if words in own else words


def plan(
    task: str | Callable[..., Task], options: config.Options, out: Path | None = None, workers: Workers | None = None
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
    return planned(task, options, out, workers)[0]


def planned(
    task: str | Callable[[], Task], options: config.Options, out: Path | None = None, workers: Workers | None = None
) -> tuple[Plan, Task | Loop]:
    """Return as well the task, which was loaded for it."""
    name, base = base_of(options)
    source = find_task(task)
    arms = find_arms(source.name, base, options)
    source = replace(source, along=codes(base, [arm.method for arm in arms]))
    workers = workers or workers_of(options)
    loaded = load(source, workers)
    epochs = options.epochs or loaded.epochs
    if isinstance(loaded, Loop) and options.measure:
        raise UserError("--measure needs a task, whose model it can see; a training loop can use steppe.measure itself")
    if options.measure:
        require("hessian_eigenthings", "steppe.measure.quick")
    check_installed(options.log or ())
    model = None if isinstance(loaded, Loop) else model_for(arms, base, loaded.model)
    check_arms(arms, base, epochs, loaded, workers.sharing, model)
    folder = out or Path("runs") / f"{source.file_name}-{name}"
    check_writable(folder, "trials")
    made = Plan(
        source=source,
        base=name,
        arms=arms,
        seeds=tuple(range(options.seeds or 10)),
        epochs=epochs,
        batch_size=loaded.batch_size,
        workers=workers,
        out=folder,
        metric_name=loaded.metric_name or METRIC,
        higher_is_better=loaded.higher_is_better is not False,
        loop=loaded if isinstance(loaded, Loop) else None,
        keep_weights=bool(options.keep_weights),
        measure=bool(options.measure),
        check=options.check is not False,
        log=options.log or (),
        wrapped=base,
    )
    return made, loaded


def counted(number: int, what: str) -> str:
    """Say how many there are."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def named(asked: _AnyPlan, records: Sequence[Record]) -> _AnyPlan:
    """Return a plan with the metric's name and direction as a training loop says them, where nobody else does."""
    name = next((record.metric_name for record in records if record.metric_name), None)
    if asked.loop is None or name is None:
        return asked
    better = asked.loop.higher_is_better
    better = bool(direction_of(None, name)) if better is None else better
    return replace(asked, metric_name=asked.loop.metric_name or name, higher_is_better=better)


def load(source: TaskSource, workers: Workers | None = None) -> Task | Loop:
    """Load a task, that of seed 0 if it takes one, and try it, where it will be trained if that can be here.

    Raises:
        UserError: The task does not fit together, or cannot be sent to worker processes.
    """
    place = Host() if workers is None or kind(workers.device) not in ("cpu", accelerator()) else workers.place
    if workers is not None and workers.apart:
        source.pack()
    with exits_raise():
        task = source.load()
        tried = (replace(source, along=()), str(place.device), place.precision)
        if isinstance(task, Loop) or tried in _TRIED:
            return task
        try:
            check_fit(task, source.paths, place.device, place.forward)
        except UserError as error:
            raise UserError(f"{source.name}: {error}") from error
    _TRIED.add(tried)
    return task


# What was tried here: that evaluates a whole validation split, and a tuning plans once for every row.
_TRIED: set[tuple[TaskSource, str, str]] = set()
