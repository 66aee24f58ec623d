"""The optimizers that claims on AdaSAM run: the library's classes. Torch is imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ...optimizer import SharpnessAware
    from ...schedules import Radius
    from ..problems import Problem

SUN = "Sun et al., arXiv 2303.00565"


def adasam(
    problem: Problem,
    lr: float,
    rho: Radius,
    betas: tuple[float, float],
    eps: float,
    start: Tensor | Sequence[float] | None = None,
) -> SharpnessAware:
    """Return AdaSAM over a new parameter at the start."""
    from ... import AdaSAM

    return AdaSAM([problem.parameter(start)], lr, rho=rho, betas=betas, eps=eps)


def without_max(
    problem: Problem,
    lr: float,
    rho: Radius,
    betas: tuple[float, float],
    eps: float,
    start: Tensor | Sequence[float] | None = None,
) -> SharpnessAware:
    """Return AdaSAM without its max: SAM around Adam without bias correction."""
    from ... import SAM
    from ...ascents import Adam
    from ...descent import Descent

    return SAM(Descent([problem.parameter(start)], lr, Adam(betas, eps)), rho=rho)


def momentum_sam(problem: Problem, lr: float, rho: Radius, momentum: float, dampening: float = 0.0) -> SharpnessAware:
    """Return SAM around SGD with momentum over a new parameter."""
    import torch

    from ... import SAM

    sgd = torch.optim.SGD([problem.parameter()], lr=lr, momentum=momentum, dampening=dampening)
    return SAM(sgd, rho=rho)


def schedules(c: float, batch: int, samples: int) -> tuple[float, float]:
    """Return the learning rate ``c sqrt(b/T)`` and the radius ``1 / sqrt(bT)``, with ``bT`` samples."""
    return c * batch / samples**0.5, samples**-0.5


def capped(lr: float, most: float) -> float:
    """Return the learning rate, or the most that it may be."""
    return min(lr, most)
