"""What loops do besides passes and steps, on two processes against one."""

from __future__ import annotations

import programs_hosts as programs
import pytest

stack = pytest.mark.stack
DDP, FSDP, TENSOR, COMPILED = "DDP", "FSDP2", "Tensor parallelism", "torch.compile"


@pytest.mark.parametrize("name", ["sam", "gsam", "adasam", "msam"])
@pytest.mark.parametrize(
    ("host", "loop"),
    [
        pytest.param("ddp", "clip", marks=stack(DDP, "clip")),
        pytest.param("fsdp", "clip", marks=stack(FSDP, "clip")),
        pytest.param("tensor", "clip", marks=stack(TENSOR, "clip")),
        pytest.param("compiled", "clip"),
        pytest.param("tensor", "accumulation", marks=stack(TENSOR, "accumulation")),
        pytest.param("compiled", "accumulation"),
        pytest.param("compiled", "plain", marks=stack(COMPILED, "2 processes")),
    ],
)
def test_two_processes_end_where_one_does(pool, host, loop, name):
    for found in pool.run(programs.against_one, host, loop, name):
        assert found["gap"] < 1e-12
        assert found["moved"] > 1e-3


@pytest.mark.parametrize("name", ["sam", "gsam", "adasam", "msam"])
@pytest.mark.parametrize(
    "host",
    [
        pytest.param("ddp", marks=stack(DDP, "AMP")),
        pytest.param("fsdp", marks=stack(FSDP, "AMP")),
        pytest.param("tensor", marks=stack(TENSOR, "AMP")),
        pytest.param("compiled"),
    ],
)
def test_autocast_on_two_processes(pool, host, name):
    for found in pool.run(programs.against_one, host, "autocast", name):
        # A sum over shards is rounded in another way than one over the whole.
        assert found["gap"] <= {"tensor": 0.05 * found["moved"], "fsdp": 1e-6}.get(host, 0.0)
        assert found["moved"] > 1e-3
