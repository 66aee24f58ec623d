"""Run a test file as a script on two processes, as users run theirs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import steppe

SOURCE = Path(steppe.__file__).parents[1]
GRACE = 45.0
"""Seconds that the launcher has to end what it has started; it waits for half a minute before it uses force."""


def launch(script: str, folder: Path, timeout: float = 120.0) -> list[Any]:
    """Return what each process has written to its ``RANK.json`` in ``folder``, which it gets as its argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On CPUs accelerate launch starts one process, however many it is asked for; torchrun is what it calls for GPUs.
    words = ["--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port, script, folder]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with open(folder / "out.txt", "w+", encoding="utf-8") as out:  # a pipe would stay open as long as any process
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            process.wait(timeout)
        except BaseException:
            process.terminate()  # it ends its workers, which have sessions of their own
            try:
                process.wait(GRACE)
            finally:
                process.kill()
            raise
        out.seek(0)
        said = out.read()
    assert process.returncode == 0, said[-5000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
