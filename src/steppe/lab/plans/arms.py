"""What is compared: methods, each with its hyper-parameters and schedules, as rows of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...methods import METHODS
from ..errors import UserError, nearest
from ..tasks.loop import Loop
from ..tasks.task import Task
from ..trials import optimizers
from ..trials.feeds import shared_sizes, total_updates
from ..trials.schedules import DEFAULTS, Constant, Proportional, Schedules, attach
from . import options as config
from .options import Entry, Options


@dataclass(frozen=True)
class Arm:
    """A row of the table: a method with all that can be said about how it trains.

    Attributes:
        name: Of the row; that of the method if nothing else was asked for.
        method: The method's name.
        hyperparameters: Of method and base together.
        schedules: Of learning rate, batch size and radius.
        updates: Parameter updates of a trial; None if it goes by epochs.
    """

    name: str
    method: str
    hyperparameters: dict[str, Any]
    schedules: Schedules = DEFAULTS
    updates: int | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """All of this as an entry of ``settings`` in a file for ``--config``."""
        values = self.hyperparameters.items()
        return {
            **({} if self.name == self.method else {"method": self.method}),
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values},
            **({"schedules": self.schedules.changes} if self.schedules != DEFAULTS else {}),
            **({} if self.updates is None else {"updates": self.updates}),
        }

    def length(self, epochs: int) -> str:
        """Say how long a trial is.

        Args:
            epochs: If it goes by epochs; 0 if a training loop decides.
        """
        if self.updates is not None:
            return f"{self.updates} updates"
        return f"{epochs} epochs" if epochs else "a loop of your own"


def packaged(task: str, base: str, method: str) -> Arm:
    """Return the arm of a method about which nothing was asked."""
    wraps = optimizers.is_wrapper(method)
    return Arm(method, method, config.hyperparameters(task, base, method, wraps, {}))


def find_arms(task: str, base: str, options: Options) -> tuple[Arm, ...]:
    """Find all rows of the table and refuse what does not fit the methods.

    Args:
        task: The task's name.
        base: The base's name.
        options: Checked field by field already.

    Returns:
        The arms in the order of ``options.methods``; without those, the base, all methods and all other arms.

    Raises:
        UserError: A name or a hyper-parameter is unknown, missing or refused.
    """
    known = optimizers.names()
    own = [name for name, entry in options.settings.items() if entry.method is not None and name not in known]
    for name in options.settings:
        if name not in known and name not in own:
            raise UserError(
                f"settings: unknown method {name!r}{nearest(name, known)}; or say 'method: NAME' to make it an arm of "
                "your own"
            )
    names = options.methods
    if names is None:
        names = (base, *METHODS, *own)
    optimizers.check_methods(names, own)
    return tuple(_arm(task, base, name, options) for name in names)


def check_arms(arms: Sequence[Arm], base: str, epochs: int, task: Task | Loop, processes: int = 1) -> None:
    """Refuse schedules that do not fit the task.

    Args:
        arms: The arms.
        base: The base's name.
        epochs: Of a trial, unless its arm counts updates.
        task: Gives batch size and training split.
        processes: How many share every batch.

    Raises:
        UserError: A warm-up is longer than a trial, an epoch has no batch, a batch cannot be shared equally, or a
            radius cannot follow its schedule.
    """
    for arm in arms:
        try:
            if isinstance(task, Loop) and arm.schedules.batch_size is not None:
                raise UserError("a training loop makes its batches itself; remove the batch_size schedule")
            if isinstance(task, Loop):  # nobody knows how many updates it will make
                dummy = optimizers.build(arm.method, base, [nn.Parameter(torch.zeros(1))], arm.hyperparameters)
                attach(arm.schedules, dummy, 1)
                continue
            sizes = shared_sizes(arm.schedules.batch_size, task.batch_size, processes)
            total = total_updates(sizes, arm.updates, epochs, task.batch_size, task, processes)
            for name, schedule in (("lr", arm.schedules.lr), ("rho", arm.schedules.rho)):
                if not isinstance(schedule, Proportional) and schedule.warmup >= total:
                    raise UserError(
                        f"the warm-up of the {name} schedule takes {schedule.warmup} updates, but a trial has {total}; "
                        "make it shorter"
                    )
            dummy = optimizers.build(arm.method, base, [nn.Parameter(torch.zeros(1))], arm.hyperparameters)
            attach(arm.schedules, dummy, total)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from error


def each(arms: Iterable[Arm], words: Mapping[str, str]) -> str:
    """Say something about arms: once if it is the same for all, else with the names of those that it is true of.

    Args:
        arms: Of which to say it.
        words: What to say, by name.

    Example:
        >>> each([Arm("sgd", "sgd", {}), Arm("sam", "sam", {})], {"sgd": "16", "sam": "32"})
        '16 (sgd); 32 (sam)'
    """
    by_words: dict[str, list[str]] = {}
    for arm in arms:
        by_words.setdefault(words[arm.name], []).append(arm.name)
    if len(by_words) == 1:
        return next(iter(by_words))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in by_words.items())


def _arm(task: str, base: str, name: str, options: Options) -> Arm:
    entry = options.settings.get(name, Entry(name=name))
    method = entry.method or name
    found = config.hyperparameters(task, base, method, optimizers.is_wrapper(method), entry.hyperparameters)
    try:
        optimizers.check_hyperparameters(method, base, found)
        schedules = _schedules(method, entry.schedules, options.schedules)
    except UserError as error:
        raise UserError(str(error) if name == method else f"{name}: {error}") from error
    updates = entry.updates if "updates" in entry.model_fields_set else options.updates
    return Arm(name, method, found, schedules, updates)


def _schedules(method: str, own: Schedules, common: Schedules) -> Schedules:
    """Lay an arm's schedules over the common ones, kind by kind; a common radius is for methods that have one."""
    found = config.merge(own, common)
    if optimizers.has_radius(method):
        return found
    if own.rho != Constant():
        raise UserError(f"{method} has no rho to schedule; remove the rho schedule from its settings")
    return found.model_copy(update={"rho": Constant()})
