"""The tables of docs/stacks.md, out of the marks that tests carry.

A test that shows that something works in a stack says so by ``@pytest.mark.stack(row, *columns)``. One that shows with
which message it is refused adds ``refused=MESSAGE`` and gives what it got to the fixture ``refusals``. One that shows
that it does not work is an expected failure, whose reason goes to the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "stacks.md"
COLUMNS = ("plain", "AMP", "accumulation", "clip", "resume", "2 processes")
BLOCK = re.compile(r"(<!-- (matrix|cells: ([^>]+)) -->\n).*?(<!-- end -->)", re.DOTALL)


COLLECTED = pytest.StashKey[tuple[set[str], list["Entry"]]]()
"""Which files were collected, and what their tests say."""


class Entry(NamedTuple):
    """What one test says of a cell."""

    row: str
    column: str
    file: str
    test: str
    refused: str | None
    reason: str | None

    @property
    def verdict(self) -> str:
        return "refused" if self.refused else "not supported" if self.reason else "tested"

    @property
    def link(self) -> str:
        return f"[`{self.test}`](../{self.file})"

    def __str__(self) -> str:
        return (
            f"refused with “{self.refused}” ({self.link})"
            if self.refused
            else f"not supported: {self.reason} ({self.link})"
        )


def file_of(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).as_posix()


def entries(items: Iterable[pytest.Item]) -> list[Entry]:
    """Return what tests say of cells, each once."""
    found = {}
    for item in items:
        expected = [mark.kwargs["reason"] for mark in item.iter_markers("xfail")]
        for mark in item.iter_markers("stack"):
            row, *columns = mark.args
            refused = mark.kwargs.get("refused")
            assert set(columns) <= set(COLUMNS), f"{item.nodeid} marks {columns}; there are {COLUMNS}."
            assert refused is None or "refusals" in item.fixturenames, f"{item.nodeid} does not use `refusals`."
            for column in columns or COLUMNS:
                name = item.name.partition("[")[0]
                found[Entry(row, column, file_of(item), name, refused, expected[0] if expected else None)] = None
    return list(found)


def check_refusals(item: pytest.Item, got: list[str]) -> None:
    """Fail if a message of the marks of a test is not among what it got."""
    for mark in item.iter_markers("stack"):
        refused = mark.kwargs.get("refused", "")
        assert any(refused in message for message in got) or not refused, (
            f"Nothing was refused with {refused!r}, but {got}."
        )


def links(page: str) -> set[tuple[str, str]]:
    """Return the files and names of all tests that a page names."""
    return {(file, test) for test, file in re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", page)}


def rows(page: str) -> list[str]:
    """Return the stacks that a page has a block for."""
    return [row for _, _, row, _ in BLOCK.findall(page) if row]


def filled(page: str, found: list[Entry]) -> str:
    """Return the page with its blocks as ``found`` says."""
    by_cell = {(row, column): [] for row in rows(page) for column in COLUMNS}
    for entry in sorted(found, key=lambda e: (("tested", "refused", "not supported").index(e.verdict), e.file, e.test)):
        assert (entry.row, entry.column) in by_cell, f"{entry.test} marks a row that {PAGE.name} has not: {entry.row}."
        by_cell[entry.row, entry.column].append(entry)
    empty = [cell for cell, there in by_cell.items() if not there]
    assert not empty, f"No test says anything of {empty}."

    def block(match: re.Match[str]) -> str:
        start, _, row, end = match.groups()
        return start + (_cells(row, by_cell) if row else _matrix(page, by_cell)) + end

    return BLOCK.sub(block, page)


def _cells(row: str, by_cell: dict[tuple[str, str], list[Entry]]) -> str:
    lines = []
    for column in COLUMNS:
        tested = [e.link for e in by_cell[row, column] if e.verdict == "tested"]
        said = [f"tested by {', '.join(tested)}"] if tested else []
        said += [str(e) for e in by_cell[row, column] if e.verdict != "tested"]
        if lines and said == lines[-1][1]:
            lines[-1][0].append(column)
        else:
            lines.append(([column], said))
    return "\n" + "".join(f"* **{', '.join(names)}**: {'; '.join(said)}\n" for names, said in lines) + "\n"


def _matrix(page: str, by_cell: dict[tuple[str, str], list[Entry]]) -> str:
    lines = [f"| stack | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for row in rows(page):
        cells = [", ".join(dict.fromkeys(e.verdict for e in by_cell[row, column])) for column in COLUMNS]
        anchor = re.sub(r"[^\w -]", "", row.lower()).replace(" ", "-")
        lines.append(f"| [{row}](#{anchor}) | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n\n"
