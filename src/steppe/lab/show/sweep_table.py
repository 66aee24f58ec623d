"""The best settings: the same cells for the terminal, for Markdown and for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...drawing.summary import Summary
from ..judge.points import Point
from ..judge.words import with_interval
from ..plans.grid import shown

if TYPE_CHECKING:
    from ..judge.sweep import Sweep

SHOWN = 5
NOTE = (
    "Mean over seeds [its 95 % interval, Student's t]. Settings are chosen by the validation metric; the test metric "
    "is shown for the best one alone."
)


def headers(sweep: Sweep) -> list[str]:
    """Return the titles of the columns."""
    asked = sweep.plan
    names = [axis.name for axis in asked.grid]
    return ["", *names, f"validation {asked.metric_name}", f"test {asked.metric_name}", "train loss", "seconds"]


def cells(sweep: Sweep) -> list[list[str]]:
    """Return the texts of the table, the best setting first."""
    return [_cells(sweep, rank, point) for rank, point in enumerate(sweep.ranked[:SHOWN], start=1)]


def summary(sweep: Sweep) -> Summary:
    """Return table, verdict and note; the best setting is bold."""
    return Summary(sweep.plan.title, [headers(sweep), *cells(sweep)], sweep.verdict, NOTE, sweep.command, [0])


def _cells(sweep: Sweep, rank: int, point: Point) -> list[str]:
    setting, digits = point.setting, sweep.digits
    losses = [result.train_loss for result in point.seeds if result.train_loss is not None]
    return [
        str(rank),
        *(shown(setting[axis.name]) for axis in sweep.plan.grid),
        with_interval(point.validation, digits) if point.validation is not None else "n/a",
        with_interval(point.test, digits) if point is sweep.best and point.test is not None else "-",
        f"{sum(losses) / len(losses):#.3g}" if losses else "n/a",
        f"{point.seconds:.3g}",
    ]
