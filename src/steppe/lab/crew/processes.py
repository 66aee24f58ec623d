"""Worker processes that end when their parent does, and never answer Ctrl-C. Imports nothing heavy."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType

_LOOK = 0.05
_LONGEST_IMPORT = 15.0

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
def interruptible() -> Iterator[None]:
    """Answer SIGTERM, by which batch systems end jobs, like Ctrl-C: workers are ended, and what is kept is said.

    Neither is answered within an import, where some libraries take no notice of it, and half of one would be left;
    unless that takes longer than libraries do.
    """
    later: threading.Timer | None = None
    waiting = False
    deadline = math.inf

    def once_more(number: int) -> None:
        nonlocal waiting
        waiting = False
        os.kill(os.getpid(), number)

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal later, waiting, deadline
        deadline = min(deadline, time.monotonic() + _LONGEST_IMPORT)
        if not _imports(frame) or time.monotonic() > deadline:
            deadline = math.inf
            raise KeyboardInterrupt
        if not waiting:
            waiting, later = True, threading.Timer(_LOOK, once_more, (number,))
            later.daemon = True
            later.start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler == signal.default_int_handler:  # a job in the background ignores Ctrl-C
            signal.signal(number, answer)
    try:
        yield
    finally:
        if later is not None:
            later.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def start_worker(lifeline: Connection) -> None:
    """Prepare a worker: it ends when its parent does, or when the other end of `lifeline` is closed.

    Args:
        lifeline: The reading end of a pipe into which nothing is ever written.
    """
    # Ctrl-C reaches the whole process group; only the parent answers it, and ends the workers through the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True, name="lifeline").start()


def end_with_parent() -> None:
    """Let this process end when the one does that has started it."""
    threading.Thread(target=_watch, daemon=True, name="lifeline").start()


def _watch(*lifeline: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait([*lifeline] if parent is None else [*lifeline, parent.sentinel])
    _LEAVE(1)
