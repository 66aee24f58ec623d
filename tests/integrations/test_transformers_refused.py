"""What the mixin for Hugging Face's Trainer refuses, and how it says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from accelerate.utils import FullyShardedDataParallelPlugin, ParallelismConfig
from trainers import METHODS, REMEMBERING, SharpTrainer, arguments, bert, sentences, weights
from transformers import Trainer

from steppe import MSAM, SAM, LightSAM
from steppe.integrations.transformers import SharpnessAwareTrainerMixin
from steppe.triggers import LargeGradient

pytestmark = pytest.mark.usefixtures("own_state", "quick_collections")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, r"The optimizer is AdamW, and nothing says how it is to climb\. Pass for example sharpness="),
        ({"sharpness": lambda base: base}, TypeError, "sharpness must return a sharpness-aware optimizer.* got AdamW"),
        (
            {"sharpness": lambda base: LightSAM(base.param_groups[0]["params"], 0.1, rho=0.1)},
            ValueError,
            r"around the AdamW that it gets, but LightSAM has a base of its own.*optimizer_cls_and_kwargs=\(LightSAM",
        ),
        (
            {"sharpness": METHODS["sam"], "optimizer_cls_and_kwargs": REMEMBERING},
            ValueError,
            "There are two methods: the optimizer is LightSAM already",
        ),
        (
            {"sharpness": lambda base: MSAM(base, rho=0.1), "fraction": 0.5},
            TypeError,
            "MSAM climbs without a gradient: leave fraction= out",
        ),
        (
            {"sharpness": lambda base: SAM(base, rho=0.1, trigger=LargeGradient(steps=9)), "fraction": 0.5},
            ValueError,
            "fraction= does not go with LargeGradient, .* Leave fraction= out",
        ),
    ],
)
def test_methods_that_are_missing_or_wrong(tmp_path, options, kind, message):
    trainer = SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), **options)
    with pytest.raises(kind, match=message):
        trainer.train()
    assert torch.equal(weights(trainer.model), weights(bert()))


class Noting:
    """Some other mixin."""

    def training_step(self, *args, **kwargs):
        self.noted = True
        return super().training_step(*args, **kwargs)


class OtherTrainer(Trainer):
    pass


class Mine(SharpnessAwareTrainerMixin):
    pass


@pytest.mark.parametrize(
    ("bases", "instead"),
    [
        ((Trainer, SharpnessAwareTrainerMixin), "SharpnessAwareTrainerMixin, Trainer"),
        ((OtherTrainer, SharpnessAwareTrainerMixin), "SharpnessAwareTrainerMixin, OtherTrainer"),
        ((Noting, OtherTrainer, Mine), "Mine, Noting, OtherTrainer"),
    ],
)
def test_a_trainer_that_hides_the_mixin_is_refused(bases, instead):
    message = (
        "T names a Trainer before SharpnessAwareTrainerMixin, whose methods it hides, so that training would be plain. "
        f"Write class T({instead})."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        type("T", bases, {})


@pytest.mark.parametrize(
    "bases",
    [
        (SharpnessAwareTrainerMixin, Trainer),
        (Mine, OtherTrainer),
        (Noting, Mine, OtherTrainer),
        (SharpnessAwareTrainerMixin, Noting, Trainer),
        (Noting, SharpTrainer),
        (type("Deeper", (SharpTrainer,), {}), OtherTrainer),
        (OtherTrainer, SharpTrainer),  # which hides nothing: its own Trainer comes after the mixin
    ],
)
def test_other_orders_train(tmp_path, bases):
    kind = type("T", bases, {})
    trainer = kind(bert(), arguments(tmp_path, max_steps=2), train_dataset=sentences(), sharpness=METHODS["sam"])
    trainer.train()
    assert trainer.sharpness_aware.state["engine"]["step"] == 2
    assert hasattr(trainer, "noted") == (Noting in kind.__mro__)
    expected = SharpTrainer(
        bert(), arguments(tmp_path, max_steps=2), train_dataset=sentences(), sharpness=METHODS["sam"]
    )
    expected.train()
    assert torch.equal(weights(trainer.model), weights(expected.model))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"climb": "macro"}, ValueError, "climb must be one of 'replay', 'micro', got 'macro'"),
        ({"replicas": "local"}, ValueError, "replicas must be one of 'global', 'own', got 'local'"),
        ({"fraction": 0}, ValueError, r"fraction must lie in \(0, 1\], got 0\."),
        ({"sharpness": 0.05}, TypeError, r"sharpness must be a function of the base.* got float\. .*optimizers="),
        (
            {"sharpness": SAM(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), rho=0.1)},
            TypeError,
            r"sharpness must be a function of the base, .* got SAM\. .*optimizers=\(optimizer, None\)",
        ),
    ],
)
def test_options_that_are_wrong(tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), **options)


def test_an_optimizer_that_is_not_the_base_of_the_method(tmp_path):
    class Stubborn(SharpTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.AdamW(self.model.parameters())
            return self.optimizer

    trainer = Stubborn(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])
    with pytest.raises(RuntimeError, match="would step AdamW, which is not the base of a sharpness-aware optimizer"):
        trainer.train()


def with_deepspeed(trainer):
    trainer.is_deepspeed_enabled = True


def with_xla(trainer):
    trainer.args.fsdp, trainer.args.fsdp_config = True, {"xla": True}


def with_fsdp_1(trainer):
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)


def with_apex(trainer):
    trainer.use_apex = True


def with_context_parallelism(trainer):
    trainer.accelerator.state.parallelism_config = ParallelismConfig(cp_size=2)


def refused(host, message, row):
    said = f"Sharpness-aware steps need gradients in .grad and weights that stay until step(), {message}"
    return pytest.param(host, message, marks=pytest.mark.stack(row, refused=said))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        refused(with_deepspeed, "got DeepSpeed, whose engine keeps gradients and steps to itself", "DeepSpeed"),
        refused(with_xla, "got XLA, on which none of this was ever run", "XLA"),
        (with_fsdp_1, "got FSDP of version 1, whose flat pieces"),
        (with_apex, "got Apex, which scales gradients"),
        (with_context_parallelism, "got context parallelism, which cuts the inputs in place"),
    ],
)
def test_hosts_that_are_refused(tmp_path, refusals, host, message):
    """None of them runs here, so each is a Trainer that says it does."""

    class Pretending(SharpTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            host(self)

    with pytest.raises(
        ValueError, match=f"^Sharpness-aware steps need gradients in .grad .*, {message}.*: use "
    ) as error:
        Pretending(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])
    refusals.append(str(error.value))


def test_sagemakers_model_parallelism_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_HP_MP_PARAMETERS", '{"partitions": 2}')
    with pytest.raises(ValueError, match="got SageMaker's model parallelism, which runs passes by itself: use"):
        SharpTrainer(bert(), arguments(tmp_path), train_dataset=sentences(), sharpness=METHODS["sam"])


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_during_backward_are_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=f"got optim='{optim}', which updates the weights during backward"):
        SharpTrainer(bert(), arguments(tmp_path, optim=optim), train_dataset=sentences(), sharpness=METHODS["sam"])
