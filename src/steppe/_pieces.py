"""Lists of tensors in pieces that fit into a cache: large tensors are cut, and many tiny ones copied into one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._scalars import Tensors

PIECE = 2**17
"""Elements, per thread, of which three copies fit into a cache of a core."""

LINE = 2**17
"""Elements whose products are added up in their own precision: of equal ones, float32 keeps four digits at the worst.

How many it keeps is up to the processor: its kernels add up in more or fewer sums.
"""

FEW = 2**20
"""Elements that a model has at most if every call counts."""

_TINY, HANDFUL = 2**12, 8


def pieces(*lists: Tensors, size: int | None = None) -> Iterator[tuple[Tensors, ...]]:
    """Cut lists of tensors of the same shapes into parts that fit into a cache, large tensors too."""
    size = PIECE * torch.get_num_threads() if size is None else size
    if sum(map(Tensor.numel, lists[0])) <= size:
        yield lists
        return
    held: list[int] = []  # not tuples of tensors, which the collector of garbage would look through
    room = size
    for i, x in enumerate(lists[0]):
        numel = x.numel()
        if numel > size and all(xs[i].is_contiguous() for xs in lists):
            for parts in zip(*(torch.split(xs[i].view(-1), size) for xs in lists), strict=True):
                yield tuple([part] for part in parts)
        else:
            held.append(i)
            room -= numel
            if room <= 0:
                yield tuple([xs[j] for j in held] for xs in lists)
                held, room = [], size
    if held:
        yield tuple([xs[j] for j in held] for xs in lists)


def lines(*lists: Tensors, often: bool) -> Iterator[tuple[Tensor, ...]]:
    """Return all elements in not too large tensors, which fit into a cache if they are read ``often``.

    Many tiny ones become one flat copy, which one call reads.
    """
    for some in pieces(*lists, size=None if often else LINE):
        yield from zip(*packed(some), strict=True)


def packed(lists: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
    """Return flat copies of ``lists`` if their tensors are tiny, else ``lists``."""
    return tuple([flattened(xs)] for xs in lists) if are_tiny(lists[0], 2) else lists


def are_few(xs: Tensors) -> bool:
    """Say whether ``xs`` are those of a small model, where every call counts."""
    sizes = [x.numel() for x in xs]
    numel = sum(sizes)
    return numel <= FEW and (len(xs) <= HANDFUL or numel >= _TINY * len(xs)) and max(sizes) <= LINE


def are_tiny(xs: Tensors, handful: int = HANDFUL) -> bool:
    """Say whether ``xs`` are copied sooner than a call for each of them is made, if they are more than a handful."""
    return len(xs) > handful and sum([x.numel() for x in xs]) < _TINY * len(xs)


def flattened(xs: Tensors) -> Tensor:
    """Return a copy of all elements in one line."""
    if _are_lines(xs):
        return torch.cat([*xs])
    flat: Tensor = torch._C._nn.flatten_dense_tensors([*xs])  # a quarter of the time of reshape and cat
    return flat


def unflattened(flat: Tensor, xs: Tensors) -> Tensors:
    """Return views of ``flat`` in the shapes of ``xs``."""
    if _are_lines(xs):
        return torch.split(flat, [x.numel() for x in xs])
    found: Tensors = torch._C._nn.unflatten_dense_tensors(flat, [*xs])
    return found


def _are_lines(xs: Tensors) -> bool:
    """Say whether no tensor needs a view to be one line, as biases and scales need none: a view is what costs most."""
    return all(x.dim() == 1 for x in xs)


def runs(xs: Tensors) -> Iterator[Tensors]:
    """Return ``xs``, in their order, in runs of one dtype and device that are as large as a piece, if not larger."""
    held: list[Tensor] = []
    room = PIECE
    for x in xs:
        if held and (room <= 0 or x.dtype is not held[0].dtype or x.device != held[0].device):
            yield held
            held, room = [], PIECE
        held.append(x)
        room -= x.numel()
    if held:
        yield held
