"""Signals whose handlers raise, as that of Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, final

_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_NUMBERS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


@final
class BeforeRaising:
    """Between `begin` and `end`, ``undo`` is called before an exception of a signal's handler gets anywhere.

    A ``with`` block cannot see to that by itself: Python looks for signals also on the way into ``__exit__``, where
    nothing of it has been done yet and nothing of it will be.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo
        self._plain: dict[int, Any] = {}
        self._process = 0

    def begin(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # handlers run, and raise, in the main thread alone
        self._process = os.getpid()
        for number in _NUMBERS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._plain[number] = handler
                signal.signal(number, self._handle)

    def end(self) -> None:
        for number, handler in self._plain.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        try:
            self._plain[number](number, frame)
        except BaseException:
            if os.getpid() == self._process:  # not in a worker that was forked meanwhile
                self._undo()
            raise
