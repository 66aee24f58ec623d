"""What tests of Hugging Face's libraries ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Each ``Trainer.train()`` collects garbage, which takes a second where so much is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def own_state() -> Iterator[None]:
    """Accelerate keeps what it knows of host and precision in one place for the whole process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
