"""Processes that wait for functions to run together, connected by gloo over the loopback."""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from steppe.lab.crew.local import worker_context
from steppe.lab.crew.processes import interrupt_held_back, start_worker

GRACE = 5.0
"""Seconds that the other ranks have to finish after one has failed: most wait for it, and would for minutes."""


class Pool:
    """Two processes (ranks), started once, that call module-level functions on both at the same time.

    Functions find ``torch.distributed`` initialised. What they return must be picklable, and is copied.
    """

    def __init__(self, size: int = 2) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="steppe-pool-"))
        context = worker_context()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        try:
            with interrupt_held_back():
                for rank in range(size):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_serve, args=(rank, size, self._folder, theirs, lifeline), daemon=True
                    )
                    process.start()
                    theirs.close()
                    self._pipes.append(ours)
                    self._processes.append(process)
        except BaseException:
            self.close()
            raise
        finally:
            lifeline.close()

    @property
    def open(self) -> bool:
        """Whether it can run anything."""
        return bool(self._processes) and all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60.0, **kwargs: Any) -> list[Any]:
        """Call ``function(*args, **kwargs)`` on all ranks and return what each of them returned.

        Raises:
            AssertionError: if a rank raises, dies, or is not done in time; it says what each was doing. All processes
                are ended then, because nobody knows what they still wait for.
        """
        try:
            return self._run(pickle.dumps((function.__module__, function.__qualname__, args, kwargs)), timeout)
        except BaseException:
            self.close()
            raise

    def _run(self, job: bytes, timeout: float) -> list[Any]:
        for pipe in self._pipes:
            pipe.send_bytes(job)
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        until = time.monotonic() + timeout
        while len(found) + len(failed) < len(self._pipes):
            waited = [pipe for i, pipe in enumerate(self._pipes) if i not in found and i not in failed]
            ready = wait(waited, max(0.0, until - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    good, answer = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    self._processes[rank].join(GRACE)
                    good, answer = False, f"It died, with exit code {self._processes[rank].exitcode}."
                if good:
                    found[rank] = answer
                else:
                    failed[rank] = answer
                    until = min(until, time.monotonic() + GRACE)
        if len(found) == len(self._pipes):
            return [found[rank] for rank in range(len(self._pipes))]
        raise AssertionError(
            "\n".join(
                f"--- rank {rank}: {'done' if rank in found else failed.get(rank) or self._stack(rank)}"
                for rank in range(len(self._pipes))
            )
        )

    def _stack(self, rank: int) -> str:
        """Ask a rank that hangs where."""
        os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.5)
        return f"not done in time; it was here:\n{_stacks(self._folder, rank).read_text()}"

    def close(self) -> None:
        """End all processes."""
        with interrupt_held_back():
            self._lifeline.close()
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.join()
            for pipe in self._pipes:
                pipe.close()
            self._processes, self._pipes = [], []
            shutil.rmtree(self._folder, ignore_errors=True)


def _stacks(folder: Path, rank: int) -> Path:
    return folder / f"stacks-{rank}.txt"


def _serve(rank: int, size: int, folder: Path, pipe: Connection, lifeline: Connection) -> None:
    start_worker(lifeline)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    with _stacks(folder, rank).open("w") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=False)
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        while True:
            module, name, args, kwargs = pickle.loads(pipe.recv_bytes())
            try:
                answer = pickle.dumps((True, getattr(importlib.import_module(module), name)(*args, **kwargs)))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            pipe.send_bytes(answer)
