"""A small BERT, Trainers for it, and the loop that they must come to, written out by hand."""

from __future__ import annotations

import torch
from by_hand import handed_on
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from steppe import GSAM, SAM, USAM, LightSAM, SharpnessAware
from steppe.ascents import L2
from steppe.integrations.transformers import SharpnessAwareTrainerMixin
from steppe.triggers import Every

LR, DECAY, CLIP, WARM = 1e-2, 0.1, 0.2, 2
METHODS = {
    "sam": lambda base: SAM(base, rho=0.1),
    "usam": lambda base: USAM(base, rho=0.1),
    "gsam": lambda base: GSAM(base, rho=0.1, alpha=0.4),
}


class SharpTrainer(SharpnessAwareTrainerMixin, Trainer):
    pass


def bert(dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config).to(dtype)


def sentences(n=20):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 50, (n, 6), generator=generator)
    return [{"input_ids": w, "labels": int(w[0]) % 3} for w in words]


def mean_over_the_update(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def arguments(folder, **changes):
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": LR,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "warmup_steps": WARM,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**settings, **changes})


def loss_of(model, batches, examples, smoothing=0.0):
    """What some micro-batches have in the mean over all ``examples`` of an update."""
    losses = []
    for batch in batches:
        words, labels = (torch.stack([torch.as_tensor(row[name]) for row in batch]) for name in ("input_ids", "labels"))
        logits = model(input_ids=words).logits
        losses.append(F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) / examples)
    return torch.stack(losses).sum()


def optimizer_of_the_trainer(model, steps, **options):
    decayed = [p for name, p in model.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    others = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    base = torch.optim.AdamW(groups, lr=LR, **options)
    return base, get_linear_schedule_with_warmup(base, WARM, len(steps))


def trained_by_hand(model, steps, method, smoothing=0.0):
    """Train as the Trainer does, without it and without this library; return the clean losses."""
    base, schedule = optimizer_of_the_trainer(model, steps, foreach=False)
    losses = []
    for parts in steps:
        examples = sum(len(batch) for part in parts for batch in part)
        losses.append(sum(loss_of(model, part, examples, smoothing).item() for part in parts))
        grads = [
            handed_on(model, lambda part=part, n=examples: loss_of(model, part, n, smoothing), method) for part in parts
        ]
        for p, *gs in zip(model.parameters(), *grads, strict=True):
            p.grad = sum(gs)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        base.step()
        schedule.step()
    return losses


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def every_third(base):
    return SharpnessAware(base, ascent=L2(), trigger=Every(3), rho=0.1)


REMEMBERING = (LightSAM, {"lr": 0.05, "rho": 0.1, "variant": "adam"})
