"""LightSAM: radius and learning rate set adaptively."""

from __future__ import annotations

from typing import Any, Literal, final

from torch import Tensor

from ..ascents import AdaGrad, AdaGradNorm, Adam, Ascent
from ..descent import Descent
from ..optimizer import SharpnessAware
from ..schedules import Radius


@final
class LightSAM(SharpnessAware):
    r"""SAM whose radius and learning rate are both divided by what the gradients have added up to.

    One step with the clean gradient ``s`` and the sharp gradient ``g`` of one mini-batch, from ``u = v = eps^2``; all
    element-wise but "adagrad-norm", where ``u`` and ``v`` are one number each::

        variant          ascent: w + ...                       descent: w - ...
        "adagrad-norm"   u += ||s||^2;  rho s / sqrt(u)        v += ||g||^2;  lr g / sqrt(v)
        "adagrad"        u += s^2;      rho s / sqrt(u)        v += g^2;      lr g / sqrt(v)
        "adam"           r = b1 r + (1-b1) s                   m = b1 m + (1-b1) g
                         u = b2 u + (1-b2) s^2                 v = b2 v + (1-b2) g^2
                         rho r / sqrt(u)                       lr m / sqrt(v)

    Args:
        params: as in every torch optimizer.
        lr: learning rate before division, >= 0; a number or a 0-dim tensor.
        rho: radius before division, >= 0, or a `ProportionalToLR`. The climb is at most ``rho`` long with
            "adagrad-norm", and at most ``rho`` in each coordinate with "adagrad".
        variant: the paper's LightSAM-I, -II and -III, in this order.
        betas: decay of the averages of "adam", in [0, 1) and [0, 1]; the others ignore it.
        eps: where the accumulators start, > 0.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        ValueError: if an argument is out of its range or the variant is unknown.

    Cost:
        2 gradients per step; 1 copy of the parameters ("adagrad-norm"), 3 ("adagrad") or 5 ("adam").

    Reference:
        Cheng et al., LightSAM: Parameter-Agnostic Sharpness-Aware Minimization (https://arxiv.org/abs/2505.24399),
        algorithms LightSAM-I, LightSAM-II and LightSAM-III.

    Note:
        ``rho=0`` is the descent alone, bit for bit. The climbs of "adagrad-norm" and "adagrad" shrink as gradients add
        up, unlike those of `SAM`; with "adam" and a fixed ``beta2 < 1`` they do not.

    Example:
        >>> import torch
        >>> from steppe import LightSAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> opt = LightSAM([w], lr=0.5, rho=0.1, variant="adagrad-norm")
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> [round(x, 6) for x in w.tolist()]
        [0.976098, -1.500572]
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        *,
        rho: Radius,
        variant: Literal["adagrad-norm", "adagrad", "adam"] = "adagrad-norm",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        foreach: bool | None = None,
    ) -> None:
        ascents: dict[str, Ascent] = {
            "adagrad-norm": AdaGradNorm(eps),
            "adagrad": AdaGrad(eps),
            "adam": Adam(betas, eps),
        }
        if variant not in ascents:
            raise ValueError(f"variant must be one of {', '.join(map(repr, ascents))}, got {variant!r}.")
        base = Descent(params, lr, ascents[variant], foreach=foreach)
        super().__init__(base, ascent=ascents[variant], rho=rho, foreach=foreach)
