"""Where CIFAR comes from: the Hugging Face hub, or a folder in one of four formats."""

from __future__ import annotations

import glob
import io
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...errors import UserError, one_line
from .pickles import read_pickle

Images: TypeAlias = tuple[Tensor, Tensor]

_SPLITS = ("train", "test")
_FORMATS = "the original pickles, parquet files, a folder of datasets.save_to_disk, or train/CLASS/*.png with test/"


@dataclass(frozen=True)
class Cifar:
    """Where the parts of a data set are found and what they are called.

    Args:
        title: Its name in messages.
        classes: How many classes it has.
        hub: Its name on the Hugging Face hub.
        archive: The folder that the original pickles are unpacked to.
        files: The original pickles of each split.
        pickled_labels: What the labels are called in them.
        labels: What the labels are called elsewhere, the most specific first.
        mean: The mean of each channel, on the scale from 0 to 1.
        std: The standard deviation of each channel, on the same scale.
    """

    title: str
    classes: int
    hub: str
    archive: str
    files: dict[str, tuple[str, ...]]
    pickled_labels: str
    labels: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def from_hub(cifar: Cifar) -> dict[str, Images]:
    """Read both splits from the hub, or from the cache that `datasets` keeps of it.

    Args:
        cifar: Which data set.

    Returns:
        Images and labels of ``train`` and ``test``.

    Raises:
        UserError: A package is missing, the hub cannot be reached, or it holds something else.
    """
    datasets = _package("datasets")
    try:
        found = datasets.load_dataset(cifar.hub)
    except Exception as error:  # whatever the many layers below raise, the remedy is the same
        raise UserError(
            f"{cifar.title}: datasets.load_dataset({cifar.hub!r}) failed with {type(error).__name__}: "
            f"{one_line(error)}; connect to the hub, or give folder= with {_FORMATS}"
        ) from error
    return _from_columns(cifar, found, cifar.hub)


def from_folder(cifar: Cifar, folder: Path) -> dict[str, Images]:
    """Read both splits from a folder, whatever its format.

    Args:
        cifar: Which data set.
        folder: The folder.

    Returns:
        Images and labels of ``train`` and ``test``.

    Raises:
        UserError: A package is missing, or the folder does not hold what it should.
    """
    if not folder.is_dir():
        raise UserError(f"{cifar.title}: the folder {str(folder)!r} does not exist; give a folder with {_FORMATS}")
    for read in (_from_pickles, _from_saved, _from_parquet, _from_images):
        splits = read(cifar, folder)
        if splits is not None:
            return splits
    names = sorted(entry.name for entry in folder.iterdir())
    got = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
    raise UserError(f"{cifar.title}: the folder {str(folder)!r} must hold {_FORMATS}; it holds {got}")


def _from_pickles(cifar: Cifar, folder: Path) -> dict[str, Images] | None:
    names = [name for split in _SPLITS for name in cifar.files[split]]
    for place in (folder, folder / cifar.archive):
        missing = [name for name in names if not (place / name).is_file()]
        if len(missing) == len(names):
            continue
        if missing:
            raise UserError(
                f"{cifar.title}: the folder {str(place)!r} lacks {', '.join(missing)}; it must hold {', '.join(names)}"
            )
        return {split: _unpickled(cifar, [place / name for name in cifar.files[split]]) for split in _SPLITS}
    return None


def _unpickled(cifar: Cifar, paths: list[Path]) -> Images:
    images, labels = [], []
    for path in paths:
        content = read_pickle(path)
        x, y = content.get("data"), content.get(cifar.pickled_labels)
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != 3 * 32 * 32:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"{cifar.title}: 'data' in {str(path)!r} must be an array of shape (n, 3072), got {got}")
        if not isinstance(y, list):
            raise UserError(
                f"{cifar.title}: the file {str(path)!r} must hold a list {cifar.pickled_labels!r}, "
                f"got {', '.join(content)}"
            )
        images.append(x.view(-1, 3, 32, 32))
        labels.append(_labels(y, str(path)))
    return torch.cat(images), torch.cat(labels)


def _from_saved(cifar: Cifar, folder: Path) -> dict[str, Images] | None:
    if not (folder / "dataset_dict.json").is_file():
        return None
    return _from_columns(cifar, _opened(cifar, folder, "load_from_disk", str(folder)), str(folder))


