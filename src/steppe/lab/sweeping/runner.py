"""Take part in a sweep: start worker processes, watch them and the sweep, put back what they leave."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from ..crew.jobs import Interrupted
from ..crew.processes import Processes, interrupt_held_back
from ..errors import RunError
from ..judge.points import DIED, Point
from ..plans.sweep import SweepPlan
from . import worker
from .queue import Queue

_LOOK = 0.5
_MOST_IDLE = 3


class Observer(Protocol):
    """Is told how a sweep proceeds."""

    def begin(self, points: Sequence[Point], session: str) -> None:
        """What there is already, and under which name workers of this command take settings."""

    def look(self, points: Sequence[Point]) -> None:
        """What has become of all settings by now, whoever runs them."""

    def warn(self, message: str) -> None:
        """Something was odd, but the sweep goes on."""


class Silence:
    """An observer that does nothing."""

    def begin(self, points: Sequence[Point], session: str) -> None:
        """Do nothing."""

    def look(self, points: Sequence[Point]) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""


def run(plan: SweepPlan, observer: Observer | None = None) -> list[Point]:
    """Run all settings that nobody has finished, together with whoever else takes part.

    Args:
        plan: The sweep.
        observer: Is told what happens.

    Returns:
        What has become of every setting; all are settled.

    Raises:
        UserError: The storage cannot be used or holds another sweep by this name.
        RunError: A training failed; what was finished is kept.
        Interrupted: The user pressed Ctrl-C; what was running here is back in the queue.
    """
    session = uuid.uuid4().hex
    queue = Queue(plan)
    try:
        try:
            queue.fill()
            _work(plan, queue, session, observer or Silence())
        except KeyboardInterrupt:
            with interrupt_held_back():
                queue.release(session, reason="interrupted")
            raise Interrupted(f"interrupted: {_kept(queue)}") from None
        except RunError as error:
            with interrupt_held_back():
                queue.release(session, reason="interrupted")
            raise RunError(f"{error}; {_kept(queue)}") from error
        return queue.points()
    finally:
        queue.close()


def _work(plan: SweepPlan, queue: Queue, session: str, observer: Observer) -> None:
    found = queue.points()
    observer.begin(found, session)
    count = min(plan.jobs, sum(not point.settled for point in found))
    with Processes() as crew, _Failures() as failures:
        running = [crew.start(worker.main, plan, session, failures.theirs) for _ in range(count)]
        idle = 0
        while running:
            wait([failures.ours, *(process.sentinel for process in running)], timeout=_LOOK)
            for process in [process for process in running if process.exitcode is not None]:
                running.remove(process)
                if process.exitcode == 0:
                    continue
                # Put back now what it had, without waiting until nobody has heard of it for long.
                idle = 0 if queue.release(session, worker.name(process.pid), reason=DIED) else idle + 1
                if idle == _MOST_IDLE:
                    raise RunError(
                        f"worker processes die before they begin ({_exit(process)}); is there memory for them?"
                    )
                observer.warn(f"a worker process died ({_exit(process)}); another one takes its place")
                running.append(crew.start(worker.main, plan, session, failures.theirs))
            failures.raise_first()
            observer.look(queue.points())


class _Failures:
    """A pipe through which workers say what went wrong."""

    def __enter__(self) -> _Failures:
        self.ours, self.theirs = get_context("spawn").Pipe(duplex=False)
        return self

    def __exit__(self, *error: object) -> None:
        self.ours.close()
        self.theirs.close()

    ours: Connection
    theirs: Connection

    def raise_first(self) -> None:
        if self.ours.poll():
            raise RunError(self.ours.recv())


def _exit(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _kept(queue: Queue) -> str:
    found = queue.points()
    done = sum(point.settled for point in found)
    return f"{done} of {len(found)} settings are done and kept in {queue.where}; the same command continues from there"
