"""What is ``torch.pretend``, as ``torch.cuda`` is for GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import randomness, state
from .state import COUNT, counted

__all__ = [
    "_is_in_bad_fork", "counted", "current_device", "device", "device_count", "get_amp_supported_dtype", "get_rng_state", "is_available",
    "is_initialized", "manual_seed", "manual_seed_all", "set_device", "set_rng_state", "synchronize",
]  # fmt: skip


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return COUNT


def current_device() -> int:
    return state.current()


def set_device(device: torch.device | str | int) -> None:
    state.set_current(state.index_of(device))


@contextmanager
def device(device: torch.device | str | int) -> Iterator[None]:
    before = state.set_current(state.index_of(device))
    try:
        yield
    finally:
        state.set_current(before)


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Nothing is ever under way."""
    state.index_of(device)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def _is_in_bad_fork() -> bool:
    return state.forked()


def manual_seed(seed: int) -> None:
    randomness.of_devices[state.current()].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for generator in randomness.of_devices:
        generator.manual_seed(seed)


def get_rng_state(device: torch.device | str | int = "pretend") -> Tensor:
    return randomness.of_devices[state.index_of(device)].get_state()


def set_rng_state(new_state: Tensor, device: torch.device | str | int = "pretend") -> None:
    randomness.of_devices[state.index_of(device)].set_state(new_state)
