"""What is compared: methods, each with its hyper-parameters and schedules, as rows of the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..tasks.loop import Loop
from ..tasks.task import Task
from ..trials import optimizers
from ..trials.feeds import total_updates
from ..trials.finding import BASES, find, has_radius, is_wrapper, keywords, row_of
from ..trials.schedules import DEFAULTS, Constant, Proportional, Schedules, attach
from . import options as config
from .choices import Choice, SetBy
from .options import Entry, Options
from .rows import rows

_SHOWN_DEFAULTS = ("lr", "rho", "weight_decay")  # what records show, and tuning varies


@dataclass(frozen=True)
class Arm:
    """A row of the table: a method with all that can be said about how it trains.

    Attributes:
        name: Of the row; that of the method if nothing else was asked for.
        method: The method's name, or the user's own with its whole path.
        hyperparameters: Of method and base together.
        schedules: Of learning rate, batch size and radius.
        updates: Parameter updates of a trial; None if it goes by epochs.
        set_by: How it got its hyper-parameters, which changes no number.
        choice: If they were chosen on validation data: out of what.
    """

    name: str
    method: str
    hyperparameters: dict[str, Any]
    schedules: Schedules = DEFAULTS
    updates: int | None = None
    set_by: SetBy = field(default="default", compare=False)
    choice: Choice | None = field(default=None, compare=False)

    @property
    def words(self) -> str:
        """What to list for this row, if all about it is as packaged."""
        return self.method if self.name == row_of(self.method) else self.name

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
        return f"{epochs} epoch{'' if epochs == 1 else 's'}" if epochs else "a loop of your own"


def packaged(task: str, base: str, method: str) -> Arm:
    """Return the arm of a method about which nothing was asked."""
    return Arm(row_of(method), method, _hyperparameters(task, base, method, {}))


def find_arms(task: str, base: str, options: Options) -> tuple[Arm, ...]:
    """Find all rows of the table and refuse what does not fit the methods.

    Args:
        task: The task's name.
        base: What methods wrap.
        options: Checked field by field already.

    Returns:
        The arms in the order of ``options.methods``; without those, the base, all methods and all other arms.

    Raises:
        UserError: A name or a hyper-parameter is unknown, missing or refused.
    """
    return tuple(_arm(task, base, name, method, options) for name, method in rows(base, options).items())


def model_for(arms: Sequence[Arm], base: str, make: Callable[[], nn.Module]) -> nn.Module | None:
    """Return a model to try hyper-parameters on, if some of them cannot be tried without.

    Args:
        arms: The arms.
        base: What methods wrap.
        make: Makes the task's model.
    """
    if not any(optimizers.needs_model(arm.method, base) for arm in arms):
        return None
    with torch.random.fork_rng(devices=[]):
        return make()


def check_arms(
    arms: Sequence[Arm],
    base: str,
    epochs: int,
    task: Task | Loop,
    processes: int = 1,
    model: nn.Module | None = None,
) -> None:
    """Refuse schedules that do not fit the task, and optimizers that do not fit its model.

    Args:
        arms: The arms.
        base: What methods wrap.
        epochs: Of a trial, unless its arm counts updates.
        task: Gives batch size and training split.
        processes: How many share every batch.
        model: See `model_for`.

    Raises:
        UserError: A hyper-parameter is refused, a warm-up is longer than a trial, an epoch has no batch, a batch cannot
            be shared equally, or a radius cannot follow its schedule.
    """
    for arm in arms:
        own = model if optimizers.needs_model(arm.method, base) else None
        if own is not None:
            optimizers.check_hyperparameters(arm.method, base, arm.hyperparameters, own)
        try:
            total = _updates(arm, epochs, task, processes)
            parameters = [nn.Parameter(torch.zeros(1))] if own is None else [*own.parameters()]
            dummy = optimizers.build(arm.method, base, parameters, arm.hyperparameters)
            attach(arm.schedules, dummy, total)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from error


def _updates(arm: Arm, epochs: int, task: Task | Loop, processes: int) -> int:
    if isinstance(task, Loop):  # nobody knows how many it will make
        if arm.schedules.batch_size is not None:
            raise UserError("a training loop makes its batches itself; remove the batch_size schedule")
        return 1
    total = total_updates(arm.schedules.batch_size, arm.updates, epochs, task.batch_size, task, processes)
    for name, schedule in (("lr", arm.schedules.lr), ("rho", arm.schedules.rho)):
        if not isinstance(schedule, Proportional) and schedule.warmup >= total:
            raise UserError(
                f"the warm-up of the {name} schedule takes {schedule.warmup} updates, but a trial has {total}; make it "
                "shorter"
            )
    return total


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


def _arm(task: str, base: str, name: str, method: str, options: Options) -> Arm:
    entry = options.settings.get(name, Entry(name=name))
    found = _hyperparameters(task, base, method, entry.hyperparameters)
    try:
        if not optimizers.needs_model(method, base):
            optimizers.check_hyperparameters(method, base, found)
        schedules = _schedules(method, entry.schedules, options.schedules)
    except UserError as error:
        raise UserError(str(error) if name == row_of(method) else f"{name}: {error}") from error
    updates = entry.updates if "updates" in entry.model_fields_set else options.updates
    choice = options.tuned.get(name)
    choice = choice if choice is not None and choice.fits(found) else None
    given = bool(entry.hyperparameters)
    if name in options.as_packaged:  # unless somebody has changed it in the file since
        given = found != _hyperparameters(task, base, method, {})
    return Arm(name, method, found, schedules, updates, _set_by(task, base, method, given, choice), choice)


def _set_by(task: str, base: str, method: str, given: bool, choice: Choice | None) -> SetBy:
    if choice is not None and choice.chosen is not None:
        return "chosen"
    if given:
        return "given"
    return "packaged" if method in config.packaged_settings().get(task, {}).get(base, {}) else "default"


def _hyperparameters(task: str, base: str, method: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Find what is packaged, what the user sets over that, and below both what is said of defaults."""
    wraps, make = is_wrapper(method), find(method)
    defaults: dict[str, Any] = {}
    for words in (base, method) if wraps else (method,):
        if ":" in words or (words in BASES and words not in config.packaged_settings()["default"]):
            takes = inspect.signature(find(words)).parameters
            defaults |= {name: takes[name].default for name in _SHOWN_DEFAULTS if name in takes}
    numbers = {name: float(value) for name, value in defaults.items() if type(value) in (int, float)}
    return {**numbers, **config.hyperparameters(task, base, method, wraps, own, keywords(make)[1:])}


def _schedules(method: str, own: Schedules, common: Schedules) -> Schedules:
    """Lay an arm's schedules over the common ones, kind by kind; a common radius is for methods that have one."""
    found = config.merge(own, common)
    if has_radius(method):
        return found
    if own.rho != Constant():
        raise UserError(f"{method} has no rho to schedule; remove the rho schedule from its settings")
    return found.model_copy(update={"rho": Constant()})
