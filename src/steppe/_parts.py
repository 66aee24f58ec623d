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
    lengths = sorted({len(tensor) for tensor in _tensors(batch)})
    if len(lengths) > 1:
        raise ValueError(f"The tensors of a batch must have one first dimension, got {lengths}. Split them alike.")
    if not lengths or not lengths[0]:
        raise ValueError(
            f"There is nothing to split: the batch, a {type(batch).__name__}, has no tensor with at least one example."
        )
    return _parts(batch, lengths[0], math.ceil(lengths[0] / at_most))


def _parts(batch: Any, n: int, count: int) -> Iterator[tuple[Any, float]]:
    for i in range(count):
        part = slice(-(-n * i // count), -(-n * (i + 1) // count))
        yield _take(batch, part, n), (part.stop - part.start) / n


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors that have a first dimension."""
    if isinstance(batch, Tensor):
        if batch.dim():
            yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def _take(batch: Any, part: slice, n: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[part] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _take(value, part, n) for key, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        return batch
    if next(_tensors(batch), None) is None:
        return batch[part] if len(batch) == n else batch
    items = [_take(item, part, n) for item in batch]
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
