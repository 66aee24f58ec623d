"""What tells one state of an importable module from another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from . import reading

_INSTALLED = ("site-packages", "dist-packages")


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
    if top == __name__.partition(".")[0]:
        return None, "", {}
    where = getattr(module, "__file__", None)
    file = Path(where).resolve() if where else None
    if file is None or any(part in _INSTALLED for part in file.parts) or file.suffix != ".py":
        return _version(top), "", {}
    root = file.parents[len(module.__name__.split(".")) - (file.stem != "__init__")]
    files = reading.read(root, file.relative_to(root).as_posix())
    return reading.digest(files), str(root), files


def _version(top: str) -> str | None:
    names = sorted(set(_distributions().get(top, [])))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names) or None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
