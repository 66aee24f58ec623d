"""A radius that keeps the angle between the clean and the sharp gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ._scalars import Scalar, on


@final
@dataclass(frozen=True)
class Angle:
    """A radius that goes after the angle of the two gradients of a climb; a value for ``rho=``, or a group's ``"rho"``.

    After every climb, from ``rho = start`` on::

        c   = <g, s> / (||g|| ||s||)                    clean and sharp gradient, of all that climbs together
        rho = rho exp(gain (c - cosine)),               but at least low, and at most high

    Where the climb has turned the gradient by less than ``arccos(cosine)`` the next one is longer, else shorter. Groups
    that bring radii of this kind each follow their own, by the one angle; the radius stands in ``group["rho"]``, and is
    saved there. A number that is set by hand ends it.

    Args:
        cosine: of the angle to keep, in (-1, 1); 0.9 is 26 degrees.
        start: radius of the first climb, > 0.
        gain: how fast the radius follows, > 0: of ``gain * 0.1`` for a cosine that is off by 0.1.
        low: smallest radius, > 0.
        high: largest radius, at least ``low``.
        whole: where climbs are along a part of the batch, whose gradient says little of the angle, every so-manieth
            step climbs along the whole batch, and follows the angle.

    Raises:
        ValueError: if a number is out of range.

    Cost:
        One more copy of the gradients during the sharp pass, unless the method has it already (GSAM, PGN, LookSAM) or
        nobody else needs the clean ones; two inner products.

    Example:
        >>> radius = Angle(cosine=0.9)
        >>> round(radius.after(0.05, 0.98), 4), round(radius.after(0.05, 0.5), 4)
        (0.052, 0.0409)
    """

    cosine: float = 0.9
    start: float = 0.05
    gain: float = 0.5
    low: float = 1e-4
    high: float = 10.0
    whole: int = 20

    def __post_init__(self) -> None:
        if not -1.0 < self.cosine < 1.0:
            raise ValueError(f"cosine must lie in (-1, 1), got {self.cosine}.")
        if not 0.0 < self.gain < math.inf:
            raise ValueError(f"gain must be a finite number > 0, got {self.gain}.")
        if not 0.0 < self.low <= self.start <= self.high < math.inf:
            raise ValueError(
                f"0 < low <= start <= high must hold, got low={self.low}, start={self.start} and high={self.high}."
            )
        if isinstance(self.whole, bool) or not isinstance(self.whole, int) or self.whole < 1:
            raise ValueError(f"whole must be a whole number >= 1, got {self.whole!r}.")

    def after(self, rho: Scalar, cosine: Scalar) -> Scalar:
        """Return the radius after a climb by ``rho``; where a gradient is not finite that one."""
        if isinstance(cosine, Tensor):
            factor = torch.where(cosine.isfinite(), (self.gain * (cosine - self.cosine)).exp(), 1.0)
            now = on(rho, factor.device) if isinstance(rho, Tensor) else rho
            return (now * factor).clamp(self.low, self.high)
        if not math.isfinite(cosine):
            return rho
        return min(max(rho * math.exp(self.gain * (cosine - self.cosine)), self.low), self.high)
