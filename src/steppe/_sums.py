"""Norms and inner products of single tensors, and what is done with many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._pieces import LINE
from ._scalars import PLAIN, Tensors, on, wide

Weights = Sequence[Tensor | None]

_PART = 2**20
"""Elements that are copied to float64 at a time."""

_WITH_FLOAT64 = ("cpu", "cuda", "meta")


def dot(x: Tensor, y: Tensor) -> float:
    """Return ``<x, y>`` of two tensors on the CPU, whose products are at least in float32."""
    if type(x) not in PLAIN or x.dtype is not y.dtype or not (x.is_contiguous() and y.is_contiguous()):
        return float((wide(x) * wide(y)).sum())
    x, y = wide(x).view(-1), wide(y).view(-1)
    if x.numel() <= LINE:
        return torch.dot(x, y).item()
    lines = zip(torch.split(x, LINE), torch.split(y, LINE), strict=True)
    return sum(torch.dot(some, others).item() for some, others in lines)


def dot_there(x: Tensor, y: Tensor) -> Tensor:
    """Return ``<x, y>`` of two tensors of which nobody knows the values."""
    if not fits(x):
        return (wide(x) * wide(y)).sum()
    if x.is_contiguous() and y.is_contiguous():  # in parts, whose copies in float64 need little memory
        parts = zip(torch.split(x.view(-1), _PART), torch.split(y.view(-1), _PART), strict=True)
        return torch.stack([some.double().mul_(others).sum() for some, others in parts]).sum()
    return x.double().mul_(y).sum()


def fits(x: Tensor) -> bool:
    """Say whether squares of all that ``x`` can hold fit into float64, and its device knows that: Apple's does not."""
    return x.dtype != torch.float64 and x.device.type in _WITH_FLOAT64


def norm_of_one(x: Tensor) -> Tensor:
    """Return the norm of one tensor, wherever its squares may lie, without a look at it."""
    if fits(x):
        norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
        return norm
    x = wide(x)
    largest = x.abs().max() if x.numel() else x.new_zeros(())
    scaled: Tensor = torch.linalg.vector_norm(x / torch.where(largest > 0, largest, 1.0))
    return largest * scaled


def weighed(x: Tensor, weight: Tensor | None, power: float) -> Tensor:
    """Return ``weight^power x``, and 0 where the weight is 0, also if ``x`` is not finite."""
    if weight is None:
        return x
    weight = on(weight, x.device)
    return torch.where(weight > 0, weight.to(x.dtype) ** power * x, 0.0)


def by_weight(weights: Weights, *lists: Tensors) -> list[tuple[float, tuple[Tensors, ...]]]:
    """Return each weight above 0 with those tensors of ``lists`` that have it."""
    values = [1.0 if weight is None else float(weight) for weight in weights]
    return [
        (value, tuple([x for x, own in zip(xs, values, strict=True) if own == value] for xs in lists))
        for value in sorted(set(values))
        if value > 0
    ]


def on_one_device(xs: list[Tensor]) -> list[Tensor]:
    """Return 0-dim tensors on one device and in one dtype: an accelerator, and float64, if any is there."""
    device = next((x.device for x in xs if x.device.type != "cpu"), xs[0].device)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32
    return [on(x.to(dtype), device) for x in xs]
