"""Loss and metrics over a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from ..._parts import moved
from .metrics import Measuring
from .splits import Split, batches, examples_in
from .task import Task


@dataclass(frozen=True)
class Scores:
    """What a model is worth on a split.

    Attributes:
        loss: The mean over examples.
        metric: The one that decides.
        more: All others, by name.
    """

    loss: float
    metric: float
    more: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    device: torch.device | str = "cpu",
    forward: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Scores:
    """Evaluate a model on a split, read once batch by batch, with the model in evaluation mode.

    Args:
        model: The model.
        task: Gives loss and metrics.
        split: The data.
        device: Where the model is.
        forward: What forward passes run in.
    """
    model.eval()
    losses: list[tuple[float, int]] = []
    measuring = Measuring(task.metrics, device)
    size = task.batch_size_without_gradients(split)
    with torch.set_grad_enabled(task.evaluation_gradients):
        for batch in batches(split, size, collate=task.collate):
            batch = moved(batch, device)
            with forward():
                if task.step is not None:
                    loss = task.step(model, batch)
                    both = task.outputs(model, batch) if task.metrics else None
                else:
                    both = task.outputs(model, batch)
                    loss = task.loss(*both)
            losses.append((float(loss.detach()), examples_in(batch)))
            if both is not None:
                measuring.add(*both)
    found = measuring.results()
    mean = _mean(losses)
    name, *others = found or {task.metric_name: mean}
    return Scores(mean, found.get(name, mean), {name: found[name] for name in others})


def _mean(losses: list[tuple[float, int]]) -> float:
    if len(losses) == 1:  # as it is, to the last bit
        return losses[0][0]
    return math.fsum(n * loss for loss, n in losses) / sum(n for _, n in losses)
