"""What the user asks for: flags and YAML files, checked field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import UserError, nearest, one_line


def _number(value: object) -> object:
    # YAML 1.1 reads 1e-3 (without a point) as a text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Value: TypeAlias = Annotated[bool | float | tuple[float, ...], BeforeValidator(_number)]
Count: TypeAlias = Annotated[int, Field(ge=1, strict=True)]


class Options(BaseModel):
    """What a user may ask for, on the command line or in a YAML file; what is None has a default.

    Attributes:
        task: ``mnist1d``, ``digits`` or ``FILE.py:FUNCTION``.
        methods: Names of methods; the base is one of them if it is to be compared with.
        base: ``adamw`` or ``sgd``.
        seeds: How many seeds, at least 1.
        epochs: At least 1.
        jobs: Worker processes, at least 1.
        out: The folder for everything that is written.
        settings: Hyper-parameters by method, over the packaged ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str | None = None
    methods: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = None
    base: str | None = None
    seeds: Count | None = None
    epochs: Count | None = None
    jobs: Count | None = None
    out: str | None = None
    settings: dict[str, dict[str, Value]] = {}


def from_flags(flags: Mapping[str, object], prefix: str = "--") -> Options:
    """Check what was given on the command line or as arguments.

    Args:
        flags: By field name; None where a flag was not given.
        prefix: What stands before the name of a field where the user wrote it.

    Returns:
        The options.

    Raises:
        UserError: A value is not allowed; names the flag.
    """
    try:
        return Options.model_validate({name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in _path(problem["loc"]))
        raise UserError(f"{prefix}{name}: {_reason(problem)}") from error


def from_file(path: Path) -> Options:
    """Read and check a YAML file.

    Args:
        path: The file.

    Returns:
        The options.

    Raises:
        UserError: The file cannot be read, is not YAML, or holds a wrong field; names the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file {str(path)!r} is not UTF-8 text") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repetitions(tree, path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_yaml_position(error)}: not valid YAML: {_yaml_reason(error)}") from error
    if content is None:
        return Options()
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: expected fields such as 'task: mnist1d', got {_shown(content)}")
    try:
        return Options.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        line = _line(tree, problem["loc"])
        name = ".".join(str(part) for part in _path(problem["loc"]))
        raise UserError(f"{path}:{line}: {name}: {_reason(problem)}") from error


def merge(over: Options, under: Options) -> Options:
    """Lay the given options over others.

    Args:
        over: What it sets wins.
        under: The rest.

    Returns:
        The options of both.
    """
    return under.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})


@cache
def packaged_settings() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read the packaged hyper-parameters: task -> base -> method -> name -> value."""
    text = files(__package__).joinpath("settings.yaml").read_text(encoding="utf-8")
    content: dict[str, dict[str, dict[str, dict[str, Any]]]] = yaml.safe_load(text)
    return content


def hyperparameters(task: str, base: str, method: str, wraps: bool, own: Mapping[str, Any]) -> dict[str, Any]:
    """Find the hyper-parameters of a method.

    Args:
        task: The task's name; one without a section in the packaged file uses the section ``default``.
        base: The base's name.
        method: The method's name.
        wraps: Whether the method wraps the base; if the packaged file does not know such a method, it starts from
            the base's hyper-parameters and its own defaults.
        own: What the user sets for this method.

    Returns:
        By name; numbers are floats.
    """
    packaged = packaged_settings()
    bases = packaged.get(task, packaged["default"])
    section = bases.get(base, {})
    found = section.get(method)
    if found is None:  # another base, as a method of its own; or a method that is newer than the packaged file
        found = bases.get(base if wraps else method, {}).get(base if wraps else method, {})
    return {name: _plain(value) for name, value in {**found, **own}.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(float(part) for part in value)
    return value if isinstance(value, bool) else float(value)


def _reason(problem: Any) -> str:
    loc, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return f"unknown field {loc[-1]!r}{nearest(str(loc[-1]), Options.model_fields)}"
    message = one_line(problem["msg"]).removeprefix("Input should be ")
    if len(loc) > 2 and loc[0] == "settings":
        message = "a number, true or false, or a list of numbers"
    return f"must be {message}, got {_shown(problem['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    # Beyond settings.METHOD.NAME pydantic appends which member of a union it tried.
    return loc[:3] if loc[0] == "settings" else loc


def _line(tree: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """Return the line, from 1, of the deepest node on the path."""
    node, line = tree, 1
    for part in _path(loc):
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


def _refuse_repetitions(tree: yaml.Node | None, path: Path) -> None:
    """Refuse a key that is there twice; YAML would silently keep the last."""
    for mapping in _mappings(tree):
        seen: set[str] = set()
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"{path}:{key.start_mark.line + 1}: the field {key.value!r} is there twice; keep one")
            seen.add(str(key.value))


def _yaml_position(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return "" if mark is None else f":{mark.line + 1}"


def _yaml_reason(error: yaml.YAMLError) -> str:
    return one_line(error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else error)
