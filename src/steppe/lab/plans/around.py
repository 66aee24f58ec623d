"""Sweeps of a comparison's rows, around what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..errors import require
from .arms import Arm
from .comparison import FIRST_SEED, Plan
from .grid import Axis
from .sweep import SweepPlan

_STEP = 10**0.5

FOLDER = "tuning"
"""Where such sweeps are kept, in the folder of the comparison."""


def around(plan: Plan, arm: Arm, axes: Sequence[Axis], settings: int, seeds: int) -> SweepPlan:
    """Return the sweep that chooses a row's settings.

    The first of them is what the row has, the next two have the first axis's number times and over the root of ten. A
    radius and a weight decay that are drawn with it would else decide which row may have a good learning rate.

    Args:
        plan: The comparison.
        arm: The row.
        axes: What is varied.
        settings: How many are tried.
        seeds: Trainings of each, from seeds that the comparison does not use.

    Raises:
        UserError: What chooses settings is not installed.
    """
    require("optuna")
    kept = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    names = [axis.name for axis in axes]
    fixed = {name: value for name, value in arm.hyperparameters.items() if name not in names}
    kept |= {
        "arms": (Arm(arm.name, arm.method, fixed, arm.schedules, arm.updates),),
        "seeds": tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        "out": plan.out / FOLDER,
        "keep_weights": False,
        "measure": False,
        "log": (),
    }
    own = {name: arm.hyperparameters[name] for name in names}
    first = [own, *({**own, names[0]: _beside(own[names[0]], factor)} for factor in (_STEP, 1 / _STEP))]
    return SweepPlan(**kept, grid=tuple(axes), sampler="tpe", tried=settings, first=tuple(first[:settings]))


def _beside(value: Any, factor: float) -> float:
    return float(f"{value * factor:.4g}")
