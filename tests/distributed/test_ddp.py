"""DDP on two processes against one."""

from __future__ import annotations

import programs_ddp as programs
import pytest
import torch
from together import check_followed

over_climbs = pytest.mark.parametrize("climb", ["replay", "micro"])
over_replicas = pytest.mark.parametrize("replicas", ["global", "own"])


def both(results):
    """What both ranks found, who must agree."""
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", programs.METHODS)
@pytest.mark.stack("Plain loop with `step`", "2 processes")
@pytest.mark.stack("DDP", "plain", "2 processes")
def test_a_step_is_that_of_one_process_on_the_whole_batch(pool, name, dtype, gap):
    assert max(pool.run(programs.whole_batch, name, dtype)) < gap


@pytest.mark.parametrize("per", ["epoch", "update"])
def test_growing_batches_are_those_of_one_process(pool, per):
    for rank, found in enumerate(pool.run(programs.growing_batches, per)):
        assert found["own"] == (rank, 2)
        alone, together = found["seen"]
        assert together == alone
        assert len({size for _, _, size in alone}) >= 3
        assert found["gap"] < 1e-12


# With 2 micro-batches: exchanges of all gradients in one step.
EXCHANGES = {
    ("replay", "global"): {"sam": 2, "gsam": 2},
    ("replay", "own"): {"sam": 1, "gsam": 1},
    ("micro", "global"): {"sam": 3, "gsam": 4},
    ("micro", "own"): {"sam": 1, "gsam": 1},
}


@over_climbs
@over_replicas
@pytest.mark.parametrize("name", ["sam", "usam", "asam", "gsam"])
@pytest.mark.parametrize("view", [False, True], ids=["copy", "view"])
@pytest.mark.parametrize("groups", [False, True], ids=["one-group", "two-groups"])
@pytest.mark.stack("DDP", "accumulation")
def test_accumulated_step_is_the_plain_loop(pool, name, climb, replicas, view, groups):
    for found in pool.run(programs.accumulated, name, climb, replicas, view, groups):
        assert found["gap"] < 1e-12
        assert found["loss"] < 1e-12
        assert found["exchanges"] == EXCHANGES[climb, replicas]["gsam" if name == "gsam" else "sam"]
        # One number that says whether gradients were finite, or for each parameter whether there is a gradient.
        assert found["others"] == (replicas == "own")


@over_climbs
@over_replicas
def test_accumulated_climbs_along_parts(pool, climb, replicas):
    for found in pool.run(programs.accumulated, "sam", climb, replicas, False, fraction=0.5):
        assert found["gap"] < 1e-12
        assert found["loss"] < 1e-12
        assert found["exchanges"] == EXCHANGES[climb, replicas]["sam"]


@over_replicas
@pytest.mark.parametrize("find_unused", [False, True])
def test_steps_that_do_not_climb_cost_one_exchange(pool, replicas, find_unused):
    exchanges, gap = both(pool.run(programs.every_other, replicas, find_unused))
    assert exchanges == ([2, 1, 2, 1] if replicas == "global" else [1, 1, 1, 1])
    assert gap < 1e-12


# Gradients that are not finite


@over_climbs
@over_replicas
@pytest.mark.parametrize("name", ["sam", "gsam"])
def test_a_clean_gradient_that_is_not_finite_on_one_rank_is_seen_by_all(pool, name, climb, replicas):
    assert both(pool.run(programs.not_finite, name, climb, replicas)) == {
        "finite": [True, False, True],
        "back": [True, True, True],
        "same gradients": [True, True, True],
        "same weights": [True, True, True],
    }


DOORS = [
    *((door, replicas) for door in ("replay", "micro") for replicas in ("global", "own")),
    pytest.param("ascended", "global", marks=pytest.mark.stack("Plain loop with `ascended`", "2 processes")),
    pytest.param(
        "ascended",
        "own",
        marks=pytest.mark.xfail(
            reason="with `no_sync` around the clean pass, a process whose own clean gradient is not finite does not "
            "tell the others; `accumulated_step` does"
        ),
    ),
]


@pytest.mark.parametrize(("door", "replicas"), DOORS)
@pytest.mark.parametrize("name", ["sam", "usam", "gsam"])
@pytest.mark.stack("DDP", "AMP")
def test_a_grad_scaler_skips_the_step_on_all_ranks(pool, name, door, replicas):
    assert both(pool.run(programs.scaled, name, door, replicas)) == {
        "moved": [True, False, True],
        "same weights": [True, True, True],
        "scale": [1024.0, 512.0, 512.0],
    }


# Parameters without a gradient


def same(*uses):
    """Micro-batches that use the same branches in both passes."""
    return [(use, use) for use in uses]


