"""Executors as a crew: those of ``concurrent.futures``, and a Dask cluster, which has one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import Any

from ..errors import RunError, UserError, exits_raise, missing_extra, one_line, shortened
from .jobs import Ended, Event, Failed, Job, Lost


class ExecutorCrew:
    """Whoever has an executor's ``submit``, with one job at a time for each worker.

    What jobs tell while they run is not heard, so none is stopped before its end.

    Args:
        executor: Carries out the jobs, in processes: jobs set the random state of theirs.
        size: How many at a time, at least 1.

    Raises:
        UserError: The executor has threads, which share their random state.
    """

    def __init__(self, executor: Executor, size: int) -> None:
        """See the class."""
        if isinstance(executor, ThreadPoolExecutor):
            raise UserError("trials cannot run in threads, which share their random state; give one of processes")
        self.size = size
        self._executor = executor
        self._jobs: dict[Future[tuple[str, Any]], Job] = {}

    def __enter__(self) -> ExecutorCrew:
        """Return this."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of what has not begun; the executor stays as it is."""
        for future in self._jobs:
            future.cancel()

    def start(self, job: Job) -> None:
        """Submit a job."""
        self._jobs[self._executor.submit(_carry_out, job)] = job

    def stop(self, job: Job) -> None:
        """Do nothing: a job here tells nothing."""

    def events(self) -> list[Event]:
        """Wait until a job has ended."""
        done, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
        return [self._event(future, self._jobs.pop(future)) for future in done]

    def _event(self, future: Future[tuple[str, Any]], job: Job) -> Event:
        try:
            kind, value = future.result()
        except BrokenExecutor as error:  # nobody is left there
            return Failed(job, f"the workers of {job.label} are no more: {shortened(one_line(error))}")
        except CancelledError:
            return Lost(job, "it was cancelled")
        except Exception as error:  # of the executor: jobs return theirs
            reason = shortened(f"{type(error).__name__}: {one_line(error)}")
            return Failed(job, f"workers died at {job.label}, or it could not be sent: {reason}")
        return Ended(job, value) if kind == "ended" else Failed(job, value)


def _carry_out(job: Job) -> tuple[str, Any]:
    try:
        with exits_raise():
            return "ended", job.call(*job.arguments, None)
    except (Exception, SystemExit) as error:
        return "failed", job.failed(error)


@contextmanager
def cluster(address: str) -> Iterator[ExecutorCrew]:
    """Join a Dask cluster, whose scheduler has an address such as ``tcp://HOST:8786``.

    A worker that dies loses its job, which another begins anew: how often is Dask's setting ``allowed-failures``. TLS
    is a matter of Dask's own configuration too.

    Raises:
        UserError: Dask is not installed, nobody answers, there is no worker, or one has several threads.
    """
    try:
        from distributed import Client as _Client
    except ImportError as error:
        raise missing_extra(error) or error from error
    try:
        join: Any = _Client
        client = join(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"no Dask scheduler answers at {address}: {shortened(one_line(error))}") from error
    with client:
        threads: dict[str, int] = client.nthreads()
        if not threads:
            raise RunError(f"the Dask scheduler at {address} has no worker; start: dask worker {address} --nthreads 1")
        if max(threads.values()) > 1:
            raise UserError(
                f"workers of the Dask scheduler at {address} have several threads, which share their random state; "
                "start them with --nthreads 1"
            )
        with ExecutorCrew(client.get_executor(pure=False), len(threads)) as crew:
            yield crew
