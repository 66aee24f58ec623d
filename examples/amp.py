"""SAM in half precision: python examples/amp.py [--dtype bfloat16|float16] [--steps 200]

bfloat16 needs no scaling: `opt.step(closure)`, with an autocast inside of the closure. float16 does: a GradScaler steps
the base itself, so `opt.ascended` it is, and clipping goes where it always goes. On CUDA where there is one.
"""

import argparse

import torch
from torch import nn

from steppe import SAM

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
parser.add_argument("--steps", type=int, default=200)
arguments = parser.parse_args()
device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, arguments.dtype)

torch.manual_seed(0)
x = torch.rand(512, 2, device=device) * 2 - 1
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).to(device)
opt = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), rho=0.05)
scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)


def loss_of(batch):
    with torch.autocast(device, dtype=dtype):
        return nn.functional.cross_entropy(model(x[batch]), y[batch])


def step_with_closure(batch):
    def closure():
        opt.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        return loss

    return opt.step(closure)


def step_with_scaler(batch):
    opt.zero_grad()
    loss = loss_of(batch)
    scaler.scale(loss).backward()  # clean gradient
    with opt.ascended(scaler.scale(torch.ones((), device=device))):
        scaler.scale(loss_of(batch)).backward()  # sharp gradient
    scaler.unscale_(opt.base)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt.base)  # or not, where something overflowed
    scaler.update()
    return loss


step = step_with_scaler if scaler.is_enabled() else step_with_closure
losses = [step(torch.randint(512, (64,), device=device)).item() for _ in range(arguments.steps)]
accuracy = (model(x).argmax(dim=1) == y).float().mean().item()
print(f"{device}, {arguments.dtype}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy {accuracy:.3f}")
