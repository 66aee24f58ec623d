"""Steps with FSDP2, each compared with one process."""

from __future__ import annotations

import math
from typing import Any

import programs_ddp
import torch
from plain import accumulated_gradients, data, network
from programs_ddp import METHODS, PARTS, Poison, base, micro_batches, train
from together import Collectives, distance, mesh, message_of, own, shard
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

import cases
import steppe
from steppe.integrations.distributed import resharded


def whole_batch(
    name: str, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2,), foreach: bool | None = None
) -> dict[str, Any]:
    """``opt.step(closure)`` on shards against one process that has the whole batch."""
    case, batches = METHODS[name], data(6, dtype)
    alone, model = network(dtype), shard(network(dtype), mesh(shape))
    train(case.build(alone.parameters()), alone, batches)
    opt = case.build(model.parameters(), foreach=foreach)
    train(opt, model, [own(batch) for batch in batches])
    memories = [
        value
        for o in {opt, getattr(opt, "base", opt)}
        for memory in o.state.values()
        for value in memory.values()
        if isinstance(value, Tensor) and value.dim() > 0
    ]
    return {
        "gap": distance(alone.parameters(), model.parameters()),
        "memories": len(memories),
        "spread": all(isinstance(value, DTensor) for value in memories),
        "empty": sum(p.to_local().numel() == 0 for p in model.parameters()),
    }


def accumulated(name: str, climb: str) -> dict[str, Any]:
    """``accumulated_step`` against the loop."""
    alone, model = network(), shard(network())
    plain = base(alone.parameters())
    opt = METHODS[name].make(base(model.parameters()), **METHODS[name].kwargs)

    def backward(part: Any) -> Tensor:
        loss = (model(part[0]) - part[1]).square().mean() / PARTS
        loss.backward()
        return loss

    gaps = []
    for batch in data(4):
        parts = micro_batches(batch)
        accumulated_gradients(
            name,
            lambda part, _: (alone(part[0]) - part[1]).square().mean() / PARTS,
            parts,
            list(alone.parameters()),
            climb=climb,
            replicas="global",
        )
        plain.step()
        with Collectives() as collectives:
            steppe.accumulated_step(opt, parts[distributed.get_rank()], backward, climb=climb, model=model)
        gaps.append(distance(alone.parameters(), model.parameters()))
    return {"gap": max(gaps), "exchanges": sum("reduce_scatter" in name for name, _ in collectives.seen)}


def accumulated_case(name: str, climb: str) -> dict[str, Any]:
    return programs_ddp.accumulated_case(name, climb, "global", shard)


def part_of_the_batch(name: str) -> dict[str, float]:
    return programs_ddp.part_of_the_batch(name, shard)


def followed(door: str) -> dict[str, Any]:
    return programs_ddp.followed(door, shard)


def columns(name: str) -> float:
    """Shards along the second dimension."""
    case, alone, model = METHODS[name], nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    model.load_state_dict(alone.state_dict())
    for p in (*alone.parameters(), *model.parameters()):
        distributed.broadcast(p.data, 0)
    fully_shard(model, mesh=mesh(), shard_placement_fn=lambda p: Shard(p.dim() - 1))
    batches = [(torch.cat([x, x[:, :1]], 1), torch.cat([y, y[:, :1]], 1)) for x, y in data(4)]
    train(case.build(alone.parameters()), alone, batches)
    train(case.build(model.parameters()), model, [own(batch) for batch in batches])
    return distance(alone.parameters(), model.parameters())


def a_part_is_cut(name: str, which: str, foreach: bool | None) -> float:
    """Cut and plain weights in one optimizer, of which one kind stays."""
    case = METHODS[name]
    nets = [nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double() for _ in range(2)]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
        for p in net.parameters():
            distributed.broadcast(p.data, 0)
    fully_shard(nets[1][0], mesh=mesh())
    for net in nets:
        stays = (net[0], net[2]) if which == "cut" else (net[2], net[0])
        groups = [{"params": [*layer.parameters()], "rho": rho} for layer, rho in zip(stays, (0.0, 0.3), strict=True)]
        opt = case.make(torch.optim.SGD(groups, lr=0.1, foreach=False), **case.kwargs, foreach=foreach)
        train(opt, net, data(4))  # the same on both
    return distance(nets[0].parameters(), nets[1].parameters())


