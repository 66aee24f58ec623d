"""The few numbers that go with every trial of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .average import average_case
from .curvature import spectrum
from .local import surrogate_gap
from .objective import Forward, Objective
from .worst import M_APGD_LINF, worst_case


def quick(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    *,
    batch_size: int = 128,
    forward: Forward | None = None,
) -> dict[str, float]:
    """Measure sharpness by five definitions, at the price of about 110 gradients over the data.

    Args:
        model: in evaluation mode.
        loss_fn: the mean loss of a batch.
        data: see `Objective`.
        batch_size: examples in a batch.
        forward: see `Objective`.

    Returns:
        By name: worst case in an l-infinity ball (`M_APGD_LINF`) and in an adaptive l2 ball (rho 0.5), average case
        (adaptive, rho 0.1), surrogate gap (rho 0.05), largest eigenvalue of the Hessian. Infinite where the loss
        overflows.

    Raises:
        ValueError: see `Objective`.

    Example:
        >>> import torch
        >>> from steppe.measure.quick import quick
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(100, 3), torch.arange(100) % 2
        >>> list(quick(model, torch.nn.functional.cross_entropy, (x, y)))
        ['worst-case linf', 'worst-case l2 adaptive', 'average-case adaptive', 'surrogate gap', 'largest eigenvalue']
    """
    objective = Objective(model, loss_fn, data, batch_size=batch_size, forward=forward)
    return {
        "worst-case linf": worst_case(objective, **M_APGD_LINF).value,
        "worst-case l2 adaptive": worst_case(objective, 0.5, adaptive=True).value,
        "average-case adaptive": average_case(objective, 0.1, adaptive=True, pairs=10).value,
        "surrogate gap": surrogate_gap(objective, 0.05).value,
        "largest eigenvalue": spectrum(objective, steps=15).largest[0],
    }
