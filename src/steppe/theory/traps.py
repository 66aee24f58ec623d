"""Mixtures of components on which stochastic SAM ends away from the minimum, where it is predicted to."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from .problems import Mixture, positive, vector


class _Parabolas(Mixture):
    """``f_i(x) = a_i/2 x^2 - t_i x`` with ``E t_i = 0``, so that ``f(x) = E a_i / 2 x^2``; one dimension."""

    dimension = 1

    def __init__(self, probabilities: Tensor, curvatures: Tensor, tilts: Tensor) -> None:
        self.probabilities = probabilities
        self.curvatures, self.tilts = curvatures.unsqueeze(-1), tilts.unsqueeze(-1)
        self.strong_convexity = float(probabilities @ curvatures)
        self.smoothness = float(curvatures.abs().max())
        self.minimisers = torch.zeros(1, 1, dtype=torch.float64)
        self.origin = vector(0.0)

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * self.strong_convexity * x.square().squeeze(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.strong_convexity * x

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        return (x * (0.5 * self.curvatures[sample] * x - self.tilts[sample])).squeeze(-1)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.curvatures[sample] * x - self.tilts[sample]


@final
class SkewedNoise(_Parabolas):
    """``f(x) = a/2 x^2`` with gradients ``a x + z``: small ``z > 0`` often, large ``z < 0`` seldom.

    ``z = m`` with probability ``q``, and ``-q m / (1 - q)`` otherwise. SAM climbs by the sign of the sampled gradient,
    which is that of ``z`` near 0, so the climbs do not cancel, and its mean tends to ``-rho (2 q - 1)``.

    Args:
        curvature: the ``a``, > 0.
        probability: the ``q``, in (0, 1).
        size: the ``m``, > 0. ``noise`` is ``q m^2 / (1 - q)``.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Derived here. That stochastic SAM cannot get rid of a term of order ``rho^2`` is a result of Si and Yun,
        Practical Sharpness-Aware Minimization Cannot Converge All the Way to Optima, NeurIPS 2023
        (https://arxiv.org/abs/2306.09850).

    Example:
        >>> from steppe.theory import SkewedNoise
        >>> problem = SkewedNoise(curvature=1.0, probability=0.9, size=1.0)
        >>> round(problem.predicted_mean(rho=0.1), 6), round(problem.noise, 6)
        (-0.08, 9.0)
    """

    def __init__(self, curvature: float = 1.0, probability: float = 0.9, size: float = 1.0) -> None:
        positive(curvature=curvature, size=size)
        _check_probability(probability)
        q, z = probability, vector(size, -probability * size / (1 - probability))
        super().__init__(vector(q, 1 - q), torch.full((2,), curvature, dtype=torch.float64), -z)
        self.noise = q * size**2 / (1 - q)
        self.reach = float(z.abs().min()) / curvature

    def predicted_mean(self, rho: float, same_sample: bool = True) -> float:
        """Return where the mean of SAM's iterates tends to, as long as they stay within ``reach`` of 0.

        The reach is ``min(m, q m / (1 - q)) / a``; small learning rates keep iterates near 0. The mean is the same
        whether or not both passes have the same sample.
        """
        return -rho * float(2 * self.probabilities[0] - 1)


@final
class UnequalCurvature(_Parabolas):
    """``f_i(x) = a_i/2 (x - b_i)^2``, up to a constant, with minima far apart on both sides of 0, that of ``f``.

    Between them component 1 always climbs right and component 2 left, each by ``rho``. That changes their gradients by
    ``a_1 rho`` and ``-a_2 rho``, which do not cancel. The noise has no global bound, unless the curvatures are equal.

    Args:
        curvatures: ``(a_1, a_2)``, each > 0.
        centre: ``b_1 < 0``; ``b_2`` follows from ``p a_1 b_1 + (1 - p) a_2 b_2 = 0``.
        probability: the ``p`` of component 1, in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Derived here, with the same end as `SkewedNoise`.

    Example:
        >>> from steppe.theory import UnequalCurvature
        >>> problem = UnequalCurvature(curvatures=(1.0, 0.2), centre=-3.0, probability=0.5)
        >>> [round(b, 6) for b in problem.centres], round(problem.predicted_mean(rho=0.5), 6)
        ([-3.0, 15.0], -0.333333)
    """

    def __init__(
        self, curvatures: tuple[float, float] = (1.0, 0.2), centre: float = -3.0, probability: float = 0.5
    ) -> None:
        a, p = curvatures, probability
        positive(**{"curvatures[0]": a[0], "curvatures[1]": a[1]})
        _check_probability(p)
        if not -math.inf < centre < 0:
            raise ValueError(f"centre must be a finite number < 0, got {centre}.")
        self.centres = (centre, -p * a[0] * centre / ((1 - p) * a[1]))
        super().__init__(vector(p, 1 - p), vector(*a), vector(*a) * vector(*self.centres))
        if a[0] == a[1]:
            self.noise = float(self.variance(self.origin))

    def predicted_mean(self, rho: float, same_sample: bool = True) -> float:
        """Return where the mean of SAM's iterates tends to, as long as they stay between the centres.

        ``-rho E[s a] / E[a]`` with ``s = 1`` for component 1 and ``-1`` for component 2, if both passes have the same
        sample; ``-rho E[s]`` if their samples are independent.
        """
        signed = self.probabilities * vector(1.0, -1.0)
        weights = self.curvatures.squeeze(-1) / self.strong_convexity if same_sample else 1.0
        return -rho * float((signed * weights).sum())


@final
class StronglyConvexTrap(_Parabolas):
    """``f(x) = beta/10 x^2`` out of two components that keep SAM around ``z``, surely and for ever.

    With equal probabilities ``f_1 = -3/10 beta (x - z)^2`` and ``f_2 = beta/2 (x - 0.6 z)^2``, up to constants. If
    ``0.4 z <= (1 - lr beta) rho``, SAM around SGD with one sample per step, the same in both passes, never leaves
    ``[z - rho, z + rho]`` once it is there. The mean of SGD goes to 0. The noise has no global bound.

    Args:
        beta: smoothness of the components, > 0; ``f`` is ``beta/5``-strongly convex.
        rho: SAM's radius, > 0.
        z: middle of the trap, in (rho, 2.5 rho); None is ``1.25 rho``, which takes learning rates up to
            ``1 / (2 beta)``.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Derived here, with the same end as `SkewedNoise`: ``f >= beta/10 (z - rho)^2`` at all times.

    Example:
        >>> from steppe.theory import StronglyConvexTrap
        >>> problem = StronglyConvexTrap(beta=1.0, rho=0.4, z=0.5)
        >>> [round(end, 6) for end in problem.trap], round(problem.largest_lr, 6), round(problem.floor, 6)
        ([0.1, 0.9], 0.5, 0.001)
    """

    def __init__(self, beta: float = 1.0, rho: float = 0.4, z: float | None = None) -> None:
        positive(beta=beta, rho=rho)
        z = 1.25 * rho if z is None else z
        if not rho < z < 2.5 * rho:
            raise ValueError(f"z must be in (rho, 2.5 rho) = ({rho}, {2.5 * rho}), got {z}.")
        curvatures = beta * vector(-0.6, 1.0)
        super().__init__(vector(0.5, 0.5), curvatures, curvatures * vector(z, 0.6 * z))
        self.beta, self.rho, self.z = beta, rho, z
        self.origin, self.spread = vector(z), rho
        self.trap = (z - rho, z + rho)
        self.largest_lr = (1 - 0.4 * z / rho) / beta
        self.floor = float(self.value(vector(z - rho)))


@final
class ConvexTrap(Mixture):
    """A smooth convex ``f``, least at 0, out of two components that keep SAM around a ``z`` as far away as one likes.

    With equal probabilities, and ``clip(u, c)`` for ``u`` limited to ``[-c, c]``::

        f'   = clip(beta x / 2, s)
        f_1' = beta clip(z - x, 2 rho)
        f_2' = 2 f' - f_1'

    If ``2 s / beta <= (1 - lr beta) rho``, SAM around SGD with one sample per step, the same in both passes, never
    leaves ``[z - rho, z + rho]`` once it is there, where ``f' = s``. SGD and SAM with independent samples drift out of
    it, by ``lr s`` per step on average.

    Args:
        beta: smoothness of the components, > 0; ``f`` itself is ``beta/2``-smooth.
        rho: SAM's radius, > 0.
        z: middle of the trap, >= 3 rho; ``f(z) - f(0)`` grows with it and has no bound.
        slope: the ``s``, in (0, beta rho / 2); None is ``beta rho / 4``, which takes learning rates up to
            ``1 / (2 beta)``. ``noise`` is ``(2 beta rho + s)^2``.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Derived here, with the same end as `SkewedNoise`, on functions that are convex but not strongly so.

    Example:
        >>> from steppe.theory import ConvexTrap
        >>> problem = ConvexTrap(beta=1.0, rho=0.4, z=50.0)
        >>> problem.trap, problem.largest_lr, round(problem.floor, 6), round(problem.trapped_gradient, 6)
        ((49.6, 50.4), 0.5, 4.95, 0.1)
    """

    dimension = 1

    def __init__(self, beta: float = 1.0, rho: float = 0.4, z: float = 5.0, slope: float | None = None) -> None:
        positive(beta=beta, rho=rho)
        s = beta * rho / 4 if slope is None else slope
        if not 3 * rho * (1 - 1e-12) <= z < math.inf:  # three times 0.1 is more than 0.3
            raise ValueError(f"z must be a finite number >= 3 rho = {3 * rho}, got {z}.")
        if not 0 < s < beta * rho / 2:
            raise ValueError(f"slope must be in (0, beta rho / 2) = (0, {beta * rho / 2}), got {slope}.")
        self.beta, self.rho, self.z, self.slope = beta, rho, z, s
        self.probabilities = vector(0.5, 0.5)
        self._signs, self._shares = vector(1.0, -1.0).unsqueeze(-1), vector(0.0, 2.0).unsqueeze(-1)
        self.smoothness = beta
        self.lipschitz = self.gradient_bound = 2 * beta * rho + 2 * s
        self.noise = (2 * beta * rho + s) ** 2
        self.minimisers = torch.zeros(1, 1, dtype=torch.float64)
        self.origin, self.spread = vector(z), rho
        self.trap = (z - rho, z + rho)
        self.largest_lr = (1 - 2 * s / (beta * rho)) / beta
        self.trapped_gradient = s
        self.floor = float(self.value(vector(z - rho)))

    def value(self, x: Tensor) -> Tensor:
        return (0.5 * self.beta * _huber(x, 2 * self.slope / self.beta)).squeeze(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return (0.5 * self.beta * x).clamp(-self.slope, self.slope)

    def component_value(self, x: Tensor, sample: Tensor) -> Tensor:
        first = -self.beta * _huber(self.z - x, 2 * self.rho).squeeze(-1)
        return self._signs[sample].squeeze(-1) * first + self._shares[sample].squeeze(-1) * self.value(x)

    def component_gradient(self, x: Tensor, sample: Tensor) -> Tensor:
        first = self.beta * (self.z - x).clamp(-2 * self.rho, 2 * self.rho)
        return self._signs[sample] * first + self._shares[sample] * self.gradient(x)


def _check_probability(p: float) -> None:
    if not 0.0 < p < 1.0:
        raise ValueError(f"probability must be in (0, 1), got {p}.")


def _huber(u: Tensor, limit: float) -> Tensor:
    """Return the integral of ``clip(u, limit)`` from 0."""
    inner = u.clamp(-limit, limit)
    return inner * (u - 0.5 * inner)
