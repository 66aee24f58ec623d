"""Tables on pages."""

from __future__ import annotations

from collections.abc import Sequence


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return text.replace("\\", "\\\\").replace("<", "&lt;")


def table(lines: Sequence[Sequence[str]], columns: str = "l") -> str:
    """Return a table as Markdown.

    Args:
        lines: Its cells, the head first.
        columns: ``l`` or ``r`` for each column, whether it is flush left or right; the last letter holds for the rest.

    Example:
        >>> print(table([["method", "test"], ["a|b", "1.5"]], "lr"))
        | method | test |
        | --- | ---: |
        | a\\|b | 1.5 |
    """
    flush = columns.ljust(len(lines[0]), columns[-1])
    rows = [lines[0], ["---:" if side == "r" else "---" for side in flush], *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
