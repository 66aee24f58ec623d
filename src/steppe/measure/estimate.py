"""What a measure returns, and how it shows that it is still at work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .objective import Objective

_PATIENCE = 3.0  # seconds before a progress bar appears


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number; infinite where the loss overflowed.
        error: its standard error over ``n`` independent parts; None where it is exact or there is one part only.
        n: how many parts (batches, draws, probes) the value is the mean of.
        unit: of the value: ``"nats"`` if the loss is a cross-entropy, the loss's own unit in general.
        cost: what it took, in gradients over all the data, counted.
        seconds: what it took on this machine.
        settings: everything that the number depends on besides model and data.
    """

    value: float
    error: float | None
    n: int
    cost: float
    seconds: float
    settings: dict[str, Any]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


class Meter:
    """Counts what a measure costs."""

    def __init__(self, objective: Objective) -> None:
        self._spent, self._before, self._start = objective.spent, objective.spent.cost, time.perf_counter()

    @property
    def cost(self) -> float:
        """In gradients over all the data."""
        return self._spent.cost - self._before

    @property
    def seconds(self) -> float:
        """On the clock."""
        return time.perf_counter() - self._start


def mean_and_error(values: list[float], weights: list[float] | None = None) -> tuple[float, float | None]:
    """Return the (weighted) mean of values and its standard error, None if there is one value only or it is infinite.

    The error of a weighted mean is ``sqrt(n/(n-1) sum w_i^2 (x_i - mean)^2) / sum w_i``, which for equal weights is the
    usual one.
    """
    weights = weights or [1.0] * len(values)
    total = sum(weights)
    mean = sum(w * x for w, x in zip(weights, values, strict=True)) / total
    n = len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, None
    parts = [w * (x - mean) for w, x in zip(weights, values, strict=True)]
    square = sum(part * part for part in parts)  # may overflow to infinity, where ** raises
    return mean, (n / (n - 1) * square) ** 0.5 / total


class Progress:
    """Advances by one."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def __call__(self) -> None:
        if self._bar is not None:
            self._bar.update()


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Show a bar on a terminal if the work takes more than a few seconds; without tqdm, show nothing."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield Progress()
        return
    with tqdm(total=total, desc=title, delay=_PATIENCE, leave=False, disable=None) as bar:
        yield Progress(bar)
