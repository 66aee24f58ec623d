"""GSAM: surrogate gap guided SAM."""

from __future__ import annotations

from typing import final

from ..ascents import L2
from ..blends import SurrogateGap
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import Trigger


@final
class GSAM(SharpnessAware):
    r"""SAM that also narrows the surrogate gap, the loss at the perturbed point minus the loss at ``w``.

    One step::

        g     = grad f(w)
        delta = rho g / ||g||_2
        s     = grad f(w + delta)
        g_vert = g - (<g, s> / ||s||^2) s     the part of g orthogonal to s
        w     = U(w, s - alpha g_vert)

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`, which the paper uses: rho falls with the learning rate.
        alpha: weight of the orthogonal part; the paper uses 0.01 to 1.0, its CIFAR example 0.4.
        trigger: whether to climb at this step, as `steppe.triggers.Every` (k) does; None climbs always.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``alpha`` is not finite.

    Cost:
        2 gradients per step; 2 copies of the parameters during a step, one of them kept from step to step.

    Reference:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022
        (https://arxiv.org/abs/2203.08065), the algorithm.

    Note:
        ``alpha=0`` is SAM and ``rho=0`` the base, bit for bit. The decomposition is one over all parameters that climb
        and have a gradient in both passes; groups with a radius of 0 get ``s - alpha (g - c s)`` of their own gradients
        with its number ``c = <g, s> / ||s||^2``.

    Example:
        >>> import torch
        >>> from steppe import GSAM, ProportionalToLR
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> base = torch.optim.SGD([w], lr=0.05)
        >>> opt = GSAM(base, rho=ProportionalToLR(rho_max=0.1, rho_min=0.01, lr_max=0.05, lr_min=0.0), alpha=0.4)
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=100)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.950604, -0.950022]
    """

    def __init__(
        self,
        base: Bases,
        *,
        rho: Radius = 0.05,
        alpha: float = 0.4,
        trigger: Trigger | None = None,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(base, ascent=L2(), blend=SurrogateGap(alpha), trigger=trigger, rho=rho, foreach=foreach)
