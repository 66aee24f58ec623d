"""PGN: penalizing the gradient norm."""

from __future__ import annotations

from typing import final

from ..ascents import L2
from ..blends import Weighted
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases


@final
class PGN(SharpnessAware):
    r"""Descend the loss plus ``lam ||grad f||``: a weighted mean of the clean and the sharp gradient.

    One step::

        g = grad f(w)
        s = grad f(w + rho g / ||g||_2)
        w = U(w, (1 - alpha) g + alpha s)        alpha = lam / rho

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`; ``r`` in the paper, which uses 0.05 and 0.1.
        alpha: weight of the sharp gradient. The paper uses 0.8. An ``alpha > 1`` goes beyond the sharp gradient: that
            of WSAM with its ``gamma`` (https://arxiv.org/abs/2305.15817), in the form without decoupling, is
            ``gamma / (1 - gamma)``.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``alpha`` is not finite.

    Cost:
        2 gradients per step; 2 copies of the parameters during a step, one of them kept from step to step.

    Reference:
        Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning, ICML 2022
        (https://arxiv.org/abs/2202.03599).

    Note:
        ``alpha=1`` is `SAM`; ``alpha=0`` and ``rho=0`` are the base, bit for bit. Groups with a radius of 0 get the
        same mean of their gradients, of which the sharp one is at a point where others have moved.

    Example:
        >>> import torch
        >>> from steppe import PGN
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = PGN(torch.optim.SGD([w], lr=0.05), rho=0.1, alpha=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.949875, -0.975031]
    """

    def __init__(self, base: Bases, *, rho: Radius = 0.1, alpha: float = 0.8, foreach: bool | None = None) -> None:
        super().__init__(base, ascent=L2(), blend=Weighted(alpha), rho=rho, foreach=foreach)
