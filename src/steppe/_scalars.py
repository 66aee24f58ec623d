"""Numbers that may be tensors, because they lie on an accelerator that nobody waits for, and the dtypes of others."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]
Scalar = Tensor | float

HALF = (torch.float16, torch.bfloat16)
FULL = (torch.float32, torch.float64)
PLAIN = frozenset((Tensor, torch.nn.Parameter))


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision, where squares and small scalars do not fit, else ``x``."""
    return x.float() if x.dtype in HALF else x


def filled(like: Tensor, value: float) -> Tensor:
    """Return ``value`` in the shape and strides of ``like``, in float32 if ``like`` is half precision."""
    return torch.full_like(like, value, dtype=torch.float32 if like.dtype in HALF else like.dtype)


def on(x: Tensor, device: torch.device) -> Tensor:
    """Return a 0-dim tensor on ``device``; only a way back to the CPU waits for it."""
    return x.to(device, non_blocking=device.type != "cpu")


def free_to_read(x: Tensor) -> bool:
    """Say whether looking at a number on this device stops nobody."""
    return x.is_cpu


def on_host(x: Scalar) -> Scalar:
    """Return a 0-dim tensor as a Python number where that stops nobody: it saves many small operations."""
    return x.item() if isinstance(x, Tensor) and free_to_read(x) else x


def ratio(x: Scalar, y: Scalar) -> Scalar:
    """Return ``x / y``, and 0 where ``y`` is 0."""
    if isinstance(y, Tensor):
        return torch.where(y == 0, 0.0, x / y)
    return x / y if y != 0 else 0.0


def above(x: Scalar, floor: Scalar) -> Scalar:
    """Return ``x``, and 0 where it is not above ``floor``."""
    if isinstance(x, Tensor) or isinstance(floor, Tensor):
        return torch.where(x > floor, x, 0.0)  # type: ignore[arg-type]
    return x if x > floor else 0.0


def draw(seed: int, step: Scalar) -> Random:
    """Return a source of random numbers for one step: the same on every process, and after every checkpoint."""
    return Random((seed << 64) + int(step))
