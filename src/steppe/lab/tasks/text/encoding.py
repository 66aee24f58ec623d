"""Texts as tensors: ids, attention mask and token types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from . import hub
from .rows import Rows

_FEW = 4  # without any files, `transformers` makes a tokenizer of special tokens and as many others as this


def load_tokenizer(name: str | Path) -> Any:
    """Load the tokenizer of a model.

    Args:
        name: A model of the Hugging Face hub, or a folder.

    Returns:
        The tokenizer.

    Raises:
        UserError: There is no such model, or its tokenizer is missing or has no token to pad with.
    """
    tokenizer = hub.load("AutoTokenizer", name)
    if len(tokenizer) <= len(tokenizer.all_special_ids) + _FEW:
        raise UserError(f"the tokenizer of {str(name)!r} knows no words; save the tokenizer in the folder of the model")
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {str(name)!r} has no token to pad with; give it one, or take another model")
    return tokenizer


def encode(tokenizer: Any, rows: Rows, length: int) -> Tensor:
    """Encode texts, and pairs of texts as pairs, padded on the right to the longest of them.

    Args:
        tokenizer: Of `transformers`.
        rows: The texts.
        length: How many tokens an encoding has at most, special ones included; longer texts are cut, of a pair the
            longer text first. At least 4.

    Returns:
        Whole numbers of shape (n, 3, longest): for each row the ids, the attention mask (1 for tokens, 0 for padding)
        and the token types (0 if the tokenizer has none).

    Raises:
        UserError: `length` is out of range.
    """
    most = tokenizer.model_max_length
    if not isinstance(length, int) or isinstance(length, bool) or not 4 <= length <= most:
        limits = f"from 4 to {most}, which the model can read" if most < 10**9 else "of at least 4"
        raise UserError(f"length must be a whole number {limits}, got {length!r}")
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    with hub.quiet():  # a slow tokenizer remarks that it cut
        found = tokenizer(*columns, truncation=True, max_length=length, padding=False)
    longest = max(len(ids) for ids in found["input_ids"])
    encoded = torch.zeros(len(rows), 3, longest, dtype=torch.int64)
    encoded[:, 0] = tokenizer.pad_token_id
    types = found.get("token_type_ids") or [[0] * len(ids) for ids in found["input_ids"]]
    for row, (ids, kinds) in enumerate(zip(found["input_ids"], types, strict=True)):
        encoded[row, :, : len(ids)] = torch.tensor([ids, [1] * len(ids), kinds])
    return encoded


def encode_splits(tokenizer: Any, splits: Mapping[str, Rows], length: int) -> dict[str, Tensor]:
    """Encode several splits, padded to the longest text of all of them.

    Args:
        tokenizer: Of `transformers`.
        splits: The texts.
        length: As for `encode`.

    Returns:
        What `encode` returns for every split, all of the same last dimension.

    Raises:
        UserError: `length` is out of range.
    """
    encoded = {name: encode(tokenizer, rows, length) for name, rows in splits.items()}
    longest = max(part.shape[2] for part in encoded.values())
    return {name: _widened(part, longest, tokenizer.pad_token_id) for name, part in encoded.items()}


def _widened(encoded: Tensor, longest: int, pad: int) -> Tensor:
    more = encoded.new_zeros(len(encoded), 3, longest - encoded.shape[2])
    more[:, 0] = pad
    return torch.cat([encoded, more], dim=2)
