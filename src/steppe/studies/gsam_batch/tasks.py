"""The tasks of the paper, loaded by file and name. The images lie in the folder $STEPPE_DATA, if that is set."""

from __future__ import annotations

import os

from steppe.lab import Task
from steppe.lab.tasks.vision.data import cifar_task

_ASIDE = 80  # of 50,000 training images: 49,920 make as many batches of 128 as all of them, which the paper trains on


def cifar100_resnet18() -> Task:
    """CIFAR-100 with ResNet-18."""
    return cifar_task("resnet18", "cifar100", os.environ.get("STEPPE_DATA"), _ASIDE)


def cifar100_wrn_28_10() -> Task:
    """CIFAR-100 with WRN-28-10."""
    return cifar_task("wrn-28-10", "cifar100", os.environ.get("STEPPE_DATA"), _ASIDE)
