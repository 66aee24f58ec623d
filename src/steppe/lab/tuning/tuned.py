"""Comparisons that are fair by construction: every row's settings are chosen by a sweep of the same size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from pathlib import Path

from ..crew import runner
from ..crew.jobs import Crew
from ..errors import RunError
from ..judge.sweep import Sweep
from ..plans import comparison
from ..plans.arms import Arm
from ..plans.grid import shown
from ..plans.options import Entry, Options
from ..plans.sweep import SweepPlan, plan
from ..sweeping import sweeping
from ..sweeping.sweeping import Observer

SEEDS = 2
"""Trainings of every setting. With one, a setting that ruins every second training may look like the best."""

_AROUND = 10.0
_VARIED = ("lr", "rho")
_INSTEAD_OF_RHO = "weight_decay"


def tune(
    asked: Options, trials: int, watch: Callable[[SweepPlan], AbstractContextManager[Observer | None]] | None = None
) -> tuple[Options, dict[str, Sweep]]:
    """Choose the settings of every row of a comparison on validation data.

    For every row Optuna's TPE tries so many settings, each from two seeds that the comparison does not use. It varies
    two numbers by factors of 1/10 to 10 around what they would be otherwise: learning rate and radius, or, of methods
    without a radius, learning rate and weight decay. The sweeps are kept in ``tuning`` in the folder of the comparison,
    so that the same call goes on where it was stopped, and finished ones cost nothing. A task that takes the seed
    splits the same data otherwise for those two seeds; test examples of the comparison may be among what they train
    on.

    Args:
        asked: As of the comparison.
        trials: Settings of every row, at least 1.
        watch: Makes what is told how a sweep proceeds.

    Returns:
        The options with what was chosen, and the sweeps by row.

    Raises:
        UserError: The input is wrong; nothing was trained.
        RunError: A training failed, or all settings of a row diverged; what was finished is kept.
    """
    task = asked.task or "mnist1d"
    compared = comparison.plan(task, asked, None if asked.out is None else Path(asked.out))
    made = {
        arm.name: plan(
            task,
            ranges(arm),
            asked.model_copy(
                update={
                    "methods": (arm.words,),
                    "seeds": SEEDS,
                    "log": None,
                    "out": str(compared.out / "tuning" / arm.name),
                    "settings": {**_other_arms(asked), arm.name: _without(asked, arm)},
                }
            ),
            sampler="tpe",
            trials=trials,
        )
        for arm in compared.arms
    }
    found: dict[str, Sweep] = {}
    with ExitStack() as stack:

        @cache
        def crew() -> Crew:
            return stack.enter_context(runner.joined(compared.workers))

        for name, one in made.items():
            with watch(one) if watch else nullcontext() as observer:
                found[name] = sweeping.run(one, observer, joined=crew)
            if any(point.state == "given up" for point in found[name].points):
                raise RunError(f"settings of {name} were given up, since workers died; the same command goes on")
            if found[name].setting is None:
                raise RunError(f"all {trials} settings of {name} diverged; give it a smaller lr in the settings")
    settings = dict(asked.settings)
    for arm in compared.arms:
        entry = settings.get(arm.name, Entry(name=arm.name))
        chosen = {**entry.hyperparameters, **(found[arm.name].setting or {})}
        settings[arm.name] = entry.model_copy(update={"hyperparameters": chosen})
    return asked.model_copy(update={"settings": settings}), found


def ranges(arm: Arm) -> list[str]:
    """Return what is varied of a row, as a sweep takes it.

    Example:
        >>> ranges(Arm("sam", "sam", {"lr": 0.1, "momentum": 0.9, "rho": 0.05}))
        ['lr=0.01:1:log', 'rho=0.005:0.5:log']
    """
    names = [name for name in _VARIED if _above_zero(arm, name)]
    if "rho" not in names and _above_zero(arm, _INSTEAD_OF_RHO):
        names.append(_INSTEAD_OF_RHO)
    middle = {name: float(arm.hyperparameters[name]) for name in names}
    return [f"{name}={shown(_round(x / _AROUND))}:{shown(_round(x * _AROUND))}:log" for name, x in middle.items()]


def _above_zero(arm: Arm, name: str) -> bool:
    value = arm.hyperparameters.get(name, 0.0)
    return not isinstance(value, tuple) and value > 0


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _other_arms(asked: Options) -> dict[str, Entry]:
    return {name: entry for name, entry in asked.settings.items() if entry.method is not None}


def _without(asked: Options, arm: Arm) -> Entry:
    """Return what the user says of a row, without what is varied."""
    entry = asked.settings.get(arm.name, Entry(name=arm.name))
    varied = {text.partition("=")[0] for text in ranges(arm)}
    kept = {name: value for name, value in entry.hyperparameters.items() if name not in varied}
    return entry.model_copy(update={"hyperparameters": kept})
