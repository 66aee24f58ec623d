"""Mixtures of components on which adaptive learning rates go the wrong way, as they are predicted to."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from .problems import Mixture, positive, vector

_NODES = 2001  # points of a grid; drifts are then right to 1e-5


@final
class RareSpikes(Mixture):
    """A smooth convex ``f`` with a rare large gradient down and a frequent small one up, between two walls.

    With ``W' = k (x - clip(x, w))``, limited to ``[-C, C]``, and ``clip(x, w)`` for ``x`` limited to ``[-w, w]``::

        f_1' = C + W'     with probability p
        f_2' = -1 + W'    with probability 1 - p
        f'   = s + W'     with s = p (C + 1) - 1 > 0

    So ``f`` is least at ``-w - s/k``. Adam without a max divides the spike by what it has just added to ``v``, and
    the small gradients by a ``v`` that has forgotten it: its mean step goes up, to the other end, if ``beta2`` is small
    enough for that (see `drift`). With the max both are divided by the same number, in the end.

    Args:
        spike: the ``C``, > 1.
        probability: the ``p``, in (0, 1), with ``s > 0``.
        stiffness: the ``k``, > 0, which is the smoothness of all components.
        half_width: the ``w``, > 0.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Reddi et al., On the Convergence of Adam and Beyond, ICLR 2018: a linear function with such gradients on the
        interval [-1, 1], with projection. The walls, and what is said of them, are ours.

    Example:
        >>> from steppe.theory import RareSpikes
        >>> problem = RareSpikes(spike=40.0, probability=0.05)
        >>> round(problem.slope, 6), round(problem.minimisers.item(), 6), round(problem.noise, 4)
        (1.05, -2.05, 79.8475)
        >>> [round(problem.drift(betas=(0.0, beta2)), 4) for beta2 in (0.0, 0.9, 0.99)]
        [-0.9, -0.0918, 0.0989]
    """

    dimension = 1

    def __init__(
        self, spike: float = 40.0, probability: float = 0.05, stiffness: float = 1.0, half_width: float = 1.0
    ) -> None:
        positive(stiffness=stiffness, half_width=half_width)
        if not 1.0 < spike < math.inf:
            raise ValueError(f"spike must be a finite number > 1, got {spike}.")
        if not 1 / (spike + 1) < probability < 1.0:
            raise ValueError(f"probability must be in (1 / (spike + 1), 1), got {probability}.")
        p, c = probability, spike
        self.spike, self.stiffness, self.half_width = c, stiffness, half_width
        self.slope = p * (c + 1) - 1
        self.probabilities = vector(p, 1 - p)
        self._slopes = vector(c, -1.0).unsqueeze(-1)
        self.smoothness = stiffness
        self.lipschitz = self.gradient_bound = 2 * c
        self.noise = p * (1 - p) * (c + 1) ** 2
        self.minimisers = vector(-half_width - self.slope / stiffness).unsqueeze(-1)
        self.minimum = float(self.value(self.minimisers[0]))
        self.origin, self.spread = vector(0.0), half_width

    def value(self, x: Tensor) -> Tensor:
        return (self.slope * x + self._wall(x)).squeeze(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.slope + self._push(x)

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return (self._slopes[sample] * x + self._wall(x)).squeeze(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        return self._slopes[sample] + self._push(x)

    def drift(self, betas: tuple[float, float]) -> float:
        """Return what ``m / sqrt(v)`` of Adam without a max is on average between the walls, once ``v`` is stationary.

        An iterate moves by ``-lr`` times that: a negative drift is one away from the minimum. Radii do not matter, as
        the components are linear there.

        Raises:
            ValueError: if a beta is not in [0, 1).
        """
        beta1, beta2 = betas
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ValueError(f"betas must lie in [0, 1), got {betas}.")
        p, q = self.probabilities.tolist()
        logs = torch.linspace(0.0, 2 * math.log(self.spike), _NODES, dtype=torch.float64)
        v = logs.exp()

        def after(gradient: float) -> tuple[Tensor, Tensor]:
            """Return the node left of the next ``log v``, for every node, and how far along it is to the right one."""
            place = (beta2 * v + (1 - beta2) * gradient**2).log() / logs[1]
            left = place.floor().clamp(0, _NODES - 2)
            return left.long(), place - left

        (i, far), (j, near) = after(self.spike), after(1.0)

        def ahead(u: Tensor, spike: float = 1.0, small: float = 1.0) -> Tensor:
            """Return the mean of ``u`` after one more sample, weighted by factors for the two samples."""
            high, low = torch.lerp(u[i], u[i + 1], far), torch.lerp(u[j], u[j + 1], near)
            mean: Tensor = p * spike * high + q * small * low
            return mean

        # E [g_t-k / sqrt(v_t)] for all k, weighted as in m, given v before g_t-k; then its mean over that v, which a
        # function tends to when it is looked at from further and further back.
        root, total, weight = v.rsqrt(), torch.zeros_like(v), 1 - beta1
        while weight > 1e-12:
            total, root, weight = total + weight * root, ahead(root), weight * beta1
        product = ahead(total, self.spike, -1.0)
        while product.max() - product.min() > 1e-9:
            product = ahead(product)
        return float(product.mean())

    def _push(self, x: Tensor) -> Tensor:
        beyond = x - x.clamp(-self.half_width, self.half_width)
        return (self.stiffness * beyond).clamp(-self.spike, self.spike)

    def _wall(self, x: Tensor) -> Tensor:
        """Return the integral of `_push` from 0."""
        beyond = x - x.clamp(-self.half_width, self.half_width)
        limit = self.spike / self.stiffness
        inner = beyond.clamp(-limit, limit)
        return self.stiffness * inner * (beyond - 0.5 * inner)
