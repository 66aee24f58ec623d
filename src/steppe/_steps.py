"""The steps of a base: each is seen, whoever asks for it, and told once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, Protocol, final
from weakref import WeakKeyDictionary, ref

from torch.optim import Optimizer

from ._recording import is_recording, record


class Watcher(Protocol):
    """Who is told of the steps of a base."""

    def _refuse_a_step(self) -> None:
        """Raise if nothing must step now, neither the base nor one that it has inside."""

    def _before_base_step(self) -> None:
        """Be told that the base begins to step."""

    def _after_base_step(self, *, surely: bool) -> None:
        """Count the step; if it is not ``surely`` one, only if the gradient for it was prepared here."""


@final
class _Steps:
    """Those who watch one base.

    The ``step`` of the instance is replaced by one that tells them. Whether that of the class calls its parent's, or
    hides torch's hooks, it is one step then. The hooks are a second net, for those who got hold of ``step`` before.
    """

    def __init__(self, base: Optimizer) -> None:
        # Who counts, and who is around a base that has this one inside. Cycles of references would keep memory alive.
        self._watchers: list[ref[Any]] = []
        self._guards: list[ref[Any]] = []
        self._stepping = False
        if hasattr(base, "_optimizer_step_pre_hooks"):
            base.register_step_pre_hook(lambda *_: None if self._stepping else self._before())
            # A class whose step calls its parent's comes here twice. The gradient was prepared for one of them.
            base.register_step_post_hook(lambda *_: None if self._stepping else self._after(surely=False))
        base.step = _Step(base, self._run)  # type: ignore[method-assign]

    def _run(self, plain: Callable[[], Any]) -> Any:
        """Step, and tell it."""
        if self._stepping:
            return plain()
        self._before()
        recorded = is_recording()
        self._stepping = True
        try:
            result = plain()
        finally:
            self._stepping = False
            record(recorded)  # a signal may have broken off how torch does it
        self._after(surely=True)
        return result

    def add(self, watcher: Watcher, *, counts: bool) -> None:
        name = "_watchers" if counts else "_guards"
        known = [one for one in getattr(self, name) if one() is not None and one() is not watcher]
        setattr(self, name, [*known, ref(watcher)])

    def _before(self) -> None:
        for one in (*self._watchers, *self._guards):
            if (watcher := one()) is not None:
                watcher._refuse_a_step()
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


@final
class _Step:
    """The ``step`` of an instance, with what torch's schedulers look for in a method when they wrap it.

    A method would hold the base, and keep it from being freed before the collector of cycles comes.
    """

    def __init__(self, base: Optimizer, run: Callable[[Callable[[], Any]], Any]) -> None:
        plain: Any = base.step
        self._base = ref(base)
        # A scheduler may have put a function there.
        bound = getattr(plain, "__self__", None) is base
        function = plain.__func__ if bound else plain
        known = getattr(plain, "__dict__", {})  # that a scheduler has wrapped it
        vars(self).update({name: value for name, value in known.items() if name != "__wrapped__"})
        self.__signature__, self.__name__, self.__doc__ = signature(plain), "step", plain.__doc__

        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            stepped = partial(function, *((this,) if bound else ()), *args, **kwargs)
            return run(stepped) if this is self._base() else stepped()  # else it is a copy whose step this is

        self.__func__ = step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        base = self._base()
        if base is None:
            raise RuntimeError("The optimizer whose step this is has gone. Keep it, and call its step.")
        return self.__func__(base, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the step of a base's copy, of which nobody knows yet: that of its class."""
        other = memo.get(id(self._base()))
        return self if other is None else type(other).step.__get__(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._base(), "step")


_STEPS: WeakKeyDictionary[Optimizer, _Steps] = WeakKeyDictionary()


def watch(base: Optimizer, watcher: Watcher, *, counts: bool = True) -> None:
    """Let ``watcher`` know of the steps of ``base`` for as long as both live, or let it only refuse them."""
    if base not in _STEPS:
        _STEPS[base] = _Steps(base)
    _STEPS[base].add(watcher, counts=counts)
