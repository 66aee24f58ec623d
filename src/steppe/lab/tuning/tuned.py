"""Comparisons that are fair by construction: every row chooses its settings out of as many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from ..crew import runner
from ..errors import RunError, UserError
from ..files import check_writable
from ..judge.sweep import Sweep
from ..plans.arms import Arm, model_for
from ..plans.around import FOLDER, around
from ..plans.budget import FEWEST, Budget
from ..plans.choices import Choice, Tried
from ..plans.comparison import Plan, counted, named
from ..plans.grid import MOST_SETTINGS, Axis
from ..plans.options import packaged_settings
from ..plans.sweep import SweepPlan
from ..store import budgets, records
from ..tasks.loop import Loop
from ..tasks.task import Task
from ..trials import optimizers
from ..trials.finding import brought
from ..trials.records import Record
from .estimate import Estimate, about, estimate
from .ranges import axes
from .rows import Observer, Rows

SEEDS = 2
"""Trainings of every setting. With one, a setting that ruins every second training may look like the best."""


@dataclass(frozen=True)
class Tuning:
    """Which rows of a comparison choose their settings, and out of how many.

    Attributes:
        plan: The comparison.
        rows: The searches; None if no row chooses.
        time: How long trainings take; None if nobody knows it, or nothing is left to train.
        why_not: Why no row chooses, where the user may wonder.
    """

    plan: Plan
    rows: Rows | None = None
    time: Estimate | None = None
    why_not: str = ""

    @property
    def words(self) -> str:
        """What will be done, and how long that takes; nothing if no row chooses, or all have chosen."""
        if self.rows is None or self.rows.done:
            return self.why_not
        first = next(iter(self.rows.plans.values()))
        choosing = {name: SEEDS * left for name, left in self.rows.left.items()}
        comparing = dict.fromkeys(self.plan.names, len(self.plan.seeds))
        rows, number = len(self.rows.plans), first.count
        return (
            f"{counted(rows, 'row')} {'chooses' if rows == 1 else 'choose'} out of {number} settings "
            f"({self._trainings(choosing, ', ')}), then {self._trainings(comparing, ' (')}; "
            "--tune 0 leaves settings as they are"
        )

    def _trainings(self, numbers: Mapping[str, int], before: str) -> str:
        said = counted(sum(numbers.values()), "training")
        if self.time is None:
            return said
        return f"{said}{before}{about(self.time.seconds(numbers))}{')' if '(' in before else ''}"


def prepare(
    plan: Plan,
    task: Task | Loop,
    budget: Budget,
    executor: Executor | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Tuning:
    """Say which rows choose their settings, and out of how many, and read what was chosen before.

    Of a loop of the user's own one trial is trained, which tells by what settings can be chosen.

    Args:
        plan: The comparison.
        task: Its task.
        budget: What tuning may cost.
        executor: Carries trials out, if not whom the plan names.
        say: Is told of that trial, which may take its time.

    Raises:
        UserError: What an earlier run has left cannot be read, or nobody knows what a time is enough for.
        RunError: The trial of the user's loop failed.
    """
    varied = _varied(plan, task, budget)
    if not varied:
        return Tuning(plan)
    check_writable(plan.out / FOLDER, "trials", "settings")
    record = None
    if isinstance(task, Loop):
        record = _tried(plan, varied, executor, say)
        if record.final is None or record.final.validation_metric is None:
            return Tuning(plan, why_not=_nothing_to_choose_by(plan, record))
        plan = named(plan, [record])
    rows = Rows(_sweeps(plan, varied, budget.settings or FEWEST))
    time = None
    if budget.seconds is not None:
        number, time = _number(plan, task, record, rows.plans, budget.seconds, executor)
        rows = Rows(_sweeps(plan, varied, number))
    if time is None and not rows.done and executor is None:
        time = estimate(plan, task, record)
    return Tuning(plan, rows, time)


def tune(tuning: Tuning, observer: Observer, executor: Executor | None = None) -> tuple[Plan, dict[str, Sweep]]:
    """Choose the settings of every row of a comparison on validation data.

    For every row Optuna's TPE tries as many settings, each from two seeds that the comparison does not use. The first
    one is what the row has anyway, so that none ends with one that is worse there; the next two have its learning rate
    times and over the root of ten, so that all rows try the same rates beside what else they have. Two numbers vary, by
    factors of 1/10 to 10 around that: learning rate and radius, or, of methods without a radius, learning rate and
    weight decay.
    What was tried is kept in ``tuning`` in the folder of the comparison: the same call goes on where it was stopped.

    Args:
        tuning: From `prepare`.
        observer: Is told how it proceeds.
        executor: As of `prepare`.

    Returns:
        The comparison with what was chosen, and what was found by row. A row of which all settings diverged stays as
        it was.

    Raises:
        RunError: A training failed, or workers died at a setting; what was finished is kept.
    """
    if tuning.rows is None:
        return tuning.plan, {}
    tuning.rows.carry_out(observer, executor)
    found = tuning.rows.found
    arms = tuple(_chosen(arm, found[arm.name]) if arm.name in found else arm for arm in tuning.plan.arms)
    return replace(tuning.plan, arms=arms), found


def _varied(plan: Plan, task: Task | Loop, budget: Budget) -> dict[str, tuple[Axis, ...]]:
    """Return what is varied of each row that is to choose."""
    if budget.settings == 0 or (budget.auto and plan.source.name in packaged_settings()):
        return {}
    arms = [arm for arm in plan.arms if arm.set_by == "default" or not budget.auto]
    model = None if isinstance(task, Loop) else model_for(arms, plan.inner, task.model)
    with brought(plan.source.along):
        found = {
            arm.name: axes(arm, plan.inner, model if optimizers.needs_model(arm.method, plan.inner) else None)
            for arm in arms
        }
    return {name: varied for name, varied in found.items() if varied}


def _sweeps(plan: Plan, varied: Mapping[str, tuple[Axis, ...]], settings: int) -> dict[str, SweepPlan]:
    arms = {arm.name: arm for arm in plan.arms}
    return {name: around(plan, arms[name], of, settings, SEEDS) for name, of in varied.items()}


def _tried(
    plan: Plan, varied: Mapping[str, tuple[Axis, ...]], executor: Executor | None, say: Callable[[str], object]
) -> Record:
    """Train one trial of tuning: the first of the first row."""
    first = next(iter(_sweeps(plan, varied, FEWEST).values()))
    config = first.trial(first.first[0], first.seeds[0])
    if records.read(first.out, config) is None:
        say(f"one training tells by what {plan.source.name} can choose settings, and how long that takes")
    return runner.run_trials([config], plan.source, first.out, plan.workers, executor=executor)[0]


def _nothing_to_choose_by(plan: Plan, record: Record) -> str:
    if record.final is None:
        return f"settings are not tuned: the first training of {plan.source.name} diverged"
    return (
        f"settings are not tuned: {plan.source.name} tells run.report no metric on validation data, by which they "
        "could be chosen"
    )


def _number(
    plan: Plan,
    task: Task | Loop,
    record: Record | None,
    sweeps: Mapping[str, SweepPlan],
    seconds: float,
    executor: Executor | None,
) -> tuple[int, Estimate | None]:
    """Decide once how many settings of each row a budget of time is."""
    folder = plan.out / FOLDER
    tuned: dict[str, Any] = {"seconds": seconds, "rows": [sweep.key for sweep in sweeps.values()]}
    key = hashlib.sha256(json.dumps(tuned).encode()).hexdigest()[:16]
    kept = budgets.read(folder, key)
    if kept is not None:
        return kept, None
    time = estimate(plan, task, record) if executor is None else None
    if time is None:
        raise UserError("how long a training takes elsewhere is not known; give --tune a number of settings")
    number = int(seconds / time.seconds(dict.fromkeys(sweeps, SEEDS)))
    number = min(MOST_SETTINGS, max(FEWEST, number))
    try:
        budgets.write(folder, key, number)
    except OSError as error:
        raise RunError(f"a budget cannot be written to {folder}: {error.strerror}") from error
    return number, time


def _chosen(arm: Arm, found: Sweep) -> Arm:
    tried = tuple(
        Tried(setting=point.setting, validation=None if point.validation is None else point.validation.value)
        for point in found.points
    )
    best = found.best
    choice = Choice(
        settings=len(tried),
        seeds=len(found.plan.seeds),
        varied=tuple(axis.name for axis in found.plan.grid),
        chosen=found.setting,
        validation=best.validation.value if best is not None and best.validation is not None else None,
        tried=tried,
    )
    if found.setting is None:
        return replace(arm, choice=choice)
    return replace(arm, hyperparameters={**arm.hyperparameters, **found.setting}, set_by="chosen", choice=choice)
