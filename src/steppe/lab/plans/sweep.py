"""From what the user asks for to a sweep in which every default is filled in."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest, require
from ..files import check_writable
from ..tasks.loop import Loop
from ..tasks.sources import find_task
from ..trials import optimizers
from ..trials.finding import brought, words_for
from ..trials.records import TrialConfig
from . import grid as grids
from .arms import Arm, check_arms, find_arms, model_for, packaged
from .calls import call
from .comparison import FIRST_SEED, Plan, counted, load
from .grid import Axis, Setting
from .options import Entry, Options
from .rows import base_of, codes, rows
from .trackers import check_installed
from .workers import workers_of

_OF_COMPARISONS = ("methods", "tune", "tuned", "as_packaged")
SAMPLERS = ("grid", "tpe", "random")


@dataclass(frozen=True, kw_only=True)
class SweepPlan(Plan):
    """A sweep: a comparison with one row, without what is varied; and what is varied.

    Attributes:
        grid: What is varied.
        sampler: What chooses settings, of `SAMPLERS`.
        tried: How many settings a sampler chooses; None if those of the grid are tried.
        first: The first of them, which the sampler is not to choose.
        prune: Whether settings that look bad are given up early.
        storage: The database that gets a copy, as a URL; None if none does.
        study: The sweep's name in it; None is one made of task, base and method.
        shown_storage: The URL as it may be shown.
    """

    grid: tuple[Axis, ...]
    sampler: str = "grid"
    tried: int | None = None
    first: tuple[Setting, ...] = ()
    prune: bool = False
    storage: str | None = field(default=None, repr=False)  # it may have a password
    study: str | None = None
    shown_storage: str | None = None

    @property
    def arm(self) -> Arm:
        """The one row."""
        return self.arms[0]

    @property
    def count(self) -> int:
        """How many settings are tried."""
        return self.tried if self.tried is not None else math.prod(len(axis.values) for axis in self.grid)

    @property
    def title(self) -> str:
        """What is swept, in one line."""
        settings, seeds = counted(self.count, "setting"), counted(len(self.seeds), "seed")
        return f"{self.source.name}, {self.arm.name}, base {self.base}, {self.length}, {settings}, {seeds}"

    @property
    def settings(self) -> list[Setting]:
        """The settings of the grid; empty if a sampler chooses them."""
        return grids.settings(self.grid) if self.sampler == "grid" else []

    def at(self, setting: Mapping[str, Any]) -> SweepPlan:
        """Return this with a row that has a setting."""
        return replace(self, arms=(replace(self.arm, hyperparameters={**self.arm.hyperparameters, **setting}),))

    def trial(self, setting: Mapping[str, Any], seed: int) -> TrialConfig:
        """Return the configuration of one training."""
        return replace(self.at(setting), seeds=(seed,)).trials()[0]

    @property
    def definition(self) -> dict[str, Any]:
        """All that can change what the sweep finds, ready for JSON."""
        trial = self.trial({}, FIRST_SEED).model_dump(mode="json", exclude={"arm", "seed", "test", "measure"})
        return {
            **trial,
            "name": self.arm.name,
            "base": self.base,
            "seeds": list(self.seeds),
            "grid": [axis.model_dump(mode="json") for axis in self.grid],
            "sampler": self.sampler,
            "trials": self.tried,
            **({"first": list(self.first)} if self.first else {}),
            "prune": self.prune,
            "metric": self.metric_name,
            "higher_is_better": self.higher_is_better,
        }

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all that choices depend on: not of how many there are."""
        text = json.dumps({**self.definition, "trials": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def project(self) -> str:
        """What this is called where several such are looked at."""
        return f"sweep-{self.source.file_name}-{self.base}-{self.arm.name}"

    @property
    def study_name(self) -> str:
        """What the sweep is called in the database."""
        return self.study or f"sweep {self.source.file_name}-{self.base}-{self.arm.name}"

    @property
    def command(self) -> str:
        """The command line of this sweep; of what is in a notebook, and no file, the call from Python."""
        if self.source.cells:
            return self._call
        words = ["steppe", "sweep", "--task", self.task_words, "--method", self.arm.words, "--base", self.base_words]
        words += ["--grid", *(axis.words for axis in self.grid), "--seeds", str(len(self.seeds))]
        words += ["--epochs", str(self.epochs), "--out", str(self.out)]
        if self.sampler != "grid":
            words += ["--sampler", self.sampler, "--trials", str(self.tried)]
        words += [word for name, value in self.workers.asked.items() for word in (f"--{name}", str(value))]
        words += ["--prune"] if self.prune else []
        words += ["--storage", self.shown_storage] if self.shown_storage else []
        words += ["--study", self.study] if self.study else []
        words += ["--log", ",".join(self.log)] if self.log else []
        words += [] if self._as_packaged else ["--config", str(self.out / "config.yaml")]
        return shlex.join(words)

    @property
    def _call(self) -> str:
        usual = self._as_packaged
        return call(
            "steppe.lab.sweep",
            [self.task_words, self.arm.words if usual else self.arm.name, [axis.words for axis in self.grid]],
            {
                "base": self.base_words,
                "seeds": len(self.seeds),
                "epochs": self.epochs or None,
                **({} if self.sampler == "grid" else {"sampler": self.sampler, "trials": self.tried}),
                "prune": self.prune or None,
                "storage": self.shown_storage,
                "study": self.study,
                **self._common,
                "settings": None if usual else self.options["settings"],
            },
            self.source.cells,
        )

    @property
    def options(self) -> dict[str, Any]:
        """What the command line does not say, as the content of a file for ``--config``."""
        return {name: value for name, value in super().options.items() if name not in _OF_COMPARISONS}

    @property
    def _as_packaged(self) -> bool:
        """Whether all that is not varied is as it is if nobody says anything."""
        with brought(self.source.along):
            usual = packaged(self.source.name, self.inner, self.arm.method)
        varied = [axis.name for axis in self.grid]
        left = {name: value for name, value in usual.hyperparameters.items() if name not in varied}
        return self.arm == replace(usual, hyperparameters=left) and self.base_words == self.inner


def plan(
    task: Any,
    grid: Sequence[str] | Mapping[str, Any],
    options: Options,
    *,
    sampler: str = "grid",
    trials: int | None = None,
    prune: bool = False,
    storage: str | None = None,
    study: str | None = None,
) -> SweepPlan:
    """Fill in all defaults and check everything that can be checked before training.

    Args:
        task: See `sweep`.
        grid: See `sweep`.
        options: Checked field by field already: as of a comparison with one method.
        sampler: See `sweep`.
        trials: See `sweep`.
        prune: See `sweep`.
        storage: See `sweep`.
        study: See `sweep`.

    Raises:
        UserError: The input is wrong.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}{nearest(sampler, SAMPLERS)}")
    if (trials is None) != (sampler == "grid"):
        raise UserError(
            f"the sampler {sampler} needs --trials, the number of settings to try"
            if trials is None
            else "--trials goes with the samplers tpe and random; a grid has as many settings as its values make"
        )
    if trials is not None and not (type(trials) is int and 1 <= trials <= grids.MOST_SETTINGS):
        raise UserError(f"--trials must be a whole number in 1..{grids.MOST_SETTINGS}, got {trials!r}")
    if study is not None and not (study and study.isprintable()):
        raise UserError(f"--study must be a name of printable letters, got {study!r}")
    if study is not None and storage is None:
        raise UserError("--study is a name in the database of --storage; give that too")
    if sampler != "grid" or storage is not None:
        require("optuna", "sqlalchemy")
    check_installed(options.log or ())
    workers = workers_of(options)
    if prune and workers.processes > 1:
        raise UserError("--prune cannot look into trials of several processes; leave --prune or --processes out")
    axes = grids.parse(grid, counted=sampler == "grid")
    options = options.model_copy(update={"methods": tuple(map(words_for, options.methods or ()))})
    base_name, base = base_of(options)
    source = find_task(task)
    arm = _arm(source.name, base, options, axes)
    source = replace(source, along=codes(base, [arm.method]))
    if prune and arm.updates is not None:
        raise UserError("--prune goes by epochs and cannot be used with a budget of updates; remove one of them")
    loaded = load(source, workers)
    if isinstance(loaded, Loop) and (loaded.metric_name == "" or loaded.higher_is_better is None):
        raise UserError(
            f"{source.name} must say what settings are chosen by, with @steppe.lab.loop(metric_name=..., "
            "higher_is_better=...)"
        )
    epochs = options.epochs or loaded.epochs
    model = None if isinstance(loaded, Loop) else model_for([arm], base, loaded.model)
    for setting in grids.settings(axes) if sampler == "grid" else grids.probes(axes):
        optimizers.check_hyperparameters(arm.method, base, {**arm.hyperparameters, **setting}, model)
    check_arms([arm], base, epochs, loaded, workers.sharing, model)
    # What is varied stands in the name, so that sweeps of other things do not replace each other's report.
    name = "-".join([source.file_name, base_name, arm.name, *(axis.name for axis in axes)])
    out = Path(options.out) if options.out is not None else Path("runs") / f"sweep-{name}"
    check_writable(out, "trials", *(["settings"] if prune or sampler != "grid" else []))
    fixed = {key: value for key, value in arm.hyperparameters.items() if all(axis.name != key for axis in axes)}
    return SweepPlan(
        source=source,
        base=base_name,
        arms=(replace(arm, hyperparameters=fixed),),
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + (options.seeds or 3))),
        epochs=epochs,
        batch_size=loaded.batch_size,
        workers=workers,
        out=out,
        metric_name=loaded.metric_name,
        higher_is_better=loaded.higher_is_better is True,
        loop=loaded if isinstance(loaded, Loop) else None,
        log=options.log or (),
        wrapped=base,
        grid=axes,
        sampler=sampler,
        tried=trials,
        prune=prune,
        storage=storage,
        study=study,
        shown_storage=_shown(storage),
    )


def _shown(storage: str | None) -> str | None:
    if storage is None:
        return None
    from ..store.urls import shown_url

    return shown_url(storage)


def _arm(task: str, base: str, options: Options, axes: Sequence[Axis]) -> Arm:
    """Find the one row; hyper-parameters that the method needs may come from the grid alone."""
    assert options.methods is not None
    if len(options.methods) != 1:
        raise UserError(f"a sweep is of one method, got {len(options.methods)}; give one with --method")
    (name,) = rows(base, options)
    entry = options.settings.get(name, Entry(name=name))
    given = {**entry.hyperparameters, **grids.probes(axes)[0]}
    twice = [axis.name for axis in axes if axis.name in entry.hyperparameters]
    if twice:
        raise UserError(f"{twice[0]!r} is in the grid and in the settings of {name}; remove it from one of them")
    entry = entry.model_copy(update={"hyperparameters": given})
    (arm,) = find_arms(task, base, options.model_copy(update={"settings": {**options.settings, name: entry}}))
    return arm
