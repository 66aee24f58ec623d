"""What a trial runs in: seeds, threads, and whether operations are deterministic."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from .devices import kind

_NOT_DETERMINISTIC = "does not have a deterministic implementation"


@contextmanager
def reproducible(
    seed: int, threads: int | None = 1, device: str = "cpu", inexact: set[str] | None = None
) -> Iterator[None]:
    """Seed every random generator, compute deterministically, and undo all of it at the end.

    Args:
        seed: At least 0.
        threads: Of torch on the CPU; None leaves them as they are.
        device: Where most is computed. What an accelerator can only compute otherwise is computed so.
        inexact: Gets the names of those operations.
    """
    on_cpu = kind(device) == "cpu"
    if not on_cpu:  # what cuBLAS needs to compute deterministically; read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads_before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with _restored_generators(device), nullcontext() if on_cpu else _noting(inexact):
        try:
            torch.set_num_threads(threads or threads_before)
            torch.use_deterministic_algorithms(True, warn_only=not on_cpu)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _restored_generators(device: str) -> AbstractContextManager[None]:
    own = kind(device) != "cpu" and hasattr(getattr(torch, kind(device), None), "get_rng_state")
    if not own:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.device(device).index or 0], device_type=kind(device))


@contextmanager
def _noting(inexact: set[str] | None) -> Iterator[None]:
    """Take down which operations warn that they are not deterministic here."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, *more: Any, **options: Any) -> None:
            if _NOT_DETERMINISTIC not in str(message):
                shown(message, *more, **options)
            elif inexact is not None:
                inexact.add(str(message).split()[0])

        warnings.showwarning = show
        warnings.filterwarnings("always", message=f".*{_NOT_DETERMINISTIC}")
        yield
