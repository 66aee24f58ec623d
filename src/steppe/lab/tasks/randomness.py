"""The random states of Python, NumPy and torch, which whoever draws apart leaves as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def drawing_apart(seed: int | None = None) -> Iterator[None]:
    """Undo at the end whatever is drawn within this from the global generators of Python, NumPy and torch on the CPU.

    Args:
        seed: What they are seeded with at the beginning; None goes on from where they are.

    Example:
        >>> with drawing_apart(0):
        ...     first = torch.rand(1)
        >>> with drawing_apart(0):
        ...     assert torch.equal(torch.rand(1), first)
    """
    state, array_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(state)
            np.random.set_state(array_state)
