"""Steps with tensor parallelism, each compared with one process."""

from __future__ import annotations

from typing import Any

import torch
from plain import data
from programs_ddp import METHODS
from together import distance, mesh
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module


class Block(nn.Module):
    """A norm, two layers that are cut, and a tensor that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(5), nn.Linear(5, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.down(torch.tanh(self.up(self.norm(x))))


PLANS: dict[str, dict[str, Any]] = {
    "tensor": {"up": ColwiseParallel(), "down": RowwiseParallel()},
    "sequence": {"norm": SequenceParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()},
}


def cut(model: nn.Sequential) -> nn.Module:
    """Cut all layers of `plain.network`."""
    up, down = ColwiseParallel(output_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())
    return parallelize_module(model, mesh(), {"0": up, "2": down, "4": up})


def whole_batch(name: str, plan: str) -> dict[str, Any]:
    """Both ranks see the whole batch. The gradients of the norm are sums that are not added up with "sequence"."""
    alone, model = Block(), parallelize_module(Block(), mesh(), PLANS[plan])
    opts = [METHODS[name].build(net.parameters()) for net in (alone, model)]
    for x, y in data(5):
        x, y = x.view(4, 4, 5), y.view(4, 4, 3)
        spread = distribute_tensor(x, mesh(), [Shard(1)]) if plan == "sequence" else x
        for opt, net, inputs in ((opts[0], alone, x), (opts[1], model, spread)):

            def closure(opt: Any = opt, net: nn.Module = net, inputs: Tensor = inputs, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = (net(inputs) - y).square().mean()
                loss.backward()
                return loss

            opt.step(closure)
    grads = [p.grad for p in model.parameters()]
    return {
        "gap": distance(alone.parameters(), model.parameters()),
        "placements": sorted({str(g.placements[0]) if hasattr(g, "placements") else "plain" for g in grads}),
    }
