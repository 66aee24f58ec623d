"""Processes of this machine as a crew."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from ..errors import one_line, shortened
from ..trials.host import WORKER
from .jobs import Ended, Event, Failed, Job, Lost, Said, Stopped, outcome
from .processes import interrupt_held_back, start_worker

_SHUTDOWN = 5.0
_BREATH = 0.2  # a fork server that was killed may still be dying when it is asked again
_LONGEST_FOLDER = 70  # of temporary files: the fork server's socket is there, and its path may have some 100 letters

_NO_GUARD = 87
_GUARD = (
    "every worker process imports the script that started it, and this script starts workers when it is imported; put "
    'what it does under if __name__ == "__main__":'
)


class _Worker:
    """A process, and the job that it has."""

    def __init__(self, number: int, process: Any, pipe: Connection, lifeline: Connection) -> None:
        self.number, self.process, self.pipe, self.lifeline = number, process, pipe, lifeline
        self.job: Job | None = None
        self.waits = False  # for an answer
        self.deadline: float | None = None


class LocalCrew:
    """Worker processes on this machine, each with one thread and one job at a time.

    They end at once when the block ends, however it does, or this process. One that dies loses its job, and another
    takes its place.

    Args:
        size: How many, at least 1.
        timeout: Seconds that a job may take; None sets no limit.
    """

    def __init__(self, size: int, timeout: float | None = None) -> None:
        """See the class."""
        self.size, self.timeout = size, timeout
        self._context = worker_context()
        self._workers: list[_Worker] = []
        self._unborn: list[Event] = []

    def __enter__(self) -> LocalCrew:
        """Prepare to start them."""
        _refuse_to_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them, whatever they do."""
        with interrupt_held_back():
            if kind is None:  # in good order: what libraries hold in the system is given back
                for worker in self._workers:
                    worker.pipe.close()
                self._wait()
            for worker in self._workers:
                worker.lifeline.close()
            self._wait()
            for worker in self._workers:
                self._end(worker)

    def _wait(self) -> None:
        deadline = time.monotonic() + _SHUTDOWN
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def start(self, job: Job) -> None:
        """Give a job to a process that has none, or to a new one."""
        try:
            worker = next((worker for worker in self._workers if worker.job is None), None) or self._new()
        except (OSError, EOFError) as error:  # the system has no room for it, or the fork server has died
            time.sleep(_BREATH)
            reason = shortened(one_line(error)) or type(error).__name__
            self._unborn.append(Lost(job, f"it could not be started: {reason}"))
            return
        worker.job, worker.waits = job, False
        worker.deadline = None if self.timeout is None else time.monotonic() + self.timeout
        with suppress(OSError):  # it has died meanwhile, which is noticed when it is looked at
            worker.pipe.send(job)

    def stop(self, job: Job) -> None:
        """Let a job end that waits for an answer."""
        for worker in self._workers:
            if worker.job is job and worker.waits:
                self._answer(worker, go_on=False)

    def events(self) -> list[Event]:
        """Wait until something happens."""
        if self._unborn:
            return [self._unborn.pop()]
        for worker in self._workers:
            if worker.waits:
                self._answer(worker, go_on=True)
        busy = [worker for worker in self._workers if worker.job is not None]
        deadlines = [worker.deadline for worker in busy if worker.deadline is not None]
        left = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        wait([end for worker in busy for end in (worker.pipe, worker.process.sentinel)], left)
        return [event for worker in busy for event in self._look(worker)]

    def _look(self, worker: _Worker) -> list[Event]:
        job = worker.job
        assert job is not None
        dead = worker.process.exitcode is not None  # before the pipe is read: nothing comes after that
        try:
            if worker.pipe.poll():
                kind, value = worker.pipe.recv()
                if kind == "said":
                    worker.waits = True
                    return [Said(job, value)]
                worker.job = None
                return [Ended(job, value) if kind == "ended" else Failed(job, value)]
        except (EOFError, OSError):
            dead = True
        if dead:
            worker.process.join()
            code = worker.process.exitcode or 0
            self._end(worker)
            self._workers.remove(worker)
            return [Failed(job, _GUARD) if code == _NO_GUARD else Lost(job, _why(code))]
        if worker.deadline is not None and time.monotonic() >= worker.deadline:
            self._end(worker)
            self._workers.remove(worker)
            return [Failed(job, f"{job.label} failed: it took longer than the {self.timeout:g} seconds of --timeout")]
        return []

    def _answer(self, worker: _Worker, *, go_on: bool) -> None:
        worker.waits = False
        with suppress(OSError):
            worker.pipe.send(go_on)

    def _new(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        lifeline, our_end = self._context.Pipe(duplex=False)
        # The fork server's environment is as it was when that began.
        number = next(number for number in count() if all(worker.number != number for worker in self._workers))
        environment = {**os.environ, WORKER: str(number)}
        process = self._context.Process(target=_serve, args=(lifeline, theirs, environment))
        with theirs, lifeline, interrupt_held_back():
            process.start()
        worker = _Worker(number, process, ours, our_end)
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.pipe.close()
        worker.lifeline.close()  # if it was the fork server that has died, the worker has not yet


def worker_context() -> Any:
    """Return how workers start.

    Forks of a process that has imported what they need, and has never computed anything, start at once and share that
    memory. Never forks of this one, whose threads, locks and random state they would have.
    """
    if sys.platform != "linux" or len(tempfile.gettempdir()) > _LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preloaded"])
    return context


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _refuse_to_begin() -> None:
    """End a worker that imports a script which starts workers: its parent says why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.stderr.flush()
        os._exit(_NO_GUARD)


def _serve(lifeline: Connection, pipe: Connection, environment: dict[str, str]) -> None:
    """Carry out one job after the other, in a worker process."""
    start_worker(lifeline)
    os.environ.clear()
    os.environ.update(environment)

    def say(value: Any) -> None:
        pipe.send(("said", value))
        if not pipe.recv():
            raise Stopped

    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
                return
            os._exit(0)  # not by return: threads that a task has started could keep the process for ever
        try:
            found = outcome(job, say)
        except KeyboardInterrupt as error:  # raised by the task: workers do not hear that of the user
            found = "failed", job.failed(error)
        try:
            pipe.send(found)
        except ConnectionError:  # nobody waits for it any more
            return
        except Exception as error:
            pipe.send(("failed", job.failed(error)))
