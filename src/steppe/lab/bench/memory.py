"""What methods need beyond their base at the peak of a training, measured."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..judge.comparison import Comparison
from .entries import Bench, Entry
from .short import configs, train

UPDATES = 8
"""As many as it takes for every method to climb, and for what it remembers to be there."""


def most_alive(device: str, work: Callable[[], object]) -> int:
    """Return the most bytes that ``work`` has alive at once in tensors, as torch's allocators see them."""
    gc.collect()  # what is freed meanwhile, whosever it was, would count as less
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Every allocation of the CPU's allocator is an event, also those inside of kernels.
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _speechless():
        profile.start()
    try:
        work()
    finally:
        with _speechless():
            profile.stop()
    alive = most = 0
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


@contextmanager
def _speechless() -> Iterator[None]:
    """Drop what C++ writes to the standard error: the profiler tells it whenever it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def beyond_the_base(bench: Bench, rows: Mapping[str, Entry], found: Comparison) -> dict[str, float]:
    """Train shortly with every row's settings, and return its peak beyond that of the base, in copies of the weights.

    The peak is that of everything: model, gradients, states, activations.
    """
    task = found.plan.source.task()
    size = sum(p.numel() * p.element_size() for p in task.model().parameters())
    peaks = {
        name: most_alive("cpu", partial(train, config, task)) for name, config in configs(rows, found, UPDATES).items()
    }
    return {name: (peak - peaks[bench.base]) / size for name, peak in peaks.items()}
