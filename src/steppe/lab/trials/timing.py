"""How fast a task trains here: a few steps and a look at two splits tell how long a trial will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..._parts import moved
from ..tasks.evaluation import evaluate
from ..tasks.splits import Split, batches, examples_in, length
from ..tasks.task import Task
from .host import Host
from .records import TrialConfig
from .surroundings import reproducible
from .trial import Training

_FIRST = 5  # steps that are slower than others
_MOST_STEPS = 1000
_LONGEST = 0.7  # seconds of steps
_LONGEST_LOOK = 0.3  # at a split


@dataclass(frozen=True)
class Pace:
    """Seconds in one process.

    Attributes:
        update: Of one update.
        validation: Of one look at the validation split.
        end: Of the looks at all splits after the last epoch.
    """

    update: float
    validation: float
    end: float

    def trial(self, updates: int, epochs: int, passes: float = 1.0) -> float:
        """Return how long a trial takes.

        Args:
            updates: In all.
            epochs: After each of which the validation split is looked at.
            passes: So many times as much work is an update as the one that was timed.

        Example:
            >>> Pace(update=0.5, validation=0.25, end=1.0).trial(updates=4, epochs=2, passes=2.0)
            5.5
        """
        return updates * passes * self.update + epochs * self.validation + self.end


def pace(config: TrialConfig, task: Task, host: Host) -> Pace:
    """Take a few steps of a trial, which leave nothing behind, and look at parts of the splits, for about two seconds.

    Args:
        config: The trial.
        task: Its task.
        host: Where to train.
    """
    host = host.placed()
    with reproducible(config.seed, host.threads, str(host.device)):
        training = Training(config, task, host)
        update = _update(training)
        validation = _look(training, task.validation)
        train = _look(training, task.plain_train)
    return Pace(update, validation, train + 2 * validation)  # test data is read once, and not here: taken for as long


def _update(training: Training) -> float:
    """Return the time of an update, with that of making its batch; the first ones are left out, if there are more."""
    training.model.train()
    times: list[float] = []
    begun = last = time.perf_counter()
    while True:
        for batch in next(training.epochs):
            training.update(moved(batch, training.host.device), examples_in(batch))
            now = time.perf_counter()
            times.append(now - last)
            last = now
            if len(times) == _MOST_STEPS or now - begun > _LONGEST:
                counted = times[_FIRST:] or times[-1:]
                return sum(counted) / len(counted)


def _look(training: Training, split: Split) -> float:
    """Return the time of a look at a whole split, judged by a part of it where that takes long."""
    task, host = training.task, training.host
    size = task.batch_size_without_gradients(split)
    training.model.eval()
    begun = time.perf_counter()
    with torch.set_grad_enabled(task.evaluation_gradients):
        for number, batch in enumerate(batches(split, size, collate=task.collate), start=1):
            with host.forward():
                float(task.loss_of(training.model, moved(batch, host.device)).detach())
            taken = time.perf_counter() - begun
            if taken > _LONGEST_LOOK:
                return taken / number * _batches(split, size, number)
    begun = time.perf_counter()
    evaluate(training.model, task, split, host.device, host.forward)
    return time.perf_counter() - begun


def _batches(split: Split, size: int, seen: int) -> int:
    try:
        return length(split, size)
    except TypeError:  # a loader that does not know
        return seen
