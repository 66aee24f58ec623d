"""What a crew is given to do, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import RunError, UserError, describe, exits_raise


class Stopped(Exception):
    """Raised where a job says how far it is, if it need not go on."""


class Interrupted(RunError):
    """The user pressed Ctrl-C; what was finished is kept."""

    exit_code = 130


Say = Callable[[Any], None]
"""What a job calls to tell how far it is. It raises `Stopped` if the job need not go on."""


@dataclass(frozen=True)
class Job:
    """A call that does not depend on any other.

    Attributes:
        key: Whatever whoever gives the job knows it by.
        label: What it is called in messages, such as ``the trial sam, seed 0``.
        call: A function at the top level of a module. Its last argument is a `Say`, or None.
        arguments: All others.
        files: The user's, whose line is named if it fails there.
        tells: Whether somebody wants to know how far it is.
    """

    key: Any
    label: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    files: tuple[str, ...] = ()
    tells: bool = False

    def failed(self, error: BaseException) -> str:
        """Return why it failed, in one line."""
        if isinstance(error, UserError):
            return f"{self.label} failed: {error}"
        return f"{self.label} failed with {describe(error, *self.files)}"


def outcome(job: Job, say: Say | None = None) -> tuple[str, Any]:
    """Carry out a job where it is, and return whether it ``ended`` or ``failed``, with its result or the reason."""
    try:
        with exits_raise():
            return "ended", job.call(*job.arguments, say if job.tells else None)
    except Stopped:
        return "ended", None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, and whatever a task may raise
        return "failed", job.failed(error)


@dataclass(frozen=True)
class Event:
    """Something has become of a job."""

    job: Job


@dataclass(frozen=True)
class Said(Event):
    """It has told how far it is, and goes on when the crew is asked for events again, unless it is stopped before."""

    value: Any


@dataclass(frozen=True)
class Ended(Event):
    """It has returned; None if it was stopped."""

    result: Any


@dataclass(frozen=True)
class Failed(Event):
    """It has raised, or ended its process: it would do so again."""

    reason: str


@dataclass(frozen=True)
class Lost(Event):
    """Whoever carried it out is no more; it may be given once more, unless that was done often enough."""

    reason: str
    for_good: bool = False


class Crew(Protocol):
    """Who carries out jobs, several at a time. Results do not depend on who that is."""

    @property
    def size(self) -> int:
        """How many jobs it carries out at a time."""

    def start(self, job: Job) -> None:
        """Begin with a job; no more than `size` of them run."""

    def stop(self, job: Job) -> None:
        """Let a job that has just `Said` something end."""

    def events(self) -> list[Event]:
        """Wait until something happens, and return it."""
