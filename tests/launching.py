"""Run scripts on several processes, as users run theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import steppe

SOURCE = Path(steppe.__file__).parents[1]
GRACE = 45.0
"""Seconds that the launcher has to end what it has started; it waits for half a minute before it uses force."""


def torchrun(script: object, *words: object, log: Path, processes: int = 2, timeout: float = 120.0) -> str:
    """Run a script on so many processes, and return what all of them have said."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script, *words]
    # On CPUs accelerate launch starts one process, however many it is asked for; torchrun is what it calls for GPUs.
    path = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with open(log, "w+", encoding="utf-8") as out:  # a pipe would stay open as long as any process
        running = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            running.wait(timeout)
        except BaseException:
            running.terminate()  # it ends its workers, which have sessions of their own
            try:
                running.wait(GRACE)
            finally:
                running.kill()
            raise
        out.seek(0)
        said = out.read()
    assert running.returncode == 0, said[-5000:]
    return said


def launch(script: str, folder: Path) -> list[Any]:
    """Return what each of two processes has written to its ``RANK.json`` in ``folder``, which it gets as argument."""
    torchrun(script, folder, log=folder / "out.txt")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
