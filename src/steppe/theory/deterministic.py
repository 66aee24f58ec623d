"""Problems without noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from .problems import Problem, positive, vector


class Quadratic(Problem):
    """``f(x) = 1/2 sum_j h_j x_j^2``.

    Args:
        eigenvalues: the ``h``, each > 0. Smoothness is the largest of them, strong convexity the smallest.
        start: every coordinate of the default start.

    Raises:
        ValueError: if there is no eigenvalue, or one is not positive.

    Reference:
        Derived here. SAM with a constant radius never settles: see `two_cycle`.

    Example:
        >>> from steppe import SAM
        >>> from steppe.theory import Quadratic, run
        >>> problem = Quadratic([1.0])
        >>> w = problem.parameter()
        >>> _ = run(problem, SAM(torch.optim.SGD([w], lr=0.1), rho=0.1), steps=300)
        >>> round(abs(w.item()), 8), round(problem.two_cycle(lr=0.1, rho=0.1).item(), 8)
        (0.00526316, 0.00526316)
    """

    def __init__(self, eigenvalues: Sequence[float], start: float = 1.0) -> None:
        if not eigenvalues:
            raise ValueError("eigenvalues must hold one number per dimension, got none.")
        for i, h in enumerate(eigenvalues):
            positive(**{f"eigenvalues[{i}]": h})
        self.eigenvalues = vector(*eigenvalues)
        self.dimension = len(eigenvalues)
        self.smoothness, self.strong_convexity = max(eigenvalues), min(eigenvalues)
        self.minimisers = torch.zeros(1, self.dimension, dtype=torch.float64)
        self.origin = torch.full((self.dimension,), start, dtype=torch.float64)

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * (self.eigenvalues * x.square()).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.eigenvalues * x

    def two_cycle(self, lr: float, rho: float) -> Tensor:
        """Return the distances from 0, one per eigenvector, at which SAM around SGD jumps to and fro.

        ``c = lr h rho / (2 - lr h)`` for ``lr h < 2``, infinite otherwise. In one dimension every run that does not
        start at 0 ends on the orbit ``{c, -c}``; in more, a run that ends on an eigenvector has that orbit on it.
        """
        pace = lr * self.eigenvalues
        return torch.where(pace < 2, pace * rho / (2 - pace), math.inf)


@final
class LogCosh(Problem):
    """``f(x) = sum_j log cosh x_j``: convex, 1-smooth, with partial derivatives in (-1, 1), and not strongly convex.

    Args:
        dimension: >= 1.

    Raises:
        ValueError: if the dimension is out of its range.

    Example:
        >>> from steppe.theory import LogCosh
        >>> problem = LogCosh(dimension=10)
        >>> round(problem.value(problem.start()).item(), 6), problem.lipschitz**2
        (23.093285, 10.000000000000002)
    """

    smoothness = gradient_bound = 1.0

    def __init__(self, dimension: int) -> None:
        positive(dimension=dimension)
        self.dimension = dimension
        self.lipschitz = math.sqrt(dimension)
        self.minimisers = torch.zeros(1, dimension, dtype=torch.float64)
        self.origin = torch.full((dimension,), 3.0, dtype=torch.float64)

    def value(self, x: Tensor) -> Tensor:
        return (torch.logaddexp(x, -x) - math.log(2)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@final
class Sine(Problem):
    """``f(x) = (beta / omega^2) sin(omega x)`` with ``omega = 2 pi / (rho + delta)``: made for SAM of radius ``rho``.

    A climb by ``rho`` is one by ``-delta``, up to a period. So minima and maxima both repel SAM around SGD with a
    learning rate up to ``1 / beta``, and from every other start it ends ``delta`` from a minimum. There the climbed
    point *is* a minimum, while the gradient at the iterate is ``trapped_gradient`` in absolute value, and the value
    ``trapped_gap`` above the least.

    Args:
        beta: smoothness, > 0.
        rho: the radius, > 0.
        delta: distance of the attractors from the minima, in (0, rho); None is ``rho / 5``, which gives
            ``f = (9 beta rho^2 / (25 pi^2)) sin(5 pi x / (3 rho))``, the squared gradient
            ``27 beta^2 rho^2 / (100 pi^2)`` and the gap ``9 beta rho^2 / (50 pi^2)``.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        ``minimisers`` holds the two nearest to 0. All are ``period`` apart.

    Reference:
        Derived here. That a term of order ``rho^2`` cannot be avoided for deterministic SAM on nonconvex functions is
        a result of Si and Yun, Practical Sharpness-Aware Minimization Cannot Converge All the Way to Optima, NeurIPS
        2023 (https://arxiv.org/abs/2306.09850).

    Example:
        >>> from steppe import SAM
        >>> from steppe.theory import Sine, run
        >>> problem = Sine(beta=1.0, rho=1.0)
        >>> w = problem.parameter([0.4])
        >>> _ = run(problem, SAM(torch.optim.SGD([w], lr=0.3), rho=1.0), steps=100)
        >>> round(problem.from_minimum(w).item(), 6)
        -0.2
        >>> round(problem.gradient(w.detach()).item() ** 2, 6), round(problem.trapped_gradient**2, 6)
        (0.027357, 0.027357)
    """

    dimension = 1
    convex = False

    def __init__(self, beta: float = 1.0, rho: float = 1.0, delta: float | None = None) -> None:
        positive(beta=beta, rho=rho)
        self.delta = rho / 5 if delta is None else delta
        if not 0.0 < self.delta < rho:
            raise ValueError(f"delta must be in (0, rho) = (0, {rho}), got {delta}.")
        self.beta, self.rho = beta, rho
        self.period = rho + self.delta
        self.omega = 2 * math.pi / self.period
        self.smoothness = beta
        self.lipschitz = self.gradient_bound = beta / self.omega
        self.minimum = -beta / self.omega**2
        self.minimisers = self.period * vector(-0.25, 0.75).unsqueeze(-1)
        self.origin = vector(0.0)
        self.spread = 5 * self.period
        self.trapped_gradient = beta / self.omega * math.sin(self.omega * self.delta)
        self.trapped_gap = beta / self.omega**2 * (1 - math.cos(self.omega * self.delta))

    def value(self, x: Tensor) -> Tensor:
        return -self.minimum * torch.sin(self.omega * x).squeeze(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.lipschitz * torch.cos(self.omega * x)

    def from_minimum(self, x: Tensor) -> Tensor:
        """Return how far right of the nearest minimum points are; SAM ends at ``delta`` or ``-delta``."""
        away = x.detach() / self.period - 0.75
        return self.period * (away - torch.round(away))


@final
class NonSmooth(Problem):
    """``f(x, y) = max(|x|, |2x + y|)``, convex and least at 0.

    The subgradient is ``(sign x, 0)`` where ``|x| > |2x + y|``, and ``sign(2x + y) (2, 1)`` elsewhere. If
    ``|c| < 7/2 rho`` with ``c = x - 2y`` at the start, every step of SAM goes along ``(2, 1)``, whatever the learning
    rates: ``c`` never changes, and `floor`, ``f >= |c| / 7``, holds for ever.

    Reference:
        Derived here.

    Example:
        >>> from steppe import SAM
        >>> from steppe.theory import NonSmooth, run
        >>> problem = NonSmooth()
        >>> w = problem.parameter([2.0, 0.5])
        >>> trace = run(problem, SAM(torch.optim.SGD([w], lr=0.01), rho=1.0), steps=500)
        >>> round(problem.line(w).item(), 6), bool(trace.values.min() >= problem.floor(w))
        (1.0, True)
    """

    dimension = 2
    lipschitz = math.sqrt(5)
    gradient_bound = 2.0

    def __init__(self) -> None:
        self.minimisers = torch.zeros(1, 2, dtype=torch.float64)
        self.origin = vector(2.0, 0.5)

    def value(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        return torch.maximum(first.abs(), (2 * first + second).abs())

    def gradient(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        inner = 2 * first + second
        sign = inner.sign()
        upright = first.abs() > inner.abs()
        return torch.stack((torch.where(upright, first.sign(), 2 * sign), torch.where(upright, 0.0, sign)), -1)

    def line(self, x: Tensor) -> Tensor:
        """Return ``c = x - 2y``, which SAM of radius > ``2 |c| / 7`` leaves as it is."""
        first, second = x.detach().unbind(-1)
        return first - 2 * second

    def floor(self, x: Tensor) -> Tensor:
        """Return the least value on the line that a point is on."""
        return self.line(x).abs() / 7


@final
class Valley(Problem):
    """``f(x, y) = (xy - 1)^2``, whose minimisers are the curve ``xy = 1``, flattest at (1, 1) and (-1, -1).

    Note:
        ``minimisers`` holds the two flattest. There is no global smoothness.

    Reference:
        Si and Yun, Practical Sharpness-Aware Minimization Cannot Converge All the Way to Optima, NeurIPS 2023
        (https://arxiv.org/abs/2306.09850), draw trajectories on this function. The start is ours.

    Example:
        >>> from steppe.theory import Valley
        >>> problem = Valley()
        >>> [problem.curvature(torch.tensor(p, dtype=torch.float64)).item() for p in ((1.0, 1.0), (2.0, 0.5))]
        [4.0, 8.5]
    """

    dimension = 2
    convex = False

    def __init__(self) -> None:
        self.minimisers = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
        self.origin = vector(2.5, 0.1)

    def value(self, x: Tensor) -> Tensor:
        return (x.prod(-1) - 1).square()

    def gradient(self, x: Tensor) -> Tensor:
        return 2 * (x.prod(-1, keepdim=True) - 1) * x.flip(-1)

    def curvature(self, x: Tensor) -> Tensor:
        """Return ``2 (x^2 + y^2)``, the largest eigenvalue of the Hessian at a minimiser (x, y)."""
        return 2 * x.detach().square().sum(-1)