def rho_zero(name: str) -> bool:
    """Whether rho = 0 is the base, bit for bit."""
    case = METHODS[name]
    model, other = shard(network()), shard(network())
    batches = [own(batch) for batch in data(5)]
    train(case.build(model.parameters(), rho=0.0), model, batches)
    if case.wraps:
        plain = cases.BASES[0].make(other.parameters())
    else:
        plain = case.plain(
            other.parameters(), rho=0.0, **{k: v for k, v in case.kwargs.items() if k != "rho"}, lr=case.lr
        )
    train(plain, other, batches)
    return all(
        torch.equal(p.to_local(), q.to_local()) for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


def mixed_precision(name: str) -> tuple[bool, float]:
    """Passes in bfloat16, weights in float32: whether all is finite, and how far from float32."""
    case, batches = METHODS[name], data(8, torch.float32)
    alone = network(torch.float32)
    model = shard(network(torch.float32), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    train(case.build(alone.parameters()), alone, batches)
    train(case.build(model.parameters()), model, [own(batch) for batch in batches])
    gap = distance(alone.parameters(), model.parameters())
    return all(p.dtype == torch.float32 for p in model.parameters()) and math.isfinite(gap), gap


def not_finite(name: str) -> dict[str, Any]:
    """One entry of one shard of what is climbed along is infinite."""
    model = shard(network())
    opt = METHODS[name].build(model.parameters())
    train(opt, model, [own(batch) for batch in data(METHODS[name].every)])
    memories = [
        (memory, key, value.to_local().clone() if isinstance(value, DTensor) else value)
        for memory in opt.state.values()
        for key, value in memory.items()
    ]
    ((x, y),) = data(1)
    opt.zero_grad()
    (model(x) - y).square().mean().backward()
    weight = model[0].weight
    if distributed.get_rank() == 1:
        opt.ascent.vector(weight, opt.base.state[weight]).to_local()[0, 0] = math.inf
    before = [p.to_local().clone() for p in model.parameters()]
    with opt.ascended() as climbs:
        assert climbs
        stayed = all(map(torch.equal, (p.to_local() for p in model.parameters()), before))
        (model(x) - y).square().mean().backward()
    return {
        "stayed": stayed,
        "back": all(map(torch.equal, (p.to_local() for p in model.parameters()), before)),
        "finite": all(bool(p.grad.full_tensor().isfinite().all()) for p in model.parameters()),
        "forgotten": all(
            torch.equal(memory[key].to_local(), value) if isinstance(value, Tensor) else memory[key] == value
            for memory, key, value in memories
        ),
    }


def scaled(name: str, door: str) -> dict[str, Any]:
    """A GradScaler, and one infinite entry in one shard of a clean gradient."""
    model = shard(network(torch.float32))
    opt = METHODS[name].build(model.parameters())
    poison, scaler = Poison(opt), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    found: dict[str, Any] = {"moved": [], "scale": [], "steps": []}
    for step, batch in enumerate(data(3, torch.float32)):
        before = [p.full_tensor().clone() for p in model.parameters()]

        def backward(part: Any, step: int = step) -> Tensor:
            loss = (model(part[0]) - part[1]).square().mean() / PARTS
            scaler.scale(loss).backward()
            if poison.due(step) and model[0].weight.grad is not None:  # it is None until it is exchanged
                model[0].weight.grad.to_local()[0, 0] = math.inf
            return loss

        if door == "ascended":
            opt.zero_grad()
            backward(own(batch))
            with opt.ascended(scaler.get_scale()):
                backward(own(batch))
            scaler.step(opt.base)
        else:
            steppe.accumulated_step(
                opt,
                micro_batches(batch)[distributed.get_rank()],
                backward,
                climb=door,
                model=model,
                scale=scaler.get_scale(),
                step=lambda: scaler.step(opt.base),
            )
        scaler.update()
        found["moved"].append(distance(model.parameters(), before) > 0)
        found["scale"].append(scaler.get_scale())
        found["steps"].append(opt.state["engine"]["step"])
    return found


def all_reduces(name: str, layers: int) -> int:
    """How many all-reduces a step costs on top of FSDP2's own exchanges."""
    torch.manual_seed(0)
    model = shard(nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))).double())
    opt = METHODS[name].build(model.parameters())
    with Collectives() as collectives:
        train(opt, model, [(torch.ones(2, 4).double(), torch.zeros(2, 4).double())])
    return collectives.all_reduces()


