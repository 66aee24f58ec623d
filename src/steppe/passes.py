"""What may surround a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from ._signals import BeforeRaising

_NORM_STATS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
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

    def thaw() -> None:
        for module, name, before in undo:
            setattr(module, name, before)

    with _undone(thaw):
        for module in model.modules():
            if isinstance(module, _NormBase) and module.training and module.track_running_stats:
                # Instance norm looks for its buffers and not at the flag; without a momentum it would still round them.
                instance = isinstance(module, _InstanceNorm)
                for name, value in _NO_BUFFERS if instance else _NO_TRACKING:
                    undo.append((module, name, getattr(module, name)))
                    setattr(module, name, value)
        yield


@contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` at the end, which may be more than once, whatever happens: a signal may break off the first."""

    def end() -> None:
        undo()
        signals.end()

    signals = BeforeRaising(end)
    try:
        signals.begin()
        yield
    finally:
        end()


@contextmanager
def frozen_buffers(model: nn.Module, *, norm_stats: bool = True) -> Iterator[None]:
    """Bring every buffer back, bit for bit and in place, after whatever passes run inside.

    Around the sharp pass it keeps out of them what is seen at ``w + delta``: codebooks that are moving averages, ranges
    of fake quantization, power iterations of spectral norm, norm statistics, memory banks. Passes themselves are the
    same, for buffers change inside as they always do. Those that were replaced, resized, added or removed are what they
    were, in the same memory unless that was resized. Nested use is allowed, and an exception brings them back too.

    Put forward *and* backward inside. A backward pass that comes later needs what its forward pass saw: autograd
    refuses one whose buffers were written to, where it can tell.

    Args:
        model: all its buffers, persistent or not, in training and in evaluation mode; fake quantization observes in
            both. Parameters, also those that ``forward`` writes to, and other attributes of modules are left alone.
        norm_stats: False leaves out the running statistics of batch and instance norm, which `frozen_norm_stats` keeps
            without a copy.

    Cost:
        A copy of the buffers while it lasts, and the time to copy them twice.

    Note:
        A compiled model keeps its graph. In DDP buffers come back on every process by themselves, without an exchange.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.passes import frozen_buffers
        >>> model = torch.nn.Linear(2, 1)
        >>> model.register_buffer("passes", torch.tensor(0))
        >>> handle = model.register_forward_pre_hook(lambda module, args: module.passes.add_(1) and None)
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> x = torch.ones(3, 2)
        >>> model(x).square().sum().backward()
        >>> with opt.ascended(), frozen_buffers(model):
        ...     model(x).square().sum().backward()
        >>> opt.base.step()
        >>> model.passes
        tensor(1)
    """
    rooms, kept = [], {}
    for module in model.modules():
        left = frozenset() if norm_stats or not isinstance(module, _NormBase) else _NORM_STATS
        rooms.append((module, dict(module._buffers), set(module._non_persistent_buffers_set), left))
        for name, buffer in module._buffers.items():
            # A lazy module has nothing yet that could come back.
            if buffer is not None and name not in left and id(buffer) not in kept and not is_lazy(buffer):
                kept[id(buffer)] = _Kept(buffer)

    def bring_back() -> None:
        for module, buffers, not_persistent, left in rooms:
            _register(module, buffers, not_persistent, left)
        for memory in kept.values():
            memory.bring_back()

    with _undone(bring_back):
        yield


@final
class _Kept:
    """What a buffer held, and where."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.place = buffer.detach()
        self.values = _written_once(self.place).clone()
        self.version = _version(buffer)

    def bring_back(self) -> None:
        buffer, place = self.buffer, self.place
        strided = buffer.layout is torch.strided
        if type(buffer) is Tensor and strided:
            alike = buffer.dtype == place.dtype and buffer.shape == place.shape and buffer.stride() == place.stride()
            if not alike or buffer.data_ptr() != place.data_ptr():
                buffer.data = place
        # What wrote to it past autograd, or not at all, is undone past it: graphs that need it remain good.
        unseen = strided and _version(buffer) == self.version
        with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
            _written_once(buffer.data if unseen else buffer).copy_(self.values)


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


def _written_once(x: Tensor) -> Tensor:
    """Leave out the repetitions of an expanded tensor, which torch does not write to."""
    if x.layout is not torch.strided:
        return x
    return x[tuple(slice(1) if stride == 0 else slice(None) for stride in x.stride())]


def _register(
    module: nn.Module, buffers: dict[str, Tensor | None], not_persistent: set[str], left: frozenset[str]
) -> None:
    """Let ``module`` have ``buffers`` and no others, but for those that are ``left`` as they are."""
    now, flags = module._buffers, module._non_persistent_buffers_set
    buffers = {name: now.get(name) if name in left else buffer for name, buffer in buffers.items()}
    if [*now] != [*buffers] or any(now[name] is not buffer for name, buffer in buffers.items()):
        now.clear()
        now.update(buffers)
    if flags != not_persistent:
        flags.clear()
        flags.update(not_persistent)


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
