"""Lightning: a callback for the Trainer; Fabric needs none.

Lightning has hooks around the gradient and around the optimizer. The callback makes both passes together the gradient,
and the base the optimizer: loss scaling, ``on_before_optimizer_step`` and clipping then act once, on the gradient that
the base sees.

Fabric hands closures on, so `step` works as in a plain loop::

    model, opt = fabric.setup(model, SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05))

    def closure():
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        fabric.backward(loss)
        return loss

    loss = opt.step(closure)

To clip gradients, with ``precision="16-mixed"`` and wherever else something happens between gradient and step, give
Fabric the base::

    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    model, base = fabric.setup(model, sam.base)

    base.zero_grad()
    fabric.backward(loss_fn(model(x), y))
    with sam.ascended():
        fabric.backward(loss_fn(model(x), y))
    fabric.clip_gradients(model, base, max_norm=1.0, error_if_nonfinite=False)  # fp16 may overflow
    base.step()

To resume, save what remembers climbs, not only the base: ``fabric.save(path, {"model": model, "opt": opt})``, or
``{"model": model, "sam": sam}`` if Fabric has the base.

To accumulate, let the closure run over micro-batches, all but the last in ``fabric.no_backward_sync(model)``. Or call
``accumulated_step(sam, micro_batches, backward, model=model, step=base.step)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, final

from torch import nn

from .._extras import how_to_install

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.core.optimizer import do_nothing_closure
    from lightning.pytorch.loops.optimization.automatic import ClosureResult
    from lightning.pytorch.strategies import ModelParallelStrategy
except ImportError as error:
    raise ImportError(how_to_install("lightning", "lightning")) from error

from .._parts import need_fraction
from ..accumulation import each_by_itself
from ..batches import fraction_of
from ..optimizer import SharpnessAware
from ..passes import frozen_buffers, frozen_norm_stats, same_random_state
from ._lightning_accumulation import MicroBatches
from ._lightning_passes import clipping_base, kept_outputs, metrics_of, nothing, replaced, scale_of, warn_random_state
from ._lightning_refusals import (
    callbacks_of,
    check_batches,
    check_fraction,
    check_optimizers,
    check_strategy,
    refuse_states,
)


class _NoGradientError(Exception):
    """``training_step`` or a callback wants no gradient."""


@final
class SharpnessAwareCallback(Callback):
    """Sharpness-aware steps in a Lightning Trainer.

    Return the optimizer from ``configure_optimizers`` and add the callback. In one step, with automatic optimization::

        training_step, backward     clean gradient at w, as ever
        training_step, backward     sharp gradient at w + delta, same batch; nothing is logged
        on_before_optimizer_step    once, at w, on the gradient that the base sees
        clipping                    likewise: it changes no climb, whatever the method
        base.step()                 through the GradScaler with precision="16-mixed"

    With ``accumulate_grad_batches=k`` each of k micro-batches makes both passes, and climbs by itself; their gradients
    add up, and the last one steps. That is m-SAM, m = the micro-batch, as of `steppe.accumulated_step` with
    ``climb="micro"``.

    What a batch leaves behind is what one pass leaves: buffers, values that are logged, metrics of torchmetrics that
    the module owns, ``outputs`` of ``on_train_batch_end``, ``global_step``. ``on_before_zero_grad`` is called in the
    clean pass only; ``on_before_backward`` and ``on_after_backward`` are called in both. For whatever else
    ``training_step`` does twice, ask `in_sharp_pass`.

    Args:
        fraction: None, or which part of the batch clean passes see, in (0, 1]: then a climb follows the gradient of a
            part, and costs as little. The number of examples is rounded up. What a batch leaves behind, in buffers too,
            is then that of the pass over the whole batch, at ``w + delta``.
        freeze_norm_stats: keep what batch norm sees at ``w + delta`` out of its running statistics, see
            `steppe.passes.frozen_norm_stats`.
        freeze_buffers: keep it out of all other buffers as well, such as codebooks, ranges of fake quantization and the
            vectors of spectral norm, see `steppe.passes.frozen_buffers`.
        same_random_state: both passes draw the same random numbers, so that dropout gives both one loss function; the
            climb for one mask says little about the loss under another. SAM's authors do so too. False draws anew, as a
            plain loop does. It holds for steps with a closure, which are all with automatic optimization.

    Raises:
        ValueError: when a fit begins, with what to do, if steps could not be sharpness-aware: there is no such
            optimizer; ``training_step`` takes ``dataloader_iter``; the strategy is DeepSpeed, FSDP or XLA; or
            ModelParallelStrategy would save or load optimizer states. For a ``fraction`` out of range; when a fit
            begins, with manual optimization or a trigger that looks at gradients.
        TypeError: if the Trainer is that of ``pytorch_lightning``; with a ``fraction`` if a method has no clean pass.
        RuntimeError: with manual optimization, if ``opt.step()`` comes without a closure and without a sharp pass, or
            inside of one; or if ``clip_gradients`` is given gradients that a GradScaler has multiplied.

    Cost:
        That of the optimizer, 2 passes per batch where it climbs, the first on ``fraction`` of the batch. A copy of the
        module's metrics, empty, and during passes that leave nothing behind one of its buffers.

        Accumulation holds one more gradient during clean passes. With DDP its clean passes exchange gradients, and the
        last sharp one; where both are blended (GSAM) or compared (LargeGradient), and with ``find_unused_parameters``
        or ModelParallelStrategy, all passes do.

    Note:
        Learning-rate schedulers must be attached to what ``configure_optimizers`` returns: Lightning refuses those
        attached to ``opt.base``. On several processes the climb is that of the whole batch. Callbacks and hooks get
        ``opt.base`` as their optimizer, whose parameter groups are the same. If ``training_step`` returns None its
        batch is skipped.

        Lightning divides losses by ``accumulate_grad_batches``, also at the end of an epoch, where a step may be left
        with fewer. `USAM` and `LightSAM`, whose climbs follow the scale of the loss, climb along the divided one.

        With manual optimization give ``opt.step`` a closure, or run the sharp pass in ``opt.optimizer.ascended()`` and
        step without one. One climb for all micro-batches is possible in both ways, for here they can be run again::

            def training_step(self, batch, batch_idx):  # SAM on the whole batch, in four pieces
                opt = self.optimizers()

                def closure():
                    opt.zero_grad()
                    total = 0.0
                    for x, y in zip(batch[0].chunk(4), batch[1].chunk(4)):
                        loss = self.loss(x, y) / 4
                        self.manual_backward(loss)
                        total += loss.detach()
                    return total

                self.log("loss", opt.step(closure))

        For m-SAM call ``opt.optimizer.backward(closure_of_a_piece)`` for each piece, then ``opt.step()``. Lightning
        does not count the steps that `steppe.accumulated_step` takes.

        To clip with manual optimization, whoever runs the sharp pass and in any precision::

            def on_before_optimizer_step(self, optimizer):  # the base, its gradients unscaled
                self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")

        Without a closure ``self.clip_gradients(opt, ...)`` between ``ascended()`` and ``opt.step()`` is the same, but
        not with ``precision="16-mixed"``.

    Example:
        >>> import torch
        >>> from steppe.integrations.lightning import SharpnessAwareCallback
        >>> callback = SharpnessAwareCallback()  # for Trainer(callbacks=[callback])
        >>> callback.in_sharp_pass
        False
    """

    def __init__(
        self,
        *,
        fraction: float | None = None,
        freeze_norm_stats: bool = True,
        freeze_buffers: bool = True,
        same_random_state: bool = True,
    ) -> None:
        if fraction is not None:
            need_fraction(fraction)
        self.fraction = fraction
        self.freeze_norm_stats = freeze_norm_stats
        self.freeze_buffers = freeze_buffers
        self.same_random_state = same_random_state
        self._in_sharp_pass = False
        self._in_only_pass = False
        self._in_step = False
        self._went_back = False
        self._part: float | None = None  # of the batch, which the clean pass of this step sees
        self._ascended: set[SharpnessAware] = set()
        self._metrics: list[tuple[nn.Module, str, nn.Module, Any]] = []
        self._micro_batches: MicroBatches | None = None
        self._undo: ExitStack | None = None

    @property
    def in_sharp_pass(self) -> bool:
        """Whether the weights are at ``w + delta`` just now: what should happen once per step should not happen then.

        For example ``if not self.sam.in_sharp_pass: self.history.append(loss.item())`` in a ``training_step``.
        """
        return self._in_sharp_pass

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"SharpnessAwareCallback is for the Trainer of lightning.pytorch, got one of "
                f"{type(trainer).__module__.partition('.')[0]}, whose classes are not the same. Import the Trainer and "
                "LightningModule from lightning.pytorch."
            )
        if stage == "fit":
            check_strategy(trainer.strategy)
            check_batches(pl_module)
            check_fraction(self.fraction, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_optimizers(trainer, self.fraction)
        self._end()
        self._undo = ExitStack()
        micro = self._micro_batches = MicroBatches(trainer, self._micro_gradient)
        self._undo.enter_context(micro.in_the_loop())
        # Every step passes here, of automatic and of manual optimization.
        plain = trainer.strategy.optimizer_step

        def optimizer_step(optimizer: Any, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
            if not isinstance(optimizer, SharpnessAware):
                return plain(optimizer, closure, *args, **kwargs)
            if self._in_sharp_pass or self._in_only_pass:
                raise RuntimeError(
                    "The weights are at w + delta: call opt.step() after the ascended() block, not in it."
                )
            if micro.climbing:  # by themselves, whoever calls their closures
                return plain(optimizer.base, closure, *args, **kwargs)
            if closure is do_nothing_closure:
                self._need_sharp_pass(optimizer)
                return plain(optimizer.base, closure, *args, **kwargs)
            return plain(optimizer.base, partial(self._gradient, trainer, optimizer, closure), *args, **kwargs)

        self._undo.enter_context(replaced(trainer.strategy, "optimizer_step", optimizer_step))
        clip = clipping_base(trainer.precision_plugin)
        self._undo.enter_context(replaced(trainer.precision_plugin, "clip_gradients", clip))
        if isinstance(trainer.strategy, ModelParallelStrategy):
            for name in ("optimizer_state", "load_checkpoint"):
                self._undo.enter_context(replaced(trainer.strategy, name, refuse_states))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._undo is not None
        for opt in trainer.optimizers:
            if isinstance(opt, SharpnessAware):
                alone = not opt.ascent.needs_gradient
                around = partial(self._only_pass, opt) if alone else partial(self._sharp_pass, trainer, pl_module, opt)
                self._undo.callback(opt.around_sharp_pass(around, also_single=alone).remove)
        self._metrics = metrics_of(pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._went_back = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._undo is not None:
            self._undo.close()
        self._undo, self._metrics, self._micro_batches = None, [], None
        self._ascended.clear()

    def _gradient(self, trainer: Trainer, opt: SharpnessAware, closure: Callable[[], Any]) -> Any:
        """Run both passes, leave the gradient for the base, and return the clean loss."""
        automatic = trainer.lightning_module.automatic_optimization
        if not opt.ascent.needs_gradient:
            return self._only_gradient(opt, closure, automatic)
        same = self._draws()
        self._went_back = False
        self._part = None if opt.looks_whole() else self.fraction
        parts = self._part is not None and opt.will_climb()
        with same, self._part_pass(trainer) if parts else nullcontext():
            loss = closure()
        if automatic and not self._went_back:
            return loss  # training_step or a callback wants no gradient
        with kept_outputs(closure) if automatic and not parts else nullcontext():
            self._in_step = True
            try:
                with opt.ascended(scale_of(trainer, opt), part=self._part is not None) as climbs:
                    if climbs:
                        with same:
                            closure()
            finally:
                self._in_step = False
                self._ascended.discard(opt)
        return loss

    def _only_gradient(self, opt: SharpnessAware, closure: Callable[[], Any], automatic: bool) -> Any:
        """Run the one pass of a method that climbs without a gradient."""
        self._went_back = False
        try:
            with opt.ascended():
                loss = closure()
                if automatic and not self._went_back:
                    raise _NoGradientError
        except _NoGradientError:
            pass
        finally:
            self._ascended.discard(opt)
        return loss

    def _micro_gradient(
        self, micro: MicroBatches, opt: SharpnessAware, closure: Callable[[], ClosureResult], first: bool
    ) -> ClosureResult:
        """Add up the gradient of one micro-batch, and return the result of its clean pass, or of the whole one."""
        climbs, alone, same = opt.will_climb(), not opt.ascent.needs_gradient, self._draws()
        each = each_by_itself(opt, climbs)
        results: list[ClosureResult] = []
        self._part = None if opt.looks_whole() else self.fraction
        scale, part = scale_of(micro.trainer, opt), self._part is not None

        def run() -> Any:
            clean = climbs and not alone and not results
            seen = self._part_pass(micro.trainer) if clean and part else nullcontext()
            with micro.exchanged(opt, clean, each and not alone), same, seen:
                self._went_back = False
                results.append(closure())
            if not self._went_back and len(results) == 1:
                raise _NoGradientError
            return results[0].loss

        self._in_step = True
        try:
            if not each:
                run()
            elif first:  # its passes zero gradients, where hooks expect it
                if not alone:
                    run()
                with opt.ascended(scale, part=part) as ascends:
                    if ascends or alone:
                        run()
            else:
                opt.backward(run, scale, part=part)
        except _NoGradientError:
            pass
        finally:
            self._in_step = False
            self._ascended.discard(opt)
        return results[-1 if part else 0]

    def _draws(self) -> Any:
        return same_random_state() if self.same_random_state else nullcontext()

    @contextmanager
    def _only_pass(self, opt: SharpnessAware) -> Iterator[None]:
        """Note that there was the one pass of a method without a clean one; all that it leaves behind counts."""
        self._ascended.add(opt)
        self._in_only_pass = True
        try:
            yield
        finally:
            self._in_only_pass = False

    @contextmanager
    def _sharp_pass(self, trainer: Trainer, pl_module: LightningModule, opt: SharpnessAware) -> Iterator[None]:
        if self.same_random_state and not self._in_step:
            warn_random_state()
        self._ascended.add(opt)
        with nullcontext() if self._part is not None else self._without_traces(trainer, pl_module):
            self._in_sharp_pass = True
            try:
                yield
            finally:
                self._in_sharp_pass = False

    @contextmanager
    def _part_pass(self, trainer: Trainer) -> Iterator[None]:
        """Let ``training_step`` see a part of the batch."""
        plain = trainer.strategy.training_step

        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            assert self._part is not None
            return plain(fraction_of(batch, self._part), *args, **kwargs)

        with (
            replaced(trainer.strategy, "training_step", training_step),
            self._without_traces(trainer, trainer.lightning_module),
        ):
            yield

    @contextmanager
    def _without_traces(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Make a pass that leaves nothing behind but gradients."""
        with ExitStack() as stack:
            for owner in (pl_module, *callbacks_of(trainer)):
                for name in ("log", "on_before_zero_grad"):
                    stack.enter_context(replaced(owner, name, nothing))
            for parent, name, metric, spare in self._metrics:
                stack.callback(spare.reset)
                stack.callback(setattr, parent, name, metric)
                setattr(parent, name, spare)
            if self.freeze_buffers:  # norm statistics too, for DDP hands out those of the first process before a pass
                stack.enter_context(frozen_buffers(pl_module, norm_stats=self.freeze_norm_stats))
            if self.freeze_norm_stats:
                stack.enter_context(frozen_norm_stats(pl_module))
            yield

    def _need_sharp_pass(self, opt: SharpnessAware) -> None:
        if opt in self._ascended:
            self._ascended.discard(opt)
        elif opt.will_climb() and not opt.trigger.needs_gradient:
            raise RuntimeError(
                "opt.step() came without a closure and without a sharp pass, which is a step of the base alone. Give "
                "it a closure that zeroes the gradients, computes the loss, calls self.manual_backward(loss) and "
                'returns the loss, or run a second backward pass in "with opt.optimizer.ascended():" before it.'
            )
