"""Noisy problems in several dimensions on which GSAM with a constant radius ends off the minimum, where predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from .deterministic import Quadratic, Sine
from .problems import Mixture, Stochastic, positive, vector


@final
class SineValley(Stochastic):
    """``f(x, y) = (beta / omega^2) sin(omega x) + c/2 ||y||^2``: `Sine` in x, a bowl in all other directions; noise.

    Noise is normal, of variance ``sigma^2`` in all, equal in every direction. Without noise SAM ends where y is 0 and x
    is ``delta`` from a minimum, as on `Sine`; in more than one dimension the part of the gradient that is orthogonal to
    the sharp one is not 0, so that GSAM is not SAM.

    Args:
        beta: smoothness, > 0.
        rho: the radius that it is made for, > 0; ``omega = 2 pi / (rho + delta)`` with ``delta = rho / 5``.
        curvature: the ``c``, in (0, beta]; None is ``beta / 2``.
        sigma: root of the noise's variance, > 0.
        dimension: of x and y together, >= 2.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        ``minimisers`` holds the two nearest to 0. All are ``period`` apart.

    Reference:
        Derived here. That a term of order ``rho^2`` stays while larger batches or smaller learning rates take away the
        noise is in line with Harada and Iiduka, Convergence of Sharpness-Aware Minimization Algorithms using Increasing
        Batch Size and Decaying Learning Rate, 2024 (https://arxiv.org/abs/2409.09984), who ask for a small ``rho``.

    Example:
        >>> from steppe import GSAM
        >>> from steppe.theory import SineValley, run
        >>> problem = SineValley(beta=1.0, rho=1.0, sigma=0.05)
        >>> w = problem.parameter([0.4, 1.0, -1.0])
        >>> opt = GSAM(torch.optim.SGD([w], lr=0.2), rho=1.0, alpha=0.4)
        >>> trace = run(problem, opt, 300, torch.Generator().manual_seed(0))
        >>> bool(trace.squared_norms[-100:].mean() > problem.trapped_gradient**2)
        True
    """

    convex = False

    def __init__(
        self,
        beta: float = 1.0,
        rho: float = 1.0,
        curvature: float | None = None,
        sigma: float = 0.1,
        dimension: int = 3,
    ) -> None:
        c = beta / 2 if curvature is None else curvature
        positive(sigma=sigma)
        if dimension < 2:
            raise ValueError(f"dimension must be >= 2, got {dimension}.")
        self.wave = Sine(beta, rho)
        if not 0.0 < c <= beta:
            raise ValueError(f"curvature must be in (0, beta] = (0, {beta}], got {curvature}.")
        self.beta, self.rho, self.curvature, self.sigma = beta, rho, c, sigma
        self.dimension = dimension
        self.smoothness = beta
        self.noise = sigma**2
        self.period, self.omega = self.wave.period, self.wave.omega
        self.trapped_gradient, self.trapped_gap = self.wave.trapped_gradient, self.wave.trapped_gap
        self.minimum = self.wave.minimum
        self.minimisers = torch.cat((self.wave.minimisers, torch.zeros(2, dimension - 1, dtype=torch.float64)), 1)
        self.origin = torch.zeros(dimension, dtype=torch.float64)
        self.spread = self.period

    def value(self, x: Tensor) -> Tensor:
        return self.wave.value(x[..., :1]) + 0.5 * self.curvature * x[..., 1:].square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.cat((self.wave.gradient(x[..., :1]), self.curvature * x[..., 1:]), -1)

    def sample(self, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        draw = torch.randn(*shape, self.dimension, generator=generator, dtype=torch.float64)
        return self.sigma / math.sqrt(self.dimension) * draw

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.value(x) + (sample * x).sum(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.gradient(x) + sample


@final
class SkewedQuadratic(Mixture):
    """``f(x) = 1/2 sum_j h_j x_j^2`` whose gradients carry noise of finitely many values: `SkewedNoise` in a plane.

    Component i has the gradient ``H x + z_i`` and probability ``p_i``, with ``sum p_i z_i = 0``. Near 0 the climb of
    GSAM on one sample is ``rho z_i / ||z_i||``, whatever x, and the climbs do not cancel.

    Args:
        eigenvalues: the ``h``, each > 0.
        noises: the ``z``, one a component, none of them 0.
        probabilities: the ``p``, each > 0, of sum 1.

    Raises:
        ValueError: if an argument is out of its range, lengths differ, or the mean of the noises is not 0.

    Reference:
        Derived here, with the same end as `SkewedNoise`.

    Example:
        >>> from steppe.theory import SkewedQuadratic
        >>> problem = SkewedQuadratic()
        >>> problem.dimension, problem.smoothness, round(problem.noise, 6)
        (2, 1.0, 8.0)
        >>> [[round(x, 4) for x in problem.predicted_slope(alpha).tolist()] for alpha in (0.0, 1.0)]
        [[-0.2787, -0.1394], [-0.4019, -0.0162]]
    """

    def __init__(
        self,
        eigenvalues: Sequence[float] = (1.0, 0.5),
        noises: Sequence[Sequence[float]] = ((1.0, 1.0), (1.0, -4.0), (-4.0, 1.0)),
        probabilities: Sequence[float] = (0.6, 0.2, 0.2),
    ) -> None:
        self._mean = Quadratic(eigenvalues)
        self.eigenvalues, self.dimension = self._mean.eigenvalues, self._mean.dimension
        if not noises or len(noises) != len(probabilities) or {len(z) for z in noises} != {self.dimension}:
            raise ValueError(
                f"noises must hold a vector of {self.dimension} numbers for every probability, got {noises} for "
                f"{len(probabilities)} probabilities."
            )
        for i, p in enumerate(probabilities):
            positive(**{f"probabilities[{i}]": p})
        self.probabilities = vector(*probabilities)
        self.noises = torch.stack([vector(*z) for z in noises])
        if abs(float(self.probabilities.sum()) - 1) > 1e-12:
            raise ValueError(f"probabilities must have the sum 1, got {float(self.probabilities.sum())}.")
        centre = self.probabilities @ self.noises
        if float(centre.abs().max()) > 1e-12 * float(self.noises.abs().max()):
            raise ValueError(f"The mean of the noises must be 0, got {centre.tolist()}.")
        lengths = torch.linalg.vector_norm(self.noises, dim=-1)
        if float(lengths.min()) == 0:
            raise ValueError(f"No noise may be 0, got {noises}.")
        self.smoothness, self.strong_convexity = self._mean.smoothness, self._mean.strong_convexity
        self.noise = float(self.probabilities @ lengths.square())
        self.minimisers = self._mean.minimisers
        self.origin = torch.zeros(self.dimension, dtype=torch.float64)

    def value(self, x: Tensor) -> Tensor:
        return self._mean.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        return self._mean.gradient(x)

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.value(x) + (self.noises[sample] * x).sum(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.gradient(x) + self.noises[sample]

    def predicted_slope(self, alpha: float, spread: Tensor | None = None) -> Tensor:
        """Return the gradient of ``f`` where the mean of GSAM's iterates tends to, per ``rho``, with one sample a step.

        ``-E [((1 + alpha) H - alpha r) u]`` with ``u = g / ||g||`` and ``r = u^T H u``, to first order in ``rho``.

        Args:
            alpha: GSAM's.
            spread: covariance of the iterates, which counts to first order; without, the noise alone decides on g.
        """
        g = self.noises
        if spread is not None:  # two points for each direction, with this covariance
            away = self.eigenvalues * math.sqrt(self.dimension) * torch.linalg.cholesky(spread).T
            g = torch.cat([self.noises + shift for shift in (*away, *-away)])
        u = g / torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        r = (self.eigenvalues * u.square()).sum(-1, keepdim=True)
        weights = self.probabilities.repeat(len(g) // len(self.noises))
        pulls = ((1 + alpha) * self.eigenvalues - alpha * r) * u
        mean: Tensor = (weights.unsqueeze(-1) * pulls).sum(0) / weights.sum()
        return -mean
