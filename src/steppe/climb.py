"""One climb: from ``w`` to ``w + delta`` and back, and the gradients that come of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ._shards import like
from ._tensors import PIECE, Ops, Scalar, Tensors, free_to_read, on, on_host, pieces
from .ascents import Ascent, Slope
from .blends import Blend

_LARGEST = torch.finfo(torch.float32).max


@final
class Anchor:
    """A copy of the weights to come back to.

    Its memory is kept from step to step, unless it is let go of. Keeping it costs nothing at the peak, which is the
    sharp pass, and fresh memory for every step is slow.
    """

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._kind: object = None
        self.numel = 0

    def room(self, params: list[Tensor], ops: Ops) -> list[Tensor]:
        """Return memory for a copy of ``params``, whatever is in it."""
        shapes = [p.shape for p in params]
        if ops.kind is None or ops.kind != self._kind or shapes != self._shapes:
            self._copies = []  # not two at a time
            self._copies = [torch.empty_like(p) for p in params]
            self._kind, self._shapes = ops.kind, shapes
            self.numel = sum(p.numel() for p in params)
        return self._copies

    def restore(self, params: list[Tensor], ops: Ops) -> None:
        """Make ``params`` what they were when they were saved, bit for bit, in place."""
        ops.copy_(params, self._copies)

    def release(self) -> None:
        """Let go of the memory."""
        self._copies, self._shapes, self._kind = [], [], None


def _record(yes: bool) -> bool:
    """Switch autograd on or off and return what it was: `torch.no_grad`, without its cost between two passes."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(yes)
    return before


@final
class Climb:
    """A climb that is decided: ``with climb:`` runs its body at ``w + delta``.

    Leaving restores ``w`` bit for bit, also if the body raises. If it does not, the sharp gradients in ``.grad`` become
    those that the base should see.
    """

    def __init__(
        self,
        slope: Slope,
        spans: list[tuple[int, int, Scalar]],
        ascent: Ascent,
        blend: Blend | None,
        anchor: Anchor,
        *,
        keep: bool,
    ) -> None:
        """``spans`` says which parameters climb by which radius, as in ``[(0, 4, 0.1), (4, 6, 0.2)]``.

        ``keep`` says whether ``anchor`` keeps its memory.
        """
        self.owners, self.params, self.ops, self.state = slope.owners, slope.params, slope.ops, slope.state
        self.slope: Slope | None = slope
        self.spans, self.ascent, self.blend, self.anchor, self.keep = spans, ascent, blend, anchor, keep

    def __enter__(self) -> None:
        # One autocast around both passes would reuse its casts of w for the sharp pass, and afterwards those of
        # w + delta.
        torch.clear_autocast_cache()
        recording = _record(False)
        try:
            self._go_up()
        finally:
            _record(recording)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        torch.clear_autocast_cache()
        recording = _record(False)
        try:
            self.anchor.restore(self.params, self.ops)
            if not self.keep:
                self.anchor.release()
            if kind is None:
                self._hand_on()
        finally:
            _record(recording)

    def _go_up(self) -> None:
        # The clean gradients are let go of before the sharp pass needs the memory.
        slope, self.slope = self.slope, None
        assert slope is not None
        self.norm = slope.norm
        # As much scaled as the sharp ones will be.
        self.clean = [g.clone() for g in slope.scaled] if self.blend and self.blend.needs_clean else []
        directions, factor = self.ascent.directions(slope)
        copies, params, ops = self.anchor.room(self.params, self.ops), self.params, self.ops
        # Parts are saved and moved while they are in a cache: memory is read once for both.
        cut = self.anchor.numel > PIECE and ops.foreach and ops.kind is not None and free_to_read(params[0])
        saved: list[tuple[Tensors, Tensors]] = []
        try:
            for start, stop, rho in self.spans:
                if start == stop:
                    continue
                step: Scalar = on_host(rho) * factor
                # False if the norm is infinite or NaN, or so small that the step overflows: then there is nowhere to
                # climb.
                go = (self.norm < math.inf) & (step > -_LARGEST) & (step < _LARGEST)
                guard = go if isinstance(go, Tensor) else None
                span: tuple[Tensors, ...] = (copies[start:stop], params[start:stop], directions[start:stop])
                for copy, w, d in pieces(*span) if cut else [span]:
                    ops.copy_(copy, w)
                    saved.append((w, copy))
                    if go is not False:
                        ops.move_(w, self.ascent.stretched(ops, w, d), step, guard)
        except BaseException:
            for w, copy in saved:
                ops.copy_(w, copy)
            if not self.keep:
                self.anchor.release()
            raise

    def _hand_on(self) -> None:
        # A climb that is not along the gradient says nothing of it.
        finite = not self.ascent.needs_gradient or (not isinstance(self.norm, Tensor) and self.norm < math.inf)
        if self.blend is None and finite:
            return
        if not self.ops.foreach:
            for p in self.owners:
                p.grad = None if p.grad is None else like(p.grad, p)
        sharp = [(i, p.grad) for i, p in enumerate(self.owners) if p.grad is not None]
        grads = [g for _, g in sharp]
        if self.blend is not None and grads:
            slope = Slope([self.owners[i] for i, _ in sharp], grads, self.state, self.ops, guarded=True)
            self.blend.blend_(slope, [self.clean[i] for i, _ in sharp] if self.clean else [])
        # After a clean gradient that was not finite the base must see one as well, so that GradScaler and anomaly
        # checks notice. One parameter is enough. Zero times the norm is NaN just then, and nobody waits for it.
        mark = marked(self.ops.real(grads))
        if mark is not None and not finite:
            mark.add_(on(0 * self.norm, mark.device) if isinstance(self.norm, Tensor) else math.nan)


def marked(grads: Sequence[Tensor]) -> Tensor | None:
    """Return the gradient that is made not finite where the clean one was not: the smallest."""
    return min((g for g in grads if g.numel() > 0), key=Tensor.numel, default=None)


@final
class Stay:
    """A step that does not climb: whatever the body does, the clean gradients come back.

    If the pass of the body is the ``only`` one of the step, its gradients stay, unless there are none. If that pass
    raises, the gradients of an earlier step do not come back.
    """

    def __init__(self, params: list[Tensor], *, only: bool = False) -> None:
        self.params, self.only = params, only

    def __enter__(self) -> None:
        self.clean = [p.grad for p in self.params]

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if self.only and (kind is not None or any(p.grad is not None for p in self.params)):
            return
        for p, g in zip(self.params, self.clean, strict=True):
            p.grad = g
