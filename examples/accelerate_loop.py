"""SAM in a loop of your own with Accelerate: accumulation, clipping, mixed precision, checkpoints, several processes.

pip install steppe accelerate scikit-learn
python examples/accelerate_loop.py --accumulate 2 --mixed-precision bf16
torchrun --nproc_per_node 2 examples/accelerate_loop.py --climb micro
"""

import argparse

import torch

try:
    from accelerate import Accelerator
    from sklearn.datasets import load_digits
except ImportError as error:
    raise SystemExit(f"pip install accelerate scikit-learn    # {error}") from None

from steppe import SAM, accumulated_step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--climb", choices=["replay", "micro"], default="replay")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--resume", action="store_true", help="go on where the last run ended")
    given = parser.parse_args()
    accelerator = Accelerator(mixed_precision=given.mixed_precision)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), rho=0.05)  # USAM wants scale= below, with fp16
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.999)
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.float() / 16, y), batch_size=32, shuffle=True)
    model, base, loader, schedule = accelerator.prepare(model, opt.base, loader, schedule)  # the base, not the method
    accelerator.register_for_checkpointing(opt)  # not with FSDP: what is registered is saved by one process alone
    if given.resume:
        accelerator.load_state("runs/accelerate-loop")

    def backward(batch):
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1]) / len(micro_batches)
        accelerator.backward(loss)
        return loss

    def step():
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        base.step()
        schedule.step()

    for epoch in range(given.epochs):
        batches = list(loader)
        for i in range(0, len(batches), given.accumulate):
            micro_batches = batches[i : i + given.accumulate]
            loss = accumulated_step(opt, micro_batches, backward, climb=given.climb, model=model, step=step)
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
    accelerator.save_state("runs/accelerate-loop")


if __name__ == "__main__":
    main()
