"""What surrounds the passes that `SharpnessAwareCallback` runs, and what it puts in Lightning's place meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from torch import nn
from torchmetrics import Metric, MetricCollection

from ..optimizer import SharpnessAware


@contextmanager
def kept_outputs(closure: Any) -> Iterator[None]:
    """Let hooks get the outputs that ``closure`` has now."""
    if not isinstance(closure, AbstractClosure):
        warnings.warn(
            "LightningModule.optimizer_step passes a closure of its own to the optimizer, so that on_train_batch_end "
            "gets the outputs of the sharp pass. Pass the closure it was given.",
            stacklevel=2,
        )
        yield
        return
    clean = closure._result
    yield
    closure._result = clean


def warn_random_state() -> None:
    warnings.warn(
        "same_random_state=True does nothing for sharp passes that training_step runs by itself: only a closure tells "
        "where the clean pass began. Put both passes into one steppe.passes.same_random_state(), and construct "
        "SharpnessAwareCallback(same_random_state=False).",
        stacklevel=2,
    )


def scale_of(trainer: Trainer, opt: SharpnessAware) -> Any:
    """Return what the loss is multiplied by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not opt.needs_scale:
        return 1.0
    return scaler.scale(torch.ones((), device=trainer.strategy.root_device))


def clipping_base(precision: Any) -> Callable[..., None]:
    """Return ``precision.clip_gradients`` for both kinds of optimizers.

    With mixed precision it refuses optimizers that claim to handle scaled gradients, of which `SharpnessAware` is one.
    """
    plain = precision.clip_gradients

    def clip_gradients(optimizer: Any, clip_val: float = 0.0, *args: Any, **kwargs: Any) -> None:
        if isinstance(optimizer, SharpnessAware):
            if clip_val > 0 and getattr(precision, "scaler", None) is not None:
                raise RuntimeError(
                    "The gradients are multiplied by a GradScaler before opt.step(). Clip them in "
                    "on_before_optimizer_step(self, optimizer) of the LightningModule, with "
                    "self.clip_gradients(optimizer, ...)."
                )
            optimizer = optimizer.base
        plain(optimizer, clip_val, *args, **kwargs)

    return clip_gradients


def metrics_of(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module, Any]]:
    """Return where the metrics of ``module`` are, and an empty copy of each to be used instead in sharp passes."""
    found: list[tuple[nn.Module, str, nn.Module, Any]] = []
    spares: dict[int, Any] = {}  # metrics have an == of their own
    inside: tuple[str, ...] = ()
    for name, metric in module.named_modules(remove_duplicate=False):
        if not isinstance(metric, (Metric, MetricCollection)) or name.startswith(inside):
            continue
        inside += (f"{name}.",)
        if id(metric) not in spares:
            spares[id(metric)] = metric.clone()
            spares[id(metric)].reset()
        parent, _, attribute = name.rpartition(".")
        found.append((module.get_submodule(parent), attribute, metric, spares[id(metric)]))
    return found


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give one object another attribute for a while."""
    before = [vars(owner)[name]] if name in vars(owner) else []
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before:
            setattr(owner, name, before[0])
        else:
            delattr(owner, name)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass
