"""What a sweep is: all that can change what it finds."""

from __future__ import annotations

import hashlib
import math
from typing import Literal, TypeAlias

from ..trials.fields import Model
from ..trials.records import Value
from ..trials.schedules import DEFAULTS, Schedules
from . import grid as grids
from .grid import Axis, Setting

Sampler: TypeAlias = Literal["grid", "tpe", "random"]
SAMPLERS = ("grid", "tpe", "random")


class Definition(Model):
    """All that can change what a sweep finds.

    Attributes:
        task: The task's name.
        task_digest: For a user's task, the hash of its file.
        name: Of the method, or of the user's arm.
        method: The method's name.
        base: The base's name.
        hyperparameters: Those that are not varied.
        schedules: Of learning rate, batch size and radius.
        updates: The budget of a trial in parameter updates; None goes by epochs.
        epochs: Of a trial.
        batch_size: Of the task.
        seeds: Of every setting.
        grid: What is varied.
        sampler: What chooses settings.
        trials: How many settings; None if those of the grid.
        prune: Whether settings that look bad are given up early.
        metric: What the task's metric is called.
        higher_is_better: Whether a larger metric is better.
        versions: Of the libraries that compute the numbers.
    """

    schema_version: Literal[2] = 2
    task: str
    task_digest: str | None = None
    name: str
    method: str
    base: str
    hyperparameters: dict[str, Value]
    schedules: Schedules = DEFAULTS
    updates: int | None = None
    epochs: int
    batch_size: int
    seeds: tuple[int, ...]
    grid: tuple[Axis, ...]
    sampler: Sampler = "grid"
    trials: int | None = None
    prune: bool = False
    metric: str
    higher_is_better: bool
    versions: dict[str, str]

    @property
    def count(self) -> int:
        """How many settings are tried."""
        return self.trials if self.trials is not None else math.prod(len(axis.values) for axis in self.grid)

    @property
    def settings(self) -> list[Setting]:
        """The settings of the grid; empty if a sampler chooses them."""
        return grids.settings(self.grid) if self.sampler == "grid" else []

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all that choices depend on: not of how many there are."""
        return hashlib.sha256(self.model_dump_json(exclude={"trials"}).encode()).hexdigest()[:16]

    @property
    def length(self) -> str:
        """How long a trial is, in words."""
        return f"{self.epochs} epochs" if self.updates is None else f"{self.updates} updates"
