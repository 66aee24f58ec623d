"""Steps with DDP, each compared with one process where there is something to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from plain import RHO, accumulated_gradients, data, network
from together import Collectives, distance, message_of, own, same_everywhere
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import cases
import steppe
from steppe.ascents import L2
from steppe.batches import fraction_of, multiply
from steppe.triggers import Every, LargeGradient, Randomly, Trigger

METHODS = {case.name: case for case in cases.CASES}
GRADIENT = sum(p.numel() for p in network().parameters())
PARTS = 2


def base(params: Any) -> torch.optim.Optimizer:
    return cases.BASES[0].make(params)


def train(opt: Any, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        opt.step(closure)


def whole_batch(name: str, dtype: torch.dtype) -> float:
    """``opt.step(closure)`` on both ranks against one process that has the whole batch."""
    case, batches = METHODS[name], data(6, dtype)
    alone, model = network(dtype), network(dtype)
    train(case.build(alone.parameters()), alone, batches)
    train(case.build(model.parameters()), DistributedDataParallel(model), [own(batch) for batch in batches])
    return distance(alone.parameters(), model.parameters())


def growing_batches(per: str) -> dict[str, Any]:
    """Batches of a sampler that deals out fewer and larger ones as time goes on; the last ones are not full."""
    x, y = (torch.cat(parts)[:44] for parts in zip(*data(3), strict=True))
    models, seen = [], []
    for host, options in ((nn.Sequential, {"num_replicas": 1, "rank": 0}), (DistributedDataParallel, {})):
        models.append(model := network())
        opt = METHODS["sam"].build(model.parameters())
        sampler = steppe.ScheduledBatchSampler(x, multiply(4, 2, 1 if per == "epoch" else 5), per=per, **options)
        dealt, model = [], host(model)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for batch in sampler:
                train(opt, model, [(x[batch], y[batch])])
                dealt.append((epoch, len(sampler), sampler.batch_size))
        seen.append(dealt)
    return {
        "own": (sampler.rank, sampler.num_replicas),
        "seen": seen,
        "gap": distance(*(model.parameters() for model in models)),
    }


def micro_batches(batch: Any) -> list[list[Any]]:
    """Split a batch by rank and then into parts."""
    x, y = batch
    size = distributed.get_world_size()
    return [
        list(zip(a.chunk(PARTS), b.chunk(PARTS), strict=True))
        for a, b in zip(x.chunk(size), y.chunk(size), strict=True)
    ]


def accumulated(
    name: str, climb: str, replicas: str, view: bool, groups: bool = False, fraction: float | None = None
) -> dict[str, Any]:
    """``accumulated_step`` against the loop, and how often all of the gradient was exchanged in one step."""
    alone, model = network(), network()

    def base_of(net: nn.Sequential) -> torch.optim.Optimizer:
        # With groups, the smallest tensor does not climb.
        return (
            base([{"params": net[:4].parameters()}, {"params": net[4:].parameters(), "rho": 0.0}])
            if groups
            else base(net.parameters())
        )

    plain = base_of(alone)
    climbing, others = (list(net.parameters()) for net in ((alone[:4], alone[4:]) if groups else (alone, nn.Module())))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=view)
    opt = METHODS[name].make(base_of(model), **METHODS[name].kwargs)

    def backward(part: Any) -> Tensor:
        loss = (wrapped(part[0]) - part[1]).square().mean() / PARTS
        loss.backward()
        return loss

    def loss_of(part: Any, when: str) -> Tensor:
        part = fraction_of(part, fraction) if fraction and when == "clean" else part
        return (alone(part[0]) - part[1]).square().mean() / PARTS

    options = {"ascent": lambda part: backward(fraction_of(part, fraction))} if fraction else {}
    losses, gaps = [], []
    for batch in data(4):
        parts = micro_batches(batch)
        expected = sum(loss_of(part, "clean") for part in parts[distributed.get_rank()])
        accumulated_gradients(name, loss_of, parts, climbing, others, climb=climb, replicas=replicas)
        plain.step()
        with Collectives() as collectives:
            loss = steppe.accumulated_step(
                opt, parts[distributed.get_rank()], backward, climb=climb, replicas=replicas, model=wrapped, **options
            )
        losses.append(abs((loss - expected).item()))
        gaps.append(distance(alone.parameters(), model.parameters()))
    return {
        "gap": max(gaps),
        "loss": max(losses),
        "exchanges": collectives.all_reduces(at_least=GRADIENT),
        "others": collectives.all_reduces(at_most=GRADIENT - 1),
    }


# Gradients that are not finite


class Poison:
    """Say whether a pass goes wrong: the clean ones of the second step on rank 1."""

    def __init__(self, opt: steppe.SharpnessAware) -> None:
        self.sharp = False
        opt.around_sharp_pass(self._sharp)

    @contextmanager
    def _sharp(self) -> Iterator[None]:
        self.sharp = True
        try:
            yield
        finally:
            self.sharp = False

    def due(self, step: int) -> bool:
        return step == 1 and not self.sharp and distributed.get_rank() == 1


def two_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    """Parameter groups of which the one with the smallest tensor does not climb."""
    return [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "rho": 0.0}]


def not_finite(name: str, climb: str, replicas: str) -> dict[str, list[bool]]:
    """The clean gradient of one rank is infinite: what all ranks see before the base steps."""
    model = network(torch.float32)
    wrapped = DistributedDataParallel(model)
    opt = METHODS[name].make(base(two_groups(model)), **METHODS[name].kwargs)
    poison = Poison(opt)
    before: list[Tensor] = []
    found: dict[str, list[bool]] = {"finite": [], "back": [], "same gradients": [], "same weights": []}

    def look(*_: object) -> None:
        grads = [p.grad for p in model.parameters()]
        found["finite"].append(all(bool(g.isfinite().all()) for g in grads))
        found["back"].append(all(map(torch.equal, model.parameters(), before)))
        found["same gradients"].append(same_everywhere(grads))

    opt.base.register_step_pre_hook(look)
    for step, batch in enumerate(data(3, torch.float32)):
        before = [p.detach().clone() for p in model.parameters()]

        def backward(part: Any, step: int = step) -> Tensor:
            loss = (wrapped(part[0]) - part[1]).square().mean() / PARTS * (math.inf if poison.due(step) else 1.0)
            loss.backward()
            return loss

        steppe.accumulated_step(
            opt, micro_batches(batch)[distributed.get_rank()], backward, climb=climb, replicas=replicas, model=wrapped
        )
        found["same weights"].append(same_everywhere(model.parameters()))
        if step == 1:  # they are not finite now
            model.load_state_dict(network(torch.float32).state_dict())
            opt.base.state.clear()
    return found


def scaled(name: str, door: str, replicas: str) -> dict[str, Any]:
    """The same with a GradScaler."""
    model = network(torch.float32)
    wrapped = DistributedDataParallel(model)
    opt = METHODS[name].make(base(two_groups(model)), **METHODS[name].kwargs)
    poison, scaler = Poison(opt), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    found: dict[str, Any] = {"moved": [], "same weights": [], "scale": []}
    for step, batch in enumerate(data(3, torch.float32)):
        before = [p.detach().clone() for p in model.parameters()]
        parts = micro_batches(batch)[distributed.get_rank()]

        def backward(part: Any, step: int = step) -> Tensor:
            loss = (wrapped(part[0]) - part[1]).square().mean() / PARTS * (math.inf if poison.due(step) else 1.0)
            scaler.scale(loss).backward()
            return loss

        if door == "ascended":
            opt.zero_grad()
            x, y = (torch.cat(z) for z in zip(*parts, strict=True))
            with wrapped.no_sync() if replicas == "own" else nullcontext():
                backward((x, y))
            with opt.ascended(scaler.get_scale()):
                backward((x, y))
            scaler.step(opt.base)
        else:
            steppe.accumulated_step(
                opt,
                parts,
                backward,
                climb=door,
                replicas=replicas,
                model=wrapped,
                scale=scaler.get_scale(),
                step=lambda: scaler.step(opt.base),
            )
        scaler.update()
        found["moved"].append(not any(map(torch.equal, model.parameters(), before)))
        found["same weights"].append(same_everywhere(model.parameters()))
        found["scale"].append(scaler.get_scale())
    return found


# Parameters without a gradient


class Branches(nn.Module):
    """A sum of linear maps, of those that are named; without any, nothing of the model is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.ModuleDict({name: nn.Linear(5, 3) for name in "abc"}).double()

    def forward(self, x: Tensor, names: str) -> Tensor:
        nothing = torch.zeros(3, dtype=x.dtype, requires_grad=True) + 0
        return sum((self.maps[name](x) for name in names), nothing)


