"""What happens inside a worker process: take a setting, train it from all seeds, until none is left."""

from __future__ import annotations

import os
import random
import socket
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plans.sweep import SweepPlan
    from ..trials.records import Curve
    from .queue import Claim, Queue

_WAIT = 1.0
_LONGEST = 2000  # what fits into a pipe at once, so that messages of two workers do not mix


def main(plan: SweepPlan, session: str, failures: Connection) -> None:
    """Work until every setting is settled, wherever the last ones run.

    Args:
        plan: The sweep.
        session: Under what name this and the workers beside it take trials.
        failures: Takes the reason, in one line, if something went wrong.
    """
    from ..errors import UserError, describe
    from .queue import Queue

    try:
        queue = Queue(plan)
        try:
            work(plan, queue, session)
        finally:
            queue.close()
    except UserError as error:
        failures.send(str(error)[:_LONGEST])
    except Exception as error:
        failures.send(f"a worker failed with {describe(error)}"[:_LONGEST])


def work(plan: SweepPlan, queue: Queue, session: str) -> None:
    """See `main`.

    Raises:
        RunError: A training failed; its setting is back in the queue.
    """
    while True:
        queue.fail_stale()
        queue.fill()
        claim = queue.claim(session, name())
        if claim is not None:
            run(plan, claim)
        elif all(point.settled for point in queue.points()):
            return
        else:  # others have the rest; should one of them die, its setting will come back
            time.sleep(_WAIT * random.uniform(0.8, 1.2))


def name(process: int | None = None) -> str:
    """Return how a process of this machine, by default this one, is called in the storage."""
    return f"{socket.gethostname()}:{os.getpid() if process is None else process}"


def run(plan: SweepPlan, claim: Claim) -> None:
    """Train a setting from all seeds that nobody has finished, and write what was found.

    A setting of which one seed diverges is not chosen, so it needs no more seeds.

    Raises:
        RunError: A training failed; the setting is back in the queue.
    """
    from ..errors import RunError
    from .queue import Lost

    try:
        with claim.alive():
            _train(plan, claim)
    except Lost:  # somebody else has it
        return
    except RunError as error:
        claim.give_back(f"failed: {error}")
        raise
    except BaseException:
        claim.give_back("interrupted")
        raise


def _train(plan: SweepPlan, claim: Claim) -> None:
    from ..crew import workers
    from ..crew.jobs import Stopped
    from ..errors import RunError
    from ..judge.points import SeedResult
    from ..plans.grid import words

    setting = claim.choose()
    first, *_ = plan.definition.seeds

    def each_epoch(curve: Curve) -> None:
        if claim.lost:
            raise Stopped
        if plan.definition.prune and seed == first and claim.looks_bad(curve.validation_metric[-1], len(curve.seconds)):
            raise Stopped

    for seed in plan.definition.seeds:
        if seed not in claim.seeds:
            job = workers.job(plan.source, plan.trial(setting, seed))
            try:
                record, _ = job.call(*job.arguments, each_epoch)
            except Stopped:
                claim.prune()
                return
            except Exception as error:
                raise RunError(f"{job.failed(error)}, with {words(setting)}") from error
            claim.keep(SeedResult.of(record))
        if claim.seeds[seed].diverged is not None:
            break
    claim.finish()
