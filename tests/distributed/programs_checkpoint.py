"""Checkpoints: saved by some processes, loaded by others, and resumed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from plain import data, network
from programs_ddp import METHODS, train
from programs_hosts import HOSTS
from together import distance, own, whole
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.utils._pytree import tree_leaves

import cases
from steppe import SAM, Angle
from steppe.integrations.distributed import SharpnessAwareState


def build(kind: str, name: str, model: nn.Module | None = None) -> tuple[nn.Module, Any]:
    """Make a model in one process or on all, and an optimizer."""
    model = network() if model is None else model
    model = {"one": lambda m: m, **HOSTS}[kind](model)
    if name == "sam-adamw":
        return model, SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.1)
    if name == "sam-angle":
        return model, SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=Angle(start=0.1))
    if name == "together":
        matrices, rest = ([p for p in model.parameters() if (p.ndim == 2) is is_matrix] for is_matrix in (True, False))
        first = cases._descent("adagrad-norm", matrices, lr=0.5)  # which keeps a number for all of them together
        return model, SAM([first, torch.optim.AdamW(rest, lr=0.01)], rho=0.1)
    if name == "sam-sgd":
        return model, SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0), rho=0.1)
    return model, METHODS[name].build(model.parameters())


def batches_for(kind: str, batches: list[Any]) -> list[Any]:
    return batches if kind in ("one", "tensor") else [own(batch) for batch in batches]


def save(kind: str, model: nn.Module, opt: Any, folder: str) -> None:
    if kind == "one" and distributed.get_rank() > 0:
        return
    state = {"model": get_model_state_dict(model), "optimizer": SharpnessAwareState(model, opt)}
    dcp.save(state, checkpoint_id=folder, no_dist=kind == "one")


def load(kind: str, model: nn.Module, opt: Any, folder: str) -> None:
    state = {"model": get_model_state_dict(model), "optimizer": SharpnessAwareState(model, opt)}
    dcp.load(state, checkpoint_id=folder, no_dist=kind == "one")
    set_model_state_dict(model, state["model"])


def resume(name: str, saver: str, loaders: Iterable[str], folder: str, after: int) -> dict[str, Any]:
    """Save after so many steps, load into others that have gone another way, and let all of them go on."""
    model, opt = build(saver, name)
    batches = batches_for(saver, data(after + 5))
    train(opt, model, batches[:after])
    save(saver, model, opt, folder)
    distributed.barrier()
    train(opt, model, batches[after:])
    found = {}
    for kind in loaders:
        torch.manual_seed(7)
        other, other_opt = build(kind, name)
        train(other_opt, other, batches_for(kind, data(9)[7:]))
        other_opt.param_groups[0]["rho"] = 7.0
        load(kind, other, other_opt, folder)
        count = other_opt.state["engine"].get("step", 0)
        train(other_opt, other, batches_for(kind, data(after + 5)[after:]))
        mine, theirs = list(model.parameters()), list(other.parameters())
        same = all(torch.equal(whole(a), whole(b)) for a, b in zip(mine, theirs, strict=True))
        found[kind] = {"steps": count, "same": same, "gap": distance(mine, theirs)}
        radii = [one.param_groups[0]["rho"] for one in (other_opt, opt)]
        assert radii[0] == radii[1] if kind == saver else abs(radii[0] - radii[1]) < 1e-12
    return found


class Partly(nn.Module):
    """A layer in use, one that never has a gradient, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused, self.frozen = (nn.Linear(5, 3) for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + self.frozen(x)


def traces(name: str, steps: int) -> dict[str, bool]:
    """What asking for the state changes: nothing. Every rank for itself, in one process."""
    model, opt = build("one", name, Partly().double())
    train(opt, model, data(steps))
    opt.zero_grad()
    model.used.weight.grad = torch.ones_like(model.used.weight)
    weights, grads = ([x.clone() for x in xs] for xs in (model.parameters(), [model.used.weight.grad]))
    before = copy.deepcopy([opt.state_dict(), dict(opt.base.state)])
    saved = SharpnessAwareState(model, opt).state_dict()
    after = [opt.state_dict(), dict(opt.base.state)]
    opts = {"base": saved["base"]["state"], "climb": saved["climb"]}
    return {
        "state": torch.equal(flat(before), flat(after)) and str(before) == str(after),
        "weights": all(map(torch.equal, model.parameters(), weights)),
        "grads": torch.equal(model.used.weight.grad, grads[0]) and model.used.bias.grad is None,
        "names": all(
            set(x) <= {f"{a}.{b}" for a in ("used", "unused") for b in ("weight", "bias")} for x in opts.values()
        ),
    }


def flat(tree: Any) -> Tensor:
    found = [x.reshape(-1).double() for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return torch.cat(found) if found else torch.zeros(0)


def partly(name: str, steps: int, folder: str, dtype: torch.dtype) -> dict[str, Any]:
    """Parameters without gradients, and accumulators that are wider than their parameters."""
    batches = data(steps + 3, dtype)
    model, opt = build("one", name, Partly().to(dtype))
    train(opt, model, batches[:steps])
    save("one", model, opt, folder)
    distributed.barrier()
    other, other_opt = build("one", name, Partly().to(dtype))
    load("one", other, other_opt, folder)
    states = [opt.state_dict(), other_opt.state_dict()]
    dtypes = {
        value.dtype
        for o in (other_opt, other_opt.base)
        for memory in o.state.values()
        for value in memory.values()
        if isinstance(value, Tensor) and value.dim() > 0
    }
    bases = [
        [sorted(map(str, o.base.state.get(p, {}))) for p in net.parameters()]
        for net, o in ((model, opt), (other, other_opt))
    ]
    train(opt, model, batches[steps:])
    train(other_opt, other, batches[steps:])
    return {
        "same": all(map(torch.equal, model.parameters(), other.parameters())),
        "numbers": [{k: v for k, v in state["state"].items() if isinstance(k, str)} for state in states],
        "bases": bases,
        "dtypes": sorted(map(str, dtypes)),
    }


def fresh(name: str, kind: str, folder: str) -> dict[str, Any]:
    """Load into an optimizer that has not taken a step."""
    model, opt = build(kind, name)
    batches = batches_for(kind, data(6))
    train(opt, model, batches[:3])
    save(kind, model, opt, folder)
    distributed.barrier()
    other, other_opt = build(kind, name)
    load(kind, other, other_opt, folder)
    counts = [o.state["engine"]["step"] for o in (opt, other_opt)]
    train(opt, model, batches[3:])
    train(other_opt, other, batches[3:])
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return {"counts": counts, "same": all(torch.equal(whole(a), whole(b)) for a, b in pairs)}
