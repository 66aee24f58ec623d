"""A table with classes: steppe compare --task examples/table.py:breast_cancer --methods adamw,sam --seeds 5"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from steppe.lab import Task


def breast_cancer() -> Task:
    """Tell malignant from benign tumours by 30 measurements of their cells."""
    x, y = load_breast_cancer(return_X_y=True)
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.4, stratify=y, random_state=0)
    x, validation_x, y, validation_y = train_test_split(x, y, test_size=0.4, stratify=y, random_state=0)
    scaler = StandardScaler().fit(x)  # on training data alone

    def tensors(x, y):
        return torch.tensor(scaler.transform(x), dtype=torch.float32), torch.tensor(y, dtype=torch.int64)

    return Task(
        model=lambda: nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)),
        train=tensors(x, y),
        validation=tensors(validation_x, validation_y),
        test=tensors(test_x, test_y),
        batch_size=32,
        epochs=40,
    )
