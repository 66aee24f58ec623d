"""This process as a crew."""

from __future__ import annotations

from .jobs import Ended, Event, Failed, Job, outcome


class Here:
    """Carries out one job after the other in this process, which other processes may do at the same time.

    What such processes share, as those of ``accelerate launch`` do, is a matter of the jobs.
    """

    size = 1

    def __init__(self) -> None:
        """Wait for a job."""
        self._jobs: list[Job] = []

    def start(self, job: Job) -> None:
        """Take a job."""
        self._jobs.append(job)

    def stop(self, job: Job) -> None:
        """Do nothing: a job here tells nothing."""

    def events(self) -> list[Event]:
        """Carry out the job."""
        job = self._jobs.pop()
        kind, value = outcome(job)
        return [Ended(job, value) if kind == "ended" else Failed(job, value)]
