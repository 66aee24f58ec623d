"""Examples run as their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_amp(dtype):
    device, before, after, accuracy = re.fullmatch(
        rf"(\w+), {dtype}: loss (\S+) -> (\S+), accuracy (\S+)\n", run("amp.py", "--dtype", dtype, "--steps", "60")
    ).groups()
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert float(after) < 0.7 * float(before)
    assert float(accuracy) > 0.8


def test_accumulation():
    found = re.findall(r"(\w+): accuracy (\S+), .* weights (\S+)\n", run("accumulation.py", "--steps", "60"))
    (replay, _, same), (micro, accuracy, other) = found
    assert (replay, micro) == ("replay", "micro")
    assert float(same) < 1e-9 < float(other) < 0.5
    assert float(accuracy) > 0.85
