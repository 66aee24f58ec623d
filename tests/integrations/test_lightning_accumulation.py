"""The Trainer with automatic optimization and accumulate_grad_batches, against `accumulated_step` in a plain loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from lightning_problem import (  # noqa: E402
    METHODS,
    QUIET,
    STEPS,
    TRIGGERS,
    Module,
    Resumable,
    accumulated,
    batches,
    fit,
    loader,
    same_bits,
    scaler,
    trainer,
    without_noise,
)
from test_lightning import Busy, Chatty, Recorder  # noqa: E402

from steppe import MSAM, SAM  # noqa: E402
from steppe.integrations.lightning import SharpnessAwareCallback  # noqa: E402

pytestmark = QUIET


MAKES = {**METHODS, **TRIGGERS}
over_makes = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
over_methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@over_makes
@pytest.mark.parametrize("k", [2, 4], ids=["whole", "with a rest"])
@pytest.mark.parametrize(
    ("precision", "dtype", "amp"),
    [("64-true", torch.float64, None), ("bf16-mixed", torch.float32, torch.bfloat16)],
)
@pytest.mark.stack("Lightning", "accumulation", "AMP")
def test_accumulating_is_a_climb_for_each_micro_batch(make, k, precision, dtype, amp):
    """A rest at the end of an epoch makes a step of its own, its losses divided as ever."""
    module = Module(make)
    host = fit(module, precision=precision, accumulate_grad_batches=k, max_epochs=2)
    assert host.global_step == host.optimizers[0].state["engine"]["step"] == 2 * -(-STEPS // k)
    assert same_bits(module.net, accumulated(make, [k, k], dtype=dtype, amp=amp))


def test_a_trigger_gathers_what_it_gathers_in_a_plain_loop():
    """In steps that are not due, too, of each micro-batch by itself."""
    module, found = Module(TRIGGERS["every large gradient"]), []
    host = fit(module, precision="64-true", accumulate_grad_batches=2)
    accumulated(
        lambda params: found.append(TRIGGERS["every large gradient"](params)) or found[0], [2], dtype=torch.float64
    )
    ours, theirs = (dict(opt.state["shared"]) for opt in (host.optimizers[0], found[0]))
    assert ours == theirs != {}


def test_it_is_m_sam_written_out():
    module = Module(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.1))
    fit(without_noise(module), precision="64-true", accumulate_grad_batches=3)
    net = without_noise(Module()).net.double()
    params = list(net.parameters())
    for i in range(0, STEPS, 3):
        w = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in params]
        for x, y in batches()[i : i + 3]:
            g = torch.autograd.grad(nn.functional.cross_entropy(net(x.double()), y) / 3, params)
            norm = sum(d.square().sum() for d in g).sqrt()
            with torch.no_grad():
                for p, d in zip(params, g, strict=True):
                    p += 0.1 * d / norm
            s = torch.autograd.grad(nn.functional.cross_entropy(net(x.double()), y) / 3, params)
            with torch.no_grad():
                for p, before, t, d in zip(params, w, total, s, strict=True):
                    p.copy_(before)
                    t += d
        with torch.no_grad():
            for p, t in zip(params, total, strict=True):
                p -= 0.1 * t
    for p, q in zip(module.net.parameters(), params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_norm_statistics_and_random_state(freeze, same):
    module = Module()
    sam = SharpnessAwareCallback(freeze_norm_stats=freeze, same_random_state=same)
    fit(module, sam=sam, accumulate_grad_batches=2)
    assert same_bits(module.net, accumulated(METHODS["sam"], [2], freeze=freeze, same=same))
    assert not same_bits(module.net, accumulated(METHODS["sam"], [2], freeze=not freeze, same=same))
    assert not same_bits(module.net, accumulated(METHODS["sam"], [2], freeze=freeze, same=not same))


@pytest.mark.parametrize("method", ["sam", "usam", "gsam", "looksam"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.stack("Lightning", "accumulation", "AMP")
def test_clean_passes_may_see_a_part_of_each_micro_batch(method, amp):
    module, sam = Module(METHODS[method]), SharpnessAwareCallback(fraction=0.3)
    fit(module, sam=sam, precision="bf16-mixed" if amp else "32-true", accumulate_grad_batches=2)
    assert same_bits(module.net, accumulated(METHODS[method], [2], amp=amp, part=3))
    assert not same_bits(module.net, accumulated(METHODS[method], [2], amp=amp))


@over_methods
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.stack("Lightning", "clip")
def test_clipping_acts_once_on_the_sum(make, algorithm):
    module = Module(make)
    bound = {"norm": 0.3, "value": 0.03}[algorithm]
    fit(module, gradient_clip_val=bound, gradient_clip_algorithm=algorithm, accumulate_grad_batches=2)
    clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[algorithm]
    assert same_bits(module.net, accumulated(make, [2], clip=lambda params: clip(params, bound)))
    assert not same_bits(module.net, accumulated(make, [2]))


@pytest.mark.parametrize("method", ["sam", "usam", "gsam", "lightsam", "looksam", "msam"])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.stack("Lightning", "AMP", "clip", "accumulation")
def test_fp16_is_the_plain_loop_with_a_scaler(method, clipped):
    module, reference = Module(METHODS[method]), scaler()
    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    clipping = {"gradient_clip_val": 0.3} if clipped else {}
    host = fit(module, plugins=[plugin], accumulate_grad_batches=2, max_epochs=2, **clipping)
    clip = (lambda params: nn.utils.clip_grad_norm_(params, 0.3)) if clipped else None
    net = accumulated(METHODS[method], [2, 2], amp=torch.float16, scaler=reference, clip=clip)
    assert same_bits(module.net, net)
    assert plugin.scaler.get_scale() == reference.get_scale()
    assert 0 < host.optimizers[0].state["engine"]["step"] < STEPS == host.global_step  # those that overflow are skipped


@pytest.mark.parametrize("method", ["sam", "msam", "looksam"])
def test_how_many_there_are_may_change_with_the_epoch(method):
    module = Module(METHODS[method])
    host = fit(module, GradientAccumulationScheduler({0: 1, 1: 3, 2: 2}), max_epochs=3)
    assert host.global_step == 6 + 2 + 3
    assert same_bits(module.net, accumulated(METHODS[method], [1, 3, 2]))


def test_how_many_there_are_may_change_within_an_epoch():
    class Later(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.accumulate_grad_batches = 1 if batch_idx < 2 else 2

    module = Busy()
    module.sam = SharpnessAwareCallback()
    host = fit(module, Later(), sam=module.sam)
    one, two = ["clean", "zero", "sharp"], ["clean", "sharp"]
    assert module.calls == [*[*one, "step", "end"] * 2, *[*one, "end", *two, "step", "end"] * 2]
    assert host.global_step == 4


# What a micro-batch leaves behind


@pytest.mark.parametrize(
    ("method", "fraction", "passes"),
    [
        ("sam", None, ["clean", "sharp"]),
        ("sam", 0.25, ["clean", "sharp"]),
        ("gsam", None, ["clean", "sharp"]),
        ("msam", None, ["clean"]),
    ],
)
def test_a_micro_batch_leaves_behind_what_one_pass_leaves(method, fraction, passes):
    module, chatty, recorder = Busy(METHODS[method]), Chatty(), Recorder()
    module.sam, counts = SharpnessAwareCallback(fraction=fraction), []
    module.on_train_epoch_end = lambda: counts.extend(
        m.update_count for m in (module.mean, *module.sums["inner"].values())
    )
    host = fit(
        module, chatty, sam=module.sam, logger=recorder, log_every_n_steps=1, accumulate_grad_batches=2, max_epochs=1
    )
    assert host.global_step == STEPS // 2
    first = [*passes, "zero"] if fraction or len(passes) == 1 else [passes[0], "zero", *passes[1:]]
    assert module.calls == [*first, "end", *passes, "step", "end"] * (STEPS // 2)
    # The clean pass over a part leaves nothing behind but its gradient, of which this callback hears all the same.
    assert chatty.zeroed == STEPS // 2
    assert chatty.went_back == len(passes) * STEPS
    assert counts == [STEPS] * 3
    assert module.net[1].num_batches_tracked == STEPS
    steps, (_, epoch) = recorder.rows[:-1], recorder.rows[-1]
    assert [step for step, _ in steps] == list(range(STEPS // 2))
    logged = [row["loss_step"] for _, row in steps]
    # `outputs` are divided, as Lightning divides them; what is logged is not. A logger hears of every second one.
    ours = [2 * loss for loss, _ in module.outputs]
    assert logged == pytest.approx(ours[1::2])
    assert [number for _, number in module.outputs] == pytest.approx(ours)
    assert epoch["loss_epoch"] == pytest.approx(sum(ours) / STEPS)
    if fraction is None:
        assert [number for _, number in module.outputs] == module.clean


def test_weights_are_w_between_micro_batches():
    module = Module()
    weights = []
    module.on_train_batch_end = lambda *_: weights.append([p.detach().clone() for p in module.net.parameters()])
    fit(module, accumulate_grad_batches=3)
    moved = [not all(map(torch.equal, p, q)) for p, q in itertools.pairwise(weights)]
    assert moved == [False, True, False, False, True]


@pytest.mark.parametrize("without", [{0}, {1}, {2, 3}, {5}], ids=["first", "second", "a whole step", "last"])
@pytest.mark.parametrize(
    "make",
    [*(METHODS[method] for method in ("sam", "gsam", "looksam", "msam")), TRIGGERS["every"]],
    ids=["sam", "gsam", "looksam", "msam", "every"],
)
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")  # Lightning says so once
def test_a_micro_batch_without_loss_is_skipped(make, without):
    module = Module(make)
    inner = module.training_step
    module.training_step = lambda batch, batch_idx: None if batch_idx in without else inner(batch, batch_idx)
    host = fit(module, accumulate_grad_batches=2)
    assert host.global_step == STEPS // 2
    if len(without) == 1:
        assert same_bits(module.net, accumulated(make, [2], skip=without))
    else:  # the base steps without a gradient
        assert host.optimizers[0].state["engine"]["step"] == STEPS // 2


@pytest.mark.parametrize("warmup", [0, 2, 99])
def test_a_method_without_a_clean_pass_may_wait(warmup):
    def make(params):
        return MSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1, warmup=warmup)

    module = Module(make)
    fit(module, accumulate_grad_batches=2, max_epochs=2)
    assert same_bits(module.net, accumulated(make, [2, 2]))


class Wrapping(Module):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=lambda: optimizer_closure())


class ByHand(Module):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()
        optimizer.step()


@pytest.mark.parametrize("module", [Wrapping, ByHand])
def test_whoever_calls_the_closure_climbs(module):
    module = module()
    fit(module, accumulate_grad_batches=2)
    assert same_bits(module.net, accumulated(METHODS["sam"], [2]))


def test_a_plain_optimizer_accumulates_as_ever():
    """There is a method when the fit begins; another optimizer takes its place later."""

    class Swapping(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.strategy.optimizers = [trainer.optimizers[0].base]

    module = Module(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.1))
    fit(module, Swapping(), accumulate_grad_batches=2)
    assert same_bits(module.net, accumulated(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.0), [2]))


@pytest.mark.parametrize("method", ["sam", "gsam", "msam"])
@pytest.mark.parametrize("in_the_sharp_pass", [False, True])
@pytest.mark.parametrize("at", [2, 3], ids=["before the last", "last"])
def test_nothing_is_left_of_a_fit_that_fails(method, in_the_sharp_pass, at):
    module = Module(METHODS[method])
    module.sam = SharpnessAwareCallback()
    inner, host = module.training_step, trainer(sam=module.sam, accumulate_grad_batches=2)
    in_the_sharp_pass = in_the_sharp_pass and method != "msam"

    def fails(batch, batch_idx):
        if batch_idx == at and module.sam.in_sharp_pass == in_the_sharp_pass:
            raise ArithmeticError("no more")
        return inner(batch, batch_idx)

    module.training_step = fails
    at_w = []
    module.on_train_batch_start = lambda *_: at_w.append([p.detach().clone() for p in module.net.parameters()])
    with pytest.raises(ArithmeticError, match="no more"):
        host.fit(module, loader())
    assert all(map(torch.equal, module.net.parameters(), at_w[-1]))
    assert not module.sam.in_sharp_pass
    assert "_make_closure" not in vars(host.fit_loop.epoch_loop.automatic_optimization)
    assert not host.optimizers[0]._visits.around


@over_makes
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.stack("Lightning", "resume")
def test_resuming_is_going_on_bit_for_bit(make, k, tmp_path):
    """From a checkpoint within an epoch, or at its end after a rest."""
    each = -(-STEPS // k)
    whole = Module(make, schedule=True)
    host = fit(whole, data=Resumable(), max_epochs=2, accumulate_grad_batches=k)

    def saver():
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)

    cut = {"max_steps": 2, "enable_checkpointing": True, "accumulate_grad_batches": k}
    fit(Module(make, schedule=True), saver(), data=Resumable(), **cut)
    module = Module(make, schedule=True)
    resumed = trainer(saver(), max_epochs=2, enable_checkpointing=True, accumulate_grad_batches=k)
    resumed.fit(module, Resumable(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.global_step == host.global_step == 2 * each
    assert same_bits(module.net, whole.net)
    torch.testing.assert_close(host.optimizers[0].state_dict(), resumed.optimizers[0].state_dict(), rtol=0, atol=0)
