"""Worker processes that end when their parent does, and never answer Ctrl-C. Imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

_LEAVE = os._exit
"""That of the system, whatever stands there later."""


class Processes:
    """Worker processes of which each may die on its own.

    They end at once when the block ends, however it does, or this process.
    """

    def __enter__(self) -> Processes:
        """Prepare to start them."""
        self._context = multiprocessing.get_context("spawn")
        self._lifeline, self._our_end = self._context.Pipe(duplex=False)
        self._started: list[SpawnProcess] = []
        return self

    def __exit__(self, *error: object) -> None:
        """End those that still run, and wait for it."""
        with interrupt_held_back():
            self._our_end.close()
            for process in self._started:
                process.join()
                process.close()
            self._lifeline.close()

    def start(self, function: Callable[..., object], *arguments: Any) -> SpawnProcess:
        """Start one more.

        Args:
            function: At the top level of a module that is quick to import.
            arguments: Of the function.

        Returns:
            The process; it belongs to the crew, which closes it.
        """
        process = self._context.Process(target=_tied, args=(self._lifeline, function, arguments))
        with interrupt_held_back():
            process.start()
        self._started.append(process)
        return process


def _tied(lifeline: Connection, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    start_worker(lifeline)
    function(*arguments)


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Hold back Ctrl-C; processes that start meanwhile never see it, so that they cannot answer with a traceback."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Answer SIGTERM, by which batch systems end jobs, like Ctrl-C: what runs here goes back to the queue at once."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_worker(lifeline: Connection) -> None:
    """Prepare a worker: it ends when its parent does, or when the other end of `lifeline` is closed.

    Args:
        lifeline: The reading end of a pipe into which nothing is ever written.
    """
    # Ctrl-C reaches the whole process group; only the parent answers it, and ends the workers through the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True, name="lifeline").start()


def _watch(lifeline: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait([lifeline] if parent is None else [lifeline, parent.sentinel])
    _LEAVE(1)
