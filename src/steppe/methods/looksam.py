"""LookSAM: SAM's gradient every k steps, and what is left of it in between."""

from __future__ import annotations

from typing import final

from ..ascents import L2
from ..blends import Reuse
from ..optimizer import SharpnessAware
from ..schedules import Radius
from ..together import Bases
from ..triggers import Every


@final
class LookSAM(SharpnessAware):
    r"""SAM every ``k`` steps; in between, the gradient and the part of SAM's that it does not have.

    Step ``t = 0, 1, ...``::

        g = grad f(w)
        if t is a multiple of k:
            s = grad f(w + rho g / ||g||_2)
            v = s - (<g, s> / ||g||^2) g         the part of s orthogonal to g, kept
            w = U(w, s)
        else:
            w = U(w, g + alpha (||g|| / ||v||) v)

    with norms and inner products over all parameters.

    Args:
        base: the optimizer instance that takes the step, or a list of them.
        rho: radius, >= 0, or a `ProportionalToLR`.
        k: steps per climb, >= 1.
        alpha: how much of ``v`` to add. The paper uses 0.7 for vision transformers; on convolutional networks others
            found 0.7 harmful and 0.1 to 0.3 to work.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError, ValueError: as `SharpnessAware`; ValueError if ``k < 1`` or ``alpha`` is not finite.

    Cost:
        ``1 + 1/k`` gradients per step on average; 2 copies of the parameters, and a third while climbing.

    Reference:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022
        (https://arxiv.org/abs/2203.02714), the algorithm.

    Note:
        ``k=1`` is `SAM`, and ``rho=0`` the base, bit for bit; ``alpha=0`` is SAM every ``k`` steps. Norms and inner
        products are of the parameters that climb; groups with a radius of 0 have a part of ``v`` too, by their numbers.
        Where ``s`` is parallel to ``g`` up to rounding, ``v`` is 0 and nothing is added.

    Example:
        >>> import torch
        >>> from steppe import LookSAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = LookSAM(torch.optim.SGD([w], lr=0.05), rho=0.1, k=2, alpha=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(2):
        ...     _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [1.140664, -0.463111]
    """

    def __init__(
        self, base: Bases, *, rho: Radius = 0.05, k: int = 5, alpha: float = 0.2, foreach: bool | None = None
    ) -> None:
        super().__init__(base, ascent=L2(), blend=Reuse(alpha), trigger=Every(k), rho=rho, foreach=foreach)
