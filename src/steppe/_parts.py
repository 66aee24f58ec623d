"""Batches in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def microbatches(batch: Any, at_most: int) -> Iterator[tuple[Any, float]]:
    """Split a batch into parts of at most so many examples, for batches larger than memory.

    The parts are as equal as possible, and ``weight`` is a part's share of the batch, so that over all parts::

        sum weight grad mean_loss(part) = grad mean_loss(batch)

    Args:
        batch: a tensor, or tensors in tuples, lists and dicts, nested at will, all with one first dimension. A list
            without tensors that is as long (texts) is split too; anything else goes into every part as it is.
        at_most: examples per part, >= 1.

    Returns:
        An iterator over pairs ``(part, weight)``. Tensors in the parts are views; mappings become dicts.

    Raises:
        ValueError: if tensors differ in their first dimension, there is none, or an argument is out of range.

    Note:
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
    n = examples_in(batch)
    return _parts(batch, n, math.ceil(n / at_most))


def _parts(batch: Any, n: int, count: int) -> Iterator[tuple[Any, float]]:
    for i in range(count):
        part = slice(-(-n * i // count), -(-n * (i + 1) // count))
        yield _take(batch, part, n), (part.stop - part.start) / n


def fraction_of(batch: Any, fraction: float) -> Any:
    """Return the first examples of a batch, to climb along the gradient of a part of it.

    Args:
        batch: as for `microbatches`.
        fraction: how much of it, in (0, 1]; the number of examples is rounded up.

    Returns:
        The part. Tensors are views; mappings become dicts.

    Raises:
        ValueError: if tensors differ in their first dimension, there is none, or ``fraction`` is out of range.

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
    need_fraction(fraction)
    n = examples_in(batch)
    # 0.1 of 30 is 3, and not 4, although 0.1 * 30 is a little more than 3.
    return _take(batch, slice(0, math.ceil(round(fraction * n, 9))), n)


def hardest(batch: Any, rise: Tensor, fraction: float) -> Any:
    """Return the examples of a batch whose loss has risen most, as `ESAM` asks for.

    Args:
        batch: as for `microbatches`; lists without tensors go along.
        rise: of the loss of each example, shape (batch,).
        fraction: how much of the batch, in (0, 1]; the number of examples is rounded up.

    Returns:
        The examples in their order; tensors are copies, mappings become dicts.

    Raises:
        ValueError: as `fraction_of`, and if ``rise`` has another shape.

    Example:
        >>> import torch
        >>> from steppe.batches import hardest
        >>> hardest({"x": torch.arange(4)}, torch.tensor([0.1, 0.4, 0.2, 0.3]), 0.5)
        {'x': tensor([1, 3])}
    """
    need_fraction(fraction)
    n = examples_in(batch)
    if rise.shape != (n,):
        raise ValueError(f"rise must have shape ({n},), one number per example, got {tuple(rise.shape)}.")
    return _take(batch, rise.topk(math.ceil(round(fraction * n, 9))).indices.sort().values, n)


def need_fraction(fraction: object) -> None:
    """Refuse what is no number in (0, 1]."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction!r}.")


def examples_in(batch: Any) -> int:
    """Return the one first dimension of all tensors in a batch, or refuse it."""
    lengths = sorted({len(tensor) for tensor in _tensors(batch)})
    if len(lengths) > 1:
        raise ValueError(f"The tensors of a batch must have one first dimension, got {lengths}. Split them alike.")
    if not lengths or not lengths[0]:
        raise ValueError(
            f"There is nothing to split: the batch, a {type(batch).__name__}, has no tensor with at least one example."
        )
    return lengths[0]


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors that have a first dimension."""
    if isinstance(batch, Tensor):
        if batch.dim():
            yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def _take(batch: Any, part: slice | Tensor, n: int) -> Any:
    if isinstance(batch, Tensor):
        return batch if not batch.dim() else batch[part] if isinstance(part, slice) else batch[part.to(batch.device)]
    if isinstance(batch, Mapping):
        return {key: _take(value, part, n) for key, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        return batch
    if next(_tensors(batch), None) is None:
        if len(batch) != n:
            return batch
        return batch[part] if isinstance(part, slice) else type(batch)([batch[i] for i in part.tolist()])
    items = [_take(item, part, n) for item in batch]
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
