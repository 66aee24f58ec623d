"""Tensor parallelism on two processes against one."""

from __future__ import annotations

import programs_tensor as programs
import pytest
from programs_ddp import METHODS

SHARDED = [name for name, case in METHODS.items() if not case.draws]


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.stack("Tensor parallelism", "plain", "2 processes")
def test_cut_layers(pool, name):
    for found in pool.run(programs.whole_batch, name, "tensor"):
        assert found["gap"] < 1e-12
        assert found["placements"] == ["R", "S(0)", "S(1)", "plain"]


@pytest.mark.parametrize("name", SHARDED)
def test_gradients_that_are_not_added_up_yet(pool, name):
    for found in pool.run(programs.whole_batch, name, "sequence"):
        # Where gradients are blended they are added up before.
        assert ("P(sum)" in found["placements"]) == (not METHODS[name].blends)
        assert found["gap"] < 1e-12
