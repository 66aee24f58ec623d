"""CIFAR-10 and CIFAR-100: read from a folder or the Hugging Face hub, augmented, and made a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from ...errors import UserError, nearest
from ..task import Task
from .formats import Cifar, from_folder, from_hub
from .models import resnet18, wide_resnet

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

_PADDING = 4
_MODELS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "wrn-28-10": partial(wide_resnet, 28, 10)}
_CIFAR = {
    "cifar10": Cifar(
        title="CIFAR-10",
        classes=10,
        hub="uoft-cs/cifar10",
        archive="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        pickled_labels="labels",
        labels=("label",),
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
    ),
    "cifar100": Cifar(
        title="CIFAR-100",
        classes=100,
        hub="uoft-cs/cifar100",
        archive="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        pickled_labels="fine_labels",
        labels=("fine_label", "label"),
        mean=CIFAR100_MEAN,
        std=CIFAR100_STD,
    ),
}


def cifar_task(
    model: str = "resnet18", name: str = "cifar100", folder: str | Path | None = None, validation: int = 5000
) -> Task:
    """Make the task of CIFAR with crops and flips, batches of 128 and 200 epochs.

    The validation split is taken from the training images by a permutation that is always the same, and is not
    augmented. Published runs train on all 50,000 images and have no validation split; their hyper-parameters come
    from elsewhere. Here hyper-parameters are chosen on the validation split, never on test data, so there must be
    one; expect a little less than the published accuracy from 45,000 images.

    Args:
        model: ``resnet18`` or ``wrn-28-10``.
        name: ``cifar100`` or ``cifar10``.
        folder: Where the data lies, as `load_cifar` describes; without it the hub is asked.
        validation: Training images to set aside, at least 2, leaving at least 2.

    Returns:
        The task.

    Raises:
        UserError: An argument is unknown or out of range, or the data cannot be read.

    Example:
        A file that ``steppe compare --task FILE.py:cifar`` can use::

            from steppe.lab.tasks.vision.data import cifar_task

            def cifar():
                return cifar_task("resnet18", folder="cifar-100-python")
    """
    if model not in _MODELS:
        raise UserError(f"unknown model {model!r}{nearest(str(model), _MODELS)}")
    cifar = _known(name)
    if not isinstance(validation, int) or isinstance(validation, bool) or validation < 2:
        raise UserError(
            f"cifar_task: validation must be a whole number of at least 2, got {validation!r}; hyper-parameters are "
            "chosen on these images of the training set, never on test data"
        )
    x, y, test_x, test_y = load_cifar(name, folder)
    if validation > len(x) - 2:
        raise UserError(f"cifar_task: validation must leave 2 of {len(x)} training images, got {validation}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    kept, aside = order[:-validation], order[-validation:]
    split = partial(Augmented, mean=cifar.mean, std=cifar.std)
    return Task(
        model=partial(_MODELS[model], num_classes=cifar.classes),
        train=split(x[kept], y[kept], train=True),
        validation=split(x[aside], y[aside], train=False),
        test=split(test_x, test_y, train=False),
        unaugmented=split(x[kept], y[kept], train=False),
        batch_size=128,
        epochs=200,
    )


def load_cifar(name: str = "cifar100", folder: str | Path | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read CIFAR-10 or CIFAR-100 as tensors.

    A folder may hold one of these:

    * the original pickles, or the folder that they are unpacked to. They are read without running anything in them;
    * parquet files as on the Hugging Face hub, named ``train*.parquet`` and ``test*.parquet`` or in folders ``train``
      and ``test``, at any depth;
    * what ``save_to_disk`` of the package `datasets` wrote for both splits;
    * images ``train/CLASS/*.png`` and ``test/CLASS/*.png``. Classes are numbered in the order of their names, or of
      their numbers if all names are numbers.

    Without a folder the hub is asked for ``uoft-cs/cifar100`` or ``uoft-cs/cifar10``. Pickles need no package besides
    torch, images need Pillow, everything else needs `datasets` and Pillow.

    Args:
        name: ``cifar100`` or ``cifar10``.
        folder: Where the data lies.

    Returns:
        Training images as uint8 of shape (n, 3, 32, 32), their classes as int64, and the same two for the test set.

    Raises:
        UserError: The name is unknown, a package is missing, or the data cannot be found or is not what it should be.
    """
    cifar = _known(name)
    splits = from_hub(cifar) if folder is None else from_folder(cifar, Path(folder))
    for split, (x, y) in splits.items():
        if len(x) == 0 or len(x) != len(y):
            raise UserError(f"{cifar.title}: {split} must have as many images as labels, got {len(x)} and {len(y)}")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= cifar.classes:
            raise UserError(
                f"{cifar.title}: labels of {split} must be from 0 to {cifar.classes - 1}, got {low} to {high}; "
                "check that name and folder belong together"
            )
    return *splits["train"], *splits["test"]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images as normalised floats, for training with random crops and flips.

    An image is ``(pixel / 255 - mean) / std`` per channel. With `train` it is first padded with 4 black pixels on each
    side, cropped to its old size at one of 9 x 9 places, and mirrored left to right in half of the cases: 162 equally
    likely results. One draw from torch's global generator decides, so ``torch.manual_seed`` reproduces it.

    A `DataLoader` asks for a whole batch at once through ``__getitems__``, which works on all images together. It
    draws once per image in the order of the indices, just as ``__getitem__`` does for one.

    Args:
        x: Images as uint8 of shape (n, channels, height, width).
        y: Targets of shape (n,).
        mean: Mean per channel, on the scale from 0 to 1.
        std: Standard deviation per channel, on the same scale, above 0.
        train: Whether to crop and flip.

    Raises:
        UserError: An argument has the wrong type, shape or length.

    Example:
        >>> x = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
        >>> image, target = Augmented(x, torch.tensor([3, 7]), mean=[0.5], std=[0.25], train=False)[1]
        >>> image[0, 0].tolist(), target.item()
        ([2.0, 2.0, 2.0, 2.0], 7)
    """

    def __init__(self, x: Tensor, y: Tensor, *, mean: Sequence[float], std: Sequence[float], train: bool) -> None:
        if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4:
            got = f"shape {tuple(x.shape)} ({x.dtype})" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"Augmented: x must be uint8 of shape (n, channels, height, width), got {got}")
        if not isinstance(y, Tensor) or y.shape != x.shape[:1]:
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise UserError(f"Augmented: y must be a tensor of shape ({len(x)},) as x has {len(x)} images, got {got}")
        if not len(mean) == len(std) == x.shape[1] or min(std) <= 0:
            raise UserError(
                f"Augmented: mean and std must have one entry for each of {x.shape[1]} channels, std above 0, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        self.x, self.y, self.train = x, y, train
        self.mean, self.std = (torch.tensor(tuple(part)).view(-1, 1, 1) for part in (mean, std))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image and its target."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the images and targets of a whole batch."""
        chosen = torch.as_tensor(indices)
        x = self.x[chosen]
        if self.train:
            x = _cropped_and_flipped(x)
        x = (x / 255 - self.mean) / self.std
        return list(zip(x.unbind(), self.y[chosen].unbind(), strict=True))


def _cropped_and_flipped(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    places = 2 * _PADDING + 1
    draw = torch.randint(places * places * 2, (len(x),))
    top, left, flip = draw // (places * 2), draw // 2 % places, draw % 2 == 1
    # All places of all images as a view: no pixel is copied until the chosen places are read out of it.
    crops = functional.pad(x, (_PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    x = crops[torch.arange(len(x)), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)


def _known(name: str) -> Cifar:
    if name not in _CIFAR:
        raise UserError(f"unknown data set {name!r}{nearest(str(name), _CIFAR)}")
    return _CIFAR[name]
