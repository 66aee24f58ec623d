"""Commands in processes of their own, and who works for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import steppe

SOURCE = Path(steppe.__file__).parents[1]
PRETEND = Path(__file__).with_name("pretend")


def environment(**more: str) -> dict[str, str]:
    """That of a command which finds steppe wherever it begins, and has one thread."""
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **more}


def with_pretend_device(**more: str) -> dict[str, str]:
    """The same, for a command that finds an accelerator with two devices, as its workers do."""
    return environment(PYTHONPATH=os.pathsep.join([str(SOURCE), str(PRETEND)]), **more)


def started(*words: object, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
    """Start Python with these words, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would everything that is started from it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=env or environment(),
    )


def end(process: subprocess.Popen[str]) -> None:
    """Kill it with all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@contextmanager
def commands() -> Iterator[Callable[[Sequence[object]], subprocess.Popen[str]]]:
    """Start ``python -m steppe`` with words; whatever still runs when the block ends is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(words: Sequence[object], **more: Any) -> subprocess.Popen[str]:
        begun.append(started("-m", "steppe", *words, **more))
        return begun[-1]

    try:
        yield start
    finally:
        for process in begun:
            if process.poll() is None:
                end(process)


def workers_of(process: subprocess.Popen[str], *, server: bool = False) -> list[int]:
    """The living processes that work for a command, its children's children too; if asked, what they are forks of too."""
    kinds: dict[int, bytes] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes()
            if fields[0] != "Z":
                parents[pid] = int(fields[1])
                kinds[pid] = next((kind for kind in (b"spawn_main", b"forkserver") if kind in words), b"")

    def works(pid: int) -> bool:
        kind, parent = kinds[pid], parents[pid]
        return bool(kind) and (server or kind == b"spawn_main" or kinds.get(parent) == kind)

    def belongs(pid: int) -> bool:
        return pid in parents and (parents[pid] == process.pid or belongs(parents[pid]))

    return [pid for pid in parents if works(pid) and belongs(pid)]


def left_of(process: subprocess.Popen[str]) -> list[int]:
    """The living processes of its group, apart from itself, which may have ended."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == process.pid != int(entry.name) and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Look until a condition holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.01)
