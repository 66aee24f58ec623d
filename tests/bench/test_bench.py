"""`steppe bench`: grids, choice, shares, the table, and the other packages."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from problems import Problem
from steppe import SAM, cli
from steppe.lab.bench import memory, peers, report, tasks, timing, tuning
from steppe.lab.bench.entries import BENCHES, ENTRIES, PEERS, Bench, Entry, entries
from steppe.lab.bench.run import rows
from steppe.lab.crew.runner import Silence
from steppe.lab.errors import RunError
from steppe.lab.plans.workers import Workers
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.optimizers import build, check_hyperparameters
from steppe.triggers import After

# What everybody may choose from


@pytest.mark.parametrize("bench", BENCHES.values(), ids=BENCHES)
def test_everybody_chooses_out_of_nine(bench):
    for name, entry in entries(bench).items():
        settings = entry.settings(bench)
        assert len({tuple(sorted(setting.items())) for setting in settings}) == 9
        for setting in settings:
            check_hyperparameters(entry.method, bench.base, setting)
        assert {setting["lr"] for setting in settings} == set(bench.lr), name


def test_shares_of_a_training_are_steps():
    late, bench = ENTRIES["sam-late"], BENCHES["mnist1d"]
    assert {setting["after"] for setting in late.settings(bench)} == {1200.0}
    assert {setting["after"] for setting in late.settings(bench, epochs=2)} == {60.0}


def test_rows_are_always_with_base_and_sam():
    bench = BENCHES["mnist1d"]
    assert list(rows(bench, "msam, looksam")) == ["adamw", "sam", "msam", "looksam"]
    plain = [name for name in ENTRIES if name != "sam-norm-layers"]
    assert list(rows(bench, None)) == ["adamw", *plain, *PEERS]
    assert list(rows(BENCHES["digits-noise-norm"], None)) == ["sgd", *ENTRIES, *PEERS]


def test_only_models_with_normalization_layers_have_a_row_for_them():
    for name, bench in BENCHES.items():
        if name != "news":  # whose encoder is no package of this one's
            model = find_task(bench.task).load().model()
            assert bench.normed == any("Norm" in type(module).__name__ for module in model.modules())


# Tuning

TINY = """
import torch
from torch import nn
from steppe.lab import Task

x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

def tiny():
    return Task(model=lambda: nn.Linear(3, 2), train=(x, y), validation=(x + 1e-3, y), test=(x - 1e-3, y), batch_size=8, epochs=1)

def hopeless():
    return Task(
        model=lambda: nn.Linear(3, 2), train=(x, y), validation=(x + 1e-3, y), test=(x - 1e-3, y), batch_size=8, epochs=1,
        loss=lambda outputs, targets: 1e30 * outputs.square().sum(),
    )
