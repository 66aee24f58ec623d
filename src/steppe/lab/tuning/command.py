"""What ``--tune`` does in front of a comparison."""

from __future__ import annotations

from rich.console import Console

from ..plans.budget import Budget
from ..plans.comparison import Plan
from ..show.tuning_console import TuningObserver, show_chosen
from ..tasks.loop import Loop
from ..tasks.task import Task
from .tuned import prepare, tune


def tuned(plan: Plan, task: Task | Loop, budget: Budget, console: Console) -> Plan:
    """Choose the settings of a comparison, and show what will be done, and what was chosen."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    tuning = prepare(plan, task, budget, say=say)
    if tuning.words:
        say(tuning.words)
    with TuningObserver(console) as observer:
        plan, found = tune(tuning, observer)
    show_chosen(found, console)
    return plan
