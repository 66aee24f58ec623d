"""Files that are absent, the old ones, or the complete new ones, at any moment."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path

from .errors import UserError

_HERE = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "here"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that at any moment it is absent, the old one, or the complete new one.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_HERE}.{os.getpid()}.", suffix=".tmp")
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


def sweep_up(folder: Path) -> None:
    """Remove the temporary files that writers of this machine who are no more have left in a folder.

    Raises:
        OSError: They cannot be removed.
    """
    for path in folder.glob(".*.tmp"):
        machine, _, rest = path.name[1:].rpartition(".tmp")[0].partition(".")
        number = rest.partition(".")[0]
        if machine == _HERE and number.isdecimal() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def check_writable(folder: Path, *inside: str) -> None:
    """Make a folder and try to write in it; what broken-off writes have left there is removed.

    Args:
        folder: The folder.
        inside: Names of folders in it, of which the same is true.

    Raises:
        UserError: The folder cannot be made or written.
    """
    try:
        str(folder.resolve()).encode()
        for place in (folder, *(folder / name for name in inside)):
            place.mkdir(parents=True, exist_ok=True)
            sweep_up(place)
            with tempfile.TemporaryFile(dir=place, prefix=".", suffix=".tmp"):
                pass
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of the output folder {str(folder)!r} is no UTF-8; choose another with --out"
        ) from error
    except OSError as error:
        raise UserError(
            f"the output folder {str(folder)!r} cannot be written: {error.strerror}; choose another with --out"
        ) from error


def _umask() -> int:
    # mkstemp makes private files; a record should be as readable as any other file of the user.
    mask = os.umask(0)
    os.umask(mask)
    return mask
