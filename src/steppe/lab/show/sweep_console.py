"""What `steppe sweep` shows: progress of all workers while it runs, the table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..judge.points import Point
from ..judge.sweep import Sweep
from ..judge.verdict import decimals_of, with_error
from ..plans.definition import Definition
from ..plans.grid import words
from . import sweep_table as table
from .console import WIDE, LiveLine

_BETWEEN = 60.0  # seconds between two lines that say what is waited for


class ConsoleObserver(LiveLine):
    """Shows a live line in a terminal, and one plain line per setting elsewhere.

    Args:
        definition: Of the sweep.
        console: Where to show it.
    """

    def __init__(self, definition: Definition, console: Console) -> None:
        """Prepare to show progress."""
        super().__init__("settings", console, counts="[dim]", best="")
        self._asked = definition
        self._seen: set[int] = set()
        self._session, self._said, self._waits = "", 0.0, False

    def begin(self, points: Sequence[Point], session: str) -> None:
        """Say what there is already."""
        self._session, self._said = session, time.monotonic()
        self._seen = {point.slot for point in points if point.settled}
        if self._seen:
            self._print(f"{len(self._seen)} of {len(points)} settings were done before")
        self.look(points)
        if self._console.is_terminal and len(self._seen) < len(points):
            self._progress.start()

    def look(self, points: Sequence[Point]) -> None:
        """Show what is new."""
        new = [point for point in points if point.settled and point.slot not in self._seen]
        for point in new:
            self._seen.add(point.slot)
            if not self._console.is_terminal:
                self._print(f"{len(self._seen)}/{len(points)}  {self._result(point)}")
                self._said = time.monotonic()
        counts = self.counts(points)
        only_waits = counts.startswith("waiting")
        long_ago = time.monotonic() - self._said > _BETWEEN
        if not self._console.is_terminal and (long_ago or (only_waits and not self._waits)):
            self._print(f"{len(self._seen)}/{len(points)}  {counts}")
            self._said = time.monotonic()
        self._waits = only_waits
        self._progress.update(
            self._bar,
            total=len(points),
            completed=len(self._seen),
            counts=escape(counts),
            best=escape(self._best(points)),
        )

    def counts(self, points: Sequence[Point]) -> str:
        """Return what is not done, and what went wrong, in words."""
        here = sum(point.state == "running" and point.session == self._session for point in points)
        elsewhere = sum(point.state == "running" and point.session != self._session for point in points)
        waiting = sum(point.state == "waiting" for point in points)
        said = [f"{here} running here"] if here else []
        if elsewhere:
            said.append(f"{elsewhere} running elsewhere" if here or waiting else f"waiting for {elsewhere} elsewhere")
        said += [f"{waiting} to do"] if waiting else []
        for state in ("diverged", "pruned", "given up"):
            count = sum(point.state == state for point in points)
            said += [f"{count} {state}"] if count else []
        return ", ".join(said)

    def _best(self, points: Sequence[Point]) -> str:
        found = [(point.validation.value, point) for point in points if point.validation is not None]
        if not found:
            return ""
        choose = max if self._asked.higher_is_better else min
        value, best = choose(found, key=lambda pair: pair[0])
        return f"best {value:.{decimals_of([value])}f}: {words(best.setting or {})}"

    def _result(self, point: Point) -> str:
        text = f"{words(point.setting or {})}: "
        if point.validation is None:
            epochs = [result.diverged for result in point.seeds if result.diverged is not None]
            return text + (f"diverged in epoch {epochs[0]}" if epochs else point.state)
        mean = with_error(point.validation, decimals_of([point.validation.value]))
        return text + f"validation {self._asked.metric} {mean}, {point.seconds:.1f} s"


def show(sweep: Sweep, console: Console) -> None:
    """Print the table of the best settings and what it means.

    Args:
        sweep: What was found.
        console: Where to print.
    """
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = WIDE
    console.print("", f"[italic]{escape(table.title(sweep))}[/]", sep="\n", highlight=False)
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
