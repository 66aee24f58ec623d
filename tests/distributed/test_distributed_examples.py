"""The examples, as their docstrings say, and once more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launching import torchrun

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("script", "then"), [("ddp.py", 2), ("fsdp.py", 1)])
def test_runs_and_goes_on(tmp_path, script, then):
    options = ("--steps", 3, "--folder", tmp_path / "checkpoint")
    for steps, processes in ((3, 2), (6, then)):
        said = torchrun(EXAMPLES / script, *options, log=tmp_path / "out.txt", processes=processes)
        assert re.search(rf"^step {steps}: loss 0\.\d+ on the first process$", said, re.MULTILINE)
