"""What the process knows of its devices: how many, which is the current one, what was done there."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .memory import NAME

COUNT = 2


@dataclass
class Counts:
    """What was done on each device, by its index: operations, tensors moved there from the CPU, and back to it."""

    operations: Counter[int] = field(default_factory=Counter)
    moved: Counter[int] = field(default_factory=Counter)
    fetched: Counter[int] = field(default_factory=Counter)


class _Here(threading.local):
    index = 0


_here = _Here()
_counts: list[Counts] = []
_used: set[int] = set()
_forked = False


def current() -> int:
    """Return the index of this thread's current device."""
    return _here.index


def set_current(index: int) -> int:
    """Make a device this thread's current one, and return the index of the one before."""
    before, _here.index = _here.index, index_of(index)
    return before


def index_of(device: torch.device | str | int | None) -> int:
    """Return the index of a device, of the current one if it has none."""
    index = torch.device(device).index if isinstance(device, str | torch.device) else device
    if index is None:
        return _here.index
    if not 0 <= index < COUNT:
        raise RuntimeError(f"{NAME} error: invalid device ordinal: there are {COUNT}, got {index}")
    return index


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what is done on the devices by this process until the block ends."""
    counts = Counts()
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.remove(counts)


def count(kind: str, index: int) -> None:
    """Count one operation or one moved tensor."""
    for counts in _counts:
        getattr(counts, kind)[index] += 1


def use(index: int) -> None:
    """An operation begins on a device."""
    if _forked:
        raise RuntimeError(f"Cannot re-initialize {NAME} in forked subprocess. Use the 'spawn' start method")
    if index not in _used:
        _used.add(index)
        if log := os.environ.get("PRETEND_DEVICE_LOG"):
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {index}\n")
    if index > 0:
        # torch's guard in Python knows of one device, and so its backward passes have a thread for that one alone.
        torch._C._set_multithreading_enabled(False)
    count("operations", index)


def forked() -> bool:
    """Say whether this process is a fork of one that had used a device."""
    return _forked


def _in_child() -> None:
    global _forked
    _forked = bool(_used)


os.register_at_fork(after_in_child=_in_child)
