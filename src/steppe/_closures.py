"""Passes by closures, and what a closure leaves in ``.grad`` that is not what it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, final
from weakref import ref

import torch
from torch import Tensor, nn

from ._shards import local

Result = TypeVar("Result")

AFTER_CLEAN = "after the closure. Did it call loss.backward()?"
AFTER_SHARP = "after the sharp pass. Did it call loss.backward()?"


def set_grads(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


def need_gradient(params: Sequence[Tensor], when: str) -> None:
    for p in params:
        if p.grad is not None:
            return
    raise RuntimeError(f"No parameter has a gradient {when}")


def code_of(closure: Callable[..., Any]) -> object:
    """Return what two closures have in common that do the same, made anew for every batch: their code, or their class.

    It holds nothing of a batch.
    """
    inner: Any = closure
    while isinstance(inner, partial):
        inner = inner.func
    return getattr(inner, "__code__", type(inner))


def evaluate(closure: Callable[[], Result]) -> Result:
    if torch.is_grad_enabled():
        return closure()
    with torch.enable_grad():
        return closure()


def new_gradients(params: Sequence[Tensor], closure: Callable[[], Result], when: str) -> Result:
    """Evaluate a closure that has to replace all gradients; refuse it if one is seen to stand as it was."""
    old = _old_gradient(params)
    loss = evaluate(closure)
    need_gradient(params, when)
    if old is not None:
        p, same, version = old
        g = p.grad
        if g is not None and g is same() and _version(g) == version:
            raise RuntimeError(
                f"A parameter of shape {tuple(p.shape)} has its old gradient {when} And does it begin with "
                "opt.zero_grad()?"
            )
    return loss


def _old_gradient(params: Sequence[Tensor]) -> tuple[Tensor, ref[Tensor], int] | None:
    """Return a parameter with a gradient, and what to know that by without holding it."""
    for p in params:
        g = p.grad
        if g is not None and p.requires_grad:
            # On accelerators graphs that were captured write to gradients, and nothing counts that.
            return (p, ref(g), _version(g)) if g.is_cpu else None
    return None


def _version(g: Tensor) -> int:
    return (g if type(g) is Tensor else local(g))._version


def zeroing(params: Sequence[Tensor], closure: Callable[[], Any]) -> bool:
    """Evaluate a closure; refuse it if gradients are added to those that there were before. Say if that was seen."""
    with _Arrivals(params, expects_leftover=False) as arrivals:
        evaluate(closure)
    if any(arrivals.leftover):
        raise RuntimeError(
            "The closure does not zero the gradients: those of the sharp pass were added to those of the clean one. "
            "Begin it with opt.zero_grad()."
        )
    return bool(arrivals.leftover)


def keeping(params: Sequence[Tensor], closure: Callable[[], Result]) -> Result:
    """Evaluate a closure; refuse it if gradients that there were before are zeroed."""
    with _Arrivals(params, expects_leftover=True) as arrivals:
        loss = evaluate(closure)
    if any(arrivals.zeroed):
        raise RuntimeError(
            "The gradients of the micro-batches before were zeroed. Leave zero_grad() out of what is called for each: "
            "zero them once per step."
        )
    return loss


def adding_up(params: Sequence[Tensor], closure: Callable[[], Result]) -> Result:
    """Evaluate a closure that has to add to the gradients there are; refuse it if it does not."""
    before = _versions(params)
    loss = keeping(params, closure)
    if all(g is h and v == u for (g, v), (h, u) in zip(before, _versions(params), strict=True)):
        raise RuntimeError(f"No parameter has a gradient {AFTER_SHARP}")
    return loss


def _versions(params: Sequence[Tensor]) -> list[tuple[Tensor | None, int]]:
    """Return the gradients with how often each has been written to."""
    return [(g, 0 if g is None else _version(g)) for g in (p.grad for p in params)]


@final
class _Arrivals:
    """Looks at the gradient of each parameter when the next one arrives there, before they are added up.

    Of those where one has arrived, ``leftover`` is whether the old gradient is still there as it was, and not zero;
    ``zeroed`` whether it is gone or zero. On an accelerator a look waits only if something is wrong.
    """

    def __init__(self, params: Sequence[Tensor], *, expects_leftover: bool) -> None:
        self.leftover: list[bool] = []
        self.zeroed: list[bool] = []
        self._params = [p for p in params if type(p) is nn.Parameter and p.grad is not None and p.requires_grad]
        self._expects = expects_leftover
        self._nodes: list[Any] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _Arrivals:
        with torch.enable_grad():
            # A hook of the tensor itself would have a compiled model compiled again. The node of a parameter is found
            # by its views, and lives as long as somebody has it.
            views: list[Any] = [p.view_as(p) for p in self._params]
        self._nodes = [view.grad_fn.next_functions[0][0] for view in views]
        for p, node in zip(self._params, self._nodes, strict=True):
            before: Any = p.grad
            # Not the gradient itself: the pass needs the memory.
            self._handles.append(node.register_prehook(partial(self._look, p, ref(before), before._version, [])))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, p: Tensor, before: ref[Tensor], version: int, seen: list[bool], *arriving: object) -> None:
        if seen:
            return
        seen.append(True)
        g = p.grad
        same = g is not None and g is before() and g._version == version
        self.leftover.append(same and (self._expects or bool(g.any())))  # type: ignore[union-attr]
        self.zeroed.append(g is None or (not same and not bool(g.any())))
