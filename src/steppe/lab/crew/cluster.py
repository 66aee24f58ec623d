"""The workers of a Dask cluster as a crew."""

from __future__ import annotations

import asyncio
import logging
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import RunError, UserError, one_line, require, shortened
from .jobs import Ended, Event, Failed, Job, Lost, Said, Stopped, outcome

_LOOK = 2.0  # seconds between two looks whether there is a scheduler
_PATIENCE = 60.0  # seconds to wait for a worker
_GONE = ("closing", "closed", "failed")


class ClusterCrew:
    """The workers that a scheduler has, each with one job at a time.

    What a job tells is heard while it goes on. One that is stopped, or whose command ends, ends when it next has
    something to tell.

    Args:
        client: Of the scheduler.
        size: How many workers it has.
    """

    def __init__(self, client: Any, size: int) -> None:
        """Listen to what jobs tell."""
        self.size = size
        self._client, self._topic = client, f"steppe-{uuid.uuid4().hex}"
        self._numbers = count()
        self._jobs: dict[int, tuple[Job, Any]] = {}
        self._news: SimpleQueue[tuple[int, bytes | None]] = SimpleQueue()  # of a job: what it tells; None: it has ended
        client.subscribe_topic(self._topic, self._heard)

    def start(self, job: Job) -> None:
        """Submit a job."""
        number = next(self._numbers)
        try:
            future = self._client.submit(_there, job, self._topic, number, pure=False)
        except RuntimeError:  # the client has no scheduler any more
            self._jobs[number] = job, None
            self._news.put((number, None))
            return
        self._jobs[number] = job, future
        future.add_done_callback(lambda future: self._news.put((number, None)))

    def stop(self, job: Job) -> None:
        """Let a job end when it next tells something."""
        for number, (known, _) in self._jobs.items():
            if known is job:
                self._stop(number)

    def close(self) -> None:
        """Let all jobs end that still run: nobody waits for them."""
        for number in self._jobs:
            if self._client.status == "running":
                with suppress(OSError, RuntimeError, asyncio.TimeoutError):
                    self._stop(number)

    def _stop(self, number: int) -> None:
        from distributed import Event as Flag

        flag: Any = Flag
        flag(_flag(self._topic, number), client=self._client).set()

    def events(self) -> list[Event]:
        """Wait until something happens."""
        while True:
            try:
                number, said = self._news.get(timeout=_LOOK)
            except Empty:
                if self._client.status not in _GONE:
                    continue
                number, said = next(iter(self._jobs)), None
            if number not in self._jobs:  # it has told something just before its end
                continue
            job, future = self._jobs[number]
            if said is not None:
                return [Said(job, pickle.loads(said))]
            del self._jobs[number]
            return [_end(job, future)]

    def _heard(self, event: tuple[float, tuple[int, bytes]]) -> None:
        self._news.put(event[1])


@contextmanager
def cluster(address: str) -> Iterator[ClusterCrew]:
    """Join a Dask cluster, whose scheduler has an address such as ``tcp://HOST:8786``.

    A worker that dies loses its job, which another begins anew: how often is Dask's setting ``allowed-failures``. TLS
    is a matter of Dask's own configuration too.

    Raises:
        UserError: Dask is not installed, nobody answers, or a worker has several threads.
        RunError: After a minute there is no worker.
    """
    require("distributed")
    from distributed import Client

    for name in ("client", "utils"):  # that nobody answers any more is said here, without their tracebacks
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    join: Any = Client
    try:
        client = join(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"no Dask scheduler answers at {address}: {shortened(one_line(error))}") from error
    with client:
        with suppress(asyncio.TimeoutError):  # one that was killed is started anew, and a queue takes its time
            client.wait_for_workers(1, timeout=_PATIENCE)
        threads: dict[str, int] = client.nthreads()
        if not threads:
            raise RunError(f"the Dask scheduler at {address} has no worker; start: dask worker {address} --nthreads 1")
        if max(threads.values()) > 1:
            raise UserError(
                f"workers of the Dask scheduler at {address} have several threads, which share their random state; "
                "start them with --nthreads 1"
            )
        crew = ClusterCrew(client, len(threads))
        try:
            yield crew
        finally:
            crew.close()


def _there(job: Job, topic: str, number: int) -> tuple[str, Any]:
    """Carry out a job, in a worker."""
    from distributed import Event as Flag
    from distributed import get_worker

    worker: Any = get_worker()
    flag: Any = Flag

    def say(value: Any) -> None:
        if job.tells:
            worker.log_event(topic, (number, pickle.dumps(value)))
        if flag(_flag(topic, number)).is_set():
            raise Stopped

    return outcome(replace(job, tells=True), say)  # whether to go on is asked even if nobody listens


def _flag(topic: str, number: int) -> str:
    return f"{topic}-{number}-stop"


def _end(job: Job, future: Any) -> Event:
    if future is not None and future.status == "finished":
        kind, value = future.result()
        return Ended(job, value) if kind == "ended" else Failed(job, value)
    if future is not None and future.status == "error":  # of Dask: jobs return theirs
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            return Lost(job, "KilledWorker", for_good=True)
        reason = shortened(f"{type(error).__name__}: {one_line(error)}")
        return Failed(job, f"{job.label} could not be sent to a worker: {reason}")
    return Failed(job, f"the Dask scheduler is no more, which had {job.label}")
