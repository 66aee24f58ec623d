"""Blends: which gradient to hand on to the base, out of the clean and the sharp one; without a blend, the sharp one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from ._tensors import Ops, Tensors, ratio


class Blend(ABC):
    """Which gradient to hand on."""

    needs_clean: ClassVar[bool]
    """Whether the engine must keep a copy of the clean gradient through the sharp pass (memory: one per parameter)."""

    @abstractmethod
    def blend_(self, sharp: Tensors, clean: Tensors, ops: Ops) -> None:
        """Overwrite the gradients ``sharp`` with those to hand on.

        Both lists hold the parameters that climbed and have a gradient in both passes. ``clean`` is empty unless
        `needs_clean`; it may be overwritten.
        """


@final
@dataclass(frozen=True)
class SurrogateGap(Blend):
    """Hand on ``s - alpha (g - (<g, s> / ||s||^2) s)``: sharp less ``alpha`` times clean's part orthogonal to sharp."""

    alpha: float = 0.4

    needs_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -float("inf") < self.alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number, got {self.alpha}.")

    def blend_(self, sharp: Tensors, clean: Tensors, ops: Ops) -> None:
        # Nothing is parallel to a zero gradient.
        parallel = ratio(ops.dot(clean, sharp), ops.dot(sharp, sharp))
        ops.scale_(sharp, 1 + self.alpha * parallel)
        ops.add_(sharp, clean, -self.alpha)
