"""What one gradient tells: its norm, the surrogate gap along it, and the curvature at which SAM becomes unstable."""

from __future__ import annotations

import math

import torch

from .estimate import Estimate, Meter
from .objective import Objective


def gradient_norm(objective: Objective) -> Estimate:
    """Measure the l2 norm of the gradient of the loss over all data (not the mean of mini-batch norms).

    Args:
        objective: model, loss and data.

    Returns:
        The norm, in units of the loss per unit of the weights. Exact.

    Note:
        Costs one gradient over the data, and memory for three copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, gradient_norm
        >>> w = torch.nn.Linear(1, 1, bias=False)  # L = w**2, at w = 3
        >>> _ = torch.nn.init.constant_(w.weight, 3.0)
        >>> gradient_norm(Objective(w, lambda out, y: (out**2).mean(), (torch.ones(4, 1), torch.zeros(4)))).value
        6.0
    """
    meter = Meter(objective)
    with objective.exploring():
        norm = _length(objective.gradient()).item()
    return Estimate(norm, None, 1, meter.cost, meter.seconds, {"normalize_logits": objective.normalize_logits})


def surrogate_gap(objective: Objective, rho: float) -> Estimate:
    """Measure the surrogate gap: how much the loss rises one SAM climb away::

        h = L(w + rho g / ‖g‖) - L(w),   g = grad L(w) over all data

    It is ``rho ‖g‖ + rho^2/2 ĝᵀHĝ`` to second order, so ``2 h / rho^2`` says something of curvature only where
    ``‖g‖`` is small against ``rho ‖H‖``; then it is a Rayleigh quotient, at most the top eigenvalue. Where the gradient
    is exactly zero the gap is 0.

    Args:
        objective: model, loss and data.
        rho: radius, > 0.

    Returns:
        The gap, in units of the loss. Exact.

    Raises:
        ValueError: if ``rho`` is out of its range.

    Note:
        Costs one gradient and two forward passes over the data (1.8), and memory for three copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, surrogate_gap
        >>> w = torch.nn.Linear(1, 1, bias=False)  # L = w**2, at w = 3
        >>> _ = torch.nn.init.constant_(w.weight, 3.0)
        >>> objective = Objective(w, lambda out, y: (out**2).mean(), (torch.ones(4, 1), torch.zeros(4)))
        >>> surrogate_gap(objective, rho=0.5).value
        3.25

    Reference:
        Zhuang et al., ICLR 2022 (https://arxiv.org/abs/2203.08065), section 3.
    """
    _check_radius(rho)
    meter = Meter(objective)
    with objective.exploring() as w:
        before = objective.loss()
        g = objective.gradient()
        norm = _length(g)
        if norm > 0:
            objective.move(w + rho * (g / norm))
        gap = objective.loss() - before
    settings = {"rho": rho, "normalize_logits": objective.normalize_logits}
    return Estimate(gap if math.isfinite(gap) else math.inf, None, 1, meter.cost, meter.seconds, settings)


def sam_edge(gradient_norm: float, rho: float, lr: float) -> float:
    """Return the top Hessian eigenvalue at which gradient descent with SAM stops being stable::

        lambda_edge = ‖g‖ / (2 rho) (sqrt(1 + 8 rho / (lr ‖g‖)) - 1)

    the positive root of ``lr lambda (1 + rho lambda / ‖g‖) = 2``. With ``rho = 0`` it is ``2 / lr``, the edge of plain
    gradient descent; it falls as the gradient does, and is 0 where the gradient is. For full-batch steps, no momentum.

    Args:
        gradient_norm: ‖g‖ over all data, >= 0.
        rho: SAM's radius, >= 0.
        lr: learning rate, > 0.

    Returns:
        The eigenvalue, to be compared with `spectrum`'s largest.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> sam_edge(gradient_norm=1.0, rho=0.0, lr=0.1)
        20.0
        >>> round(sam_edge(gradient_norm=1.0, rho=0.1, lr=0.1), 6)
        10.0

    Reference:
        Long and Bartlett, Sharpness-Aware Minimization and the Edge of Stability, JMLR 2024
        (https://arxiv.org/abs/2309.12488), equation 1.
    """
    if not 0 <= gradient_norm < math.inf:
        raise ValueError(f"gradient_norm must be a finite number >= 0, got {gradient_norm}.")
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho must be a finite number >= 0, got {rho}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a finite number > 0, got {lr}.")
    if rho == 0:
        return 2 / lr
    if gradient_norm == 0:
        return 0.0
    # The textbook formula subtracts nearly equal numbers for small rho; this is the same root, without that.
    return (4 / lr) / (1 + math.sqrt(1 + 8 * rho / lr / gradient_norm))


def _length(g: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(g, dtype=torch.float64)  # in float32, squares of small ones vanish
    return length


def _check_radius(rho: float) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be a finite number > 0, got {rho}.")
