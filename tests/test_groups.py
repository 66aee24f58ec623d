"""Parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from problems import weights
from steppe import MSAM, SAM, norm_layers


class OwnRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.scale * x


class Block(nn.Module):
    """Norms of several kinds, one used twice, one without parameters, one frozen, and a weight shared with a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.batch, self.own = nn.Linear(4, 4), nn.BatchNorm1d(4), OwnRMSNorm()
        self.again, self.plain = self.batch, nn.LayerNorm(4, elementwise_affine=False)
        self.frozen, self.last = nn.LayerNorm(4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.last.bias = self.own.scale

    def forward(self, x):
        return self.last(self.frozen(self.plain(self.again(self.own(self.batch(self.first(x)))))))


def test_every_parameter_is_in_one_of_two_groups():
    model = Block()
    norms, others = norm_layers(model, rho=0.5)
    expected = [*model.batch.parameters(), model.own.scale, *model.frozen.parameters()]
    assert norms.keys() == others.keys() == {"params", "rho"}
    assert (norms["rho"], others["rho"]) == (0.5, 0.0)
    assert [id(p) for p in norms["params"]] == [id(p) for p in expected]
    assert [id(p) for p in others["params"]] == [id(p) for p in (*model.first.parameters(), model.last.weight)]


@pytest.mark.parametrize("make", [SAM, MSAM])
def test_norm_layers_climb_alone_by_their_radius(make):
    model = Block()
    opt = make(torch.optim.SGD(norm_layers(model, rho=0.5), lr=0.1, momentum=0.9))
    x, seen = torch.randn(8, 4), []

    def closure():
        opt.zero_grad()
        seen.append(weights(model))
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    before = weights(model)
    opt.step(closure)
    moved = [after - w for after, w in zip(seen[-1], before, strict=True)]
    names = [name for (name, _), d in zip(model.named_parameters(), moved, strict=True) if d.any()]
    assert names == ["batch.weight", "batch.bias", "own.scale"]
    assert torch.cat([d.flatten() for d in moved]).norm().item() == pytest.approx(0.5, rel=1e-5)
    assert not torch.equal(model.last.weight, before[-1])  # the others descend
