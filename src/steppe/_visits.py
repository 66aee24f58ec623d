"""Visits to ``w + delta``: whatever happens there, the weights come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar, final

from torch import Tensor

from ._closures import set_grads
from ._recording import is_recording, record
from ._signals import BeforeRaising
from .climb import Climb, Stay

Result = TypeVar("Result")
Context = Callable[[], AbstractContextManager[Any]]


@final
class Visits:
    """Whether one is under way, and what surrounds it."""

    def __init__(self) -> None:
        self.under_way = False
        self.evaluating = False  # whether a closure runs at w
        self.around: dict[int, tuple[Context, bool]] = OrderedDict()

    def refuse_another(self) -> None:
        if self.under_way:
            raise RuntimeError(
                "The weights are at w + delta already: step() and ascended() cannot run inside a closure or inside "
                "ascended(). Step after the with block, with opt.base.step()."
            )

    def refuse_a_step(self) -> None:
        if self.under_way:
            raise RuntimeError(
                "The weights are at w + delta: a step of the base would be undone when they come back. Step after the "
                "with block or the closure, with opt.base.step()."
            )
        if self.evaluating:
            raise RuntimeError(
                "A closure stepped the base, which is stepped after it. Leave step() out of what computes gradients."
            )

    def at_rest(self, run: Callable[[], Result]) -> Result:
        """Run what computes gradients at ``w``."""
        try:
            self.evaluating = True
            return run()
        finally:
            self.evaluating = False

    def run(self, climb: Climb | Stay, run: Callable[[], Result], letting_go: Sequence[Tensor] = ()) -> Result:
        """Run ``run`` where ``climb`` leads to, from without the gradients of some parameters on."""
        try:
            self.under_way = True
            try:
                climb.up()
                for p in letting_go:
                    p.grad = None
                if self.around:
                    with self.surrounding(climb):
                        result = run()
                else:
                    result = run()
            finally:
                climb.down()
            climb.finish(well=True)
        except BaseException:
            climb.down()  # a signal may have broken off the first one
            climb.finish(well=False)
            raise
        finally:
            self.under_way = False
        return result

    def surrounding(self, climb: Climb | Stay) -> ExitStack:
        """Enter what surrounds sharp passes, those that follow a clean one or, if it asks for them, all."""
        with ExitStack() as stack:
            if isinstance(climb, Climb):
                for context, also_single in self.around.values():
                    if also_single or climb.ascent.needs_gradient:
                        stack.enter_context(context())
            return stack.pop_all()


@final
class Visit(AbstractContextManager[bool]):
    """A ``with`` block at ``w + delta``, which gets whether that is another place than ``w``.

    Args:
        visits: where it is noted.
        params: all parameters, which begin in the block without gradients.
        decide: prepares the climb.
        finish: is called after a block that went well, back at ``w``.
    """

    def __init__(
        self,
        visits: Visits,
        params: Callable[[], list[Tensor]],
        decide: Callable[[], Climb | Stay],
        finish: Callable[[Climb | Stay], None],
    ) -> None:
        self._visits, self._params, self._decide, self._finish = visits, params, decide, finish
        self._signals = BeforeRaising(self._come_back)
        self._contexts = ExitStack()
        self._climb: Climb | Stay = Stay([])
        self._gone = False

    def __enter__(self) -> bool:
        self._visits.refuse_another()
        if self._gone:
            raise RuntimeError("This ascended() was left by a signal's exception. Call opt.ascended() anew.")
        self._climb = self._decide()
        self._recorded = is_recording()
        try:
            self._signals.begin()
            self._visits.under_way = True
            self._climb.up()
            params = self._params()
            set_grads(params, [None] * len(params))
            self._contexts = self._visits.surrounding(self._climb)
            return isinstance(self._climb, Climb)
        except BaseException:
            self._come_back()
            self._climb.finish(well=False)
            record(self._recorded)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        try:
            if self._gone:
                if kind is None:
                    raise RuntimeError(
                        "The body of ascended() caught the exception of a signal, and went on at w, not at w + delta. "
                        "Let the exception out, zero the gradients, and take the next step."
                    )
                return
            try:
                self._contexts.__exit__(kind, error, traceback)
            finally:
                self._climb.down()
            self._climb.finish(well=kind is None)
            if kind is None:
                self._finish(self._climb)
        except BaseException:
            self._come_back()
            raise
        finally:
            self._visits.under_way = False
            self._signals.end()
            record(self._recorded)

    def _come_back(self) -> None:
        """Put the weights back before an exception is seen, wherever it came from."""
        self._climb.down()
        self._gone = True
        self._visits.under_way = False
        self._contexts.close()
        self._signals.end()
