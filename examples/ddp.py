"""SAM in DDP, each process climbing on its own: torchrun --nproc_per_node 2 examples/ddp.py --steps 200

The same command again goes on where the last one stopped.
"""

import argparse
import gc
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from steppe import SAM, accumulated_step
from steppe.integrations.distributed import SharpnessAwareState


def data(rank: int, step: int) -> list[tuple[Tensor, Tensor]]:
    """What this process sees in a step, in two micro-batches: is a point above a parabola?"""
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(1000 * step + rank)) * 2 - 1
    return list(zip(x.chunk(2), (x[:, 1] > x[:, 0] ** 2).long().chunk(2), strict=True))


def train(steps: int, folder: Path, device: torch.device) -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2)).to(device))
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), rho=0.05)
    state = {"model": get_model_state_dict(model), "optimizer": SharpnessAwareState(model, opt), "step": 0}
    if folder.exists():
        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(model, state["model"])

    def backward(part: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (tensor.to(device) for tensor in part)
        loss = nn.functional.cross_entropy(model(x), y) / 2
        loss.backward()
        return loss

    for step in range(state["step"], state["step"] + steps):
        loss = accumulated_step(opt, data(distributed.get_rank(), step), backward, model=model, replicas="own")
    if distributed.get_rank() == 0:
        print(f"step {step + 1}: loss {loss.item():.4f} on the first process")
    dcp.save({**state, "model": get_model_state_dict(model), "step": step + 1}, checkpoint_id=folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/ddp"))
    args = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    distributed.init_process_group(device_id=device if device.type == "cuda" else None)
    train(args.steps, args.folder, device)
    gc.collect()  # the model must be gone before the processes part, and torch may still refer to it
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
