"""Load a file of the user's as it is now, and what it imports from its folder with it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .reading import module_name


class _Fresh(SourceFileLoader):
    """Reads the file itself: cached bytecode goes by seconds and size, and a file may change without either."""

    def path_stats(self, path: Any) -> Any:
        """Refuse what the cache asks for."""
        raise OSError


class _Finder(MetaPathFinder):
    """Finds what files of users import from their folders, wherever else there are modules of such names."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, bytes]] = {}
        self.imported: dict[str, tuple[str, bytes]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is, if it is one of them."""
        if fullname not in self.known:
            return None
        self.imported[fullname] = self.known[fullname]
        file, _ = self.known[fullname]
        return importlib.util.spec_from_file_location(fullname, file, loader=_Fresh(fullname, file))

    def learn(self, files: Mapping[str, tuple[str, bytes]]) -> None:
        """Take files by the names of their modules; if one is not what it was, all of them are imported again."""
        mine = [name for name in files if name in self.imported]
        if any(self.imported[name] != files[name] for name in mine):
            for name in mine:
                del self.imported[name]
                sys.modules.pop(name, None)
        self.known.update(files)


_FINDER = _Finder()


def fresh_module(root: Path, files: Mapping[str, bytes]) -> ModuleType:
    """Run the first of some files of a folder, whatever of them ran before.

    Args:
        root: The folder, which is put on the import path.
        files: By path within the folder: what the first one imports from there has to be among them.

    Returns:
        The module. Its name depends on its path alone, so that what it defines can be pickled between equal processes.
    """
    path = str(root / next(iter(files)))
    _FINDER.learn({module_name(name): (str(root / name), text) for name, text in files.items()})
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = f"steppe_task_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    loader = _Fresh(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))  # type: ignore[arg-type]
    sys.modules[name] = module
    loader.exec_module(module)
    return module
