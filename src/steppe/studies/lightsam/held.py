"""LightSAM with climbs that do not fade, to see what their fading does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from ..._scalars import ratio
from ...ascents import AdaGrad, AdaGradNorm, Adam, Ascent, Directions, Slope
from ...descent import Descent
from ...optimizer import SharpnessAware


@final
@dataclass(frozen=True)
class OfOneLength(Ascent):
    """The way of another ascent in climbs of one length: its ``d``, and ``c = 1 / ||d||``."""

    of: Ascent

    remembers: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        found, _ = self.of.directions(slope)
        return found, ratio(1.0, slope.along(found).norm)


def lightsam_i(params: Any, lr: float | Tensor, *, rho: float) -> SharpnessAware:
    """LightSAM-I, but for climbs of length ``rho`` all along."""
    return _held(params, lr, AdaGradNorm(), rho)


def lightsam_ii(params: Any, lr: float | Tensor, *, rho: float) -> SharpnessAware:
    """LightSAM-II, but for climbs of length ``rho`` all along."""
    return _held(params, lr, AdaGrad(), rho)


def lightsam_iii(params: Any, lr: float | Tensor, *, rho: float) -> SharpnessAware:
    """LightSAM-III, but for climbs of length ``rho`` all along."""
    return _held(params, lr, Adam(), rho)


def _held(params: Any, lr: float | Tensor, ascent: Ascent, rho: float) -> SharpnessAware:
    return SharpnessAware(Descent(params, lr, ascent), ascent=OfOneLength(ascent), rho=rho)
