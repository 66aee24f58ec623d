"""Accelerate in a loop of your own: steppe compare --task examples/loop_accelerate.py:train

With --processes 2 of that command every process sees its share of the batches, and DDP averages their gradients.
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steppe.lab import loop

X, Y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
TRAIN, VALIDATION, TEST = (TensorDataset(X[i].float() / 16, Y[i]) for i in torch.arange(len(X)).split([1000, 397, 400]))


@loop(metric_name="accuracy", higher_is_better=True, epochs=10)
def train(run):
    accelerator = Accelerator(cpu=run.device.type == "cpu")
    order = torch.Generator().manual_seed(run.seed)  # its own, so that every method sees the same batches
    loader = DataLoader(TRAIN, batch_size=64, shuffle=True, generator=order)
    plain = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model, loader = accelerator.prepare(plain, loader)
    opt = run.optimizer(plain, updates=run.epochs * len(loader))

    def loss_of(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def right(data):
        with run.paused(), torch.no_grad():
            x, y = (part.to(accelerator.device) for part in data.tensors)
            return 100.0 * (plain.eval()(x).argmax(1) == y)

    for epoch in range(run.epochs):
        model.train()
        for batch in loader:
            loss = run.step(opt, batch, loss_of, model=model, backward=accelerator.backward)
        run.report(epoch, loss=accelerator.reduce(loss, "mean"), accuracy=right(VALIDATION).double().mean())
    return {"accuracy": right(TEST)}  # one number for each example
