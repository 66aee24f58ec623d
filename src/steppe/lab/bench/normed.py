"""A task with batch norm, in a file of its own: finished trials are known by the file of their task."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from steppe.lab import Task
from steppe.lab.bench.tasks import digits_noise


def digits_noise_norm() -> Task:
    """Digits with 40 % of the training labels random, and their convnet with batch norm before every ReLU."""
    return replace(digits_noise(), model=_model)


def _model() -> nn.Module:
    return nn.Sequential(
        *_convolution(1, 16),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _convolution(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
