"""Problems with noise that meet the assumptions of convergence theorems, with nothing odd about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from .deterministic import Quadratic
from .problems import Mixture, Stochastic, positive


@final
class PseudoHuber(Mixture):
    """``f(x) = h/N sum_i sum_j sqrt(1 + ((x_j - a_ij) / r)^2)``, ``a_ij ~ N(0, 1)``: a sum with bounded gradients.

    Every component is ``h/r^2``-smooth, with partial derivatives in ``(-h/r, h/r)``; ``f`` is strictly, but not
    strongly convex. So it is a problem for AdaSAM's theorem, with ``L = h/r^2`` and ``G = h/r``, both 1 by default.
    ``noise`` is the supremum, to 1e-6 in units of ``G^2``, and never below it.

    Args:
        examples: the ``N``, >= 2.
        dimension: >= 1.
        seed: of the draw of ``a``.
        height: the ``h``, > 0.
        width: the ``r``, > 0; the larger, the more the components agree.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Ours; a problem that meets assumptions 3.2 to 3.4 of Sun et al., AdaSAM (https://arxiv.org/abs/2303.00565).

    Example:
        >>> from steppe.theory import PseudoHuber
        >>> problem = PseudoHuber(examples=64, dimension=5, seed=0)
        >>> problem.gradient(problem.minimisers[0]).abs().max().item() < 1e-12
        True
    """

    def __init__(
        self, examples: int = 64, dimension: int = 5, seed: int = 0, height: float = 1.0, width: float = 1.0
    ) -> None:
        if examples < 2:
            raise ValueError(f"examples must be >= 2, got {examples}.")
        positive(dimension=dimension, height=height, width=width)
        self.height, self.width = height, width
        self.smoothness, self.gradient_bound = height / width**2, height / width
        generator = torch.Generator().manual_seed(seed)
        self.dimension = dimension
        self.targets = torch.randn(examples, dimension, generator=generator, dtype=torch.float64)
        self.probabilities = torch.full((examples,), 1 / examples, dtype=torch.float64)
        self.lipschitz = math.sqrt(dimension) * self.gradient_bound
        self.noise = self.gradient_bound**2 * self._noise()
        self.minimisers = self._solve().unsqueeze(0)
        self.minimum = float(self.value(self.minimisers[0]))
        self.origin = torch.full((dimension,), 3.0, dtype=torch.float64)

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.height * (1 + ((x - self.targets[sample]) / self.width).square()).sqrt().sum(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        away = (x - self.targets[sample]) / self.width
        return self.gradient_bound * away / (1 + away.square()).sqrt()

    def gradient(self, x: Tensor) -> Tensor:
        return self._gradients(x).mean(-2)

    def _solve(self) -> Tensor:
        """Return the minimiser by bisection, coordinate by coordinate, to the last bit or two."""
        low, high = self.targets.amin(0), self.targets.amax(0)
        for _ in range(64):
            middle = (low + high) / 2
            above = self.gradient(middle) > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _noise(self) -> float:
        """Return the largest variance for ``G = 1``, a sum over coordinates, from a grid on the range of ``a / r``.

        Outside the range the gradients agree more and more. Inside, a coordinate's variance has a second derivative
        ``2 Var g' + 2 Cov(g, g'')`` of at most ``2/4 + 2 * 0.86``, which bounds what the grid can miss.
        """
        targets = self.targets / self.width
        low, high = float(targets.min()), float(targets.max())
        n = math.ceil((high - low) / 0.0015) + 1
        grid = torch.linspace(low, high, n, dtype=torch.float64)
        missed = 2.22 * ((high - low) / (n - 1)) ** 2 / 8
        total = 0.0
        for column in targets.unbind(-1):
            away = grid.unsqueeze(-1) - column
            total += float((away / (1 + away.square()).sqrt()).var(-1, correction=0).max()) + missed
        return total


@final
class NoisyQuadratic(Quadratic, Stochastic):
    """`Quadratic` whose gradients carry normal noise of variance ``sigma^2`` in all, equal in every direction.

    A sample is the noise vector. The mean over a mini-batch of ``b`` has variance ``sigma^2 / b``.

    Args:
        eigenvalues: each > 0; None is eight of them, from 0.1 to 1 in equal steps.
        sigma: root of the variance, > 0.
        start: every coordinate of the default start.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from steppe.theory import NoisyQuadratic
        >>> problem = NoisyQuadratic(sigma=1.0)
        >>> problem.dimension, problem.smoothness, problem.noise
        (8, 1.0, 1.0)
    """

    def __init__(self, eigenvalues: Sequence[float] | None = None, sigma: float = 1.0, start: float = 2.0) -> None:
        positive(sigma=sigma)
        spectrum = torch.linspace(0.1, 1.0, 8, dtype=torch.float64).tolist() if eigenvalues is None else eigenvalues
        super().__init__(spectrum, start)
        self.sigma = sigma
        self.noise = sigma**2

    def sample(self, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        draw = torch.randn(*shape, self.dimension, generator=generator, dtype=torch.float64)
        return self.sigma / math.sqrt(self.dimension) * draw

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.value(x) + (sample * x).sum(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.gradient(x) + sample
