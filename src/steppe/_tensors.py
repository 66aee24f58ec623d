"""Arithmetic on lists of tensors, in two versions that must agree: one tensor at a time, and many at once.

Nothing here waits for an accelerator: scalars stay 0-dim tensors there, and a choice that depends on data is made by
the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from ._memory import dense
from ._pieces import HANDFUL, are_few, are_tiny, flattened, lines, packed, pieces, unflattened
from ._scalars import FULL, PLAIN, Scalar, Tensors, free_to_read, on, wide
from ._shards import added_up, local, sharded
from ._sums import Weights, by_weight, dot, dot_there, fits, norm_of_one, on_one_device, weighed

# A product that is too small is off by less than the smallest normal number. In all that is less than rounding where
# the sum of as many products as a large model has parameters, 2^40, is at least this.
_SMALLEST = {dtype: 2.0**40 * torch.finfo(dtype).tiny / torch.finfo(dtype).eps for dtype in FULL}

_LARGE_DECAY = 2.0**20


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
    def choose(cls, params: list[Tensor], foreach: bool | None, vectors: Tensors | None = None) -> Ops:
        """Return the user's choice, or foreach wherever all are ordinary tensors: subclasses may lack a rule for it.

        ``vectors`` are what ``params`` move along, one for each; they may be of another dtype, or other tensors.
        """
        lists: list[Tensors] = [params] if vectors is None else [params, vectors]
        if foreach and any(map(sharded, lists)):
            raise ValueError(
                "foreach=True does not work with DTensors: torch has no multi-tensor copy for them. Leave it out."
            )
        # Between two passes of a model nothing is in the caches: here it pays to do little, and that in one place.
        first = params[0]
        dtypes, devices, plain = set(), set(), True
        for xs in lists:
            plain = plain and PLAIN.issuperset(map(type, xs))
            dtypes |= {x.dtype for x in xs}
            devices |= {x.get_device() for x in xs}
        alike = plain and len(dtypes) == len(devices) == 1 and first.dtype in FULL
        return cls(plain if foreach is None else foreach, (first.device, first.dtype) if alike else None)

    def real(self, xs: list[Tensor]) -> list[Tensor]:
        """Return complex tensors as views of pairs of reals, which is how torch.optim sees complex parameters."""
        return xs if self.kind else [torch.view_as_real(x.detach()) if x.is_complex() else x for x in xs]

    def norm(self, xs: Tensors, weights: Weights | None = None) -> Scalar:
        """Return the l2 norm over all elements of all ``xs``, on an accelerator if one of them is there.

        It is right over the whole range of their dtype, where squares of elements may be infinite or 0. ``weights`` are
        0-dim tensors by which the squares of each tensor are multiplied, or None for 1; what has the weight 0 does not
        count, whatever is in it.
        """
        if not self._free(xs):
            return self._norm_there(xs, weights)
        if weights is not None:
            return math.hypot(*[math.sqrt(w) * float(self.norm(*some)) for w, some in by_weight(weights, xs)])
        square = self._square(xs)
        return math.sqrt(square) if self._exact(square) else float(self._norm_there(xs))

    def norm_of(self, f: Callable[[Tensors, Tensors], Tensors], xs: Tensors, ys: Tensors) -> Scalar:
        """Return the norm of ``f(xs, ys)``, which is element-wise."""
        if not self._cuts(xs):
            return self.norm(f(xs, ys))
        square = sum([self._square(f(*packed(some))) for some in pieces(xs, ys)])
        if self._exact(square):
            return math.sqrt(square)
        return math.hypot(*[float(self._norm_there(f(*packed(some)))) for some in pieces(xs, ys)])

    def dots(self, xs: Tensors, ys: Tensors, weights: Weights | None = None) -> tuple[Scalar, Scalar]:
        """Return the inner products ``<x, y>`` and ``<y, y>`` over all elements of all tensors, likewise."""
        xy, yy = self.products((xs, ys), ((0, 1), (1, 1)), weights)
        return xy, yy

    def products(
        self, lists: tuple[Tensors, ...], pairs: tuple[tuple[int, int], ...], weights: Weights | None = None
    ) -> list[Scalar]:
        """Return inner products over all elements, of those of ``lists`` that ``pairs`` name by number, likewise.

        They are right unless the dtype cannot represent them, which is float64 for all that is in a shorter one.
        """
        if not self._free(lists[0]):
            return [self._product_there(lists[i], lists[j], weights) for i, j in pairs]
        if weights is not None:
            parts = [(w, self.products(some, pairs)) for w, some in by_weight(weights, *lists)]
            return [sum(w * found[i] for w, found in parts) for i in range(len(pairs))]
        often = len(pairs) > 1
        found = self._sums(lambda *some: [dot(some[i], some[j]) for i, j in pairs], *lists, often=often)
        if all(map(self._exact, found)):
            return [*found]
        wider = self._sums(lambda *some: [dot(some[i].double(), some[j].double()) for i, j in pairs], *lists)
        return [*wider]

    def parts(self, *lists: Tensors) -> Iterable[tuple[Tensors, ...]]:
        """Cut lists of tensors into parts that stay in a cache while several things are done to them, where it pays."""
        return pieces(*lists) if self._cuts(lists[0]) else [lists]

    def _cuts(self, xs: Tensors) -> bool:
        return self.foreach and self.kind is not None and free_to_read(xs[0])

    def _free(self, xs: Tensors) -> bool:
        return free_to_read(xs[0]) if self.kind else all(free_to_read(local(x)) for x in xs)

    def _sums(self, measure: Callable[..., list[float]], *lists: Tensors, often: bool = False) -> list[float]:
        """Return the sums, over all tensors, of numbers that are found in tensors or in pieces of them, on the CPU.

        ``often`` says whether that reads a tensor more than once.
        """
        if self._cuts(lists[0]):
            found = [measure(*line) for line in lines(*lists, often=often)]
        else:
            found = [measure(*map(local, some)) for some in zip(*lists, strict=True)]
        columns = list(zip(*found, strict=True))
        if not sharded(lists[0]):
            return [sum(column) for column in columns]
        # One after the other, in the same order on every process.
        spread = [added_up([torch.tensor(x, dtype=torch.float64) for x in column], lists[0]) for column in columns]
        return [math.fsum(x.item() for x in column) for column in spread]

    def _exact(self, total: float) -> bool:
        """Say whether no product of a sum has left the range of its dtype, so that it is as exact as additions are."""
        return _SMALLEST[self.kind[1] if self.kind else torch.float32] <= abs(total) < math.inf

    def _square(self, xs: Tensors) -> float:
        """Return the square of the norm of ``xs``, on the CPU and in their own range."""
        if self._cuts(xs) and are_few(xs) and all(x.dtype is xs[0].dtype for x in xs):
            return sum([norm * norm for norm in [x.item() for x in torch._foreach_norm(xs)]])
        return self._sums(_squares, xs)[0]

    def _norms_there(self, xs: Tensors, weights: Weights | None) -> list[Tensor]:
        """Return the norms of ``xs`` as 0-dim tensors, of which nobody knows the values."""
        parts = [local(x) for x in xs]
        plain = self.foreach or (sharded(xs) and PLAIN.issuperset(map(type, parts)))
        if plain and all(map(fits, parts)):
            norms = list(torch._foreach_norm(parts, dtype=torch.float64))
        else:
            norms = [norm_of_one(part) for part in parts]
        norms = on_one_device(norms)
        return norms if weights is None else [weighed(x, w, 0.5) for x, w in zip(norms, weights, strict=True)]

    def _norm_there(self, xs: Tensors, weights: Weights | None = None) -> Tensor:
        norms = self._norms_there(xs, weights)
        if sharded(xs):
            norms = [square.sqrt() for square in added_up([norm.double().square() for norm in norms], xs)]
        return norm_of_one(torch.stack(norms))

    def _product_there(self, xs: Tensors, ys: Tensors, weights: Weights | None) -> Tensor:
        if xs is ys:
            products = [norm.square() for norm in self._norms_there(xs, weights)]
        else:
            products = on_one_device([dot_there(local(x), local(y)) for x, y in zip(xs, ys, strict=True)])
            if weights is not None:
                products = [weighed(x, w, 1.0) for x, w in zip(products, weights, strict=True)]
        return torch.stack(added_up(products, xs) if sharded(xs) else products).sum()

    def copies(self, xs: Tensors) -> Tensors:
        """Return a copy of every tensor; those of many tiny ones are views of one."""
        if self.tiny(xs) and len({(x.dtype, x.device) for x in xs}) == 1:
            return unflattened(flattened(xs), xs)
        return [x.clone() for x in xs]

    def tiny(self, xs: Tensors) -> bool:
        """Say whether what is done with all ``xs`` takes longer for every call than for every element."""
        return are_tiny(xs) and self._cuts(xs)

    def mul(self, xs: Tensors, ys: Tensors) -> Tensors:
        """Return ``x * y``."""
        if self.tiny(xs):
            return unflattened(flattened(xs).mul_(flattened(ys)), xs)
        return torch._foreach_mul(xs, ys) if self.foreach else [x * y for x, y in zip(xs, ys, strict=True)]

    def plus(self, xs: Tensors, ys: Tensors, c: float) -> Tensors:
        """Return ``x + c y``."""
        if self.foreach:
            return torch._foreach_add(xs, ys, alpha=c)
        return [x.add(y, alpha=c) for x, y in zip(xs, ys, strict=True)]

    def by_size(self, xs: Tensors, ys: Tensors, c: float, *, twice: bool = False) -> Tensors:
        """Return ``(|x| + c) y``, or ``twice`` so."""
        if self.tiny(xs):
            return unflattened(self.by_size([flattened(xs)], [flattened(ys)], c, twice=twice)[0], xs)
        if not self.foreach:
            sizes = [x.abs() + c for x in xs]
            return [t * (t * y) if twice else t * y for t, y in zip(sizes, ys, strict=True)]
        found: Tensors = torch._foreach_abs(xs)
        torch._foreach_add_(found, self._quickly(c, xs))
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
        if self.foreach and (self.kind or not isinstance(c, Tensor)):
            torch._foreach_mul_(xs, self._quickly(c, xs))
        else:
            for x in xs:
                x.mul_(on(c, x.device) if isinstance(c, Tensor) else c)

    def _quickly(self, c: Scalar, xs: Tensors) -> Scalar:
        """Return a number in the form in which multi-tensor kernels multiply ``xs`` by it, or add it, fastest."""
        if self.kind is None:
            return c
        device, dtype = self.kind
        if isinstance(c, Tensor):
            return on(c.to(dtype), device)
        # The CPU's make a tensor of it again for each of xs.
        return torch.tensor(c, dtype=dtype) if len(xs) > HANDFUL and free_to_read(xs[0]) else c

    def mix_(self, xs: Tensors, ys: Tensors, a: Scalar, b: float) -> None:
        """Set ``x <- a x + b y``."""
        for some, others in self.parts(xs, ys):
            self._mix_(some, others, a, b)

    def sum_norm_(self, xs: Tensors, ys: Tensors, c: Scalar) -> Scalar:
        """Set ``x <- c x + y`` and return the norm of the new ``x``, which is taken while it is in a cache.

        Of a sum that is small no digit is lost.
        """
        if not self._cuts(xs):
            self.scale_(xs, c)
            self.add_(xs, ys)
            return self.norm(xs)
        total = 0.0
        for some, others in pieces(xs, ys):
            if are_tiny(some):
                self.scale_(some, c)
                self.add_(some, others)
            else:
                for x, y in zip(some, others, strict=True):
                    torch.add(y, x, alpha=c, out=x)  # type: ignore[arg-type]
            total += self._sums(_squares, some)[0]
        return math.sqrt(total) if self._exact(total) else self.norm(xs)

    def _mix_(self, xs: Tensors, ys: Tensors, a: Scalar, b: float) -> None:
        # SGD with weight decay is x - lr (y + decay x), in one kernel: memory is read and written once, not twice. It
        # adds x itself, which would take digits from a sum that is small.
        decay = (a - 1) / b if b != 0 and not isinstance(a, Tensor) and abs(a) >= 0.5 else math.inf
        if abs(decay) < _LARGE_DECAY and self._cuts(xs) and _lie_alike(xs, ys):
            _fused_sgd_(xs, ys, -b, decay)
        else:
            self.scale_(xs, a)
            self.add_(xs, ys, b)

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
            type(x) in PLAIN and d.dtype == x.dtype and d.stride() == x.stride() and dense(x)
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
            up = on(step.float(), xs[0].device) if isinstance(step, Tensor) else step
            _fused_sgd_(xs, ds, up, maximize=True, found_inf=stop)
            return
        for x, d in zip(xs, ds, strict=True):
            delta = wide(d) * (on(step, x.device) if isinstance(step, Tensor) else step)
            # Not "times zero", which keeps the NaN of an infinite direction.
            x.add_(delta if go is None else torch.where(on(go, x.device), delta, 0.0))


def _squares(x: Tensor) -> list[float]:
    return [dot(x, x)]


def _fused_sgd_(xs: Tensors, ys: Tensors, lr: Scalar, decay: float = 0.0, **options: Any) -> None:
    """Set ``x <- x - lr (y + decay x)``, or more, by the kernel of torch's SGD."""
    plain = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
    torch._fused_sgd_(xs, ys, [], lr=lr, weight_decay=decay, **{**plain, **options})


def _lie_alike(xs: Tensors, ys: Tensors) -> bool:
    """Say whether all are contiguous and in float32, as the fused SGD of the CPU takes them for granted."""
    whole = all(map(Tensor.is_contiguous, xs)) and all(map(Tensor.is_contiguous, ys))
    return whole and {x.dtype for x in xs} == {y.dtype for y in ys} == {torch.float32}
