"""Compare methods on a task of your own: steppe compare --task examples/own_task.py:spirals --methods adamw,sam"""

import torch
from torch import nn

from steppe.lab import Task


def spirals() -> Task:
    """Tell two noisy spirals apart."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(1200) % 2
    turn = torch.rand(1200, generator=generator) * 10 + 1
    angle = turn + torch.pi * label
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 5
    x += 0.05 * torch.randn(x.shape, generator=generator)
    train, validation, test = zip(torch.split(x, 400), torch.split(label, 400), strict=True)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    return Task(model=model, train=train, validation=validation, test=test, batch_size=20, epochs=100)
