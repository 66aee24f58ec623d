"""AMSGrad, in the form that AdaSAM's paper uses."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from ..ascents import Adam
from ..descent import Descent


@final
class AMSGrad(Descent):
    r"""AMSGrad without bias correction and without an additive eps, the base of `AdaSAM`.

    One step, element-wise, from ``m = 0`` and ``v = v_hat = eps^2``::

        m     = beta1 m + (1 - beta1) g
        v     = beta2 v + (1 - beta2) g^2
        v_hat = max(v_hat, v)
        w     = (1 - lr weight_decay) w - lr m / sqrt(v_hat)

    Args:
        params: as in every torch optimizer.
        lr: learning rate, >= 0; a number or a 0-dim tensor.
        betas: decay of the two averages, in [0, 1) and [0, 1]. ``beta2 = 1`` freezes ``sqrt(v_hat)`` at ``eps``.
        eps: floor of ``sqrt(v_hat)``, > 0.
        weight_decay: decoupled weight decay, >= 0, as in AdamW.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        ValueError: if an argument is out of its range.

    Cost:
        1 gradient per step; 3 copies of the parameters, and briefly 2 more.

    Reference:
        Sun et al., AdaSAM, Neural Networks 2024 (https://arxiv.org/abs/2303.00565), the base of its algorithm; after
        Reddi et al., On the Convergence of Adam and Beyond, ICLR 2018.

    Note:
        ``torch.optim.Adam(amsgrad=True)`` corrects the bias and adds eps: not the same optimizer. Without correction
        the first steps are ``(1 - beta1) / sqrt(1 - beta2)`` = 3.16 times lr per coordinate at the default betas.

    Example:
        >>> import torch
        >>> from steppe import AMSGrad
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = AMSGrad([w], lr=0.01)
        >>> (w**2).sum().backward()
        >>> opt.step()
        >>> [round(x, 4) for x in w.tolist()]
        [0.9684, -1.9684]
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(params, lr, Adam(betas, eps, amsgrad=True), weight_decay=weight_decay, foreach=foreach)
