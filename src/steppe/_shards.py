"""Tensors whose elements lie on several processes (DTensors, as FSDP2 and tensor parallelism make them)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._scalars import PLAIN


def sharded(xs: Sequence[Tensor]) -> bool:
    """Say whether one of ``xs`` is a DTensor."""
    return not PLAIN.issuperset(map(type, xs)) and any(hasattr(x, "placements") for x in xs)


def refuse_flat(xs: Sequence[Tensor]) -> None:
    """Refuse parameters of FSDP1: pieces of a flat tensor that look like whole plain ones, to norms as well."""
    if any(hasattr(x, "_fsdp_flattened") for x in xs):
        raise ValueError(
            "The parameters are of FullyShardedDataParallel (FSDP1), whose flat pieces hide the norm of the whole "
            "gradient. Use torch.distributed.fsdp.fully_shard (FSDP2)."
        )


def local(x: Any) -> Tensor:
    """Return the part of ``x`` that lies here, in the same memory."""
    part: Tensor = x.to_local() if hasattr(x, "placements") else x
    return part


def like(x: Any, other: Any) -> Tensor:
    """Return ``x`` spread over processes as ``other`` is: gradients may come as sums that are not added up yet."""
    placements = getattr(other, "placements", None)
    same: Tensor = x if placements is None or x.placements == placements else x.redistribute(placements=placements)
    return same


def added_up(parts: list[Tensor], xs: Sequence[Tensor]) -> list[Tensor]:
    """Add up over processes what each found in its part of ``xs``.

    Args:
        parts: a 0-dim tensor for each of ``xs``, all on one device and in one dtype.
        xs: plain tensors, which are whole everywhere, and DTensors.

    Returns:
        0-dim tensors, of which the sum over all ``xs`` is the same on every process; fewer than ``xs``.

    One small all-reduce for each way in which tensors are spread, whatever their number; every process of a mesh must
    come with the same tensors.
    """
    found: list[Tensor] = []
    spread: dict[tuple[Any, ...], list[Tensor]] = {}
    for part, x in zip(parts, xs, strict=True):
        groups = _groups(x)
        if groups:
            spread.setdefault(groups, []).append(part)
        else:
            found.append(part)
    for groups, own in spread.items():
        total = torch.stack(own).sum()
        for group in groups:
            torch.distributed.all_reduce(total, group=group)
        found.append(total)
    return found


def _groups(x: Any) -> tuple[Any, ...]:
    """Return the process groups along which ``x`` is cut; where it is replicated, every process has it all."""
    if not hasattr(x, "placements"):
        return ()
    cut = [i for i, placement in enumerate(x.placements) if not placement.is_replicate()]
    return tuple(x.device_mesh.get_group(i) for i in cut)


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """Let FSDP2 forget the parameters it has collected, before and after."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "reshard")]
    for module in modules:
        module.reshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
