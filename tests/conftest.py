"""Marks of what works in which stack, and the page that is written from them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import stacks

# Those of the first kind have no doctests, and all have one name; torch finds a device where the others can be imported.
collect_ignore_glob = ["*conftest.py", "pretend/*"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-stacks", action="store_true", help=f"write the tables of {stacks.PAGE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stack(row, *columns, refused=MESSAGE): what a cell of docs/stacks.md says")


@pytest.hookimpl(tryfirst=True)  # before -k and -m take tests away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    said = stacks.entries(items)
    config.stash[stacks.COLLECTED] = ({stacks.file_of(item) for item in items}, said)
    if config.getoption("--write-stacks"):
        page = stacks.PAGE.read_text(encoding="utf-8")
        stacks.PAGE.write_text(stacks.filled(page, said), encoding="utf-8")


@pytest.fixture
def refusals(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Takes the messages that a test got, of which one must be what its mark says."""
    got: list[str] = []
    yield got
    stacks.check_refusals(request.node, got)
