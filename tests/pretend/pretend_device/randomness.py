"""Random numbers of the device: each has a generator of its own, of the CPU's kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch

from . import state
from .memory import NAME


class DeviceGenerator(torch._C.Generator):
    """One of the CPU which says that it is one of the device."""

    index = 0

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, self.index)


# By their addresses, since operations get other Python objects around the same generators.
_given: WeakValueDictionary[int, DeviceGenerator] = WeakValueDictionary()
of_devices = [torch._C.Generator() for _ in range(state.COUNT)]


class _Made(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch._C.Generator:
        if torch.device(device).type != NAME:
            return torch._C.Generator(device)
        generator = DeviceGenerator()
        generator.index = state.index_of(device)
        _given[generator._cdata] = generator
        return generator


class Generator(metaclass=_Made):
    """In the place of ``torch.Generator``: makes those of the device too."""


def is_of_device(generator: torch._C.Generator) -> bool:
    """Say whether ``torch.Generator`` made this one for the device."""
    return generator._cdata in _given


@contextmanager
def drawing_from(index: int) -> Iterator[None]:
    """Let the CPU draw the random numbers of a device, and go on with its own afterwards."""
    cpu, own = torch.default_generator, of_devices[index]
    before = cpu.get_state()
    cpu.set_state(own.get_state())
    try:
        yield
    finally:
        own.set_state(cpu.get_state())
        cpu.set_state(before)
