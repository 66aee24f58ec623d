"""Friendly SAM: climb along what is this batch's own."""

from __future__ import annotations

from typing import final

from ..ascents import Filtered
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases


@final
class FriendlySAM(SharpnessAware):
    r"""SAM that climbs along the noise of the batch, and not along what all batches share.

    One step, from ``m = 0``::

        g     = grad f(w)
        d     = g - sigma m
        m     = decay m + (1 - decay) g
        s     = grad f(w + rho d / ||d||_2)
        w     = U(w, s)

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`. The authors' script uses 0.2 on CIFAR.
        sigma: how much of the average to take out; 1 is the paper's.
        decay: of the average, in [0, 1); the authors' class uses 0.9, their script 0.6.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``sigma`` is not finite or ``decay`` out of range.

    Cost:
        2 gradients per step; 2 copies of the parameters, kept from step to step, and briefly 1 more while it climbs.

    Reference:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024 (https://arxiv.org/abs/2403.12350).

    Note:
        ``sigma=0`` is `SAM` and ``rho=0`` the base, bit for bit. The average takes up the raw gradient, after it was
        used. A negative ``sigma`` climbs along an average, as `VaSSO` does. The average starts at 0; in
        the authors' code it starts at the first ``g``.

    Example:
        >>> import torch
        >>> from steppe import FriendlySAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = FriendlySAM(torch.optim.SGD([w], lr=0.05), rho=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.94975, -0.950062]
    """

    def __init__(
        self,
        base: Bases,
        *,
        rho: Radius = 0.1,
        sigma: float = 1.0,
        decay: float = 0.9,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(base, ascent=Filtered(sigma, decay), rho=rho, foreach=foreach)
