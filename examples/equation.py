"""An equation: steppe compare --task examples/equation.py:poisson --methods adamw,sam --seeds 5"""

import torch
from torch import nn

from steppe.lab import Task


class Solution(nn.Module):
    """A network that is 0 at -1 and at 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        return (1 - x**2) * self.net(x)


def with_solution(x):
    return x, (torch.pi * x).sin() + 0.2 * (2 * torch.pi * x).sin()


def residual(model, batch):
    """The mean square of u'' - f at the points of a batch; their solutions are for the metric alone."""
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    f = -(torch.pi**2) * ((torch.pi * x).sin() + 0.8 * (2 * torch.pi * x).sin())
    return (bend - f).square().mean()


def poisson() -> Task:
    """Solve u'' = f on [-1, 1] by a network that sees the equation and no solution."""
    points = 2 * torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) - 1
    parts = {"train": points[:256], "validation": points[256:], "test": torch.linspace(-1, 1, 501)[:, None]}
    splits = {name: with_solution(x) for name, x in parts.items()}
    metric = {"relative error": lambda u, true: (u - true).norm() / true.norm()}
    more = {"higher_is_better": False, "evaluation_gradients": True, "batch_size": 32, "epochs": 200}
    return Task(model=Solution, step=residual, metric=metric, **splits, **more)
