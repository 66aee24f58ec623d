"""What `SharpnessAwareCallback` refuses before a fit begins."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from ..accumulation import check_fraction_allowed
from ..optimizer import SharpnessAware

_STRATEGIES = {
    "DeepSpeedStrategy": "DeepSpeed runs the closure once and steps by itself, without a sharp pass. Use DDP, or "
    "ModelParallelStrategy (FSDP2) for models that are larger than a device.",
    "FSDPStrategy": "FSDP cuts parameters into plain tensors, so that every process would climb along the part of the "
    "gradient that it holds, by its own norm. Use ModelParallelStrategy (FSDP2).",
    "XLAStrategy": "Lightning adds gradients up after the closure, so that every process would climb along its own. "
    "Use DDP.",
    "SingleDeviceXLAStrategy": "XLA has not been tried. Use a CPU or a GPU.",
}


def callbacks_of(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def check_strategy(strategy: Any) -> None:
    for kind in type(strategy).__mro__:
        if kind.__name__ in _STRATEGIES:
            raise ValueError(
                f"{type(strategy).__name__} cannot take sharpness-aware steps: {_STRATEGIES[kind.__name__]}"
            )


def check_batches(pl_module: LightningModule) -> None:
    if not pl_module.automatic_optimization:
        return
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            "training_step(dataloader_iter) would take another batch in the sharp pass. Let it take (batch, "
            "batch_idx), or use manual optimization with a closure."
        )


def check_fraction(fraction: float | None, pl_module: LightningModule) -> None:
    if fraction is not None and not pl_module.automatic_optimization:
        raise ValueError(
            "fraction= is for automatic optimization. With manual optimization let the closure of the clean pass take "
            "a part, as in opt.optimizer.step(closure, ascent=...) and steppe.batches.fraction_of."
        )


def check_optimizers(trainer: Trainer, fraction: float | None) -> None:
    ours = [opt for opt in trainer.optimizers if isinstance(opt, SharpnessAware)]
    if not ours:
        found = ", ".join(type(opt).__name__ for opt in trainer.optimizers) or "none"
        raise ValueError(
            f"SharpnessAwareCallback found no sharpness-aware optimizer, but {found}. Return one from "
            "configure_optimizers, for example SAM(torch.optim.SGD(self.parameters(), lr=0.1), rho=0.05)."
        )
    saving = [c for c in trainer.checkpoint_callbacks if not getattr(c, "save_weights_only", False)]
    if isinstance(trainer.strategy, ModelParallelStrategy) and saving:
        refuse_states()
    if fraction is not None:
        for opt in ours:
            check_fraction_allowed(opt, "fraction=")


def refuse_states(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "ModelParallelStrategy cannot save or load the state of sharpness-aware optimizers: "
        "torch.distributed.checkpoint knows no optimizer state but that of parameters. Use "
        "ModelCheckpoint(save_weights_only=True) or Trainer(enable_checkpointing=False), and no ckpt_path."
    )
