"""Climbs whose radius is a constant in some unit: of loss, of weights, of updates, of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from ..._scalars import Scalar, above, ratio, wide
from ...ascents import Ascent, Directions, Slope

LONGEST = 10.0
"""No climb is longer, as with `steppe.Angle`: where gradients vanish, some of these units know no bound."""

LOSS = "loss"
"""Where a slope's shared memory has the loss of the clean pass, if somebody noted it there."""


@final
@dataclass(frozen=True)
class LossBudget(Ascent):
    """``d = g``, ``c = 1 / ||g||^2``, or ``relative`` ``c = L / ||g||^2``: the loss rises by ``rho``, or by ``rho L``.

    That is what its tangent says.

    Args:
        relative: whether in parts of the loss ``L``, which must be noted under `LOSS`.
        longest: the longest climb, in multiples of ``rho``.

    Example:
        >>> LossBudget(relative=True)
        LossBudget(relative=True, longest=inf)
    """

    relative: bool = False
    longest: float = math.inf

    def directions(self, slope: Slope) -> Directions:
        budget: Scalar = slope.shared[LOSS] if self.relative else 1.0
        length = ratio(budget, slope.norm)
        return slope.grads, ratio(_at_most(length, self.longest), slope.norm)


@final
@dataclass(frozen=True)
class OfWeights(Ascent):
    """``d = g``, ``c = ||w|| / ||g||``: as far as a part of the way from all weights to 0.

    Example:
        >>> OfWeights().scale_free
        True
    """

    scale_free: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        return slope.grads, ratio(slope.norm_of(lambda params, grads: params), slope.norm)


@final
@dataclass(frozen=True)
class OfEachTensor(Ascent):
    """``d_i = (||w_i|| / ||g_i||) g_i``, ``c = 1``: every parameter tensor by a part of its own norm.

    Those that are 0 stay where they are.

    Example:
        >>> OfEachTensor().scale_free
        True
    """

    scale_free: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        def norm(x: Tensor) -> Scalar:
            return slope.ops.norm([x])

        return [wide(g) * ratio(norm(w), norm(g)) for w, g in zip(slope.params, slope.grads, strict=True)], 1.0


@final
@dataclass(frozen=True)
class OfUpdate(Ascent):
    """``d = g``, ``c = ||w_t - w_{t-1}|| / ||g||``: as far as a multiple of the last step.

    The first step does not climb.

    Example:
        >>> OfUpdate().remembers
        True
    """

    scale_free: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        first = not slope.shared.get("moved", False)
        before = slope.remember("before", 0.0)
        moved: Scalar = 0.0 if first else slope.along(slope.ops.plus(slope.params, before, -1.0)).norm
        slope.shared["moved"] = True
        slope.ops.copy_(before, slope.params)
        return slope.grads, ratio(moved, slope.norm)


@final
@dataclass(frozen=True)
class OfNoise(Ascent):
    """``d = g``, ``c = sqrt(v - ||m||^2) / (||m|| ||g||)``: as far as a multiple of noise over signal.

    ``m`` is the running mean of ``g`` and ``v`` that of ``||g||^2``, from 0, both divided by ``1 - decay^t``. The first
    step, whose noise is not known, does not climb.

    Args:
        decay: of both means.
        longest: the longest climb, in multiples of ``rho``.

    Example:
        >>> OfNoise(decay=0.9)
        OfNoise(decay=0.9, longest=inf)
    """

    decay: float = 0.99
    longest: float = math.inf

    scale_free: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        shared, grads = slope.shared, [wide(g) for g in slope.grads]
        first, count, square = "count" not in shared, shared.get("count", 0), shared.get("square", 0.0)
        means = slope.remember("mean", 0.0)
        slope.ops.lerp_(means, slope.or_else(grads, means), 1 - self.decay)
        shared["count"] = slope.number_or_else(count + 1, count)
        shared["square"] = slope.number_or_else(
            self.decay * square + (1 - self.decay) * slope.norm * slope.norm, square
        )
        whole = 1 - self.decay ** shared["count"]
        signal = ratio(slope.along(means).norm, whole)
        # Of one gradient the difference is rounding.
        noise = 0.0 if first else above(ratio(shared["square"], whole) - signal * signal, 0.0) ** 0.5
        return slope.grads, ratio(_at_most(ratio(noise, signal), self.longest), slope.norm)


def _at_most(x: Scalar, most: float) -> Scalar:
    return x.clamp(max=most) if isinstance(x, Tensor) else min(x, most)
