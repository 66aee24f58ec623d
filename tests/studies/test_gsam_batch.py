"""The growing-batch study: its columns, its claims, its report, and the real command."""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from steppe import cli
from steppe.lab import UserError
from steppe.lab.judge.comparison import Comparison
from steppe.lab.judge.differences import holm
from steppe.lab.plans import options as config
from steppe.lab.plans.arms import Arm, find_arms
from steppe.lab.plans.workers import Workers
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials import optimizers
from steppe.lab.trials.feeds import epochs, total_updates
from steppe.lab.trials.host import Host
from steppe.lab.trials.records import Curve, Diverged, Final, Record, TrialConfig
from steppe.lab.trials.schedules import attach
from steppe.lab.trials.trial import run_trial
from steppe.measure.worst import M_APGD_LINF
from steppe.studies.gsam_batch import design, report, run
from steppe.studies.gsam_batch.claims import SHARPNESS, Claim, claims, judge
from steppe.studies.gsam_batch.design import AT_EQUAL_UPDATES, COLUMNS, PRESETS, Preset
from steppe.studies.verdicts import verdict as verdict_of

EXAMPLES = {"smoke": 4000, "small": 4000, "paper": 49_920}  # of 50,000, 80 are set aside
GROWN = [f"{name}+B" for name in ("sgd", "sam", "gsam")]
AT_UPDATES = [name + "@updates" for name in GROWN]
ALL = [*COLUMNS, *AT_UPDATES]
TINY = Preset(tasks=("tiny",), epochs=2, batches=(4, 8), fixed=8, seeds=2)

TASK = """
import torch
from torch import nn
from steppe.lab import Task

def tiny():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    return Task(lambda: nn.Linear(4, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y))
"""


# The table of the paper: test error (%) / sharpness

PUBLISHED_COLUMNS = ("sgd", "sam", "gsam", "sgd+B", "sam+B", "gsam+B", "sgd+C", "sam+C", "gsam+C")
PUBLISHED = """
7.17/106.46 6.34/51.82 6.21/48.39 6.39/8.73 6.03/4.27 6.06/4.08 6.63/141.37 6.08/88.53 6.20/89.30
7.04/1124.45 6.13/546.93 5.98/543.27 5.53/48.25 5.10/38.79 5.05/40.28 6.67/1467.67 5.87/771.79 5.92/794.45
26.61/154.27 26.39/46.23 26.61/47.55 25.58/1.33 25.10/0.94 25.18/0.90 26.63/155.88 25.87/72.70 26.12/71.86
25.62/1113.26 24.78/456.17 24.94/435.17 22.65/22.72 21.10/10.99 21.50/12.37 25.57/1148.09 24.16/687.44 24.00/665.13
39.62/279.07 40.28/97.52 40.13/97.23 39.36/13.33 38.40/10.65 38.25/10.31 39.84/333.73 39.07/183.59 39.05/192.29
38.75/2550.16 38.60/917.93 38.92/926.94 36.55/176.80 35.36/128.35 35.14/119.84 39.30/3066.71 37.86/1657.00 37.78/1803.57
32.23/492.12 30.62/268.60 30.63/297.82 29.19/55.31 29.06/41.83 29.23/38.13 30.58/1504.53 29.96/853.04 29.72/670.51
"""
ERRORS, SHARPNESSES = (
    [dict(zip(PUBLISHED_COLUMNS, (float(cell.split("/")[k]) for cell in line.split()), strict=True)) for line in PUBLISHED.split("\n")[1:-1]]
    for k in (0, 1)
)  # fmt: skip


def test_what_is_said_to_be_published_is_in_the_papers_table():
    assert PUBLISHED_COLUMNS == COLUMNS
    assert len(ERRORS) == len(SHARPNESSES) == 7
    for claim in claims():
        table = ERRORS if claim.quantity == "error" else SHARPNESSES
        factors = [row[more] / row[less] for row in table for less, more in claim.pairs]
        held, asked = sum(factor > 1 for factor in factors), len(factors)
        expected = f"in {held} of {asked} pairs"
        if claim.text == "a cosine learning rate (+C) ends flatter":
            expected = f"sharper in {asked - held} of {asked} pairs"
        assert expected in claim.published, claim.text
    flatter = [row[name] / row[f"{name}+B"] for row in SHARPNESSES for name in ("sgd", "sam", "gsam")]
    assert f"by {min(flatter):.1f} to {max(flatter):.0f} times" in claims()[1].published
    assert {claim.published for claim in claims("@updates")} == {"not measured"}


