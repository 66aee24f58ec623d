"""What ``--tune`` does in front of a command."""

from __future__ import annotations

from rich.console import Console

from ..judge.words import with_interval
from ..plans.grid import words
from ..plans.options import Options
from ..plans.sweep import SweepPlan
from ..show.sweep_console import ConsoleObserver
from .tuned import tune


def tuned(asked: Options, trials: int, console: Console) -> Options:
    """Choose the settings of a comparison, and show what was chosen."""

    def watch(plan: SweepPlan) -> ConsoleObserver:
        console.print(f"{plan.arm.name} chooses out of {trials}", highlight=False, markup=False, soft_wrap=True)
        return ConsoleObserver(plan, console)

    options, found = tune(asked, trials, watch)
    for name, sweep in found.items():
        assert sweep.best is not None
        assert sweep.best.validation is not None
        metric = f"validation {sweep.plan.metric_name} {with_interval(sweep.best.validation, sweep.digits)}"
        chosen = f"{name}, best of {trials}: {words(sweep.best.setting)}, {metric}"
        console.print(chosen, highlight=False, markup=False, soft_wrap=True)
    return options
