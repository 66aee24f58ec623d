"""Signals whose handlers raise, as that of Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # that of `signal` asks an enumeration each time
from collections.abc import Callable, Iterator
from typing import Any, final

# Those whose handlers raise in practice: torch's DataLoader says by SIGCHLD that a worker was killed.
_NAMES = ("INT", "TERM", "ALRM", "HUP", "USR1", "USR2", "CHLD", "QUIT", "VTALRM", "PROF", "XCPU")
_NUMBERS = [getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}")]


@final
class BeforeRaising:
    """Between `begin` and `end`, ``undo`` is called before an exception of a signal's handler gets anywhere.

    A ``with`` block cannot see to that by itself: Python looks for signals also on the way into ``__exit__``, where
    nothing of it has been done yet and nothing of it will be. Of several, one in the other, the inner ones come first.
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
            handler = getsignal(number)
            if callable(handler):
                self._plain[number] = handler
                signal.signal(number, self._handle)

    def end(self) -> None:
        for number, handler in self._plain.items():
            if getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        chain = [*self._outwards(number)]
        try:
            chain[-1]._plain[number](number, frame)
        except BaseException:
            for one in chain:
                if os.getpid() == one._process:  # not in a worker that was forked meanwhile
                    one._undo()
            raise

    def _outwards(self, number: int) -> Iterator[BeforeRaising]:
        one: Any = self
        while isinstance(one, BeforeRaising):
            yield one
            one = getattr(one._plain[number], "__self__", None)
