"""The Trainer with manual optimization, and Fabric, against plain loops."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning_problem import (
    METHODS,
    QUIET,
    STEPS,
    Ascended,
    ClippedAscended,
    ClippedByHand,
    ClippedManual,
    Manual,
    Module,
    Resumable,
    WithLoss,
    alone,
    batches,
    callback_of,
    fit,
    network,
    plain,
    same_bits,
    scaler,
    trainer,
    without_noise,
)

import steppe
from steppe import SAM
from steppe.integrations.lightning import SharpnessAwareCallback
from steppe.passes import frozen_norm_stats, same_random_state

pytestmark = QUIET
over_methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


# Manual optimization


@over_methods
@pytest.mark.parametrize("module", [Manual, Ascended])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.stack("Lightning, manual optimization", "plain", "AMP")
def test_manual_optimization_is_the_plain_loop(make, module, precision):
    module = module(make)
    host = fit(module, sam=callback_of(module), precision=precision)
    assert host.global_step == STEPS
    assert same_bits(module.net, plain(make, amp=torch.bfloat16 if precision == "bf16-mixed" else None))


@pytest.mark.parametrize("module", [Manual, Ascended])
@pytest.mark.stack("Lightning, manual optimization", "AMP")
def test_manual_optimization_with_fp16(module):
    module, reference = module(), scaler()
    fit(module, sam=callback_of(module), plugins=[MixedPrecision("16-mixed", "cpu", scaler())])
    assert same_bits(module.net, plain(METHODS["sam"], amp=torch.float16, scaler=reference))


@over_methods
@pytest.mark.parametrize("module", [ClippedManual, ClippedAscended, ClippedByHand])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["32-true", "bf16-mixed"])
@pytest.mark.stack("Lightning, manual optimization", "clip")
def test_manual_clipping_acts_on_what_the_base_sees_and_on_nothing_else(make, module, algorithm, amp):
    module = module(make)
    bound, clip = {"norm": (0.3, nn.utils.clip_grad_norm_), "value": (0.03, nn.utils.clip_grad_value_)}[algorithm]
    module.clip = {"gradient_clip_val": bound, "gradient_clip_algorithm": algorithm}
    fit(module, sam=callback_of(module), precision="bf16-mixed" if amp else "32-true")
    assert same_bits(module.net, plain(make, amp=amp, clip=lambda params: clip(params, bound)))
    assert not same_bits(module.net, plain(make, amp=amp))


@pytest.mark.parametrize("module", [ClippedManual, ClippedAscended])
@pytest.mark.stack("Lightning, manual optimization", "AMP", "clip")
def test_manual_clipping_in_fp16(module):
    module, plugin, reference = module(), MixedPrecision("16-mixed", "cpu", scaler()), scaler()
    host = fit(module, sam=callback_of(module), plugins=[plugin])
    clip = {"clip": lambda params: nn.utils.clip_grad_norm_(params, 0.3)}
    assert same_bits(module.net, plain(METHODS["sam"], amp=torch.float16, scaler=reference, **clip))
    assert not same_bits(module.net, plain(METHODS["sam"], amp=torch.float16, scaler=scaler()))
    assert plugin.scaler.get_scale() == reference.get_scale() != 2.0**19
    assert 0 < host.optimizers[0].state["engine"]["step"] < STEPS  # steps that overflow are skipped


@pytest.mark.stack(
    "Lightning, manual optimization",
    "clip",
    refused="The gradients are multiplied by a GradScaler before opt.step(). Clip them in "
    "on_before_optimizer_step(self, optimizer) of the LightningModule, with self.clip_gradients(optimizer, ...).",
)
def test_clipping_what_a_scaler_has_multiplied_is_refused(refusals):
    module = ClippedByHand()
    with pytest.raises(
        RuntimeError,
        match=r"^The gradients are multiplied by a GradScaler before opt\.step\(\)\. Clip them in "
        r"on_before_optimizer_step\(self, optimizer\) of the LightningModule, with self\.clip_gradients\(optimizer, "
        r"\.\.\.\)\.$",
    ) as error:
        fit(module, sam=callback_of(module), plugins=[MixedPrecision("16-mixed", "cpu", scaler())])
    refusals.append(str(error.value))
    module.clip = {"gradient_clip_val": 0.0}
    host = fit(module, sam=callback_of(module), plugins=[MixedPrecision("16-mixed", "cpu", scaler())])
    assert "clip_gradients" not in vars(host.precision_plugin)


def test_automatic_clipping_of_manual_steps_is_refused():
    with pytest.raises(
        MisconfigurationException,
        match=r"^Automatic gradient clipping is not supported for manual optimization\. Remove "
        r"`Trainer\(gradient_clip_val=0\.3\)` or switch to automatic optimization\.$",
    ):
        fit(Manual(), gradient_clip_val=0.3)


@over_methods
@pytest.mark.parametrize("module", [Manual, Ascended])
@pytest.mark.parametrize("weights_only", [None, True], ids=["pickle", "weights-only"])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
# What it warns about is what resuming needs.
@pytest.mark.filterwarnings("ignore:[^$]*The checkpoint will contain the model state AFTER optimization:UserWarning")
@pytest.mark.stack("Lightning, manual optimization", "resume")
def test_resuming_manual_optimization_is_going_on_bit_for_bit(make, module, weights_only, tmp_path):
    def trained(*, path=None, **options):
        one = module(make, schedule=True)
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
        callbacks = [saver] if options.get("enable_checkpointing") else []
        host = trainer(*callbacks, sam=callback_of(one), **options)
        host.fit(one, Resumable(), ckpt_path=path, weights_only=weights_only if path else None)
        return one, host

    whole, host = trained(max_epochs=2)
    trained(max_steps=5, enable_checkpointing=True)
    rest, resumed = trained(max_epochs=2, enable_checkpointing=True, path=tmp_path / "last.ckpt")
    assert rest.began == list(range(4, 2 * STEPS))
    assert resumed.global_step == host.global_step == 2 * STEPS
    assert same_bits(rest.net, whole.net)
    one, other = host.optimizers[0].state_dict(), resumed.optimizers[0].state_dict()
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert one["state"]["engine"]["step"] == 2 * STEPS
    assert one["param_groups"][0]["lr"] != one["param_groups"][0]["initial_lr"]


@over_methods
@pytest.mark.parametrize("module", [Manual, Ascended])
@pytest.mark.stack("Lightning, manual optimization", "accumulation")
def test_manual_accumulation_is_the_whole_batch(make, module):
    whole, parts = without_noise(Module(make)), without_noise(module(make, pieces=4))
    fit(whole, precision="64-true")
    host = fit(parts, sam=callback_of(parts), precision="64-true")
    assert host.global_step == STEPS
    for p, q in zip(parts.net.parameters(), whole.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def m_sam_by_hand():
    net = without_noise(Module().double()).net
    opt = METHODS["sam"](net.parameters())
    for x, y in batches():
        mean = [torch.zeros_like(p) for p in net.parameters()]
        for a, b in zip(x.double().chunk(4), y.chunk(4), strict=True):
            opt.zero_grad()
            nn.functional.cross_entropy(net(a), b).backward()
            with opt.ascended():
                nn.functional.cross_entropy(net(a), b).backward()
            for m, p in zip(mean, net.parameters(), strict=True):
                m += p.grad / 4
        for m, p in zip(mean, net.parameters(), strict=True):
            p.grad = m
        opt.base.step()
    return list(net.parameters())


class MicroSAM(Manual):
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        for x, y in self.parts(batch):

            def closure(x=x, y=y):
                loss = self.loss(x, y) / self.pieces
                self.manual_backward(loss)
                return loss

            opt.optimizer.backward(closure)
        opt.step()


@pytest.mark.stack("Lightning, manual optimization", "accumulation")
def test_m_sam():
    module = without_noise(MicroSAM(pieces=4))
    host = fit(module, sam=SharpnessAwareCallback(same_random_state=False), precision="64-true")
    assert host.global_step == STEPS
    for p, q in zip(module.net.parameters(), m_sam_by_hand(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_several_optimizers():
    class Two(Manual):
        def configure_optimizers(self):
            return METHODS["sam"](self.net[0].parameters()), torch.optim.SGD(self.net[4].parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            sam, sgd = self.optimizers()

            def closure():
                self.zero_grad()
                loss = self.loss(*batch)
                self.manual_backward(loss)
                return loss

            sam.step(closure)
            sgd.step()

    module = without_noise(Two())
    assert fit(module).global_step == 2 * STEPS
    net = without_noise(Module()).net
    sam, sgd = METHODS["sam"](net[0].parameters()), torch.optim.SGD(net[4].parameters(), lr=0.1)
    for x, y in batches():
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        with sam.ascended():
            net.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
        sam.base.step()
        sgd.step()
    assert same_bits(module.net, net)


def test_a_manual_step_without_sharp_pass_is_refused():
    class Forgetful(Manual):
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            if batch_idx == 0:
                super().training_step(batch, batch_idx)
                return
            opt.zero_grad()
            self.manual_backward(self.loss(*batch))
            opt.step()

    with pytest.raises(
        RuntimeError,
        match=r"^opt\.step\(\) came without a closure and without a sharp pass, which is a step of the base alone\. Give "
        r"it a closure that zeroes the gradients, computes the loss, calls self\.manual_backward\(loss\) and returns "
        r'the loss, or run a second backward pass in "with opt\.optimizer\.ascended\(\):" before it\.$',
    ):
        fit(Forgetful(), limit_train_batches=2)
    fit(Forgetful(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.0)))


@pytest.mark.parametrize("within", [True, False], ids=["in it", "without it"])
def test_a_manual_step_in_the_only_pass_or_without_it_is_refused(within):
    before = []

    class Hasty(Ascended):
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            if batch_idx == 0:  # after which there is a momentum
                super().training_step(batch, batch_idx)
                before.extend(p.detach().clone() for p in self.net.parameters())
                return
            opt.zero_grad()
            with opt.optimizer.ascended() if within else nullcontext():
                self.manual_backward(self.loss(*batch))
                opt.step()

    module = Hasty(METHODS["msam"])
    message = {
        True: r"^The weights are at w \+ delta: call opt\.step\(\) after the ascended\(\) block, not in it\.$",
        False: r"^opt\.step\(\) came without a closure and without a sharp pass, ",
    }
    with pytest.raises(RuntimeError, match=message[within]):
        fit(module, sam=callback_of(module), limit_train_batches=2)
    assert all(torch.equal(p, w) for p, w in zip(module.net.parameters(), before, strict=True))


def test_a_manual_step_within_a_sharp_pass_is_refused():
    class Within(Manual):
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            self.manual_backward(self.loss(*batch))
            with opt.ascended():
                self.manual_backward(self.loss(*batch))
                opt.step()

    module = Within()
    before = [p.detach().clone() for p in module.net.parameters()]
    with pytest.raises(
        RuntimeError,
        match=r"^The weights are at w \+ delta: call opt\.step\(\) after the ascended\(\) block, not in it\.$",
    ):
        fit(module, sam=SharpnessAwareCallback(same_random_state=False))
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), before, strict=True))


def test_random_state_of_passes_by_hand_is_warned_about():
    with pytest.warns(
        UserWarning,
        match=r"^same_random_state=True does nothing for sharp passes that training_step runs by itself: only a closure "
        r"tells where the clean pass began\. Put both passes into one steppe\.passes\.same_random_state\(\), and "
        r"construct SharpnessAwareCallback\(same_random_state=False\)\.$",
    ):
        fit(Ascended())


# Fabric


def fabric_closure(fabric, model, opt, x, y):
    same = same_random_state()

    def closure():
        opt.zero_grad()
        with same:
            loss = nn.functional.cross_entropy(model(x), y)
        fabric.backward(loss)
        return loss

    return closure


@over_methods
@pytest.mark.parametrize(
    ("precision", "dtype", "amp"),
    [("32-true", torch.float32, None), ("64-true", torch.float64, None), ("bf16-mixed", torch.float32, torch.bfloat16)],
)
@pytest.mark.stack("Lightning Fabric", "plain", "AMP")
def test_fabric_hands_closures_on(make, precision, dtype, amp):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    net = network()
    model, opt = fabric.setup(net, make(net.parameters()))
    opt.around_sharp_pass(lambda: frozen_norm_stats(net))
    losses = []
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(100 + step)
        with torch.no_grad(), frozen_norm_stats(net):
            expected = nn.functional.cross_entropy(model(x), y)
        torch.manual_seed(100 + step)
        losses.append(opt.step(fabric_closure(fabric, model, opt, x, y)))
        # The loss at w, unless there is one at w + delta alone.
        assert (losses[-1].item() == expected.item()) == (opt.optimizer.ascent.needs_gradient or step == 0)
    assert opt.base is opt.optimizer.base
    assert opt.state_dict()["state"]["engine"]["step"] == STEPS
    assert same_bits(net, plain(make, dtype=dtype, amp=amp, fabric=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.stack("Lightning Fabric", "AMP", "clip")
def test_fabric_with_the_base_clips_and_scales(precision):
    half = precision == "16-mixed"
    options = {"plugins": [FabricMixedPrecision("16-mixed", "cpu", scaler())]} if half else {"precision": precision}
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    net = network()
    sam = METHODS["sam"](net.parameters())
    model, base = fabric.setup(net, sam.base)
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(100 + step)
        same = same_random_state()

        def backward(x=x, y=y, same=same):
            with same:
                loss = nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)

        base.zero_grad()
        backward()
        with sam.ascended(), frozen_norm_stats(net):
            backward()
        fabric.clip_gradients(model, base, max_norm=0.3, error_if_nonfinite=False)
        base.step()
    expected = plain(
        METHODS["sam"],
        amp={"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision],
        scaler=scaler() if half else None,
        clip=lambda params: nn.utils.clip_grad_norm_(params, 0.3),
        fabric=True,
    )
    assert same_bits(net, expected)
    assert (sam.state["engine"]["step"] < STEPS) == half  # steps that overflow are skipped


@pytest.mark.stack("Lightning Fabric", "AMP", refused="Closure use is not currently supported if GradScaler is enabled")
def test_fabric_without_a_closure_or_with_a_scaler_refuses(refusals):
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[FabricMixedPrecision("16-mixed", "cpu", scaler())])
    net = network()
    model, opt = fabric.setup(net, METHODS["sam"](net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    closure = fabric_closure(fabric, model, opt, *batches()[0])
    with pytest.raises(RuntimeError, match="Closure use is not currently supported if GradScaler is enabled") as error:
        opt.step(closure)
    refusals.append(str(error.value))
    closure()
    with pytest.raises(RuntimeError, match=r"The gradients are multiplied by a GradScaler.*scaler\.step\(opt\.base\)"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def accumulating_closure(fabric, model, opt):
    def step(parts):
        def closure():
            opt.zero_grad()
            total = 0.0
            for x, y in parts:
                loss = model(x, y) / len(parts)
                fabric.backward(loss)
                total += loss.detach()
            return total

        return opt.step(closure)

    return step


def accumulated_step(fabric, model, opt, **options):
    def backward(part):
        loss = model(*part) / 4
        fabric.backward(loss)
        return loss

    return lambda parts: steppe.accumulated_step(opt, parts, backward, **options)


def accumulated(make, way, **options):
    """Train in Fabric with steps that accumulate; options of `accumulated_step` give Fabric the base."""
    fabric, net = Fabric(accelerator="cpu", devices=1, precision="64-true"), WithLoss()
    opt = make(net.parameters())
    if options:
        model, base = fabric.setup(net, opt.base)
        options["step"] = base.step
    else:
        model, opt = fabric.setup(net, opt)
    step = way(fabric, model, opt, **options)
    for x, y in batches():
        with torch.no_grad():
            expected = model(x, y)
        loss = step(list(zip(x.chunk(4), y.chunk(4), strict=True)))
        if getattr(opt, "optimizer", opt).ascent.needs_gradient:
            torch.testing.assert_close(loss, expected)
    assert opt.state_dict()["state"]["engine"]["step"] == STEPS
    return net.parameters()


@over_methods
@pytest.mark.parametrize(
    ("way", "options"),
    [(accumulating_closure, {}), (accumulated_step, {}), (accumulated_step, {"climb": "replay"})],
    ids=["closure", "accumulated_step", "accumulated_step with the base"],
)
@pytest.mark.stack("Lightning Fabric", "accumulation")
def test_fabric_accumulation_is_the_whole_batch(make, way, options):
    for p, q in zip(accumulated(make, way, **options), alone(make), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.stack("Lightning Fabric", "accumulation")
def test_fabric_accumulates_m_sam():
    found = accumulated(METHODS["sam"], accumulated_step, climb="micro")
    for p, q in zip(found, m_sam_by_hand(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def by_closure(fabric, method, net):
    model, opt = fabric.setup(net, method)
    return model, opt, lambda x, y: opt.step(fabric_closure(fabric, model, opt, x, y))


def by_base(fabric, method, net):
    model, base = fabric.setup(net, method.base)

    def step(x, y):
        backward = fabric_closure(fabric, model, base, x, y)
        backward()
        with method.ascended() as climbs:
            if climbs:
                backward()
        base.step()

    return model, method, step


@over_methods
@pytest.mark.parametrize("door", [by_closure, by_base])
@pytest.mark.parametrize("weights_only", [None, True], ids=["pickle", "weights-only"])
@pytest.mark.stack("Lightning Fabric", "resume")
def test_fabric_resumes_bit_for_bit(make, door, weights_only, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)

    def trained(until, path=None):
        net = network()
        method = make(net.parameters())
        method.around_sharp_pass(lambda: frozen_norm_stats(net))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(method, 5)
        model, opt, step = door(fabric, method, net)
        state = {"model": model, "optimizer": opt, "schedule": schedule, "done": 0}
        if path:
            assert fabric.load(path, state, weights_only=weights_only) == {}
            assert state["done"] == 3
        for i, (x, y) in list(enumerate(batches()))[state["done"] : until]:
            torch.manual_seed(100 + i)
            step(x, y)
            schedule.step()
        return net, method, {**state, "done": until}

    whole, one, _ = trained(STEPS)
    half, _, state = trained(3)
    fabric.save(tmp_path / "half.ckpt", state)
    resumed, other, _ = trained(STEPS, tmp_path / "half.ckpt")
    assert same_bits(resumed, whole)
    assert not same_bits(resumed, half)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert one.state["engine"]["step"] == STEPS
    assert one.param_groups[0]["lr"] != one.param_groups[0]["initial_lr"]
