"""What loops do besides passes and steps, on two processes and in the same loop on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain import data, network
from programs_ddp import METHODS
from programs_tensor import cut
from together import distance, own, shard
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe

HOSTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp": shard,
    "tensor": cut,
    "compiled": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),  # type: ignore[dict-item]
}
PARTS = 2


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def plain(model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    opt.step(closure)


def clip(model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> None:
    opt.zero_grad()
    loss_of(model, batch).backward()
    with opt.ascended():
        loss_of(model, batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    opt.base.step()


def autocast(model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        return loss

    opt.step(closure)


def accumulation(model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> None:
    def backward(part: tuple[Tensor, Tensor]) -> Tensor:
        loss = loss_of(model, part) / PARTS
        loss.backward()
        return loss

    parts = list(zip(*(x.chunk(PARTS) for x in batch), strict=True))
    steppe.accumulated_step(opt, parts, backward, model=model)


LOOPS = {"plain": plain, "clip": clip, "autocast": autocast, "accumulation": accumulation}


def against_one(host: str, loop: str, name: str) -> dict[str, float]:
    """How far two processes end from one, and one from where it began.

    Under autocast both processes see the same examples: other sums would be rounded in another way.
    """
    dtype = torch.float32 if loop == "autocast" else torch.float64
    alone, model = network(dtype), HOSTS[host](network(dtype))
    opts = [METHODS[name].build(net.parameters()) for net in (alone, model)]
    for batch in data(4, dtype):
        LOOPS[loop](alone, opts[0], batch)
        LOOPS[loop](model, opts[1], batch if loop == "autocast" or host == "tensor" else own(batch))
    return {
        "gap": distance(alone.parameters(), model.parameters()),
        "moved": distance(alone.parameters(), network(dtype).parameters()),
    }
