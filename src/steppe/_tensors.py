"""Arithmetic on lists of tensors, in two versions that must agree: one tensor at a time, and many at once.

Nothing here waits for an accelerator: scalars stay 0-dim tensors there, and a choice that depends on data is made by
the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import final

import torch
from torch import Tensor

from ._shards import added_up, local, sharded

Tensors = list[Tensor] | tuple[Tensor, ...]
Scalar = Tensor | float

_HALF = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)
_PLAIN = frozenset((Tensor, torch.nn.Parameter))

PIECE = 2**17
"""Elements, per thread, of which three copies fit into a cache of a core."""


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision, where squares and small scalars do not fit, else ``x``."""
    return x.float() if x.dtype in _HALF else x


def filled(like: Tensor, value: float) -> Tensor:
    """Return ``value`` in the shape and strides of ``like``, in float32 if ``like`` is half precision."""
    return torch.full_like(like, value, dtype=torch.float32 if like.dtype in _HALF else like.dtype)


def on(x: Tensor, device: torch.device) -> Tensor:
    """Return a 0-dim tensor on ``device``; only a way back to the CPU waits for it."""
    return x.to(device, non_blocking=device.type != "cpu")


def free_to_read(x: Tensor) -> bool:
    """Say whether looking at a number on this device stops nobody."""
    return x.is_cpu


def on_host(x: Scalar) -> Scalar:
    """Return a 0-dim tensor as a Python number where that stops nobody: it saves many small operations."""
    return x.item() if isinstance(x, Tensor) and free_to_read(x) else x


def ratio(x: Scalar, y: Scalar) -> Scalar:
    """Return ``x / y``, and 0 where ``y`` is 0."""
    if isinstance(y, Tensor):
        return torch.where(y == 0, 0.0, x / y)
    return x / y if y != 0 else 0.0


def draw(seed: int, step: Scalar) -> Random:
    """Return a source of random numbers for one step: the same on every process, and after every checkpoint."""
    return Random((seed << 64) + int(step))


