"""What to write instead, where inputs, outputs and targets do not go together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SMALL = (torch.int32, torch.int16, torch.int8, torch.uint8)


def of_inputs(batch: Any, model: nn.Module) -> str:
    """Return what to do about the inputs of a batch that the model failed on; nothing if that is not known."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else None
    if isinstance(first, Tensor) and first.dtype == torch.float64 and weights == torch.float32:
        return "; the inputs are float64 and the weights float32: write x.float()"
    return ""


def of_targets(outputs: Any, targets: Any) -> str:
    """Return what to do about outputs and targets that the loss failed on; nothing if that is not known."""
    if not isinstance(targets, Tensor):
        return ""
    if targets.dtype == torch.float64:
        return "; the targets are float64: write y.float()"
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        if outputs.ndim == targets.ndim + 1 > 1 and (outputs.shape[1] > 1 or not targets.is_floating_point()):
            return _of_classes(outputs.shape[1], targets)
        if (outputs.ndim, targets.ndim) == (2, 2) and outputs.shape[1] > 1 and targets.shape[1] == 1:
            return "; classes have shape (n,): write y.squeeze(1)"
        if {tuple(outputs.shape), tuple(targets.shape)} == {(len(targets), 1), (len(targets),)}:
            return "; give both one shape, as in loss=lambda o, t: mse_loss(o.squeeze(1), t)"
        if outputs.shape == targets.shape and not targets.is_floating_point():
            return f"; the targets are {targets.dtype}: write y.float()"
    return _small(targets)


def _of_classes(count: int, targets: Tensor) -> str:
    if targets.is_floating_point():
        return f"; the targets are {targets.dtype}, and classes are counted in int64: write y.long()"
    if targets.dtype == torch.int64 and targets.numel() and int(targets.max()) >= count:
        return f"; the largest class is {int(targets.max())}, and classes count from 0, one for each of {count} outputs"
    return _small(targets)


def _small(targets: Tensor) -> str:
    if targets.dtype in _SMALL:
        return f"; the targets are {targets.dtype}, and classes are counted in int64: write y.long()"
    return ""
