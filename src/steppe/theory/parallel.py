"""Carry out claims in parallel processes, one setting of one claim at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

from ..lab.crew import carrying
from ..lab.crew.here import Here
from ..lab.crew.jobs import Crew, Interrupted, Job
from ..lab.crew.local import LocalCrew
from .claim import Claim, Judgement, Point
from .claims import CLAIMS


@dataclass(frozen=True)
class Outcome:
    """What became of a claim.

    Attributes:
        claim: The claim.
        points: What was predicted and measured.
        judgement: What that says.
        seconds: How long all runs took, in their processes.
    """

    claim: Claim
    points: Sequence[Point]
    judgement: Judgement
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the known one."""
        return self.judgement.verdict == self.claim.expected


def carry_out(ids: Sequence[str], jobs: int, progress: Callable[[int, int], None]) -> Iterator[Outcome]:
    """Run claims, and yield what became of them in their order, each as soon as it is known.

    Args:
        ids: Of the claims.
        jobs: Worker processes; with 1 everything runs in this process. The results do not depend on it.
        progress: Told how many settings are done, and of how many.

    Raises:
        RunError: A claim could not be carried out, or a worker died.
        Interrupted: The user pressed Ctrl-C.
    """
    try:
        yield from _outcomes(ids, jobs, progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing is kept but what is shown above") from None


def _outcomes(ids: Sequence[str], jobs: int, progress: Callable[[int, int], None]) -> Iterator[Outcome]:
    tasks = [(name, index) for name in ids for index in range(len(CLAIMS[name].grid))]
    measured: dict[str, list[tuple[Point, float]]] = {name: [] for name in ids}
    for done, ((name, _), result) in enumerate(zip(tasks, _results(tasks, jobs), strict=True), 1):
        progress(done, len(tasks))
        measured[name].append(result)
        claim = CLAIMS[name]
        if len(measured[name]) == len(claim.grid):
            points = [point for point, _ in measured[name]]
            yield Outcome(claim, points, claim.judge(points), sum(seconds for _, seconds in measured[name]))


def _results(tasks: Sequence[tuple[str, int]], jobs: int) -> Iterator[tuple[Point, float]]:
    waiting = iter(tasks)

    def following() -> Job | None:
        task = next(waiting, None)
        return None if task is None else Job(task, f"the claim {task[0]}", _measure, task)

    crew: Crew
    jobs = min(jobs, len(tasks))
    with nullcontext(Here()) if jobs == 1 else LocalCrew(jobs) as crew:
        found: dict[tuple[str, int], tuple[Point, float]] = {}
        left = list(reversed(tasks))  # they come as they end, and go on in their order
        with closing(carrying.carry_out(following, crew)) as results:
            for job, result in results:
                found[job.key] = result
                while left and left[-1] in found:
                    yield found.pop(left.pop())


def _measure(name: str, index: int, say: object) -> tuple[Point, float]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems are small
    try:
        claim = CLAIMS[name]
        begun = time.perf_counter()
        return claim.measure(claim.grid[index]), time.perf_counter() - begun
    finally:
        torch.set_num_threads(threads)
