"""The settings of a sweep, and what has become of each: read from the trials of the storage, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeAlias

from optuna.trial import FrozenTrial, TrialState

from ..plans.grid import Setting
from ..trials.fields import Model
from ..trials.records import Record
from .stats import Mean, mean

MOST_LOST = 3
"""So many workers may die at one setting before it is given up."""

SLOT, SESSION, ENDED, SEED = "slot", "session", "ended", "seed "
"""Keys of what a trial carries: its setting's number, who runs it, why it ended, and before a seed its result."""

DIED = "died"
"""Why a trial has ended: its worker is no more."""

State: TypeAlias = Literal["waiting", "running", "finished", "diverged", "pruned", "given up"]
LIVE = (TrialState.WAITING, TrialState.RUNNING)


class SeedResult(Model):
    """What one training found.

    Attributes:
        seed: The seed.
        validation_metric: At the end, like the numbers below; None if the training diverged.
        validation_loss: The loss there.
        train_metric: On training data.
        train_loss: The loss there.
        test_metric: On test data; not looked at before the best setting is chosen.
        test_loss: The loss there.
        diverged: The epoch in which a number stopped being finite.
        curve: The validation metric after every epoch.
        gradient_evaluations: In all.
        seconds: Of training.
    """

    seed: int
    validation_metric: float | None = None
    validation_loss: float | None = None
    train_metric: float | None = None
    train_loss: float | None = None
    test_metric: float | None = None
    test_loss: float | None = None
    diverged: int | None = None
    curve: tuple[float, ...] = ()
    gradient_evaluations: int
    seconds: float

    @classmethod
    def of(cls, record: Record) -> SeedResult:
        """Keep of a record what a sweep needs."""
        numbers = record.final.model_dump(exclude={"sharpness"}) if record.final is not None else {}
        return cls(
            seed=record.config.seed,
            diverged=record.diverged.epoch if record.diverged is not None else None,
            curve=tuple(record.curve.validation_metric),
            gradient_evaluations=record.gradient_evaluations,
            seconds=record.seconds,
            **numbers,
        )


@dataclass(frozen=True)
class Point:
    """One setting and what has become of it.

    Attributes:
        slot: Its number, from 0.
        setting: The values; None where the sampler has not chosen yet.
        state: Whether it is finished, and how.
        seeds: The results that are there.
        session: Who runs it, if somebody does.
        lost: How many workers have died at it, before they had finished a seed.
    """

    slot: int
    setting: Setting | None
    state: State
    seeds: tuple[SeedResult, ...] = ()
    session: str | None = None
    lost: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.state not in ("waiting", "running")

    @property
    def validation(self) -> Mean | None:
        """Mean of the validation metric over all seeds; None unless all of them came to their end."""
        return self._mean("validation_metric")

    @property
    def test(self) -> Mean | None:
        """Likewise of the test metric. Only for a setting that was chosen already."""
        return self._mean("test_metric")

    @property
    def seconds(self) -> float:
        """Spent in training."""
        return sum(result.seconds for result in self.seeds)

    def _mean(self, name: str) -> Mean | None:
        values = [getattr(result, name) for result in self.seeds]
        if self.state != "finished" or not values or None in values:
            return None
        return mean(values)


def points(trials: Iterable[FrozenTrial], settings: Sequence[Setting], count: int) -> list[Point]:
    """Find out what has become of every setting.

    Args:
        trials: All of the study, in the order of their numbers.
        settings: Those of a grid; empty if a sampler chooses.
        count: How many there are.

    Returns:
        One point a setting, in order.
    """
    attempts: list[list[FrozenTrial]] = [[] for _ in range(count)]
    for trial in trials:
        slot = trial.user_attrs.get(SLOT)
        if isinstance(slot, int) and 0 <= slot < count:
            attempts[slot].append(trial)
    return [_point(slot, settings[slot] if settings else None, found) for slot, found in enumerate(attempts)]


def real(attempts: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the one trial of a setting that counts, of which nobody may run another; None if it has to be made.

    That is the one that is settled, else the first that is waiting or running. All workers see the same order, since
    numbers are given one after the other, and no trial comes to life again: so all agree. Duplicates, which come about
    when several workers fill the queue at the same time, are thrown away by whoever takes them.
    """
    settled = [trial for trial in attempts if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    live = [trial for trial in attempts if trial.state in LIVE]
    return next(iter(settled or live), None)


def lost(attempts: Iterable[FrozenTrial]) -> int:
    """Count the trials whose workers died before they had finished a seed: who ends a trial otherwise says why."""
    failed = [trial.user_attrs for trial in attempts if trial.state == TrialState.FAIL]
    return sum(said.get(ENDED, DIED) == DIED and not any(key.startswith(SEED) for key in said) for said in failed)


def found_seeds(attempts: Iterable[FrozenTrial]) -> dict[int, SeedResult]:
    """Return the results of all seeds that were finished in any of the attempts."""
    values: dict[str, Any] = {}
    for trial in attempts:
        values.update((key, value) for key, value in trial.user_attrs.items() if key.startswith(SEED))
    results = [SeedResult.model_validate(value) for value in values.values()]
    return {result.seed: result for result in sorted(results, key=lambda result: result.seed)}


def score(results: Iterable[SeedResult], higher_is_better: bool) -> float:
    """Return the value of a setting for the sampler: the mean validation metric, or the worst if a seed diverged."""
    values = [result.validation_metric for result in results]
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return float("-inf") if higher_is_better else float("inf")
    return fmean(finite)


def _point(slot: int, setting: Setting | None, attempts: Sequence[FrozenTrial]) -> Point:
    trial, died = real(attempts), lost(attempts)
    if setting is None:
        setting = next((dict(one.params) for one in reversed(attempts) if one.params), None)
    seeds = tuple(found_seeds(attempts).values())
    state: State = "waiting"
    if trial is not None and trial.state == TrialState.COMPLETE:
        state = "diverged" if any(result.diverged is not None for result in seeds) else "finished"
    elif trial is not None and trial.state == TrialState.PRUNED:
        state = "pruned"
    elif died >= MOST_LOST:
        state = "given up"
    elif trial is not None and trial.state == TrialState.RUNNING:
        state = "running"
    session = trial.user_attrs.get(SESSION, [None])[0] if trial is not None and state == "running" else None
    return Point(slot, setting, state, seeds, session, died)
