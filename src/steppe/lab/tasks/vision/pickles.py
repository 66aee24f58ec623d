"""Read the pickles in which CIFAR is published, without giving them the power to run anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError, one_line

_SOURCE = "get the files again from https://www.cs.toronto.edu/~kriz/cifar.html"


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of numbers, texts, lists and arrays of bytes; anything else in it is refused.

    Not even numpy is called: what stands for an array in the file becomes a tensor here. Files that Python 2 wrote
    and files of all later protocols are understood.

    Args:
        path: The file.

    Returns:
        The dict, its keys as texts, its arrays as uint8 tensors.

    Raises:
        UserError: The file cannot be read, is no such dict, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise TypeError(f"it holds no dict, but {type(found).__name__}")
        return {_text(key): value.tensor if isinstance(value, _Array) else value for key, value in found.items()}
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror}") from error
    except _Refused as error:
        raise UserError(f"the file {str(path)!r} is refused: it asks for {error}, not for data; {_SOURCE}") from error
    except Exception as error:  # a damaged file can raise almost anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the file {str(path)!r} is not a CIFAR pickle: {reason}; {_SOURCE}") from error


class _Refused(Exception):
    """The pickle names something that is not on the list."""


class _Kind:
    """Stands for a numpy dtype."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and the like: a byte has none."""


class _Array:
    """Stands for a numpy array."""

    tensor: Tensor

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _, shape, kind, by_columns, raw = state
        self.fill(raw, kind, shape, by_columns)

    def fill(self, raw: bytes, kind: _Kind, shape: tuple[int, ...], by_columns: bool) -> None:
        """Take the bytes over, once they are known to be bytes."""
        if kind.code != "u1":
            raise ValueError(f"an array must be of type uint8 ('u1'), got {kind.code!r}")
        flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        self.tensor = flat.view(shape[::-1]).t().contiguous() if by_columns else flat.view(shape)


def _empty(*_: object) -> _Array:
    return _Array()


def _filled(raw: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.fill(raw, kind, shape, order == "F")
    return array


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _filled,
    ("numpy._core.numeric", "_frombuffer"): _filled,
    ("_codecs", "encode"): _latin1,
}


class _Reader(pickle.Unpickler):
    """Resolves the few names of a pickled array to the stand-ins above, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


def _text(key: str | bytes) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
