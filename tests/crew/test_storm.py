"""Whatever is killed: nothing is lost, nothing is done twice, and the numbers are the same. `make storm` kills more."""

from __future__ import annotations

import pytest
from storm_of_kills import storm


@pytest.mark.parametrize(("what", "kills"), [("compare", 3), ("sweep", 3), ("cluster", 3)])
def test_a_storm_of_kills_leaves_nothing_wrong(what, kills, tmp_path):
    if what == "cluster":
        pytest.importorskip("distributed")
    found = storm(what, kills, 1, tmp_path)
    assert found["wrong"] == []
    assert found["workers"] + found["commands"] == kills
