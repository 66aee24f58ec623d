"""Distributed training on torch's own engine: DDP, FSDP2 and tensor parallelism, and their checkpoints.

DDP and FSDP2 (``torch.distributed.fsdp.fully_shard``) need nothing from here: gradients are those of all processes, so
``opt.step(closure)`` climbs along the gradient of the whole batch, and its norm is one over all shards.
`accumulated_step` saves traffic where there are micro-batches, and lets every DDP process climb on its own.
FullyShardedDataParallel (FSDP1) hides how gradients are spread, and is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer

from .._checks import put_back_if_it_fails
from .._shards import resharded as resharded
from .._tensors import Ops
from ..ascents import Slope
from ..descent import fitted
from ..optimizer import SharpnessAware


@final
class SharpnessAwareState(Stateful):
    """The state of a sharpness-aware optimizer, as ``torch.distributed.checkpoint`` saves and loads it in shards.

    It goes into ``save`` and ``load`` beside the model's state::

        state = {"model": get_model_state_dict(model), "optimizer": SharpnessAwareState(model, opt)}
        dcp.save(state, checkpoint_id=folder)

        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(model, state["model"])

    Parameters are known by their names in the model without wrappers: what FSDP2 saved on many processes can be loaded
    on fewer or more, in DDP, or in one process. Everything that resuming bit for bit needs is there: the base's state
    and groups with their radii, counters, and what climbs remember.

    Args:
        model: the model whose parameters ``opt`` has, wrapped or not.
        opt: the optimizer.

    Raises:
        TypeError: if ``opt`` is not sharpness-aware.

    Cost:
        For each checkpoint, one gradient's memory for a moment, and state for parameters that never had a gradient.

    Note:
        torch loads into what is there already, and makes it by a step of the base with gradients and learning rates of
        zero. Of that nothing stays: neither in counters, nor in moments.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> from steppe.integrations.distributed import SharpnessAwareState
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = SAM(torch.optim.AdamW(model.parameters()), rho=0.05)
        >>> list(SharpnessAwareState(model, opt).state_dict()["base"]["state"])
        ['weight', 'bias']
        >>> len(opt.base.state)
        0
    """

    def __init__(self, model: nn.Module, opt: SharpnessAware) -> None:
        if not isinstance(opt, SharpnessAware):
            raise TypeError(
                f"opt must be a sharpness-aware optimizer, got {type(opt).__name__}. Plain ones are saved by "
                "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict."
            )
        self.model, self.opt = model, opt

    def state_dict(self) -> dict[str, Any]:
        """Return the state; all processes call it together."""
        opt, base = self.opt, self.opt.base
        opt._note_radii()
        params = _trainable(base)
        names = _names(self.model, params)
        absent = [p for p in params if p not in base.state]
        numbers = [_numbers(opt), _numbers(base)]
        with _gradients_aside(base), _as_before(opt), _as_before(base):
            _make_room(base, absent)
            for p in absent:
                base.state[p]  # torch misses an entry where some bases keep state of parameters, and others do not
            _set_numbers(base, [])
            with _one_gradient(params):
                theirs = get_optimizer_state_dict(self.model, base)
            climbs = _memories(opt, params)
        return {
            "base": theirs,
            "climb": {names[p]: memory for p, memory in climbs.items()},
            # A list of such is one entry for torch, which need not be there already when it is loaded.
            "absent": [names[p] for p in absent],
            "numbers": numbers,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; all processes call it together.

        Raises:
            KeyError: if something of it is missing; or what the base raises. Nothing is changed then.
        """
        opt, base = self.opt, self.opt.base
        params = _trainable(base)
        names = _names(self.model, params)
        theirs, climbs, absent = (state_dict[name] for name in ("base", "climb", "absent"))
        ours, numbers = state_dict["numbers"]
        with put_back_if_it_fails(base), _gradients_aside(base), _one_gradient(params):
            set_optimizer_state_dict(self.model, base, theirs)
            opt._check_radii()
        opt.state.clear()
        for p in params:
            if names[p] in absent:
                base.state.pop(p, None)
            memory = climbs.get(names[p])
            if memory:
                opt.state[p] = fitted({name: value.clone() for name, value in memory.items()}, p)
        _set_numbers(opt, ours)
        _set_numbers(base, numbers)
        opt._loaded()


def _names(model: nn.Module, params: list[Tensor]) -> dict[Tensor, str]:
    """Return the names that torch's checkpoints have for parameters."""
    named = Optimizer(params, {})
    named.state[params[0]] = {}  # or else torch would step it
    groups: Any = get_optimizer_state_dict(model, named)["param_groups"]
    return dict(zip(params, groups[0]["params"], strict=True))


def _trainable(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _numbers(optimizer: Optimizer) -> list[tuple[str, str, Any]]:
    """Return what is remembered for all parameters together, which torch has no place for."""
    state: dict[Any, Any] = optimizer.state
    return [
        (room, name, value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
        for room, memory in state.items()
        if isinstance(room, str)
        for name, value in memory.items()
    ]


def _set_numbers(optimizer: Optimizer, numbers: list[tuple[str, str, Any]]) -> None:
    state: dict[Any, Any] = optimizer.state
    for room in [key for key in state if isinstance(key, str)]:
        del state[room]
    for room, name, value in numbers:
        state[room][name] = value


@contextmanager
def _as_before(optimizer: Optimizer) -> Iterator[None]:
    """Undo what is added to the state, and done to its numbers."""
    state: dict[Any, Any] = optimizer.state
    before = {key: dict(memory) if isinstance(key, str) else memory for key, memory in state.items()}
    try:
        yield
    finally:
        state.clear()
        state.update(before)


@contextmanager
def _gradients_aside(optimizer: Optimizer) -> Iterator[None]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, g in zip(params, grads, strict=True):
            p.grad = g


@contextmanager
def _one_gradient(params: list[Tensor]) -> Iterator[None]:
    """Keep torch from making room by itself, which it does where there are neither state nor gradients."""
    params[0].grad = torch.zeros_like(params[0])
    try:
        yield
    finally:
        params[0].grad = None


def _make_room(base: Optimizer, params: list[Tensor]) -> None:
    """Let the base make its state for ``params`` by a step to nowhere."""
    groups = [dict(group) for group in base.param_groups]
    for p in params:
        p.grad = torch.zeros_like(p)
    for group in base.param_groups:
        if "lr" in group:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    try:
        if params:
            base.step()
    finally:
        for group, before in zip(base.param_groups, groups, strict=True):
            group.update(before)
        for p in params:
            p.grad = None


@torch.no_grad()
def _memories(opt: SharpnessAware, params: list[Tensor]) -> dict[Tensor, dict[str, Any]]:
    """Return what climbs remember of each parameter, of those that have not climbed too."""
    names = opt.blend.memories if opt.blend else ()
    if not (opt.ascent.remembers or names):
        return {}
    # An ascent makes room when it first sees a gradient, and remembers nothing of one that is not finite.
    state: dict[Any, dict[str, Any]] = defaultdict(dict, {p: dict(opt.state[p]) for p in params if p in opt.state})
    state["shared"] = dict(opt.state["shared"])
    nowhere = [torch.full_like(p, torch.nan) for p in params]
    slope = Slope(params, nowhere, state, Ops.choose(params, None), guarded=True)
    if opt.ascent.remembers:
        opt.ascent.directions(slope)
    for name in names:
        slope.remember(name, 0.0)
    return {p: state[p] for p in params}
