"""GSAM with FSDP2, every layer in shards: torchrun --nproc_per_node 2 examples/fsdp.py --steps 200

The same command again goes on where the last one stopped, on another number of processes too.
"""

import argparse
import gc
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from steppe import GSAM
from steppe.integrations.distributed import SharpnessAwareState, resharded


def data(rank: int, step: int, device: str) -> tuple[Tensor, Tensor]:
    """What this process sees in a step: is a point above a parabola?"""
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(1000 * step + rank)) * 2 - 1
    return x.to(device), (x[:, 1] > x[:, 0] ** 2).long().to(device)


def train(steps: int, folder: Path, device: str) -> None:
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2)).to(device)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    opt = GSAM(torch.optim.AdamW(model.parameters(), lr=1e-2), rho=0.05)
    opt.around_sharp_pass(lambda: resharded(model), also_single=True)
    state = {"model": get_model_state_dict(model), "optimizer": SharpnessAwareState(model, opt), "step": 0}
    if folder.exists():
        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(model, state["model"])

    for step in range(state["step"], state["step"] + steps):

        def closure(step: int = step) -> Tensor:
            x, y = data(distributed.get_rank(), step, device)
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        loss = opt.step(closure)
    if distributed.get_rank() == 0:
        print(f"step {step + 1}: loss {loss.item():.4f} on the first process")
    dcp.save({**state, "model": get_model_state_dict(model), "step": step + 1}, checkpoint_id=folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/fsdp"))
    args = parser.parse_args()
    train(args.steps, args.folder, "cuda" if torch.cuda.is_available() else "cpu")
    gc.collect()  # the model must be gone before the processes part, and its hooks refer to each other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
