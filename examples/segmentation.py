"""Segmentation: steppe compare --task examples/segmentation.py:blobs --methods adamw,sam --seeds 5"""

import torch
from torch import nn
from torchmetrics import JaccardIndex

from steppe.lab import Task


class Net(nn.Module):
    """Returns its scores under "out", as the models of torchvision do."""

    def __init__(self):
        super().__init__()
        layers = []
        for channels, dilation in ((1, 1), (16, 2), (16, 4)):
            layers += [nn.Conv2d(channels, 16, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(16), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(16, 3, 1))

    def forward(self, images):
        return {"out": self.layers(images)}


def blobs() -> Task:
    """Label every pixel of a noisy 24x24 image: background, disc or square."""
    generator = torch.Generator().manual_seed(0)
    at = torch.randint(4, 20, (300, 2, 2, 1, 1), generator=generator)  # image, shape, down or right
    down, right = torch.arange(24)[:, None] - at[:, :, 0], torch.arange(24) - at[:, :, 1]
    labels = (down[:, 0] ** 2 + right[:, 0] ** 2 <= 25).long()
    labels[(down[:, 1].abs() <= 2) & (right[:, 1].abs() <= 2)] = 2
    images = (labels > 0).float()[:, None] + 0.4 * torch.randn(300, 1, 24, 24, generator=generator)
    train, validation, test = zip(images.split(100), labels.split(100), strict=True)
    splits = {"train": train, "validation": validation, "test": test}

    def forward(model, batch):
        return model(batch[0])["out"], batch[1]

    metric = {"mean IoU": JaccardIndex(task="multiclass", num_classes=3)}
    return Task(model=Net, **splits, forward=forward, metric=metric, batch_size=10, epochs=20)