"""


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return Bench(
        title="tiny",
        task=f"{file}:tiny",
        base="sgd",
        epochs=2,
        steps=3,
        lr=(1e-6, 0.5, 1e6),
        fixed={"momentum": 0.9},
        decays=(0.0, 1e-4, 1e-3),
        rho=(0.01, 0.02, 0.05),
        adaptive=(0.1, 0.2, 0.5),
    )


@pytest.fixture
def short(monkeypatch):
    """Steps are timed over a few of them."""
    monkeypatch.setattr(timing, "UPDATES", 12)


def test_the_best_setting_is_chosen_on_validation_data_and_compared_on_test_data(tiny, tmp_path, short):
    asked = {name: entry for name, entry in entries(tiny).items() if name in ("sgd", "sam", "sam-part-25")}
    tuned = tuning.tune(tiny, asked, 2, tmp_path / "tuning", Workers(1), Silence())
    tried = [json.loads(path.read_text()) for path in (tmp_path / "tuning" / "trials").iterdir()]
    assert len(tried) == 3 * 9 * 2
    assert {record["config"]["seed"] for record in tried} == {1000, 1001}
    assert {record["config"]["epochs"] for record in tried} == {2}
    assert all(record["final"] is None or record["final"]["test_metric"] is None for record in tried)
    for name, choice in tuned.items():
        scores = {}
        for record in tried:
            if record["config"]["arm"].partition("@")[0] == name and record["final"]:
                scores.setdefault(record["config"]["arm"], []).append(record["final"]["validation_metric"])
        assert choice.score == max(fmean(values) for values in scores.values() if len(values) == 2)
        assert ("lr" in choice.edges) == (choice.setting["lr"] != 0.5)
    found = tuning.compare(tiny, tuned, 3, tmp_path / "out", Workers(1), Silence())
    times = timing.over_the_base(tiny, asked, found, tmp_path)
    assert {name: len(of) for name, of in times.items()} == dict.fromkeys(asked, timing.ROUNDS)
    assert timing.over_the_base(tiny, asked, found, tmp_path) == times  # as they were kept
    others = {name: asked[name] for name in ("sgd", "sam")}
    assert list(timing.over_the_base(tiny, others, found, tmp_path)) == ["sgd", "sam"]
    made = report.lines(found, tuned, times, memory.beyond_the_base(tiny, asked, found))
    assert [line.name for line in made] == ["sgd", "sam", "sam-part-25"]
    assert [round(line.gradients, 2) for line in made] == [1.0, 2.0, 1.25]
    assert made[0].time == (1.0, 1.0, 1.0)
    assert made[1].metric[2] == 3
    assert made[0].memory == 0.0
    assert all(1.0 <= line.memory < 1.5 for line in made[1:])  # and a number or two
    assert made[0].gain is None
    assert "| sam-part-25 |" in report.markdown(tiny, found, made, 2)


def test_the_summary_has_gains_side_by_side_and_the_highest_price():
    def line(name, gain, share, gradients):
        share = None if share is None else report.Share(share, 0.0, 2.0)
        return report.Line(name, {}, (), (70.0, 0.5, 10), gain, share, gradients, (gradients, 1.0, 3.0), 1.0)

    better, worse = (2.5, 1.0, 4.0, True), (-0.3, -1.0, 0.4, False)
    base = line("adamw", None, None, 1.0)
    found = {
        "one": [base, line("sam", better, 1.0, 2.0), line("msam", better, 0.5, 1.0), line("late", worse, 0.1, 1.1)],
        "two": [base, line("sam", worse, None, 2.0), line("msam", worse, None, 1.01)],
    }
    text = report.summary(found)
    assert "| method | one | two | gradients | time | memory |" in text
    assert "| msam | +2.50* (50 %) | -0.30 | 1.01 | 1.01 | +1.0 |" in text
    assert "| late | -0.30 (10 %) |  | 1.10 | 1.10 | +1.0 |" in text  # which is not on every task
    assert "| adamw" not in text


# Shares


def test_a_share_is_the_ratio_of_the_mean_gains():
    found = report.fieller([10.0, 11.0, 12.0], [20.0, 22.0, 24.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert report.fieller([1.0, 2.0], [1.0, 2.0]) is None
    assert report.fieller([1.0, 2.0, 3.0], [-1.0, 0.0, 1.5]) is None  # it may be divided by zero


def test_nineteen_of_twenty_intervals_hold_the_truth():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        common = [draw.gauss(0, 0.5) for _ in range(10)]
        sam = [4 + c + draw.gauss(0, 1) for c in common]
        other = [3 + c + draw.gauss(0, 1) for c in common]
        found = report.fieller(other, sam)
        held += found.low <= 0.75 <= found.high
    assert 0.935 < held / 2000 < 0.965


# Tasks


def test_labels_of_the_noisy_digits():
    clean, noisy = tasks.digits(), tasks.digits_noise()
    wrong = (clean.train[1] != noisy.train[1]).double().mean()
    assert 0.33 < wrong < 0.39  # 40 % are drawn anew, a tenth of them right
    assert torch.equal(clean.train[0], noisy.train[0])
    for split in ("validation", "test"):
        assert torch.equal(getattr(clean, split)[1], getattr(noisy, split)[1])


def test_news_are_few_and_every_class_is_in_every_part():
    task = tasks.news()
    assert [len(split[0]) for split in (task.train, task.validation, task.test)] == [200, 200, 500]
    texts = [set(map(tuple, split[0].tolist())) for split in (task.train, task.validation, task.test)]
    assert len(texts[0]) == 40
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    assert [split[1].bincount().tolist() for split in (task.train, task.test)] == [[40] * 5, [100] * 5]
    model = task.model().eval()
    short = task.test[0][:2]
    with torch.no_grad():
        longer = torch.cat([short, torch.zeros(2, 7, dtype=torch.long)], dim=1)
        torch.testing.assert_close(model(longer), model(short))  # padding is not read


# Other packages


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("pytorch_optimizer_sam", {}),
        ("temperon", {"trigger": After(4)}),
    ],
)
def test_their_steps_are_ours(name, ours):
    more = {"steps": 6, "tail": 1 / 3} if name == "temperon" else {}
    problems = [Problem(torch.float32), Problem(torch.float32)]
    opts = [
        build(
            f"steppe.lab.bench.peers:{name}", "sgd", problems[0].model.parameters(), {"lr": 0.1, "rho": 0.05, **more}
        ),
        SAM(torch.optim.SGD(problems[1].model.parameters(), lr=0.1), rho=0.05, **ours),
    ]
    for batch in problems[0].batches(6):
        losses = [opt.step(problem.closure(opt, batch)).item() for opt, problem in zip(opts, problems, strict=True)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(problems[0].flat(), problems[1].flat(), rtol=0, atol=1e-6)
    assert len(peers.installed()) == 3


@pytest.mark.parametrize(
    ("entry", "base"), [(PEERS["pytorch-optimizer-LookSAM"], "adamw"), (PEERS["pytorch-optimizer-SAM"], "adamw")]
)
def test_their_learning_rates_are_scheduled(entry, base):
    problem = Problem(torch.float32)
    setting = {"lr": 0.1, "rho": 0.05, **entry.more}
    opt = build(entry.method, base, problem.model.parameters(), setting)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))
    for group in opt.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = problem.flat()
    opt.step(problem.closure(opt, batch))
    assert torch.equal(problem.flat(), before)


# The command


def test_the_command(tmp_path, short):
    words = ["bench", "--task", "mnist1d", "--methods", "sam", "--seeds", "3", "--tuning-seeds", "1", "--epochs", "1"]
    page = tmp_path / "page.md"
    assert cli.main([*words, "--jobs", "2", "--out", str(tmp_path / "out"), "--page", str(page)]) == 0
    text = page.read_text()
    assert "## Mnist1d, MLP" in text
    assert "| sam |" in text
    assert "steppe bench --seeds 3 --tuning-seeds 1 --epochs 1 --task mnist1d --methods sam" in text
    assert len(json.loads((tmp_path / "out" / "mnist1d" / "bench.json").read_text())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "mnist"], "unknown task 'mnist'; did you mean 'mnist1d'"),
        (["--methods", "msan"], "unknown method 'msan'; did you mean 'msam'"),
    ],
)
def test_wrong_names_are_one_line(capsys, words, message):
    assert cli.main(["bench", *words]) == 2
    assert capsys.readouterr().err.startswith(f"steppe: {message}")


def test_a_row_of_which_every_setting_diverges_is_an_error(tiny, tmp_path):
    hopeless = replace(tiny, task=tiny.task.replace(":tiny", ":hopeless"))
    with pytest.raises(RunError, match=r"every setting of sgd diverged on tiny\.py:hopeless"):
        tuning.tune(hopeless, {"sgd": Entry("sgd", None)}, 1, tmp_path, Workers(1), Silence())
