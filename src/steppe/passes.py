"""What may surround a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm alone; the forward pass itself is the same, with the batch's own.

    Around the sharp pass it keeps out of them what the layers see at ``w + delta``, which no evaluation asks for.
    Modules in evaluation mode are not touched, nested use is allowed, and an exception undoes it too.

    Args:
        model: batch norm of every kind in it, synchronised too, and instance norm is frozen.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.passes import frozen_statistics
        >>> model, x = torch.nn.BatchNorm1d(2), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> model(x).square().sum().backward()
        >>> with opt.ascended(), frozen_statistics(model):
        ...     model(x).square().sum().backward()
        >>> opt.base.step()
        >>> model.running_mean, model.num_batches_tracked
        (tensor([0.2000, 0.4000]), tensor(1))
    """
    undo: list[tuple[nn.Module, str, object]] = []
    for module in model.modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            # Batch norm without tracking does not touch its buffers; instance norm does, but by nothing.
            name, value = ("momentum", 0.0) if isinstance(module, _InstanceNorm) else ("track_running_stats", False)
            undo.append((module, name, getattr(module, name)))
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, before in undo:
            setattr(module, name, before)
