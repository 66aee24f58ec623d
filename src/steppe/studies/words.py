"""What is typed on the command line of a study, and how it is said again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..lab.errors import UserError


def listed(flag: str, text: str) -> tuple[str, ...]:
    """Return the names between commas, each once.

    Args:
        flag: For messages.
        text: What was typed.

    Raises:
        UserError: There is none.

    Example:
        >>> listed("--task", "rte, mrpc,rte")
        ('rte', 'mrpc')
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{flag} names nothing")
    return names


def repeated(name: str, flags: Mapping[str, object]) -> str:
    """Return the command of a study with the flags that were given.

    Example:
        >>> repeated("lightsam", {"preset": "small", "seeds": None})
        'steppe study lightsam --preset small'
    """
    words = [word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value))]
    return shlex.join(["steppe", "study", name, *words])
