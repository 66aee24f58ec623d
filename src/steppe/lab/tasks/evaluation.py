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
from .outcomes import Outcomes, of_batches
from .splits import Split, batches, known_examples_in, makes_batches, size
from .task import Task


@dataclass(frozen=True)
class Scores:
    """What a model is worth on a split.

    Attributes:
        loss: The mean over examples.
        metric: The one that decides.
        more: All others, by name.
        examples: How many there are; None if nothing says it.
        outcomes: What single examples do to the metric that decides, if that was asked for and can be said.
    """

    loss: float
    metric: float
    more: dict[str, float] = field(default_factory=dict)
    examples: int | None = None
    outcomes: Outcomes | None = None


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    device: torch.device | str = "cpu",
    forward: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    outcomes: bool = False,
) -> Scores:
    """Evaluate a model on a split, read once batch by batch, with the model in evaluation mode.

    Args:
        model: The model.
        task: Gives loss and metrics.
        split: The data.
        device: Where the model is.
        forward: What forward passes run in.
        outcomes: Whether to say what single examples do to the metric that decides.
    """
    model.eval()
    losses: list[tuple[float, int]] = []
    counts: list[int | None] = []
    measuring = Measuring(task.metrics, device, outcomes=outcomes)
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
            counts.append(known_examples_in(batch))
            losses.append((float(loss.detach()), counts[-1] or 1))
            if both is not None:
                measuring.add(*both)
    found = measuring.results()
    mean = _mean(losses)
    name, *others = found or {task.metric_name: mean}
    metric, examples = found.get(name, mean), _count(split, counts)
    single = None
    if outcomes:
        single = measuring.outcomes(metric, examples) if found else of_batches(losses)
    return Scores(mean, metric, {name: found[name] for name in others}, examples, single)


def _count(split: Split, counts: list[int | None]) -> int | None:
    """Return how many examples were read."""
    if not makes_batches(split):
        return size(split)
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _mean(losses: list[tuple[float, int]]) -> float:
    if len(losses) == 1:  # as it is, to the last bit
        return losses[0][0]
    return math.fsum(n * loss for loss, n in losses) / sum(n for _, n in losses)
