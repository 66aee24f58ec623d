"""The training batches of a trial."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, repeat
from typing import Any

import torch

from ..._examples import Examples
from ..errors import UserError, one_line
from ..tasks.splits import batches, length, makes_batches, size, take
from ..tasks.task import Task
from .schedules import Sizes

_EPOCHS_APART = 1_000_003


def epochs(
    task: Task, batch_size: int, sizes: Sizes | None, seed: int, processes: int = 1, rank: int = 0
) -> Iterator[Iterator[Any]]:
    """Iterate over a training split again and again, in a new order each time.

    Args:
        task: Gives the training split.
        batch_size: Examples in a batch, at least 1, if there is no schedule.
        sizes: The schedule of batch sizes, or None.
        seed: Of the order.
        processes: How many share every batch.
        rank: Of this process.

    Yields:
        The batches of one epoch; read them to their end before the next.
    """
    if sizes is None:
        order = torch.Generator().manual_seed(seed)
        while True:
            whole = batches(task.train, batch_size, order, collate=task.collate, drop_last=task.drop_last)
            yield whole if processes == 1 else (share(batch, processes, rank) for batch in whole)
    # The sampler draws epoch e from its seed + e: far apart, so that no epoch of one trial has the order of another's.
    sampler = sizes.sampler(size(task.train), seed * _EPOCHS_APART, processes, rank)
    while True:
        yield (take(task.train, indices, task.collate) for indices in sampler)


def share(batch: Any, processes: int, rank: int) -> Any:
    """Return what one of several processes has of a batch, which is filled up from its start to equal shares.

    Example:
        >>> [share((torch.arange(5),), 2, rank) for rank in (0, 1)]
        [(tensor([0, 2, 4]),), (tensor([1, 3, 0]),)]
    """
    examples = Examples(batch)
    return examples.take(torch.arange(rank, -(-examples.n // processes) * processes, processes) % examples.n)


def total_updates(
    sizes: Sizes | None, updates: int | None, epochs: int, batch_size: int, task: Task, processes: int = 1
) -> int:
    """Count the updates of a whole trial before it starts.

    Args:
        sizes: The schedule of batch sizes, or None.
        updates: The budget, or None if the trial goes by epochs.
        epochs: If it does.
        batch_size: If there is no schedule.
        task: Gives the training split.
        processes: How many share every batch.

    Returns:
        Exactly as many as there will be, unless the trial diverges.

    Raises:
        UserError: An epoch has no batch, or a batch cannot be shared equally.

    Example:
        >>> from ..tasks.builtin import digits
        >>> total_updates(None, None, epochs=3, batch_size=80, task=digits())
        39
    """
    if sizes is not None and makes_batches(task.train):
        raise UserError(
            "the task's train makes batches itself, so that nobody else can share them or change their size; give a "
            "dataset, with collate= if need be"
        )
    if sizes is None and batch_size % processes:
        raise UserError(
            f"the batch size is {batch_size}, of which {processes} processes cannot have equal shares; make it a "
            "multiple"
        )
    examples = size(task.train)
    if sizes is not None:
        lengths = _lengths(sizes, examples, processes)
    else:
        lengths = repeat(length(task.train, batch_size, drop_last=task.drop_last))
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