SETS = {
    "ranks differ": [same("a", "ab"), same("ab", "b")],
    "micro-batches differ": [same("abc", "a"), same("ab", "a")],
    "the last uses less": [same("ab", "a"), same("a", "a")],
    "passes differ": [[("a", "ab"), ("ab", "a")], [("ab", "b"), ("b", "b")]],
    "the sharp pass uses less": [[("ab", "a"), ("ab", "a")]] * 2,
}
NONE = {
    "none on one rank": [same("ab", "ab"), same("", "")],
    "none in one micro-batch": [same("ab", "ab"), same("", "a")],
    "none in the last": [same("ab", "ab"), same("a", "")],
    "none in one rank's sharp pass": [[("ab", "a"), ("ab", "a")], [("b", ""), ("b", "")]],
}


@over_climbs
@over_replicas
@pytest.mark.parametrize("name", ["sam", "gsam"])
@pytest.mark.parametrize("sets", SETS)
def test_sets_of_parameters_may_change(pool, name, climb, replicas, sets):
    check_branches(pool.run(programs.branches, name, climb, replicas, SETS[sets]))


@over_climbs
@pytest.mark.parametrize("name", ["sam", "gsam"])
@pytest.mark.parametrize("sets", NONE)
def test_a_rank_without_any_gradient_holds_nobody_up(pool, name, climb, sets):
    """DDP itself waits for ever for a rank that uses nothing, wherever it exchanges gradients."""
    check_branches(pool.run(programs.branches, name, climb, "own", NONE[sets]))


def check_branches(results):
    for found in results:
        assert found["gap"] < 1e-12
        assert found["same"]
        assert not any(found["missing"])


@over_replicas
def test_no_gradient_anywhere_is_an_error(pool, replicas):
    message = both(pool.run(programs.nothing_anywhere, replicas))
    if replicas == "own":
        assert message == "No parameter has a gradient on any process. Did backward call loss.backward()?"
    else:
        assert "No parameter has a gradient" in message


@over_replicas
@pytest.mark.parametrize(("climb", "at"), [("replay", 1), ("replay", 3), ("micro", 1), ("micro", 2)])
def test_a_pass_that_raises_leaves_the_weights(pool, climb, replicas, at):
    found = both(pool.run(programs.fails, climb, replicas, at))
    assert found["message"] == f"call {at}"
    assert found["back"]
    assert found["gap"] < 1e-12


# What needs less than two whole passes

# Exchanges of all gradients in five steps of two micro-batches, of which LookSAM climbs in the first and the fourth.
CHEAP = {
    ("msam", "replay"): [1, 1, 1, 1, 1],
    ("msam", "micro"): [1, 1, 1, 1, 1],
    ("looksam", "replay"): [2, 1, 1, 2, 1],
    ("looksam", "micro"): [4, 2, 2, 4, 2],
    ("friendlysam", "micro"): [3, 3, 3, 3, 3],
    ("pgn", "micro"): [4, 4, 4, 4, 4],
    ("unifiedsam", "replay"): [2, 2, 2, 2, 2],
    ("esam", "micro"): [3, 3, 3, 3, 3],
}


@pytest.mark.parametrize(("name", "climb"), CHEAP)
@pytest.mark.stack("DDP", "accumulation")
def test_accumulated_step_is_that_of_one_process(pool, name, climb):
    for found in pool.run(programs.accumulated_case, name, climb, "global"):
        assert found["gap"] < 1e-12
        assert found["exchanges"] == CHEAP[name, climb]


@over_climbs
def test_momentum_is_the_same_everywhere_so_own_climbs_are_too(pool, climb):
    for found in pool.run(programs.accumulated_case, "msam", climb, "own"):
        assert found["gap"] < 1e-12
        assert found["exchanges"] == [1] * 5


@pytest.mark.parametrize("name", ["sam", "gsam", "looksam"])
def test_a_climb_along_a_part_of_the_batch(pool, name):
    for found in pool.run(programs.part_of_the_batch, name):
        assert found["gap"] < 1e-12
        assert found["to the whole"] > 1e-6


@pytest.mark.parametrize("name", programs.TRIGGERS)
def test_all_ranks_climb_at_the_same_steps(pool, name):
    found = both(pool.run(programs.triggered, name))
    assert set(found["calls"]) == {1, 2}
    assert found["gap"] < 1e-12


@pytest.mark.parametrize("door", ["step", "replay", "micro"])
def test_all_ranks_follow_the_angle_of_one_process(pool, door):
    check_followed(pool.run(programs.followed, door))


def test_own_climbs_have_no_angle_in_common(pool):
    refused = pool.run(programs.refused, "replay")
    assert all(message.startswith('replicas="own" does not go with a radius that follows') for message in refused)
