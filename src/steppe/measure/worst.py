"""Worst-case sharpness: how much the loss can rise within a ball around the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .estimate import Estimate, Meter, Progress, mean_and_error, progress
from .objective import Batch, Objective

Norm = Literal["l2", "linf"]
Momentum = Literal["heavy-ball", "average"]

M_APGD_LINF: dict[str, Any] = {
    "rho": 2e-4,
    "norm": "linf",
    "adaptive": False,
    "iterations": 20,
    "restarts": 1,
    "momentum": "average",
}
"""The setting of Harada and Iiduka (arXiv 2409.09984) as their code has it: ``worst_case(objective, **M_APGD_LINF)``.

Their data is 1024 training images, not augmented, in batches of 128, the model in evaluation mode, logits as is."""


def worst_case(
    objective: Objective,
    rho: float,
    *,
    norm: Norm = "l2",
    adaptive: bool = False,
    iterations: int = 20,
    restarts: int = 1,
    momentum: Momentum = "heavy-ball",
    seed: int = 0,
) -> Estimate:
    """Measure worst-case m-sharpness by Auto-PGD::

        S = sum_b n_b/N  max { L_b(w + delta) - L_b(w) :  ‖delta / c‖_p <= rho },   c = 1, or |w| if adaptive

    with p = 2 or infinity, for every batch on its own; m is the objective's batch size. Adaptive balls stretch with the
    weights element by element, so the measure does not change when a ReLU layer is scaled up and the next one down; a
    weight that is zero stays zero.

    The ascent works on ``u = delta / c``. From ``u = 0`` it takes ``iterations`` steps of first ``2 rho`` along the
    normalised gradient (l2) or its sign (l-infinity), projects to ``z``, and adds momentum. Where too few steps have
    improved since the last checkpoint, the step is halved and the ascent goes on from the best point. The second ascent
    and later ones begin at a random point. The value is a lower bound of the maximum, and never negative.

    Args:
        objective: model, loss and data.
        rho: radius, > 0; in units of the weights, or of their relative change if adaptive. Not comparable between
            norms: the l-infinity ball holds the l2 ball of the same radius and reaches ``sqrt(P)`` times as far.
        norm: ``"l2"`` or ``"linf"``.
        adaptive: whether c is \\|w\\|.
        iterations: gradient steps, >= 1.
        restarts: ascents of which the best counts, >= 1.
        momentum: ``"heavy-ball"`` goes to ``project(z + 3/4 (u - u_previous))``, ``"average"`` to
            ``3/4 z + 1/4 u_previous`` as the code behind the second reference does, which stays further inside of an
            l2 ball and needs more iterations there.
        seed: of random starts, and of a random direction where the gradient is exactly zero.

    Returns:
        The mean over batches and its standard error over them, in units of the loss; infinite if the loss overflows.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Costs ``restarts * (iterations + 0.4)`` gradients over the data, and memory for nine copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, worst_case
        >>> w = torch.nn.Linear(1, 1, bias=False)  # L = w**2, at w = 3: the maximum is (3 + rho)**2 - 9
        >>> _ = torch.nn.init.constant_(w.weight, 3.0)
        >>> objective = Objective(w, lambda out, y: (out**2).mean(), (torch.ones(4, 1), torch.zeros(4)))
        >>> round(worst_case(objective, rho=0.5).value, 4)
        3.25

    Reference:
        Auto-PGD: Croce and Hein, ICML 2020 (https://arxiv.org/abs/2003.01690), algorithm 1. Of weights, adaptive:
        Andriushchenko et al., ICML 2023 (https://arxiv.org/abs/2302.07011), equation 1; Kwon et al., ICML 2021
        (https://arxiv.org/abs/2102.11600).
    """
    _check(rho, norm, iterations, restarts, momentum)
    ball = _Ball(rho, norm)
    meter, rises, counts = Meter(objective), [], []
    random = torch.Generator(objective.device).manual_seed(seed)
    with objective.exploring() as w, progress("worst case", objective.batches * restarts * (iterations + 1)) as tick:
        c = w.abs() if adaptive else None
        for batch in objective:
            ascents = [_Ascent(objective, batch, w, c, ball, momentum, random) for _ in range(restarts)]
            for k, ascent in enumerate(ascents):
                ascent.climb(iterations, random_start=k > 0, tick=tick)
            best = max(ascent.best for ascent in ascents)
            rises.append(best - ascents[0].start if math.isfinite(best) else math.inf)
            counts.append(float(ascents[0].examples))
    value, error = mean_and_error(rises, counts)
    settings = {
        "rho": rho,
        "norm": norm,
        "adaptive": adaptive,
        "iterations": iterations,
        "restarts": restarts,
        "momentum": momentum,
        "seed": seed,
        "normalize_logits": objective.normalize_logits,
    }
    return Estimate(value, error, len(rises), meter.cost, meter.seconds, settings)


@dataclass(frozen=True)
class _Ball:
    """``{u: ‖u‖_p <= rho}``."""

    rho: float
    norm: Norm

    def project(self, u: Tensor) -> Tensor:
        """Move ``u`` to the nearest point of the ball, in place."""
        if self.norm == "linf":
            return u.clamp_(-self.rho, self.rho)
        length = torch.linalg.vector_norm(u).item()
        return u.mul_(self.rho / length) if length > self.rho else u

    def uphill(self, u: Tensor, g: Tensor, length: float, step: float) -> Tensor:
        """Return ``u`` moved along the steepest direction of length 1 in this norm; ``length`` is g's l2 norm."""
        return g.sign().mul_(step).add_(u) if self.norm == "linf" else torch.add(u, g, alpha=step / length)

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a point on the sphere, or a uniform one in the cube."""
        x = torch.empty_like(like)
        if self.norm == "linf":
            return x.uniform_(-self.rho, self.rho, generator=generator)
        x.normal_(generator=generator)
        return x.mul_(self.rho / torch.linalg.vector_norm(x))


class _Ascent:
    """One ascent on the loss of one batch."""

    def __init__(
        self,
        objective: Objective,
        batch: Batch,
        w: Tensor,
        c: Tensor | None,
        ball: _Ball,
        momentum: Momentum,
        random: torch.Generator,
    ) -> None:
        self._objective, self._batch, self._w, self._c = objective, batch, w, c
        self._ball, self._momentum, self._random = ball, momentum, random
        self._at = torch.empty_like(w)  # fresh memory costs more than the addition that fills it
        self.start = self.best = -math.inf
        self.examples = 0

    def climb(self, iterations: int, *, random_start: bool, tick: Progress) -> None:
        """Leave in `start` the loss at the first point, and in `best` the highest seen."""
        u = self._masked(self._ball.random(self._w, self._random)) if random_start else torch.zeros_like(self._w)
        previous, step = u, 2 * self._ball.rho
        checkpoints = _checkpoints(iterations)
        improved, last, before, step_then, best_then = 0, 0, -math.inf, step, -math.inf
        for k in range(iterations + 1):
            loss, g = self._evaluate(u, want_gradient=k < iterations)
            tick()
            if k == 0:
                self.start = loss
            if not math.isfinite(loss):
                self.best = math.inf
                return
            if loss > self.best:
                self.best, best_u, best_g = loss, u, g
            improved += k > 0 and loss > before
            before = loss
            if k == iterations:
                return
            if k in checkpoints:
                stuck = step == step_then and self.best == best_then
                step_then, best_then = step, self.best
                if stuck or improved < 0.75 * (k - last):
                    step, u, g, previous, before = step / 2, best_u, best_g, best_u, self.best
                improved, last = 0, k
            assert g is not None  # not only at the last point, which nothing follows
            u, previous = self._next(u, g, previous, step), u

    def _evaluate(self, u: Tensor, want_gradient: bool) -> tuple[float, Tensor | None]:
        at = (
            torch.add(self._w, u, out=self._at) if self._c is None else torch.addcmul(self._w, self._c, u, out=self._at)
        )
        self._objective.move(at)
        if not want_gradient:
            return self._objective.loss_of(self._batch), None
        loss, g, self.examples = self._objective.batch_gradient(self._batch)
        return loss, g if self._c is None else g.mul_(self._c)

    def _next(self, u: Tensor, g: Tensor, previous: Tensor, step: float) -> Tensor:
        """Return the point after a step along the gradient, with momentum."""
        length = torch.linalg.vector_norm(g).item()
        if length == 0:  # at a stationary point no direction is better than another
            g = self._masked(self._ball.random(self._w, self._random))
            length = max(torch.linalg.vector_norm(g).item(), torch.finfo(g.dtype).tiny)
        z = self._ball.project(self._ball.uphill(u, g, length, step))
        if self._momentum == "average":
            return z.lerp_(previous, 0.25)
        return self._ball.project(z.add_(u, alpha=0.75).sub_(previous, alpha=0.75))

    def _masked(self, u: Tensor) -> Tensor:
        return u if self._c is None else u.mul_(self._c != 0)


def _checkpoints(iterations: int) -> frozenset[int]:
    """Return after how many steps the step size is looked at: at 22 % of all, 41 %, 57 %, ... but not at the end."""
    found, before, now = set(), 0.0, 0.22
    while math.ceil(now * iterations) < iterations:
        found.add(math.ceil(now * iterations))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return frozenset(found)


def _check(rho: float, norm: str, iterations: int, restarts: int, momentum: str) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be a finite number > 0, got {rho}.")
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', got {norm!r}.")
    if momentum not in ("heavy-ball", "average"):
        raise ValueError(f"momentum must be 'heavy-ball' or 'average', got {momentum!r}.")
    for name, value in (("iterations", iterations), ("restarts", restarts)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")
