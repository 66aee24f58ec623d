"""Which parameters climb at a step, along what, and by which radius."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from ._checks import descends, with_inner
from ._memory import has_one_owner
from ._radii import Radii, climbs
from ._scalars import HALF, Scalar
from ._slope import need_dense
from .angle import Angle
from .ascents import Ascent
from .blends import Blend
from .triggers import Trigger

_SMALL = 2**12
"""Elements that are copied sooner than it is found out who has them."""

_BLENDED = (
    "has a sparse gradient, which cannot be blended with another, in a group that stays either. Use sparse=False in "
    "its embedding, or a method without a blend, as SAM."
)

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


def vectors_of(base: Optimizer, ascent: Ascent) -> Callable[[Tensor], Tensor | None]:
    """Return what tells along what a parameter climbs."""
    if ascent.needs_gradient:
        return lambda p: p.grad
    memory = memory_of(base)
    return lambda p: ascent.vector(p, memory(p))


def memory_of(base: Optimizer) -> Callable[[Tensor], Mapping[str, Any]]:
    """Return what tells what a base, or those together or inside, remember of a parameter."""
    chains = [[inside.state for inside in with_inner(one)] for one in getattr(base, "bases", (base,))]
    if len(chains) == len(chains[0]) == 1:
        state = chains[0][0]
        return lambda p: state.get(p, _NOTHING)

    def together(p: Tensor) -> dict[str, Any]:
        memory: dict[str, Any] = {}
        for *around, inmost in chains:
            if own := inmost.get(p):  # wrappers may remember something from the beginning
                for state in around:
                    memory |= state.get(p, _NOTHING)
                memory |= own
        return memory

    return together


def climbers(base: Optimizer, radii: Radii, ascent: Ascent, stretch: float, *, blends: bool, looks: bool) -> Climbers:
    """Return who climbs; only if gradients are to be blended also who stays.

    If clean gradients are needed after the climb, for that or to be looked at, also whose have one owner.
    """
    found = Climbers()
    vector_of = vectors_of(base, ascent)
    groups = base.param_groups
    for group, (params, rho) in zip(groups, radii.of(groups), strict=True):
        if not climbs(rho):
            if blends:
                found.still += [p for p in params if p.grad is not None]
                need_dense([p.grad for p in params if p.grad is not None], _BLENDED)
            continue
        start = len(found.owners)
        # Before they have another owner here.
        held = [p.numel() > _SMALL and has_one_owner(p) for p in params] if blends or looks else []
        along = [*map(vector_of, params)]
        there = [vector is not None for vector in along]
        found.owners += compress(params, there)
        found.vectors += [vector for vector in along if vector is not None]
        found.held += compress(held, there)
        stop = len(found.owners)
        weight = (rho > 0).float() if isinstance(rho, Tensor) else None
        if weight is not None or found.weights:
            found.weights += [None] * (start - len(found.weights)) + [weight] * (stop - start)
        # A maximizer's adversary lowers what it wants high. The base's momentum knows of that already.
        sign = 1.0 if not ascent.needs_gradient or descends(base, group) else -1.0
        found.spans.append((start, stop, rho * (sign * stretch)))
    if blends:
        found.held += map(has_one_owner, found.still)
    return found


def warn_of_half(owners: list[Tensor], name: str) -> None:
    """Say that weights of few digits swallow most of a climb, if some are."""
    half = next((p for p in owners if p.dtype in HALF), None)
    if half is not None:
        warnings.warn(
            f"{name} climbs with weights in half precision ({half.dtype}), which swallow what is less than half of "
            "their spacing, and so a part of a climb: see docs/stacks.md. Keep them in float32 and let torch.autocast "
            "make the half-precision copies.",
            stacklevel=5,
        )


def check_parts(ascent: Ascent, blend: Blend | None, trigger: Trigger, radii: list[Any]) -> None:
    """Raise if something looks at a clean gradient where there is none."""
    angles = [rho for rho in radii if isinstance(rho, Angle)]
    for part in (blend, trigger if trigger.needs_gradient else None, *angles):
        if not ascent.needs_gradient and part is not None:
            raise ValueError(without_clean(part, ascent))


def without_clean(part: object, ascent: Ascent) -> str:
    """Return what is said of it."""
    return (
        f"{type(part).__name__} looks at the clean gradient, but {type(ascent).__name__} climbs without one. "
        "Leave it out, or take another ascent."
    )
