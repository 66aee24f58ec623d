"""What the rows of a table are made by, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable

from ...methods import METHODS
from ..code.code import Code
from ..errors import UserError, nearest
from ..trials.finding import check_base, check_methods, code_of, names, row_of, shown
from .options import Options, fits_files


def base_of(options: Options) -> tuple[str, str]:
    """Return what the base is called, and what it is.

    Args:
        options: Checked field by field already.

    Raises:
        UserError: It is unknown, or no method can wrap it.
    """
    asked = options.base or "adamw"
    base = _arms(options).get(asked, asked)
    check_base(base)
    if ":" in asked:
        _check_name(asked)
    return row_of(asked), base


def rows(base: str, options: Options) -> dict[str, str]:
    """Find what makes each row.

    Args:
        base: What methods wrap.
        options: Checked field by field already.

    Returns:
        Methods by the names of rows, in the order of ``options.methods``; without those, the base, all methods and all
        arms.

    Raises:
        UserError: A name is unknown, there twice, or means two things.
    """
    arms, known = _arms(options), names()
    base_name, _ = base_of(options) if options.base is not None else (row_of(base), base)
    if arms.get(base_name, base) != base:
        raise _taken(base, arms[base_name])
    made = {**{name: name for name in known}, **arms, base_name: base}
    listed = options.methods
    if listed is None:
        listed = (base_name, *METHODS, *(name for name in arms if name != base_name))
    for words in listed:
        if ":" in words:
            name = _check_name(words)
            if made.setdefault(name, words) != words:
                raise _taken(words, made[name])
    found = [row_of(words) for words in listed]
    check_methods(found, [name for name in made if name not in known])
    for name in options.settings:
        if name not in made:
            raise UserError(
                f"settings: unknown method {name!r}{nearest(name, made)}; or say 'method: NAME' to make it an arm of "
                "your own"
            )
    return {name: made[name] for name in found}


def codes(base: str, methods: Iterable[str]) -> tuple[Code, ...]:
    """Return the user's code among a base and methods.

    Raises:
        UserError: Records could not tell a method from the base.
    """
    own = code_of(base, "base")
    found = [code for code in map(code_of, dict.fromkeys(methods)) if code is not None]
    for code in found:
        if own is not None and code.name == own.name and code != own:
            raise UserError(f"a method and the base are both called {code.name}; rename one of the files")
    return tuple(dict.fromkeys([*([] if own is None else [own]), *found]))


def _arms(options: Options) -> dict[str, str]:
    """Return the methods of arms by their names."""
    known = names()
    entries = options.settings.items()
    return {name: entry.method for name, entry in entries if entry.method is not None and name not in known}


def _check_name(words: str) -> str:
    name = row_of(words)
    if not fits_files(name):
        raise UserError(f"a row cannot be called {name!r}, with which files are named; {_instead(words)}")
    if name in names():
        raise _taken(words, f"the method {name}")
    return name


def _taken(words: str, other: str) -> UserError:
    return UserError(f"{words} would be called {row_of(words)!r} as {other} is; {_instead(words)}")


def _instead(words: str) -> str:
    return f"give it a NAME of its own in a file for --config, settings: {{NAME: {{method: {shown(words)}}}}}"
