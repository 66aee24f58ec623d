"""One step of a plain training loop in one line, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._checks import needs_closure, with_inner
from ._parts import need_fraction
from ._scalars import Scalar
from .accumulation import accumulated_step, check_fraction_allowed, exchanged, need_clean_pass
from .batches import fraction_of, microbatches
from .optimizer import SharpnessAware
from .passes import frozen_buffers, frozen_norm_stats, same_random_state


def train_step(
    opt: Optimizer,
    batch: Any,
    loss_of: Callable[[Any], Tensor],
    *,
    model: nn.Module | None = None,
    fraction: float | None = None,
    micro: int | None = None,
    same_dropout: bool = False,
    backward: Callable[[Tensor], object] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Take one step on a batch: zero the gradients, run every pass that the optimizer asks for, step.

    A loop that calls it is the same for every method and for plain optimizers.

    Args:
        opt: a sharpness-aware optimizer, or a plain one, which takes a plain step.
        batch: whatever ``loss_of`` takes; with ``fraction`` or ``micro`` what `steppe.batches.microbatches` can cut.
        loss_of: computes the loss of a batch, or of a part of it, and returns it: one number, a mean over the examples
            if there is ``micro``. Forward only, with autocast inside if you want it; it is called in every pass.
        model: what ``loss_of`` runs, so that running statistics of batch norm and all other buffers move once a step,
            as the base alone would move them. Several go together in a ``torch.nn.ModuleList``. With None they move in
            every pass.
        fraction: climb along the gradient of so much of the batch, in (0, 1], which costs as little. Then buffers move
            in the sharp pass, which sees everything. Plain optimizers do not climb, and take no notice.
        micro: at most so many examples at once, for batches larger than memory; every pass adds up the gradients of all
            parts, so that the step is that of the whole batch. Batch norm sees the parts, and moves with each of them.
        same_dropout: whether all passes of the step draw the same random numbers.
        backward: what is called with the loss in place of ``loss.backward()``, as ``accelerator.backward``.
        scaler: multiplies the losses, steps the base or skips it, and is updated. One that ``backward`` has inside, as
            accelerate's for fp16, needs `accumulated_step` with its ``scale``.

    Returns:
        The clean loss, detached: that of the batch at the weights before the step. Where a step with ``fraction``
        climbs, that of the part; of a method without a clean pass, that at ``w + delta``.

    Raises:
        TypeError: if ``opt`` is not an optimizer, or one around a sharpness-aware one; if ``model`` is not a module, or
            ``loss_of`` not a function that returns a tensor; if there is a ``fraction``, but no clean pass; for batches
            that cannot be cut.
        ValueError: if ``loss_of`` returns more than one number; if ``fraction`` or ``micro`` is out of range; with a
            ``fraction`` and a ``scaler``, if the trigger looks at gradients.
        RuntimeError: if no parameter has a gradient after a pass.

    Note:
        For one batch, on one process or in DDP. `accumulated_step` is for several batches that a loader hands out one
        by one, for climbs of each of them or of each process, and for FSDP2, where it saves memory and traffic.

        To clip what the base sees, use ``opt.base.register_step_pre_hook``. What else happens between passes, as the
        choice of the hardest examples for `ESAM`, needs a closure of your own: `SharpnessAware.step`.

    Example:
        >>> import torch
        >>> from steppe import SAM, train_step
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
        >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def loss_of(batch):
        ...     x, y = batch
        ...     return torch.nn.functional.mse_loss(model(x), y)
        >>> loss = train_step(opt, (torch.randn(8, 2), torch.zeros(8, 1)), loss_of, model=model, fraction=0.5)
        >>> loss.shape, model[0].num_batches_tracked
        (torch.Size([]), tensor(1))
    """
    _check(opt, loss_of, model, fraction, scaler)
    sharp = opt if isinstance(opt, SharpnessAware) else None
    part = None if sharp is None or sharp.looks_whole() else fraction
    draws = same_random_state() if same_dropout else nullcontext()
    losses: list[Tensor] = []  # of the passes so far

    def run(examples: Any, *, leaves_traces: bool) -> Tensor:
        opt.zero_grad()
        with draws, nullcontext() if leaves_traces or model is None else _without_traces(model):
            losses.append(_pass(examples, loss_of, micro, model, partial(_backward, backward, scaler)))
        return losses[-1]

    def closure() -> Tensor:
        # The first pass over everything counts: with a part that is the only one, and never comes after another.
        return run(batch, leaves_traces=part is not None or not losses)

    def ascent() -> Tensor:
        return run(fraction_of(batch, part), leaves_traces=False)  # type: ignore[arg-type]

    along = None if part is None else ascent
    if sharp is None:
        _plain_step(opt, closure, scaler)
        return losses[0]  # some evaluate the batch more than once
    if scaler is None:
        return sharp.step(closure, ascent=along)
    loss = accumulated_step(
        sharp,
        [batch],
        lambda _: closure(),
        ascent=None if along is None else lambda _: along(),
        model=model,
        scale=_scale(sharp, scaler),
        step=lambda: scaler.step(sharp.base),
    )
    scaler.update()
    assert loss is not None
    return loss


