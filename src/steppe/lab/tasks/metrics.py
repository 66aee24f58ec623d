"""What is measured over a whole split: functions of outputs and targets, or metrics of torchmetrics."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..._examples import Examples
from ..._parts import moved
from .outcomes import Outcomes, of_means, of_metric
from .randomness import drawing_apart

Metric: TypeAlias = "Callable[[Any, Any], Any]"
"""``metric(outputs, targets)`` over a split; or an object with ``update``, ``compute`` and ``reset``."""

_ERRORS = ("error", "loss", "mse", "mae", "rmse", "perplexity", "distance", "brier")
_MOST_KEPT = 64 * 2**20  # bytes of outputs and targets, for metrics that do not need them all at once
_ZERO = 1e-7
_ALIKE = 1e-4  # relative: so much may a metric over all batches at once differ from that over one after the other


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
    return 100.0 * float(_right(outputs, targets).mean())


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for every row that is right, and 0 for all others."""
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
    return (found == targets).double()


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
        outcomes: Whether `outcomes` will be asked for.
    """

    def __init__(
        self, metrics: Mapping[str, Metric], device: torch.device | str = "cpu", *, outcomes: bool = False
    ) -> None:
        """See the class."""
        self._first = next(iter(metrics.values()), None)
        self._functions = {name: metric for name, metric in metrics.items() if not is_object(metric)}
        self._objects = {name: _new(metric, device) for name, metric in metrics.items() if is_object(metric)}
        self._order = list(metrics)
        self._left = math.inf if self._functions else _MOST_KEPT if outcomes else 0  # bytes that may be kept
        self._read: list[tuple[Any, Any]] = []

    def add(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""
        outputs, targets = plain(outputs), plain(targets)
        for metric in self._objects.values():
            metric.update(outputs, targets)
        if self._left > 0:
            self._read.append((moved(outputs, "cpu"), moved(targets, "cpu")))
            self._left -= _bytes(outputs) + _bytes(targets)
            if self._left <= 0:
                self._read.clear()

    def results(self) -> dict[str, float]:
        """Return the metrics, in the order that they were given in.

        Raises:
            ValueError: Batches cannot be put together.
        """
        found = {name: _number(metric.compute()) for name, metric in self._objects.items()}
        if self._functions:
            outputs, targets = self._all()
            found |= {name: _number(metric(outputs, targets)) for name, metric in self._functions.items()}
        return {name: found[name] for name in self._order}

    def outcomes(self, whole: float, examples: int | None) -> Outcomes | None:
        """Return what single examples do to the first metric, which is what it was afterwards.

        Args:
            whole: What `results` has returned for it.
            examples: How many there are; None if nobody knows.

        Returns:
            None if that cannot be said: rows of outputs are no examples, an object has seen more than 64 MB, or the
            metric fails on fewer examples, is not finite there, or is another one of all examples at once than of
            batches.
        """
        if not self._read or examples is None:
            return None
        try:
            with drawing_apart(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of fewer examples, which are nobody's
                return self._outcomes(whole, examples)
        except Exception:  # whatever a user's metric raises: what it is of all examples is known
            return None

    def _outcomes(self, whole: float, examples: int) -> Outcomes | None:
        outputs, targets = self._all()
        if self._first is accuracy:
            right = _right(outputs, targets)
            return of_means(100.0 * right, step=100.0 / examples) if len(right) == examples else None
        both = Examples((outputs, targets))
        if both.n != examples:
            return None
        metric: Any = _alone(self._first)

        def over(indices: Tensor) -> float:
            value = _over(metric, *both.take(indices))
            if not math.isfinite(value):
                raise ValueError(value)
            return value

        again = over(torch.arange(examples))
        return of_metric(over, again, examples) if math.isclose(again, whole, rel_tol=_ALIKE, abs_tol=_ZERO) else None

    def _all(self) -> tuple[Any, Any]:
        return joined([outputs for outputs, _ in self._read]), joined([targets for _, targets in self._read])


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


def _over(metric: Any, outputs: Any, targets: Any) -> float:
    """Return a metric over some examples, whatever it was given before."""
    if not is_object(metric):
        return _number(metric(outputs, targets))
    metric.reset()
    metric.update(outputs, targets)
    return _number(metric.compute())


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return sum(map(_bytes, parts))


def _alone(metric: Any) -> Any:
    """Return a copy on the CPU, of which other processes know nothing."""
    if not is_object(metric):
        return copy.deepcopy(metric)
    made = _new(metric, "cpu")
    if hasattr(made, "distributed_available_fn"):  # of torchmetrics, which would else wait for them
        made.distributed_available_fn = lambda: False
    return made


def _new(metric: Any, device: torch.device | str) -> Any:
    made = copy.deepcopy(metric)
    made.reset()
    return made.to(device) if hasattr(made, "to") else made
