"""Short trainings, to measure what a method costs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..judge.comparison import Comparison
from ..tasks.task import Task
from ..trials.host import Host
from ..trials.records import TrialConfig
from ..trials.surroundings import reproducible
from ..trials.trial import Training
from .entries import Entry


def configs(rows: Mapping[str, Entry], found: Comparison, updates: int) -> dict[str, TrialConfig]:
    """Return a training of so many updates for every row, with the row's settings."""
    made = {}
    for name, entry in rows.items():
        config = next(config for config in found.plan.trials() if config.row == name)
        # What is a part of the training's steps is a part of these.
        shares = {key: float(round(part * updates)) for key, part in entry.share.items()}
        hyperparameters = {**config.hyperparameters, **shares}
        made[name] = config.model_copy(update={"updates": updates, "hyperparameters": hyperparameters, "test": False})
    return made


def train(config: TrialConfig, task: Task) -> float:
    """Train, and return the seconds per update; it ends early if it diverges."""
    with reproducible(config.seed):
        training = Training(config, task, Host())
        start = time.perf_counter()
        while training.step < training.total and training.diverged is None:
            training.train()
        return (time.perf_counter() - start) / training.step
