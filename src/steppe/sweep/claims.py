"""A setting that one worker has taken: signs of life, results, and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from optuna.trial import Trial, TrialState

from .grid import Axis, Setting, Value
from .points import LIVE, SEED, SeedResult, score

if TYPE_CHECKING:
    from .queue import Queue

_Result = TypeVar("_Result")


class Lost(Exception):
    """Another worker has taken this trial over, since this one gave no sign of life; what it finds does not count."""


class Claim:
    """A trial that a worker has taken.

    Args:
        queue: From where.
        trial_id: Which.
        slot: The number of its setting.
        seeds: Results of earlier attempts.
    """

    def __init__(self, queue: Queue, trial_id: int, slot: int, seeds: dict[int, SeedResult]) -> None:
        """See the class."""
        self._queue, self._id, self.slot, self.seeds = queue, trial_id, slot, seeds
        self._inherited = tuple(seeds.values())
        self._lost = threading.Event()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Within this, signs of life are given."""
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(done,), daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def choose(self) -> Setting:
        """Return the setting: that of the grid, or what the sampler chooses."""

        def suggest() -> Setting:
            self._trial = Trial(self._queue.study(self.slot), self._id)
            return {axis.name: _suggested(self._trial, axis) for axis in self._queue.definition.grid}

        chosen = self._write(suggest)
        return self._queue.settings[self.slot] if self._queue.settings else chosen

    def looks_bad(self, value: float, step: int) -> bool:
        """Tell how the first seed does, and ask the pruner."""

        def report() -> bool:
            self._trial.report(value, step)
            return self._trial.should_prune()

        return self._write(report)

    def keep(self, result: SeedResult) -> None:
        """Write the result of one seed."""
        self.seeds[result.seed] = result
        content = result.model_dump(mode="json")
        self._write(lambda: self._queue.storage.set_trial_user_attr(self._id, f"{SEED}{result.seed}", content))

    def finish(self) -> None:
        """Settle the setting; its trial then has the results of all seeds, also those that earlier attempts found."""
        for result in self._inherited:
            self.keep(result)
        value = score(self.seeds.values(), self._queue.definition.higher_is_better)
        self._settle(TrialState.COMPLETE, [value])

    def prune(self) -> None:
        """Settle the setting as one that looks bad.

        Raises:
            Lost: Somebody else has taken the trial over; likewise from all that writes.
        """
        self._settle(TrialState.PRUNED, None)

    def give_back(self, reason: str) -> None:
        """End the trial without a result."""
        self._queue.end(self._id, reason)

    @property
    def lost(self) -> bool:
        """Whether somebody else has taken the trial over."""
        return self._lost.is_set()

    def _settle(self, state: TrialState, values: list[float] | None) -> None:
        self._write(lambda: self._queue.storage.set_trial_state_values(self._id, state, values))

    def _write(self, call: Callable[[], _Result]) -> _Result:
        try:
            return self._queue.ask(call)
        except RuntimeError as error:  # what Optuna raises for a trial that has ended
            if self._queue.storage.get_trial(self._id).state in LIVE:
                raise
            raise Lost from error

    def _beat(self, done: threading.Event) -> None:
        storage = self._queue.storage
        while not done.is_set():
            try:
                storage.record_heartbeat(self._id)
                if storage.get_trial(self._id).state != TrialState.RUNNING:
                    self._lost.set()
                    break
            except Exception:  # the database may be back in time; if not, the worker's own next write says so
                pass
            done.wait(self._queue.definition.heartbeat)
        storage.remove_session()


def _suggested(trial: Trial, axis: Axis) -> Value:
    if axis.low is not None and axis.high is not None:
        return trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log)
    return trial.suggest_categorical(axis.name, axis.values)
