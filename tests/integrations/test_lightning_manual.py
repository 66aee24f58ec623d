"""The Trainer with manual optimization, and Fabric, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning_problem import (
    METHODS,
    STEPS,
    Manual,
    Module,
    batches,
    fit,
    network,
    plain,
    same_bits,
    scaler,
    without_noise,
)

from steppe import SAM
from steppe.integrations.lightning import SharpnessAwareCallback
from steppe.passes import frozen_norm_stats, same_random_state

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # torch says so of Lightning's own use of its pytrees.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
]
over_methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


# Manual optimization


class Ascended(Manual):
    """The sharp pass by hand."""

    def training_step(self, batch, batch_idx):
        opt, same = self.optimizers(), same_random_state()
        opt.zero_grad()
        with same:
            self.manual_backward(self.loss(*batch))
        with opt.optimizer.ascended() as climbs:
            if climbs:
                with same:
                    self.manual_backward(self.loss(*batch))
        opt.step()


@over_methods
@pytest.mark.parametrize("module", [Manual, Ascended])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_manual_optimization_is_the_plain_loop(make, module, precision):
    module = module(make)
    host = fit(
        module, sam=SharpnessAwareCallback(same_random_state=isinstance(module, Ascended) is False), precision=precision
    )
    assert host.global_step == STEPS
    assert same_bits(module.net, plain(make, amp=torch.bfloat16 if precision == "bf16-mixed" else None))


@pytest.mark.parametrize("module", [Manual, Ascended])
def test_manual_optimization_with_fp16(module):
    module, reference = module(), scaler()
    sam = SharpnessAwareCallback(same_random_state=isinstance(module, Ascended) is False)
    fit(module, sam=sam, plugins=[MixedPrecision("16-mixed", "cpu", scaler())])
    assert same_bits(module.net, plain(METHODS["sam"], amp=torch.float16, scaler=reference))


def test_accumulation_by_a_closure_is_the_whole_batch():
    whole, parts = without_noise(Module()), without_noise(Manual(pieces=4))
    fit(whole, precision="64-true")
    host = fit(parts, precision="64-true")
    assert host.global_step == STEPS
    for p, q in zip(parts.net.parameters(), whole.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


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


def test_m_sam():
    module = without_noise(MicroSAM(pieces=4))
    host = fit(module, sam=SharpnessAwareCallback(same_random_state=False), precision="64-true")
    assert host.global_step == STEPS
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
    for p, q in zip(module.net.parameters(), net.parameters(), strict=True):
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
        fit(Forgetful())
    fit(Forgetful(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.0)))


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
        assert losses[-1].item() == expected.item()
    assert opt.base is opt.optimizer.base
    assert opt.state_dict()["state"]["engine"]["step"] == STEPS
    assert same_bits(net, plain(make, dtype=dtype, amp=amp, fabric=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
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


def test_fabric_without_a_closure_or_with_a_scaler_refuses():
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[FabricMixedPrecision("16-mixed", "cpu", scaler())])
    net = network()
    model, opt = fabric.setup(net, METHODS["sam"](net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    closure = fabric_closure(fabric, model, opt, *batches()[0])
    with pytest.raises(RuntimeError, match="Closure use is not currently supported if GradScaler is enabled"):
        opt.step(closure)
    closure()
    with pytest.raises(RuntimeError, match=r"The gradients are multiplied by a GradScaler.*scaler\.step\(opt\.base\)"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
