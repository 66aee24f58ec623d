"""Three tasks on data from files, in ``cifar10`` and ``glue`` of the folder $STEPPE_DATA, loaded by file and name."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from steppe.lab import Task
from steppe.lab.errors import UserError
from steppe.lab.tasks.splits import Split
from steppe.lab.tasks.text.packaged import encoder
from steppe.lab.tasks.text.task import text_task
from steppe.lab.tasks.vision.data import CIFAR10_MEAN, CIFAR10_STD, Augmented, load_cifar

IMAGES, HELD_OUT = 4000, 2000
PER_CLASS, REPEATS, JUDGED = 48, 2, 200


def images() -> Task:
    """CIFAR-10 with crops and flips: 4000 images for training, 2000 for validation and for test, and a convnet."""
    x, y, test_x, test_y = load_cifar("cifar10", _folder("cifar10"))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    kept, aside = order[:IMAGES], order[IMAGES : IMAGES + HELD_OUT]
    judged = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    split = partial(Augmented, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    return Task(
        model=_convnet,
        train=split(x[kept], y[kept], train=True),
        validation=split(x[aside], y[aside], train=False),
        test=split(test_x[judged], test_y[judged], train=False),
        unaugmented=split(x[kept], y[kept], train=False),
        batch_size=100,
        epochs=14,
        evaluation_batch_size=500,
    )


def entailment() -> Task:
    """RTE, 48 pairs of each class, MiniLM fine-tuned."""
    return _glue("rte")


def paraphrases() -> Task:
    """MRPC, 48 pairs of each class, MiniLM fine-tuned."""
    return _glue("mrpc")


def _glue(name: str) -> Task:
    """Make a task of GLUE with few examples, of which an epoch sees each twice: evaluation takes long.

    For the same reason 100 rows are for validation, and 200 for test.
    """
    made = text_task(
        str(encoder()),
        task=name,
        data=str(_folder("glue")),
        metric="accuracy",
        per_class=PER_CLASS,
        length=40,
        batch_size=8,
        epochs=1,
    )
    train, validation, test = (_columns(split) for split in (made.train, made.validation, made.test))
    return replace(
        made,
        train=tuple(torch.cat([part] * REPEATS) for part in train),
        unaugmented=train,
        validation=tuple(part[: JUDGED // 2] for part in validation),
        test=tuple(part[:JUDGED] for part in test),
    )


def _columns(split: Split) -> tuple[Tensor, ...]:
    assert isinstance(split, tuple)
    return split


def _folder(name: str) -> Path:
    given = os.environ.get("STEPPE_DATA")
    if not given:
        raise UserError(f"no data: give --data a folder with {name} in it")
    return Path(given) / name


def _convnet() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10))