@final
class Ops:
    """What the engine and its parts ask of lists of tensors. A trailing underscore means in place.

    With ``foreach``, torch's multi-tensor kernels do it. Without, one tensor follows the other: that is the truth, and
    takes every kind of tensor (DTensors and other subclasses too). ``kind`` is the device and dtype of tensors that are
    all alike and neither complex nor half precision, else None; knowing it spares small models a lot of looking.
    """

    __slots__ = ("foreach", "kind")

    def __init__(self, foreach: bool, kind: tuple[torch.device, torch.dtype] | None = None) -> None:
        self.foreach, self.kind = foreach, kind

    @classmethod
    def choose(cls, params: list[Tensor], foreach: bool | None) -> Ops:
        """Return the user's choice, or foreach wherever all are ordinary tensors: subclasses may lack a rule for it."""
        if foreach and sharded(params):
            raise ValueError(
                "foreach=True does not work with DTensors: torch has no multi-tensor copy for them. Leave it out."
            )
        # Between two passes of a model nothing is in the caches: here it pays to do little, and that in one place.
        first = params[0]
        dtype, device = first.dtype, first.get_device()
        plain = alike = True
        for p in params:
            plain = plain and type(p) in _PLAIN
            alike = alike and p.dtype is dtype and p.get_device() == device
        alike = alike and dtype in _FULL
        return cls(plain if foreach is None else foreach, (first.device, dtype) if alike else None)

    def real(self, xs: list[Tensor]) -> list[Tensor]:
        """Return complex tensors as views of pairs of reals, which is how torch.optim sees complex parameters."""
        return xs if self.kind else [torch.view_as_real(x.detach()) if x.is_complex() else x for x in xs]

    def norm(self, xs: Tensors) -> Scalar:
        """Return the l2 norm over all elements of all ``xs``, at least in float32, on an accelerator if one has any."""
        if self.foreach and self.kind:
            norms = list(torch._foreach_norm(xs))
        else:
            norms = _together([torch.linalg.vector_norm(wide(local(x))) for x in xs])
            if sharded(xs):
                norms = [square.sqrt() for square in added_up([norm.double().square() for norm in norms], xs)]
        # On the CPU a handful of numbers adds up faster, and in double precision, outside of torch.
        if free_to_read(norms[0]):
            return math.hypot(*[norm.item() for norm in norms])
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def parts(self, *lists: Tensors) -> Iterable[tuple[Tensors, ...]]:
        """Cut lists of tensors into parts that stay in a cache while several things are done to them, where it pays."""
        if self.foreach and self.kind and free_to_read(lists[0][0]):
            return pieces(*lists)
        return [lists]

    def norm_of(self, f: Callable[[Tensors, Tensors], Tensors], xs: Tensors, ys: Tensors) -> Scalar:
        """Return the norm of ``f(xs, ys)``, which is element-wise."""
        norms = [self.norm(f(*some)) for some in self.parts(xs, ys)]
        return norms[0] if len(norms) == 1 else math.hypot(*norms)

    def dots(self, xs: Tensors, ys: Tensors) -> tuple[Scalar, Scalar]:
        """Return the inner products ``<x, y>`` and ``<y, y>`` over all elements of all tensors, likewise."""
        if self.foreach and self.kind and free_to_read(xs[0]):
            found = [(_inner(x, y), _inner(y, y)) for some in pieces(xs, ys) for x, y in zip(*some, strict=True)]
            return math.fsum(xy for xy, _ in found), math.fsum(yy for _, yy in found)
        return self._dot(xs, ys), self._dot(ys, ys)

    def _dot(self, xs: Tensors, ys: Tensors) -> Scalar:
        products = _together([(wide(local(x)) * wide(local(y))).sum() for x, y in zip(xs, ys, strict=True)])
        return on_host(torch.stack(added_up(products, xs) if sharded(xs) else products).sum())

    def mul(self, xs: Tensors, ys: Tensors) -> Tensors:
        """Return ``x * y``."""
        return torch._foreach_mul(xs, ys) if self.foreach else [x * y for x, y in zip(xs, ys, strict=True)]

    def plus(self, xs: Tensors, ys: Tensors, c: float) -> Tensors:
        """Return ``x + c y``."""
        if self.foreach:
            return torch._foreach_add(xs, ys, alpha=c)
        return [x.add(y, alpha=c) for x, y in zip(xs, ys, strict=True)]

    def by_size(self, xs: Tensors, ys: Tensors, c: float, *, twice: bool = False) -> Tensors:
        """Return ``(|x| + c) y``, or ``twice`` so."""
        if not self.foreach:
            sizes = [x.abs() + c for x in xs]
            return [t * (t * y) if twice else t * y for t, y in zip(sizes, ys, strict=True)]
        found: Tensors = torch._foreach_abs(xs)
        torch._foreach_add_(found, c)
        if not self.kind:  # the dtypes of x and y may differ
            once = torch._foreach_mul(found, ys)
            return torch._foreach_mul(found, once) if twice else once
        if twice:
            torch._foreach_mul_(found, found)
        torch._foreach_mul_(found, ys)
        return found

    def over_sqrt(self, xs: Tensors, ys: Tensors) -> Tensors:
        """Return ``x / sqrt(y)``."""
        if self.foreach:
            return torch._foreach_div(xs, torch._foreach_sqrt(ys))
        return [x / y.sqrt() for x, y in zip(xs, ys, strict=True)]

    def add_(self, xs: Tensors, ys: Tensors, c: float = 1.0) -> None:
        """Set ``x <- x + c y``."""
        if self.foreach:
            torch._foreach_add_(xs, ys, alpha=c)
        else:
            for x, y in zip(xs, ys, strict=True):
                x.add_(y, alpha=c)

    def scale_(self, xs: Tensors, c: Scalar) -> None:
        """Set ``x <- c x``."""
        if self.foreach and not isinstance(c, Tensor):
            torch._foreach_mul_(xs, c)
        else:
            for x in xs:
                x.mul_(on(c, x.device) if isinstance(c, Tensor) else c)

    def mix_(self, xs: Tensors, ys: Tensors, a: Scalar, b: float) -> None:
        """Set ``x <- a x + b y``."""
        for some, others in self.parts(xs, ys):
            self.scale_(some, a)
            self.add_(some, others, b)

    def lerp_(self, xs: Tensors, ys: Tensors, c: float) -> None:
        """Set ``x <- x + c (y - x)``."""
        if self.foreach:
            torch._foreach_lerp_(xs, ys, c)
        else:
            for x, y in zip(xs, ys, strict=True):
                x.lerp_(y, c)

    def maximum_(self, xs: Tensors, ys: Tensors) -> None:
        """Set ``x <- max(x, y)``."""
        if self.foreach:
            torch._foreach_maximum_(xs, ys)
        else:
            for x, y in zip(xs, ys, strict=True):
                torch.maximum(x, y, out=x)

    def copy_(self, xs: Tensors, ys: Tensors) -> None:
        """Set ``x <- y``, bit for bit, in place."""
        if self.foreach:
            torch._foreach_copy_(xs, ys)
        else:
            for x, y in zip(xs, ys, strict=True):
                x.copy_(y)

    def _fuses(self, xs: Tensors, ds: Tensors) -> bool:
        """Say whether torch's fused SGD can move ``xs``: its step sizes are float32, and it knows two devices."""
        if not self.foreach or self.kind is None or self.kind[1] != torch.float32:
            return False
        if self.kind[0].type not in ("cuda", "cpu"):
            return False
        return all(
            type(x) in _PLAIN and d.dtype == x.dtype and d.stride() == x.stride() and _dense(x)
            for x, d in zip(xs, ds, strict=True)
        )

    def move_(self, xs: Tensors, ds: Tensors, step: Scalar, go: Tensor | None = None) -> None:
        """Set ``x <- x + step d``, but leave ``x`` bit for bit where the 0-dim boolean ``go`` is False."""
        if not isinstance(step, Tensor) and go is None:
            self.add_(xs, ds if self.kind else [wide(d) for d in ds], step)
            return
        if self._fuses(xs, ds):
            # Uphill is SGD that maximizes, and where a GradScaler has found infinities its fused kernel does nothing.
            stop = None if go is None else on(1.0 - go.float(), xs[0].device)
            torch._fused_sgd_(
                xs,
                ds,
                [],
                weight_decay=0.0,
                momentum=0.0,
                lr=on(step.float(), xs[0].device) if isinstance(step, Tensor) else step,
                dampening=0.0,
                nesterov=False,
                maximize=True,
                is_first_step=False,
                found_inf=stop,
            )
            return
        for x, d in zip(xs, ds, strict=True):
            delta = wide(d) * (on(step, x.device) if isinstance(step, Tensor) else step)
            # Not "times zero", which keeps the NaN of an infinite direction.
            x.add_(delta if go is None else torch.where(on(go, x.device), delta, 0.0))


