"""Schedules of the radius. Learning rates are scheduled by torch's own schedulers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class ProportionalToLR:
    """A radius that follows the learning rate; a value for ``rho=`` or for ``rho`` in a parameter group.

    ``rho = rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min)``, at least 0, from the learning rate that
    the group has at the moment of the step. With ``lr_max == lr_min`` it is ``rho_max``. A learning rate outside
    ``[lr_min, lr_max]``, as in a warm-up from zero, continues the line.

    Args:
        rho_max: radius at ``lr_max``, >= 0.
        rho_min: radius at ``lr_min``, >= 0.
        lr_max: the schedule's largest learning rate.
        lr_min: the schedule's smallest learning rate, <= ``lr_max``.

    Raises:
        ValueError: if a radius is negative or ``lr_min > lr_max``.

    Example:
        >>> rho = ProportionalToLR(rho_max=0.6, rho_min=0.1, lr_max=3e-3, lr_min=3e-5)
        >>> round(rho(3e-3), 3), round(rho(3e-5), 3)
        (0.6, 0.1)

    Reference:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022
        (https://arxiv.org/abs/2203.08065), line 0 of the algorithm.
    """

    rho_max: float
    rho_min: float
    lr_max: float
    lr_min: float

    def __post_init__(self) -> None:
        for name in ("rho_max", "rho_min"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}.")
        if not self.lr_min <= self.lr_max:
            raise ValueError(f"lr_min must be <= lr_max, got lr_min={self.lr_min} and lr_max={self.lr_max}.")

    def __call__(self, lr: float | Tensor) -> float | Tensor:
        """Return the radius at learning rate ``lr``; a tensor gives a tensor, on its device."""
        if self.lr_max == self.lr_min:
            return self.rho_max
        rho = self.rho_min + (self.rho_max - self.rho_min) * (lr - self.lr_min) / (self.lr_max - self.lr_min)
        return torch.clamp(rho, min=0.0) if isinstance(rho, Tensor) else max(0.0, rho)


Radius = float | Tensor | ProportionalToLR


def check_radius(rho: object, group: int | None = None) -> None:
    """Raise unless ``rho`` is a radius, naming the parameter group. The value of a tensor is not looked at."""
    if (isinstance(rho, float) and 0.0 <= rho < math.inf) or isinstance(rho, ProportionalToLR):
        return
    where = "" if group is None else f" (param group {group})"
    if isinstance(rho, Tensor):
        if rho.numel() != 1:
            raise ValueError(f"rho must be one number, got a tensor of shape {tuple(rho.shape)}{where}.")
    elif isinstance(rho, bool) or not isinstance(rho, (int, float)):
        raise TypeError(f"rho must be a number or a ProportionalToLR, got {rho!r}{where}.")
    elif not 0 <= rho < math.inf:
        raise ValueError(f"rho must be a finite number >= 0, got {rho}{where}.")
