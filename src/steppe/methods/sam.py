"""SAM: sharpness-aware minimization."""

from __future__ import annotations

from typing import final

from ..ascents import L2
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import Trigger


@final
class SAM(SharpnessAware):
    r"""Descend with the gradient at the worst point nearby: sharpness-aware minimization.

    One step, with mini-batch loss ``f`` and the base's update ``U``::

        g     = grad f(w)
        delta = rho g / ||g||_2              one norm over all parameters
        s     = grad f(w + delta)            same batch
        w     = U(w, s)

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`. The paper's default is 0.05; the best value depends on the model
            and is found on validation data, on a grid such as {0.01, 0.02, 0.05, 0.1, 0.2, 0.5}.
        trigger: whether to climb at this step, as `steppe.triggers.Every` (k) does; None climbs always.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`.

    Cost:
        2 gradients per step; 1 copy of the parameters, kept from step to step.

    Reference:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021
        (https://arxiv.org/abs/2010.01412).

    Note:
        ``rho=0`` is the base, bit for bit. The climb does not change when the loss is multiplied by a constant. Weight
        decay belongs to the base and does not bend the climb. With a constant ``rho`` the iterates keep a distance
        from the minimum that shrinks with the learning rate but, on mini-batches, not to zero.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = SAM(torch.optim.SGD([w], lr=0.05), rho=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> opt.step(closure).item()
        20.5
        >>> [round(x, 6) for x in w.tolist()]
        [0.94975, -0.950062]
    """

    def __init__(
        self, base: Bases, *, rho: Radius = 0.05, trigger: Trigger | None = None, foreach: bool | None = None
    ) -> None:
        super().__init__(base, ascent=L2(), trigger=trigger, rho=rho, foreach=foreach)
