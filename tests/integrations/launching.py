"""Run a test file as a script on two processes, as users run theirs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import steppe

SOURCE = Path(steppe.__file__).parents[1]


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
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, out[-5000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
