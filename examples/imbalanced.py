"""Few positives: steppe compare --task examples/imbalanced.py:task --methods adamw,sam --seeds 5"""

import torch
from sklearn.datasets import make_classification
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from steppe.lab import Task


def task() -> Task:
    """Find the 5 % positives among 6000 generated examples."""
    x, y = make_classification(
        6000, n_features=20, n_informative=6, weights=[0.95], flip_y=0, class_sep=0.7, random_state=0
    )
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    x = (x - x[:2000].mean(0)) / x[:2000].std(0)  # by training data alone
    train, validation, test = zip(x.split(2000), y.split(2000), strict=True)

    # A positive weighs as much as all the negatives beside it: half of that is drawn, half is in the loss.
    share = float((train[1] == 0).sum() / (train[1] == 1).sum()) ** 0.5
    sampler = WeightedRandomSampler(torch.where(train[1] == 1, share, 1.0).tolist(), num_samples=2000)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(share))

    def model():
        layers = nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
        return nn.Sequential(*layers)

    return Task(
        model=model,
        train=DataLoader(TensorDataset(*train), batch_size=64, sampler=sampler),
        unaugmented=train,  # each example once, for the loss and the metrics on training data
        validation=validation,
        test=test,
        loss=loss,
        metric={"AUC": lambda o, t: roc_auc_score(t, o), "F1": lambda o, t: f1_score(t, o > 0)},
        epochs=20,
    )
