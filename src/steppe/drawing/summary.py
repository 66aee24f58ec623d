"""What was found on one screen: the same for pages and for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import html, markdown


@dataclass(frozen=True)
class Summary:
    """A table and what it means.

    Attributes:
        title: What it is about.
        lines: The cells of the table, the head first.
        sentences: The answer.
        note: How to read the table.
        command: What makes it again.
        strong: The numbers of the lines that are bold, from 0, the head not counted.
    """

    title: str
    lines: Sequence[Sequence[str]]
    sentences: Sequence[str]
    note: str
    command: str
    strong: Sequence[int] = ()

    @property
    def markdown(self) -> str:
        """All of it as Markdown."""
        cells = [[markdown.escaped(cell) for cell in line] for line in self.lines]
        table = [markdown.table(cells, "lr"), ""] if cells[1:] else []
        title = f"# {markdown.escaped(self.title)}"
        return "\n".join([title, "", *table, *self.sentences, "", self.note, "", f"    {self.command}", ""])

    @property
    def html(self) -> str:
        """Table, answer and note as a part of a page."""
        return html.fragment(self.lines, self.sentences, self.note, self.strong, "lr")
