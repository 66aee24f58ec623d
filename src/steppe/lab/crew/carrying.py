"""Carry out jobs as a plan gives them, and tell it what came of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

from ..errors import RunError
from .jobs import Crew, Ended, Failed, Job, Lost, Said

MOST_LOST = 3
"""So many workers may die at one job before it is given up."""


class JobError(RunError):
    """A job failed, or workers die at it."""


def carry_out(
    following: Callable[[], Job | None],
    crew: Crew,
    *,
    running: Callable[[list[Job]], object] = lambda jobs: None,
    said: Callable[[Job, Any], bool] = lambda job, value: True,
    warn: Callable[[str], object] = lambda message: None,
    given_up: Callable[[Job], bool] | None = None,
) -> Generator[tuple[Job, Any]]:
    """Carry out jobs, and yield each with its result as soon as it is there.

    Args:
        following: Returns the next job; None if there is none for now, as while others must end first. It is asked
            again whenever one has ended.
        crew: Who carries them out.
        running: Is told which jobs run, whenever that changes.
        said: Is given what a job tells of itself, and returns whether it is to go on; the result of one that is not is
            None.
        warn: Is told of workers that died.
        given_up: Is given a job at which `MOST_LOST` workers died, which else is an error, and returns whether it
            counts: as many that do, with none that ends in between, are an error too.

    Raises:
        JobError: A job failed, or so many workers died at one.
    """
    at_work: dict[Any, Job] = {}
    again: list[Job] = []
    lost: Counter[Any] = Counter()
    in_a_row = 0  # jobs that were given up
    while True:
        while len(at_work) < crew.size and (job := again.pop() if again else following()) is not None:
            crew.start(job)
            at_work[job.key] = job
        if not at_work:
            return
        running(list(at_work.values()))
        # What has ended first: it is kept, whatever became of those beside it.
        for event in sorted(crew.events(), key=lambda event: not isinstance(event, Ended)):
            job = event.job
            if isinstance(event, Said):
                if not said(job, event.value):
                    crew.stop(job)
                continue
            del at_work[job.key]
            if isinstance(event, Failed):
                raise JobError(event.reason)
            if isinstance(event, Lost):
                lost[job.key] += 1
                died = f"a worker process died at {job.label} ({event.reason})"
                if lost[job.key] < MOST_LOST and not event.for_good:
                    warn(f"{died}; another one begins with it anew")
                    again.append(job)
                    continue
                if event.for_good:
                    died += ", as often as the cluster allows, perhaps for lack of memory"
                else:
                    died += f", as {MOST_LOST - 1} others before, perhaps for lack of memory (try fewer --jobs)"
                del lost[job.key]
                if given_up is None:
                    raise JobError(died)
                in_a_row += given_up(job)
                if in_a_row == MOST_LOST:  # it is not the jobs
                    raise JobError(died)
                warn(died)
            if isinstance(event, Ended):
                in_a_row = 0
                yield job, event.result
