"""How a row got its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ..trials.fields import Model
from .grid import Setting

SetBy: TypeAlias = Literal["chosen", "given", "packaged", "default"]
"""On validation data; by the user; packaged for this task; packaged for any task, and tuned by nobody."""


class Tried(Model):
    """A setting that was tried.

    Attributes:
        setting: What was varied, by name.
        validation: The mean validation metric; None if a training diverged.
    """

    setting: Setting
    validation: float | None = None


class Choice(Model):
    """What was chosen for a row on validation data.

    Attributes:
        settings: Out of how many.
        seeds: Trainings of each.
        varied: The hyper-parameters that were.
        chosen: The best of them; None if none came to its end, so that the row was left as it was.
        validation: The mean validation metric of the best.
        tried: All of them, in order, the first as the row would be without tuning; empty where they stand elsewhere.
    """

    settings: int
    seeds: int
    varied: tuple[str, ...]
    chosen: Setting | None = None
    validation: float | None = None
    tried: tuple[Tried, ...] = ()

    @property
    def edges(self) -> tuple[str, ...]:
        """What was varied and is best at the smallest or largest value that was tried: better ones may lie beyond."""
        chosen, found = self.chosen or {}, []
        for name in self.varied:
            values = [value for one in self.tried if isinstance(value := one.setting.get(name), (int, float))]
            if len(set(values)) > 1 and chosen.get(name) in (min(values), max(values)):
                found.append(name)
        return tuple(found)

    def fits(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Return whether a row still has what was chosen for it."""
        return all(hyperparameters.get(name) == value for name, value in (self.chosen or {}).items())
