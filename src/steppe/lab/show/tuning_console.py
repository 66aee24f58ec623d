"""What `steppe compare` shows while rows choose their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console

from ..judge.points import Point
from ..judge.sweep import Sweep
from ..judge.words import decimals_of, with_interval
from ..plans.grid import words
from ..plans.sweep import SweepPlan
from ..trials.records import TrialConfig
from .console import LiveLine


class Found(Protocol):
    """A setting of a row that was tried."""

    @property
    def plan(self) -> SweepPlan:
        """The row's sweep."""

    @property
    def point(self) -> Point:
        """What has become of it."""


class TuningObserver(LiveLine):
    """Shows a live line in a terminal, and one plain line per setting elsewhere."""

    def __init__(self, console: Console) -> None:
        """Prepare to show progress."""
        super().__init__("settings", console, running="[dim]")

    def begin(self, total: int, kept: Sequence[Found]) -> None:
        """Say how much there is to do."""
        self._begin(total, len(kept), f"{len(kept)} of {total} settings were tried in an earlier run")

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """Show what runs now."""
        self._update(running=", ".join(dict.fromkeys(trial.row for trial in trials)))

    def finished(self, found: Found) -> None:
        """Count a setting."""
        self._count(f"{found.plan.arm.name}, {result(found.plan, found.point)}")


def result(plan: SweepPlan, point: Point) -> str:
    """Say what has become of a setting."""
    text = f"{words(point.setting)}: "
    if point.validation is None:
        epochs = [found.diverged for found in point.seeds if found.diverged is not None]
        return text + (f"diverged in epoch {epochs[0]}" if epochs else point.state)
    mean = with_interval(point.validation, decimals_of([point.validation.value]))
    return text + f"validation {plan.metric_name} {mean}, {point.seconds:.1f} s"


def show_chosen(found: Mapping[str, Sweep], console: Console) -> None:
    """Print what was chosen for each row."""
    for name, sweep in found.items():
        text = f"{name}: all {len(sweep.points)} settings diverged, so that it stays as it is"
        if sweep.best is not None and sweep.best.validation is not None:
            metric = f"validation {sweep.plan.metric_name} {with_interval(sweep.best.validation, sweep.digits)}"
            text = f"{name}, best of {len(sweep.points)}: {words(sweep.best.setting)}, {metric}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
