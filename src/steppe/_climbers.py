"""Which parameters climb at a step, along what, and by which radius."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from ._checks import chain, descends
from ._memory import has_one_owner
from ._radii import Radii, climbs
from ._scalars import Scalar
from .ascents import Ascent

_NOTHING: Mapping[str, Any] = {}


@final
@dataclass
class Climbers:
    """Parameters that climb, and those that stay.

    Args:
        owners: those that climb and have something to climb along.
        vectors: what that is.
        spans: which of them climb by which radius, as in ``[(0, 4, 0.1), (4, 6, -0.2)]``.
        weights: whether their radius is above 0, as 1 or 0, where nobody may look, else None; empty if all may be seen.
        still: those that have a gradient, and stay.
        held: whether nobody else has the memory of their gradients, first of ``owners``, then of ``still``.
    """

    owners: list[Tensor] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    spans: list[tuple[int, int, Scalar]] = field(default_factory=list)
    weights: list[Tensor | None] = field(default_factory=list)
    still: list[Tensor] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)


def vector_of(p: Tensor, base: Optimizer, ascent: Ascent) -> Tensor | None:
    """Return what a parameter climbs along."""
    if ascent.needs_gradient:
        return p.grad
    memory: dict[str, Any] = {}
    for one in getattr(base, "bases", (base,)):
        *around, inmost = [inside.state.get(p, _NOTHING) for inside in chain(one)]
        if inmost:  # wrappers may remember something from the beginning
            memory |= {name: value for each in (*around, inmost) for name, value in each.items()}
    return ascent.vector(p, memory)


def climbers(base: Optimizer, radii: Radii, ascent: Ascent, stretch: float, *, blends: bool) -> Climbers:
    """Return who climbs; only if gradients are to be blended also who stays, and whose gradients have one owner."""
    found = Climbers()
    groups = base.param_groups
    for group, (params, rho) in zip(groups, radii.of(groups), strict=True):
        if not climbs(rho):
            if blends:
                found.still += [p for p in params if p.grad is not None]
            continue
        start = len(found.owners)
        for p in params:
            alone = blends and has_one_owner(p)  # before it has another one here
            vector = vector_of(p, base, ascent)
            if vector is not None:
                found.owners.append(p)
                found.vectors.append(vector)
                if blends:
                    found.held.append(alone)
        stop = len(found.owners)
        weight = (rho > 0).float() if isinstance(rho, Tensor) else None
        if weight is not None or found.weights:
            found.weights += [None] * (start - len(found.weights)) + [weight] * (stop - start)
        # A maximizer's adversary lowers what it wants high. The base's momentum knows of that already.
        sign = 1.0 if not ascent.needs_gradient or descends(base, group) else -1.0
        found.spans.append((start, stop, rho * (sign * stretch)))
    found.held += map(has_one_owner, found.still)
    return found
