"""Triggers: whether to climb at this step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import final

from ._scalars import Scalar, draw
from .ascents import Slope


class Trigger(ABC):
    """Whether to climb at this step. ``a & b`` climbs where both do."""

    needs_gradient: bool = False
    """Whether the answer depends on the clean gradient."""

    stretch: float = 1.0
    """What the radius is multiplied by."""

    @abstractmethod
    def due(self, step: Scalar) -> bool:
        """Say whether to climb at step ``step`` (0, 1, ...), as far as that is known without a gradient.

        With a fused base under a GradScaler the count is a 0-dim tensor.
        """

    def fires(self, slope: Slope) -> bool:
        """Say whether to climb at this step, given the clean gradients and the state."""
        return self.due(slope.step)

    def __and__(self, other: Trigger) -> Trigger:
        return Both(self, other)


@final
@dataclass(frozen=True)
class Both(Trigger):
    """Climb where ``first`` and ``second`` do; ``first & second`` makes it."""

    first: Trigger
    second: Trigger

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return self.first.needs_gradient or self.second.needs_gradient

    @property
    def stretch(self) -> float:  # type: ignore[override]
        return self.first.stretch * self.second.stretch

    def due(self, step: Scalar) -> bool:
        return self.first.due(step) and self.second.due(step)

    def fires(self, slope: Slope) -> bool:
        # Neither must miss a gradient that it keeps statistics of.
        return all([self.first.fires(slope), self.second.fires(slope)])


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")


@final
@dataclass(frozen=True)
class Always(Trigger):
    """Climb at every step."""

    def due(self, step: Scalar) -> bool:
        return True


@final
@dataclass(frozen=True)
class Every(Trigger):
    """Climb at steps 0, k, 2k, ...; the other steps cost one gradient and are the base's own.

    With ``stretched`` the radius is ``k rho``, as if the climbs that are left out had been saved up.
    """

    k: int
    stretched: bool = False

    def __post_init__(self) -> None:
        _check_whole("k", self.k)
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}.")

    @property
    def stretch(self) -> float:  # type: ignore[override]
        return float(self.k) if self.stretched else 1.0

    def due(self, step: Scalar) -> bool:
        return bool(step % self.k == 0)


@final
@dataclass(frozen=True)
class After(Trigger):
    """Climb from step ``start`` on: after a warm-up of so many steps, or in the last phase of a training."""

    start: int

    def __post_init__(self) -> None:
        _check_whole("start", self.start)
        if self.start < 0:
            raise ValueError(f"start must be a number of steps >= 0, got {self.start}.")

    def due(self, step: Scalar) -> bool:
        return bool(step >= self.start)


@final
@dataclass(frozen=True)
class Randomly(Trigger):
    """Climb with probability ``p``. What is drawn depends on ``seed`` and the count of steps, and on nothing else.

    So all processes draw the same, and a run that is resumed draws what it would have drawn.
    """

    p: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p must lie in [0, 1], got {self.p}.")
        _check_whole("seed", self.seed)

    def due(self, step: Scalar) -> bool:
        return draw(self.seed, step).random() < self.p


@final
@dataclass(frozen=True)
class LargeGradient(Trigger):
    """Climb where the gradient is large for its time, as AE-SAM does.

    With the clean gradient ``g`` of step ``t`` out of ``steps``::

        mean     <- decay mean + (1 - decay) ||g||^2
        variance <- decay variance + (1 - decay) (||g||^2 - mean)^2
        climb if ||g||^2 >= mean + c sqrt(variance),   c = late t / steps + early (1 - t / steps)

    from ``mean = variance = 0``. What is not finite does not count, and is not climbed along. On an accelerator every
    step waits for ``||g||``.

    Reference:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023
        (https://arxiv.org/abs/2304.14647).
    """

    steps: int
    early: float = 1.0
    late: float = -1.0
    decay: float = 0.9

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be the length of the training, >= 1, got {self.steps}.")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}.")

    def due(self, step: Scalar) -> bool:
        return True

    def fires(self, slope: Slope) -> bool:
        square = float(slope.norm) ** 2
        if not square < math.inf:
            return False
        mean, variance = slope.shared.get("norms", (0.0, 0.0))
        mean = self.decay * mean + (1 - self.decay) * square
        variance = self.decay * variance + (1 - self.decay) * (square - mean) ** 2
        slope.shared["norms"] = (mean, variance)
        done = min(float(slope.step) / self.steps, 1.0)
        return bool(square >= mean + (self.late * done + self.early * (1 - done)) * math.sqrt(variance))
