"""How long trainings will take, by the time of a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..plans.comparison import Plan
from ..plans.workers import cores
from ..tasks.loop import Loop
from ..tasks.splits import length
from ..tasks.task import Task
from ..trials.devices import accelerator, kind
from ..trials.feeds import total_updates
from ..trials.finding import brought, has_radius, is_wrapper
from ..trials.host import Host
from ..trials.records import Record
from ..trials.timing import pace

_PASSES = 2.0


@dataclass(frozen=True)
class Estimate:
    """The time of trainings.

    Attributes:
        rows: Seconds of one training of each row.
        at_once: How many trainings run at a time.
    """

    rows: Mapping[str, float]
    at_once: int

    def seconds(self, trainings: Mapping[str, int]) -> float:
        """Return how long so many trainings of each row take."""
        return sum(number * self.rows[name] for name, number in trainings.items()) / self.at_once


def by_steps(plan: Plan, task: Task) -> Estimate:
    """Time a few steps of the base, or of the first row, and a look at two splits.

    Args:
        plan: What is to be trained.
        task: Its task.
    """
    passes = _passes(plan)
    cheapest = min(plan.arms, key=lambda arm: passes[arm.name])
    config = next(config for config in plan.trials() if config.row == cheapest.name)
    here = kind(plan.workers.device) in ("cpu", accelerator())
    with brought(plan.source.along):
        found = pace(config, task, plan.workers.place if here else Host())
    batches = max(1, length(task.train, task.batch_size, drop_last=task.drop_last))
    rows = {}
    for arm in plan.arms:
        sizes = arm.schedules.batch_size
        updates = total_updates(sizes, arm.updates, plan.epochs, plan.batch_size, task, plan.workers.sharing)
        epochs = plan.epochs if arm.updates is None else -(-updates // batches)
        rows[arm.name] = found.trial(updates, epochs, passes[arm.name] / passes[cheapest.name])
    return Estimate(rows, _at_once(plan))


def by_record(plan: Plan, record: Record) -> Estimate:
    """Go by a training of a loop of the user's own, of which nobody else can take a step.

    Args:
        plan: What is to be trained.
        record: Of the training.
    """
    passes = _passes(plan)
    one = record.seconds / passes[record.config.row]
    return Estimate({name: one * number for name, number in passes.items()}, _at_once(plan))


def estimate(plan: Plan, task: Task | Loop, record: Record | None) -> Estimate | None:
    """Return the time of trainings; None if nobody knows it, as on a cluster."""
    if plan.workers.crew is not None:
        return None
    if isinstance(task, Loop):
        return None if record is None else by_record(plan, record)
    return by_steps(plan, task)


def about(seconds: float) -> str:
    """Say a time as one says an estimate.

    Example:
        >>> about(34.2), about(340), about(20000)
        ('about 34 s', 'about 6 min', 'about 5.6 h')
    """
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


def _passes(plan: Plan) -> dict[str, float]:
    """Return how much work an update of each row is, in gradients."""
    with brought(plan.source.along):
        return {arm.name: _PASSES if is_wrapper(arm.method) or has_radius(arm.method) else 1.0 for arm in plan.arms}


def _at_once(plan: Plan) -> int:
    jobs = max(1, plan.workers.jobs)
    on_cpu = kind(plan.workers.device) == "cpu"
    return min(jobs, max(1, cores() // plan.workers.processes)) if on_cpu else jobs
