"""Triggers: whether to climb at this step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from .ascents import Slope


class Trigger(ABC):
    """Whether to climb at this step."""

    @abstractmethod
    def fires(self, step: int, slope: Slope) -> bool:
        """Say whether to climb at step ``step`` (0, 1, ...), given the clean gradients and the state."""


@final
@dataclass(frozen=True)
class Always(Trigger):
    """Climb at every step."""

    def fires(self, step: int, slope: Slope) -> bool:
        return True


@final
@dataclass(frozen=True)
class Every(Trigger):
    """Climb at steps 0, k, 2k, ...; the other steps cost one gradient and are the base's own."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}.")

    def fires(self, step: int, slope: Slope) -> bool:
        return step % self.k == 0
