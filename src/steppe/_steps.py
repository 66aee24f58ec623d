"""The steps of a base: each is seen, whoever asks for it, and told once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Protocol, final
from weakref import WeakKeyDictionary, ref

from torch.optim import Optimizer

from ._recording import is_recording, record


class Watcher(Protocol):
    """Who is told of the steps of a base."""

    def _before_base_step(self) -> None:
        """Raise if the base must not step now."""

    def _after_base_step(self, *, surely: bool) -> None:
        """Count the step; if it is not ``surely`` one, only if the gradient for it was prepared here."""


@final
class _Steps:
    """Those who watch one base.

    The ``step`` of the instance is replaced by one that tells them. Whether that of the class calls its parent's, or
    hides torch's hooks, it is one step then. The hooks are a second net, for those who got hold of ``step`` before.
    """

    def __init__(self, base: Optimizer) -> None:
        self._watchers: list[ref[Any]] = []  # a cycle of references would keep their memory alive
        self._stepping = False
        if hasattr(base, "_optimizer_step_pre_hooks"):
            base.register_step_pre_hook(lambda *_: None if self._stepping else self._before())
            # A class whose step calls its parent's comes here twice. The gradient was prepared for one of them.
            base.register_step_post_hook(lambda *_: None if self._stepping else self._after(surely=False))
        base.step = self._telling(base)  # type: ignore[method-assign]

    def _telling(self, base: Optimizer) -> Callable[..., Any]:
        plain: Any = base.step
        bound = getattr(plain, "__self__", None) is base  # not so if a scheduler has put a function there
        function = plain.__func__ if bound else plain
        alive = ref(base)

        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self._stepping or this is not alive():  # it is a copy whose step this is
                return function(this, *args, **kwargs) if bound else function(*args, **kwargs)
            self._before()
            recorded = is_recording()
            self._stepping = True
            try:
                result = function(this, *args, **kwargs) if bound else function(*args, **kwargs)
            finally:
                self._stepping = False
                record(recorded)  # a signal may have broken off how torch does it
            self._after(surely=True)
            return result

        @wraps(plain)
        def step_of_base(*args: Any, **kwargs: Any) -> Any:
            return step(alive(), *args, **kwargs)

        # A method would hold the base, and keep it from being freed before the collector of cycles comes. Schedulers
        # that want to wrap it look for what a method has.
        step_of_base.__func__ = step  # type: ignore[attr-defined]
        step_of_base.__signature__ = signature(plain)  # type: ignore[attr-defined]
        del step_of_base.__wrapped__
        return step_of_base

    def add(self, watcher: Watcher) -> None:
        known = [one for one in self._watchers if one() is not None and one() is not watcher]
        self._watchers = [*known, ref(watcher)]

    def _before(self) -> None:
        for one in self._watchers:
            if (watcher := one()) is not None:
                watcher._before_base_step()

    def _after(self, *, surely: bool) -> None:
        watchers = [watcher for one in self._watchers if (watcher := one()) is not None]
        if len(watchers) > 1:
            watchers = self._that_count(watchers)
        for watcher in watchers:
            watcher._after_base_step(surely=surely)

    def _that_count(self, watchers: list[Any]) -> list[Any]:
        """Return one of each that share their state, as copies by hosts do; the others wait no longer."""
        found: dict[int, Any] = {}
        for watcher in sorted(watchers, key=lambda one: not one._due.waiting):
            first = found.setdefault(id(watcher.state), watcher)
            if first is not watcher and first._due is not watcher._due:
                watcher._due.forget()
        return list(found.values())


_STEPS: WeakKeyDictionary[Optimizer, _Steps] = WeakKeyDictionary()


def watch(base: Optimizer, watcher: Watcher) -> None:
    """Let ``watcher`` know of the steps of ``base`` for as long as both live."""
    if base not in _STEPS:
        _STEPS[base] = _Steps(base)
    _STEPS[base].add(watcher)