def _pass(
    batch: Any,
    loss_of: Callable[[Any], Tensor],
    micro: int | None,
    model: nn.Module | None,
    backward: Callable[[Tensor], object],
) -> Tensor:
    """Add the gradient of a batch to what there is, and return its loss."""
    if micro is None:
        loss = _one_number(loss_of(batch))
        backward(loss)
        return loss.detach()
    losses = []
    parts = list(microbatches(batch, micro))
    for k, (examples, weight) in enumerate(parts, start=1):
        with exchanged(model, k == len(parts)):
            loss = weight * _one_number(loss_of(examples))
            backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _backward(backward: Callable[[Tensor], object] | None, scaler: torch.amp.GradScaler | None, loss: Tensor) -> None:
    scaled: Tensor = loss if scaler is None else scaler.scale(loss)
    if backward is None:
        scaled.backward()  # type: ignore[no-untyped-call]
    else:
        backward(scaled)


def _plain_step(opt: Optimizer, closure: Callable[[], Tensor], scaler: torch.amp.GradScaler | None) -> None:
    if needs_closure(opt):
        opt.step(closure)  # type: ignore[arg-type]
        return
    with torch.enable_grad():
        closure()
    if scaler is None:
        opt.step()
    else:
        scaler.step(opt)
        scaler.update()


def _scale(opt: SharpnessAware, scaler: torch.amp.GradScaler) -> Scalar:
    """Return what a scaler multiplies gradients by, without waiting for an accelerator."""
    if not opt.needs_scale:
        return 1.0
    first: Tensor = opt.base.param_groups[0]["params"][0]
    scale: Tensor = scaler.scale(torch.ones((), device=first.device))
    return scale


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Surround a pass that leaves nothing behind but gradients."""
    with frozen_norm_stats(model), frozen_buffers(model, norm_stats=False):
        yield


def _one_number(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss_of must return the loss, a tensor, got {type(loss).__name__}. Return it alone, before backward()."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"loss_of must return one number, got a tensor of shape {tuple(loss.shape)}. Return its mean, for example."
        )
    return loss


def _check(
    opt: object, loss_of: object, model: object, fraction: float | None, scaler: torch.amp.GradScaler | None
) -> None:
    if not isinstance(opt, Optimizer):
        raise TypeError(
            f"opt must be an instance of torch.optim.Optimizer, got {type(opt).__name__}. The arguments are an "
            "optimizer, a batch and a function that returns its loss."
        )
    if not callable(loss_of):
        raise TypeError(
            f"loss_of must be a function of a batch that returns its loss, got {type(loss_of).__name__}. Write for "
            "example lambda batch: loss_fn(model(batch[0]), batch[1])."
        )
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}. Put several into a torch.nn.ModuleList."
        )
    if fraction is not None:
        need_fraction(fraction)
    if not isinstance(opt, SharpnessAware):
        for inside in with_inner(opt):
            if isinstance(inside, SharpnessAware):
                raise TypeError(
                    f"opt is {type(opt).__name__} around {type(inside).__name__}. Give the {type(inside).__name__} "
                    "itself, and let its base be wrapped."
                )
    elif fraction is not None:
        refuse = need_clean_pass if scaler is None else check_fraction_allowed
        refuse(opt, "fraction=")
