"""Whether the splits of a task are apart, as far as that can be seen: those of tensors, and subsets of one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ..errors import UserError
from .splits import has_columns
from .task import Task

_LOOKED_AT = 50
_TOO_FEW = 5
"""So few examples may be in another split by chance."""

_FEW = 16
_NEVER = {
    "train": "on which every method looks good; split some examples off",
    "validation": "by which settings are chosen; keep the examples of the last judgement apart",
}


def check_apart(task: Task) -> None:
    """Refuse a validation or test split whose examples are all in another one.

    A split may hold examples of another by chance, and where inputs have few values nearly all of them: it is refused
    where it is the other one, or has decimals and all that are looked at are there, and most of them once.

    Raises:
        UserError: A split is another one, or a part of it.
    """
    for name, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        one, whole = getattr(task, name), getattr(task, other)
        if task.step is not None and other == "validation":
            continue  # an equation may be judged at the points at which settings are chosen
        data = {"train": "training"}.get(other, other)
        if one is whole or _same(one, whole):
            raise UserError(f"Task: {name} is the {data} data itself, {_NEVER[other]}")
        if _is_part(one, whole):
            raise UserError(f"Task: all examples of {name} that were looked at are {data} data too, {_NEVER[other]}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    mine, others = _alike(one, other)
    return bool(mine) and all(map(_equal, mine, others))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(_as_one(one, other).all())


def _as_one(one: Tensor, other: Tensor) -> Tensor:
    """Return where numbers are the same, or both none, as where values are missing."""
    same = one == other
    return same | (one.isnan() & other.isnan()) if one.is_floating_point() else same


def _is_part(one: Any, other: Any) -> bool:
    if isinstance(one, Subset) and isinstance(other, Subset) and one.dataset is other.dataset:
        return set(one.indices) <= set(other.indices)
    mine, others = _alike(one, other)
    n = len(mine[0]) if mine else 0
    if n < _TOO_FEW or not any(part.is_floating_point() for part in mine):
        return False  # of whole numbers, as those of tokens and categories, there are few
    looked_at = torch.linspace(0, n - 1, min(n, _LOOKED_AT)).long()
    if _few_values([part[looked_at.to(part.device)] for part in mine[:-1] or mine]):
        return False
    often = 0
    for index in looked_at.tolist():
        found = _count([part[index] for part in mine], others)
        if not found:
            return False
        often += found > 1
    return often * 2 <= len(looked_at)


def _few_values(inputs: Sequence[Tensor]) -> bool:
    """Return whether many of some examples have the same inputs: then others have them, too, by chance."""
    real = [torch.view_as_real(part) if part.is_complex() else part for part in inputs]
    rows = torch.cat([part.reshape(len(part), -1).double().cpu() for part in real], dim=1).nan_to_num()
    return 5 * len(torch.unique(rows, dim=0)) < 4 * len(rows)


def _count(example: Sequence[Tensor], columns: Sequence[Tensor]) -> int:
    """Return how many rows are the example."""
    left = torch.arange(len(columns[0]), device=columns[0].device)
    for wanted, column in zip(example, columns, strict=True):
        rows, flat = column.reshape(len(column), -1), wanted.reshape(-1)
        for place in torch.randperm(len(flat), generator=torch.Generator().manual_seed(0)).tolist():
            if len(left) <= _FEW:
                break
            left = left[_as_one(rows[left, place], flat[place])]
        left = left[_as_one(rows[left], flat).all(1)]
    return len(left)


def _alike(one: Any, other: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of two splits whose examples are of one form; none of others."""
    mine, others = _columns(one), _columns(other)
    return (mine, others) if [_form(part) for part in mine] == [_form(part) for part in others] else ([], [])


def _columns(split: Any) -> list[Tensor]:
    if type(split) is TensorDataset:
        split = split.tensors
    found = list(split.values() if isinstance(split, Mapping) else split) if has_columns(split) else []
    return found if all(part.layout == torch.strided for part in found) else []


def _form(part: Tensor) -> tuple[object, ...]:
    return part.shape[1:], part.dtype, part.device