# The columns


def arms(preset: str) -> dict[str, Arm]:
    settings = PRESETS[preset].settings(EXAMPLES[preset])
    options = config.from_flags({"base": "sgd", "methods": list(settings), "settings": settings})
    return {arm.name: arm for arm in find_arms("mnist1d-conv", "sgd", options)}


def test_the_setting_of_the_paper():
    paper = PRESETS["paper"]
    assert (paper.lr, paper.rho, paper.alpha, paper.epochs) == (0.1, 0.05, 0.02, 200)
    assert (paper.batches, paper.fixed) == ((16, 32, 64, 128, 256), 128)
    assert paper.tasks == ("cifar100-resnet18", "cifar100-wrn-28-10")
    assert (M_APGD_LINF["rho"], M_APGD_LINF["norm"], M_APGD_LINF["adaptive"]) == (2e-4, "linf", False)
    assert SHARPNESS == "worst-case linf"
    assert replace(PRESETS["small"], tasks=paper.tasks, seeds=paper.seeds) == paper  # the same design, smaller


@pytest.mark.parametrize("preset", PRESETS)
def test_every_column_has_the_hyper_parameters_of_its_optimizer(preset):
    made = arms(preset)
    assert list(made) == ALL
    for name, arm in made.items():
        assert arm.method == name.split("+")[0]
        expected = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
        if arm.method != "sgd":
            expected["rho"] = 0.05
        if arm.method == "gsam":
            expected["alpha"] = 0.02
        assert {key: value for key, value in arm.hyperparameters.items() if value or key in expected} == expected
        assert arm.schedules.rho.kind == "constant"
        assert arm.schedules.batch_size.drop_last


