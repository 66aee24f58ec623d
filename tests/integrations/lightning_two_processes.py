"""Run by test_lightning.py as a script: what two processes make of it, started by Lightning itself."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_problem import METHODS, Manual, Module, Resumable, trainer, without_noise
from torch import nn
from torch.distributed.fsdp import fully_shard

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


class WithLoss(nn.Module):
    """Fabric casts what it returns, the loss, to float32, which changes no gradient."""

    def __init__(self):
        super().__init__()
        self.net = without_noise(Module()).net

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)


def through_fabric(make):
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    net = WithLoss()
    model, opt = fabric.setup(net, make(net.parameters()))
    for x, y in Resumable():

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = model(x, y)
            fabric.backward(loss)
            return loss

        opt.step(closure)
    return [p.detach() for p in net.parameters()]


def main(folder):
    double = {**BOTH, "precision": "64-true"}
    found = {f"ddp {name}": fit(without_noise(Module(make)), **double) for name, make in METHODS.items()}
    found["ddp clipped"] = fit(without_noise(Module(METHODS["usam"])), gradient_clip_val=0.3, **double)
    found["ddp manual"] = fit(without_noise(Manual(METHODS["sam"])), **double)
    saver = ModelCheckpoint(folder, filename="half", every_n_train_steps=3)
    half = {**double, "enable_checkpointing": True, "max_steps": 3}
    fit(without_noise(Module(METHODS["lightsam"])), saver, **half)
    # Lightning loads weights before it converts the module, which would round them.
    module = without_noise(Module(METHODS["lightsam"])).double()
    found["ddp resumed"] = fit(module, ckpt_path=folder / "half.ckpt", **double)
    found["ddp fabric"] = through_fabric(METHODS["sam"])
    found["fsdp2 sam"] = sharded(METHODS["sam"])
    found["fsdp2 lightsam"] = sharded(METHODS["lightsam"])
    found["fsdp2 clipped"] = sharded(METHODS["usam"], gradient_clip_val=0.3)
    saver = ModelCheckpoint(folder)
    found["fsdp2 saving"] = refusal(lambda: sharded(METHODS["sam"], saver, enable_checkpointing=True))
    found["fsdp2 saving later"] = refusal(lambda: sharded(METHODS["sam"], Saving(folder / "by hand.ckpt")))
    found["fsdp2 loading"] = refusal(lambda: sharded(METHODS["sam"], ckpt_path=folder / "half.ckpt"))
    saver = ModelCheckpoint(folder, filename="weights", save_weights_only=True)
    sharded(METHODS["sam"], saver, enable_checkpointing=True)
    found["fsdp2 weights"] = sorted(path.name for path in (folder / "weights.ckpt").iterdir())
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
