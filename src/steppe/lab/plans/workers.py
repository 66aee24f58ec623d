"""Who carries trials out, as the user asks for it."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, require
from ..trials.devices import AUTO, accelerator, count, find_device, kind
from ..trials.host import Host
from .options import Options, from_flags

_MOST_JOBS = 8  # unless asked for: every worker needs about 400 MB for torch


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def usual_jobs() -> int:
    """Return how many worker processes there are unless the user says otherwise: one a core, but not on and on."""
    return min(cores(), _MOST_JOBS)


@dataclass(frozen=True)
class Workers:
    """Who carries trials out. No result depends on it, unless processes share batches.

    Attributes:
        jobs: Worker processes here, one thread each, on all devices together; 0 is this process, without any.
        crew: The address of a Dask scheduler, if its workers carry trials out.
        timeout: Seconds that a trial may take in a process here; None sets no limit.
        host: This process, if it carries them out itself, one after the other, alone or with others that accelerate
            has launched.
        device: Where models are trained, unless the host says it.
        precision: Of forward passes, likewise.
        processes: Of each trial, which share its batches.
    """

    jobs: int = field(default_factory=usual_jobs)
    crew: str | None = None
    timeout: float | None = None
    host: Host | None = None
    device: str = "cpu"
    precision: str = "fp32"
    processes: int = 1

    @property
    def apart(self) -> bool:
        """Whether other processes than this one carry trials out."""
        return self.jobs > 0 and self.host is None

    @property
    def place(self) -> Host:
        """Where a trial runs."""
        return self.host or Host(self.device, self.precision)

    @property
    def asked(self) -> dict[str, str | int]:
        """Device, precision and processes as options, unless they are what anybody gets who asks for nothing."""
        usual = self.host is not None or (self.device == "cpu" and accelerator() is None)
        device: dict[str, str | int] = {} if usual else {"device": self.device}
        precision: dict[str, str | int] = {} if self.precision == "fp32" else {"precision": self.precision}
        return device | precision | ({} if self.processes == 1 else {"processes": self.processes})

    @property
    def sharing(self) -> int:
        """How many processes share every batch."""
        return self.processes if self.host is None else self.host.processes

    @property
    def marks(self) -> dict[str, Any]:
        """What belongs into a trial's configuration, since it changes numbers."""
        if self.host is not None:
            return {"versions": self.host.versions}
        if self.processes > 1:
            precision = "no" if self.precision == "fp32" else self.precision
            return {"versions": {"host": f"{self.processes} x {kind(self.device)}, {precision}"}}
        return {
            "versions": {},
            "device": None if self.device == "cpu" else kind(self.device),
            "precision": None if self.precision == "fp32" else self.precision,
        }

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.host is None or self.host.rank == 0


def check_crew(crew: object, timeout: float | None, jobs: int | None = None) -> None:
    """Refuse what is neither the address of a scheduler nor an executor.

    Raises:
        UserError: It is none of them, or an executor is to end trials that take too long, or has none to carry out.
    """
    if crew is not None and not isinstance(crew, (str, Executor)):
        raise UserError(f"crew must be the address of a Dask scheduler or an executor, got {type(crew).__name__}")
    if isinstance(crew, Executor) and timeout is not None:
        raise UserError("timeout is of worker processes here; an executor has limits of its own: leave one out")
    if isinstance(crew, Executor) and jobs == 0:
        raise UserError("jobs=0 trains in this process, without crew; leave one of them out")


def workers_of(options: Options, host: Host | None = None) -> Workers:
    """Return who carries trials out.

    Args:
        options: What the user asks for.
        host: Where trials run, if not in worker processes on the CPU.

    Raises:
        UserError: A cluster is asked for where it cannot be, or to end trials that take too long.
    """
    if options.crew is not None and options.timeout is not None:
        raise UserError("--timeout is of worker processes here; a Dask cluster has limits of its own: leave one out")
    if host is not None and (options.crew is not None or options.timeout is not None):
        raise UserError("processes that accelerate has launched train themselves: leave --crew and --timeout out")
    if host is not None:
        return Workers(options.jobs or usual_jobs(), host=host)
    device = find_device(options.device or AUTO, elsewhere=options.crew is not None)
    processes = options.processes or 1
    if options.jobs == 0:
        if options.crew is not None or options.timeout is not None or processes > 1:
            raise UserError("jobs=0 trains in this process: leave crew, timeout and processes out, or jobs")
        return Workers(0, device=device, precision=options.precision or "fp32")
    if processes > 1:
        require("accelerate")
        if options.crew is not None:
            raise UserError("--processes are of this machine, and --crew has others; leave one of them out")
    jobs = options.jobs or (max(1, usual_jobs() // processes) if device == "cpu" else 1)
    if processes == 1:  # those of one trial take the devices themselves
        jobs *= count(device)
    return Workers(jobs, options.crew, options.timeout, None, device, options.precision or "fp32", processes)


def workers(jobs: int | None, crew: str | None, timeout: float | None, host: Host | None = None) -> Workers:
    """Return who carries trials out, given the flags of a command; see `workers_of`."""
    return workers_of(from_flags({"jobs": jobs, "crew": crew, "timeout": timeout}), host)