def branches(name: str, climb: str, replicas: str, plan: list[list[tuple[str, str]]]) -> dict[str, Any]:
    """``plan[rank][micro-batch]`` says which branches the clean and the sharp pass use."""
    alone, model = Branches(), Branches()
    plain = base(alone.parameters())
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    opt = METHODS[name].make(base(model.parameters()), **METHODS[name].kwargs)
    poison = Poison(opt)

    def loss_of(part: Any, when: str) -> Tensor:
        x, y, (clean, sharp) = part
        return (alone(x, clean if when == "clean" else sharp) - y).square().mean() / PARTS

    def backward(part: Any) -> Tensor:
        x, y, (clean, sharp) = part
        loss = (wrapped(x, sharp if poison.sharp else clean) - y).square().mean() / PARTS
        loss.backward()
        return loss

    gaps, missing = [], []
    for batch in data(3):
        parts = [
            [(*part, use) for part, use in zip(own, uses, strict=True)]
            for own, uses in zip(micro_batches(batch), plan, strict=True)
        ]
        accumulated_gradients(name, loss_of, parts, list(alone.parameters()), climb=climb, replicas=replicas)
        plain.step()
        steppe.accumulated_step(
            opt, parts[distributed.get_rank()], backward, climb=climb, replicas=replicas, model=wrapped
        )
        gaps.append(distance(alone.parameters(), model.parameters()))
        missing.append(
            [
                n
                for (n, p), q in zip(model.named_parameters(), alone.parameters(), strict=True)
                if (p.grad is None) != (q.grad is None)
            ]
        )
    return {"gap": max(gaps), "same": same_everywhere(model.parameters()), "missing": missing}


