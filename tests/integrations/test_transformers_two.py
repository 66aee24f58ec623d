"""Hugging Face's Trainer on two processes, by which this file is run as a script, against loops by hand on one."""

from __future__ import annotations

import gc
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from by_hand import cuts_of_two
from trainers import (
    METHODS,
    SharpTrainer,
    arguments,
    bert,
    every_third,
    mean_over_the_update,
    sentences,
    trained_by_hand,
    weights,
)
from transformers import TrainerCallback

from launching import launch

DDP = [
    ("sam", "replay", "global", True),
    ("sam", "micro", "global", True),
    ("usam", "micro", "global", False),
    ("gsam", "micro", "global", False),
    ("sam", "replay", "own", True),
    ("sam", "micro", "own", False),
    ("gsam", "replay", "own", True),
    ("gsam", "micro", "own", False),
]


class Sharded(SharpTrainer):
    """FSDP2, which accelerate offers on accelerators alone, although it runs on CPUs as well."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True


class Finite(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.everywhere = all(bool(p.grad.isfinite().all()) for p in model.parameters())


def spoiled(rank):
    calls = []

    def loss(outputs, labels, num_items_in_batch=None):
        calls.append(1)
        found = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return found * math.inf if rank == 1 and len(calls) == 1 else found

    return loss


def on_two(folder):
    found = {}
    data = sentences(40)

    def trainer(
        kind=SharpTrainer, name="sam", model=None, saves=False, loss=mean_over_the_update, find=True, **options
    ):
        args = arguments(
            folder / name,
            gradient_accumulation_steps=2,
            ddp_find_unused_parameters=find,
            average_tokens_across_devices=True,
            **({"save_strategy": "steps", "save_steps": 2} if saves else {}),
        )
        made = kind(model or bert(), args, train_dataset=data, compute_loss_func=loss, **options)
        assert made.accelerator.num_processes == 2
        return made

    for method, climb, replicas, find in DDP:
        run = trainer(sharpness=METHODS[method], climb=climb, replicas=replicas, find=find)
        run.train()
        other = bert()
        trained_by_hand(other, cuts_of_two(data, 4, 2, climb, replicas) * 2, method)
        found[f"{method}-{climb}-{replicas}"] = (weights(run.model) - weights(other)).abs().max().item()

    watch = Finite()
    run = trainer(
        sharpness=METHODS["sam"], replicas="own", loss=spoiled(torch.distributed.get_rank()), callbacks=[watch]
    )
    run.args.max_steps = 1
    run.train()
    found["finite"] = watch.everywhere

    for name, kind, options in (
        ("ddp", SharpTrainer, {"sharpness": every_third, "climb": "micro", "replicas": "own"}),
        ("fsdp", Sharded, {"sharpness": every_third}),
    ):
        ends = []
        for start in (None, str(folder / name / "checkpoint-2")):
            run = trainer(kind, name, model=bert(dropout=0.1), saves=start is None, **options)
            run.train(resume_from_checkpoint=start)
            ends.append(
                torch.cat([getattr(p, "full_tensor", lambda p=p: p)().reshape(-1) for p in run.model.parameters()])
            )
        found[f"{name} resumed"] = torch.equal(*ends)
        found[f"{name} steps"] = run.sharpness_aware.state["engine"]["step"]

    for climb in ("replay", "micro"):
        run = trainer(Sharded, f"fsdp-{climb}", sharpness=METHODS["gsam"], climb=climb)
        run.train()
        other = bert()
        trained_by_hand(other, cuts_of_two(data, 4, 2, climb, "global") * 2, "gsam")
        whole = torch.cat([p.full_tensor().reshape(-1) for p in run.model.parameters()])
        found[f"fsdp-{climb}"] = (whole - weights(other)).abs().max().item()
    saved = folder / "fsdp" / "checkpoint-2"
    (saved / f"sharpness_aware_{torch.distributed.get_rank()}.pt").unlink()
    for name, replicas, start in (("fsdp own", "own", None), ("fsdp plain", "global", str(saved))):
        run = trainer(Sharded, name, sharpness=METHODS["sam"], replicas=replicas)
        with pytest.raises(ValueError, match=r"\.") as error:
            run.train(resume_from_checkpoint=start)
        found[name] = str(error.value)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", [f"{method}-{climb}-{replicas}" for method, climb, replicas, _ in DDP])
@pytest.mark.stack("Hugging Face Trainer", "2 processes")
def test_two_processes_equal_one_with_their_batches(two, name):
    assert max(found[name] for found in two) < 1e-12


def test_a_gradient_that_is_not_finite_on_one_process_is_so_on_both(two):
    assert [found["finite"] for found in two] == [False, False]


@pytest.mark.parametrize("host", ["ddp", "fsdp"])
@pytest.mark.stack("Hugging Face Trainer", "resume")
def test_two_processes_resume_bit_for_bit(two, host):
    assert all(found[f"{host} resumed"] and found[f"{host} steps"] == 6 for found in two)


@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.stack("Hugging Face Trainer", "2 processes")
def test_fsdp2_equals_one_process(two, climb):
    assert max(found[f"fsdp-{climb}"] for found in two) < 1e-12


def test_what_fsdp2_cannot_do(two):
    for found in two:
        assert 'replicas="own" needs the model in torch.nn.parallel.DistributedDataParallel' in found["fsdp own"]
        assert "with FSDP only a sharpness-aware run on as many processes can be resumed" in found["fsdp plain"]


if __name__ == "__main__":
    on_two(Path(sys.argv[1]))
    gc.collect()  # models must be gone before the processes part
    torch.distributed.destroy_process_group()
