"""A small mini-batch problem, once as a module and once as a function of one flat vector."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext

import torch
from torch import nn
from torch.func import functional_call


class Problem:
    """Cross entropy of a tanh network on random data, in mini-batches; every draw is the same."""

    def __init__(self, dtype=torch.float64, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.x = torch.randn(128, 6, dtype=dtype)
        self.y = torch.randint(3, (128,))
        self.order = torch.Generator().manual_seed(seed)

    def batches(self, n):
        return [torch.randint(128, (16,), generator=self.order) for _ in range(n)]

    def loss(self, batch, model=None):
        return nn.functional.cross_entropy((model or self.model)(self.x[batch]), self.y[batch])

    def closure(self, opt, batch):
        def evaluate():
            opt.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        return evaluate

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def gradient(self, w, batch):
        """The mini-batch gradient at the flat vector ``w``."""
        w = w.detach().requires_grad_()
        named = dict(self.model.named_parameters())
        pieces = w.split([p.numel() for p in named.values()])
        params = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        outputs = functional_call(self.model, params, self.x[batch])
        return torch.autograd.grad(nn.functional.cross_entropy(outputs, self.y[batch]), w)[0]


def quadratic(w):
    """The loss of the papers' test vectors."""
    return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)


def through_ascended(opt, backward, scale=1.0, around=nullcontext):
    """The passes of a step as hosts run them, and what the first of them returned; says whether it climbs."""
    alone = not opt.ascent.needs_gradient
    if not alone:
        loss = backward()
    with opt.ascended(scale) as climbs, around():
        if alone:
            loss = backward()
        elif climbs:
            backward()
    return loss, climbs


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same_bits(xs, ys):
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def everywhere(monkeypatch, name, value):
    """Give something that several modules of the library have imported another value in all of them."""
    for where, module in list(sys.modules.items()):
        if where.startswith("steppe") and hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def state_of(opt):
    """Return the state, and in it what LookSAM remembers in units of its length, whatever the scale of the loss was."""
    found = copy.deepcopy(opt.state_dict())
    length = found["state"].get("shared", {}).pop("length", None)
    for memory in found["state"].values():
        if "orthogonal" in memory:
            memory["orthogonal"] /= length
    return found
