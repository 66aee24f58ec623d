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
from steppe.lab.tasks.text.packaged import encoder
from steppe.lab.tasks.text.task import text_task
from steppe.lab.tasks.vision.data import CIFAR10_MEAN, CIFAR10_STD, Augmented, load_cifar

IMAGES, HELD_OUT = 4000, 2000
PER_CLASS, REPEATS, VALIDATION = 64, 4, 160


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
        epochs=24,
        evaluation_batch_size=500,
    )


def entailment() -> Task:
    """RTE, 64 pairs of each class, MiniLM fine-tuned."""
    return _glue("rte")


def paraphrases() -> Task:
    """MRPC, 64 pairs of each class, MiniLM fine-tuned."""
    return _glue("mrpc")


def _glue(name: str) -> Task:
    """Make a task of GLUE with few examples, over which an epoch passes four times: evaluation takes long."""
    made = text_task(
        str(encoder()),
        task=name,
        data=str(_folder("glue")),
        metric="accuracy",
        per_class=PER_CLASS,
        length=48,
        batch_size=16,
        epochs=1,
    )
    assert isinstance(made.train, tuple)
    assert isinstance(made.validation, tuple)
    train: tuple[Tensor, ...] = tuple(part.repeat(REPEATS, *[1] * (part.ndim - 1)) for part in made.train)
    return replace(made, train=train, validation=tuple(part[:VALIDATION] for part in made.validation))


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
