"""ESAM: efficient SAM."""

from __future__ import annotations

from typing import final

from ..ascents import Masked
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases


@final
class ESAM(SharpnessAware):
    r"""SAM that moves a random part of the weights, and descends on the examples that the climb hurts most.

    One step, with a random 0-1 mask ``b`` whose entries are 1 with probability ``beta``::

        g     = grad f(w)                        on the batch B
        delta = (rho / beta) b g / ||g||_2
        H     = the gamma |B| examples of B whose loss rises most from w to w + delta
        w     = U(w, grad f_H(w + delta))

    The optimizer does the first half. The second is in the closures, as below: `step` takes one for each pass, and
    `steppe.batches.hardest` picks the examples.

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`.
        beta: part of the weights that climb, in (0, 1]; the authors use 0.5 and 0.6, and 0.5 as ``gamma``.
        seed: of the masks, which depend on it and on the count of steps alone.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``beta`` is out of range; TypeError for DTensors.

    Cost:
        1 gradient, 1 forward pass and ``gamma`` gradients per step; 1 copy of the parameters, and briefly 2 more. On
        CPUs drawing the mask may cost more than ``gamma`` saves.

    Reference:
        Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, ICLR 2022
        (https://arxiv.org/abs/2110.03141). The authors' code masks whole tensors, the paper single weights.

    Note:
        ``beta=1`` with one closure is `SAM`, and ``rho=0`` the base, bit for bit. ``||g||`` is of all weights; in
        the authors' code it is of the tensors that their mask leaves.

    Example:
        >>> import torch
        >>> from steppe import ESAM
        >>> from steppe.batches import hardest
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = torch.nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 1)
        >>> opt = ESAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, beta=0.5)
        >>> def losses(x, y):
        ...     return (model(x) - y).square().mean(1)
        >>> def clean():
        ...     global before
        ...     opt.zero_grad()
        ...     before = losses(x, y)
        ...     before.mean().backward()
        ...     return before.mean().detach()
        >>> def sharp():
        ...     with torch.no_grad():
        ...         rise = losses(x, y) - before
        ...     opt.zero_grad()
        ...     loss = losses(*hardest((x, y), rise, 0.5)).mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(sharp, ascent=clean)
    """

    def __init__(
        self, base: Bases, *, rho: Radius = 0.05, beta: float = 0.5, seed: int = 0, foreach: bool | None = None
    ) -> None:
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"beta must lie in (0, 1], got {beta}.")
        super().__init__(base, ascent=Masked(beta, seed), rho=rho, foreach=foreach)
