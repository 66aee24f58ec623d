"""MSAM: momentum-SAM."""

from __future__ import annotations

from typing import final

from ..ascents import L2, Adaptive, Momentum
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import After


@final
class MSAM(SharpnessAware):
    r"""SAM at the price of its base: perturb along the momentum, which is there already, instead of a gradient.

    One step, with the base's momentum ``m``, a sum of gradients, so that the weights go along ``-m``::

        delta = -rho m / ||m||_2             one norm over all parameters
        s     = grad f(w + delta)            the only gradient
        w     = U(w, s)                      which updates m

    With ``eta``, ``delta = -rho T^2 m / ||T m||_2``, ``T = |w| + eta``, as `ASAM` climbs.

    Args:
        base: the optimizer instance that takes the step, or a list of them; its state must hold a momentum, as that of
            SGD with momentum, AdamW, Muon, NAdam, RMSprop with momentum, or `AMSGrad` does.
        rho: radius, >= 0, or a `ProportionalToLR`. A momentum is a rougher guide than the gradient: the best radius is
            several times that of `SAM`, and is found on validation data.
        eta: None, or a number >= 0 for the adaptive climb, whose radii are some ten times as large.
        warmup: steps at the beginning that are the base's own. With Adam and a learning rate that warms up this
            matters; so many steps as that takes are right.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if the base's momentum is 0, or ``eta`` or ``warmup``
            negative.
        RuntimeError: at the second step, if the base keeps no momentum.

    Cost:
        1 gradient per step; 1 copy of the parameters during a step.

    Reference:
        Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024
        (https://arxiv.org/abs/2401.12033).

    Note:
        ``rho=0`` is the base, bit for bit, and so is the first step, before which there is no momentum. Weights are
        ``w`` between steps, so evaluation and checkpoints see ``w``; in the authors' code they stay at ``w + delta``.
        `step` returns the loss at ``w + delta``, the only one there is. In a loop with ``ascended`` the one backward
        pass is that inside. Batch norm sees every batch once, and needs no care. Decoupled weight decay shrinks ``w``;
        in the authors' code, whose weights are at ``w + delta`` when the base steps, it shrinks these. A group with
        ``maximize=True`` needs nothing: its momentum goes the way its weights go.

    Example:
        >>> import torch
        >>> from steppe import MSAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = MSAM(torch.optim.SGD([w], lr=0.05, momentum=0.9), rho=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> [round(opt.step(closure).item(), 6) for _ in range(2)]
        [20.5, 4.497641]
        >>> [round(x, 6) for x in w.tolist()]
        [0.85775, 0.350062]
    """

    def __init__(
        self,
        base: Bases,
        *,
        rho: Radius = 0.2,
        eta: float | None = None,
        warmup: int = 0,
        foreach: bool | None = None,
    ) -> None:
        ascent = Momentum(L2() if eta is None else Adaptive(eta))
        super().__init__(base, ascent=ascent, trigger=After(warmup), rho=rho, foreach=foreach)