def nothing_anywhere(replicas: str) -> str:
    """``backward`` forgets to call ``backward()``."""
    model = DistributedDataParallel(network())
    opt = METHODS["gsam"].build(model.parameters())
    return message_of(
        RuntimeError,
        lambda: steppe.accumulated_step(opt, [0, 1], lambda _: torch.zeros(()), model=model, replicas=replicas),
    )


def fails(climb: str, replicas: str, at: int) -> dict[str, Any]:
    """``backward`` raises on both ranks in its call number ``at``, before it exchanges anything; then all goes on."""
    alone, model = network(), network()
    opts = [METHODS["sam"].build(net.parameters()) for net in (alone, model)]
    wrapped = DistributedDataParallel(model)
    calls = 0

    def backward(part: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ZeroDivisionError(f"call {at}")
        loss = (wrapped(part[0]) - part[1]).square().mean() / PARTS
        loss.backward()
        return loss

    first, second = data(2)
    before = [p.detach().clone() for p in model.parameters()]
    kwargs: Any = {"climb": climb, "replicas": replicas, "model": wrapped}
    rank = distributed.get_rank()
    message = message_of(
        ZeroDivisionError, lambda: steppe.accumulated_step(opts[1], micro_batches(first)[rank], backward, **kwargs)
    )
    back = all(map(torch.equal, model.parameters(), before))
    calls = -100
    steppe.accumulated_step(opts[1], micro_batches(second)[rank], backward, model=wrapped)
    train(opts[0], alone, [second])
    return {"message": message, "back": back, "gap": distance(alone.parameters(), model.parameters())}


def every_other(replicas: str, find_unused: bool) -> tuple[list[int], float]:
    """Climbs at every other step, and a model of which some steps use less."""
    alone, model = Branches(), Branches()
    plain = base(alone.parameters())
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    opt = steppe.SharpnessAware(base(model.parameters()), ascent=L2(), trigger=Every(2), rho=RHO["sam"])
    exchanges = []
    for i, batch in enumerate(data(4)):
        names = "ab" if find_unused and i % 2 else "abc"
        parts = micro_batches(batch)

        def backward(part: Any, names: str = names) -> Tensor:
            loss = (wrapped(part[0], names) - part[1]).square().mean() / PARTS
            loss.backward()
            return loss

        def loss_of(part: Any, _: str, names: str = names) -> Tensor:
            return (alone(part[0], names) - part[1]).square().mean() / PARTS

        if i % 2:
            plain.zero_grad()
            size = distributed.get_world_size()
            torch.stack([loss_of(part, "") / size for own in parts for part in own]).sum().backward()
        else:
            accumulated_gradients("sam", loss_of, parts, list(alone.parameters()), climb="replay", replicas=replicas)
        plain.step()
        with Collectives() as collectives:
            steppe.accumulated_step(opt, parts[distributed.get_rank()], backward, replicas=replicas, model=wrapped)
        exchanges.append(collectives.all_reduces(at_least=30))  # branches in use have 36 entries or more
    return exchanges, distance(alone.parameters(), model.parameters())


# What needs less than two whole passes


def joined(batch: Any) -> list[tuple[Tensor, ...]]:
    """Micro-batches of one process, each of what the ranks have in theirs."""
    return [tuple(map(torch.cat, zip(*same, strict=True))) for same in zip(*micro_batches(batch), strict=True)]


def accumulated_case(name: str, climb: str, replicas: str, host: Any = DistributedDataParallel) -> dict[str, Any]:
    """``accumulated_step`` on both ranks against one process, and how often all was exchanged in each step."""
    case, alone, model = METHODS[name], network(), network()
    wrapped = host(model)
    opts = [case.build(alone.parameters()), case.build(wrapped.parameters())]

    def backward_of(net: nn.Module) -> Any:
        def backward(part: Any) -> Tensor:
            loss = (net(part[0]) - part[1]).square().mean() / PARTS
            loss.backward()
            return loss

        return backward

    exchanges = []
    for batch in data(5):
        steppe.accumulated_step(opts[0], joined(batch), backward_of(alone), climb=climb)
        own_parts = micro_batches(batch)[distributed.get_rank()]
        with Collectives() as seen:
            steppe.accumulated_step(
                opts[1], own_parts, backward_of(wrapped), climb=climb, replicas=replicas, model=wrapped
            )
        exchanges.append(seen.all_reduces(at_least=GRADIENT))
    return {"gap": distance(alone.parameters(), wrapped.parameters()), "exchanges": exchanges}


TRIGGERS: dict[str, Callable[[], Trigger]] = {
    "randomly": lambda: Randomly(0.5, seed=4),
    "large gradient": lambda: LargeGradient(8, decay=0.5),
    "both": lambda: LargeGradient(8, decay=0.5) & Every(2, stretched=True),
}


def triggered(name: str) -> dict[str, Any]:
    """Calls of the closure, step by step, and how far two processes end from one."""
    alone, model = network(), network()
    wrapped = DistributedDataParallel(model)
    opts = [steppe.SAM(base(net.parameters()), rho=0.1, trigger=TRIGGERS[name]()) for net in (alone, model)]
    calls = []
    for x, y in data(8):
        train(opts[0], alone, [(x, y)])
        a, b = own((x, y))
        calls.append(0)

        def closure(a: Tensor = a, b: Tensor = b) -> Tensor:
            opts[1].zero_grad()
            calls[-1] += 1
            loss = (wrapped(a) - b).square().mean()
            loss.backward()
            return loss

        opts[1].step(closure)
    return {"calls": calls, "gap": distance(alone.parameters(), model.parameters())}


def part_of_the_batch(name: str, host: Any = DistributedDataParallel) -> dict[str, float]:
    """``opt.step(closure, ascent=...)`` with half of what each rank has, against half of the batch on one process."""
    case, alone, model = METHODS[name], network(), network()
    wrapped = host(model)
    opts = [case.build(alone.parameters()), case.build(wrapped.parameters())]

    def closure_of(opt: Any, net: nn.Module, batch: Any) -> Any:
        def closure() -> Tensor:
            opt.zero_grad()
            loss = (net(batch[0]) - batch[1]).square().mean()
            loss.backward()
            return loss

        return closure

    for batch in data(5):
        halves = [parts[0] for parts in micro_batches(batch)]  # the first of the two parts of each rank
        part = tuple(map(torch.cat, zip(*halves, strict=True)))
        opts[0].step(closure_of(opts[0], alone, batch), ascent=closure_of(opts[0], alone, part))
        mine, half = own(batch), fraction_of(own(batch), 1 / PARTS)
        opts[1].step(closure_of(opts[1], wrapped, mine), ascent=closure_of(opts[1], wrapped, half))
    whole_climb = network()
    train(case.build(whole_climb.parameters()), whole_climb, data(5))
    return {
        "gap": distance(alone.parameters(), wrapped.parameters()),
        "to the whole": distance(alone.parameters(), whole_climb.parameters()),
    }


def followed(door: str, host: Any = DistributedDataParallel, **options: Any) -> dict[str, Any]:
    """The radius that follows the angle of gradients: on this rank, on one process, and how far the weights end."""
    alone, model = network(), network()
    wrapped = host(model)
    rho = steppe.Angle(cosine=0.98, start=0.1, gain=1.0)
    opts = [steppe.SAM(base(net.parameters()), rho=rho) for net in (alone, wrapped)]

    def backward_of(net: nn.Module, parts: int) -> Any:
        def backward(part: Any) -> Tensor:
            loss = (net(part[0]) - part[1]).square().mean() / parts
            loss.backward()
            return loss

        return backward

    radii = []
    for batch in data(5):
        if door == "step":
            train(opts[0], alone, [batch])
            train(opts[1], wrapped, [own(batch)])
        else:
            mine = micro_batches(batch)[distributed.get_rank()]
            steppe.accumulated_step(opts[0], joined(batch), backward_of(alone, PARTS), climb=door)
            steppe.accumulated_step(opts[1], mine, backward_of(wrapped, PARTS), climb=door, model=wrapped, **options)
        radii.append([opt.param_groups[0]["rho"] for opt in opts])
    return {"radii": radii, "gap": distance(alone.parameters(), wrapped.parameters())}


def refused(climb: str) -> str:
    """What is said of own climbs whose radius follows the angle of gradients."""
    return message_of(ValueError, lambda: followed(climb, replicas="own"))
