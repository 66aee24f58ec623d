"""Triggers: whether to climb at this step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from .ascents import Slope


class Trigger(ABC):
    """Whether to climb at this step."""

    needs_gradient: ClassVar[bool] = False
    """Whether the answer depends on the clean gradient."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Say whether to climb at step ``step`` (0, 1, ...), as far as that is known without a gradient."""

    def fires(self, step: int, slope: Slope) -> bool:
        """Say whether to climb at this step, given the clean gradients and the state."""
        return self.due(step)


@final
@dataclass(frozen=True)
class Always(Trigger):
    """Climb at every step."""

    def due(self, step: int) -> bool:
        return True


@final
@dataclass(frozen=True)
class Every(Trigger):
    """Climb at steps 0, k, 2k, ...; the other steps cost one gradient and are the base's own."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}.")

    def due(self, step: int) -> bool:
        return step % self.k == 0
