"""Executors of ``concurrent.futures`` as a crew."""

from __future__ import annotations

from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from typing import Any

from ..errors import UserError, one_line, shortened
from .carrying import JobError
from .jobs import Ended, Event, Failed, Job, Lost, outcome


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
        try:
            future = self._executor.submit(outcome, job)
        except RuntimeError as error:  # it is broken, or was shut down
            raise JobError(f"the executor does not take {job.label}: {shortened(one_line(error))}") from error
        self._jobs[future] = job

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
