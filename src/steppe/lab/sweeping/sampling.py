"""Settings that a sampler of Optuna chooses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from ..judge.points import Point, score
from ..plans.grid import Axis, Setting, rounded
from ..plans.sweep import SweepPlan


class Sampler:
    """Chooses the settings of a sweep one after the other.

    What it chooses depends on the number of the setting and on what it was told, and on nothing else.

    Args:
        plan: Of the sweep.
    """

    def __init__(self, plan: SweepPlan) -> None:
        """See the class."""
        self._asked = plan
        self._study = self._new_study()
        self._trials: dict[int, Trial] = {}

    def choose(self, slot: int) -> Setting:
        """Choose a setting.

        Args:
            slot: Its number, one more than that of the one before.
        """
        if self._asked.sampler == "random":  # learns nothing, so it need not remember
            study = self._new_study()
            self._begin_with_first(study, slot)
            study.sampler = self._sampler(slot)
            return self._setting(study.ask(distributions(self._asked)))
        self._begin_with_first(self._study, slot)
        self._study.sampler = self._sampler(slot)
        return self._suggest(slot)

    def remember(self, slot: int, setting: Setting) -> None:
        """Take a setting that was chosen earlier.

        Args:
            slot: See `choose`.
            setting: The setting.
        """
        if self._asked.sampler != "random":
            self._study.enqueue_trial(setting)
            self._suggest(slot)

    def learn(self, found: Point) -> None:
        """Take what has become of a setting."""
        if self._asked.sampler == "random":
            return
        trial = self._trials.pop(found.slot)
        if found.state == "pruned":
            for epoch, value in enumerate(found.curve, start=1):
                trial.report(value, epoch)
            self._study.tell(trial, state=TrialState.PRUNED)
        elif found.state == "given up":
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, score(found, self._asked.higher_is_better))

    def _begin_with_first(self, study: optuna.Study, slot: int) -> None:
        if slot < len(self._asked.first):
            study.enqueue_trial(self._asked.first[slot])

    def _suggest(self, slot: int) -> Setting:
        self._trials[slot] = trial = self._study.ask(distributions(self._asked))
        return self._setting(trial)

    def _setting(self, trial: Trial) -> Setting:
        return {axis.name: trial.params[axis.name] for axis in self._asked.grid}

    def _new_study(self) -> optuna.Study:
        with quiet():
            return optuna.create_study(direction=direction(self._asked))

    def _sampler(self, slot: int) -> BaseSampler:
        # A new one each time, with a seed unlike those of the slots beside it: NumPy's first numbers from the seeds 0
        # and 3 are nearly the same.
        seed = Random(slot).getrandbits(32)
        if self._asked.sampler == "random":
            return _RoundRandomSampler(seed)
        return _RoundTPESampler(seed=seed, constant_liar=True)  # of settings that still run it expects the worst


class _RoundRandomSampler(RandomSampler):
    """Draws numbers that can be read and pasted."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        return _round(super().sample_independent(study, trial, param_name, param_distribution), param_distribution)


class _RoundTPESampler(TPESampler):
    """Likewise."""

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        found = super().sample_relative(study, trial, search_space)
        return {name: _round(value, search_space[name]) for name, value in found.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        return _round(super().sample_independent(study, trial, param_name, param_distribution), param_distribution)


def _round(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(rounded(value), distribution.low), distribution.high)


def direction(plan: SweepPlan) -> StudyDirection:
    """Return which way is better, as Optuna says it."""
    return StudyDirection.MAXIMIZE if plan.higher_is_better else StudyDirection.MINIMIZE


def distributions(plan: SweepPlan) -> dict[str, BaseDistribution]:
    """Return what each axis may be."""
    return {axis.name: _distribution(axis) for axis in plan.grid}


@contextmanager
def quiet() -> Iterator[None]:
    """Within this, Optuna does not report what it does."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.low is not None and axis.high is not None:
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    return CategoricalDistribution(axis.values)