@pytest.mark.parametrize("preset", PRESETS)
def test_batch_sizes_and_numbers_of_updates(preset):
    made, chosen, n = arms(preset), PRESETS[preset], EXAMPLES[preset]
    stage = chosen.epochs // 5
    fixed = chosen.epochs * (n // 128)
    assert chosen.updates(n) == fixed
    grown = sum(stage * (n // b) for b in (16, 32, 64, 128, 256))
    for name, arm in made.items():
        sizes = arm.schedules.batch_size
        total = total_updates(sizes, arm.updates, chosen.epochs, 100, SimpleNamespace(train=range(n)))
        assert total == (grown if name in GROWN else fixed)
        if name in GROWN:
            size_at = sizes.sampler(n).schedule
            assert [size_at(epoch) for epoch in range(chosen.epochs)] == [16 * 2 ** (e // stage) for e in range(chosen.epochs)]  # fmt: skip
            assert sizes.per == "epoch"
        elif name in AT_UPDATES:
            size_at = sizes.sampler(n).schedule
            assert [size_at(update) for update in range(total)] == [16 * 2 ** (u * 5 // total) for u in range(total)]
            assert (sizes.per, arm.updates) == ("update", fixed)
        else:
            assert (sizes.kind, sizes.size, arm.updates) == ("constant", 128, None)


@pytest.mark.parametrize("name", ALL)
def test_the_batches_of_a_column_are_full(name):
    arm, x = arms("smoke")[name], torch.arange(4000)
    seen = epochs(SimpleNamespace(train=(x, x), collate=None, drop_last=False), 100, arm.schedules.batch_size, seed=0)
    total = total_updates(arm.schedules.batch_size, arm.updates, 5, 100, SimpleNamespace(train=range(4000)))
    sizes = [len(batch) for epoch in islice(seen, 5 if arm.updates is None else 9) for batch, _ in epoch][:total]
    assert set(sizes) == ({16, 32, 64, 128, 256} if "+B" in name else {128})
    assert sizes == sorted(sizes)
    if name in AT_UPDATES:
        assert [sizes.count(b) for b in (16, 32, 64, 128, 256)] == [31] * 5


@pytest.mark.parametrize("name", ALL)
def test_the_learning_rate_of_a_column(name):
    arm, total = arms("smoke")[name], 50
    weight = nn.Parameter(torch.ones(1))
    optimizer = optimizers.build(arm.method, "sgd", [weight], arm.hyperparameters)
    schedules, rates, radii = attach(arm.schedules, optimizer, total), [], []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for _ in range(total):
        optimizer.step(closure)
        for schedule in schedules:
            schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
        radii.append(optimizer.param_groups[0].get("rho"))
    if name.endswith("+C"):
        expected = [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * t / total)) / 2) for t in range(1, total + 1)]
        assert rates == pytest.approx(expected)
        assert rates[-1] == pytest.approx(0.001)
    else:
        assert set(rates) == {0.1}
    assert set(radii) == ({None} if arm.method == "sgd" else {0.05})


def test_a_trial_makes_exactly_the_updates_of_its_plan(study):
    plan = study.plan(workers=Workers(host=Host()))
    for trial in plan.trials()[: len(ALL)]:
        made = run_trial(trial, plan.source.load())
        assert made.updates == (12 if trial.row in GROWN else 8), trial.row  # 8 + 4 at equal epochs, else 2 x 4
        assert TINY.updates(32) == 8


def test_the_task_of_the_small_presets():
    conv, mlp = find_task("mnist1d-conv").load(), find_task("mnist1d").load()
    assert all(torch.equal(a, b) for s in ("train", "validation", "test") for a, b in zip(getattr(conv, s), getattr(mlp, s), strict=True))  # fmt: skip
    model = conv.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 8010
    assert model(conv.train[0][:3]).shape == (3, 10)
    assert [layer.stride for layer in model if isinstance(layer, nn.Conv1d)] == [(2,)] * 3


# Claims


def test_the_pairs_of_the_claims():
    pairs = [claim.pairs for claim in claims()]
    assert pairs[0] == pairs[1] == (("sgd+B", "sgd"), ("sam+B", "sam"), ("gsam+B", "gsam"))
    assert pairs[2] == pairs[3] == (("sgd+C", "sgd"), ("sam+C", "sam"), ("gsam+C", "gsam"))
    assert pairs[4] == pairs[5]
    assert set(pairs[4]) == {
        (f"{name}{suffix}", f"sgd{suffix}") for name in ("sam", "gsam") for suffix in ("", "+B", "+C")
    }
    assert [claim.quantity for claim in claims()] == ["error", "sharpness"] * 3
    at_updates = claims(AT_EQUAL_UPDATES)
    assert [claim.pairs for claim in at_updates] == [tuple((f"{a}@updates", b) for a, b in pairs[0])] * 2
    assert {name for claim in (*claims(), *at_updates) for pair in claim.pairs for name in pair} == set(ALL)


def made(name, seed, test, sharpness=1.0):
    """A record of a column; a test accuracy of None is a trial that diverged."""
    method = name.partition("+")[0]
    trial = TrialConfig(task="t", method=method, arm=None if name == method else name, hyperparameters={}, seed=seed, epochs=1, batch_size=8, versions={})  # fmt: skip
    final = test is not None and Final(
        train_loss=0.1, train_metric=90.0, validation_loss=0.1, validation_metric=80.0, test_loss=0.1,
        test_metric=test, sharpness={SHARPNESS: sharpness, "largest eigenvalue": 1e9},
    )  # fmt: skip
    return Record(
        key=trial.key, config=trial, curve=Curve(), final=final or None, gradient_evaluations=9, examples=72,
        updates=9 + seed, seconds=1.0, versions={}, status="finished" if final else "diverged",
        diverged=None if final else Diverged(epoch=1, step=2),
    )  # fmt: skip


def records(**columns):
    """Test accuracies by column, one a seed; `sgd_B` is sgd+B."""
    return [
        made(name.replace("_", "+"), seed, *(value if isinstance(value, tuple) else (value,)))
        for name, values in columns.items()
        for seed, value in enumerate(values)
    ]


TWO = Claim("+B lowers it", "error", (("sgd+B", "sgd"), ("sam+B", "sam")), "")
BASE = [60.0, 61.0, 62.0]
BETTER, WORSE, NOISE = (
    [70.0, 71.1, 72.2],
    [50.0, 51.1, 52.2],
    [50.0, 71.0, 61.9],
)  # a little worse, and far from significant


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (BETTER, BETTER, "replicated"),
        (WORSE, WORSE, "the opposite"),
        (BETTER, NOISE, "in part"),
        (NOISE, NOISE, "not replicated"),
        (WORSE, NOISE, "not replicated"),
        (BETTER, WORSE, "not replicated"),
        (BASE, BASE, "not replicated"),
        (BETTER, BETTER[:2], None),
        (BETTER, [70.0, None, 72.2], None),
        ([*BETTER, None], [*BETTER, None], "replicated"),
        ([None, *BETTER[1:], 73.3], [*BETTER, 1.0], "replicated"),
    ],
)
def test_verdicts(first, second, verdict):
    base = [*BASE, 63.0][: 4 if None in first[:1] else 3]
    found = judge(TWO, records(sgd=base, sam=BASE, sgd_B=first, sam_B=second))
    assert found.verdict == verdict


def test_differences_are_of_errors_and_paired_by_seed():
    shuffled = list(reversed(records(sgd=BASE, sam=BASE, sgd_B=BETTER, sam_B=NOISE)))
    found = judge(TWO, shuffled)
    assert [one.value for one in found.differences] == pytest.approx([-10.1, (10.0 - 10.0 + 0.1) / 3])
    assert [one.n for one in found.differences] == [3, 3]
    # A diverged trial takes its seed out of the pair, on whichever side it is.
    found = judge(TWO, records(sgd=[*BASE, 0.0], sam=[*BASE, None], sgd_B=[*BETTER, None], sam_B=[*BETTER, 0.0]))
    assert [(one.value, one.n) for one in found.differences] == [(pytest.approx(-10.1), 3)] * 2


def test_p_values_are_corrected_within_the_claim():
    three = Claim("", "error", (("sgd+B", "sgd"), ("sam+B", "sam"), ("gsam+B", "gsam")), "")
    many = records(sgd=BASE, sam=BASE, gsam=BASE, sgd_B=BETTER, sam_B=[60.5, 62.0, 63.5], gsam_B=NOISE)
    found = judge(three, many)
    raw = [one.p for one in found.differences]
    assert [one.p_holm for one in found.differences] == holm(raw)
    assert [one.p_holm > one.p for one in found.differences] == [True, True, False]
    # Also where another pair has too few seeds: no star without the correction.
    few = judge(three, [one for one in many if (one.config.row, one.config.seed) != ("gsam+B", 0)])
    assert few.differences[2] is None
    assert [one.p_holm for one in few.differences[:2]] == holm(raw[:2])


def test_nothing_replicates_nothing():
    assert verdict_of([], above=True) is None


def test_holm_can_take_a_verdict_away():
    barely = [60.9, 61.8, 62.4]  # p = 0.045 alone, 0.089 for two
    alone = judge(replace(TWO, pairs=TWO.pairs[:1]), records(sgd=BASE, sgd_B=barely))
    assert alone.verdict == "replicated"
    assert judge(TWO, records(sgd=BASE, sam=BASE, sgd_B=barely, sam_B=barely)).verdict == "not replicated"


def test_sharpness_is_compared_by_its_logarithm():
    claim = Claim("flatter", "sharpness", (("sgd+B", "sgd"),), "")
    found = judge(
        claim, records(sgd=[(50.0, s) for s in (8.0, 16.0, 64.0)], sgd_B=[(50.0, s) for s in (2.0, 4.1, 15.9)])
    )
    assert found.verdict == "replicated"
    assert found.differences[0].value == pytest.approx(sum(map(math.log2, (2 / 8, 4.1 / 16, 15.9 / 64))) / 3)
    assert report._here(found).startswith("SGD+B / SGD: x 0.25 [0.")
    assert report._here(found).endswith("]*")
    # A loss that overflowed has no sharpness; neither has a trial that diverged. Zero is not the end of it.
    lost = records(sgd=[(50.0, 8.0)] * 3, sgd_B=[(50.0, None), None, (50.0, 4.0)])
    assert judge(claim, lost).differences == (None,)
    assert math.isfinite(judge(claim, records(sgd=[(50.0, 8.0)] * 3, sgd_B=[(50.0, 0.0)] * 3)).differences[0].value)


# The report


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of a tiny task: its plan, and what it would find in given records."""
    file = tmp_path / "tasks.py"
    file.write_text(TASK)
    monkeypatch.setattr(run, "_TASKS", file)
    for module in (design, report):
        monkeypatch.setattr(module, "PRESETS", {**PRESETS, "tiny": TINY})
    monkeypatch.setenv("STEPPE_DATA", "")
    monkeypatch.delenv("STEPPE_DATA")  # set by --data, and put back after the test

    def plan(**more):
        return run.plans(TINY, tmp_path / "out", **more)[0]

    def found(rows, preset="tiny"):
        plan_ = plan()
        judged = {budget: [judge(claim, rows) for claim in claims(budget)] for budget in ("", AT_EQUAL_UPDATES)}
        return run.Study(preset, TINY, Comparison(plan_, rows, []), judged)

    return SimpleNamespace(plan=plan, found=found)


def full(**changed):
    """Records of all columns, three seeds each."""
    columns = {name.replace("+", "_"): [(60.0 + k + s, 2.0 ** (k + s)) for s in range(3)] for k, name in enumerate(ALL)}
    return records(**{**columns, **changed})


def no_constant(text):
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize(
    "changed",
    [{}, {"sam": [None] * 3}, {"gsam_C": [(50.0, None)] * 3}, {"sgd": [(50.0, 0.0)] * 3}, {"all": None}, {"sgd_B": [None, (50.0, 1.0), (51.0, 2.0)]}],
)  # fmt: skip
def test_the_files_of_a_study(changed, study):
    changed = {name.replace("+", "_"): [None] * 3 for name in ALL} if "all" in changed else changed
    path = report.write(study.found(full(**changed)))
    assert path.name == "study.md"
    assert (path.parent / "study.png").read_bytes().startswith(b"\x89PNG\r\n")
    content = json.loads((path.parent / "study.json").read_text(), parse_constant=no_constant)
    assert list(content["columns"]) == ALL
    assert {name: len(found) for name, found in content["claims"].items()} == {"equal epochs": 6, "equal updates": 2}
    tables = [part.splitlines() for part in path.read_text().split("\n\n") if part.startswith("|")]
    assert [{line.count("|") for line in table} for table in tables] == [{9 + 1 + 1}, {5 + 1}]
    assert len(tables[0]) == 2 + 6
    assert len(tables[1]) == 2 + 8


def test_the_numbers_of_a_study(study):
    found = study.found(full(sam=[(60.0, 3.0), None, (64.0, 5.0)], gsam=[None] * 3))
    lines = {line[0]: dict(zip(report.table(found)[0][1:], line[1:], strict=True)) for line in report.table(found)[1:]}
    errors, flat = lines["equal epochs: test error (%)"], lines["equal epochs: sharpness"]
    assert errors["SGD"] == "39.00 ± 0.58"
    assert errors["SAM"] == "38.00 ± 2.00 (1 of 3 not finite)"
    assert errors["GSAM"] == flat["GSAM"] == "not finite"
    assert flat["SAM"] == "4 ± 1 (1 of 3 not finite)"
    assert errors["SGD+B"] == "36.00 ± 0.58"
    assert lines["equal updates: test error (%)"]["SGD+B"] == "30.00 ± 0.58"
    assert lines["equal updates: test error (%)"]["SGD+C"] == errors["SGD+C"]
    assert set(lines["equal updates: updates"].values()) == {"10"}
    claims_ = {(line[0], line[1]): line[4] for line in report.claims_table(found)[1:]}
    assert claims_["growing batches (+B) lower the error", "equal updates"] == "too few seeds"
    content = json.loads((report.write(found).parent / "study.json").read_text())
    assert content["columns"]["sam"]["error"] == {"0": 40.0, "1": None, "2": 36.0}
    assert (content["preset"], content["task"], content["design"]["fixed"]) == ("tiny", "tasks.py:tiny", 8)


def test_the_report_names_its_command(study):
    found = study.found(full())
    assert report.markdown(found).endswith("\n\n    steppe study gsam-batch --preset tiny --seeds 2\n")
    slower = replace(found, design=replace(TINY, lr=0.05))
    assert report.markdown(slower).endswith(" --seeds 2 --lr 0.05\n")
    assert "learning rate 0.05, rho 0.05, alpha 0.02, 2 epochs, n = 2 seeds" in report.markdown(slower)


def test_a_study_that_cannot_be_written(study):
    found = study.found(full())
    (found.comparison.plan.out / "study.json").mkdir()
    with pytest.raises(UserError, match=f"the report cannot be written to '{found.comparison.plan.out}': "):
        report.write(found)


# The command


def call(capsys, *words):
    capsys.readouterr()
    code = cli.main(["study", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_real_command_and_again(study, tmp_path, capsys):
    words = ("gsam-batch", "--preset", "tiny", "--seeds", 1, "--jobs", 2, "--out", tmp_path / "out")
    code, text, error = call(capsys, *words)
    assert (code, error) == (0, "")
    folder = tmp_path / "out" / "tiny"
    assert len(list((folder / "trials").iterdir())) == 12
    assert {path.name for path in folder.iterdir()} >= {
        "study.md",
        "study.json",
        "study.png",
        "table.md",
        "report.html",
    }
    assert text.count("too few seeds") == 8
    assert f"written to {folder}" in text
    columns = json.loads((folder / "study.json").read_text())["columns"]
    assert {name: found["updates"] for name, found in columns.items()} == {
        name: [12 if name in GROWN else 8] for name in ALL
    }
    assert all(found["sharpness"]["0"] > 0 for found in columns.values())
    before = {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}
    code, text, error = call(capsys, *words)
    assert (code, error) == (0, "")
    assert "12 of 12 trials were finished in an earlier run" in text
    assert {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()} == before


def cifar100(folder: Path, train: int, test: int) -> None:
    """Write random images of classes 0, 1, ... as the archive of CIFAR-100 holds them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        images = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "fine_labels": list(range(count))}, protocol=2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gsam-batch", "--preset", "papre"], "--preset: unknown preset 'papre'; did you mean 'paper'? known: smoke, small, paper, tiny"),
        (["gsam-batch", "--preset", "tiny", "--seeds", "0"], "--seeds: must be greater than or equal to 1, got 0"),
        (["gsam-batch", "--preset", "tiny", "--jobs", "0"], "--jobs: must be greater than or equal to 1, got 0"),
        (["gsam-batch", "--preset", "tiny", "--lr", "0"], "--lr must be a number above 0, got 0"),
        (["gsam-batch", "--preset", "tiny", "--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["gsam-bach"], "No such command 'gsam-bach'."),
        (["gsam-batch", "--preset", "paper", "--data", "no-such"], "tasks.py:cifar100_resnet18: CIFAR-100: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(words, message, study, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    if "paper" in words:
        monkeypatch.setattr(run, "_TASKS", Path(run.__file__).with_name("tasks.py"))
    code, out, error = call(capsys, *words)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_paper_on_images_in_a_folder(study, tmp_path, monkeypatch, capsys):
    from steppe.lab.tasks.vision import data

    cifar100(tmp_path / "images", train=20, test=6)
    small = replace(PRESETS["paper"], epochs=5, batches=(1, 2, 4, 8, 16), fixed=8, seeds=1)
    monkeypatch.setattr(run, "_TASKS", Path(run.__file__).with_name("tasks.py"))
    monkeypatch.setattr(design, "PRESETS", {"paper": small})
    pooled = {name: lambda num_classes: nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, num_classes)) for name in data._MODELS}  # fmt: skip
    monkeypatch.setattr(data, "_MODELS", pooled)
    real = data.cifar_task
    monkeypatch.setattr(data, "cifar_task", lambda *where: real(*where[:3], validation=4))
    # In this process, where the models can be replaced.
    monkeypatch.setattr("steppe.lab.trials.host.launched", lambda: True)
    monkeypatch.setattr("steppe.lab.trials.host.AcceleratedHost", Host)
    words = ("gsam-batch", "--preset", "paper", "--data", tmp_path / "images", "--out", tmp_path / "out")
    code, text, error = call(capsys, *words)
    assert (code, error) == (0, "")
    assert os.environ["STEPPE_DATA"] == str(tmp_path / "images")
    for task in ("cifar100-resnet18", "cifar100-wrn-28-10"):
        content = json.loads((tmp_path / "out" / task / "study.json").read_text())
        assert content["task"] == f"tasks.py:{task.replace('-', '_')}"
        updates = {name: found["updates"] for name, found in content["columns"].items()}
        assert updates == {name: [16 + 8 + 4 + 2 + 1 if name in GROWN else 10] for name in ALL}
    assert text.count("written to") == 2
