"""What tells one state of an importable module from another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from . import reading

_INSTALLED = ("site-packages", "dist-packages")
_STEPPE = __name__.partition(".")[0]


def identity(module: ModuleType) -> tuple[str | None, str, dict[str, bytes]]:
    """Return what changes when a module does, and the files that this was found from.

    Args:
        module: Of an installed package, of one that is installed to be edited, or of a folder.

    Returns:
        The package and its version; or else the hash of the module's file and of those of its folder that it imports,
        the folder, and the files. Of steppe's own modules None: its version is in every record.

    Raises:
        OSError: A file cannot be read.
    """
    top = module.__name__.partition(".")[0]
    if top == _STEPPE:
        return None, "", {}
    root, files = own_files(module)
    return (reading.digest(files), root, files) if files else (_version(top), "", {})


def own_files(module: ModuleType) -> tuple[str, dict[str, bytes]]:
    """Return the folder and the files of a module of the user's: its own, and those of its folder that it imports.

    Args:
        module: Of which the name and the file count.

    Returns:
        The folder, and contents by path within it; nothing of a module that is installed, or comes with Python.

    Raises:
        OSError: A file cannot be read.
    """
    where = getattr(module, "__file__", None)
    file = Path(where).resolve() if where else None
    top = module.__name__.partition(".")[0]
    if file is None or file.suffix != ".py" or top in sys.stdlib_module_names or top == _STEPPE:
        return "", {}
    if any(part in _INSTALLED for part in file.parts):
        return "", {}
    root = file.parents[len(module.__name__.split(".")) - (file.stem != "__init__")]
    return str(root), reading.read(root, file.relative_to(root).as_posix())


def _version(top: str) -> str | None:
    names = sorted(set(_distributions().get(top, [])))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names) or None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
