"""What `steppe compare` shows: progress while it runs, in notebooks too, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ..judge.comparison import Comparison
from ..trials.records import Record, TrialConfig
from . import table

if TYPE_CHECKING:
    from typing_extensions import Self

WIDE = 160
_ANY_WIDTH = 10_000

_Observer = TypeVar("_Observer")


class LiveLine:
    """A line that shows progress in a terminal or a notebook.

    Args:
        what: Is counted.
        console: Where to show it.
        **fields: The styles of further columns, by the names of what is to be shown in them.
    """

    def __init__(self, what: str, console: Console, **fields: str) -> None:
        """Prepare to show progress."""
        self._console, self._what = console, what
        columns = {"left": "", **fields}
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *(TextColumn(f"{style}{{task.fields[{name}]}}") for name, style in columns.items()),
            console=console,
            transient=True,
        )
        nothing: dict[str, Any] = dict.fromkeys(columns, "")
        self._bar = self._progress.add_task(what, total=None, **nothing)
        self._total = self._done = self._finished_here = 0
        self._begun = time.monotonic()
        self._cell: Any = None  # what is below the cell of a notebook

    def __enter__(self) -> Self:
        """Do nothing yet: there is nothing to show before the work begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the live line; in a notebook, where it would leave a gap, say how far it came."""
        if self._progress.live.is_started:
            self._progress.stop()
        if self._cell is not None:
            self._cell.update(_Plain(f"{self._done} of {self._total} {self._what}"))

    def warn(self, message: str) -> None:
        """Show a warning."""
        self._print(f"warning: {message}")

    def note(self, message: str) -> None:
        """Show what is good to know."""
        self._print(message)

    def _begin(self, total: int, kept: int, said: str) -> None:
        """Start the clock; what was kept of an earlier run is said."""
        self._total, self._done, self._begun = total, kept, time.monotonic()
        if kept:
            self._print(said)
        if self._console.is_terminal and kept < total:
            self._progress.start()
        if self._console.is_jupyter and kept < total:
            from IPython.display import display

            show_below: Any = display
            self._cell = show_below(self._progress, display_id=True)
        self._update()

    def _count(self, said: str) -> None:
        """Count one that is finished, and say it where there is no live line."""
        self._done += 1
        self._finished_here += 1
        if not (self._console.is_terminal or self._console.is_jupyter):
            self._print(f"{self._done}/{self._total}  {said}")
        self._update(left=self._left())

    def _update(self, **fields: str) -> None:
        shown: dict[str, Any] = {name: escape(text) for name, text in fields.items()}
        self._progress.update(self._bar, total=self._total, completed=self._done, **shown)
        if self._cell is not None:  # rich's own live lines need ipywidgets there
            self._cell.update(self._progress)

    def _left(self) -> str:
        if self._done == self._total:
            return ""
        seconds = round((time.monotonic() - self._begun) / self._finished_here * (self._total - self._done))
        return f"about {seconds // 60}:{seconds % 60:02d} left"

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)


def watched(
    observer: _Observer | None, line: Callable[[Console], AbstractContextManager[_Observer]]
) -> AbstractContextManager[_Observer | None]:
    """Return who is told how the work of a call from Python proceeds.

    Args:
        observer: Whom the user gives; without one, a live line in a notebook, and nobody elsewhere.
        line: Makes that line.
    """
    console = Console()
    return line(console) if observer is None and console.is_jupyter else nullcontext(observer)


class _Plain:
    """A text that notebooks show as such."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class ConsoleObserver(LiveLine):
    """Shows a live line in a terminal, and one plain line per finished trial elsewhere.

    Args:
        metric_name: What the task's metric is called.
        console: Where to show it.
    """

    def __init__(self, metric_name: str, console: Console) -> None:
        """Prepare to show progress."""
        super().__init__("trials", console, running="[dim]")
        self._metric_name = metric_name

    def begin(self, total: int, kept: Sequence[Record]) -> None:
        """Say how much there is to do."""
        self._begin(total, len(kept), f"{len(kept)} of {total} trials were finished in an earlier run")

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """Show what runs now."""
        self._update(running=", ".join(trial.label for trial in trials))

    def finished(self, found: Record) -> None:
        """Count a trial."""
        self._count(f"{found.config.label}: {self._result(found)}")

    def _result(self, record: Record) -> str:
        if record.final is None:
            return f"diverged in epoch {record.diverged.epoch}" if record.diverged else "no result"
        final, split = record.final, "test"
        metric = final.test_metric
        if metric is None:
            metric, split = final.validation_metric, "validation"
        return f"{split} {self._metric_name} {metric:.4g}, {record.seconds:.1f} s"


def show(comparison: Comparison, console: Console) -> None:
    """Print the table and what it means.

    Args:
        comparison: What was found.
        console: Where to print.
    """
    plan = comparison.plan
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = WIDE
    title = f"{plan.source.name}, base {plan.base}, {plan.length}, n={len(plan.seeds)}"
    console.print("", f"[italic]{escape(title)}[/]", sep="\n", highlight=False)
    for grid in _grids(comparison, console):
        console.print(grid, "", sep="\n")
    for sentence in comparison.verdict:
        console.print(escape(sentence), highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"[dim]{escape(table.note(comparison))}[/]", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"report: {escape(str(plan.out / 'report.html'))}", highlight=False, soft_wrap=True)


def _grids(comparison: Comparison, console: Console) -> list[Table]:
    """Make the table, or several that fit: columns for which there is no room then follow, with the names again."""
    titles = [*table.headers(comparison), *table.further(comparison)]
    columns = [*_columns(table.cells(comparison)), *_columns(table.further_cells(comparison))]

    def grid(chosen: Sequence[int]) -> Table:
        return _grid(comparison, [titles[i] for i in chosen], [columns[i] for i in chosen])

    def fits(chosen: Sequence[int]) -> bool:
        wide = console.options.update(max_width=_ANY_WIDTH)
        return console.measure(grid(chosen), options=wide).maximum <= console.width

    parts: list[list[int]] = []
    for index in range(1, len(titles)):
        if parts and fits([*parts[-1], index]):
            parts[-1].append(index)
        else:
            parts.append([0, index])
    return [grid(part) for part in parts]


def _columns(cells: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    return list(zip(*cells, strict=True))


def _grid(comparison: Comparison, titles: Sequence[str], columns: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for index, title in enumerate(titles):
        # Broken before the last word, so that the whole table fits into 80 columns.
        head = "\n".join(escape(title).rsplit(" ", 1))
        grid.add_column(head, justify="left" if index == 0 else "right", no_wrap=True)
    for row, *texts in zip(comparison.rows, *columns, strict=True):
        grid.add_row(*(escape(text) for text in texts), style="bold" if table.stands_out(row) else None)
    return grid
