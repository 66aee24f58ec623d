"""Radii that follow what earlier climbs have shown, in loops that call ``step(closure)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, final

from torch import Tensor

from ..._scalars import Tensors, ratio, wide
from ...ascents import L2, Ascent, Slope
from ...blends import Blend
from ...optimizer import SharpnessAware
from ...together import Bases
from .climbs import LONGEST, LOSS

Result = TypeVar("Result")

START, SHORTEST = 0.05, 1e-4
"""The first radius, and the smallest."""

WHOLE = 20
"""Where climbs are along a part of the batch, every so-manieth step sees all of it, and is followed."""

RISE = "rise"


class Noting(SharpnessAware):
    """A `SharpnessAware` whose climbs know the loss, which they find under `LOSS` in the shared memory of a slope.

    Only `step` notes it, and it waits for an accelerator; the other doors do not.

    Args:
        base: the optimizer instance that takes the step.
        ascent: where to climb.
        rho: the constant of the ascent.
        blend: which gradient to hand on.
    """

    def __init__(self, base: Bases, *, ascent: Ascent, rho: float, blend: Blend | None = None) -> None:
        super().__init__(base, ascent=ascent, blend=blend, rho=rho)
        self._losses: list[float] = []

    # Not `step`: torch lets hooks fire for each `step` of a class that calls its parent's.
    def _gradient(self, closure: Callable[[], Result], ascent: Callable[[], Result] | None) -> Result:
        self._losses = []
        along = None if ascent is None else partial(self._noted, ascent)
        return super()._gradient(partial(self._noted, closure), along)

    def _noted(self, closure: Callable[[], Result]) -> Result:
        found: Any = closure()
        self._losses.append(float(found.detach() if isinstance(found, Tensor) else found))
        self.state["shared"][LOSS] = self._losses[-1]
        return found  # type: ignore[no-any-return]


class Following(Noting):
    """A SAM whose radius, which stands in ``group["rho"]``, follows what climbs along whole batches have shown.

    Args:
        base: the optimizer instance that takes the step.
        constant: what is to stay the same.
        blend: which gradient to hand on.
    """

    def __init__(self, base: Bases, constant: float, blend: Blend | None = None) -> None:
        if not 0.0 < constant < math.inf:
            raise ValueError(f"rho must be a finite number > 0, got {constant}.")
        super().__init__(base, ascent=L2(), rho=START, blend=blend)
        self.constant = constant

    def looks_whole(self) -> bool:
        """Say whether the next step is to climb along the whole batch, though others climb along a part of it."""
        step: int = self.state["engine"].get("step", 0)
        return super().looks_whole() or step % WHOLE == 0

    def _gradient(self, closure: Callable[[], Result], ascent: Callable[[], Result] | None) -> Result:
        self._before()
        whole = ascent is None or self.looks_whole()
        result = super()._gradient(closure, ascent)
        if whole and len(self._losses) > 1:
            self._after(*self._losses)
        return result

    def _before(self) -> None:
        """Set the radius of this step."""

    def _after(self, clean: float, sharp: float) -> None:
        """Note what the climb has shown."""

    def _climbing(self) -> list[dict[str, Any]]:
        return [group for group in self.base.param_groups if group["rho"] > 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "constant": self.constant}


@final
class Gap(Following):
    """A radius that goes after the gap of the losses: ``q = (L(w + delta) - L(w)) / L(w)`` is to be ``constant``.

    After every climb ``rho <- rho exp(gain (1 - q / constant))``, whose bracket is at least -1 and at most 1.
    """

    gain: ClassVar[float] = 0.1

    def _after(self, clean: float, sharp: float) -> None:
        if not (0.0 < clean < math.inf and math.isfinite(sharp)):
            return
        off = 1.0 - (sharp - clean) / clean / self.constant
        for group in self._climbing():
            group["rho"] = _within(group["rho"] * math.exp(self.gain * min(max(off, -1.0), 1.0)))


@final
class Edge(Following):
    """A radius ``constant / (lr h)`` with the curvature ``h`` along climbs: far where the base is far from its edge.

    Of a climb ``<s - g, g> / (rho ||g||)`` is the curvature, and ``h`` the running mean of its size, whatever its sign.
    From one step to the next the radius is at most doubled, and at least halved.
    """

    decay: ClassVar[float] = 0.9

    def __init__(self, base: Bases, constant: float) -> None:
        super().__init__(base, constant, blend=Rise())

    def _before(self) -> None:
        curvature = self.state["shared"].get("curvature")
        if curvature is None:
            return
        for group in self._climbing():
            edge = float(group["lr"]) * curvature
            wanted = self.constant / edge if edge > 0 else math.inf
            group["rho"] = _within(min(max(wanted, group["rho"] / 2), 2 * group["rho"]))

    def _after(self, clean: float, sharp: float) -> None:
        shared = self.state["shared"]
        found = abs(float(shared.get(RISE, math.nan))) / self._climbing()[0]["rho"]
        if math.isfinite(found):
            known = shared.get("curvature", found)
            shared["curvature"] = self.decay * known + (1 - self.decay) * found


@final
@dataclass(frozen=True)
class Rise(Blend):
    """Hand on ``s``, and note by how much the gradient grew along the climb: ``<s - g, g> / ||g||``."""

    needs_clean: ClassVar[bool] = True

    def blend_(self, sharp: Slope, clean: Tensors) -> None:
        product, square = sharp.along([wide(g) for g in clean]).dots(sharp.grads, sharp.clean_square)
        sharp.shared[RISE] = ratio(product - square, square**0.5)


def _within(rho: float) -> float:
    return min(max(rho, SHORTEST), LONGEST)