def one_group(surprise: str, fresh: bool) -> float:
    """All parameters collected at once, which FSDP2 keeps whole after a forward pass that no backward pass follows."""
    alone, model = network(), fully_shard(network(), mesh=mesh())
    shards = list(model.parameters())
    opts = [METHODS["sam"].build(net.parameters(), rho=0.5) for net in (alone, model)]
    if fresh:
        opts[1].around_sharp_pass(lambda: resharded(model))
    for i, batch in enumerate(data(3)):
        train(opts[0], alone, [batch])
        x, y = own(batch)
        passes = iter(range(2))

        def closure(fails: bool, x: Tensor = x, y: Tensor = y, passes: Any = passes) -> Tensor:
            opts[1].zero_grad()
            loss = (model(x) - y).square().mean()
            if fails and next(passes) == 1:
                raise ZeroDivisionError
            loss.backward()
            if surprise == "looks":
                with torch.no_grad():
                    model(x)
            return loss

        if surprise == "fails" and i == 1:
            message_of(ZeroDivisionError, lambda closure=closure: opts[1].step(lambda: closure(True)))
        opts[1].step(lambda closure=closure: closure(False))
        model.reshard()  # torch, too, would go on with the weights before the step
    return distance(alone.parameters(), shards)


def accumulated_fails() -> float:
    """``accumulated_step`` refreshes by itself."""
    alone, model = network(), fully_shard(network(), mesh=mesh())
    shards = list(model.parameters())
    opts = [METHODS["sam"].build(net.parameters(), rho=0.5) for net in (alone, model)]
    calls = 0

    def backward(part: Any) -> Tensor:
        nonlocal calls
        loss = (model(part[0]) - part[1]).square().mean()
        calls += 1
        if calls == 2:
            raise ZeroDivisionError
        loss.backward()
        return loss

    first, second = data(2)
    message_of(ZeroDivisionError, lambda: steppe.accumulated_step(opts[1], [own(first)], backward, model=model))
    steppe.accumulated_step(opts[1], [own(second)], backward, model=model)
    train(opts[0], alone, [second])
    return distance(alone.parameters(), shards)


def refusals() -> dict[str, str]:
    model = shard(network())
    opt = METHODS["sam"].build(model.parameters())
    masked = METHODS["esam"].build(model.parameters())
    return {
        "masks": message_of(TypeError, lambda: train(masked, model, [own(batch) for batch in data(1)])),
        "own": message_of(ValueError, lambda: steppe.accumulated_step(opt, [0], train, model=model, replicas="own")),
    }


def foreach() -> dict[str, Any]:
    """foreach=True where there may be no rule for it."""
    model = shard(network())
    opt = METHODS["sam"].build(model.parameters(), foreach=True)
    before = [p.full_tensor().clone() for p in model.parameters()]
    try:
        train(opt, model, [own(batch) for batch in data(1)])
    except Exception as error:
        return {"error": type(error).__name__, "moved": distance(model.parameters(), before)}
    alone = network()
    train(METHODS["sam"].build(alone.parameters()), alone, data(1))
    return {"error": None, "gap": distance(alone.parameters(), model.parameters())}


def fsdp1(original: bool, wrapped_first: bool) -> dict[str, Any]:
    """What is said of FullyShardedDataParallel, when the optimizer is made or when it first climbs."""
    model, build = network(), METHODS["sam"].build
    early = None if wrapped_first else build(model.parameters())
    flat = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=original)
    before = [p.detach().clone() for p in flat.parameters()]
    message = message_of(
        ValueError, lambda: train(build(flat.parameters()) if early is None else early, flat, [own(data(1)[0])])
    )
    return {"message": message, "moved": distance(flat.parameters(), before)}