def pieces(*lists: Tensors) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut lists of tensors of the same shapes into parts that fit into a cache, large tensors too."""
    size = PIECE * torch.get_num_threads()
    held: list[tuple[Tensor, ...]] = []
    room = size
    for tensors in zip(*lists, strict=True):
        numel = tensors[0].numel()
        if numel > size and all(x.is_contiguous() for x in tensors):
            for parts in zip(*(x.view(-1).split(size) for x in tensors), strict=True):
                yield tuple([part] for part in parts)
        else:
            held.append(tensors)
            room -= numel
            if room <= 0:
                yield tuple(map(list, zip(*held, strict=True)))
                held, room = [], size
    if held:
        yield tuple(map(list, zip(*held, strict=True)))


def _dense(x: Tensor) -> bool:
    """Say whether the elements of ``x`` lie in one piece of memory, in whatever order."""
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(x))


def _inner(x: Tensor, y: Tensor) -> float:
    plain = x.is_contiguous() and y.is_contiguous() and x.dtype == y.dtype
    return float(torch.dot(x.view(-1), y.view(-1)) if plain else (x * y).sum())


def _together(xs: list[Tensor]) -> list[Tensor]:
    """Return 0-dim tensors on one device and in one dtype: an accelerator, and float64, if any is there."""
    device = next((x.device for x in xs if x.device.type != "cpu"), xs[0].device)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32
    return [on(x.to(dtype), device) for x in xs]
