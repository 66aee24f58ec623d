"""Blends: which gradient to hand on to the base, out of the clean and the sharp one; without a blend, the sharp one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from ._tensors import Tensors, ratio, wide
from .ascents import Slope


class Blend(ABC):
    """Which gradient to hand on."""

    needs_clean: ClassVar[bool]
    """Whether the engine must keep a copy of the clean gradient through the sharp pass (memory: one per parameter)."""

    memories: ClassVar[tuple[str, ...]] = ()
    """What is remembered of each parameter, from zero on, and used in steps that do not climb."""

    @abstractmethod
    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        """Overwrite the gradients ``sharp.grads`` with those to hand on.

        Both hold the parameters that climbed and have a gradient in both passes. ``clean`` is empty unless
        `needs_clean`; it may be overwritten.
        """

    def between_(self, clean: Slope) -> None:  # noqa: B027 (most have nothing to do then)
        """Overwrite the gradients ``clean.grads`` of a step that does not climb; asked only if there are `memories`."""


@final
@dataclass(frozen=True)
class SurrogateGap(Blend):
    """Hand on ``s - alpha (g - (<g, s> / ||s||^2) s)``: sharp less ``alpha`` times clean's part orthogonal to sharp."""

    alpha: float = 0.4

    needs_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        ops = sharp.ops
        # Nothing is parallel to a zero gradient.
        parallel = ratio(*ops.dots(clean, sharp.grads))
        ops.mix_(sharp.grads, clean, 1 + self.alpha * parallel, -self.alpha)


@final
@dataclass(frozen=True)
class Weighted(Blend):
    """Hand on ``(1 - alpha) g + alpha s``; an ``alpha > 1`` goes beyond the sharp gradient."""

    alpha: float = 0.8

    needs_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        sharp.ops.mix_(sharp.grads, clean, self.alpha, 1 - self.alpha)


@final
@dataclass(frozen=True)
class Reuse(Blend):
    """Hand on ``s``, and remember which way its part orthogonal to clean points, ``v = s - (<g, s> / ||g||^2) g``.

    Steps that do not climb hand on ``g + alpha (||g|| / ||v||) v``. What is kept is ``v / ||v||``, which does not
    depend on the scale of the loss. Of several climbs in one step the last is remembered.
    """

    alpha: float = 0.2

    needs_clean: ClassVar[bool] = True
    memories: ClassVar[tuple[str, ...]] = ("orthogonal",)

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        ops = sharp.ops
        parallel = ratio(*ops.dots(sharp.grads, clean))
        rest = sharp.along([wide(g) for g in clean])  # the memory of the clean gradients, which nobody needs any more
        ops.mix_(rest.grads, sharp.grads, -parallel, 1.0)
        ops.scale_(rest.grads, ratio(1.0, rest.norm))
        rest.keep("orthogonal", rest.or_else(rest.grads, sharp.remember("orthogonal", 0.0)))

    def between_(self, clean: Slope) -> None:
        clean.ops.move_(clean.grads, clean.remember("orthogonal", 0.0), self.alpha * clean.norm)


def _check_alpha(alpha: float) -> None:
    if not -float("inf") < alpha < float("inf"):
        raise ValueError(f"alpha must be a finite number, got {alpha}.")
