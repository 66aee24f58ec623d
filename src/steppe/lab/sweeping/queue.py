"""Which worker does what: a queue of settings in the storage, from which each is taken once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ..errors import UserError
from ..judge import points as _points
from ..judge.points import ENDED, LIVE, SEED, SESSION, SLOT, Point, SeedResult, score
from ..plans.definition import Definition
from ..plans.grid import Axis, Setting, Value
from ..plans.sweep import SweepPlan
from ..store.database import close, open_storage, patiently, quiet, shown_url

_DEFINITION = "definition"
_TO_COMPARE_WITH = 5  # settings that were finished, before one is pruned

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


class Queue:
    """The settings of a sweep in a storage, shared by all workers.

    What makes every setting run once:

    * A trial is taken by changing its state from waiting to running in one transaction, which one worker alone can do.
    * The settings are filled in by whoever comes, and again whenever one has no trial. Several trials of one setting
      may so come about; who takes one looks whether it is the one that counts (`points.real`), or throws it away.
    * A worker gives signs of life while it has a trial, the first one before it takes it. Whose signs fail to come for
      some time loses its trial, which is then filled in again.

    Args:
        plan: The sweep.

    Raises:
        UserError: The storage cannot be used, or it holds another sweep by this name.
    """

    def __init__(self, plan: SweepPlan) -> None:
        """Open the storage, and make the study if need be."""
        self.definition: Definition = plan.definition
        self._url, self.where = plan.storage, shown_url(plan.storage)
        self.settings = self.definition.settings
        self.storage = open_storage(plan.storage, self.definition.heartbeat)
        try:
            with quiet():
                self._study = self.ask(lambda: self._join(plan.study))
            self._check(plan.study)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        close(self.storage)

    def points(self) -> list[Point]:
        """Return what has become of every setting so far."""
        return _points.points(self._trials(), self.settings, self.definition.count)

    def fill(self) -> None:
        """Give a waiting trial to every setting that is not settled and has none."""
        while missing := self._missing():
            # Looked at again and again, so that several who fill it at once do not do all of it each.
            for slot, attempts in missing[: max(10, len(missing) // 10)]:
                params = self.settings[slot] if self.settings else _chosen(attempts)
                trial = create_trial(
                    state=TrialState.WAITING,
                    user_attrs={SLOT: slot},
                    system_attrs={"fixed_params": params} if params else {},
                )
                self.ask(lambda trial=trial: self._study.add_trial(trial))  # type: ignore[misc]

    def fail_stale(self) -> None:
        """End the trials of workers that have given no sign of life for some time."""
        with quiet():
            self.ask(lambda: optuna.storages.fail_stale_trials(self._study))

    def claim(self, session: str, worker: str) -> Claim | None:
        """Take a trial that waits.

        Args:
            session: Who asks: all workers of one command.
            worker: Which of them.

        Returns:
            The trial, which nobody else has; None if none waits.
        """
        for trial in self._trials():
            if trial.state != TrialState.WAITING or SLOT not in trial.user_attrs or not self._take(trial._trial_id):
                continue
            self.ask(lambda i=trial._trial_id: self.storage.set_trial_user_attr(i, SESSION, [session, worker]))  # type: ignore[misc]
            slot = trial.user_attrs[SLOT]
            attempts = self._attempts()[slot]
            counts = _points.real(attempts)
            if counts is not None and counts.number == trial.number and _points.lost(attempts) < _points.MOST_LOST:
                return Claim(self, trial._trial_id, slot, _points.found_seeds(attempts))
            self.end(trial._trial_id, "duplicate")
        return None

    def release(self, session: str, worker: str | None = None, *, reason: str) -> int:
        """Put back what a worker, or all of a session, has taken. It must not run any more.

        Args:
            session: Whose.
            worker: Which of them; None are all.
            reason: Why; `points.DIED` is counted.

        Returns:
            How many trials that were.
        """
        mine = [
            trial._trial_id
            for trial in self._trials()
            if trial.state == TrialState.RUNNING
            and (trial.user_attrs.get(SESSION) or [None])[0] == session
            and worker in (None, trial.user_attrs[SESSION][1])
        ]
        for trial_id in mine:
            self.end(trial_id, reason)
        if mine:
            self.fill()
        return len(mine)

    def end(self, trial_id: int, reason: str) -> None:
        """End a trial without a result, and say why."""

        def write() -> None:
            try:
                self.storage.set_trial_user_attr(trial_id, ENDED, reason)
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            except RuntimeError:  # ended by somebody else
                return

        self.ask(write)

    def study(self, slot: int) -> optuna.Study:
        """Return the study with the sampler for one setting; what it draws depends on the setting's number."""
        if self.settings:
            return self._study
        # A new one each time: samplers go by what a study has once read, which only its own loop reads again.
        with quiet():
            study = optuna.load_study(
                study_name=self._study.study_name,
                storage=self.storage,
                sampler=_sampler(self.definition, slot),
                pruner=self._study.pruner,
            )
        study.get_trials(deepcopy=False)  # it writes to no trial that it has not seen
        return study

    def _join(self, name: str) -> optuna.Study:
        study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            direction="maximize" if self.definition.higher_is_better else "minimize",
            load_if_exists=True,
            pruner=_pruner(self.definition),
            sampler=RandomSampler(seed=0),
        )
        if not study.get_trials(deepcopy=False):
            # The first trial is no setting but says what the sweep is. Trials are numbered one after the other, so of
            # several workers that come at the same instant one alone decides.
            content = self.definition.model_dump(mode="json")
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={_DEFINITION: content}))
        return study

    def _check(self, name: str) -> None:
        content = self._trials()[0].user_attrs.get(_DEFINITION)
        if not isinstance(content, dict):
            raise UserError(
                f"the study {name!r} in {self.where} was not made by steppe sweep; give another name with --study"
            )
        found = self.definition.differences(content)
        if found:
            raise UserError(
                f"the sweep {name!r} in {self.where} is another one: {'; '.join(found)}. Run the command that it was "
                "started with, or give another --out or --study"
            )

    def _trials(self) -> list[FrozenTrial]:
        return self.ask(lambda: self._study.get_trials(deepcopy=False))

    def _attempts(self) -> dict[int, list[FrozenTrial]]:
        found: dict[int, list[FrozenTrial]] = {slot: [] for slot in range(self.definition.count)}
        for trial in self._trials():
            if trial.user_attrs.get(SLOT) in found:
                found[trial.user_attrs[SLOT]].append(trial)
        return found

    def _missing(self) -> list[tuple[int, list[FrozenTrial]]]:
        return [
            (slot, attempts)
            for slot, attempts in self._attempts().items()
            if _points.real(attempts) is None and _points.lost(attempts) < _points.MOST_LOST
        ]

    def _take(self, trial_id: int) -> bool:
        def take() -> bool:
            # The sign of life first: a trial that runs without one would never be missed.
            self.storage.record_heartbeat(trial_id)
            try:
                return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            except RuntimeError:  # finished by now
                return False

        return self.ask(take)

    def ask(self, call: Callable[[], _Result]) -> _Result:
        """Ask the database, again and again if it fails for a moment."""
        return patiently(call, self._url)


def _chosen(attempts: list[FrozenTrial]) -> dict[str, Any] | None:
    return next((dict(trial.params) for trial in reversed(attempts) if trial.params), None)


def _sampler(definition: Definition, slot: int) -> BaseSampler:
    if definition.sampler == "tpe":
        return TPESampler(seed=_seed(slot), constant_liar=True)  # of settings that still run it expects the worst
    return RandomSampler(seed=_seed(slot))


def _seed(slot: int) -> int:
    """Return a seed unlike those of the slots beside it: NumPy's first numbers from 0 and 3 are nearly the same."""
    return Random(slot).getrandbits(32)


def _pruner(definition: Definition) -> BasePruner:
    if not definition.prune:
        return NopPruner()
    # Learning rates fall while they train, so that large ones look bad at first: half of the training is warm-up.
    return MedianPruner(n_startup_trials=_TO_COMPARE_WITH, n_warmup_steps=definition.epochs // 2)


def _suggested(trial: Trial, axis: Axis) -> Value:
    if axis.low is not None and axis.high is not None:
        return trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log)
    return trial.suggest_categorical(axis.name, axis.values)
