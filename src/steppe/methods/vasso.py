"""VaSSO: climb along an average of gradients."""

from __future__ import annotations

from typing import final

from ..ascents import Filtered
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases


@final
class VaSSO(SharpnessAware):
    r"""SAM that climbs along an average of gradients, whose noise is less than that of a batch.

    One step, from ``d = 0``::

        g     = grad f(w)
        d     = (1 - theta) d + theta g
        s     = grad f(w + rho d / ||d||_2)
        w     = U(w, s)

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`.
        theta: weight of the newest gradient, in (0, 1].
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``theta`` is out of range.

    Cost:
        2 gradients per step; 2 copies of the parameters, kept from step to step, and briefly 1 more while it climbs.

    Reference:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023
        (https://arxiv.org/abs/2309.15639).

    Note:
        ``theta=1`` is `SAM` and ``rho=0`` the base, bit for bit. The direction is that of `FriendlySAM` with the
        opposite sign: ``d = theta (g + ((1 - theta) / theta) d_before)``. The average starts at 0, and in
        the authors' code at the first ``g``: the first direction is the same, later ones have more of it.

    Example:
        >>> import torch
        >>> from steppe import VaSSO
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = VaSSO(torch.optim.SGD([w], lr=0.05), rho=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.94975, -0.950062]
    """

    def __init__(self, base: Bases, *, rho: Radius = 0.05, theta: float = 0.9, foreach: bool | None = None) -> None:
        if not 0.0 < theta <= 1.0:
            raise ValueError(f"theta must lie in (0, 1], got {theta}.")
        ascent = Filtered(sigma=(theta - 1) / theta, decay=1 - theta)
        super().__init__(base, ascent=ascent, rho=rho, foreach=foreach)
