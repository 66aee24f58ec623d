"""Carry the study out: a comparison for every task, then the claims."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lab.comparing import comparison
from ...lab.crew.runner import Observer
from ...lab.judge.comparison import Comparison
from ...lab.plans import options as config
from ...lab.plans.comparison import Plan
from ...lab.plans.comparison import plan as plan_of
from ...lab.plans.workers import Workers
from ...lab.tasks.sources import find_task
from ...lab.tasks.splits import size
from .claims import Finding, claims, judge
from .design import AT_EQUAL_UPDATES, Preset

_TASKS = Path(__file__).with_name("tasks.py")


@dataclass(frozen=True)
class Study:
    """What was found on one task.

    Attributes:
        preset: The name of the setting.
        design: The setting.
        comparison: All columns at both budgets.
        findings: Claim by claim; by budget, equal epochs first.
    """

    preset: str
    design: Preset
    comparison: Comparison
    findings: dict[str, list[Finding]]


def plans(design: Preset, out: Path, workers: Workers | None = None, seeds: int | None = None) -> list[Plan]:
    """Plan a comparison for every task, and check all that can be checked before training.

    Args:
        design: The setting.
        out: The folder of the study; every comparison has one of its own in it.
        workers: Who carries trials out; by default processes here.
        seeds: In place of the setting's.

    Raises:
        UserError: The input is wrong, or the data cannot be had.
    """
    found = []
    for task in design.tasks:
        name = task if task.startswith("mnist1d") else f"{_TASKS}:{task.replace('-', '_')}"
        examples = size(find_task(name).task().train)
        settings = design.settings(examples)
        asked: dict[str, Any] = {
            "base": "sgd",
            "methods": list(settings),
            "settings": settings,
            "seeds": design.seeds if seeds is None else seeds,
            "epochs": design.epochs,
            "measure": True,
        }
        found.append(plan_of(name, config.from_flags(asked), out / task, workers))
    return found


def carry_out(preset: str, design: Preset, plan: Plan, observer: Observer | None = None) -> Study:
    """Run a plan, or what is missing of it, and judge the claims.

    Args:
        preset: The name of the setting.
        design: The setting.
        plan: Of one task.
        observer: Is told how the comparison proceeds.

    Raises:
        RunError: A trial failed; what was finished is kept.
    """
    found = comparison.run(plan, observer)
    budgets = ("", AT_EQUAL_UPDATES)
    judged = {budget: [judge(claim, found.records) for claim in claims(budget)] for budget in budgets}
    return Study(preset, design, found, judged)
