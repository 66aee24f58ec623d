"""Losses so small that everything about them is known: quadratics, and networks whose Hessian fits on a page."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import Dataset

from steppe.measure import (
    Objective,
    average_case,
    gradient_norm,
    line,
    slice_1d,
    slice_2d,
    spectrum,
    surrogate_gap,
    trace,
    worst_case,
)


class Quadratic(nn.Module):
    """``L(w) = 1/2 w'Hw + g'w``."""

    def __init__(self, h, g=None, w=None):
        super().__init__()
        self.register_buffer("h", h)
        self.register_buffer("g", h.new_zeros(len(h)) if g is None else g)
        self.w = nn.Parameter(h.new_zeros(len(h)) if w is None else w.clone())

    def forward(self, _):
        return 0.5 * self.w @ self.h @ self.w + self.g @ self.w


def quadratic(h, g=None, w=None):
    return Objective(Quadratic(h, g, w), lambda out, _: out, (torch.zeros(1, 1), torch.zeros(1)))


def symmetric(values, seed=0):
    """A matrix with the given eigenvalues, turned at random."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=seeded(seed)))
    h = q @ values.diag() @ q.T
    return (h + h.T) / 2


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


@dataclass
class Case:
    """A network, a loss and data."""

    model: nn.Module
    loss: Any
    x: torch.Tensor
    y: torch.Tensor

    def objective(self, batch_size=4, **options):
        return Objective(self.model, self.loss, (self.x, self.y), batch_size=batch_size, **options)

    def names(self):
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters() if p.requires_grad])

    def at(self, w):
        """The loss of all examples in one go as a function of one flat vector, without the code under test."""
        named, parts, start = dict(self.model.named_parameters()), {}, 0
        for name in self.names():
            parts[name] = w[start : start + named[name].numel()].view_as(named[name])
            start += named[name].numel()
        return self.loss(functional_call(self.model, parts, self.x), self.y)

    def gradient(self):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.grad(self.at)(self.weights())

    def hessian(self, adaptive=False):
        w = self.weights()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
            h = torch.func.jacrev(torch.func.jacrev(self.at))(w)
        return w.abs()[:, None] * h * w.abs() if adaptive else h

    def changed(self, **what):
        return replace(self, **what)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.never = nn.Parameter(torch.ones(3))
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x):
        return self.inner(x)


class LinearInBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1, bias=False))
        self.bias = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.inner(x).squeeze(-1) + self.bias.sum()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 6), nn.Linear(2, 2)

    def forward(self, x):
        q, k, v = self.qkv(x.view(-1, 1, 3, 2)).chunk(3, -1)
        return self.head(scaled_dot_product_attention(q, k, v, is_causal=True).mean(dim=(1, 2)))


class Classes(nn.Module):
    """Something with logits, from named inputs, as Hugging Face returns it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids):
        return type("Output", (), {"logits": self.inner(input_ids)})()


def _made(model, x, y, loss=cross_entropy):
    return Case(model.double().eval(), loss, x, y)


def case(name):
    """One of the networks, always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        classes = torch.arange(10) * 7 % 5 % 2
        if name == "mlp":
            layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
            return _made(layers, normal(10, 3), torch.arange(10) * 7 % 5 % 3)
        if name == "conv":
            layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
            return _made(layers, normal(10, 1, 4, 4), classes)
        if name == "relu":
            layers = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
            return _made(layers, normal(10, 3), torch.arange(10) * 7 % 5 % 3)
        if name == "unused":
            return _made(Unused(), normal(10, 3), classes)
        if name == "linear in a bias":
            return _made(LinearInBias(), normal(10, 3), torch.zeros(10), lambda out, _: out.mean())
        if name == "attention":
            return _made(Attention(), normal(10, 6), classes)
    raise KeyError(name)


NETWORKS = ["mlp", "conv", "unused", "linear in a bias", "attention"]


def rescaled(network, a):
    """The same function: one ReLU layer is larger, and the next one smaller."""
    with torch.no_grad():
        network.model[0].weight.mul_(a)
        network.model[0].bias.mul_(a)
        network.model[2].weight.div_(a)
    return network


def exploding(outputs, targets):
    """A loss that overflows a little way off, where the target is positive."""
    return torch.where(targets > 0, outputs.square().mul(1e3).exp(), outputs.square()).mean()


class Examples(Dataset):
    """A map-style dataset of a pair of tensors."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def neighbour(model):
    """A copy with other weights and running statistics."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1)
    return other


# every measure, in every way of its own that takes another path through the code
MEASURES = {
    "worst case": partial(worst_case, rho=0.1, iterations=3, restarts=2),
    "worst case, adaptive, average": partial(worst_case, rho=0.1, adaptive=True, iterations=3, momentum="average"),
    "worst case, l-infinity": partial(worst_case, rho=0.1, norm="linf", iterations=3),
    "worst case, l-infinity, adaptive": partial(worst_case, rho=0.1, norm="linf", adaptive=True, iterations=3),
    "average case": partial(average_case, rho=0.1, pairs=2),
    "average case, uniform, adaptive": partial(average_case, rho=0.1, distribution="uniform", adaptive=True, pairs=2),
    "gradient norm": gradient_norm,
    "surrogate gap": partial(surrogate_gap, rho=0.1),
    "spectrum": partial(spectrum, steps=3, runs=2),
    "spectrum, adaptive, finite differences": partial(spectrum, steps=3, adaptive=True, method="finite_difference"),
    "trace": partial(trace, products=3),
    "trace, hutch++, adaptive": partial(trace, products=6, estimator="hutch++", adaptive=True),
    "slice 1d": partial(slice_1d, points=3),
    "slice 2d": partial(slice_2d, points=2),
    "line": lambda objective: line(objective, neighbour(objective.model), points=3),
}


def bits(tensor):
    """What is stored, so that -0.0 is not 0.0 and NaN is itself."""
    return tensor.detach().clone().reshape(-1).view(torch.uint8).tolist()


def everything(model):
    """All that a measure must leave as it was."""
    kind, keys, *rest = np.random.get_state()
    return {
        "weights": [(name, id(p), p.data_ptr(), bits(p), p.requires_grad) for name, p in model.named_parameters()],
        "gradients": [(id(p.grad), p.grad is not None and bits(p.grad)) for p in model.parameters()],
        "buffers": [(name, b.data_ptr(), bits(b)) for name, b in model.named_buffers()],
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), rest),
    }
