"""One climb: from ``w`` to ``w + delta`` and back, and the gradients that come of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ._memory import addresses, overlapping, separate
from ._pieces import FEW, PIECE, pieces
from ._radii import climbs
from ._recording import is_recording, record
from ._scalars import Scalar, Tensors, free_to_read, on, on_host
from ._shards import like
from ._slope import Slope, State
from ._tensors import Ops
from .ascents import Ascent
from .blends import Blend

_NOTHING: Mapping[str, Any] = {}

_LARGEST = torch.finfo(torch.float32).max


@final
class Anchor:
    """A copy of the weights to come back to.

    Its memory is kept from step to step, unless it is let go of. Keeping it costs nothing at the peak, which is the
    sharp pass, and fresh memory for every step is slow.
    """

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._like: tuple[object, ...] = ()
        self._where: list[int] = []
        self.numel = 0

    def room(self, params: list[Tensor], ops: Ops) -> list[Tensor]:
        """Return memory for a copy of ``params``, whatever is in it.

        Raises:
            ValueError: if some of them share memory: it would move twice, and by no length that was asked for.
        """
        kinds = ops.kind or [(p.dtype, p.device) for p in params]
        like_ = (kinds, [p.shape for p in params])
        if like_ != self._like:
            self.release()  # not two at a time
            self._copies = [torch.empty_like(p) for p in params]
            self._like, self.numel = like_, sum(p.numel() for p in params)
        where = addresses(params)
        if where != self._where:
            _refuse_shared_memory(params)
            self._where = where
        return self._copies

    def release(self) -> None:
        """Let go of the memory."""
        self._copies, self._like, self._where = [], (), []


def _refuse_shared_memory(params: list[Tensor]) -> None:
    pair = overlapping(params)
    if pair is not None:
        one, other = (params[i] for i in pair)
        what = "is there twice" if one is other else f"shares memory with one of shape {tuple(other.shape)}"
        raise ValueError(
            f"A parameter of shape {tuple(one.shape)} {what}, so that a climb would move it twice. Tie modules by one "
            "parameter, as in b.weight = a.weight, and give it to the optimizer once."
        )


@final
class Climb:
    """A climb that is decided: `up`, then the sharp pass at ``w + delta``, then `down`, and `finish`.

    `down` makes the weights ``w`` bit for bit. It may be called at any time and any number of times, also when `up` was
    broken off, and whoever calls `up` must see to it that it is called, whatever happens.
    """

    def __init__(
        self,
        slope: Slope,
        spans: list[tuple[int, int, Scalar]],
        still: list[Tensor],
        ascent: Ascent,
        blend: Blend | None,
        anchor: Anchor,
        *,
        keep: bool,
        held: list[bool],
        looks: bool = False,
    ) -> None:
        """``spans`` says which parameters climb by which radius, as in ``[(0, 4, 0.1), (4, 6, -0.2)]``.

        ``still`` are those of groups that do not climb, whose gradients a blend mixes all the same. ``keep`` says
        whether ``anchor`` keeps its memory. ``held`` says of which clean gradients nobody else has the memory, so that
        a blend needs no copy once ``.grad`` has let go of them. ``looks`` says whether to find the `cosine`.
        """
        self.owners, self.params, self.ops, self.state = slope.owners, slope.params, slope.ops, slope.state
        self.slope: Slope | None = slope
        self.weights = slope.weights
        self.spans, self.still, self.ascent, self.blend = spans, still, ascent, blend
        self.anchor, self.keep, self.held, self.looks = anchor, keep, held, looks
        self.cosine: Scalar | None = None
        """Of the angle of the clean and the sharp gradient, over what climbed and has both, if it was looked at."""
        self.norm: Scalar = 0.0
        self._clean_norm: Scalar = 0.0
        self.clean: list[Tensor] = []
        self._saved: list[tuple[Tensors, Tensors]] = []

    @property
    def releases(self) -> Sequence[Tensor]:
        """The parameters whose gradients must be let go of before the sharp pass."""
        if not any(self.held):
            return ()
        owners = (*self.owners, *self.still)
        return [p for p, held in zip(owners, self.held, strict=True) if held]

    def up(self) -> None:
        """Save the weights and move them."""
        # One autocast around both passes would reuse its casts of w for the sharp pass, and afterwards those of
        # w + delta.
        torch.clear_autocast_cache()
        recorded = is_recording()
        try:
            record(False)
            self._up()
        finally:
            record(recorded)

    def down(self) -> None:
        """Move the weights back."""
        if not self._saved:
            return
        recorded = is_recording()
        try:
            record(False)
            for w, copy in self._saved:
                self.ops.copy_(w, copy)
            self._saved = []
        finally:
            record(recorded)
        torch.clear_autocast_cache()
        if not self.keep:
            self.anchor.release()

    def finish(self, *, well: bool) -> None:
        """Make the sharp gradients those that the base should see, if all went well."""
        if not well:
            return
        recorded = is_recording()
        try:
            record(False)
            self._hand_on()
        finally:
            record(recorded)

    def _up(self) -> None:
        # The clean gradients are let go of before the sharp pass needs the memory.
        slope, self.slope = self.slope, None
        assert slope is not None
        room, params, ops = self.anchor.room(self.params, self.ops), self.params, self.ops
        self.norm, self._clean_norm = slope.norm, slope.norm * on_host(slope.scale)
        if self.looks or (self.blend and self.blend.needs_clean):
            # As much scaled as the sharp ones will be. Those of groups that stay may be of other kinds.
            still = [like(g, p) for p in self.still if (g := p.grad) is not None]
            clean = (*slope.scaled, *(torch.view_as_real(g) if g.is_complex() else g for g in still))
            copies = iter(ops.copies([g for g, held in zip(clean, self.held, strict=True) if not held]))
            self.clean = [g if held else next(copies) for g, held in zip(clean, self.held, strict=True)]
        directions, factor = self.ascent.directions(slope)
        # Parts are saved and moved while they are in a cache: memory is read once for both.
        cut = self.anchor.numel > PIECE and ops.foreach and ops.kind is not None and free_to_read(params[0])
        for start, stop, rho in self.spans:
            if start == stop:
                continue
            step: Scalar = on_host(rho) * factor
            # False if the norm is infinite or NaN, or so small that the step overflows: then there is nowhere to
            # climb.
            go = (self.norm < math.inf) & (step > -_LARGEST) & (step < _LARGEST)
            guard = go if isinstance(go, Tensor) else None
            span: tuple[Tensors, ...] = (room[start:stop], params[start:stop], directions[start:stop])
            for copy, w, d in pieces(*span) if cut else [span]:
                ops.copy_(copy, w)
                self._saved.append((w, copy))
                if go is not False:
                    ops.move_(w, self.ascent.stretched(ops, w, d), step, guard)
        self._saved = [(params, room)]  # they come back in one go

    def _hand_on(self) -> None:
        # A climb that is not along the gradient says nothing of it.
        finite = not self.ascent.needs_gradient or (not isinstance(self.norm, Tensor) and self.norm < math.inf)
        if self.blend is None and finite and not self.looks:
            return
        owners, ops = [*self.owners, *self.still], self.ops
        if self.still:  # they may be of other kinds than those that climb
            present = [p for p in owners if p.grad is not None]
            vectors = [p.grad for p in present if p.grad is not None]
            ops = Ops.choose(present or owners, None if ops.foreach else False, vectors or owners)
        if not ops.foreach:
            for p in owners:
                p.grad = None if p.grad is None else like(p.grad, p)
        if self.blend is not None:
            unshared(owners)
        sharp = [(i, p.grad) for i, p in enumerate(owners) if p.grad is not None]
        grads = [g for _, g in sharp]
        climbing = sum(i < len(self.owners) for i, _ in sharp)
        if (self.blend is not None or self.looks) and climbing:
            # Of large models it was found in the way in which inner products are, so that both are rounded alike.
            known = climbing == len(self.owners) and not self.weights and self.anchor.numel > FEW
            slope = Slope(
                [owners[i] for i, _ in sharp],
                grads,
                self.state,
                ops,
                guarded=True,
                climbing=None if climbing == len(sharp) else climbing,
                weights=_unless_all_stay([self.weights[i] for i, _ in sharp[:climbing]]) if self.weights else None,
                clean_square=self._clean_norm * self._clean_norm if known else None,
            )
            clean = [self.clean[i] for i, _ in sharp] if self.clean else []
            if self.looks:
                self.cosine = _cosine(slope, clean)
            if self.blend is not None:
                self.blend.blend_(slope, clean)
                slope.write_back()
        # After a clean gradient that was not finite the base must see one as well, so that GradScaler and anomaly
        # checks notice. One parameter is enough. Zero times the norm is NaN just then, and nobody waits for it.
        mark = marked(ops.real(grads))
        if mark is not None and not finite:
            mark.add_(on(0 * self.norm, mark.device) if isinstance(self.norm, Tensor) else math.nan)


def _cosine(sharp: Slope, clean: Tensors) -> Scalar:
    """Return the cosine of the angle between two gradients; NaN where one of them is 0 or not finite."""
    product, square = sharp.dots(clean)
    other = sharp.along(clean).norm if sharp.clean_square is None else sharp.clean_square**0.5
    if isinstance(product, Tensor) or isinstance(other, Tensor):
        found: Scalar = product / square**0.5 / other
        return found
    return product / square**0.5 / other if square and other else math.nan


def _unless_all_stay(weights: list[Tensor | None]) -> list[Tensor | None]:
    """Return weights that are all 1 where all are 0: then both gradients are one, and a blend must see that."""
    groups = {id(weight): weight for weight in weights}
    found = [weight for weight in groups.values() if weight is not None]
    if len(found) < len(groups):
        return weights
    up = torch.stack([on(weight, found[0].device) for weight in found]).any()
    by_group = {id(weight): torch.where(on(up, weight.device), weight, 1.0) for weight in found}
    return [by_group[id(weight)] for weight in weights]


def unshared(params: Sequence[Tensor]) -> None:
    """Give gradients that share memory memory of their own: what is written to one must not be seen by another."""
    if not separate([p.grad for p in params if p.grad is not None]):
        for p in params:
            p.grad = None if p.grad is None else p.grad.clone(memory_format=torch.contiguous_format)


def marked(grads: Sequence[Tensor]) -> Tensor | None:
    """Return the gradient that is made not finite where the clean one was not: the smallest."""
    return min((g for g in grads if g.numel() > 0), key=Tensor.numel, default=None)


@final
class Stay:
    """A step that does not climb: whatever its sharp pass does, the clean gradients come back.

    If that pass is the ``only`` one of the step, its gradients stay, unless there are none. If it raises, the gradients
    of an earlier step do not come back.
    """

    releases: Sequence[Tensor] = ()

    def __init__(self, params: list[Tensor], *, only: bool = False) -> None:
        self.params, self.only = params, only
        self.clean: list[Tensor | None] | None = None

    def up(self) -> None:
        self.clean = [p.grad for p in self.params]

    def down(self) -> None:
        pass

    def finish(self, *, well: bool) -> None:
        if self.clean is None or (self.only and (not well or any(p.grad is not None for p in self.params))):
            return
        for p, g in zip(self.params, self.clean, strict=True):
            p.grad = g


def reuse_(
    blend: Blend, groups: list[tuple[list[Tensor], Scalar]], state: State, slope_of: Callable[..., Slope]
) -> None:
    """Let a blend that remembers earlier climbs change the gradients of a step that does not climb."""
    name = blend.memories[0]
    climbing, still = (
        [
            (p, rho)
            for params, rho in groups
            if climbs(rho) is up
            for p in params
            if p.grad is not None and (up or name in state.get(p, _NOTHING))
        ]
        for up in (True, False)
    )
    if not any(name in state.get(p, _NOTHING) for p, _ in climbing):
        return
    owners = [p for p, _ in (*climbing, *still)]
    weights = [(rho > 0).float() if isinstance(rho, Tensor) else None for _, rho in climbing]
    with torch.no_grad():
        for p in owners:
            p.grad = None if p.grad is None else like(p.grad, p)
        unshared(owners)
        slope = slope_of(
            owners,
            [p.grad for p in owners if p.grad is not None],
            climbing=len(climbing) if still else None,
            weights=weights if any(weight is not None for weight in weights) else None,
        )
        blend.between_(slope)
        slope.write_back()
