"""Rows of the table that are not named like their method."""

from __future__ import annotations

import json

import pytest
import yaml

from steppe.lab import UserError, compare
from steppe.lab.comparing import comparison
from steppe.lab.plans import options as config
from steppe.lab.plans.arms import Arm, each
from steppe.lab.plans.options import Options, from_file, from_flags
from steppe.methods import METHODS

ARMS = """
base: sgd
methods: [sgd, sam, sam+B]
schedules:
  lr: {kind: linear, final: 1e-1}
  rho: {kind: proportional}
settings:
  sam:
    updates: 5
  sam+B:
    method: sam
    rho: 0.1
    schedules:
      batch_size: {kind: multiply, start: 4, factor: 2, every: 1, cap: 16, micro: 3}
      lr: constant
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def planned(tiny, tmp_path):
    def plan(**asked):
        return comparison.plan(tiny, from_flags(asked, prefix=""), tmp_path / "out")

    return plan


def test_an_arm_from_yaml(command, tiny, tmp_path, written):
    out = tmp_path / "out"
    words = ("compare", "--tune", 0, "--task", tiny, "--config", written(ARMS), "--seeds", 3, "--jobs", 1, "--out", out)
    code, text, error = command(*words)
    assert (code, error) == (0, "")
    assert "sam+B, seed 2: test accuracy" in text
    assert "base sgd, 3 epochs or 5 updates, n=3" in text
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["is_base"] for row in rows] == [True, False, False]
    assert {row["method"]: row["updates"] for row in rows} == {"sgd": 9, "sam": 5, "sam+B": 5 + 3 + 2}
    assert {row["method"]: row["examples"] for row in rows} == {"sgd": 60, "sam": 72, "sam+B": 120}
    found = sorted(path.name for path in (out / "trials").iterdir())
    assert [name.rsplit("-", 1)[0] for name in found] == [
        f"{row}-{n}" for row in ("sam+B", "sam", "sgd") for n in "012"
    ]
    assert command(*words)[1].startswith("9 of 9 trials were finished in an earlier run")


def test_the_written_config_reproduces_the_comparison(tiny, tmp_path, written):
    first = comparison.plan(tiny, from_file(written(ARMS)), tmp_path / "out")
    assert first.command.endswith(f"--out {tmp_path / 'out'} --config {tmp_path / 'out/config.yaml'}")
    text = yaml.safe_dump({**first.options, "keep_weights": True, "measure": False})
    again = comparison.plan(tiny, from_file(written(text)), tmp_path / "out")
    assert again.trials() == first.trials()
    assert again.arms == first.arms
    assert again.keep_weights
    assert " --keep-weights --config" in again.command
    assert again.options == {**first.options, "keep_weights": True}


def test_an_arm_from_python(tiny, tmp_path):
    found = compare(
        tiny,
        base="sgd",
        methods=["sgd", "still"],
        seeds=1,
        jobs=1,
        out=tmp_path / "o",
        settings={"still": {"method": "sam", "rho": 0}},
        schedules={"lr": "constant"},
        updates=4,
    )
    sgd, still = found.rows
    assert (still.method, still.is_base, sgd.is_base) == ("still", False, True)
    assert sgd.test == still.test  # rho = 0 is the base
    assert {record.config.method for record in found.records} == {"sgd", "sam"}
    assert {record.updates for record in found.records} == {4}
    assert "At equal updates still takes as many gradient evaluations as sgd" in found.verdict[-2]


def test_an_arm_has_the_packaged_hyperparameters_of_its_method(planned):
    plan = planned(base="sgd", methods=["gsam", "g"], settings={"g": {"method": "gsam", "alpha": 0.1}})
    default, own = plan.arms
    assert own.hyperparameters == {**default.hyperparameters, "alpha": 0.1}
    first, second = plan.trials()[:2]
    assert (first.arm, first.row, first.label) == (None, "gsam", "gsam, seed 0")
    assert (second.arm, second.row, second.label, second.base) == ("g", "g", "g, seed 0", "sgd")
    assert first.key != second.key


def test_arms_are_compared_without_being_listed(planned):
    plan = planned(settings={"sam2": {"method": "sam"}, "sam": {"method": "sam", "rho": 0.3}})
    assert plan.names == ["adamw", *METHODS, "sam2"]
    assert plan.arms[1].hyperparameters["rho"] == 0.3


def test_schedules_and_updates_of_an_arm_win_kind_by_kind(planned):
    plan = planned(
        methods=["sgd", "sam", "other", "free"],
        schedules={"lr": "linear", "rho": "linear", "batch_size": {"kind": "constant", "size": 4}},
        updates=6,
        settings={
            "other": {"method": "sam", "schedules": {"rho": "cosine"}, "updates": 7},
            "free": {"method": "sam", "schedules": {"batch_size": None}, "updates": None},
        },
    )
    kinds = {arm.name: (arm.schedules.lr.kind, arm.schedules.rho.kind) for arm in plan.arms}
    assert kinds["sgd"] == ("linear", "constant")  # it has no radius
    assert kinds["sam"] == ("linear", "linear")
    assert kinds["other"] == ("linear", "cosine")
    assert {arm.name: arm.updates for arm in plan.arms} == {"sgd": 6, "sam": 6, "other": 7, "free": None}
    assert [arm.name for arm in plan.arms if arm.schedules.batch_size is None] == ["free"]
    assert plan.length == "6 updates or 7 updates or 3 epochs"


def test_what_is_said_of_arms():
    arms = [Arm(name, "sam", {}) for name in ("a", "b", "c")]
    assert each(arms, {"a": "16", "b": "16", "c": "16"}) == "16"
    assert each(arms, {"a": "16", "b": "8", "c": "16"}) == "16 (a, c); 8 (b)"


@pytest.mark.parametrize("name", ["sam B", "", "a" * 41, "sam/B", "größer", "sam,B"])
def test_names_that_cannot_be_part_of_a_file_name(name, written):
    with pytest.raises(UserError, match=r"^settings\..*the name of an arm must be 1 to 40 letters, digits and -\+_\.@"):
        from_flags({"settings": {name: {"method": "sam"}}}, prefix="")
    with pytest.raises(UserError, match=r"c.yaml:4: settings\..*: the name of an arm must be"):
        from_file(written(yaml.safe_dump({"base": "sgd", "jobs": 1, "settings": {name: {"method": "sam"}}})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "settings:\n  sam+B:\n    method: smm\n",
            ":3: settings.sam+B.method: unknown method 'smm'; did you mean 'sam'? known: adamw, sgd, sam",
        ),
        (
            "settings:\n  sam: {rho: 0.1}\n  gsam:\n    method: sam\n",
            ":3: settings.gsam: is a method itself and cannot be sam; give the arm another name",
        ),
        ("settings:\n  a:\n    method: 3\n", ":3: settings.a.method: must be a valid string, got 3"),
        (
            "settings:\n  a:\n    method: sam\n    updates: 0\n",
            ":4: settings.a.updates: must be greater than or equal to 1, got 0",
        ),
        ("settings:\n  a:\n    schedules: 3\n", ":3: settings.a.schedules: must be a valid dictionary, got 3"),
        (
            "settings:\n  a:\n    schedules:\n      rate: cosine\n",
            ":4: settings.a.schedules.rate: unknown field 'rate'; known: lr, batch_size, rho",
        ),
        ("updates: 1.5\n", ":1: updates: must be a valid integer, got 1.5"),
        ("keep_weights: 3\n", ":1: keep_weights: must be a valid boolean, got 3"),
        ("measure: 'on'\n", ":1: measure: must be a valid boolean, got 'on'"),
        (
            "schedules:\n  lr: cosin\n",
            ":2: schedules.lr: unknown kind 'cosin'; did you mean 'cosine'? known: constant,",
        ),
        ("schedules:\n  lr: {final: 0.1}\n", ":2: schedules.lr: needs a value for 'kind', got {'final': 0.1}"),
        ("schedules:\n  lr: 0.1\n", ":2: schedules.lr: must be a valid dictionary, got 0.1"),
        (
            "schedules:\n  lr:\n    kind: cosine\n    finale: 0.1\n",
            ":4: schedules.lr.finale: unknown field 'finale'; did you mean 'final'? known: kind, warmup, final",
        ),
        (
            "schedules:\n  lr:\n    kind: constant\n    final: 0.1\n",
            ":4: schedules.lr.final: unknown field 'final'; known: kind, warmup",
        ),
        (
            "schedules:\n  lr:\n    kind: linear\n    final: 1.5\n",
            ":4: schedules.lr.final: must be less than or equal to 1, got 1.5",
        ),
        (
            "schedules:\n  lr:\n    kind: linear\n    final: low\n",
            ":4: schedules.lr.final: must be a valid number, got 'low'",
        ),
        (
            "schedules:\n  lr:\n    kind: polynomial\n    power: 0\n",
            ":4: schedules.lr.power: must be greater than 0, got 0",
        ),
        (
            "schedules:\n  lr:\n    kind: cosine\n    warmup: -1\n",
            ":4: schedules.lr.warmup: must be greater than or equal to 0, got -1",
        ),
        ("schedules: {lr: proportional}\n", ":1: schedules.lr: unknown kind 'proportional'; known: constant, cosine"),
        (
            "schedules: {rho: {kind: proportional, min: -1}}\n",
            ":1: schedules.rho.min: must be greater than or equal to 0, got -1",
        ),
        (
            "schedules:\n  batch_size:\n    kind: multiply\n    start: 16\n    factor: 2\n",
            ":2: schedules.batch_size: needs a value for 'every'",
        ),
        (
            "schedules:\n  batch_size:\n    kind: constant\n    size: 0\n",
            ":4: schedules.batch_size.size: must be greater than or equal to 1, got 0",
        ),
        (
            "schedules:\n  batch_size:\n    kind: constant\n    size: 2\n    per: batch\n",
            ":5: schedules.batch_size.per: must be 'epoch' or 'update', got 'batch'",
        ),
        ("schedules:\n  batch_size: 16\n", ":2: schedules.batch_size: must be a valid dictionary, got 16"),
    ],
)
def test_bad_yaml_is_one_line_with_field_and_line(command, written, text, message):
    path = written(text)
    code, out, error = command("compare", "--config", path)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {path}{message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"settings": {"smm": {}}},
            r"settings: unknown method 'smm'; did you mean 'sam'.*; or say 'method: NAME' to make it an arm of your own$",
        ),
        (
            {"methods": ["sgd", "sam+C"], "settings": {"sam+B": {"method": "sam"}}},
            r"unknown method 'sam\+C'; did you mean 'sam\+B'.* known: adamw, .*, sam\+B, or your own as FILE.py:NAME or MODULE:NAME$",
        ),
        ({"methods": ["a", "a"], "settings": {"a": {"method": "sam"}}}, "the method 'a' is listed twice; list"),
        ({"settings": {"a": {"method": "sam", "roh": 1}}}, "a: sam over adamw has no hyper-parameter 'roh'"),
        (
            {"settings": {"a": {"method": "sgd", "schedules": {"rho": "cosine"}}}},
            "a: sgd has no rho to schedule; remove the rho schedule from its settings$",
        ),
        (
            {"methods": ["sam"], "settings": {"sam": {"schedules": {"rho": {"kind": "proportional", "min": 9}}}}},
            "sam: the rho schedule has min 9, above the method's own rho 0.05; make it smaller$",
        ),
        (
            {"methods": ["sgd"], "schedules": {"lr": {"kind": "cosine", "warmup": 9}}},
            "sgd: the warm-up of the lr schedule takes 9 updates, but a trial has 9; make it shorter$",
        ),
        (
            {"methods": ["sam"], "updates": 4, "schedules": {"rho": {"kind": "constant", "warmup": 5}}},
            "sam: the warm-up of the rho schedule takes 5 updates, but a trial has 4; make it shorter$",
        ),
        (
            {
                "methods": ["sgd"],
                "updates": 5,
                "schedules": {
                    "batch_size": {"kind": "multiply", "start": 16, "factor": 2, "every": 1, "drop_last": True}
                },
            },
            "sgd: the batch sizes do not fit 20 training examples: Epoch 1 has no batch: its batch size 32 is larger",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(planned, asked, message):
    with pytest.raises(UserError, match=f"^{message}"):
        planned(**asked)


def test_values_from_python_are_named_like_fields():
    with pytest.raises(UserError, match=r"^schedules.lr.final: must be less than or equal to 1, got 2$"):
        config.from_flags({"schedules": {"lr": {"kind": "cosine", "final": 2}}}, prefix="")
    assert Options().schedules == from_flags({"schedules": {"lr": "cosine"}}).schedules
