"""What moves together, along what, and what is remembered of it."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
from typing import Any, final

import torch
from torch import Tensor

from ._scalars import HALF, Scalar, Tensors, filled, on, wide
from ._shards import like
from ._tensors import Ops

State = MutableMapping[Any, dict[str, Any]]


@final
class Slope:
    """The parameters that move together, what they move along, the one norm over it all, and their memory.

    Args:
        owners: the parameters as the optimizer knows them.
        vectors: what they move along, as a rule their gradients.
        state: the optimizer's state.
        ops: arithmetic for them.
        guarded: whether accumulators must stay as they are when a vector is not finite.
        scale: what the vectors are multiplied by already; they are divided by it, but kept as they came as ``scaled``.
        step: how many steps have been taken before.
        climbing: how many of the first parameters climb, if not all; the others count in no norm.
        weights: 0-dim tensors, 1 where a parameter climbs and 0 where not, on an accelerator that nobody waits for;
            None where it surely does.
        clean_square: if these are sharp gradients, the square of the norm of the clean ones that climbed, where known.

    Raises:
        TypeError: if a vector is sparse.
    """

    def __init__(
        self,
        owners: list[Tensor],
        vectors: list[Tensor],
        state: State,
        ops: Ops,
        *,
        guarded: bool,
        scale: Scalar = 1.0,
        step: Scalar = 0,
        climbing: int | None = None,
        weights: Sequence[Tensor | None] | None = None,
        clean_square: Scalar | None = None,
    ) -> None:
        self.owners, self.state, self.ops, self.guarded, self.step = owners, state, ops, guarded, step
        self.climbing, self.weights, self.clean_square = climbing, weights, clean_square
        self.params = ops.real(owners)
        need_dense(vectors)
        if not ops.foreach:
            vectors = [like(g, p) for g, p in zip(vectors, owners, strict=True)]
        self.scaled: Tensors = ops.real(vectors)
        self.scale = scale
        if isinstance(scale, Tensor) or scale != 1.0:
            vectors = [wide(g) / (on(scale, g.device) if isinstance(scale, Tensor) else scale) for g in vectors]
        self.grads: Tensors = ops.real(
            vectors if ops.kind else [_fitting(g, p) for g, p in zip(vectors, owners, strict=True)]
        )
        self._norm: Scalar | None = None

    @property
    def norm(self) -> Scalar:
        """The l2 norm over all vectors of what climbs: a number on the CPU, a 0-dim tensor on an accelerator."""
        if self._norm is None:
            grads = self.grads if self.climbing is None else self.grads[: self.climbing]
            self._norm = self.ops.norm(grads, self.weights)
        return self._norm

    def norm_of(self, f: Callable[[Tensors, Tensors], Tensors]) -> Scalar:
        """Return the norm of ``f(params, vectors)``, element-wise, of what climbs."""
        params, grads = self.params[: self.climbing], self.grads[: self.climbing]
        if self.weights is not None:
            return self.ops.norm(f(params, grads), self.weights)
        return self.ops.norm_of(f, params, grads)

    def dots(self, xs: Tensors, square: Scalar | None = None) -> tuple[Scalar, Scalar]:
        """Return the inner products ``<x, g>`` and ``<g, g>`` with the vectors ``g`` over what climbs, likewise.

        The latter need not be found if it is known: ``square``.
        """
        some, grads = xs[: self.climbing], self.grads[: self.climbing]
        if square is None:
            return self.ops.dots(some, grads, self.weights)
        return self.ops.products((some, grads), ((0, 1),), self.weights)[0], square

    def along(self, vectors: Tensors) -> Slope:
        """Return the same slope with other vectors to move along."""
        other = copy(self)
        other.grads, other._norm = vectors, None
        return other

    def add_to_(self, others: Tensors, c: Scalar) -> None:
        """Make the vectors ``x + c g``; if all climb their norm is found on the way."""
        norm = self.ops.sum_norm_(self.grads, others, c)
        self._norm = norm if self.climbing is None and self.weights is None else None

    def write_back(self) -> None:
        """Give vectors that were changed in another dtype than their own what they are now."""
        if self.ops.kind:
            return
        for g, changed in zip(self.scaled, self.grads, strict=True):
            if g.dtype is not changed.dtype:
                g.copy_(changed)

    def or_else(self, new: Tensors, old: Tensors) -> Tensors:
        """Return ``new`` if the vectors are finite and ``old`` if they are not."""
        finite = not self.guarded or self.norm < math.inf
        if isinstance(finite, Tensor):
            return [torch.where(on(finite, n.device), n, o) for n, o in zip(new, old, strict=True)]
        return new if finite else old

    def number_or_else(self, new: Scalar, old: Scalar) -> Scalar:
        """Return ``new`` if the vectors are finite and ``old`` if they are not."""
        finite = not self.guarded or self.norm < math.inf
        return torch.where(finite, new, old) if isinstance(finite, Tensor) else new if finite else old

    def remember(self, name: str, start: float) -> list[Tensor]:
        """Return the accumulator ``name`` of every parameter, filled with ``start`` where it is new.

        Accumulators of half-precision parameters are float32.
        """
        found = []
        for owner, p in zip(self.owners, self.params, strict=True):
            memory = self.state[owner]
            if name not in memory:
                memory[name] = filled(p, start)
            found.append(memory[name])
        return found

    def keep(self, name: str, values: Tensors, old: Tensors) -> None:
        """Make tensors, one for every parameter, what the next steps `remember`, in place of ``old`` ones.

        Tiny ones go into the memory that there is: new ones that stay would set off a collection of all garbage.
        """
        if self.ops.tiny(values):
            self.ops.copy_(old, values)
            return
        for owner, value in zip(self.owners, values, strict=True):
            self.state[owner][name] = value

    def forget_others(self, name: str) -> None:
        """Let go of what is remembered by ``name`` of parameters that are not among these."""
        if len(self.state) == len(self.owners) + sum(room in self.state for room in ("engine", "shared")):
            return  # there is nobody else
        owners = set(map(id, self.owners))
        for p, memory in self.state.items():
            if name in memory and id(p) not in owners:
                del memory[name]

    @property
    def shared(self) -> dict[str, Any]:
        """What is remembered for all parameters together."""
        return self.state["shared"]


def _fitting(g: Tensor, p: Tensor) -> Tensor:
    """Return a gradient in the dtype of its parameter, or float32 if that is half: a host may let them differ."""
    dtype = torch.promote_types(p.dtype, torch.float32) if p.dtype in HALF else p.dtype
    return g if g.dtype in (dtype, p.dtype) else g.to(dtype)


_CLIMBED = (
    "has a sparse gradient, which cannot be climbed. Use sparse=False in its embedding, or give its group rho=0 and a "
    "base that takes sparse gradients."
)


def need_dense(vectors: Sequence[Tensor], why: str = _CLIMBED) -> None:
    """Refuse sparse vectors."""
    if {g.layout for g in vectors} - {torch.strided}:
        shape = next(tuple(g.shape) for g in vectors if g.layout is not torch.strided)
        raise TypeError(f"A parameter of shape {shape} {why}")
