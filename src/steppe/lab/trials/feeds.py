"""The training batches of a trial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice, repeat

import torch
from torch import Tensor

from ..errors import UserError, one_line
from ..tasks.task import Split, batches, size, take
from .schedules import ConstantSize, Sizes

_EPOCHS_APART = 1_000_003


def epochs(
    split: Split, batch_size: int, sizes: Sizes | None, seed: int, processes: int = 1, rank: int = 0
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Iterate over a training split again and again, in a new order each time.

    Args:
        split: Tensors or a dataset.
        batch_size: Examples in a batch, at least 1, if there is no schedule.
        sizes: The schedule of batch sizes, or None.
        seed: Of the order.
        processes: How many share every batch; with more than one there must be a schedule.
        rank: Of this process.

    Yields:
        The batches of one epoch; read them to their end before the next.
    """
    if sizes is None:
        order = torch.Generator().manual_seed(seed)
        while True:
            yield batches(split, batch_size, order)
    # The sampler draws epoch e from its seed + e: far apart, so that no epoch of one trial has the order of another's.
    sampler = sizes.sampler(size(split), seed * _EPOCHS_APART, processes, rank)
    while True:
        yield (take(split, indices) for indices in sampler)


def shared_sizes(sizes: Sizes | None, batch_size: int, processes: int) -> Sizes | None:
    """Return the schedule of batch sizes; several processes need one, as only the sampler gives each its share."""
    return ConstantSize(size=batch_size) if sizes is None and processes > 1 else sizes


def total_updates(
    sizes: Sizes | None, updates: int | None, epochs: int, batch_size: int, examples: int, processes: int = 1
) -> int:
    """Count the updates of a whole trial before it starts.

    Args:
        sizes: The schedule of batch sizes, or None.
        updates: The budget, or None if the trial goes by epochs.
        epochs: If it does.
        batch_size: If there is no schedule.
        examples: In the training split.
        processes: How many share every batch.

    Returns:
        Exactly as many as there will be, unless the trial diverges.

    Raises:
        UserError: An epoch has no batch, or a batch cannot be shared equally.

    Example:
        >>> total_updates(None, None, epochs=3, batch_size=8, examples=20)
        9
    """
    lengths = repeat(math.ceil(examples / batch_size)) if sizes is None else _lengths(sizes, examples, processes)
    try:
        if updates is None:
            return sum(islice(lengths, epochs))
        done = 0
        while done < updates:  # walked through all the same: an epoch without a batch shows here
            done += next(lengths)
    except ValueError as error:
        raise UserError(f"the batch sizes do not fit {examples} training examples: {one_line(error)}") from error
    return updates


def _lengths(sizes: Sizes, examples: int, processes: int) -> Iterator[int]:
    """Yield how many batches every epoch has."""
    sampler = sizes.sampler(examples, processes=processes)
    for epoch in count():
        sampler.set_epoch(epoch)
        yield len(sampler)
