"""Any base, and methods of one's own: from torch, from files, from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from steppe.lab import UserError, compare, sweep
from steppe.lab.code.code import find_file
from steppe.lab.plans import comparison
from steppe.lab.plans.options import from_file, from_flags
from steppe.lab.trials.finding import BASES, check_base, refusal
from steppe.lab.trials.optimizers import build

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bring-your-own-method.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^steppe (compare .*)$", PAGE, re.MULTILINE)

OWN = """
import torch
from steppe import SAM

def split(parameters, lr: float = 0.02, other_lr=0.1):
    parameters = list(parameters)
    return [
        torch.optim.SGD([p for p in parameters if p.ndim == 2], lr=lr),
        torch.optim.Adagrad([p for p in parameters if p.ndim != 2], lr=other_lr),
    ]

def twice(base, *, rho: float = 0.05):
    return SAM(base, rho=2 * rho)

def fails(base, *, rho=0.1):
    return SAM(base, rho=-rho)

def leaves(base):
    import os
    os._exit(3)

class Steps(torch.optim.SGD):
    def step(self, closure):
        raise KeyError("no such state")

def sam(parameters): ...

def nothing(parameters):
    return 3

def größer(parameters):
    return torch.optim.SGD(parameters)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


@pytest.fixture
def planned(tiny, tmp_path):
    def plan(**asked):
        return comparison.plan(tiny, from_flags(asked, prefix=""), tmp_path / "out")

    return plan


@pytest.mark.parametrize("base", [base for base in BASES if base not in ("adadelta", "lbfgs", "sparseadam", "muon")])
def test_a_method_wraps_every_base_of_torch(planned, base):
    plan = planned(base=base, methods=[base, "sam"])
    made = build("sam", base, [nn.Parameter(torch.zeros(2))], plan.arms[1].hyperparameters)
    assert type(made.base) is BASES[base]
    assert plan.arms[1].hyperparameters["rho"] == 0.05
    assert [config.base for config in plan.trials()[:2]] == [None, base]


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("lbfgs", "LBFGS.step.. needs a closure of its own"),
        ("sparseadam", "SparseAdam does not support dense gradients"),
        ("adadelta", "The groups of this Adadelta already have a 'rho'"),
    ],
)
def test_bases_that_no_method_can_wrap(base, reason):
    with pytest.raises(UserError, match=f"^{base} cannot be a base of sharpness-aware methods: {reason}"):
        check_base(base)


def test_an_unknown_base_is_told_which_can_be_wrapped():
    with pytest.raises(UserError, match=r"unknown base 'nadan'; did you mean 'nadam'.*known: adamw, sgd, ") as caught:
        check_base("nadan")
    assert "lbfgs" not in str(caught.value)


def test_a_base_without_settings_of_ours_has_its_own(planned):
    plan = planned(base="nadam", methods=["nadam", "sam", "gsam", "lightsam-i"], settings={"nadam": {"lr": 0.3}})
    nadam, sam, gsam, light = (arm.hyperparameters for arm in plan.arms)
    usual = planned(methods=["gsam", "lightsam-i"])
    assert nadam == {"lr": 0.3, "weight_decay": 0.0}
    assert sam == {"lr": 0.002, "weight_decay": 0.0, "rho": 0.05}
    packaged = usual.arms[0].hyperparameters
    assert gsam == {"lr": 0.002, "weight_decay": 0.0, "alpha": packaged["alpha"], "rho": packaged["rho"]}
    assert light == usual.arms[1].hyperparameters


@pytest.mark.skipif("muon" not in BASES, reason="torch has no Muon before 2.9")
@pytest.mark.parametrize("methods", [["muon"], ["sam"]])
def test_muon_says_what_it_takes_and_what_to_do(planned, methods):
    assert refusal("muon", (2, 2)) is None
    with pytest.raises(UserError, match=r"only supports 2D parameters .* another base the rest, .* FILE.py:FUNCTION"):
        planned(base="muon", methods=methods)
    with pytest.raises(UserError, match=r"refuses lr=-1.0") as caught:
        planned(base="muon", methods=methods, settings={methods[0]: {"lr": -1}})
    assert "another base the rest" not in str(caught.value)


