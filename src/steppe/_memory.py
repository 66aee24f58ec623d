"""Which tensors lie in the same memory, and which memory has one owner."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._shards import local


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
    parts = [local(x) for x in xs]
    begins = addresses(parts)
    reaching: list[tuple[int, int]] = []  # where those end that go on beyond the next beginning, and their places
    for i in sorted(range(len(parts)), key=begins.__getitem__):
        begin = begins[i]
        if not begin:
            continue
        if reaching:
            reaching = [one for one in reaching if one[0] > begin]
            for _, j in reaching:
                if _share(parts[j], parts[i]):
                    return min(i, j), max(i, j)
        reaching.append((begin + _extent(parts[i]), i))
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
        return x.numel() * x.element_size()
    steps = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (steps + 1) * x.element_size()


def dense(x: Tensor) -> bool:
    """Say whether the elements of ``x`` lie in one piece of memory, each in a place of its own, in whatever order."""
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(x))


def separate(xs: Sequence[Tensor]) -> bool:
    """Say whether every element of every tensor has a place of its own, so that it can be written to."""
    if set(map(type, xs)) == {Tensor} and all(map(Tensor.is_contiguous, xs)) and all(x.is_cpu for x in xs):
        end = 0
        for begin, size in sorted(zip(map(Tensor.data_ptr, xs), [x.nbytes for x in xs], strict=True)):
            if begin < end:
                return False
            end = begin + size
        return True
    return all(dense(local(x)) for x in xs) and overlapping(xs) is None


def has_one_owner(p: Tensor) -> bool:
    """Say whether nobody but ``p`` has the memory of its gradient: then it stays as it is, even when ``p`` lets it go.

    Only on the CPU. Elsewhere graphs that were captured may write to gradients without having them.
    """
    g = p.grad
    plain = g is not None and type(g) is Tensor and g.is_cpu and g.layout is torch.strided
    return plain and g is not None and _holders(p) == _ONE_OWNER and dense(g)


def _holders(p: Tensor) -> tuple[int, int, int]:
    """Return how many hold the gradient of ``p``, and its memory, counting those that look.

    In Python, as graphs and DLPack do, and in views of it.
    """
    g = p.grad
    assert g is not None
    return sys.getrefcount(g), g._use_count(), torch._C._storage_Use_Count(g.untyped_storage()._cdata)  # type: ignore[attr-defined]


def _one_owner() -> tuple[int, int, int]:
    p = nn.Parameter(torch.zeros(1))
    p.sum().backward()  # type: ignore[no-untyped-call]
    g = p.grad  # has_one_owner holds it too
    assert g is not None
    return _holders(p)


_ONE_OWNER = _one_owner()
