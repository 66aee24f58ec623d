"""Blends: which gradient to hand on to the base, out of the clean and the sharp one; without a blend, the sharp one.

Groups with a radius of 0 stay where they are while others climb: their ``delta`` is 0, and not their sharp gradient the
clean one. A blend mixes both of theirs as it mixes those of all others, with the same numbers. But what is in these
numbers, norms and inner products, is of the parameters that climb alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ._scalars import Scalar, Tensors, above, ratio, wide
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

        Both hold the parameters that have a gradient in both passes, first those that climbed. ``clean`` is empty
        unless `needs_clean`; it may be overwritten.
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
        parallel = ratio(*sharp.dots(clean))
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

    Steps that do not climb hand on ``g + alpha (||g|| / ||v||) v``; ``v`` is 0 for parameters that had no gradient in
    the climb. Of several climbs in one step the last is remembered.
    """

    alpha: float = 0.2

    needs_clean: ClassVar[bool] = True
    memories: ClassVar[tuple[str, ...]] = ("orthogonal",)

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        rest = sharp.along([wide(g) for g in clean])  # the memory of the clean gradients, which nobody needs any more
        product, square = rest.dots(sharp.grads, sharp.clean_square)
        parallel: Scalar = ratio(product, square)
        rest.add_to_(sharp.grads, -parallel)
        # Where s is parallel to g, what is left is how the two were rounded, and no direction.
        size: Scalar = parallel.abs() if isinstance(parallel, Tensor) else abs(parallel)
        rounded = size * square**0.5 * _rounding(sharp)
        before = self._length(sharp)
        length = rest.number_or_else(above(rest.norm, rounded), before)
        old = sharp.remember("orthogonal", 0.0)
        rest.keep("orthogonal", rest.or_else(rest.grads, old), old)
        sharp.shared["length"] = length
        if length is not before:  # it is of this climb, and so must be all
            sharp.forget_others("orthogonal")

    def between_(self, clean: Slope) -> None:
        step = self.alpha * clean.norm * ratio(1.0, self._length(clean))
        clean.ops.move_(clean.grads, clean.remember("orthogonal", 0.0), step)

    @staticmethod
    def _length(slope: Slope) -> Scalar:
        length: Scalar = slope.shared.get("length", 1.0)  # as long as it is in states that were saved before 0.1
        return length


def _rounding(slope: Slope) -> float:
    """Return what part of a gradient may be the rounding of weights and gradients, or of sums, in at least float32."""
    dtypes = {slope.ops.kind[1]} if slope.ops.kind else {x.dtype for x in (*slope.params, *slope.scaled)}
    sums = {torch.promote_types(dtype, torch.float32) for dtype in dtypes}
    return max(max(4 * torch.finfo(x).eps for x in dtypes), max(16 * torch.finfo(x).eps for x in sums))


def _check_alpha(alpha: float) -> None:
    if not -float("inf") < alpha < float("inf"):
        raise ValueError(f"alpha must be a finite number, got {alpha}.")