def test_rows_are_called_by_their_names_alone(command, tiny, own, tmp_path):
    out = tmp_path / "out"
    rows = f"{own}:split,sam,{own}:twice"
    words = (
        "compare",
        "--tune",
        0,
        "--task",
        tiny,
        "--base",
        f"{own}:split",
        "--methods",
        rows,
        "--seeds",
        2,
        "--jobs",
        1,
    )
    code, text, error = command(*words, "--out", out)
    assert (code, error) == (0, "")
    assert "split, seed 1: test accuracy" in text
    found = json.loads((out / "results.json").read_text())
    assert {row["method"]: row["is_base"] for row in found["rows"]} == {"split": True, "sam": False, "twice": False}
    assert found["base"] == "split"
    names = {path.name.rsplit("-", 2)[0] for path in (out / "trials").iterdir()}
    assert names == {"split", "sam", "twice"}
    assert command("compare", "--config", out / "config.yaml", "--jobs", 1)[1].startswith("6 of 6 trials were finished")
    assert command(*found["command"].split()[1:], "--jobs", 1)[1].startswith("6 of 6 trials were finished")


def test_twice_the_radius_is_twice_the_radius(tiny, own, tmp_path):
    settings = {"wide": {"method": "sam", "rho": 0.1}}
    found = compare(
        tiny, base="sgd", methods=["wide", f"{own}:twice"], settings=settings, seeds=1, jobs=1, out=tmp_path / "o"
    )
    wide, twice = found.records
    assert twice.final == wide.final
    assert (twice.config.method, twice.config.row, twice.config.base) == ("own.py:twice", "twice", "sgd")


def top_level_base(parameters, lr: float = 0.25):
    return torch.optim.SGD(parameters, lr=lr)


def test_from_python_they_may_be_functions_and_classes(tiny, tmp_path):
    plan = comparison.plan(
        tiny, from_flags({"base": top_level_base, "methods": [top_level_base, "sam"]}, ""), tmp_path / "o"
    )
    assert plan.base == "top_level_base"
    assert [config.base for config in plan.trials()[:2]] == [None, "test_compare_bases.py:top_level_base"]
    assert plan.arms[1].hyperparameters == {"lr": 0.25, "rho": 0.05}
    named = comparison.plan(tiny, from_flags({"base": torch.optim.NAdam, "methods": ["sam"]}, ""), tmp_path / "o")
    assert named.trials()[0].base == "nadam"
    with pytest.raises(UserError, match="the method must be a name or a function or class at the top level of a file"):
        compare(tiny, methods=[lambda base: base], out=tmp_path / "o")


def test_a_base_may_have_a_name_of_its_own(tiny, own, tmp_path):
    path = tmp_path / "c.yaml"
    settings = {"mine": {"method": f"{own}:split", "lr": 0.5}}
    path.write_text(yaml.safe_dump({"base": "mine", "methods": "mine,sam", "settings": settings}))
    plan = comparison.plan(tiny, from_file(path), tmp_path / "out")
    assert (plan.base, plan.arms[0].hyperparameters["lr"]) == ("mine", 0.5)
    path.write_text(yaml.safe_dump(plan.options))
    assert comparison.plan(tiny, from_file(path), tmp_path / "out").trials() == plan.trials()


