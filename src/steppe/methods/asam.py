"""ASAM: adaptive SAM."""

from __future__ import annotations

from typing import final

from ..ascents import Adaptive
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import Trigger


@final
class ASAM(SharpnessAware):
    r"""Adaptive SAM: climb in a ball that is scaled by the weights, so that rescaling them does not change sharpness.

    One step, element-wise ``T = |w| + eta``::

        g     = grad f(w)
        delta = rho T^2 g / ||T g||_2
        w     = U(w, grad f(w + delta))

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`; the paper uses 0.5 on CIFAR-10 and 1.0 on CIFAR-100, about ten
            times SAM's.
        eta: floor under the scaling, >= 0, so that weights at zero can still move. The paper uses 0.01.
        trigger: whether to climb at this step, as `steppe.triggers.Every` (k) does; None climbs always.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``eta`` is negative or not finite.

    Cost:
        2 gradients per step; 1 copy of the parameters, kept from step to step, and briefly 3 more while it climbs.

    Reference:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021 (https://arxiv.org/abs/2102.11600).

    Note:
        ``rho=0`` is the base, bit for bit. ``T = |w| + eta`` holds for every parameter; the authors' code scales only
        those whose name contains "weight" and climbs plainly along the rest. With ``eta=0`` the climb is invariant to
        element-wise rescaling of the weights that leaves the function alone.

    Example:
        >>> import torch
        >>> from steppe import ASAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = ASAM(torch.optim.SGD([w], lr=0.05), rho=0.1, eta=0.0)
        >>> (0.5 * (w[0] ** 2 + 10 * w[1] ** 2)).backward()
        >>> with opt.ascended():
        ...     (0.5 * (w[0] ** 2 + 10 * w[1] ** 2)).backward()
        ...     [round(x, 6) for x in (w - torch.tensor([1.0, -2.0])).tolist()]
        [0.002499, -0.199938]
    """

    def __init__(
        self,
        base: Bases,
        *,
        rho: Radius = 0.5,
        eta: float = 0.01,
        trigger: Trigger | None = None,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(base, ascent=Adaptive(eta), trigger=trigger, rho=rho, foreach=foreach)
