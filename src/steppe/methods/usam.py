"""USAM: SAM without normalisation."""

from __future__ import annotations

from typing import final

from ..ascents import Unnormalized
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import Trigger


@final
class USAM(SharpnessAware):
    r"""SAM without normalisation: the climb is as long as the gradient.

    One step::

        delta = rho grad f(w)
        w     = U(w, grad f(w + delta))

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: ascent step size, >= 0, in units of one over curvature (a learning rate uphill), or a `ProportionalToLR`.
        trigger: whether to climb at this step, as `steppe.triggers.Every` (k) does; None climbs always.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`.

    Cost:
        2 gradients per step; 1 copy of the parameters, kept from step to step.

    Reference:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022
        (https://arxiv.org/abs/2206.06232), the form its analysis uses.

    Note:
        ``rho=0`` is the base, bit for bit. A stationary point of the loss is one of USAM, which is not so for SAM. The
        climb does scale with the loss: gradients that carry a GradScaler's factor must be unscaled before it.

    Example:
        >>> import torch
        >>> from steppe import USAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = USAM(torch.optim.SGD([w], lr=0.05), rho=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.945, 0.0]
    """

    def __init__(
        self, base: Bases, *, rho: Radius = 0.05, trigger: Trigger | None = None, foreach: bool | None = None
    ) -> None:
        super().__init__(base, ascent=Unnormalized(), trigger=trigger, rho=rho, foreach=foreach)
