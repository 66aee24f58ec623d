"""From what the user asks for to a sweep in which every default is filled in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest, require
from ..files import check_writable
from ..tasks.sources import TaskSource, find_task
from ..tasks.task import size
from ..trials import optimizers
from ..trials.records import TrialConfig, library_versions
from . import grid as grids
from .arms import Arm, check_arms, find_arms, packaged
from .comparison import FIRST_SEED, Plan, load
from .definition import SAMPLERS, Definition
from .grid import Axis
from .options import Entry, Options
from .workers import workers_of


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, and how it is carried out.

    Attributes:
        definition: All that can change what it finds.
        plan: As that of a comparison with one row, without what is varied.
        storage: The database that gets a copy, as a URL; None if none does.
        study: The sweep's name in it; None is one made of task, base and method.
        shown_storage: The URL as it may be shown.
    """

    definition: Definition
    plan: Plan
    storage: str | None = field(default=None, repr=False)  # it may have a password
    study: str | None = None
    shown_storage: str | None = None

    @property
    def source(self) -> TaskSource:
        """Where the task comes from."""
        return self.plan.source

    @property
    def out(self) -> Path:
        """The folder for everything that is written."""
        return self.plan.out

    def at(self, setting: Mapping[str, Any]) -> Plan:
        """Return the plan of a comparison with one row, which has this setting."""
        arm = self.plan.arms[0]
        return replace(self.plan, arms=(replace(arm, hyperparameters={**arm.hyperparameters, **setting}),))

    def trial(self, setting: Mapping[str, Any], seed: int) -> TrialConfig:
        """Return the configuration of one training."""
        return replace(self.at(setting), seeds=(seed,)).trials()[0]

    @property
    def study_name(self) -> str:
        """What the sweep is called in the database."""
        return self.study or f"sweep {self.source.file_name}-{self.definition.base}-{self.definition.name}"

    @property
    def command(self) -> str:
        """The command line of this sweep."""
        asked = self.definition
        task = f"{self.source.path}:{self.source.function}" if self.source.path else self.source.name
        words = ["steppe", "sweep", "--task", task, "--method", asked.name, "--base", asked.base]
        words += ["--grid", *(axis.words for axis in asked.grid), "--seeds", str(len(asked.seeds))]
        words += ["--epochs", str(asked.epochs), "--out", str(self.out)]
        if asked.sampler != "grid":
            words += ["--sampler", asked.sampler, "--trials", str(asked.trials)]
        words += ["--prune"] if asked.prune else []
        words += ["--storage", self.shown_storage] if self.shown_storage else []
        words += ["--study", self.study] if self.study else []
        words += [] if self._as_packaged else ["--config", str(self.out / "config.yaml")]
        return shlex.join(words)

    @property
    def options(self) -> dict[str, Any]:
        """What the command line does not say, as the content of a file for ``--config``."""
        kept = {name: value for name, value in self.plan.options.items() if name != "methods"}
        return {**kept, "seeds": len(self.definition.seeds)}

    @property
    def _as_packaged(self) -> bool:
        """Whether all that is not varied is as it is if nobody says anything."""
        asked, (arm,) = self.definition, self.plan.arms
        usual = packaged(self.source.name, asked.base, asked.method)
        varied = [axis.name for axis in asked.grid]
        left = {name: value for name, value in usual.hyperparameters.items() if name not in varied}
        return arm == replace(usual, hyperparameters=left)


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
    workers = workers_of(options)
    axes = grids.parse(grid, counted=sampler == "grid")
    base = options.base or "adamw"
    optimizers.check_base(base)
    source = find_task(task)
    arm = _arm(source.name, base, options, axes)
    if prune and arm.updates is not None:
        raise UserError("--prune goes by epochs and cannot be used with a budget of updates; remove one of them")
    loaded = load(source)
    epochs = options.epochs or loaded.epochs
    for setting in grids.settings(axes) if sampler == "grid" else grids.probes(axes):
        optimizers.check_hyperparameters(arm.method, base, {**arm.hyperparameters, **setting})
    check_arms([arm], base, epochs, loaded.batch_size, size(loaded.train))
    name = f"{source.file_name}-{base}-{arm.name}"
    out = Path(options.out) if options.out is not None else Path("runs") / f"sweep-{name}"
    check_writable(out, "trials", *(["settings"] if prune or sampler != "grid" else []))
    fixed = {key: value for key, value in arm.hyperparameters.items() if all(axis.name != key for axis in axes)}
    compared = Plan(
        source=source,
        base=base,
        arms=(replace(arm, hyperparameters=fixed),),
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + (options.seeds or 3))),
        epochs=epochs,
        batch_size=loaded.batch_size,
        workers=workers,
        out=out,
        metric_name=loaded.metric_name,
        higher_is_better=loaded.higher_is_better,
    )
    definition = Definition(
        task=source.name,
        task_digest=source.digest,
        name=arm.name,
        method=arm.method,
        base=base,
        hyperparameters=fixed,
        schedules=arm.schedules,
        updates=arm.updates,
        epochs=epochs,
        batch_size=loaded.batch_size,
        seeds=compared.seeds,
        grid=axes,
        sampler=sampler,  # type: ignore[arg-type]
        trials=trials,
        prune=prune,
        metric=loaded.metric_name,
        higher_is_better=loaded.higher_is_better,
        versions=library_versions(),
    )
    if storage is None:
        return SweepPlan(definition, compared)
    from ..store.urls import shown_url

    return SweepPlan(definition, compared, storage, study, shown_url(storage))


def _arm(task: str, base: str, options: Options, axes: Sequence[Axis]) -> Arm:
    """Find the one row; hyper-parameters that the method needs may come from the grid alone."""
    assert options.methods is not None
    if len(options.methods) != 1:
        raise UserError(f"a sweep is of one method, got {len(options.methods)}; give one with --method")
    (name,) = options.methods
    optimizers.check_methods(options.methods, options.settings)
    entry = options.settings.get(name, Entry(name=name))
    given = {**entry.hyperparameters, **grids.probes(axes)[0]}
    twice = [axis.name for axis in axes if axis.name in entry.hyperparameters]
    if twice:
        raise UserError(f"{twice[0]!r} is in the grid and in the settings of {name}; remove it from one of them")
    entry = entry.model_copy(update={"hyperparameters": given})
    (arm,) = find_arms(task, base, options.model_copy(update={"settings": {**options.settings, name: entry}}))
    return arm
