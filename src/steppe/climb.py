"""One climb: from ``w`` to ``w + delta`` and back, and the gradients that come of it."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from ._tensors import Scalar, Tensors, on, on_host
from .ascents import Ascent, Slope
from .blends import Blend


@final
class Climb:
    """A climb that is decided, with everything that leads back."""

    def __init__(self, slope: Slope, radii: list[tuple[int, Scalar]], ascent: Ascent, blend: Blend) -> None:
        """``radii`` says from which parameter on which radius holds, as in ``[(0, 0.1), (4, 0.2)]``."""
        self.owners, self.params, self.ops = slope.owners, slope.params, slope.ops
        self.blend = blend
        self.norm = on_host(slope.norm)
        self.directions, factor = ascent.directions(slope)
        self.moves = [(start, on_host(rho) * on_host(factor)) for start, rho in radii]
        self.clean = [g.clone() for g in slope.grads] if blend.needs_clean else []
        self.anchor = [p.clone() for p in self.params]

    def up_(self) -> None:
        """Go to ``w + delta``, and let go of the clean gradients before the sharp pass needs the memory."""
        directions: Tensors
        directions, self.directions = self.directions, []
        stops = [start for start, _ in self.moves[1:]] + [len(self.params)]
        for (start, step), stop in zip(self.moves, stops, strict=True):
            # False if the norm is infinite or NaN, or so small that the step overflows: then there is nowhere to climb.
            go = self.norm + step < math.inf
            if start < stop and go is not False:
                self.ops.move_(
                    self.params[start:stop], directions[start:stop], step, go if isinstance(go, Tensor) else None
                )

    def back_(self) -> None:
        """Come back to ``w``."""
        self.ops.copy_(self.params, self.anchor)

    def hand_on_(self) -> None:
        """Turn the sharp gradients in ``.grad`` into those that the base should see."""
        owners = [(i, p.grad) for i, p in enumerate(self.owners) if p.grad is not None]
        sharp = self.ops.real([g for _, g in owners])
        if sharp:
            self.blend.blend_(sharp, [self.clean[i] for i, _ in owners] if self.clean else [], self.ops)
        if not isinstance(self.norm, Tensor) and self.norm < math.inf:
            return
        # After a clean gradient that was not finite the base must see one as well, so that GradScaler and anomaly
        # checks notice. One parameter is enough. Zero times the norm is NaN just then, and nobody waits for it.
        smallest = min((g for g in sharp if g.numel() > 0), key=Tensor.numel, default=None)
        if smallest is not None:
            smallest.add_(on(0 * self.norm, smallest.device) if isinstance(self.norm, Tensor) else math.nan)
