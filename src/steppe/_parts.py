"""Batches in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ._examples import Examples


def microbatches(batch: Any, at_most: int) -> Iterator[tuple[Any, float]]:
    """Split a batch into parts of at most so many examples, for batches larger than memory.

    The parts are as equal as possible, and ``weight`` is a part's share of the batch, so that over all parts::

        sum weight grad mean_loss(part) = grad mean_loss(batch)

    Args:
        batch: a tensor, or tensors and numpy arrays in tuples, lists, mappings and dataclasses, nested at will, all
            with one first dimension. A sequence without tensors that is as long (texts, numbers) is split too, and so
            is a list of tensors or dicts, one per example, in the batch; see the note. Anything else without tensors
            goes into every part as it is.
        at_most: examples per part, >= 1.

    Returns:
        An iterator over pairs ``(part, weight)``. Tensors in the parts are views, but for sparse and nested ones;
        mappings become dicts, dataclasses are made anew from their cut fields.

    Raises:
        ValueError: if tensors differ in their first dimension, there is none, an argument is out of range, or a list
            can be read both as fields and as examples.
        TypeError: if something may have data of each example and cannot be cut: objects that hold tensors, as graphs
            and packed sequences do, data frames, iterators, sparse tensors other than COO without gradient.

    Note:
        A list or tuple of tensors that is the batch itself is read as its fields, ``[x, y]``. One in the batch is
        read as examples if it is as long as there are examples, and its items' first dimensions are not that: images
        of several sizes, beside labels or beside a list of dicts. So is a list of samples that were not collated.
        Where both readings are possible, lists go by the others of their batch: they are examples if one of them can
        be nothing else, and where one of tensors and one of dicts are equally long. Without such a sign they are
        refused. The items of dicts, named tuples and dataclasses always are fields.

        Batch normalization sees the parts, not the batch. Under `DistributedDataParallel`, let all but the last part
        of each pass run in ``model.no_sync()``.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.batches import microbatches
        >>> model, x, y = torch.nn.Linear(2, 1), torch.ones(10, 2), torch.ones(10, 1)
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def closure():
        ...     opt.zero_grad()
        ...     total = 0.0
        ...     for (xs, ys), weight in microbatches((x, y), at_most=4):
        ...         loss = weight * torch.nn.functional.mse_loss(model(xs), ys)
        ...         loss.backward()
        ...         total += loss.detach()
        ...     return total
        >>> loss = opt.step(closure)
        >>> [(len(part), weight) for part, weight in microbatches(x, at_most=4)]
        [(4, 0.4), (3, 0.3), (3, 0.3)]
    """
    if isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 1:
        raise ValueError(f"at_most must be an int >= 1, got {at_most!r}.")
    examples = Examples(batch)
    return _parts(examples, math.ceil(examples.n / at_most))


def _parts(examples: Examples, count: int) -> Iterator[tuple[Any, float]]:
    n = examples.n
    for i in range(count):
        part = slice(-(-n * i // count), -(-n * (i + 1) // count))
        yield examples.take(part), (part.stop - part.start) / n


def moved(batch: Any, device: torch.device | str) -> Any:
    """Return a batch on a device: tensors, whatever else has a ``to``, and those in sequences and mappings."""
    if isinstance(batch, Tensor):
        # Not towards the CPU, which would read what has not arrived yet.
        return batch.to(device, non_blocking=torch.device(device).type != "cpu")
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        items = [moved(value, device) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def fraction_of(batch: Any, fraction: float) -> Any:
    """Return the first examples of a batch, to climb along the gradient of a part of it.

    Args:
        batch: as for `microbatches`.
        fraction: how much of it, in (0, 1]; the number of examples is rounded up.

    Returns:
        The part, of one example at least, in the form of `microbatches`.

    Raises:
        ValueError: as `microbatches`, and if ``fraction`` is out of range.
        TypeError: as `microbatches`.

    Note:
        Batches that are drawn at random are so in every part. Under DDP every process takes the part of its own batch.
        Batch norm normalises a part by the part alone; let that pass run in `steppe.passes.frozen_norm_stats`, so that
        the running statistics are those of whole batches.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.batches import fraction_of
        >>> model, batch = torch.nn.Linear(2, 1), (torch.ones(8, 2), torch.ones(8, 1))
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def gradient(x, y):
        ...     opt.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> part = fraction_of(batch, 0.25)
        >>> loss = opt.step(lambda: gradient(*batch), ascent=lambda: gradient(*part))
        >>> len(part[0])
        2
    """
    return first_of(batch, fraction)[0]


def first_of(batch: Any, fraction: float) -> tuple[Any, int, int]:
    """Return the first examples of a batch, how many they are, and of how many."""
    need_fraction(fraction)
    examples = Examples(batch)
    count = _count(fraction, examples.n)
    return examples.take(slice(0, count)), count, examples.n


def hardest(batch: Any, rise: Tensor, fraction: float) -> Any:
    """Return the examples of a batch whose loss has risen most, as `ESAM` asks for.

    Args:
        batch: as for `microbatches`.
        rise: of the loss of each example, shape (batch,).
        fraction: how much of the batch, in (0, 1]; the number of examples is rounded up.

    Returns:
        The examples in their order, one at least; tensors are copies, mappings become dicts.

    Raises:
        ValueError: as `fraction_of`, and if ``rise`` has another shape.
        TypeError: as `microbatches`.

    Example:
        >>> import torch
        >>> from steppe.batches import hardest
        >>> hardest({"x": torch.arange(4)}, torch.tensor([0.1, 0.4, 0.2, 0.3]), 0.5)
        {'x': tensor([1, 3])}
    """
    need_fraction(fraction)
    examples = Examples(batch)
    if rise.shape != (examples.n,):
        raise ValueError(f"rise must have shape ({examples.n},), one number per example, got {tuple(rise.shape)}.")
    return examples.take(rise.topk(_count(fraction, examples.n)).indices.sort().values)


def _count(fraction: float, n: int) -> int:
    # 0.1 of 30 is 3, and not 4, although 0.1 * 30 is a little more than 3. Of ever so little it is one.
    return max(1, math.ceil(round(fraction * n, 9)))


def need_fraction(fraction: object) -> None:
    """Refuse what is no number in (0, 1]."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction!r}.")
