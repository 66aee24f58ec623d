"""AdaSAM: SAM with AMSGrad's adaptive rate and momentum."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from ..ascents import L2
from ..optimizer import SharpnessAware
from ..schedules import Radius
from .amsgrad import AMSGrad


@final
class AdaSAM(SharpnessAware):
    r"""SAM around AMSGrad: a normalised climb, then an adaptive step with momentum along the sharp gradient.

    One step, from ``m = 0`` and ``v = v_hat = eps^2``; square, root, max and division element-wise::

        s     = grad f(w)
        delta = rho s / ||s||_2
        g     = grad f(w + delta)             same batch
        m     = beta1 m + (1 - beta1) g
        v     = beta2 v + (1 - beta2) g^2
        v_hat = max(v_hat, v)
        w     = (1 - lr weight_decay) w - lr m / sqrt(v_hat)

    Args:
        params: as in every torch optimizer.
        lr: learning rate, >= 0; a number or a 0-dim tensor.
        rho: radius, >= 0, or a `ProportionalToLR`. On GLUE the paper searches {0.01, 0.005, 0.001}.
        betas: decay of the two averages, in [0, 1) and [0, 1].
        eps: floor of ``sqrt(v_hat)``, > 0.
        weight_decay: decoupled weight decay, >= 0, as in AdamW (0 is the paper's algorithm).
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        ValueError: if an argument is out of its range.

    Cost:
        2 gradients per step; 4 copies of the parameters, 3 of them AMSGrad's.

    Reference:
        Sun et al., AdaSAM: Boosting Sharpness-Aware Minimization with Adaptive Learning Rate and Momentum for Training
        Deep Neural Networks, Neural Networks 2024 (https://arxiv.org/abs/2303.00565), the algorithm.

    Note:
        ``rho=0`` is `AMSGrad`, bit for bit. ``betas=(0, 1)`` is `SAM` around SGD with learning rate ``lr / eps``.
        ``opt.base`` is the `AMSGrad`.

    Example:
        >>> import torch
        >>> from steppe import AdaSAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = AdaSAM([w], lr=0.01, rho=0.1, eps=1e-3)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.968393, -1.968377]
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        rho: Radius = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        base = AMSGrad(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach)
        super().__init__(base, ascent=L2(), rho=rho, foreach=foreach)
