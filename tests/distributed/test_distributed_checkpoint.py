"""Checkpoints through torch.distributed.checkpoint."""

from __future__ import annotations

import copy
import re

import programs_checkpoint as programs
import pytest
import torch
from programs_ddp import METHODS
from torch import nn

from steppe import SAM, ProportionalToLR
from steppe.integrations.distributed import SharpnessAwareState
from steppe.triggers import After

NAMES = [
    "sam-adamw",
    "adasam",
    "lightsam-i",
    "lightsam-ii",
    "sam-every-3",
    "msam",
    "looksam",
    "friendlysam",
    "together",
    "sam-angle",
]
KINDS = ["fsdp", "ddp", "one"]


def both(results):
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize(
    ("name", "after"),
    [
        *((name, 4) for name in NAMES),
        *((name, 0) for name in ("sam-adamw", "lightsam-iii", "looksam")),
    ],
)
@pytest.mark.parametrize("saver", KINDS)
@pytest.mark.stack("DDP", "resume")
@pytest.mark.stack("FSDP2", "resume")
def test_resumes_anywhere(pool, tmp_path, name, after, saver):
    for kind, found in both(pool.run(programs.resume, name, saver, KINDS, str(tmp_path), after)).items():
        assert found["steps"] == after
        assert found["gap"] < 1e-12
        assert found["same"] or kind != saver


@pytest.mark.parametrize(
    "saver", [pytest.param("tensor", marks=pytest.mark.stack("Tensor parallelism", "resume")), "compiled"]
)
def test_cut_layers_and_compiled_models_resume_anywhere(pool, tmp_path, saver):
    found = both(pool.run(programs.resume, "sam-adamw", saver, ["fsdp", "one", saver], str(tmp_path), 4))
    assert all(each["steps"] == 4 and each["gap"] < 1e-12 for each in found.values())
    assert found[saver]["same"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, "sam-sgd"])
def test_loads_into_an_optimizer_that_has_not_stepped(pool, tmp_path, name, kind):
    assert both(pool.run(programs.fresh, name, kind, str(tmp_path))) == {"counts": [3, 3], "same": True}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", [*NAMES, "sam-sgd"])
def test_saving_leaves_no_trace(pool, name, steps):
    found = both(pool.run(programs.traces, name, steps))
    assert found == dict.fromkeys(("state", "weights", "grads", "names"), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", [*NAMES, "lightsam-iii"])
def test_parameters_without_gradients_and_wide_accumulators(pool, tmp_path, name, steps, dtype):
    found = both(pool.run(programs.partly, name, steps, str(tmp_path), dtype))
    assert found["same"]
    assert found["numbers"][0] == found["numbers"][1]
    assert found["bases"][0] == found["bases"][1]
    case = METHODS.get(name)
    wide = case is not None and (case.remembers or case.reuses or not case.wraps) and case.held > 0
    assert set(found["dtypes"]) <= {str(dtype), *(["torch.float32"] if wide else [])}
    assert "torch.float32" in found["dtypes"] or not wide or steps == 0


def test_plain_optimizers_are_refused():
    model = nn.Linear(2, 1)
    message = (
        "opt must be a sharpness-aware optimizer, got SGD. Plain ones are saved by "
        "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        SharpnessAwareState(model, torch.optim.SGD(model.parameters(), lr=0.1))


def one_process(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=0.1), rho=ProportionalToLR(0.4, 0.0, 0.1, 0.0), **options)

    def closure():
        opt.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    return model, opt, closure


def test_a_radius_that_was_set_by_hand_stays_what_it_is():
    model, opt, closure = one_process()
    opt.step(closure)
    opt.param_groups[0]["rho"] = 0.0
    opt.step(closure)
    saved = copy.deepcopy(SharpnessAwareState(model, opt).state_dict())
    other, resumed, again = one_process()
    other.load_state_dict(model.state_dict())
    SharpnessAwareState(other, resumed).load_state_dict(saved)
    resumed.step(again)
    assert resumed.param_groups[0]["rho"] == 0.0
    opt.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("missing", ["base", "climb", "absent", "numbers"])
def test_a_state_that_lacks_something_changes_nothing(missing):
    model, opt, closure = one_process(trigger=After(1))
    for _ in range(3):
        opt.step(closure)
    saved = SharpnessAwareState(model, opt).state_dict()
    del saved[missing]
    other, resumed, again = one_process(trigger=After(1))
    resumed.step(again)
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(KeyError, match=missing):
        SharpnessAwareState(other, resumed).load_state_dict(saved)
    assert str(resumed.state_dict()) == str(before)
