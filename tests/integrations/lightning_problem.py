"""What tests of Lightning run: one small problem, in a module and in plain loops."""

from __future__ import annotations

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.utils.data import DataLoader, TensorDataset

from steppe import GSAM, MSAM, SAM, USAM, AdaSAM, Angle, LightSAM, LookSAM, accumulated_step
from steppe.integrations.lightning import SharpnessAwareCallback
from steppe.passes import frozen_norm_stats, same_random_state
from steppe.triggers import After, Every, LargeGradient
from test_buffers import Codebook

QUIET = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # torch says so of Lightning's own use of its pytrees.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
]
METHODS = {
    "sam": lambda params: SAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1),
    "usam": lambda params: USAM(torch.optim.SGD(params, lr=0.1), rho=0.1),
    "gsam": lambda params: GSAM(torch.optim.AdamW(params, lr=0.01), rho=0.1),
    "adasam": lambda params: AdaSAM(params, lr=0.01, rho=0.1),
    "lightsam": lambda params: LightSAM(params, 0.01, rho=0.01, variant="adam", eps=1e-3),
    "looksam": lambda params: LookSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1, k=2, alpha=0.5),
    "msam": lambda params: MSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1),
    "angle": lambda params: SAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=Angle(start=0.1, whole=3)),
}
TRIGGERS = {
    "every": lambda params: SAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1, trigger=Every(2)),
    "after": lambda params: SAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1, trigger=After(2)),
    "large gradient": lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.1, trigger=LargeGradient(steps=9)),
    "every large gradient": lambda params: SAM(
        torch.optim.SGD(params, lr=0.1), rho=0.1, trigger=Every(2) & LargeGradient(steps=9)
    ),
}
STEPS = 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))


def batches(n=STEPS, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n * size, 5, generator=generator)
    y = torch.randint(3, (n * size,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(n=STEPS, size=8):
    x, y = (torch.cat(parts) for parts in zip(*batches(n, size), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=size)


class Module(pl.LightningModule):
    def __init__(self, make=METHODS["sam"], schedule=False):
        super().__init__()
        self.net, self.make, self.schedule, self.began = network(), make, schedule, []

    def on_train_batch_start(self, batch, batch_idx):
        self.began.append(self.trainer.global_step)
        torch.manual_seed(100 + self.trainer.global_step)

    def loss(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(*batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        opt = self.make(self.net.parameters())
        if not self.schedule:
            return opt
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5), "interval": "step"},
        }


class Traced(Module):
    """Passes leave traces in buffers of every kind; the weights stay."""

    def __init__(self, opt=SAM, lr=0.0, **options):
        super().__init__(lambda params: opt(torch.optim.SGD(params, lr=lr, momentum=0.9), rho=0.5, **options))
        torch.manual_seed(0)
        self.net = nn.Sequential(
            Codebook(width=5),
            FakeQuantize(MovingAverageMinMaxObserver),
            nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)),
            nn.BatchNorm1d(8),
            Codebook(width=8, past_autograd=True),
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)),
            FakeQuantize(MovingAverageMinMaxObserver),
        )


class Branching(Module):
    """Every second batch leaves out parameters that the one before used."""

    def __init__(self, make):
        super().__init__(make)
        torch.manual_seed(0)
        self.net = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)])

    def branch(self, x, y, which):
        return nn.functional.cross_entropy(self.net[1 + which](self.net[0](x).tanh()), y)

    def training_step(self, batch, batch_idx):
        return self.branch(*batch, batch_idx % 2)


def without_noise(module):
    """Leave out what differs between a batch and its parts: norm statistics and dropout masks."""
    module.net[1] = module.net[2] = nn.Identity()
    return module


