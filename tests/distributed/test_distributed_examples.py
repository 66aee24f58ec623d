"""The examples, as their docstrings say, and once more."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(script: str, folder: Path, processes: int) -> list[str]:
    """Run an example and return what its processes print, sorted."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    running = subprocess.Popen(
        [*launcher, str(ROOT / "examples" / script), "--steps", "3", "--folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it can be ended with all its processes
    )
    try:
        out, errors = running.communicate(timeout=100)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    assert running.returncode == 0, errors
    return sorted(out.splitlines())


@pytest.mark.parametrize(("script", "then"), [("ddp.py", 2), ("fsdp.py", 1)])
def test_runs_and_goes_on(tmp_path, script, then):
    first = launch(script, tmp_path / "checkpoint", 2)
    assert [re.sub(r"[\d.]+ on", "... on", line) for line in first] == [
        f"step 3: loss ... on process {rank}" for rank in range(2)
    ]
    second = launch(script, tmp_path / "checkpoint", then)
    assert [line.split(":")[0] for line in second] == ["step 6"] * then
