"""What `steppe sweep` shows: progress while it runs, the table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..judge.points import Point, in_order
from ..judge.sweep import Sweep
from ..judge.words import decimals_of
from ..plans.grid import words
from ..plans.sweep import SweepPlan
from ..trials.records import TrialConfig
from . import sweep_table as table
from .console import WIDE, LiveLine
from .tuning_console import result


class ConsoleObserver(LiveLine):
    """Shows a live line in a terminal, and one plain line per setting elsewhere.

    Args:
        plan: Of the sweep.
        console: Where to show it.
    """

    def __init__(self, plan: SweepPlan, console: Console) -> None:
        """Prepare to show progress."""
        super().__init__("settings", console, best="", running="[dim]")
        self._asked = plan
        self._best: Point | None = None

    def begin(self, total: int, kept: Sequence[Point]) -> None:
        """Say how much there is to do."""
        for point in kept:
            self._compare(point)
        self._begin(total, len(kept), f"{len(kept)} of {total} settings were done before")

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """Show what runs now."""
        self._update(running=f"{len(trials)} training{'s' if len(trials) > 1 else ''}")

    def finished(self, found: Point) -> None:
        """Count a setting."""
        self._compare(found)
        self._count(result(self._asked, found))
        if self._best is not None and self._best.validation is not None:
            value = self._best.validation.value
            self._update(best=f"best {value:.{decimals_of([value])}f}: {words(self._best.setting)}")

    def _compare(self, point: Point) -> None:
        both = [point] if self._best is None else [self._best, point]
        self._best = next(iter(in_order(both, self._asked.higher_is_better)), None)


def show(sweep: Sweep, console: Console) -> None:
    """Print the table of the best settings and what it means.

    Args:
        sweep: What was found.
        console: Where to print.
    """
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = WIDE
    console.print("", f"[italic]{escape(sweep.plan.title)}[/]", sep="\n", highlight=False)
    rows = table.cells(sweep)
    if rows:
        grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for title in table.headers(sweep):
            grid.add_column("\n".join(escape(title).rsplit(" ", 1)), justify="right", no_wrap=True)
        for number, cells in enumerate(rows):
            grid.add_row(*map(escape, cells), style="bold" if number == 0 else None)
        console.print(grid, "", sep="\n")
    for sentence in sweep.verdict:
        console.print(escape(sentence), highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"[dim]{escape(table.NOTE)}[/]", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"report: {escape(str(sweep.plan.out / 'report.html'))}", highlight=False, soft_wrap=True)