def test_a_sweep_of_an_own_method_over_an_own_base(tiny, own, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(own).parent)
    found = sweep(tiny, "own.py:twice", ["rho=0.01,0.1"], base="own.py:split", seeds=1, jobs=1, out=tmp_path / "out")
    assert found.plan.out == tmp_path / "out"
    assert (found.plan.arm.name, found.plan.base) == ("twice", "split")
    assert [point.state for point in found.points] == ["finished", "finished"]
    (one, *_) = found.plan.trials()
    assert one.method_digest == one.base_digest == find_file(f"{own}:twice", "method").digest


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": "own.py:fails"}, r"own.py:fails refuses rho=0.1: ValueError: .*rho.*-0.1.* \(own.py, line 16\)$"),
        ({"methods": "own.py:leaves"}, r"own.py:leaves refuses .*SystemExit: os._exit\(3\) \(own.py, line 20\)$"),
        ({"methods": "own.py:Steps"}, r"own.py:Steps refuses .*: KeyError: 'no such state' \(own.py, line 24\)$"),
        ({"methods": "own.py:nothing"}, r"own.py:nothing must return an optimizer, or a list of them, got int$"),
        ({"methods": "own.py:splid"}, r"own.py has no function or class 'splid'; did you mean 'split'"),
        ({"methods": "other.py:f"}, r"the method file 'other.py' does not exist; name an existing one as FILE.py:"),
        ({"base": "other.py:f"}, r"the base file 'other.py' does not exist"),
        ({"base": "own.py"}, r"the base 'own.py' names no function; write own.py:FUNCTION$"),
        ({"base": "own.py:twice"}, r"the base own.py:twice takes a base itself; name it as a method"),
        ({"methods": "own.py:sam"}, r".*own.py:sam would be called 'sam' as the method sam is; give it a NAME of its"),
        ({"methods": "own.py:größer"}, r"a row cannot be called 'größer', with which files are named; give it a NAME"),
        ({"methods": "own.py:twice,own.py:twice"}, r"the method 'twice' is listed twice"),
        (
            {"methods": "own.py:twice", "settings": {"twice": {"method": "sam"}}},
            r".*own.py:twice would be called 'twice' as sam is; .* settings: {NAME: {method: own.py:twice}}$",
        ),
    ],
)
def test_what_is_wrong_is_a_line(planned, own, monkeypatch, asked, message):
    monkeypatch.chdir(Path(own).parent)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        planned(**asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page(command, line, tmp_path, monkeypatch):
    if "muon" in line and "muon" not in BASES:
        pytest.skip("torch has no Muon before 2.9")
    monkeypatch.chdir(ROOT)
    words = line.replace("--seeds 3 --epochs 3", "--seeds 1 --epochs 1").split()
    code, _, error = command(*words, "--jobs", 1, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    rows = {row["method"] for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]}
    section = PAGE.partition(line)[2].partition("\n\n|")[2].partition("\n\n")[0]
    assert rows == {row.split("|")[1 if k else 0].strip() for k, row in enumerate(section.splitlines()) if k > 1}


def test_the_page_has_commands():
    assert len(COMMANDS) == 2


def loop(climb, rho, steps=3):
    """Train by hand: climb, take the gradient there, come back, and step with it."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    weights, base = list(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        before = [weight.detach().clone() for weight in weights]
        grads = torch.autograd.grad(model(x).square().mean(), weights)
        with torch.no_grad():
            for weight, move in zip(weights, climb(grads), strict=True):
                weight += rho * move
        grads = torch.autograd.grad(model(x).square().mean(), weights)
        with torch.no_grad():
            for weight, value, grad in zip(weights, before, grads, strict=True):
                weight.copy_(value)
                weight.grad = grad
        base.step()
    return weights


def trained(name, rho, steps=3):
    """The same with a method of the example."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    made = build(
        f"{ROOT}/examples/own_methods.py:{name}", "sgd", model.parameters(), {"lr": 0.1, "momentum": 0.9, "rho": rho}
    )

    def closure():
        made.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        made.step(closure)
    return list(model.parameters())


def unit(grads):
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    return [grad / norm for grad in grads]


def test_the_climb_by_signs_is_that_of_a_plain_loop():
    for ours, plain in zip(
        trained("LinfSAM", 0.125), loop(lambda grads: [g.sign() for g in grads], 0.125), strict=True
    ):
        assert torch.equal(ours, plain)


def test_the_mean_of_two_climbs_is_that_of_a_plain_loop():
    def climb(grads):
        return [(x + 0.01 * g.sign()) / 2 for x, g in zip(unit(grads), grads, strict=True)]

    torch.testing.assert_close(trained("MeanSAM", 0.5), loop(climb, 0.5), rtol=1e-5, atol=1e-6)


def test_the_climb_in_two_steps_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    weights, base = list(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [weight.detach().clone() for weight in weights]
    for _ in range(2):
        grads = torch.autograd.grad(model(x).square().mean(), weights)
        with torch.no_grad():
            for weight, move in zip(weights, unit(grads), strict=True):
                weight += 0.25 * move
    grads = torch.autograd.grad(model(x).square().mean(), weights)
    with torch.no_grad():
        for weight, value, grad in zip(weights, before, grads, strict=True):
            weight.copy_(value)
            weight.grad = grad
    base.step()
    torch.testing.assert_close(trained("TwoStepSAM", 0.5, steps=1), weights, rtol=1e-5, atol=1e-6)
