"""What measures of sharpness are given of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..._parts import moved
from .splits import Split, batches, examples_in, has_columns, size, take
from .task import Task


def objective(task: Task, split: Split, examples: int, batch_size: int, device: torch.device | str) -> dict[str, Any]:
    """Return loss, data and forward pass as `steppe.measure.Objective` takes them by name.

    Args:
        task: Gives the loss of a batch.
        split: The data.
        examples: At most so many, from the beginning; of loaders, whole batches.
        batch_size: Examples in a batch, unless the split makes batches itself.
        device: Where the batches are to be.
    """
    plain = task.step is None and task.forward is None
    if plain and isinstance(split, tuple) and len(split) == 2 and has_columns(split):
        data: Any = moved(take(split, range(min(examples, size(split)))), device)
        return {"loss_fn": task.loss, "data": data, "batch_size": batch_size, "forward": task.outputs}
    data = [moved(batch, device) for batch in _first(task, split, examples, batch_size)]
    if task.step is None:
        return {"loss_fn": task.loss, "data": data, "forward": task.outputs}

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return task.loss_of(model, batch), torch.empty(examples_in(batch))

    return {"loss_fn": lambda loss, _: loss, "data": data, "forward": forward}


def _first(task: Task, split: Split, examples: int, batch_size: int) -> Iterator[Any]:
    read = 0
    for batch in batches(split, min(batch_size, examples), collate=task.collate):
        yield batch
        read += examples_in(batch)
        if read >= examples:
            return
