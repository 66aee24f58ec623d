"""A small network, whose curvature rises by itself while it is trained."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from .problems import Problem, positive

_STEP = 1e-5  # of central differences: errors of truncation and of rounding are about equal, 1e-9


@final
class TanhNetwork(Problem):
    """``f(W, a) = 1/(2 N) sum_i (a . tanh(W u_i) - y_i)^2`` with ``u_i ~ N(0, I)`` and ``y_i`` of random sign.

    A point is ``W`` row by row, then ``a``. Data and initial weights are drawn with the seed. Under gradient descent
    the largest eigenvalue of the Hessian grows to a few times its first value: progressive sharpening.

    Args:
        examples: the ``N``, >= 1.
        inputs: dimension of the ``u``, >= 1.
        width: hidden units, the rows of ``W``, >= 1.
        target: absolute value of the ``y``, > 0.
        scale: initial weights are uniform within this distance of 0, > 0. Random starts are as far from them.
        seed: of the draw of data and initial weights.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        ``minimum`` is 0, a lower bound: no minimiser is known, and ``minimisers`` is empty.

    Reference:
        The network is ours. Long and Bartlett, Sharpness-Aware Minimization and the Edge of Stability
        (https://arxiv.org/abs/2309.12488), look at SAM's edge on larger ones.

    Example:
        >>> from steppe.theory import TanhNetwork, run
        >>> problem = TanhNetwork(seed=0)
        >>> trace = run(problem, torch.optim.SGD([problem.parameter()], lr=0.05), steps=600, every=200)
        >>> [round(h, 1) for h in problem.sharpness(trace.iterates).tolist()]
        [2.0, 4.6, 7.4, 9.6]
    """

    convex = False

    def __init__(
        self,
        examples: int = 25,
        inputs: int = 5,
        width: int = 10,
        target: float = 2.5,
        scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        positive(examples=examples, inputs=inputs, width=width, target=target, scale=scale)
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(examples, inputs, generator=generator, dtype=torch.float64)
        coins = torch.randint(2, (examples,), generator=generator)
        self.targets = target * (2.0 * coins.double() - 1.0)
        self._shape, self._inner = (width, inputs), width * inputs
        self.dimension = self._inner + width
        self.minimisers = torch.empty(0, self.dimension, dtype=torch.float64)
        self.spread = scale
        self.origin = scale * (2 * torch.rand(self.dimension, generator=generator, dtype=torch.float64) - 1)

    def value(self, x: Tensor) -> Tensor:
        *_, errors = self._forward(x)
        return 0.5 * errors.square().mean(-1)

    def gradient(self, x: Tensor) -> Tensor:
        outer, hidden, errors = self._forward(x)
        errors = (errors / len(self.targets)).unsqueeze(-1)
        back = (1 - hidden * hidden) * (errors * outer.mT)
        return torch.cat(((back.mT @ self.inputs).flatten(-2), (hidden.mT @ errors).squeeze(-1)), -1)

    def hessian(self, x: Tensor) -> Tensor:
        """Return the Hessian at points of shape ``(..., dimension)``, by central differences of the gradient."""
        steps = _STEP * torch.eye(self.dimension, dtype=torch.float64)
        x = x.detach().unsqueeze(-2)
        slopes = (self.gradient(x + steps) - self.gradient(x - steps)) / (2 * _STEP)
        return (slopes + slopes.mT) / 2

    def sharpness(self, x: Tensor) -> Tensor:
        """Return the largest eigenvalue of the Hessian, NaN where the Hessian is not finite."""
        hessian = self.hessian(x)
        finite = hessian.isfinite().flatten(-2).all(-1)
        # Only finite matrices have eigenvalues here: others make the routine raise.
        top = torch.linalg.eigvalsh(torch.where(finite[..., None, None], hessian, 0.0))[..., -1]
        return torch.where(finite, top, math.nan)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``a`` as a column, the hidden units for all examples, one a row, and the errors."""
        weights = x[..., : self._inner].reshape(*x.shape[:-1], *self._shape)
        outer = x[..., self._inner :].unsqueeze(-1)
        hidden = torch.tanh(self.inputs @ weights.mT)
        return outer, hidden, (hidden @ outer).squeeze(-1) - self.targets
