"""Half precision and gradient accumulation in a loop of your own: steppe compare --task examples/loop_amp.py:train

On CUDA float16 with a GradScaler, elsewhere bfloat16, which needs none. 128 examples a step, of which 32 at a time.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from steppe.lab import loop

X, Y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
TRAIN, VALIDATION, TEST = torch.arange(len(X)).split([1000, 397, 400])


@loop(metric_name="accuracy", higher_is_better=True, epochs=10)
def train(run):
    x, y, kind = X.float().to(run.device) / 16, Y.to(run.device), run.device.type
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(run.device)
    opt = run.optimizer(model, updates=run.epochs * 8)
    scaler = torch.amp.GradScaler(kind, enabled=kind == "cuda")
    order = torch.Generator().manual_seed(run.seed)  # its own, so that every method sees the same batches

    def loss_of(batch):
        with torch.autocast(kind, dtype=torch.float16 if kind == "cuda" else torch.bfloat16):
            return nn.functional.cross_entropy(model(x[batch]), y[batch])

    def right(part):
        with run.paused(), torch.no_grad():
            return 100.0 * (model.eval()(x[part]).argmax(1) == y[part])

    for epoch in range(run.epochs):
        model.train()
        for batch in TRAIN[torch.randperm(len(TRAIN), generator=order)].split(128):
            loss = run.step(opt, batch, loss_of, micro=32, scaler=scaler)
        run.report(epoch, loss=loss, accuracy=right(VALIDATION).double().mean())
    return {"accuracy": right(TEST)}  # one number for each example
