"""Two tasks that `steppe.lab` does not have, loaded by file and name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from steppe.lab import Task
from steppe.lab.tasks.builtin import digits
from steppe.lab.tasks.text.classifier import Classifier
from steppe.lab.tasks.text.packaged import bbc_news, encoder

NOISE = 0.4
PER_CLASS, WORDS, REPEATS = 8, 32, 5


def digits_noise() -> Task:
    """Digits of which 40 % of the training labels are drawn anew at random; validation and test labels are right."""
    task = digits()
    assert isinstance(task.train, tuple)
    x, y = task.train
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=generator) < NOISE
    drawn = torch.randint(10, (len(y),), generator=generator)
    return replace(task, train=(x, torch.where(wrong, drawn, y)))


def news() -> Task:
    """BBC news, 8 texts of each of 5 classes for training, 200 texts for validation and 500 for test.

    An epoch passes over the 40 texts five times, for they are few.
    """
    folder = encoder()
    tokens, labels = _texts(folder, PER_CLASS + 140)
    # Texts of all classes take turns, so every part has as many of each.
    classes = int(labels.max()) + 1
    first, second, third = PER_CLASS * classes, PER_CLASS * classes + 200, PER_CLASS * classes + 700
    return Task(
        model=lambda: Classifier(folder, classes),
        train=(tokens[:first].repeat(REPEATS, 1), labels[:first].repeat(REPEATS)),
        validation=(tokens[first:second], labels[first:second]),
        test=(tokens[second:third], labels[second:third]),
        batch_size=8,
        epochs=2,
    )


def _texts(folder: Path, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of so many texts of each class; what begins like an earlier text is left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: set[tuple[int, ...]] = set()
    chosen: list[list[tuple[int, ...]]] = []
    for _, files in bbc_news():
        texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files[: 2 * per_class]]
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=WORDS)["input_ids"]
        new = [row for row in dict.fromkeys(map(tuple, found)) if row not in seen]
        seen.update(new)
        chosen.append(new[:per_class])
    turns = [(row, label) for rows in zip(*chosen, strict=True) for label, row in enumerate(rows)]
    return torch.tensor([row for row, _ in turns]), torch.tensor([label for _, label in turns])
