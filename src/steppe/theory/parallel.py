"""Carry out claims in parallel processes, one setting of one claim at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..lab.errors import RunError, describe
from .claim import Claim, Judgement, Point
from .claims import CLAIMS


class Interrupted(RunError):
    """The user pressed Ctrl-C."""

    exit_code = 130


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
    if min(jobs, len(tasks)) == 1:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in workers: problems are small
        try:
            for name, index in tasks:
                try:
                    yield _measure(name, index)
                except Exception as error:
                    raise RunError(f"the claim {name} could not be carried out: {describe(error)}") from error
        finally:
            torch.set_num_threads(threads)
        return
    from concurrent.futures.process import BrokenProcessPool

    from ..lab.crew.processes import interrupt_held_back, worker_processes

    with worker_processes(min(jobs, len(tasks))) as executor:
        with interrupt_held_back():
            futures = [executor.submit(_measure_in_worker, name, index) for name, index in tasks]
        for (name, _), future in zip(tasks, futures, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                raise RunError("a worker process died, perhaps for lack of memory (try fewer --jobs)") from None
            except Exception as error:
                raise RunError(f"the claim {name} could not be carried out: {describe(error)}") from error


def _measure(name: str, index: int) -> tuple[Point, float]:
    claim = CLAIMS[name]
    begun = time.perf_counter()
    return claim.measure(claim.grid[index]), time.perf_counter() - begun


def _measure_in_worker(name: str, index: int) -> tuple[Point, float]:
    import torch

    torch.set_num_threads(1)
    return _measure(name, index)
