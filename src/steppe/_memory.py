"""Which tensors lie in the same memory, and which memory has one owner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._shards import local, sharded


def addresses(xs: Sequence[Tensor]) -> list[int]:
    """Return where each tensor begins, and 0 for those without memory (fake, meta and empty ones)."""
    try:
        return [x.data_ptr() for x in xs]
    except RuntimeError:
        return [_address(x) for x in xs]


def _address(x: Tensor) -> int:
    try:
        return local(x).data_ptr()
    except RuntimeError:
        return 0


def overlapping(xs: Sequence[Tensor]) -> tuple[int, int] | None:
    """Return the places of two tensors that share memory, or None."""
    parts = [*map(local, xs)] if sharded(xs) else xs
    begins = addresses(parts)
    ends = [begin + _extent(x) for begin, x in zip(begins, parts, strict=True)]
    order = sorted([i for i, begin in enumerate(begins) if begin], key=begins.__getitem__)
    if all(ends[i] <= begins[j] for i, j in pairwise(order)):
        return None
    reaching: list[int] = []  # those that go on beyond the next beginning
    for i in order:
        reaching = [j for j in reaching if ends[j] > begins[i]]
        for j in reaching:
            if _share(parts[j], parts[i]):
                return min(i, j), max(i, j)
        reaching.append(i)
    return None


def _share(x: Tensor, y: Tensor) -> bool:
    """Say whether tensors share an element, whose memory begins at ``x`` and goes on beyond the beginning of ``y``."""
    if dense(x) and dense(y):
        return True
    size, offset = x.element_size(), y.data_ptr() - x.data_ptr()
    if y.element_size() != size or offset % size:
        return True
    taken = torch.zeros(max(_extent(x), offset + _extent(y)) // size, dtype=torch.bool)
    taken.as_strided(x.shape, x.stride()).fill_(True)
    return bool(taken.as_strided(y.shape, y.stride(), offset // size).any())


def _extent(x: Tensor) -> int:
    """Return the bytes from the first element to the end of the last."""
    if x.is_contiguous():
        return x.nbytes
    steps = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (steps + 1) * x.element_size()


def dense(x: Tensor) -> bool:
    """Say whether the elements of ``x`` lie in one piece of memory, each in a place of its own, in whatever order."""
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(x))


def separate(xs: Sequence[Tensor]) -> bool:
    """Say whether every element of every tensor has a place of its own, so that it can be written to."""
    return all(map(dense, map(local, xs) if sharded(xs) else xs)) and overlapping(xs) is None


def has_one_owner(p: Tensor) -> bool:
    """Say whether nobody but ``p`` has the memory of its gradient: then it stays as it is, even when ``p`` lets it go.

    Only on the CPU. Elsewhere graphs that were captured may write to gradients without having them.
    """
    g = p.grad
    if g is None or type(g) is not Tensor or not g.is_cpu or g.layout is not torch.strided:
        return False
    return _ONE_OWNER is not None and _holders(p) == _ONE_OWNER and dense(g)


def _holders(p: Any) -> tuple[int, int, int]:
    """Return how many hold the gradient of ``p``, counting those that look: in Python, anywhere, and its memory."""
    g = p.grad
    return sys.getrefcount(g), g._use_count(), torch._C._storage_Use_Count(g.untyped_storage()._cdata)


def _one_owner() -> tuple[int, int, int] | None:
    """Return what `_holders` says where there is one owner, or None if this torch does not count them."""
    p = nn.Parameter(torch.zeros(1))
    # Not by a backward pass: where there is an accelerator it would start threads, and forks could never run one again.
    p.grad = torch.zeros(1)
    g = p.grad  # has_one_owner holds it too
    return _holders(p) if hasattr(g, "_use_count") and hasattr(torch._C, "_storage_Use_Count") else None


_ONE_OWNER = _one_owner()
