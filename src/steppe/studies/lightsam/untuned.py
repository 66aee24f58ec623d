"""One setting of each method for all tasks, tested on a task that had no part in the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...lab.comparing import comparison
from ...lab.crew.runner import Observer
from ...lab.judge.comparison import Comparison
from ...lab.plans.workers import Workers
from ...lab.tasks.sources import find_task
from ...lab.trials.records import Record
from ...lab.tuning.candidates import plan_of, try_all
from .design import Preset
from .grids import Grid, grid

TUNED = "-tuned"
"""Added to the name of a method whose setting was chosen on the task itself."""


@dataclass(frozen=True)
class Untuned:
    """What one setting for all tasks is worth.

    Attributes:
        settings: By method, the setting that loses least.
        lost: By method, points of the validation metric that its setting lies below the best of all methods and
            settings of a task, in the mean over tasks.
        worst: The same on the task where it loses most.
        metric: The name of the metric of the other task.
        comparison: On the other task: these settings, and for each method the best of the narrow grid there.
    """

    settings: Mapping[str, Mapping[str, Any]]
    lost: Mapping[str, float]
    worst: Mapping[str, float]
    metric: str
    comparison: Comparison

    @property
    def recommended(self) -> str:
        """The method that loses least in the mean over tasks."""
        return min(self.lost, key=lambda method: self.lost[method])


def losses(grids: Mapping[str, Mapping[str, Grid]]) -> dict[str, list[list[float]]]:
    """Return by method, for each of its settings, the points below the best of all methods, task by task.

    Args:
        grids: By task and method; a method has the same settings on all tasks.

    Example:
        >>> one = {"sgd": Grid([{}, {}], {0: [70.0, 60.0]}, [0, 0]), "sam": Grid([{}], {0: [80.0]}, [0])}
        >>> losses({"one": one})
        {'sgd': [[10.0], [20.0]], 'sam': [[0.0]]}
    """
    best = {task: max(max(found.means) for found in of.values()) for task, of in grids.items()}
    methods = next(iter(grids.values()))
    return {
        method: [
            [best[task] - of[method].means[index] for task, of in grids.items()]
            for index in range(len(methods[method].settings))
        ]
        for method in methods
    }


def try_untuned(
    design: Preset,
    grids: Mapping[str, Mapping[str, Grid]],
    task: str,
    out: Path,
    workers: Workers,
    watch: Callable[[], AbstractContextManager[Observer]],
) -> Untuned:
    """Choose one setting of each method for all tasks, and test it on another one.

    Args:
        design: The setting of the study.
        grids: By task and method.
        task: The other task.
        out: The folder of the study.
        workers: Who carries trials out.
        watch: Makes what is told how it proceeds.

    Raises:
        UserError: The task is wrong.
        RunError: A trial failed; what was finished is kept.
    """
    candidates = {method: design.settings(method) for method in design.centre}
    lost = losses(grids)
    chosen = {method: min(range(len(of)), key=lambda i: fmean(of[i])) for method, of in lost.items()}
    settings = {method: candidates[method][index] for method, index in chosen.items()}
    folder = out / find_task(task).file_name
    narrow = {method: [candidates[method][i] for i in design.inside(method, "narrow")] for method in candidates}
    with watch() as observer:
        found, _ = try_all(
            task, "sgd", narrow, seeds=design.seeds, epochs=design.epochs, out=folder / "tuning", workers=workers,
            observer=observer,
        )  # fmt: skip
    tuned = {method: entries[_best(design, entries, found[method])] for method, entries in narrow.items()}
    arms = {**settings, **{method + TUNED: setting for method, setting in tuned.items()}}
    plan = plan_of(task, "sgd", arms, design.test_seeds, folder, workers, epochs=design.epochs)
    with watch() as observer:
        compared = comparison.run(plan, observer)
    return Untuned(
        settings=settings,
        lost={method: fmean(lost[method][index]) for method, index in chosen.items()},
        worst={method: max(lost[method][index]) for method, index in chosen.items()},
        metric=plan.metric_name,
        comparison=compared,
    )


def _best(design: Preset, entries: Sequence[Mapping[str, Any]], records: Sequence[Sequence[Record]]) -> int:
    return grid(design, entries, records).best(range(len(entries)))
