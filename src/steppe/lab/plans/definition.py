"""What a sweep is: all that its workers must agree on, and what they need beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ..trials.fields import Model
from ..trials.records import Value
from ..trials.schedules import DEFAULTS, Schedules
from . import grid as grids
from .grid import Axis, Setting

Sampler: TypeAlias = Literal["grid", "tpe", "random"]
SAMPLERS = ("grid", "tpe", "random")
HEARTBEAT = 20
_CHANGED = "has another content here"


class Definition(Model):
    """What all workers of a sweep must agree on; it is kept in the storage.

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
        heartbeat: Seconds between two signs of life of a worker.
        metric: What the task's metric is called.
        higher_is_better: Whether a larger metric is better.
        versions: Of the libraries that compute the numbers.
    """

    schema_version: Literal[1] = 1
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
    heartbeat: int = HEARTBEAT
    metric: str
    higher_is_better: bool
    versions: dict[str, str]

    @property
    def count(self) -> int:
        """How many settings are tried."""
        return self.trials if self.trials is not None else len(self.settings)

    @property
    def settings(self) -> list[Setting]:
        """The settings of the grid; empty if a sampler chooses them."""
        return grids.settings(self.grid) if self.sampler == "grid" else []

    @property
    def length(self) -> str:
        """How long a trial is, in words."""
        return f"{self.epochs} epochs" if self.updates is None else f"{self.updates} updates"

    def differences(self, content: Mapping[str, Any]) -> list[str]:
        """Say in which fields another definition differs.

        Args:
            content: The other one as JSON.

        Returns:
            One clause a field, such as ``epochs is 5 there and 3 here``.
        """
        own = self.model_dump(mode="json")
        names = [name for name in {**content, **own} if content.get(name) != own.get(name)]
        if "task_digest" in names:
            names = [name for name in names if name != "task"] if content.get("task") == own["task"] else names
        return [self._difference(name, content, own) for name in names]

    def _difference(self, name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
        if name == "task_digest":
            return f"the file of the task {self.task} {_CHANGED}"
        if name == "grid":
            try:
                old = " ".join(Axis.model_validate(axis).words for axis in there["grid"])
            except (KeyError, TypeError, ValueError):
                old = "of another form"
            return f"the grid is {old} there and {' '.join(axis.words for axis in self.grid)} here"
        if name == "seeds":
            return f"seeds is {len(there.get('seeds') or ())} there and {len(self.seeds)} here"
        return f"{name} is {_short(there.get(name))} there and {_short(here.get(name))} here"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
