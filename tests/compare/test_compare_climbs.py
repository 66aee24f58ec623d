"""Hyper-parameters that say when to climb and on how much of the batch, and methods from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steppe.lab.comparing import comparison
from steppe.lab.errors import UserError
from steppe.lab.plans import options as config
from steppe.lab.tasks.task import Task
from steppe.lab.trials.finding import find, has_radius, is_wrapper
from steppe.lab.trials.optimizers import build, parameters_of
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial
from steppe.triggers import After, Always, Every, Randomly

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def trial(method="sam", **hyperparameters):
    task = Task(model=lambda: nn.Linear(3, 2), train=(X, Y), validation=(X + 1e-3, Y), test=(X - 1e-3, Y))
    asked = TrialConfig(
        task="t",
        method=method,
        base="sgd",
        seed=0,
        hyperparameters={"lr": 0.1, "rho": 0.1, **hyperparameters},
        epochs=2,
        batch_size=8,
        versions={},
    )
    return run_trial(asked, task)


def of(**hyperparameters):
    return build("sam", "sgd", nn.Linear(2, 1).parameters(), {"lr": 0.1, **hyperparameters})


@pytest.mark.parametrize(
    ("when", "trigger"),
    [
        ({}, Always()),
        ({"every": 5.0}, Every(5)),
        ({"every": 5.0, "stretched": True}, Every(5, stretched=True)),
        ({"after": 100.0, "every": 2.0}, Every(2) & After(100)),
        ({"probability": 0.5}, Always() & Randomly(0.5)),
    ],
)
def test_when_to_climb(when, trigger):
    opt = of(rho=0.2, **when)
    assert opt.trigger == trigger
    assert opt.param_groups[0]["rho"] == 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": 2.5}, r"sam: every must be a whole number of steps, got 2\.5"),
        ({"every": 0.0}, r"sam: k must be >= 1, got 0"),
        ({"after": True}, "sam: after must be a whole number of steps, got True"),
        ({"probability": 2.0}, r"sam: p must lie in \[0, 1\], got 2\.0"),
        ({"fraction": 0.0}, r"sam: fraction must lie in \(0, 1\], got 0"),
        ({"fraction": True}, r"sam: fraction must lie in \(0, 1\], got True"),
        ({"norm_layers": True}, "sam: norm_layers needs a rho, the radius of these layers"),
        ({"evry": 2.0}, "sam over sgd has no hyper-parameter 'evry'"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        of(**given)


@pytest.mark.parametrize("method", ["msam", "sgd", "amsgrad"])
def test_methods_without_a_clean_pass_have_no_fraction(method):
    given = {"lr": 0.1, "fraction": 0.5, **({"momentum": 0.9} if method != "amsgrad" else {})}
    with pytest.raises(UserError, match=f"{method} has no clean pass, so no fraction of the batch for it"):
        build(method, "sgd", nn.Linear(2, 1).parameters(), given)


def test_costs_are_counted():
    full, part, often = trial(), trial(fraction=0.25), trial(every=4.0)
    assert (full.gradient_evaluations, full.examples) == (16, 2 * 64)
    assert (part.gradient_evaluations, part.examples) == (16, 64 + 16)
    assert (often.gradient_evaluations, often.examples) == (10, 64 + 16)
    assert len({record.final.train_loss for record in (full, part, often)}) == 3


def test_a_fraction_is_the_climb_of_the_first_examples(monkeypatch):
    seen = []
    plain = nn.functional.cross_entropy

    def spy(outputs, targets):
        seen.append(targets)
        return plain(outputs, targets)

    task = Task(
        model=lambda: nn.Linear(3, 2),
        train=(X, Y),
        validation=(X + 1e-3, Y),
        test=(X - 1e-3, Y),
        loss=spy,
    )
    asked = TrialConfig(
        task="t", method="sam", base="sgd", seed=0, epochs=1, batch_size=8, versions={},
        hyperparameters={"lr": 0.1, "rho": 0.1, "fraction": 0.5},
    )  # fmt: skip
    run_trial(asked, task)
    clean, sharp = seen[0], seen[1]
    assert torch.equal(clean, sharp[:4])


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.seen = []
        self[1].register_forward_hook(self.note)

    def note(self, layer, inputs, output):
        if self.training:
            self.seen.append((len(output), layer.track_running_stats))


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.passes += 1
        return super().forward(x)


@pytest.mark.parametrize("hyperparameters", [{}, {"fraction": 0.25}, {"every": 2.0}])
def test_buffers_are_those_of_one_pass(hyperparameters):
    models = []
    task = Task(
        model=lambda: models.append(Counting()) or models[-1],
        train=(X, Y),
        validation=(X + 1e-3, Y),
        test=(X - 1e-3, Y),
    )
    run_trial(
        TrialConfig(
            task="t", method="sam", base="sgd", seed=0, epochs=2, batch_size=8, versions={},
            hyperparameters={"lr": 0.1, "rho": 0.1, **hyperparameters},
        ),
        task,
    )  # fmt: skip
    assert [model.passes.item() for model in models] == [2 * math.ceil(len(X) / 8)]


@pytest.mark.parametrize(
    ("hyperparameters", "seen"),
    [
        ({}, [(8, True), (8, False)]),
        ({"fraction": 0.25}, [(2, False), (8, True)]),
        ({"every": 2.0}, [(8, True), (8, False), (8, True), (8, True), (8, False)]),
        ({"every": 2.0, "fraction": 0.25}, [(2, False), (8, True), (8, True), (2, False), (8, True)]),
    ],
)
def test_norm_statistics_are_those_of_one_pass_over_the_whole_batch(hyperparameters, seen):
    models = []
    task = Task(
        model=lambda: models.append(Normed()) or models[-1],
        train=(X, Y),
        validation=(X + 1e-3, Y),
        test=(X - 1e-3, Y),
    )
    run_trial(
        TrialConfig(
            task="t", method="sam", base="sgd", seed=0, epochs=1, batch_size=8, versions={},
            hyperparameters={"lr": 0.1, "rho": 0.1, **hyperparameters},
        ),
        task,
    )  # fmt: skip
    assert models[0].seen[: len(seen)] == seen
    assert models[0][1].num_batches_tracked == 4


def test_norm_layers_alone_may_climb():
    model = Normed()
    given = {"lr": 0.1, "rho": 0.3, "norm_layers": True}
    opt = build("sam", "sgd", parameters_of(model, given), given)
    assert [(len(group["params"]), group["rho"]) for group in opt.param_groups] == [(2, 0.3), (4, 0.0)]
    assert opt.param_groups[0]["params"][0] is model[1].weight
    given = {**given, "norm_layers": False}
    opt = build("adasam", "", parameters_of(model, given), given)
    assert [(len(group["params"]), group["rho"]) for group in opt.param_groups] == [(6, 0.3)]
    with pytest.raises(UserError, match="norm_layers: Linear has no normalization layer with parameters"):
        parameters_of(nn.Linear(2, 1), {"rho": 0.3, "norm_layers": True})


def test_methods_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import steppe\n\ndef twice(base, *, rho):\n    return steppe.SAM(base, rho=2 * rho)\n"
    )
    assert is_wrapper("mine:twice")
    assert has_radius("mine:twice")
    assert trial("mine:twice").final == trial(rho=0.2).final
    settings = {"twice": {"method": "mine:twice", "rho": 0.1}}
    plan = comparison.plan("mnist1d", config.from_flags({"settings": settings, "methods": "twice"}), tmp_path / "out")
    (arm,) = plan.arms
    assert (arm.name, arm.method) == ("twice", "mine:twice")
    assert arm.hyperparameters["rho"] == 0.1
    assert arm.hyperparameters["lr"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:sam", "the method 'nowhere:sam' cannot be imported: No module named 'nowhere'"),
        ("steppe:nothing", "the method 'steppe:nothing' cannot be imported: .*'nothing'"),
        (":sam", "the method ':sam' cannot be imported: Empty module name"),
        ("samm", "unknown method 'samm'; did you mean 'sam'.*, or your own as FILE.py:NAME or MODULE:NAME"),
    ],
)
def test_methods_that_are_not_there(name, message):
    with pytest.raises(UserError, match=message):
        find(name)
    with pytest.raises(UserError, match=f"settings.mine.method: {message}"):
        config.from_flags({"settings": {"mine": {"method": name}}}, prefix="")
