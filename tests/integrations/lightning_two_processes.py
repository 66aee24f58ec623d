"""Run by test_lightning.py as a script: what two processes make of it, started by Lightning itself."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning_problem import (
    METHODS,
    TRIGGERS,
    Ascended,
    Branching,
    ClippedByHand,
    ClippedManual,
    Manual,
    Module,
    Resumable,
    Traced,
    WithLoss,
    trainer,
    without_noise,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard

import steppe
from steppe import SAM
from steppe.integrations.lightning import SharpnessAwareCallback

BOTH = {"devices": 2, "strategy": "ddp"}


def fit(module, *callbacks, ckpt_path=None, **options):
    host = trainer(*callbacks, **options)
    host.fit(module, Resumable(), ckpt_path=ckpt_path)
    return [p.detach().clone() for p in module.net.parameters()]


class Sharded(Module):
    """Two shards of each parameter."""

    def configure_model(self):
        without_noise(self).double()
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def loss(self, x, y):
        return super().loss(x.double(), y)


def sharded(make, *callbacks, **options):
    module = Sharded(make)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    fit(module, *callbacks, **{"devices": 2, "strategy": strategy, **options})
    return [p.full_tensor().detach() for p in module.net.parameters()]


class Counting(pl.Callback):
    """Counts how often gradients are exchanged; there is one bucket of them."""

    exchanges = 0

    def on_train_start(self, trainer, pl_module):
        trainer.strategy.model.register_comm_hook(self, Counting.counted)

    def counted(self, bucket):
        self.exchanges += 1
        return allreduce_hook(None, bucket)


def accumulated(make, k=2, **options):
    counting = Counting()
    host = {"devices": 2, "strategy": DDPStrategy(**options), "precision": "64-true", "accumulate_grad_batches": k}
    return fit(without_noise(Module(make)), counting, **host), counting.exchanges


class Saving(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def refusal(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def chunked(batch, pieces):
    return list(zip(*(part.chunk(pieces) for part in batch), strict=True))


def launched():
    fabric = Fabric(accelerator="cpu", precision="64-true", **BOTH)
    fabric.launch()
    return fabric


def through_fabric(make, pieces=1):
    """Fabric has the method, and steps take closures, which let it exchange gradients once per pass."""
    fabric, net = launched(), WithLoss()
    model, opt = fabric.setup(net, make(net.parameters()))
    for batch in Resumable():
        parts = chunked(batch, pieces)

        def closure(parts=parts):
            opt.zero_grad()
            for i, part in enumerate(parts):
                with fabric.no_backward_sync(model, enabled=i + 1 < pieces):
                    fabric.backward(model(*part) / pieces)

        opt.step(closure)
    return [p.detach() for p in net.parameters()]


def through_fabric_with_the_base(make, clip=None):
    fabric, net = launched(), WithLoss()
    method = make(net.parameters())
    model, base = fabric.setup(net, method.base)
    for batch in Resumable():
        base.zero_grad()
        fabric.backward(model(*batch))
        with method.ascended() as climbs:
            if climbs:
                fabric.backward(model(*batch))
        if clip:
            fabric.clip_gradients(model, base, max_norm=clip)
        base.step()
    return [p.detach() for p in net.parameters()]


def accumulated_in_fabric(make, pieces=2, replicas="global"):
    fabric, net = launched(), WithLoss()
    method = make(net.parameters())
    model, base = fabric.setup(net, method.base)

    def backward(part):
        loss = model(*part) / pieces
        fabric.backward(loss)
        return loss

    for batch in Resumable():
        steppe.accumulated_step(
            method, chunked(batch, pieces), backward, model=model, replicas=replicas, step=base.step
        )
    return [p.detach() for p in net.parameters()]


def main(folder):
    double = {**BOTH, "precision": "64-true"}
    found = {f"ddp {name}": fit(without_noise(Module(make)), **double) for name, make in METHODS.items()}
    found["ddp clipped"] = fit(without_noise(Module(METHODS["usam"])), gradient_clip_val=0.3, **double)
    for name, make in {**METHODS, **TRIGGERS}.items():
        for options in ({}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}):
            found[" ".join(["ddp accumulated", name, *options])] = accumulated(make, **options)
    unused = {**double, "strategy": DDPStrategy(find_unused_parameters=True), "accumulate_grad_batches": 2}
    found["ddp accumulated branches"] = fit(Branching(METHODS["sam"]), **unused)
    for name, rho, freeze in (("one pass", 0.0, True), ("frozen", 0.5, True), ("free", 0.5, False)):
        module, sam = Traced(), SharpnessAwareCallback(freeze_buffers=freeze)
        module.make = lambda params, rho=rho: SAM(torch.optim.SGD(params, lr=0.0), rho=rho)
        fit(module, sam=sam, **BOTH)
        found[f"ddp buffers, {name}"] = [b.clone() for b in module.net.buffers()]
    found["ddp accumulated rest"] = accumulated(METHODS["gsam"], k=4)
    found["ddp manual"] = fit(without_noise(Manual(METHODS["sam"])), **double)
    found["ddp manual accumulated"] = fit(without_noise(Manual(METHODS["lightsam"], pieces=2)), **double)
    found["ddp manual clipped"] = fit(without_noise(ClippedManual(METHODS["usam"])), **double)
    found["ddp ascended"] = fit(without_noise(Ascended(METHODS["gsam"])), **double)
    found["ddp ascended accumulated"] = fit(without_noise(Ascended(METHODS["lightsam"], pieces=2)), **double)
    found["ddp ascended clipped"] = fit(without_noise(ClippedByHand(METHODS["usam"])), **double)
    saver = ModelCheckpoint(folder, filename="half", every_n_train_steps=3)
    half = {**double, "enable_checkpointing": True, "max_steps": 3}
    fit(without_noise(Module(METHODS["lightsam"])), saver, **half)
    # Lightning loads weights before it converts the module, which would round them.
    module = without_noise(Module(METHODS["lightsam"])).double()
    found["ddp resumed"] = fit(module, ckpt_path=folder / "half.ckpt", **double)
    found["fabric closure"] = through_fabric(METHODS["sam"])
    found["fabric closure accumulated"] = through_fabric(METHODS["lightsam"], pieces=2)
    found["fabric base"] = through_fabric_with_the_base(METHODS["gsam"])
    found["fabric base clipped"] = through_fabric_with_the_base(METHODS["usam"], clip=0.3)
    found["fabric base accumulated"] = accumulated_in_fabric(METHODS["lightsam"])
    found["fabric own climbs"] = accumulated_in_fabric(METHODS["sam"], pieces=1, replicas="own")
    found["fsdp2 sam"] = sharded(METHODS["sam"])
    found["fsdp2 lightsam"] = sharded(METHODS["lightsam"])
    for name, make in {**METHODS, **TRIGGERS}.items():
        found[f"fsdp2 accumulated {name}"] = sharded(make, accumulate_grad_batches=2), None
    found["fsdp2 clipped"] = sharded(METHODS["usam"], gradient_clip_val=0.3)
    saver = ModelCheckpoint(folder)
    found["fsdp2 saving"] = refusal(lambda: sharded(METHODS["sam"], saver, enable_checkpointing=True))
    found["fsdp2 saving later"] = refusal(lambda: sharded(METHODS["sam"], Saving(folder / "by hand.ckpt")))
    found["fsdp2 loading"] = refusal(lambda: sharded(METHODS["sam"], ckpt_path=folder / "half.ckpt"))
    saver = ModelCheckpoint(folder, filename="weights", save_weights_only=True)
    sharded(METHODS["sam"], saver, enable_checkpointing=True)
    found["fsdp2 weights"] = sorted(path.name for path in (folder / "weights.ckpt").iterdir())
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


def end_with_parent():
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
