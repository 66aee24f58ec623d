"""What is measured over a whole split: functions of outputs and targets, or metrics of torchmetrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..._parts import moved

Metric: TypeAlias = "Callable[[Any, Any], Any]"
"""``metric(outputs, targets)`` over a split; or an object with ``update``, ``compute`` and ``reset``."""

_ERRORS = ("error", "loss", "mse", "mae", "rmse", "perplexity", "distance", "brier")


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the percentage of rows of `outputs` whose largest entry is at the index `targets`.

    Args:
        outputs: Scores of shape (n, classes).
        targets: Class indices of shape (n,).

    Returns:
        A number from 0 to 100.

    Raises:
        ValueError: Outputs are no tensor, or targets no class indices.

    Example:
        >>> accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
        50.0
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"accuracy needs scores in a tensor as outputs, got {type(outputs).__name__}; give another metric="
        )
    found = outputs.argmax(dim=1)
    if targets.is_floating_point() or found.shape != targets.shape:
        raise ValueError(
            f"accuracy needs whole class indices of shape {tuple(found.shape)} as targets, got shape "
            f"{tuple(targets.shape)} of {targets.dtype}; give another metric="
        )
    return 100.0 * float((found == targets).double().mean())


def is_object(metric: object) -> bool:
    """Return whether a metric is an object that takes batch after batch, as those of torchmetrics are."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def name_of(metric: object) -> str:
    """Return what a metric is called if nobody says."""
    if metric is accuracy:
        return "accuracy (%)"
    name: str = getattr(metric, "__name__", None) or type(metric).__name__
    return name if name.isidentifier() else "metric"  # a lambda has none


def direction_of(metric: object, name: str) -> bool | None:
    """Return whether a larger value is better, as far as the metric or its name says it; None if it may be either."""
    own = getattr(metric, "higher_is_better", None)
    if isinstance(own, bool):
        return own
    return None if any(word in name.lower() for word in _ERRORS) else True


class Measuring:
    """Takes outputs and targets batch by batch, and says what the metrics are over all of them.

    Objects are given every batch. Functions are called once, with all outputs and targets one after the other, on the
    CPU.

    Args:
        metrics: By name.
        device: Where the batches are.
    """

    def __init__(self, metrics: Mapping[str, Metric], device: torch.device | str = "cpu") -> None:
        """See the class."""
        self._functions = {name: metric for name, metric in metrics.items() if not is_object(metric)}
        self._objects = {name: _new(metric, device) for name, metric in metrics.items() if is_object(metric)}
        self._order = list(metrics)
        self._read: list[tuple[Any, Any]] = []

    def add(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""
        outputs, targets = plain(outputs), plain(targets)
        for metric in self._objects.values():
            metric.update(outputs, targets)
        if self._functions:
            self._read.append((moved(outputs, "cpu"), moved(targets, "cpu")))

    def results(self) -> dict[str, float]:
        """Return the metrics, in the order that they were given in.

        Raises:
            ValueError: Batches cannot be put together.
        """
        found = {name: _number(metric.compute()) for name, metric in self._objects.items()}
        if self._functions:
            outputs, targets = joined([o for o, _ in self._read]), joined([t for _, t in self._read])
            found |= {name: _number(metric(outputs, targets)) for name, metric in self._functions.items()}
        return {name: found[name] for name in self._order}


def plain(value: Any) -> Any:
    """Return values without their graph, in single precision where they have less."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = map(plain, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def joined(parts: list[Any]) -> Any:
    """Put batches together: tensors along their first dimension, fields one by one, lists one after the other.

    Raises:
        ValueError: Tensors differ in more than their first dimension, or something else cannot be put together.

    Example:
        >>> joined([{"scores": torch.zeros(2, 3)}, {"scores": torch.ones(1, 3)}])["scores"].shape
        torch.Size([3, 3])
    """
    first = parts[0]
    if isinstance(first, Tensor):
        if first.ndim == 0:
            return torch.stack(parts)
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise ValueError(
                f"batches differ in shape, {shapes[0]} and {shapes[-1]} for each example, and a function needs all of "
                "them at once; give a metric that takes batch after batch, as torchmetrics has them"
            )
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        columns = [joined(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    if isinstance(first, list):
        return [item for part in parts for item in part]
    raise ValueError(f"a {type(first).__name__} of each batch cannot be put together; return tensors")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"it must return a number, got {type(value).__name__}") from error


def _new(metric: Any, device: torch.device | str) -> Any:
    made = copy.deepcopy(metric)
    made.reset()
    return made.to(device) if hasattr(made, "to") else made
