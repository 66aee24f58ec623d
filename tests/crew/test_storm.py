"""Whatever is killed: nothing is lost, nothing is done twice, and the numbers are the same. `make storm` kills more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("what", "kills"), [("compare", 3), ("sweep", 3), ("cluster", 3)])
def test_a_storm_of_kills_leaves_nothing_wrong(what, kills):
    if what == "cluster":
        pytest.importorskip("distributed")
    script = Path(__file__).with_name("storm_of_kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--what", what, "--kills", str(kills), "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    found = json.loads(done.stdout or "{}")
    assert (done.returncode, done.stderr, found["wrong"]) == (0, "", [])
    assert found["workers"] + found["commands"] == kills
