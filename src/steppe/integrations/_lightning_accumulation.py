"""Gradient accumulation in Lightning's automatic optimization: every micro-batch climbs by itself.

Lightning runs the closures of all micro-batches but the last outside of any optimizer step, so that each of them has to
make both passes of its own micro-batch; the last one likewise, within the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult

from ..accumulation import passes_apart
from ..optimizer import SharpnessAware
from ._lightning_passes import replaced

Gradient = Callable[["MicroBatches", SharpnessAware, Callable[[], ClosureResult], bool], ClosureResult]


@final
class MicroBatches:
    """The closures of micro-batches, and which of their passes exchange gradients with other processes.

    Args:
        trainer: whose loop makes the closures.
        gradient: adds up the gradient of one micro-batch; it is given this object, the optimizer, what one pass is, and
            whether that zeroes the gradients, as that of the first micro-batch does.
    """

    def __init__(self, trainer: Trainer, gradient: Gradient) -> None:
        self.trainer = trainer
        self.climbing = False
        self._gradient = gradient
        self._last = True
        self._make: Callable[..., Closure] = trainer.fit_loop.epoch_loop.automatic_optimization._make_closure
        # Strategies of one process have none.
        self._block: Callable[[], AbstractContextManager[Any]] = getattr(
            trainer.strategy, "block_backward_sync", nullcontext
        )

    @contextmanager
    def in_the_loop(self) -> Iterator[None]:
        """Let the loop take closures from here."""
        loop = self.trainer.fit_loop.epoch_loop.automatic_optimization
        with ExitStack() as stack:
            stack.enter_context(replaced(loop, "_make_closure", self._closure))
            if self._block is not nullcontext:
                stack.enter_context(replaced(self.trainer.strategy, "block_backward_sync", self._before_the_last))
            yield

    def _closure(self, kwargs: Any, optimizer: Any, batch_idx: int) -> Closure:
        closure = self._make(kwargs, optimizer, batch_idx)
        # Callbacks may change how many there are at any time.
        self.climbing = isinstance(optimizer, SharpnessAware) and self.trainer.accumulate_grad_batches > 1
        if self.climbing and closure._backward_fn is not None:  # a callback may want forward passes alone
            first = closure._zero_grad_fn is not None
            both = partial(self._gradient, self, optimizer, closure.closure, first)
            closure.closure = both  # type: ignore[method-assign]
        return closure

    @contextmanager
    def _before_the_last(self) -> Iterator[None]:
        """Surround a micro-batch without a step, of whose passes some exchange gradients all the same."""
        if not self.climbing:
            with self._block():
                yield
            return
        self._last = False
        try:
            yield
        finally:
            self._last = True

    def exchanged(self, opt: SharpnessAware, clean: bool, each: bool) -> AbstractContextManager[Any]:
        """Let a pass exchange gradients where it must: see `steppe.accumulated_step`, whose rule it is.

        Args:
            opt: the optimizer.
            clean: whether its gradient is climbed along, which all processes do together.
            each: whether the gradient of each micro-batch is made by itself.
        """
        if clean or self._last:
            return nullcontext()
        return nullcontext() if each and passes_apart(opt, self.trainer.strategy.model) else self._block()
