"""What the user asks for: flags and YAML files, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationError, model_validator

from ..errors import UserError, nearest, one_line, shortened
from ..trials.fields import Count, Model, Number, as_number
from ..trials.schedules import DEFAULTS, Schedules, known_fields
from .budget import Budget, budget_of
from .choices import Choice
from .reading import read
from .trackers import TRACKERS

_RESERVED = ("method", "schedules", "updates")  # in an entry of settings; all else is a hyper-parameter
_USUAL = "adamw"
_LONGEST = 1000
_ARM = re.compile(r"[A-Za-z0-9+_.@-]{1,40}")  # it becomes part of file names
_ARM_IN_WORDS = "1 to 40 letters, digits and -+_.@"

_AnyModel = TypeVar("_AnyModel", bound=Model)


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _tracker_names(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}{nearest(name, TRACKERS)}")
    return names if names is None else tuple(dict.fromkeys(names))


def _budget(value: object) -> Budget | None:
    return None if value is None else budget_of(value)


def _words(value: object) -> object:
    from ..trials.finding import words_for

    if not (isinstance(value, str) or callable(value)):
        return value
    try:
        return words_for(value)
    except UserError as error:
        raise ValueError(str(error)) from error


def _arm_name(name: str) -> str:
    if not fits_files(name):
        raise ValueError(f"the name of an arm must be {_ARM_IN_WORDS}, got {_shown(name)}")
    return name


def fits_files(name: str) -> bool:
    """Return whether the name of a row can be part of file names."""
    return bool(_ARM.fullmatch(name) and name.strip("."))


def _method_name(name: str) -> str:
    from ..trials.finding import find

    try:
        find(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


def _entries(value: object) -> object:
    """Tell every entry its name, and put its hyper-parameters together."""
    if not isinstance(value, dict):
        return value
    return {name: _entry(name, entry) if isinstance(entry, dict) else entry for name, entry in value.items()}


def _entry(name: object, entry: dict[Any, Any]) -> dict[str, Any]:
    known = {key: value for key, value in entry.items() if key in _RESERVED}
    return {"name": name, **known, "hyperparameters": {k: v for k, v in entry.items() if k not in _RESERVED}}


Words: TypeAlias = Annotated[str, BeforeValidator(_words)]
Value: TypeAlias = Annotated[bool | float | tuple[float, ...], BeforeValidator(as_number)]


class Entry(Model):
    """What a user may say about one row of the table.

    Attributes:
        name: Of the row.
        method: The method's name, if that is not the row's, or the user's own as ``FILE.py:NAME`` or ``MODULE:NAME``.
        schedules: Over those of the whole comparison, kind by kind.
        updates: Parameter updates of a trial, over those of the whole comparison; None goes by epochs.
        hyperparameters: Over the packaged ones.
    """

    name: str
    method: Annotated[Words, AfterValidator(_method_name)] | None = None
    schedules: Schedules = DEFAULTS
    updates: Annotated[Count, Field(le=1_000_000)] | None = None
    hyperparameters: dict[str, Value] = {}

    @model_validator(mode="after")
    def _one_meaning(self) -> Entry:
        from ..trials.finding import names

        if self.method not in (None, self.name) and self.name in names():
            raise ValueError(f"is a method itself and cannot be {self.method}; give the arm another name")
        return self


class Options(Model):
    """What a user may ask for, on the command line or in a YAML file; what is None has a default.

    Attributes:
        task: ``mnist1d``, ``digits`` or ``FILE.py:FUNCTION``.
        methods: Names of methods and arms, and the user's own as ``FILE.py:NAME`` or ``MODULE:NAME``; the base is one
            of them if it is to be compared with.
        base: The name of an optimizer of torch in small letters, or the user's own, or an arm that has one.
        seeds: How many seeds, 1 to 10,000.
        epochs: 1 to 1,000,000.
        jobs: Worker processes on each device, at least 1; 0, from Python alone, trains in this process.
        device: ``auto``, ``cpu``, or an accelerator such as ``cuda`` or ``cuda:1``.
        precision: Of forward passes: ``fp32`` or ``bf16``.
        processes: Of each trial, at least 1, which share its batches.
        crew: The address of a Dask scheduler whose workers carry trials out, such as ``tcp://HOST:8786``.
        timeout: Seconds that a trial may take, above 0; None sets no limit.
        out: The folder for everything that is written.
        log: Names of trackers that every trial becomes a run of.
        schedules: Of all methods.
        updates: Parameter updates of every trial, in place of epochs: 1 to 1,000,000.
        keep_weights: Whether the final weights of every trial are written.
        measure: Whether sharpness is measured after training.
        check: Whether one of the trials is repeated in the end.
        settings: By method or arm: hyper-parameters, over the packaged ones, and what else differs.
        tune: How much is tuned before a comparison begins.
        tuned: By row: how what stands in `settings` was chosen.
        as_packaged: Rows whose `settings` are what they would be anyway.
    """

    task: str | None = None
    methods: Annotated[tuple[Words, ...] | None, BeforeValidator(_names)] = None
    base: Words | None = None
    seeds: Annotated[Count, Field(le=10_000)] | None = None
    epochs: Annotated[Count, Field(le=1_000_000)] | None = None
    jobs: Annotated[Count, Field(le=1_000)] | None = None
    device: str | None = None
    precision: Literal["fp32", "bf16"] | None = None
    processes: Annotated[Count, Field(le=1_000)] | None = None
    crew: str | None = None
    timeout: Annotated[Number, Field(gt=0)] | None = None
    out: str | None = None
    log: Annotated[tuple[str, ...] | None, BeforeValidator(_names), AfterValidator(_tracker_names)] = None
    schedules: Schedules = DEFAULTS
    updates: Annotated[Count, Field(le=1_000_000)] | None = None
    keep_weights: StrictBool | None = None
    measure: StrictBool | None = None
    check: StrictBool | None = None
    settings: Annotated[dict[Annotated[str, AfterValidator(_arm_name)], Entry], BeforeValidator(_entries)] = {}
    tune: Annotated[Budget | None, BeforeValidator(_budget)] = None
    tuned: dict[str, Choice] = {}
    as_packaged: tuple[str, ...] = ()


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
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in _path(problem["loc"], given))
        raise UserError(shortened(f"{prefix}{name}: {_reason(problem)}", _LONGEST)) from error


def of_call(arguments: Mapping[str, object]) -> Options:
    """Check the arguments of a call from Python, whose ``jobs`` may also be 0: trials then run in this process.

    Raises:
        UserError: A value is not allowed; names the argument.
    """
    jobs = arguments.get("jobs")
    here = type(jobs) is int and jobs == 0
    options = from_flags({**arguments, "jobs": None if here else jobs}, prefix="")
    return options.model_copy(update={"jobs": 0}) if here else options


def of_command(flags: Mapping[str, object], config: Path | None) -> Options:
    """Check the flags of a command, and lay them over what its file for ``--config`` says.

    Args:
        flags: All parameters of the command; those that are no fields are left out.
        config: The file.

    Raises:
        UserError: A value is not allowed, or the file cannot be read.
    """
    asked = from_flags({name: value for name, value in flags.items() if name in Options.model_fields})
    return asked if config is None else merge(asked, from_file(config))


def from_file(path: Path) -> Options:
    """Read and check a YAML file.

    Args:
        path: The file.

    Returns:
        The options.

    Raises:
        UserError: The file cannot be read, is not YAML, or holds a wrong field; names the line and the field.
    """
    tree, content = read(path)
    if content is None:
        return Options()
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: expected fields such as 'task: mnist1d', got {_shown(content)}")
    try:
        return Options.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = _path(problem["loc"], content)
        name = ".".join(str(part) for part in place)
        raise UserError(f"{path}:{_line(tree, place)}: {shortened(f'{name}: {_reason(problem)}', _LONGEST)}") from error


def merge(over: _AnyModel, under: _AnyModel) -> _AnyModel:
    """Lay the given options or schedules over others.

    Args:
        over: What it sets wins.
        under: The rest.

    Returns:
        Both.
    """
    return under.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})


@cache
def packaged_settings() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read the packaged hyper-parameters: task -> base -> method -> name -> value."""
    text = files(__package__).joinpath("settings.yaml").read_text(encoding="utf-8")
    content: dict[str, dict[str, dict[str, dict[str, Any]]]] = yaml.safe_load(text)
    return content