def trainer(*callbacks, sam=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet |= {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 1}
    return pl.Trainer(callbacks=[sam or SharpnessAwareCallback(), *callbacks], **{**quiet, **options})


def fit(module, *callbacks, data=None, ckpt_path=None, **options):
    host = trainer(*callbacks, **options)
    host.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return host


def plain(
    make, *, dtype=torch.float32, amp=None, scaler=None, freeze=True, same=True, clip=None, fabric=False, part=None
):
    """The same steps without a host; Fabric computes losses outside of autocast, in float32.

    Clean passes see ``part`` examples, if given; then sharp passes make the running statistics.
    """
    net = network().to(dtype)
    opt = make(net.parameters())
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(100 + step)
        again = same_random_state() if same else nullcontext()

        def backward(part=None, x=x, y=y, again=again):
            x, y = x[:part], y[:part]
            with again, torch.autocast("cpu", dtype=amp, enabled=amp is not None, cache_enabled=False):
                out = net(x.to(dtype))
                loss = None if fabric else nn.functional.cross_entropy(out, y)
            scaler.scale(nn.functional.cross_entropy(out.float(), y) if fabric else loss).backward()

        alone = not opt.ascent.needs_gradient
        opt.zero_grad()
        climbs, seen = opt.will_climb(), None if opt.looks_whole() else part
        if not alone:
            with frozen_norm_stats(net) if freeze and climbs and seen else nullcontext():
                backward(seen if climbs else None)
        frozen = frozen_norm_stats(net) if freeze and not alone and not seen else nullcontext()
        with opt.ascended(scaler.scale(torch.ones(())), part=seen is not None) as climbs, frozen:
            if climbs or alone:
                backward()
        scaler.unscale_(opt.base)
        if clip:
            clip(net.parameters())
        scaler.step(opt.base)
        scaler.update()
    return net


def accumulated(
    make, counts, *, dtype=torch.float32, amp=None, scaler=None, freeze=True, same=True, clip=None, part=None, skip=()
):
    """The same steps on several micro-batches each, ``counts[epoch]`` of them, without a host; not on those to ``skip``.

    Each micro-batch climbs by itself; those that are left at the end of an epoch make a step of their own.
    """
    net = network().to(dtype)
    opt = make(net.parameters())
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    alone = not opt.ascent.needs_gradient
    if freeze and not part:
        opt.around_sharp_pass(lambda: frozen_norm_stats(net))
    steps = [(k, batches()[i : i + k], i) for k in counts for i in range(0, STEPS, k)]
    for step, (k, micro, start) in enumerate(steps):
        draws = [same_random_state() if same else nullcontext() for _ in micro]
        begun = set()

        def backward(i, part=None, k=k, micro=micro, step=step, draws=draws, begun=begun):
            if i not in begun:
                begun.add(i)
                torch.manual_seed(100 + step)
            x, y = (tensor[:part] for tensor in micro[i])
            with draws[i], torch.autocast("cpu", dtype=amp, enabled=amp is not None, cache_enabled=False):
                loss = nn.functional.cross_entropy(net(x.to(dtype)), y) / k
            scaler.scale(loss).backward()
            return loss

        def ascent(i, backward=backward):
            with frozen_norm_stats(net) if freeze else nullcontext():
                return backward(i, part)

        def hand_on():
            scaler.unscale_(opt.base)
            if clip:
                clip(net.parameters())
            scaler.step(opt.base)
            scaler.update()

        accumulated_step(
            opt,
            [i for i in range(len(micro)) if start + i not in skip],
            backward,
            climb="micro",
            ascent=ascent if part and not alone else None,
            scale=scaler.scale(torch.ones(())),
            step=hand_on,
        )
    return net


def same_bits(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=2)  # overflows at first


class Resumable:
    """A loader that goes on where its state was taken; each of several processes gets its part of every batch."""

    def __init__(self):
        self.done = 0

    def __iter__(self):
        together = torch.distributed.is_initialized()
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        self.done %= STEPS
        for x, y in batches()[self.done :]:
            self.done += 1
            yield x[rank::size], y[rank::size]

    def __len__(self):
        return STEPS

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state_dict):
        self.done = state_dict["done"]


class Manual(Module):
    """SAM with a closure over micro-batches."""

    def __init__(self, make=METHODS["sam"], pieces=1, schedule=False):
        super().__init__(make, schedule)
        self.automatic_optimization = False
        self.pieces, self.losses = pieces, []

    def parts(self, batch):
        return list(zip(*(part.chunk(self.pieces) for part in batch), strict=True))

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()

        def closure():
            opt.zero_grad()
            total = 0.0
            for x, y in self.parts(batch):
                loss = self.loss(x, y) / self.pieces
                self.manual_backward(loss)
                total += loss.detach()
                self.log("loss", loss)
            return total

        self.losses.append(opt.step(closure))
        if self.schedule:
            self.lr_schedulers().step()


class Ascended(Manual):
    """The sharp pass by hand."""

    def backward_of(self, batch):
        for x, y in self.parts(batch):
            self.manual_backward(self.loss(x, y) / self.pieces)

    def before_step(self, opt):
        pass

    def training_step(self, batch, batch_idx):
        opt, same = self.optimizers(), same_random_state()
        alone = not opt.optimizer.ascent.needs_gradient
        opt.zero_grad()
        if not alone:
            with same:
                self.backward_of(batch)
        with opt.optimizer.ascended() as climbs:
            if climbs or alone:
                with same:
                    self.backward_of(batch)
        self.before_step(opt)
        opt.step()
        if self.schedule:
            self.lr_schedulers().step()


def callback_of(module):
    return SharpnessAwareCallback(same_random_state=not isinstance(module, Ascended))


class Clipping:
    """Clips where gradients are unscaled, in any precision, whoever ran the sharp pass."""

    clip = {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "norm"}

    def on_before_optimizer_step(self, optimizer):
        self.clip_gradients(optimizer, **self.clip)


class ClippedManual(Clipping, Manual):
    pass


class ClippedAscended(Clipping, Ascended):
    pass


class ClippedByHand(Ascended):
    clip = Clipping.clip

    def before_step(self, opt):
        self.clip_gradients(opt, **self.clip)


class WithLoss(nn.Module):
    """Fabric casts what it returns, the loss, to float32, which changes no gradient."""

    def __init__(self):
        super().__init__()
        self.net = without_noise(Module()).net

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)


def alone(make, clip=None, k=1):
    """One process with the batches of both, ``k`` of them in a step."""
    net = without_noise(Module().double()).net
    opt = make(net.parameters())
    for i in range(0, STEPS, k) if k > 1 else ():

        def backward(batch):
            loss = nn.functional.cross_entropy(net(batch[0].double()), batch[1]) / k
            loss.backward()
            return loss

        accumulated_step(opt, batches()[i : i + k], backward, climb="micro")
    if k > 1:
        return list(net.parameters())
    for x, y in batches():
        opt.zero_grad()
        nn.functional.cross_entropy(net(x.double()), y).backward()
        with opt.ascended() as climbs:
            if climbs:
                nn.functional.cross_entropy(net(x.double()), y).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.base.step()
    return list(net.parameters())
