"""What a problem is: an objective whose constants are known, in float64, with gradients in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn


class Problem(ABC):
    """An objective ``f`` of ``dimension`` numbers, with everything that convergence theorems ask about it.

    `value` and `gradient` take one point, of shape ``(dimension,)``, or many, of shape ``(..., dimension)``. A run of
    an optimizer has one point: the norms in sharpness-aware methods are over all parameters, so runs cannot share one.

    Attributes:
        dimension: of the points.
        smoothness: Lipschitz constant of the gradient; of every component if there are components, and so of ``f``.
            Infinite if there is none.
        strong_convexity: of ``f``; 0 if it is not strongly convex.
        convex: whether ``f`` is.
        lipschitz: supremum of the l2 norms of gradients, of all components if there are any.
        gradient_bound: likewise, of the absolute values of partial derivatives.
        noise: supremum over all points of ``E ||g - grad f||^2`` for the gradient ``g`` of one random component.
        minimum: the least value of ``f``.
        minimisers: points that attain it, one a row; all of them, unless the problem says otherwise.
        origin: where runs start by default.
        spread: random starts are uniform within this distance of it, in each coordinate.
    """

    dimension: int
    smoothness: float = math.inf
    strong_convexity: float = 0.0
    convex: bool = True
    lipschitz: float = math.inf
    gradient_bound: float = math.inf
    noise: float = 0.0
    minimum: float = 0.0
    minimisers: Tensor
    origin: Tensor
    spread: float = 1.0

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return ``f`` at points of shape ``(..., dimension)``."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient at points of shape ``(..., dimension)``, as a new tensor of the same shape."""

    def start(self, generator: torch.Generator | None = None) -> Tensor:
        """Return the default start, or a random one."""
        if generator is None:
            return self.origin.clone()
        u = torch.rand(self.dimension, generator=generator, dtype=torch.float64)
        return self.origin + self.spread * (2 * u - 1)

    def parameter(self, x: Tensor | Sequence[float] | None = None) -> nn.Parameter:
        """Return a copy of a point (the default start) as a parameter for an optimizer.

        Raises:
            ValueError: if the point has another shape.
        """
        point = self.origin if x is None else torch.as_tensor(x, dtype=torch.float64)
        if point.shape != (self.dimension,):
            raise ValueError(f"A point of this problem has shape ({self.dimension},), got {tuple(point.shape)}.")
        return nn.Parameter(point.detach().clone())


class Stochastic(Problem):
    """A problem whose gradient can be sampled: ``f`` is the expectation of random components.

    Samples are tensors. Those of `sample` have any leading ``shape``, which broadcasts with that of the points: one
    point and a mini-batch of ``b`` samples give ``b`` gradients, whose mean is the mini-batch gradient.
    """

    noise: float = math.inf

    @abstractmethod
    def sample(self, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        """Return independent samples."""

    @abstractmethod
    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        """Return the value of the sampled component."""

    @abstractmethod
    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        """Return the gradient of the sampled component, as a new tensor."""


class Mixture(Stochastic):
    """A problem with finitely many components: a sample is the index of one.

    Attributes:
        probabilities: of the components.
    """

    probabilities: Tensor

    @cached_property
    def components(self) -> Tensor:
        """The indices of all components."""
        return torch.arange(len(self.probabilities))

    def sample(self, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        drawn = torch.multinomial(self.probabilities, math.prod(shape), replacement=True, generator=generator)
        return drawn.view(shape)

    def value(self, x: Tensor) -> Tensor:
        return (self.probabilities * self.component_value(x.unsqueeze(-2), self.components)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return (self.probabilities.unsqueeze(-1) * self._gradients(x)).sum(-2)

    def variance(self, x: Tensor) -> Tensor:
        """Return ``E ||g - grad f||^2`` at points of shape ``(..., dimension)``; its supremum is `noise`."""
        deviations = self._gradients(x) - self.gradient(x).unsqueeze(-2)
        return (self.probabilities * deviations.square().sum(-1)).sum(-1)

    def _gradients(self, x: Tensor) -> Tensor:
        """Return the gradients of all components, in shape ``(..., components, dimension)``."""
        return self.component_gradient(x.unsqueeze(-2), self.components)


def vector(*numbers: float) -> Tensor:
    """Return numbers as a vector in float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def positive(**numbers: float) -> None:
    """Raise unless all numbers are finite and > 0."""
    for name, number in numbers.items():
        if not 0.0 < number < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {number}.")
