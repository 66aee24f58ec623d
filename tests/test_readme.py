"""The README is true: its code runs, and its table states the defaults."""

from __future__ import annotations

import gc
import inspect
import re
from pathlib import Path

import pytest
import torch

import steppe
from steppe.lab.tasks.loop import Loop
from steppe.lab.trials.own_loop import run_loop
from steppe.lab.trials.records import TrialConfig
from steppe.methods import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_code_runs():
    example, loop, measured, scheduled, cheap, by_closure, scaled = re.findall(
        r"```python\n(.*?)```", README, re.DOTALL
    )
    names: dict = {}
    exec(example, names)
    assert names["loss"].item() > 0
    exec(loop, names)
    given = {
        "task": "t",
        "method": "sam",
        "base": "adamw",
        "hyperparameters": {"lr": 0.01, "rho": 0.05},
        "versions": {},
    }
    record = run_loop(TrialConfig(**given, seed=0, epochs=2, batch_size=1), Loop(names["train"]))
    assert (record.gradient_evaluations, record.updates, record.metric_name) == (4, 2, "accuracy")
    exec(measured, names)
    assert names["found"].measures["worst-case l2"].value > 0
    exec(scheduled, names)
    assert names["opt"].param_groups[0]["rho"] == 0.05 / 100
    assert next(iter(names["loader"]))[0].shape == (16, 20)
    exec(cheap, names)
    assert names["loss"].item() > 0
    before = names["model"].weight.detach().clone()
    exec(by_closure, names)
    assert not torch.equal(names["model"].weight, before)
    names |= {"scaler": torch.amp.GradScaler("cpu"), "loss_fn": torch.nn.functional.cross_entropy}
    before = names["model"].weight.detach().clone()
    exec(scaled, names)
    assert not torch.equal(names["model"].weight, before)


def test_the_table_names_every_method_and_its_defaults():
    rows = re.findall(r"^\| `(\w+)\((\w+)[^)]*?((?:, \w+=[^,)]+)*)\)`", README, re.MULTILINE)
    classes = {getattr(make, "func", make).__name__ for make in METHODS.values()}
    assert {name for name, *_ in rows} == classes
    for name, first, rest in rows:
        parameters = inspect.signature(getattr(steppe, name)).parameters
        assert next(iter(parameters)) == first
        for option in filter(None, rest.split(", ")):
            key, value = option.split("=")
            if value != "...":
                assert parameters[key].default == float(value)


MEMORY = {
    "SAM": lambda p: steppe.SAM(torch.optim.SGD(p, lr=0.1)),
    "USAM": lambda p: steppe.USAM(torch.optim.SGD(p, lr=0.1)),
    "ASAM": lambda p: steppe.ASAM(torch.optim.SGD(p, lr=0.1)),
    "GSAM": lambda p: steppe.GSAM(torch.optim.SGD(p, lr=0.1)),
    "PGN": lambda p: steppe.PGN(torch.optim.SGD(p, lr=0.1)),
    "UnifiedSAM": lambda p: steppe.UnifiedSAM(torch.optim.SGD(p, lr=0.1)),
    "FriendlySAM": lambda p: steppe.FriendlySAM(torch.optim.SGD(p, lr=0.1)),
    "VaSSO": lambda p: steppe.VaSSO(torch.optim.SGD(p, lr=0.1)),
    "MSAM": lambda p: steppe.MSAM(torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "LookSAM": lambda p: steppe.LookSAM(torch.optim.SGD(p, lr=0.1), k=1),
    "ESAM": lambda p: steppe.ESAM(torch.optim.SGD(p, lr=0.1)),
    "AMSGrad": lambda p: steppe.AMSGrad(p),
    "AdaSAM": lambda p: steppe.AdaSAM(p),
    "LightSAM": lambda p: steppe.LightSAM(p, 0.1, rho=0.1),
    'variant="adagrad"': lambda p: steppe.LightSAM(p, 0.1, rho=0.1, variant="adagrad"),
    'variant="adam"': lambda p: steppe.LightSAM(p, 0.1, rho=0.1, variant="adam"),
}


@pytest.mark.parametrize("name", MEMORY)
def test_the_table_counts_the_copies_that_are_held(name):
    """Count the tensors as large as the model that are alive at the start of the last pass of the second step."""
    (row,) = [line for line in README.splitlines() if re.match(rf"\| (`{name}\(|... `{name}`)", line)]
    cost, memory = row.strip("|").rsplit("|", 3)[1:3]
    cost = eval(cost.partition(",")[0], {"k": 1})
    w = torch.nn.Parameter(torch.ones(12345))
    opt = MEMORY[name]([w])
    passes = []

    def closure():
        opt.zero_grad()
        passes.append(
            {t.data_ptr() for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.numel() == 12345}
        )
        loss = (w**2).sum()
        loss.backward()
        return loss

    opt.step(closure)
    opt.step(closure)
    assert len(passes) == 2 * cost
    wraps = next(iter(inspect.signature(type(opt)).parameters)) == "base"
    bases = {t.data_ptr() for t in opt.base.state[w].values() if t is not None} if wraps else set()
    assert len(passes[-1] - {w.data_ptr()} - bases) == int(memory)
