"""A copy of a sweep as a study of Optuna in a database, where for example optuna-dashboard shows it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..errors import RunError, UserError
from ..judge.points import Point, score
from ..plans.sweep import SweepPlan
from ..store.urls import check_url, missing_driver, reason
from .sampling import direction, distributions, quiet

_NUMBER = "setting"
_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_AT_ONCE = ("already exists", "duplicate", "unique", "locked", "deadlock")  # somebody makes the tables too
_TRIES = 20

_Result = TypeVar("_Result")


class StudyCopy:
    """Gets every setting of a sweep that is settled. Nothing goes by what stands in it.

    Args:
        plan: A sweep with a storage.

    Raises:
        UserError: The URL is none, its driver is not installed, the database cannot be used, or has another study by
            this name.
    """

    def __init__(self, plan: SweepPlan) -> None:
        """Open the database, and make the study if need be."""
        assert plan.storage is not None
        self._asked, self._key = plan, plan.key
        self._url, self._shown = plan.storage, plan.shown_storage
        check_url(self._url)
        self._storage = self._open()
        try:
            with quiet():
                self._study = self._patiently(
                    lambda: optuna.create_study(
                        storage=self._storage,
                        study_name=plan.study_name,
                        direction=direction(self._asked),
                        load_if_exists=True,
                    )
                )
            self._there = self._numbers(plan.study_name)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> StudyCopy:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._close()

    def add(self, point: Point) -> None:
        """Write what has become of a setting, unless it is there.

        Raises:
            RunError: The database went on failing for a quarter of a minute.
        """
        if point.slot in self._there:
            return
        state = {"pruned": TrialState.PRUNED, "given up": TrialState.FAIL}.get(point.state, TrialState.COMPLETE)
        trial = create_trial(
            state=state,
            value=score(point, self._asked.higher_is_better) if state == TrialState.COMPLETE else None,
            params=dict(point.setting),
            distributions=distributions(self._asked),
            intermediate_values=dict(enumerate(point.curve, start=1)),
            user_attrs={_NUMBER: point.slot, "state": point.state, "sweep": self._key},
        )
        self._patiently(lambda: self._study.add_trial(trial))
        self._there.add(point.slot)

    def _numbers(self, name: str) -> set[int]:
        """Return the settings that are there; refuse a study of anything else."""
        trials = self._patiently(lambda: self._study.get_trials(deepcopy=False))
        theirs = any(trial.user_attrs.get("sweep") != self._key for trial in trials)
        if theirs or self._study.directions != [direction(self._asked)]:
            raise UserError(
                f"the study {name!r} in {self._shown} is not one of this sweep; give another name with --study"
            )
        numbers = [trial.user_attrs.get(_NUMBER) for trial in trials if trial.state != TrialState.FAIL]
        return {number for number in numbers if isinstance(number, int)}

    def _open(self) -> RDBStorage:
        # Connections that nobody keeps: a failure would leave them behind.
        options: dict[str, Any] = {"poolclass": NullPool}
        filled = self._url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template
        for left in reversed(range(_TRIES)):
            try:
                with quiet():
                    return RDBStorage(filled, options)
            except ImportError as error:
                raise missing_driver(self._url, error) from error
            except (SQLAlchemyError, StorageInternalError, RuntimeError, ValueError, TypeError) as error:
                said = reason(error, self._url)
                if not left or not any(word in said.lower() for word in _AT_ONCE):
                    raise UserError(f"the storage {self._shown} cannot be used: {said}") from None
                time.sleep(random.uniform(0.05, 0.3))
        raise AssertionError  # not reached

    def _close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _patiently(self, call: Callable[[], _Result]) -> _Result:
        """Ask the database again after a moment if it fails, as when it restarts."""
        for wait in (*_WAITS, None):
            try:
                return call()
            except (SQLAlchemyError, StorageInternalError, KeyError) as error:  # or the study was deleted
                if wait is None or isinstance(error, KeyError):
                    raise RunError(f"the storage {self._shown} failed: {reason(error, self._url)}") from None
                time.sleep(wait)
        raise AssertionError  # not reached
