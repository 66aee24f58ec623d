"""docs/stacks.md says what the tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

import stacks
from stacks import Entry

SMALL = """# Page
<!-- matrix -->
<!-- end -->
## A row, 1
<!-- cells: A row, 1 -->
old
<!-- end -->
after
"""


def test_the_page_is_what_the_collected_tests_say(request):
    """All of them where all are run; else those of the collected files."""
    files, said = request.config.stash[stacks.COLLECTED]
    page = stacks.PAGE.read_text(encoding="utf-8")
    links = stacks.links(page)
    assert all((stacks.ROOT / file).is_file() for file, _ in links)
    assert {link for link in links if link[0] in files} == {(e.file, e.test) for e in said}
    if {file for file, _ in links} <= files:
        assert page == stacks.filled(page, said), "Run pytest --collect-only --write-stacks."


def whole_row(**changes):
    plain = [Entry("A row, 1", column, "tests/test_a.py", "test_x", None, None) for column in stacks.COLUMNS]
    return [e._replace(**changes.get(e.column.replace(" ", "_"), {})) for e in plain]


def test_what_is_written():
    found = whole_row(AMP={"refused": "No."}, resume={"reason": "Why not"}, clip={"test": "test_y"})
    page = stacks.filled(SMALL, [*found, *whole_row()[3:4]])
    assert "| [A row, 1](#a-row-1) | tested | refused | tested | tested | not supported | tested |\n" in page
    assert "* **plain**: tested by [`test_x`](../tests/test_a.py)\n* **AMP**: refused with “No.” (" in page
    assert "* **clip**: tested by [`test_x`](../tests/test_a.py), [`test_y`](../tests/test_a.py)\n" in page
    assert "* **resume**: not supported: Why not ([`test_x`](../tests/test_a.py))\n" in page
    assert "old" not in page
    assert page.endswith("after\n")
    assert stacks.filled(page, [*found, *whole_row()[3:4]]) == page
    assert "* **plain, AMP, accumulation, clip, resume, 2 processes**: tested" in stacks.filled(SMALL, whole_row())


def test_a_cell_without_a_test_and_a_row_without_a_place_are_errors():
    with pytest.raises(AssertionError, match=r"No test says anything of .*'A row, 1', 'plain'"):
        stacks.filled(SMALL, whole_row()[1:])
    with pytest.raises(AssertionError, match=r"test_x marks a row that stacks\.md has not: Another"):
        stacks.filled(SMALL, [*whole_row(), *whole_row(plain={"row": "Another"})])


class Item:
    """What is asked of a test that was collected."""

    def __init__(self, *marks, fixtures=()):
        self.name, self.nodeid, self.path, self.fixturenames = "test_a[1]", "test_a", Path(__file__), fixtures
        self._marks = [mark.mark for mark in marks]

    def iter_markers(self, name):
        return [mark for mark in self._marks if mark.name == name]


def test_what_marks_say():
    stack = pytest.mark.stack
    items = [
        Item(stack("Row", "clip", "plain")),
        Item(stack("Row", "clip")),
        Item(stack("Row", "AMP", refused="No."), fixtures=["refusals"]),
        Item(stack("Row", "resume"), pytest.mark.xfail(reason="because")),
        Item(),
    ]
    found = [(e.column, e.verdict, e.refused, e.reason) for e in stacks.entries(items)]
    assert found == [
        ("clip", "tested", None, None),
        ("plain", "tested", None, None),
        ("AMP", "refused", "No.", None),
        ("resume", "not supported", None, "because"),
    ]
    with pytest.raises(AssertionError, match="test_a does not use `refusals`"):
        stacks.entries([Item(stack("Row", "AMP", refused="No."))])
    with pytest.raises(AssertionError, match=r"test_a marks \['AMPS'\]"):
        stacks.entries([Item(stack("Row", "AMPS"))])


def test_a_message_that_did_not_come_fails():
    item = Item(pytest.mark.stack("Row", refused="No."), pytest.mark.stack("Row"))
    stacks.check_refusals(item, ["Something else", "It said: No."])
    stacks.check_refusals(Item(pytest.mark.stack("Row")), [])
    with pytest.raises(AssertionError, match=r"Nothing was refused with 'No\.', but \['Yes'\]"):
        stacks.check_refusals(item, ["Yes"])
