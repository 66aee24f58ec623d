"""What a Python file imports from its own folder, found by reading it: nothing is run."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from . import trees

_OF_DOCSTRINGS = (b"__doc__", b"getdoc")


def read(root: Path, start: str) -> dict[str, bytes]:
    """Read a Python file and every Python file of a folder that it imports, and so on.

    Imports within functions count. Names of the standard library do not: that has them already.

    Args:
        root: The folder, as it stands on the import path.
        start: The file, as a path within the folder.

    Returns:
        Contents by path within the folder, that of `start` first.

    Raises:
        OSError: A file cannot be read.
    """
    found: dict[str, bytes] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = (root / path).read_bytes()
            waiting += sorted(_imported(root, path, found[path]))
    return found


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return by path what changes when the code of a file does: its comments, formatting and docstrings do not count.

    Docstrings do where a file that belongs to it may look at them.
    """
    docstrings = any(word in text for text in files.values() for word in _OF_DOCSTRINGS)
    return {path: hashlib.sha256(trees.canonical(text, docstrings)).hexdigest() for path, text in files.items()}


def digest(files: Mapping[str, bytes]) -> str:
    """Return what changes when the code of any file does: of one, its own of `digests`."""
    hashes = digests(files)
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("\n".join(f"{one} {path}" for path, one in sorted(hashes.items())).encode()).hexdigest()


def module_name(path: str) -> str:
    """Return how a file is imported, given its path within the folder.

    Example:
        >>> module_name("parts/__init__.py"), module_name("parts/climb.py")
        ('parts', 'parts.climb')
    """
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(root: Path, path: str, text: bytes) -> set[str]:
    """Return the files of the folder that one of them imports."""
    tree = trees.parsed(text)
    if tree is None:
        return set()
    package = PurePosixPath(path).parts[:-1]
    names = {package, *_names(tree, package)}
    return {file for name in names for file in _files(root, name)}


def _names(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Return the names that may be those of modules, each as its parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: max(len(package) - node.level + 1, 0)] if node.level else ()
            module = (*above, *(node.module.split(".") if node.module else ()))
            yield module
            yield from ((*module, alias.name) for alias in node.names)


def _files(root: Path, name: tuple[str, ...]) -> Iterable[str]:
    """Return the files that an import of a name runs: those of the packages around it too."""
    if name and name[0] in sys.stdlib_module_names:
        return
    for count in range(1, len(name) + 1):
        path = "/".join(name[:count])
        found = next((file for file in (f"{path}/__init__.py", f"{path}.py") if (root / file).is_file()), None)
        if found is not None:
            yield found
