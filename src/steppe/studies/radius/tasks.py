"""Two tasks that had no part in how the units were thought out, loaded by file and name."""

from __future__ import annotations

import string
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from steppe.lab import Task
from steppe.lab.tasks.text.packaged import bbc_news

CHARACTERS = "\n " + string.ascii_lowercase + string.digits + ".,'\"-:;()?!&%$"
"""What a text is made of, capitals aside; all else is left out."""

LENGTH = 32
TRAIN, HELD_OUT = 480, 240


def diabetes() -> Task:
    """Whether a patient's diabetes is worse than the median after a year, by ten measurements, and an MLP.

    120 patients are for training, 130 for validation, 192 for test.
    """
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    data: Any = load_diabetes()
    worse = (data.target > median(data.target)).astype(int)
    x, test_x, y, test_y = train_test_split(data.data, worse, test_size=192, stratify=worse, random_state=0)
    x, validation_x, y, validation_y = train_test_split(x, y, test_size=130, stratify=y, random_state=0)
    mean, spread = x.mean(0), x.std(0)

    def split(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
        scaled = (features - mean) / spread
        return torch.tensor(scaled, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)

    return Task(
        model=lambda: nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)),
        train=split(x, y),
        validation=split(validation_x, validation_y),
        test=split(test_x, test_y),
        batch_size=20,
        epochs=40,
    )


def characters() -> Task:
    """The next character of BBC news, by a small GRU: 480 pieces for training, 240 for validation and for test.

    Every piece is of a text of its own, so that no text is in two parts.
    """
    pieces = _pieces(TRAIN + 2 * HELD_OUT)
    train, validation, test = pieces[:TRAIN], pieces[TRAIN:-HELD_OUT], pieces[-HELD_OUT:]
    return Task(
        model=_Writer,
        train=(train[:, :-1], train[:, 1:]),
        validation=(validation[:, :-1], validation[:, 1:]),
        test=(test[:, :-1], test[:, 1:]),
        metric=next_right,
        metric_name="next characters right (%)",
        batch_size=24,
        epochs=10,
    )


def next_right(outputs: Tensor, targets: Tensor) -> float:
    """Return the percentage of characters that were given the highest score.

    Example:
        >>> next_right(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[1, 1]]))
        50.0
    """
    return 100.0 * float((outputs.argmax(1) == targets).double().mean())


class _Writer(nn.Module):
    """Scores of shape (n, characters, length) for what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 32)
        self.memory = nn.GRU(32, 96, batch_first=True)
        self.head = nn.Linear(96, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.memory(self.embedding(x))[0])
        return scores.transpose(1, 2)


def _pieces(count: int) -> Tensor:
    """Return a piece from the beginning of so many texts, classes in turn, each of `LENGTH` characters and one more."""
    number = {character: i for i, character in enumerate(CHARACTERS)}
    seen: set[tuple[int, ...]] = set()
    classes = []
    for _, files in bbc_news():
        texts = (file.read_text(encoding="utf-8", errors="ignore").lower() for file in files)
        rows = [tuple(number[c] for c in text if c in number)[: LENGTH + 1] for text in texts]
        new = [row for row in dict.fromkeys(rows) if len(row) > LENGTH and row not in seen]
        seen.update(new)
        classes.append(new)
    turns = [row for rows in zip(*classes, strict=False) for row in rows]
    return torch.tensor(turns[:count])
