"""The optimizers that claims run: the library's classes around plain SGD. Torch is imported when one is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from ...schedules import Radius
    from ..problems import Problem

SI_YUN = "Si and Yun, arXiv 2306.09850"

Variant = Literal["sam", "sgd", "usam", "falling rho", "rho with lr"]


def sgd(problem: Problem, lr: float, start: Tensor | Sequence[float] | None = None) -> Optimizer:
    """Return SGD over a new parameter at the start."""
    import torch

    return torch.optim.SGD([problem.parameter(start)], lr=lr)


def sam(problem: Problem, lr: float, rho: Radius, start: Tensor | Sequence[float] | None = None) -> Optimizer:
    """Return SAM around SGD."""
    from ... import SAM

    return SAM(sgd(problem, lr, start), rho=rho)


def usam(problem: Problem, lr: float, rho: Radius, start: Tensor | Sequence[float] | None = None) -> Optimizer:
    """Return SAM without normalisation around SGD."""
    from ... import USAM

    return USAM(sgd(problem, lr, start), rho=rho)


def variant(
    name: Variant,
    problem: Problem,
    lr: float,
    rho: float,
    start: Tensor | Sequence[float] | None,
    falls: Callable[[int], float],
) -> tuple[Optimizer, Callable[[], object] | None]:
    """Return an optimizer and what to call after each of its steps.

    Args:
        name: SAM, SGD, SAM without normalisation; SAM whose radius falls; or SAM whose learning rate falls, and the
            radius with it.
        problem: What it will run on.
        lr: The learning rate, at first.
        rho: The radius, at first; without normalisation it is in units of one over curvature.
        start: Where it begins.
        falls: What the radius, or the learning rate, is multiplied by after so many steps.
    """
    from ... import ParamGroupSchedule, ProportionalToLR

    if name == "falling rho":
        optimizer = sam(problem, lr, rho, start)
        return optimizer, ParamGroupSchedule(optimizer, "rho", falls).step
    if name == "rho with lr":
        optimizer = sam(problem, lr, ProportionalToLR(rho_max=rho, rho_min=0.0, lr_max=lr, lr_min=0.0), start)
        return optimizer, ParamGroupSchedule(optimizer, "lr", falls).step
    if name == "sgd":
        return sgd(problem, lr, start), None
    return (sam if name == "sam" else usam)(problem, lr, rho, start), None


def seeded(seed: int) -> torch.Generator:
    """Return a generator of samples."""
    import torch

    return torch.Generator().manual_seed(seed)


def log_lr(strong_convexity: float, smoothness: float, gap: float, rho: float, steps: int) -> float:
    """Return a learning rate of order log(T) / (mu T): both terms of the bound are then about equal after T steps."""
    mu, beta = strong_convexity, smoothness
    logarithm = math.log(mu**2 * gap * steps**2 / (beta**3 * rho**2))
    return min(max(1.0, logarithm) / (mu * steps), 0.5 / beta)
