"""What each file of the user's said when its trials were run, to name later the one that was changed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ..code import reading
from ..code.code import Code
from ..errors import UserError
from ..files import write_atomically
from ..trials.fields import Model
from .reading import read as read_strictly


class Known(Model):
    """A state of the user's code.

    Attributes:
        schema_version: Of this format.
        digest: Of all files together, as records have it.
        files: The digest of each by its path.
    """

    schema_version: Literal[1] = 1
    digest: str
    files: dict[str, str]


def write(folder: Path, codes: Iterable[Code]) -> None:
    """Write what files say now, where that is not known; nothing depends on it but what is said of changes."""
    for code in codes:
        if code.digest is None or not code.files or _path(folder, code.digest).exists():
            continue
        known = Known(digest=code.digest, files=reading.digests(dict(code.files)))
        with suppress(OSError):
            write_atomically(_path(folder, code.digest), known.model_dump_json(indent=1) + "\n")


def read(folder: Path, digest: str) -> dict[str, str]:
    """Return what each file said by its path; nothing if that is not known."""
    with suppress(UserError):
        known = read_strictly(_path(folder, digest), Known, "a state of code", "Move it away")
        if known.digest == digest:
            return known.files
    return {}


def _path(folder: Path, digest: str) -> Path:
    return folder / "code" / f"{digest[:16]}.json"