def hyperparameters(
    task: str, base: str, method: str, wraps: bool, own: Mapping[str, Any], takes: Collection[str] = ()
) -> dict[str, Any]:
    """Find the hyper-parameters of a method.

    Args:
        task: The task's name; one without a section in the packaged file uses the section ``default``.
        base: The base's name.
        method: The method's name.
        wraps: Whether the method wraps the base; if the packaged file does not know such a method, it starts from
            the base's hyper-parameters and its own defaults.
        own: What the user sets for this method.
        takes: What the method takes itself. Of a base without packaged settings, only that is packaged of the method.

    Returns:
        By name; numbers are floats.
    """
    packaged = packaged_settings()
    bases = packaged.get(task, packaged["default"])
    section = bases.get(base, {})
    found = section.get(method)
    if base not in bases and method in bases[_USUAL]:
        usual = bases[_USUAL][method]
        found = {name: value for name, value in usual.items() if not wraps or name in takes}
    if found is None:  # another base, as a method of its own; or a method that is newer than the packaged file
        found = bases.get(base if wraps else method, {}).get(base if wraps else method, {})
    return {name: _plain(value) for name, value in {**found, **own}.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(float(part) for part in value)
    return value if isinstance(value, bool) else float(value)


def _reason(problem: Any) -> str:
    loc, kind, context = problem["loc"], problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"unknown field {loc[-1]!r}{nearest(str(loc[-1]), _fields(loc))}"
    if kind == "missing":
        return f"needs a value for {loc[-1]!r}"
    if kind == "union_tag_not_found":
        return f"needs a value for 'kind', got {_shown(problem['input'])}"
    if kind == "union_tag_invalid":
        kinds = re.findall(r"'(.+?)'", context["expected_tags"])
        return f"unknown kind {context['tag']!r}{nearest(str(context['tag']), kinds)}"
    message = one_line(problem["msg"]).removeprefix("Input should be ")
    if kind.startswith("model_"):
        message = "a valid dictionary"
    if "hyperparameters" in loc:
        message = "a number, true or false, or a list of numbers"
    return f"must be {message}, got {_shown(problem['input'])}"


def _fields(loc: tuple[int | str, ...]) -> Iterable[str]:
    """Return the names that would have been right in place of the last of the path."""
    if "schedules" not in loc[:-1]:
        return Options.model_fields
    return known_fields(*(str(part) for part in loc[loc.index("schedules") + 1 : -1]))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(loc: tuple[int | str, ...], content: Any) -> tuple[int | str, ...]:
    """Keep of a path what the user wrote: pydantic also names the members of unions that it tried."""
    kept: list[int | str] = []
    for part in loc:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            continue
        kept.append(part)
    return tuple(kept)


def _line(tree: yaml.Node | None, path: tuple[int | str, ...]) -> int:
    """Return the line, from 1, of the deepest node on the path."""
    node, line = tree, 1
    for part in path:
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
