"""The built-in tasks: small data sets that are real enough to overfit and need no download."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from ..files import write_atomically
from .randomness import drawing_apart
from .task import Task

_ARRAYS = ("x", "y", "x_test", "y_test")
_VALIDATION_SEED = 43  # the generator's own default, 42, makes the usual train and test sets


def mnist1d() -> Task:
    """Make the MNIST-1D task: 40 samples of a distorted curve, 10 classes, an MLP.

    The train and test sets are the usual 4000 and 1000 examples of the package's generator. The validation set is
    1000 examples that the same generator draws with another seed. The generator scales what it draws by the mean and
    standard deviation of the draw; as many examples are drawn for validation as for train and test together, so that
    the two scales agree. Drawing takes seconds, so that what was drawn is kept in ``steppe`` in the user's folder for
    caches, ``$XDG_CACHE_HOME`` or ``~/.cache``, by the versions of all that draws.

    Returns:
        The task.
    """
    usual, other = _draw(None), _draw(_VALIDATION_SEED)
    return Task(
        model=_mlp,
        train=_tensors(usual["x"], usual["y"]),
        validation=_tensors(other["x_test"], other["y_test"]),
        test=_tensors(usual["x_test"], usual["y_test"]),
    )


def mnist1d_conv() -> Task:
    """Make the MNIST-1D task with a convnet, of three strided layers and 8,010 weights, in place of the MLP.

    Returns:
        The task.
    """
    return replace(mnist1d(), model=_convnet_1d)


def digits() -> Task:
    """Make the digits task: scanned 8x8 digits, 1000 for training, 297 for validation, 500 for test; a convnet.

    Returns:
        The task.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    x, y = data.images[:, None] / 16.0, data.target
    x, test_x, y, test_y = train_test_split(x, y, test_size=500, stratify=y, random_state=0)
    x, validation_x, y, validation_y = train_test_split(x, y, test_size=297, stratify=y, random_state=0)
    return Task(
        model=_convnet,
        train=_tensors(x, y),
        validation=_tensors(validation_x, validation_y),
        test=_tensors(test_x, test_y),
        batch_size=50,
        epochs=30,
    )


BUILTIN: dict[str, Callable[[], Task]] = {"mnist1d": mnist1d, "mnist1d-conv": mnist1d_conv, "digits": digits}


@cache
def _draw(seed: int | None) -> Mapping[str, Any]:
    """Return the four arrays that the generator draws with a seed, from where they are kept if they are."""
    versions = "-".join(version(name) for name in ("mnist1d", "numpy", "scipy"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "steppe")
    path = folder / f"mnist1d-{versions}-{'usual' if seed is None else seed}.npz"
    # Whatever is wrong with the file, or the folder, the examples can be drawn.
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(io.BytesIO(path.read_bytes())) as kept:
        return {name: kept[name] for name in _ARRAYS}
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    if seed is not None:
        arguments.seed = seed
    with drawing_apart():
        made = make_dataset(arguments)
    drawn = {name: made[name] for name in _ARRAYS}
    content = io.BytesIO()
    np.savez(content, **drawn)
    if path.is_absolute():  # not where there is no home
        with suppress(OSError):
            write_atomically(path, content.getvalue())
    return drawn


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def _convnet_1d() -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    for channels, kernel in ((1, 5), (32, 3), (32, 3)):
        layers += [nn.Conv1d(channels, 32, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 5, 10))


def _convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
