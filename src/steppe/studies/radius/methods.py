"""The candidates: SAM with a radius that is a constant ``rho`` in some unit, around a base, by ``step(closure)``."""

from __future__ import annotations

from typing import Any

from ...angle import Angle
from ...ascents import AdaGrad, AdaGradNorm, Adam, Ascent
from ...methods import ASAM, SAM
from ...optimizer import SharpnessAware
from ...schedules import ProportionalToLR
from .climbs import LONGEST, LossBudget, OfEachTensor, OfNoise, OfUpdate, OfWeights
from .following import Edge, Gap, Noting


def absolute(base: Any, *, rho: float = 0.1) -> SharpnessAware:
    """SAM: ``delta = rho g / ||g||``."""
    return SAM(base, rho=rho)


def adaptive(base: Any, *, rho: float = 1.0) -> SharpnessAware:
    """ASAM: ``delta = rho T^2 g / ||T g||`` with ``T = |w| + 0.01``."""
    return ASAM(base, rho=rho, eta=0.01)


def angle(base: Any, *, rho: float = 0.1) -> SharpnessAware:
    """SAM with a radius that keeps the cosine of clean and sharp gradient at ``1 - rho``."""
    return SAM(base, rho=Angle(cosine=1 - rho))


def loss_budget(base: Any, *, rho: float = 0.1) -> SharpnessAware:
    """SAM by ``rho / ||g||``: to first order the loss rises by ``rho``. At most 10 far."""
    return SharpnessAware(base, ascent=LossBudget(longest=_longest(rho)), rho=rho)


def relative_loss_budget(base: Any, *, rho: float = 0.03) -> SharpnessAware:
    """SAM by ``rho L / ||g||``: to first order the loss ``L`` rises by ``rho L``. At most 10 far."""
    return Noting(base, ascent=LossBudget(relative=True, longest=_longest(rho)), rho=rho)


def loss_gap(base: Any, *, rho: float = 0.1) -> SharpnessAware:
    """SAM with a radius that keeps ``(L(w + delta) - L(w)) / L(w)`` at ``rho``."""
    return Gap(base, rho)


def weights(base: Any, *, rho: float = 0.003) -> SharpnessAware:
    """SAM by ``rho ||w||``, the norm of all weights."""
    return SharpnessAware(base, ascent=OfWeights(), rho=rho)


def each_tensor(base: Any, *, rho: float = 0.003) -> SharpnessAware:
    """Every parameter tensor by a part of its own norm: ``delta_i = rho ||w_i|| g_i / ||g_i||``."""
    return SharpnessAware(base, ascent=OfEachTensor(), rho=rho)


def last_update(base: Any, *, rho: float = 3.0) -> SharpnessAware:
    """SAM by ``rho ||w_t - w_{t-1}||``, a multiple of the last step."""
    return SharpnessAware(base, ascent=OfUpdate(), rho=rho)


def learning_rate(base: Any, *, rho: float = 50.0) -> SharpnessAware:
    """SAM by ``rho lr``, with the learning rate of the moment."""
    return SAM(base, rho=ProportionalToLR(rho_max=rho, rho_min=0.0, lr_max=1.0, lr_min=0.0))


def noise(base: Any, *, rho: float = 0.03) -> SharpnessAware:
    """SAM by ``rho`` times noise over signal, ``sqrt(v - ||m||^2) / ||m||``, from running means. At most 10 far."""
    return SharpnessAware(base, ascent=OfNoise(longest=_longest(rho)), rho=rho)


def adagrad_norm(base: Any, *, rho: float = 1.0) -> SharpnessAware:
    """The climb of LightSAM-I around the base: ``u += ||g||^2; delta = rho g / sqrt(u)``."""
    return _light(base, AdaGradNorm(), rho)


def adagrad(base: Any, *, rho: float = 0.002) -> SharpnessAware:
    """The climb of LightSAM-II around the base: ``u += g^2; delta = rho g / sqrt(u)``, element-wise."""
    return _light(base, AdaGrad(), rho)


def adam(base: Any, *, rho: float = 5e-4) -> SharpnessAware:
    """The climb of LightSAM-III around the base: ``delta = rho m / sqrt(v)`` with Adam's means, element-wise."""
    return _light(base, Adam(), rho)


def edge(base: Any, *, rho: float = 5e-4) -> SharpnessAware:
    """SAM by ``rho / (lr h)`` with the curvature ``h`` along climbs, ``|<s - g, g>| / (r ||g||)`` of one by ``r``."""
    return Edge(base, rho)


def _light(base: Any, ascent: Ascent, rho: float) -> SharpnessAware:
    return SharpnessAware(base, ascent=ascent, rho=rho)


def _longest(rho: float) -> float:
    """Return the longest climb in multiples of the constant; one that is refused is refused elsewhere."""
    return LONGEST / rho if rho > 0 else LONGEST
