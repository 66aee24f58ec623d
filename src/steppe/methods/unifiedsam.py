"""Unified SAM: between SAM and USAM."""

from __future__ import annotations

from typing import final

from ..ascents import Mix
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases


@final
class UnifiedSAM(SharpnessAware):
    r"""A climb between that of USAM, as long as the gradient, and that of SAM, of one length.

    One step, with a ``lam`` in [0, 1] that may follow the count of steps ``t = 1, 2, ...``::

        g     = grad f(w)
        delta = rho (1 - lam + lam / ||g||_2) g
        w     = U(w, grad f(w + delta))

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`; the authors use 0.1 to 0.4.
        lam: a number in [0, 1]; ``"1-1/t"``, from USAM to SAM, which the authors prefer; or ``"1/t"``, from SAM to
            USAM.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``lam`` is something else.

    Cost:
        2 gradients per step; 1 copy of the parameters, kept from step to step.

    Reference:
        Oikonomou and Loizou, Sharpness-Aware Minimization: General Analysis and Improved Rates, ICLR 2025
        (https://arxiv.org/abs/2503.02225).

    Note:
        ``lam=0`` is `USAM`, ``lam=1`` `SAM`, and ``rho=0`` the base, bit for bit.

    Example:
        >>> import torch
        >>> from steppe import UnifiedSAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = UnifiedSAM(torch.optim.SGD([w], lr=0.05), rho=0.1, lam=1.0)
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
        self, base: Bases, *, rho: Radius = 0.1, lam: float | str = "1-1/t", foreach: bool | None = None
    ) -> None:
        super().__init__(base, ascent=Mix(lam), rho=rho, foreach=foreach)