def _from_parquet(cifar: Cifar, folder: Path) -> dict[str, Images] | None:
    files = {}
    for split in _SPLITS:
        paths = {*folder.rglob(f"{split}*.parquet"), *folder.rglob(f"{split}/*.parquet")}
        files[split] = [glob.escape(str(path)) for path in sorted(paths)]
    if not any(files.values()):
        return None
    for split in _SPLITS:
        if not files[split]:
            raise UserError(f"{cifar.title}: the folder {str(folder)!r} has no {split}*.parquet; put both splits there")
    return _from_columns(cifar, _opened(cifar, folder, "load_dataset", "parquet", data_files=files), str(folder))


def _opened(cifar: Cifar, folder: Path, function: str, *arguments: str, **more: Any) -> Any:
    datasets = _package("datasets")
    try:
        return getattr(datasets, function)(*arguments, **more)
    except Exception as error:
        raise UserError(
            f"{cifar.title}: datasets.{function} cannot read the folder {str(folder)!r}: {type(error).__name__}: "
            f"{one_line(error)}; save the data again"
        ) from error


def _from_columns(cifar: Cifar, found: Any, where: str) -> dict[str, Images]:
    """Turn both splits of a `datasets.DatasetDict` into tensors."""
    datasets, splits = _package("datasets"), {}
    for split in _SPLITS:
        if split not in found:
            raise UserError(f"{cifar.title}: {where!r} must have the splits train and test, got {', '.join(found)}")
        names = found[split].column_names
        image = next((name for name in ("img", "image") if name in names), None)
        label = next((name for name in cifar.labels if name in names), None)
        if image is None or label is None:
            raise UserError(
                f"{cifar.title}: {split} of {where!r} must have the columns img and {cifar.labels[0]}, "
                f"got {', '.join(names)}"
            )
        try:
            cells = found[split].cast_column(image, datasets.Image(decode=False))[image]
            images = [_pixels(_encoded(cell), where) for cell in cells]
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"{cifar.title}: the column {image!r} of {where!r} must hold images: {one_line(error)}; "
                "save the data again"
            ) from error
        splits[split] = _stacked(images), _labels(list(found[split][label]), where)
    return splits


def _from_images(cifar: Cifar, folder: Path) -> dict[str, Images] | None:
    if not all((folder / split).is_dir() for split in _SPLITS):
        return None
    names = {split: [entry.name for entry in (folder / split).iterdir() if entry.is_dir()] for split in _SPLITS}
    if not names["train"]:
        return None
    unknown = sorted(set(names["test"]) - set(names["train"]))
    if unknown:
        raise UserError(f"{cifar.title}: test in {str(folder)!r} has classes that train lacks: {', '.join(unknown)}")
    numbers = all(name.isdecimal() for name in names["train"])
    classes = sorted(names["train"], key=int) if numbers else sorted(names["train"])
    splits = {}
    for split in _SPLITS:
        images, labels = [], []
        for number, name in enumerate(classes):
            for path in sorted((folder / split / name).glob("*.png")):
                images.append(_pixels(path, str(path)))
                labels.append(number)
        splits[split] = _stacked(images), torch.tensor(labels, dtype=torch.int64)
    return splits


def _encoded(cell: dict[str, Any]) -> str | io.BytesIO:
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def _pixels(source: Path | str | io.BytesIO, where: str) -> Tensor:
    pillow = _package("PIL.Image")
    try:
        with pillow.open(source) as picture:
            colours = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"an image of {where!r} cannot be read: {one_line(error)}; save the data again") from error
    if colours.size != (32, 32):
        raise UserError(f"an image of {where!r} must have 32 x 32 pixels, got {' x '.join(map(str, colours.size))}")
    return torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)


def _stacked(images: list[Tensor]) -> Tensor:
    return torch.stack(images) if images else torch.empty(0, 3, 32, 32, dtype=torch.uint8)


def _labels(values: list[Any], where: str) -> Tensor:
    wrong = [value for value in values if not isinstance(value, int)]
    if wrong:
        raise UserError(f"the labels of {where!r} must be whole numbers, got {wrong[0]!r}; save the data again")
    return torch.tensor(values, dtype=torch.int64)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        known = {"PIL": "pillow", "datasets": "datasets"}.get((error.name or "").partition(".")[0])
        if known is None:
            raise
        message = f"the module {error.name!r} is not installed; install it with: pip install {known}"
        raise UserError(message) from error
