"""Files that are absent, the old ones, or the complete new ones, at any moment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that at any moment it is absent, the old one, or the complete new one.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_writable(folder: Path, *inside: str) -> None:
    """Make a folder and try to write in it.

    Args:
        folder: The folder.
        inside: Names of folders in it, of which the same is true.

    Raises:
        UserError: The folder cannot be made or written.
    """
    try:
        for place in (folder, *(folder / name for name in inside)):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place, prefix=".", suffix=".tmp"):
                pass
    except OSError as error:
        raise UserError(
            f"the output folder {str(folder)!r} cannot be written: {error.strerror}; choose another with --out"
        ) from error


def _umask() -> int:
    # mkstemp makes private files; a record should be as readable as any other file of the user.
    mask = os.umask(0)
    os.umask(mask)
    return mask
