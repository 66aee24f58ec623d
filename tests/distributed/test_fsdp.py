"""FSDP2 on two processes against one. No test asks that parameters divide evenly: two of them lie on one process."""

from __future__ import annotations

import programs_fsdp as programs
import pytest
import torch
from programs_ddp import METHODS
from together import check_followed

SHARDED = [name for name, case in METHODS.items() if not case.draws]
CLIMBING = [name for name in SHARDED if METHODS[name].climbs]


def both(results):
    assert results[0] == results[1]
    return results[0]


VARIANTS = {
    "float64": (torch.float64, (2,), None, 1e-12),
    "loop": (torch.float64, (2,), False, 1e-12),
    "float32": (torch.float32, (2,), None, 1e-6),
    "1x2": (torch.float64, (1, 2), None, 1e-12),
    "2x1": (torch.float64, (2, 1), None, 1e-12),
}
SEVERAL = ["sam", "asam", "gsam", "adasam", "lightsam-ii", "msam-adaptive", "looksam"]


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for variant in VARIANTS for name in (SHARDED if variant == "float64" else SEVERAL)],
)
@pytest.mark.stack("FSDP2", "plain", "2 processes")
def test_a_step_is_that_of_one_process_on_the_whole_batch(pool, name, variant):
    dtype, shape, foreach, gap = VARIANTS[variant]
    results = pool.run(programs.whole_batch, name, dtype, shape, foreach)
    for found in results:
        assert found["gap"] < gap
        assert found["spread"]
        assert found["memories"] == 6 * METHODS[name].held
    assert [found["empty"] for found in results] == ([0, 0] if shape == (2, 1) else [0, 2])


def test_foreach_works_or_is_refused(pool):
    found = both(pool.run(programs.foreach))
    assert found["error"] in (None, "TypeError", "ValueError")
    assert found.get("moved", 0.0) == 0.0
    assert found.get("gap", 0.0) < 1e-12


@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.parametrize("name", ["sam", "usam", "asam", "gsam"])
@pytest.mark.stack("FSDP2", "accumulation")
def test_accumulated_step_is_the_plain_loop(pool, name, climb):
    for found in pool.run(programs.accumulated, name, climb):
        assert found["gap"] < 1e-12
        # Three layers: once per pass if the climb is replayed, or FSDP2 would mix gradients of both passes.
        assert found["exchanges"] == 3 * (2 if climb == "replay" else 4)


@pytest.mark.parametrize(
    ("name", "climb"), [("msam", "replay"), ("looksam", "micro"), ("looksam", "replay"), ("friendlysam", "micro")]
)
def test_accumulated_step_is_that_of_one_process(pool, name, climb):
    for found in pool.run(programs.accumulated_case, name, climb):
        assert found["gap"] < 1e-12


def test_a_climb_along_a_part_of_the_batch(pool):
    for found in pool.run(programs.part_of_the_batch, "gsam"):
        assert found["gap"] < 1e-12
        assert found["to the whole"] > 1e-6


@pytest.mark.parametrize("which", ["cut", "plain"])
@pytest.mark.parametrize("name", ["sam", "gsam", "looksam", "pgn"])
def test_of_cut_and_plain_weights_one_kind_may_stay(pool, name, which):
    assert (
        max(gap for foreach in (None, False) for gap in pool.run(programs.a_part_is_cut, name, which, foreach)) < 1e-12
    )


@pytest.mark.parametrize("name", ["sam", "asam", "gsam"])
def test_other_dimensions_may_be_cut(pool, name):
    assert max(pool.run(programs.columns, name)) < 1e-12


@pytest.mark.parametrize("name", CLIMBING)
def test_rho_zero_is_the_base_bit_for_bit(pool, name):
    assert both(pool.run(programs.rho_zero, name))


@pytest.mark.parametrize("name", ["sam", "gsam", "lightsam-ii"])
@pytest.mark.stack("FSDP2", "AMP")
def test_passes_in_bfloat16(pool, name):
    good, gap = both(pool.run(programs.mixed_precision, name))
    assert good
    assert 0 < gap < 0.02


@pytest.mark.parametrize("name", CLIMBING)
def test_one_entry_that_is_not_finite_stops_all(pool, name):
    assert both(pool.run(programs.not_finite, name)) == {
        "stayed": True,
        "back": True,
        "finite": not METHODS[name].clean,  # a momentum that is not finite is the base's own
        "forgotten": True,
    }


@pytest.mark.parametrize("door", ["ascended", "replay", "micro"])
@pytest.mark.parametrize("name", ["sam", "usam", "gsam"])
@pytest.mark.stack("FSDP2", "AMP")
def test_a_grad_scaler_skips_the_step_on_all_ranks(pool, name, door):
    """torch adds up over processes what the scaler found in shards."""
    found = both(pool.run(programs.scaled, name, door))
    assert found == {"moved": [True, False, True], "scale": [1024.0, 512.0, 512.0], "steps": [1, 1, 2]}


@pytest.mark.parametrize(("name", "expected"), [("sam", 1), ("usam", 1), ("lightsam-ii", 1), ("asam", 2), ("gsam", 3)])
def test_norms_cost_one_all_reduce_whatever_the_number_of_parameters(pool, name, expected):
    """ASAM has a norm of its own, GSAM two inner products."""
    assert pool.run(programs.all_reduces, name, 1) == pool.run(programs.all_reduces, name, 6) == [expected] * 2


# Parameters that FSDP2 keeps whole


@pytest.mark.parametrize("surprise", ["fails", "looks"])
@pytest.mark.parametrize("fresh", [True, False])
def test_no_pass_sees_weights_of_another_in_resharded(pool, surprise, fresh):
    gap = both(pool.run(programs.one_group, surprise, fresh))
    assert (gap < 1e-12) == fresh  # without it, they do


def test_no_pass_of_accumulated_step_sees_weights_of_another(pool):
    assert both(pool.run(programs.accumulated_fails)) < 1e-12


def test_what_is_refused(pool):
    found = both(pool.run(programs.refusals))
    assert found["masks"] == "Random masks of DTensors are not drawn: every process would draw its own. Use SAM."
    assert found["own"] == (
        'replicas="own" needs the model in torch.nn.parallel.DistributedDataParallel, got FSDPSequential. Other models '
        'have no gradient of one process alone: use replicas="global".'
    )


@pytest.mark.parametrize(("original", "wrapped_first"), [(True, True), (False, True), (True, False)])
@pytest.mark.stack(
    "FSDP1",
    refused="The parameters are of FullyShardedDataParallel (FSDP1), whose flat pieces hide the norm of the whole "
    "gradient. Use torch.distributed.fsdp.fully_shard (FSDP2).",
)
def test_fsdp1_is_refused(pool, refusals, original, wrapped_first):
    found = both(pool.run(programs.fsdp1, original, wrapped_first))
    refusals.append(found["message"])
    assert found["moved"] == 0


@pytest.mark.parametrize("door", ["step", "replay", "micro"])
def test_all_ranks_follow_the_angle_of_one_process(pool, door):
    check_followed(pool.run(programs.followed, door))
