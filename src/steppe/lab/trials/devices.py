"""Which devices there are."""

from __future__ import annotations

import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError

AUTO = "auto"
_COUNTERS = ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated")
_PROCESSORS = Path("/proc/cpuinfo")  # of Linux


def find_device(asked: str, *, elsewhere: bool = False) -> str:
    """Return the device that is asked for; for ``auto`` an accelerator, or the CPU if there is none.

    Args:
        asked: ``auto``, ``cpu``, or an accelerator of torch such as ``cuda``, ``cuda:1`` or ``mps``.
        elsewhere: Whether other machines train, which may have devices that this one lacks.

    Raises:
        UserError: There is no such device.

    Example:
        >>> find_device("cpu")
        'cpu'
    """
    import torch

    own = accelerator()
    if asked == AUTO:
        return own or "cpu"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"unknown device {asked!r}; name auto, cpu, cuda, cuda:1, mps or another of torch") from error
    if device.type == "cpu" or elsewhere:
        return device.type if device.type == "cpu" else asked
    if device.type != own:
        has = f"but {own!r} is" if own else "and no other accelerator that torch can use"
        raise UserError(f"the device {asked!r} is not here, {has}; leave --device out, or install a torch that has it")
    if device.index is not None and device.index >= count(own):
        raise UserError(f"the device {asked!r} is not here: there are {count(own)} of this kind, counted from 0")
    return asked


def accelerator() -> str | None:
    """Return the kind of accelerator that torch has here."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type


def count(device: str) -> int:
    """Return how many devices a name stands for: all of its kind, unless it says which."""
    import torch

    if device == "cpu" or torch.device(device).index is not None or kind(device) != accelerator():
        return 1
    return max(1, torch.accelerator.device_count())


def use(device: str) -> None:
    """Let this process use a device where it is asked for one of the kind alone, as libraries that train ask."""
    import torch

    index = device.partition(":")[2]
    choose = getattr(getattr(torch, kind(device), None), "set_device", None)
    if index and choose is not None:
        choose(int(index))


def kind(device: str) -> str:
    """Return the kind of a device: ``cuda`` for ``cuda:1``."""
    return device.partition(":")[0]


def name_of(device: str) -> str:
    """Return what a device is called by those who made it, as far as it is known."""
    import torch

    if kind(device) == "cpu":
        return _processor()
    module = getattr(torch, kind(device), None)
    try:
        return str(module.get_device_name(device))  # type: ignore[union-attr]
    except (AttributeError, RuntimeError, ValueError, TypeError):
        return kind(device)


class Memory:
    """The most bytes that tensors take on an accelerator in what is `watched`, beyond those of when this was made.

    Attributes:
        most: None before anything was watched, on the CPU, and on accelerators that do not count bytes.
    """

    def __init__(self, device: str) -> None:
        """See the class."""
        import torch

        module = getattr(torch, kind(device), None)
        self._device = device
        self._counters: list[Any] = [getattr(module, name, None) for name in _COUNTERS]
        self.most: int | None = None
        if self._counts:
            gc.collect()  # what is freed later, whosever it was, would count as less
            self._before = self._counters[1](device)

    @property
    def _counts(self) -> bool:
        return None not in self._counters

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look what the body takes."""
        if not self._counts:
            yield
            return
        reset, _, most = self._counters
        reset(self._device)
        yield
        self.most = max(self.most or 0, int(most(self._device) - self._before))


def _processor() -> str:
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = (line.partition(":") for line in lines)
    named = (value.strip() for name, _, value in told if name.strip() == "model name")
    return next(filter(None, named), "") or platform.processor() or platform.machine()
