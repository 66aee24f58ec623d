"""Half precision in Hugging Face's Trainer, against loops by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from by_hand import cuts
from trainers import (
    CLIP,
    METHODS,
    SharpTrainer,
    arguments,
    bert,
    mean_over_the_update,
    optimizer_of_the_trainer,
    sentences,
    weights,
)

from steppe._tensors import Ops

pytestmark = pytest.mark.usefixtures("own_state", "quick_collections")


class Scaled(SharpTrainer):
    """What fp16 is on an accelerator, on the CPU, where accelerate itself offers it not: autocast and a GradScaler."""

    init_scale = 2.0**10

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        assert self.accelerator.mixed_precision == "fp16"
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.init_scale, growth_interval=4)


class Overflowing(Scaled):
    init_scale = 2.0**19


def half_by_hand(model, steps, method, dtype, fused, init_scale=None):
    """The loop of `trained_by_hand`, with autocast around each forward pass; return the skipped steps."""
    base, schedule = optimizer_of_the_trainer(model, steps, fused=fused)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=init_scale or 1.0, growth_interval=4, enabled=init_scale is not None
    )
    params = [p for group in base.param_groups for p in group["params"]]
    skipped = []
    for number, parts in enumerate(steps):
        examples = sum(len(batch) for part in parts for batch in part)

        def gradient(part, examples=examples):
            model.zero_grad()
            for batch in part:
                words, labels = (
                    torch.stack([torch.as_tensor(row[k]) for row in batch]) for k in ("input_ids", "labels")
                )
                with torch.autocast("cpu", dtype):
                    logits = model(input_ids=words).logits
                loss = F.cross_entropy(logits.float(), labels, reduction="sum") / examples
                scaler.scale(loss).backward()
            return [p.grad for p in params]

        handed = [torch.zeros_like(p) for p in params]
        for part in parts:
            clean = gradient(part)
            # To the bit, of which half precision makes much.
            norm = float(Ops.choose(params, None, clean).norm(clean))
            radius = 0.1 / scaler.get_scale() if method == "usam" else 0.1 * (1 / norm)
            before = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, g in zip(params, clean, strict=True):
                    if math.isfinite(norm):
                        p.add_(g, alpha=radius)
            for total, g in zip(handed, gradient(part), strict=True):
                total += g
            with torch.no_grad():
                for p, b in zip(params, before, strict=True):
                    p.copy_(b)
        for p, total in zip(params, handed, strict=True):
            p.grad = total
        scaler.unscale_(base)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scale = scaler.get_scale()
        scaler.step(base)
        scaler.update()
        if scaler.get_scale() < scale:
            skipped.append(number)
        # The skipping of a fused optimizer is its own, and accelerate does not see it.
        if fused or number not in skipped:
            schedule.step()
    return skipped


@pytest.mark.parametrize(
    ("method", "accumulation", "climb"), [("sam", 1, "replay"), ("usam", 2, "replay"), ("usam", 2, "micro")]
)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "overflow"])
@pytest.mark.stack("Hugging Face Trainer", "AMP")
def test_half_precision_equals_a_loop_by_hand(tmp_path, kind, fused, method, accumulation, climb):
    trainer_class = {"bf16": SharpTrainer, "fp16": Scaled, "overflow": Overflowing}[kind]
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    half = {"bf16" if kind == "bf16" else "fp16": True, "optim": "adamw_torch_fused" if fused else "adamw_torch"}
    trainer = trainer_class(
        bert(dtype=torch.float32),
        arguments(tmp_path, gradient_accumulation_steps=accumulation, **half),
        train_dataset=sentences(),
        compute_loss_func=mean_over_the_update,
        sharpness=METHODS[method],
        climb=climb,
    )
    trainer.train()
    other = bert(dtype=torch.float32)
    steps = cuts(sentences(), 4, accumulation, climb) * 2
    skipped = half_by_hand(other, steps, method, dtype, fused, getattr(trainer, "init_scale", None))
    torch.testing.assert_close(weights(trainer.model), weights(other), rtol=0, atol=1e-6)
    assert 0 < len(skipped) < len(steps) if kind == "overflow" else not skipped
    assert trainer.sharpness_aware.state["engine"]["step"] == len(steps) - len(skipped)
