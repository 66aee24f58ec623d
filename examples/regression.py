"""Regression: steppe compare --task examples/regression.py:diabetes --methods adamw,sam --seeds 5"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from steppe.lab import Task


def diabetes() -> Task:
    """Predict how far the disease is after a year, a number from 25 to 346, from ten measurements."""
    x, y = load_diabetes(return_X_y=True)
    y = y[:, None]  # shape (n, 1), as the model's outputs
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.3, random_state=0)
    x, validation_x, y, validation_y = train_test_split(x, y, test_size=0.3, random_state=0)
    inputs, targets = StandardScaler().fit(x), StandardScaler().fit(y)  # on training data alone

    def tensors(x, y):
        pair = inputs.transform(x), targets.transform(y)
        return tuple(torch.tensor(part, dtype=torch.float32) for part in pair)

    def rmse(outputs, targets_):
        return float(targets.scale_[0]) * nn.functional.mse_loss(outputs, targets_).sqrt()  # in the unit of the data

    return Task(
        model=lambda: nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)),
        train=tensors(x, y),
        validation=tensors(validation_x, validation_y),
        test=tensors(test_x, test_y),
        loss=nn.functional.mse_loss,
        metric=rmse,
        higher_is_better=False,
        batch_size=32,
        epochs=40,
    )
