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

from steppe import GSAM, MSAM, SAM, USAM, LightSAM, LookSAM, SharpnessAware
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


CHEAP = {
    "msam": lambda base: MSAM(base, rho=0.1),
    "looksam": lambda base: LookSAM(base, rho=0.1, k=2, alpha=0.3),
}


def cheaply_by_hand(model, steps, method):
    """The same for methods with less than two passes, one climb to an update; return losses and passes."""
    base, schedule = optimizer_of_the_trainer(model, steps, foreach=False)
    params, losses, passes, v = list(model.parameters()), [], [], None

    def gradient(part, moved=None):
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, d in zip(params, moved or [0.0] * len(params), strict=True):
                p += d
        loss = loss_of(model, part, sum(len(batch) for batch in part))
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.copy_(w)
        passes[-1] += len(part)
        return loss.item(), grads

    def dot(xs, ys):
        return sum((x * y).sum() for x, y in zip(xs, ys, strict=True))

    for t, ((part,),) in enumerate(zip(steps, strict=True)):
        passes.append(0)
        if method == "msam":
            m = [base.state[p]["exp_avg"] for p in params] if t else None
            loss, grads = gradient(part, m and [-0.1 * d / dot(m, m) ** 0.5 for d in m])
        else:
            loss, g = gradient(part)
            if t % 2 == 0:
                _, grads = gradient(part, [0.1 * d / dot(g, g) ** 0.5 for d in g])
                v = [s - dot(g, grads) / dot(g, g) * d for s, d in zip(grads, g, strict=True)]
            else:
                grads = [d + 0.3 * (dot(g, g) / dot(v, v)) ** 0.5 * e for d, e in zip(g, v, strict=True)]
        losses.append(loss)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(params, CLIP)
        base.step()
        schedule.step()
    return losses, passes


REMEMBERING = (LightSAM, {"lr": 0.05, "rho": 0.1, "variant": "adam"})
