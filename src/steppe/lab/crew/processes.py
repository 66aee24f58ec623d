"""Worker processes that end when their parent does, and never answer Ctrl-C. Imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

_LEAVE = os._exit
"""That of the system, whatever stands there later."""


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
    """Answer SIGTERM, by which batch systems end jobs, like Ctrl-C: workers are ended, and what is kept is said."""
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
