"""The Trainer with automatic optimization against plain loops; every refusal; two processes; the example."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import (  # noqa: E402
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy, XLAStrategy  # noqa: E402
from lightning.pytorch.tuner import Tuner  # noqa: E402
from lightning_problem import (  # noqa: E402
    METHODS,
    QUIET,
    STEPS,
    TRIGGERS,
    Branching,
    Manual,
    Module,
    Resumable,
    alone,
    batches,
    fit,
    loader,
    plain,
    same_bits,
    scaler,
    trainer,
    without_noise,
)
from torchmetrics import MeanMetric, MetricCollection, SumMetric  # noqa: E402

import steppe  # noqa: E402
from steppe import MSAM, SAM  # noqa: E402
from steppe.integrations import lightning as ours  # noqa: E402
from steppe.integrations._lightning_passes import metrics_of  # noqa: E402
from steppe.integrations.lightning import SharpnessAwareCallback  # noqa: E402
from steppe.triggers import LargeGradient  # noqa: E402

pytestmark = QUIET
MANUAL = "Lightning, manual optimization"
over_methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


# Automatic optimization


@over_methods
@pytest.mark.parametrize(
    ("precision", "dtype", "amp"),
    [("32-true", torch.float32, None), ("64-true", torch.float64, None), ("bf16-mixed", torch.float32, torch.bfloat16)],
)
@pytest.mark.stack("Lightning", "plain", "AMP")
def test_fit_is_the_plain_loop_bit_for_bit(make, precision, dtype, amp):
    module = Module(make)
    host = fit(module, precision=precision)
    assert host.global_step == STEPS
    assert same_bits(module.net, plain(make, dtype=dtype, amp=amp))


def test_fit_is_sam_written_out():
    module = Module(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.1))
    fit(without_noise(module), precision="64-true")
    net = without_noise(Module()).net.double()
    params = list(net.parameters())
    for x, y in batches():
        w = [p.detach().clone() for p in params]
        g = torch.autograd.grad(nn.functional.cross_entropy(net(x.double()), y), params)
        norm = sum(d.square().sum() for d in g).sqrt()
        with torch.no_grad():
            for p, d in zip(params, g, strict=True):
                p += 0.1 * d / norm
        g = torch.autograd.grad(nn.functional.cross_entropy(net(x.double()), y), params)
        with torch.no_grad():
            for p, before, d in zip(params, w, g, strict=True):
                p.copy_(before - 0.1 * d)
    for p, q in zip(module.net.parameters(), params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_norm_statistics_and_random_state(freeze, same):
    module = Module()
    fit(module, sam=SharpnessAwareCallback(freeze_norm_stats=freeze, same_random_state=same))
    assert same_bits(module.net, plain(METHODS["sam"], freeze=freeze, same=same))
    assert not same_bits(module.net, plain(METHODS["sam"], freeze=not freeze, same=same))
    assert not same_bits(module.net, plain(METHODS["sam"], freeze=freeze, same=not same))


@pytest.mark.parametrize("method", ["sam", "usam", "gsam", "looksam", "angle"])
@pytest.mark.parametrize(("freeze", "amp"), [(True, None), (False, None), (True, torch.bfloat16)])
@pytest.mark.stack("Lightning", "plain", "AMP")
def test_clean_passes_may_see_a_part_of_the_batch(method, freeze, amp):
    module, sam = Module(METHODS[method]), SharpnessAwareCallback(fraction=0.3, freeze_norm_stats=freeze)
    fit(module, sam=sam, precision="bf16-mixed" if amp else "32-true")
    assert same_bits(module.net, plain(METHODS[method], freeze=freeze, amp=amp, part=3))
    assert not same_bits(module.net, plain(METHODS[method], freeze=freeze, amp=amp))


@pytest.mark.parametrize("k", [1, 2])
def test_now_and_then_an_angle_sees_the_whole_batch(k):
    """In every third step, whose clean passes then are those that count."""
    module, sizes = Busy(METHODS["angle"]), []
    module.sam, plain_step = SharpnessAwareCallback(fraction=0.25), module.training_step
    module.training_step = lambda batch, batch_idx: sizes.append(len(batch[0])) or plain_step(batch, batch_idx)
    host = fit(module, sam=module.sam, accumulate_grad_batches=k, max_epochs=k)
    assert sizes == ([8, 8] * k + [2, 8] * (2 * k)) * 2
    assert module.net[1].num_batches_tracked == STEPS * k
    radii = host.optimizers[0].param_groups[0]["rho"]
    assert radii != 0.1


def test_the_pass_over_the_whole_batch_is_what_a_step_leaves_behind():
    module, recorder = Busy(METHODS["looksam"]), Recorder()
    module.sam = SharpnessAwareCallback(fraction=0.25)
    sizes, counts, plain_step = [], [], module.training_step
    module.on_train_epoch_end = lambda: counts.extend(
        m.update_count for m in (module.mean, *module.sums["inner"].values())
    )
    module.training_step = lambda batch, batch_idx: sizes.append(len(batch[0])) or plain_step(batch, batch_idx)
    fit(module, sam=module.sam, logger=recorder, log_every_n_steps=1)
    assert sizes == [2, 8, 8] * (STEPS // 2)
    assert module.calls == ["clean", "sharp", "zero", "step", "end", "clean", "zero", "step", "end"] * (STEPS // 2)
    assert counts == [STEPS] * 3
    assert [row["total_step"] for _, row in recorder.rows[:-1]] == pytest.approx([loss for loss, _ in module.outputs])
    assert module.net[1].num_batches_tracked == STEPS


@over_methods
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["32-true", "bf16-mixed"])
@pytest.mark.stack("Lightning", "clip")
def test_clipping_acts_on_what_the_base_sees_and_on_nothing_else(make, algorithm, amp):
    module = Module(make)
    bound = {"norm": 0.3, "value": 0.03}[algorithm]
    precision = "bf16-mixed" if amp else "32-true"
    fit(module, gradient_clip_val=bound, gradient_clip_algorithm=algorithm, precision=precision)
    clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[algorithm]
    assert same_bits(module.net, plain(make, amp=amp, clip=lambda params: clip(params, bound)))
    assert not same_bits(module.net, plain(make, amp=amp))


@pytest.mark.parametrize("method", ["sam", "usam", "gsam", "lightsam"])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.stack("Lightning", "AMP", "clip")
def test_fp16_is_the_plain_loop_with_a_scaler(method, clipped):
    module, reference = Module(METHODS[method]), scaler()
    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    host = fit(module, plugins=[plugin], gradient_clip_val=0.3 if clipped else None)
    clip = (lambda params: nn.utils.clip_grad_norm_(params, 0.3)) if clipped else None
    net = plain(METHODS[method], amp=torch.float16, scaler=reference, clip=clip)
    assert same_bits(module.net, net)
    assert plugin.scaler.get_scale() == reference.get_scale() != 2.0**19
    assert host.global_step == STEPS
    assert 0 < host.optimizers[0].state["engine"]["step"] < STEPS  # steps that overflow are skipped


class Recorder(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, {k: v for k, v in metrics.items() if k != "epoch"}))


class Busy(Module):
    """Logs, counts and measures wherever a hook allows it."""

    def __init__(self, make=METHODS["sam"]):
        super().__init__(make)
        self.mean, self.sums = MeanMetric(), nn.ModuleDict({"inner": MetricCollection([SumMetric(), MeanMetric()])})
        self.alias = self.mean
        self.clean, self.calls, self.outputs, self.gradients = [], [], [], []

    def training_step(self, batch, batch_idx):
        loss = self.loss(*batch)
        if not self.sam.in_sharp_pass:
            self.clean.append(loss.item())
        self.calls.append("sharp" if self.sam.in_sharp_pass else "clean")
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.alias(loss.detach())
        self.sums["inner"].update(loss.detach())
        self.log("mean", self.mean)
        self.log_dict({"total": loss}, on_step=True, on_epoch=True, reduce_fx="sum")
        return {"loss": loss, "number": loss.item()}

    def on_before_zero_grad(self, optimizer):
        self.calls.append("zero")
        self.seen = [p.detach().clone() for p in self.net.parameters()]

    def on_before_optimizer_step(self, optimizer):
        assert optimizer is self.optimizers().base
        self.calls.append("step")
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.net.parameters()]).norm().item())
        self.log("gradient", self.gradients[-1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.calls.append("end")
        self.outputs.append((outputs["loss"].item(), outputs["number"]))


class Chatty(pl.Callback):
    def __init__(self):
        self.zeroed = self.went_back = 0

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.zeroed += 1

    def on_before_backward(self, trainer, pl_module, loss):
        self.log("before backward", loss, on_step=True, on_epoch=True)
        self.log_dict({"before backward too": loss})

    def on_after_backward(self, trainer, pl_module):
        self.went_back += 1


@pytest.mark.parametrize(
    ("method", "passes"), [("sam", ["clean", "zero", "sharp"]), ("msam", ["clean", "zero"])], ids=["sam", "msam"]
)
def test_a_step_leaves_behind_what_one_pass_leaves(method, passes):
    """That of a method with one pass is at ``w + delta``, and is logged and counted as any other."""
    module, chatty, recorder = Busy(METHODS[method]), Chatty(), Recorder()
    module.sam = SharpnessAwareCallback()
    host = fit(module, chatty, sam=module.sam, logger=recorder, log_every_n_steps=1)
    assert host.global_step == STEPS
    assert module.calls == [*passes, "step", "end"] * STEPS
    assert (chatty.zeroed, chatty.went_back) == (STEPS, (len(passes) - 1) * STEPS)
    steps, (last, epoch) = recorder.rows[:-1], recorder.rows[-1]
    assert [step for step, _ in steps] == list(range(STEPS))
    for (_, row), clean, gradient in zip(steps, module.clean, module.gradients, strict=True):
        expected = {"loss_step": clean, "total_step": clean, "before backward_step": clean, "gradient": gradient}
        assert {**row, **expected} == pytest.approx(row)
        assert row.keys() == {*expected, "before backward too", "mean"}
    mean = sum(module.clean) / STEPS
    expected = {"loss_epoch": mean, "total_epoch": STEPS * mean, "before backward_epoch": mean}
    assert last == STEPS - 1
    assert epoch == pytest.approx(expected)
    assert module.outputs == [(pytest.approx(clean), clean) for clean in module.clean]
    assert len(set(module.clean)) == STEPS


def test_metrics_are_updated_once():
    module, counts = Busy(), []
    module.sam = SharpnessAwareCallback()
    module.on_train_epoch_end = lambda: counts.extend(
        (m.update_count, m.compute().item()) for m in (module.mean, *module.sums["inner"].values())
    )
    spares = []
    module.on_train_batch_start = lambda *_: spares.append(module.sam._metrics[0][-1].update_count)
    fit(module, sam=module.sam)
    total = sum(module.clean)
    assert [count for count, _ in counts] == [STEPS] * 3
    assert [value for _, value in counts] == pytest.approx([total / STEPS, total, total / STEPS])
    assert module.mean is module.alias
    assert spares == [0] * STEPS
    assert [name for _, name, *_ in metrics_of(module)] == ["mean", "inner", "alias"]


def test_steps_that_do_not_climb_are_plain():
    module = Busy(METHODS["looksam"])
    module.sam = SharpnessAwareCallback()
    fit(module, sam=module.sam)
    assert module.calls == ["clean", "zero", "sharp", "step", "end", "clean", "zero", "step", "end"] * (STEPS // 2)


def test_hooks_see_weights_between_steps_only():
    module = Busy()
    module.sam = SharpnessAwareCallback()
    before = []
    module.on_train_batch_start = lambda *_: before.extend(p.detach().clone() for p in module.net.parameters())
    fit(module, sam=module.sam, max_steps=1)
    assert all(torch.equal(p, q) for p, q in zip(module.seen, before, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        METHODS["adasam"],
        METHODS["msam"],
        lambda params: MSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1, warmup=99),
    ],
    ids=["adasam", "msam", "msam that does not climb"],
)
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")  # Lightning says so once
def test_a_batch_without_loss_is_skipped(make):
    def steps(base):
        module = Module(base)
        inner = module.training_step
        module.training_step = lambda batch, batch_idx: None if batch_idx % 2 else inner(batch, batch_idx)
        module.on_train_batch_end = lambda *_: seen.append(module.net[0].weight.detach().clone())
        seen = []
        return fit(module), seen

    host, seen = steps(make)
    assert host.global_step == STEPS
    moved = [not torch.equal(p, q) for p, q in itertools.pairwise(seen)]
    assert moved == [False, True, False, True, False]


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_weights_are_averaged_and_norm_statistics_updated_by_a_callback(fraction):
    # In its last epoch it accumulates over all batches without a backward pass, and Lightning then takes one step, with
    # whatever gradient is left, by any optimizer.
    module, sizes = Module(), []
    module.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    average = StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)
    host = fit(module, average, sam=SharpnessAwareCallback(fraction=fraction), max_epochs=3)
    assert sizes[-STEPS:] == [8] * STEPS  # and no part of them
    assert host.optimizers[0].state["engine"]["step"] == host.global_step == 3 * STEPS + 1
    assert module.net[1].num_batches_tracked == STEPS


def test_the_learning_rate_finder(tmp_path):
    module = Module()
    module.lr = 0.1
    module.make = lambda params: SAM(torch.optim.SGD(params, lr=module.lr), rho=0.1)
    before = [p.detach().clone() for p in module.net.parameters()]
    host = trainer(default_root_dir=tmp_path, max_epochs=-1)
    found = Tuner(host).lr_find(module, loader(), num_training=20, min_lr=1e-3, max_lr=1.0)
    assert 1e-3 < found.suggestion() < 1.0
    assert module.lr == found.suggestion()
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), before, strict=True))


@pytest.mark.parametrize("again", [False, True])
def test_nothing_is_left_of_a_fit(again):
    module, sam = Busy(), SharpnessAwareCallback()
    module.sam = sam
    host = trainer(sam=sam)
    inner = module.training_step

    def fails(batch, batch_idx):
        if sam.in_sharp_pass and batch_idx == 2:
            raise ArithmeticError("no more")
        return inner(batch, batch_idx)

    module.training_step = fails
    at_w = []
    module.on_train_batch_start = lambda *_: at_w.append([p.detach().clone() for p in module.net.parameters()])
    with pytest.raises(ArithmeticError, match="no more"):
        host.fit(module, loader())
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), at_w[-1], strict=True))
    assert not sam.in_sharp_pass
    del module.training_step, module.on_train_batch_start
    if again:
        module.calls = []
        host = trainer(sam=sam)
        host.fit(module, loader())
        assert module.calls == ["clean", "zero", "sharp", "step", "end"] * STEPS
    assert not {"log", "on_before_zero_grad"} & vars(module).keys()
    assert "optimizer_step" not in vars(host.strategy)
    assert isinstance(module.mean, MeanMetric)
    assert not host.optimizers[0]._visits.around


# Checkpoints


@over_methods
@pytest.mark.parametrize("weights_only", [None, True], ids=["pickle", "weights-only"])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.stack("Lightning", "resume")
def test_resuming_within_an_epoch_is_going_on_bit_for_bit(make, weights_only, tmp_path):
    whole = Module(make, schedule=True)
    host = fit(whole, data=Resumable(), max_epochs=2)

    def saver():
        return ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)

    fit(Module(make, schedule=True), saver(), data=Resumable(), max_steps=5, enable_checkpointing=True)
    module = Module(make, schedule=True)
    resumed = trainer(saver(), max_epochs=2, enable_checkpointing=True)
    resumed.fit(module, Resumable(), ckpt_path=tmp_path / "last.ckpt", weights_only=weights_only)
    assert resumed.global_step == host.global_step == 2 * STEPS
    assert module.began == list(range(4, 2 * STEPS))
    assert same_bits(module.net, whole.net)
    one, other = host.optimizers[0].state_dict(), resumed.optimizers[0].state_dict()
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert one["state"]["engine"]["step"] == 2 * STEPS
    assert one["param_groups"][0]["lr"] != one["param_groups"][0]["initial_lr"]


# Refusals


class Iterating(Module):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(*batch)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            Iterating,
            {},
            r"^training_step\(dataloader_iter\) would take another batch in the sharp pass\. Let it take \(batch, "
            r"batch_idx\), or use manual optimization with a closure\.$",
        ),
        (
            Manual,
            {"sam": SharpnessAwareCallback(fraction=0.5)},
            r"^fraction= is for automatic optimization\. With manual optimization let the closure of the clean pass "
            r"take a part, as in opt\.optimizer\.step\(closure, ascent=\.\.\.\) and steppe\.batches\.fraction_of\.$",
        ),
        (
            lambda: Module(lambda params: SAM(torch.optim.SGD(params, lr=0.1), trigger=LargeGradient(steps=9))),
            {"sam": SharpnessAwareCallback(fraction=0.5)},
            r"^fraction= does not go with LargeGradient, .* Leave fraction= out\.$",
        ),
        (
            lambda: Module(lambda params: torch.optim.SGD(params, lr=0.1)),
            {},
            r"^SharpnessAwareCallback found no sharpness-aware optimizer, but SGD\. Return one from "
            r"configure_optimizers, for example SAM\(torch\.optim\.SGD\(self\.parameters\(\), lr=0\.1\), rho=0\.05\)\.$",
        ),
    ],
    ids=["iterator", "manual", "trigger", "no optimizer"],
)
def test_a_fit_that_could_not_be_sharpness_aware_is_refused(refusals, module, options, message):
    module = module()
    before = [p.detach().clone() for p in module.net.parameters()]
    with pytest.raises(ValueError, match=message) as error:
        fit(module, *options.pop("callbacks", ()), **options)
    refusals.append(str(error.value))
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), before, strict=True))


def test_parts_need_a_clean_pass():
    with pytest.raises(TypeError, match=r"^MSAM climbs without a gradient: leave fraction= out\.$"):
        fit(Module(METHODS["msam"]), sam=SharpnessAwareCallback(fraction=0.5))
    with pytest.raises(ValueError, match=r"^fraction must lie in \(0, 1\], got 2\.$"):
        SharpnessAwareCallback(fraction=2)


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (DeepSpeedStrategy, "DeepSpeed runs the closure once and steps by itself, without a sharp pass. Use DDP, or"),
        (FSDPStrategy, "FSDP cuts parameters into plain tensors, so that every process would climb along the part of"),
        (XLAStrategy, "Lightning adds gradients up after the closure, so that every process would climb along its"),
        (type("Mine", (FSDPStrategy,), {}), "FSDP cuts parameters"),
    ],
)
def test_strategies_are_refused(strategy, why):
    # None of them can be built here: they ask for packages or devices.
    with pytest.raises(ValueError, match=f"^{strategy.__name__} cannot take sharpness-aware steps: {why}"):
        ours.check_strategy(strategy.__new__(strategy))


@pytest.mark.stack(
    "DeepSpeed",
    refused="DeepSpeedStrategy cannot take sharpness-aware steps: DeepSpeed runs the closure once and steps by itself, "
    "without a sharp pass. Use DDP, or ModelParallelStrategy (FSDP2) for models that are larger than a device.",
)
def test_the_trainer_asks_for_its_strategy(refusals):
    mine = type("DeepSpeedStrategy", (SingleDeviceStrategy,), {})  # which could run
    with pytest.raises(
        ValueError, match=r"^DeepSpeedStrategy cannot take sharpness-aware steps: DeepSpeed runs"
    ) as error:
        fit(Module(), strategy=mine(device="cpu"))
    refusals.append(str(error.value))


def test_the_other_package_is_refused():
    legacy = pytest.importorskip("pytorch_lightning")

    class Legacy(legacy.LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            raise AssertionError

    host = legacy.Trainer(
        accelerator="cpu",
        callbacks=[SharpnessAwareCallback()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(
        TypeError,
        match=r"^SharpnessAwareCallback is for the Trainer of lightning\.pytorch, got one of pytorch_lightning, whose "
        r"classes are not the same\. Import the Trainer and LightningModule from lightning\.pytorch\.$",
    ):
        host.fit(Legacy(), loader())


def test_a_closure_around_the_closure_is_warned_about():
    class Wrapping(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step(closure=lambda: optimizer_closure())

    module = Wrapping()
    with pytest.warns(
        UserWarning,
        match=r"^LightningModule\.optimizer_step passes a closure of its own to the optimizer, so that "
        r"on_train_batch_end gets the outputs of the sharp pass\. Pass the closure it was given\.$",
    ):
        fit(module)
    assert same_bits(module.net, plain(METHODS["sam"]))


# Two processes


OF_A_LAUNCHER = ("GROUP_", "LOCAL_", "MASTER_", "NODE_", "PYTEST", "RANK", "SLURM", "TORCHELASTIC", "WORLD_")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What Lightning's own launcher made of a script, once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OF_A_LAUNCHER)}
    sources = (Path(steppe.__file__).parents[1], Path(__file__).parents[1])
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    script = Path(__file__).with_name("lightning_two_processes.py")
    lifeline, ours = os.pipe()  # both processes end when this one does, however it does
    with open(folder / "out.txt", "w+", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=environment,
            stdin=lifeline,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(lifeline)
        try:
            process.wait(timeout=240)
        finally:
            os.close(ours)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        said = out.read()
    assert process.returncode == 0, said[-5000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
def on_two(name, make, clip):
    rows = {"ddp manual": MANUAL, "ddp ascended": MANUAL, "fabric": "Lightning Fabric"}
    row = next((row for start, row in rows.items() if name.startswith(start)), "Lightning")
    return pytest.param(name, make, clip, marks=pytest.mark.stack(row, "2 processes"), id=name)


@pytest.mark.parametrize(
    ("name", "make", "clip"),
    [
        *(on_two(f"ddp {method}", make, None) for method, make in METHODS.items()),
        on_two("ddp clipped", METHODS["usam"], 0.3),
        on_two("ddp manual", METHODS["sam"], None),
        on_two("ddp manual accumulated", METHODS["lightsam"], None),
        on_two("ddp manual clipped", METHODS["usam"], 0.3),
        on_two("ddp ascended", METHODS["gsam"], None),
        on_two("ddp ascended accumulated", METHODS["lightsam"], None),
        on_two("ddp ascended clipped", METHODS["usam"], 0.3),
        on_two("ddp resumed", METHODS["lightsam"], None),
        on_two("fabric closure", METHODS["sam"], None),
        on_two("fabric closure accumulated", METHODS["lightsam"], None),
        on_two("fabric base", METHODS["gsam"], None),
        on_two("fabric base clipped", METHODS["usam"], 0.3),
        on_two("fabric base accumulated", METHODS["lightsam"], None),
        on_two("fsdp2 sam", METHODS["sam"], None),
        on_two("fsdp2 lightsam", METHODS["lightsam"], None),
        on_two("fsdp2 clipped", METHODS["usam"], 0.3),
    ],
)
def test_two_processes_are_one(two_processes, name, make, clip):
    for rank in two_processes:
        for p, q in zip(rank[name], alone(make, clip), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


EXCHANGES = {
    "angle": 12,
    "every": 7,
    "after": 5,
    "large gradient": 12,
    "every large gradient": 10,
    "looksam": 10,
    "gsam": 12,
    "msam": 3,
}
"""Of three steps with two micro-batches each, where not all clean passes and the last sharp one: 9."""


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
@pytest.mark.parametrize("options", ["", " gradient_as_bucket_view", " find_unused_parameters"])
@pytest.mark.parametrize("name", [*METHODS, *TRIGGERS])
@pytest.mark.stack("Lightning", "accumulation", "2 processes")
def test_two_processes_accumulate_as_one(two_processes, name, options):
    for rank in two_processes:
        params, exchanges = rank[f"ddp accumulated {name}{options}"]
        for p, q in zip(params, alone({**METHODS, **TRIGGERS}[name], k=2), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)
        if "unused" not in options:  # there all passes exchange
            assert exchanges == EXCHANGES.get(name, 9)


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
@pytest.mark.parametrize("name", [*METHODS, *TRIGGERS])
@pytest.mark.stack("Lightning", "accumulation", "2 processes")
def test_two_shards_accumulate_as_one_process(two_processes, name):
    for rank in two_processes:
        for p, q in zip(rank[f"fsdp2 accumulated {name}"][0], alone({**METHODS, **TRIGGERS}[name], k=2), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
def test_micro_batches_may_use_different_parameters(two_processes):
    module = Branching(METHODS["sam"]).double()
    opt = METHODS["sam"](module.net.parameters())

    def backward(batch):
        x, y, which = batch
        loss = module.branch(x.double(), y, which) / 2
        loss.backward()
        return loss

    rows = batches()
    for i in range(0, STEPS, 2):
        steppe.accumulated_step(opt, [(*rows[i], 0), (*rows[i + 1], 1)], backward, climb="micro")
    for rank in two_processes:
        for p, q in zip(rank["ddp accumulated branches"], module.net.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
def test_two_processes_take_a_step_on_what_is_left(two_processes):
    for rank in two_processes:
        for p, q in zip(rank["ddp accumulated rest"][0], alone(METHODS["gsam"], k=4), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
def test_buffers_of_two_processes_are_those_of_one_pass(two_processes):
    """DDP hands those of the first process to the other before each pass, which that brings back too."""
    for rank in two_processes:
        plain, frozen, free = (rank[f"ddp buffers, {name}"] for name in ("one pass", "frozen", "free"))
        assert all(map(torch.equal, frozen, plain))
        assert not all(map(torch.equal, free, plain))


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are ended as a group")
@pytest.mark.stack("Lightning Fabric", "2 processes")
def test_climbs_of_their_own_in_fabric(two_processes):
    net = without_noise(Module().double()).net
    opt = METHODS["sam"](net.parameters())
    for x, y in batches():
        grads = []
        for rank in range(2):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x[rank::2].double()), y[rank::2]).backward()
            with opt.ascended():
                nn.functional.cross_entropy(net(x[rank::2].double()), y[rank::2]).backward()
            grads.append([p.grad.clone() for p in net.parameters()])
        for p, g, h in zip(net.parameters(), *grads, strict=True):
            p.grad = (g + h) / 2
        opt.base.step()
    for found in two_processes:
        for p, q in zip(found["fabric own climbs"], net.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


SHARDED_STATES = (
    "ModelParallelStrategy cannot save or load the state of sharpness-aware optimizers: "
    "torch.distributed.checkpoint knows no optimizer state but that of parameters. Use "
    "ModelCheckpoint(save_weights_only=True) or Trainer(enable_checkpointing=False), and no ckpt_path."
)


@pytest.mark.stack("Lightning", "resume", refused=SHARDED_STATES)
def test_checkpoints_of_sharded_optimizers_are_refused(refusals, two_processes):
    for rank in two_processes:
        assert {rank[f"fsdp2 {what}"] for what in ("saving", "saving later", "loading")} == {SHARDED_STATES}
        refusals.append(rank["fsdp2 saving"])
        assert rank["fsdp2 weights"]


# The example


def test_the_example(monkeypatch, capsys, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "lightning_sam.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--max-steps", "20"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert "validation accuracy" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
