"""Tables of studies in the terminal: lists of lines, the head first."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDE = 160


def show(console: Console, lines: Sequence[Sequence[str]], *, title: str = "", numbers: bool = True) -> None:
    """Print a table.

    Args:
        console: Where to; what is no terminal is taken to be wide.
        lines: The table.
        title: What stands above it.
        numbers: Whether all columns but the first are set flush right.
    """
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = _WIDE
    if title:
        console.print(title, highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for index, head in enumerate(lines[0]):
        grid.add_column(escape(head), justify="right" if index and numbers else "left")
    for line in lines[1:]:
        grid.add_row(*map(escape, line))
    console.print(grid, "")
