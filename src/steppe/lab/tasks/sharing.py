"""Whether two models have weights or buffers in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from torch import Tensor, nn


def shared_name(model: nn.Module, other: nn.Module) -> str | None:
    """Return the first parameter or buffer of a model that another model has too; None if they share nothing.

    Args:
        model: A model.
        other: What must be another one; its own parts may be tied.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> shared_name(net, nn.Sequential(nn.ReLU(), net)), shared_name(net, nn.Linear(2, 2))
        ('weight', None)
    """
    there = {place for _, tensor in _tensors(other) for place in _places(tensor)}
    return next((name for name, tensor in _tensors(model) if not there.isdisjoint(_places(tensor))), None)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _places(tensor: Tensor) -> Iterator[tuple[str, int]]:
    """Return what tells a tensor from those that share nothing with it."""
    yield "object", id(tensor)
    with suppress(RuntimeError, ValueError):  # sparse ones have no such memory, lazy ones none yet
        place = tensor.untyped_storage().data_ptr()
        if place:  # that of all tensors on the meta device, and of all without a number, is 0
            yield "memory", place
