"""Average-case sharpness: how much the loss rises when the weights are shaken at random."""

from __future__ import annotations

import math
from typing import Literal

import torch

from .estimate import Estimate, Meter, mean_and_error, progress
from .objective import Objective


def average_case(
    objective: Objective,
    rho: float,
    *,
    distribution: Literal["gaussian", "uniform"] = "gaussian",
    adaptive: bool = False,
    pairs: int = 20,
    seed: int = 0,
) -> Estimate:
    """Measure average-case sharpness::

        S = E_delta [ L(w + delta) ] - L(w),   delta_i = rho c_i x_i,   c = 1, or |w| if adaptive

    with independent x_i, standard normal or uniform on [-1, 1]. To second order S is ``rho^2/2 sum_i c_i^2 H_ii`` for
    the normal distribution and a third of that for the uniform one. Every draw is used with both signs, which takes the
    first and all other odd orders out of the noise. Negative values are real: the weights can lie on a ridge.

    Args:
        objective: model, loss and data.
        rho: standard deviation per weight (or half the width, if uniform), > 0; not divided by the number of weights.
        distribution: ``"gaussian"`` or ``"uniform"``.
        adaptive: whether c is \\|w\\|.
        pairs: independent draws, >= 1; each costs two evaluations.
        seed: of the draws.

    Returns:
        The mean over pairs and its standard error over them, in units of the loss.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Costs ``0.4 (2 pairs + 1)`` gradients over the data, and memory for three copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, average_case
        >>> w = torch.nn.Linear(4, 1, bias=False).double()
        >>> x = torch.eye(4, dtype=torch.float64)  # L = mean w_i^2: H = I/2, so S = rho^2
        >>> objective = Objective(w, lambda out, y: (out**2).mean(), (x, torch.zeros(4)))
        >>> found = average_case(objective, rho=0.1, pairs=1000)
        >>> abs(found.value - 0.01) < 3 * found.error
        True

    Reference:
        Andriushchenko et al., A Modern Look at the Relationship between Sharpness and Generalization, ICML 2023
        (https://arxiv.org/abs/2302.07011), equation 1.
    """
    _check(rho, distribution, pairs)
    meter, rises = Meter(objective), []
    random = torch.Generator(objective.device).manual_seed(seed)
    with objective.exploring() as w, progress("average case", pairs) as tick:
        base = objective.loss()
        scale = rho * w.abs() if adaptive else rho
        for _ in range(pairs):
            x = torch.empty_like(w)
            if distribution == "gaussian":
                x.normal_(generator=random)
            else:
                x.uniform_(-1.0, 1.0, generator=random)
            delta = x.mul_(scale)
            objective.move(w + delta)
            up = objective.loss()
            objective.move(w - delta)
            rises.append((up + objective.loss()) / 2 - base)
            tick()
    finite = all(math.isfinite(rise) for rise in rises)
    value, error = mean_and_error(rises) if finite else (math.inf, None)
    settings = {
        "rho": rho,
        "distribution": distribution,
        "adaptive": adaptive,
        "pairs": pairs,
        "seed": seed,
        "normalize_logits": objective.normalize_logits,
    }
    return Estimate(value, error, pairs, meter.cost, meter.seconds, settings)


def _check(rho: float, distribution: str, pairs: int) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be a finite number > 0, got {rho}.")
    if distribution not in ("gaussian", "uniform"):
        raise ValueError(f"distribution must be 'gaussian' or 'uniform', got {distribution!r}.")
    if not isinstance(pairs, int) or pairs < 1:
        raise ValueError(f"pairs must be a whole number >= 1, got {pairs!r}.")
