"""YAML files of users, read within limits: whatever is wrong with one is a line with file and line number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, one_line, shortened

_MOST_BYTES = 1_000_000
_MOST_DEPTH = 50
_MOST_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """Says of every value that cannot be made where it stands."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(None, None, one_line(error), node.start_mark) from error


def read(path: Path) -> tuple[yaml.Node | None, Any]:
    """Read a YAML file.

    Args:
        path: The file: at most 1 MB, 50 levels deep, and with 100,000 values once aliases are followed.

    Returns:
        Its nodes, which know their lines, and its content.

    Raises:
        UserError: The file cannot be read, is not YAML, is beyond a limit, or has a key twice; names the line.
    """
    text = _text(path)
    try:
        _refuse_depth(text, path)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_size(tree, path)
        _refuse_repetitions(tree, path)
        return tree, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_position(error)}: not valid YAML: {_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {shortened(one_line(error))}") from error


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{str(path)!r} cannot be read: it is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"the file {str(path)!r} cannot be read: it has more than {_MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file {str(path)!r} is not UTF-8 text") from error


def _refuse_depth(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            raise UserError(f"{path}:{line}: more than {_MOST_DEPTH} levels deep")


def _refuse_size(tree: yaml.Node | None, path: Path) -> None:
    """Refuse what aliases make endless, or larger than it looks."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if sizes.get(id(node)) == 0:
            raise UserError(f"{path}:{node.start_mark.line + 1}: an alias to what it stands in")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
        return sizes[id(node)]

    if tree is not None and size(tree) > _MOST_NODES:
        raise UserError(f"{path}:1: more than {_MOST_NODES} values once aliases are followed")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
    for child in _children(node) if node is not None else ():
        yield from _mappings(child)


def _refuse_repetitions(tree: yaml.Node | None, path: Path) -> None:
    """Refuse a key that is there twice; YAML would silently keep the last."""
    for mapping in _mappings(tree):
        seen: set[str] = set()
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"{path}:{key.start_mark.line + 1}: the field {key.value!r} is there twice; keep one")
            seen.add(str(key.value))


def _position(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return "" if mark is None else f":{mark.line + 1}"


def _reason(error: yaml.YAMLError) -> str:
    said = error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else error
    return shortened(one_line(said))
