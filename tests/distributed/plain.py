"""What steps on several processes must come to, written out for one process. Nothing here uses steppe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RHO, ETA, ALPHA = {"sam": 0.1, "usam": 0.1, "asam": 0.5, "gsam": 0.1}, 0.01, 0.4


def sharp_gradient(
    method: str, loss: Callable[[str], Tensor], climbing: Sequence[Tensor], others: Sequence[Tensor] = ()
) -> list[Tensor | None]:
    """Climb along the gradient of ``loss``, and return what the method hands on for ``climbing`` and ``others``.

    ``loss`` is told which pass it is computed in, "clean" or "sharp".
    """
    params = [*climbing, *others]
    clean = torch.autograd.grad(loss("clean"), params, allow_unused=True)
    before = [p.detach().clone() for p in params]
    # What is adapted to weights (ASAM) is a norm in other coordinates.
    stretch = [p.detach().abs() + ETA if method == "asam" else torch.ones_like(p) for p in climbing]
    climbs = [(p, t, g) for p, t, g in zip(climbing, stretch, clean, strict=False) if g is not None]
    norm = 1.0 if method == "usam" else sum((t * g).square().sum() for _, t, g in climbs) ** 0.5
    with torch.no_grad():
        for p, t, g in climbs:
            p += RHO[method] * t * t * g / norm if norm > 0 else 0.0
    sharp = torch.autograd.grad(loss("sharp"), params, allow_unused=True)
    with torch.no_grad():
        for p, w in zip(params, before, strict=True):
            p.copy_(w)
    if method != "gsam":
        return list(sharp)
    both = [(g, s) for g, s in zip(clean[: len(climbing)], sharp, strict=False) if g is not None and s is not None]
    gs, ss = sum((g * s).sum() for g, s in both), sum((s * s).sum() for _, s in both)
    parallel = gs / ss if ss > 0 else 0.0
    found: list[Tensor | None] = []
    for g, s in zip(clean, sharp, strict=True):
        blended = g is not None and s is not None
        found.append(s - ALPHA * (g - parallel * s) if blended else s)
    return found


def climbers(parts: Sequence[Sequence[Any]], climb: str, replicas: str) -> list[list[Any]]:
    """Group micro-batches by the climb they share; ``parts[rank][i]`` is micro-batch ``i`` of a rank."""
    if replicas == "own":
        return [[part] for own in parts for part in own] if climb == "micro" else [list(own) for own in parts]
    together = [list(same) for same in zip(*parts, strict=True)]
    return together if climb == "micro" else [[part for same in together for part in same]]


def accumulated_gradients(
    method: str,
    loss: Callable[[Any, str], Tensor],
    parts: Sequence[Sequence[Any]],
    climbing: Sequence[Tensor],
    others: Sequence[Tensor] = (),
    *,
    climb: str,
    replicas: str,
) -> None:
    """Put into ``.grad`` what an accumulated step on ``parts`` gives to the base.

    ``loss(part, pass)`` is a part's share in the loss of its rank; over ranks losses are averaged.
    """
    ranks = 1 if replicas == "own" else len(parts)
    total: list[Tensor | None] = [None] * (len(climbing) + len(others))
    for group in climbers(parts, climb, replicas):

        def together(when: str, group: Any = group) -> Tensor:
            return torch.stack([loss(part, when) for part in group]).sum() / ranks

        found = sharp_gradient(method, together, climbing, others)
        total = [t if g is None else g if t is None else t + g for t, g in zip(total, found, strict=True)]
    for p, g in zip([*climbing, *others], total, strict=True):
        p.grad = None if g is None else g * ranks / len(parts)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A small network of uneven sizes, the same everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), nn.Tanh(), nn.Linear(1, 3)).to(dtype)


def data(steps: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Batches of 16 examples, the same everywhere."""
    torch.manual_seed(1)
    return [(torch.randn(16, 5, dtype=dtype), torch.randn(16, 3, dtype=dtype)) for _ in range(steps)]
