"""What may surround a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

_NO_TRACKING = (("track_running_stats", False),)
_NO_BUFFERS = (("running_mean", None), ("running_var", None))


@contextmanager
def frozen_norm_stats(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm alone; the forward pass itself is the same, with the batch's own.

    Around the sharp pass it keeps out of them what the layers see at ``w + delta``, which no evaluation asks for.
    Modules in evaluation mode are not touched, nested use is allowed, and an exception undoes it too.

    Args:
        model: batch norm of every kind in it, synchronised too, and instance norm is frozen.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.passes import frozen_norm_stats
        >>> model, x = torch.nn.BatchNorm1d(2), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> model(x).square().sum().backward()
        >>> with opt.ascended(), frozen_norm_stats(model):
        ...     model(x).square().sum().backward()
        >>> opt.base.step()
        >>> model.running_mean, model.num_batches_tracked
        (tensor([0.2000, 0.4000]), tensor(1))
    """
    undo: list[tuple[nn.Module, str, object]] = []
    for module in model.modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            # Instance norm looks for its buffers and not at the flag; without a momentum it would still round them.
            instance = isinstance(module, _InstanceNorm)
            for name, value in _NO_BUFFERS if instance else _NO_TRACKING:
                undo.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, before in undo:
            setattr(module, name, before)


@final
class same_random_state:  # it is used like the function above
    """Give passes the same random numbers: both draw the same dropout masks, so that they see one loss function.

    The first ``with`` of an object draws freely; every later one starts from where the first did. So make a new one for
    each step::

        same = same_random_state()
        def closure():
            opt.zero_grad()
            with same:
                loss = loss_fn(model(x), y)
            loss.backward()
            return loss
        opt.step(closure)

    Afterwards the generators are where they would be after one pass: data order and later steps are those of the base.
    Torch's default generators on the CPU and on every accelerator that is in use are covered; Python's and NumPy's are
    not. It costs some microseconds per pass, and copies of the states, which are 5 kB on the CPU.

    Example:
        >>> import torch
        >>> from steppe.passes import same_random_state
        >>> same = same_random_state()
        >>> with same:
        ...     a = torch.rand(3)
        >>> b = torch.rand(3)
        >>> with same:
        ...     c = torch.rand(3)
        >>> bool((a == c).all()), bool((a == b).any()), bool((torch.rand(3) == b).all())
        (True, False, True)
    """

    def __init__(self) -> None:
        self._states: list[tuple[torch.Generator, Tensor]] | None = None

    def __enter__(self) -> None:
        if self._states is None:
            self._states = [(generator, generator.get_state()) for generator in _generators()]
            return
        for generator, state in self._states:
            generator.set_state(state)

    def __exit__(self, *error: object) -> None:
        pass


def _generators() -> list[torch.Generator]:
    """Return the default generators of the devices in use."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found += torch.cuda.default_generators
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        found += torch.xpu.default_generators
    if torch.backends.mps.is_available():
        found.append(torch.mps._get_default_mps_generator())
    return found
