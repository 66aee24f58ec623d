"""AdaSAM's experiments: rows and grids, claims, speed-up, report, made-up data, and the real commands."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from launching import torchrun
from steppe import cli
from steppe.lab.tasks.text import glue
from steppe.lab.tasks.text.encoding import load_tokenizer
from steppe.lab.trials.host import Host
from steppe.lab.trials.optimizers import check_hyperparameters
from steppe.lab.trials.records import Curve, Final, Record, TrialConfig
from steppe.lab.tuning.candidates import Tuned
from steppe.studies.adasam_glue import made_up, report, run, speedup
from steppe.studies.adasam_glue.claims import CLAIMS, judge, scores_of
from steppe.studies.adasam_glue.design import MOMENTA, OPTIMIZERS, RADII, Budget, row
from steppe.studies.adasam_glue.presets import AFTER_MNLI, GLUE_TASKS, PRESETS

BUDGET = Budget(batch=8, updates=40, warmup=4)
ROWS = [row(optimizer, momentum) for momentum in MOMENTA for optimizer in OPTIMIZERS]


# Rows and grids


@pytest.mark.parametrize("preset", PRESETS)
def test_everybody_chooses_out_of_as_many_settings(preset):
    design = PRESETS[preset]
    found = design.candidates(OPTIMIZERS, MOMENTA, BUDGET, lr=1e-5)
    assert list(found) == ROWS
    for name, entries in found.items():
        optimizer, _, momentum = name.partition("-")
        assert len(entries) == (2 if design.few else 6)
        assert len({(entry["lr"], entry.get("rho")) for entry in entries}) == len(entries)
        for entry in entries:
            assert entry["method"] == optimizer
            assert entry.get("momentum", entry.get("betas", [None])[0]) == float(momentum)
            check_hyperparameters(
                optimizer,
                "sgd",
                {
                    key: tuple(value) if isinstance(value, list) else value
                    for key, value in entry.items()
                    if key not in ("method", "updates", "schedules")
                },
            )
    if not design.few:
        assert {entry["rho"] for entry in found["sam-0.9"]} == set(RADII["sam"]) == {0.01, 0.005}
        assert {entry["rho"] for entry in found["adasam-0"]} == set(RADII["adasam"]) == {0.01, 0.005, 0.001}
        for plain, sharp in (("sgd", "sam"), ("amsgrad", "adasam")):
            for momentum in ("0.9", "0"):
                rates = {entry["lr"] for entry in found[f"{plain}-{momentum}"]}
                assert {entry["lr"] for entry in found[f"{sharp}-{momentum}"]} < rates


def test_rates_are_those_of_the_task_where_they_are_relative():
    found = PRESETS["paper"].candidates(OPTIMIZERS, (0.9,), BUDGET, lr=2e-5)
    assert 2e-5 in {entry["lr"] for entry in found["amsgrad-0.9"]}
    assert {entry["lr"] for entry in found["adasam-0.9"]} == {2e-5, 4e-5}
    assert found["sgd-0.9"] == PRESETS["paper"].candidates(("sgd",), (0.9,), BUDGET)["sgd-0.9"]


def test_the_paper_starts_three_tasks_from_mnli():
    assert set(AFTER_MNLI) == {"rte", "stsb", "mrpc"}
    assert PRESETS["paper"].start == "FacebookAI/roberta-large-mnli"


# Claims


def scores(**tasks):
    """Test metrics by task: for every row a list of seeds."""
    return {task: {name: dict(enumerate(values)) for name, values in found.items()} for task, found in tasks.items()}


def ladder(**raised):
    """Rows whose metric is 50, 51, ... by seed, plus what is said."""
    return {name: [50.0 + seed + raised.get(name.replace("-", "_").replace(".", ""), 0.0) for seed in range(5)] for name in ROWS}  # fmt: skip


def wobbly(found, scale=1.0):
    """The same with a little noise of mean zero, so that intervals have a width."""
    noise = (0.03, -0.02, 0.01, -0.03, 0.01)
    return {
        name: [value + scale * noise[(seed + k) % 5] for seed, value in enumerate(values)]
        for k, (name, values) in enumerate(found.items())
    }


def test_claims_that_hold():
    good = ladder(adasam_09=3.5, amsgrad_09=3.0, adasam_0=4.0, amsgrad_0=2.0, sam_09=1.0, sam_0=1.0)
    found = [judge(claim, scores(one=wobbly(good), two=wobbly(good))) for claim in CLAIMS]
    assert [finding.verdict for finding in found] == ["replicated"] * 4
    assert found[0].differences[0].value == pytest.approx(0.5, abs=0.05)
    assert found[0].differences[1].value == pytest.approx(2.0, abs=0.05)
    assert found[3].differences[0].value == pytest.approx(1.5, abs=0.1)
    assert found[1].wins == ((2, 2), (2, 2))


def test_claims_that_do_not():
    bad = ladder(adasam_09=-0.5, adasam_0=-1.0, sam_09=1.0, amsgrad_0=0.0)
    found = {claim.text: judge(claim, scores(one=wobbly(bad))) for claim in CLAIMS}
    assert found["AdaSAM is above AMSGrad"].verdict == "the opposite"
    assert found["SAM is above SGD"].verdict == "in part"
    assert found["SAM is above SGD"].wins[0] == (1, 1)
    assert found["AdaSAM gains more over AMSGrad without momentum"].verdict == "the opposite"


def test_tasks_count_the_same_and_seeds_are_paired():
    up, down = ladder(sam_09=3.0, sam_0=3.0), ladder(sam_09=-1.0, sam_0=-1.0)
    finding = judge(CLAIMS[1], scores(one=wobbly(up), two=wobbly(down)))
    assert finding.differences[0].value == pytest.approx(1.0, abs=0.05)
    assert finding.wins == ((1, 2), (1, 2))
    up["sgd-0.9"] = up["sgd-0.9"][:2]  # the others diverged
    assert judge(CLAIMS[1], scores(one=up)).verdict is None


def test_a_claim_whose_rows_were_not_run_is_not_judged():
    some = {name: values for name, values in ladder().items() if "sgd" not in name}
    assert judge(CLAIMS[1], scores(one=some)) is None
    assert judge(CLAIMS[0], scores(one=some)) is not None


def test_of_a_claim_what_was_run_is_judged():
    good = wobbly(ladder(adasam_09=3.0, amsgrad_09=1.0))
    half = {name: good[name] for name in ("amsgrad-0.9", "adasam-0.9")}
    found = judge(CLAIMS[0], scores(one=half))
    assert (len(found.claim.parts), len(found.differences), found.verdict) == (1, 1, "replicated")
    assert found.differences[0].value == pytest.approx(2.0, abs=0.05)
    assert [judge(claim, scores(one=half)) for claim in CLAIMS[1:]] == [None] * 3


# Speed-up


def trial(name, seed=0, losses=(), per_epoch=10, test=80.0, **hyperparameters):
    """A record of a trial that made ``per_epoch`` updates of two gradients in each epoch; none of test diverged."""
    evaluations = [2 * per_epoch * (i + 1) for i in range(len(losses))]
    config = TrialConfig(
        task="one",
        method=name.partition("-")[0],
        arm=name,
        hyperparameters={"lr": 0.1, **hyperparameters},
        seed=seed,
        epochs=1,
        batch_size=8,
        versions={},
    )
    final = Final(
        train_loss=0.1, train_metric=90.0, validation_loss=0.3, validation_metric=81.0, test_loss=0.3, test_metric=test
    )
    curve = Curve(
        train_loss=list(losses),
        validation_metric=[70.0] * len(losses),
        gradient_evaluations=evaluations,
        batch_loss=[loss for loss in losses for _ in range(per_epoch)],
    )
    return Record(
        key=config.key,
        config=config,
        status="finished" if test is not None else "diverged",
        curve=curve,
        final=None if test is None else final,
        gradient_evaluations=evaluations[-1] if evaluations else 0,
        examples=0,
        updates=per_epoch * len(losses),
        seconds=1.0,
        versions={},
    )


def falling(size, seed=0, rate=0.01, power=1.0):
    """A loss that falls at a rate in proportion to a power of the batch size."""
    return trial(f"b{size}", seed, [math.exp(-rate * size**power * i) for i in range(160)], per_epoch=1)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_slope_is_that_of_the_curves(power):
    records = [falling(size, seed, 0.01 * (1 + seed / 10), power) for size in speedup.BATCHES for seed in range(3)]
    found = speedup.measure(SimpleNamespace(records=records))
    assert found.slope.value == pytest.approx(-power, abs=0.01)
    assert (found.slope.n, set(found.steps)) == (3, {4, 8, 16, 32})
    for size in speedup.BATCHES:
        assert found.steps[size][0] == pytest.approx(-math.log(found.level) / (0.01 * size**power), rel=0.02)
    assert speedup.png(found).startswith(b"\x89PNG")
    assert "the linear speed-up is -1" in speedup.verdict(found)
    assert [line[0] for line in speedup.table(found)[1:]] == ["4", "8", "16", "32"]


def test_trainings_that_all_diverge_are_reported():
    records = [trial(f"b{size}", 0, [1.0, 2.0], test=None) for size in speedup.BATCHES]
    found = speedup.measure(SimpleNamespace(records=records))
    assert (found.level, found.slope, set(found.steps)) == (None, None, {4, 8, 16, 32})
    assert speedup.verdict(found) == "Every training diverged."
    assert [line[2] for line in speedup.table(found)] == ["steps to a training loss"] + 4 * ["not reached"]
    assert speedup.png(found).startswith(b"\x89PNG")


def test_curves_are_means_over_as_many_examples_whatever_the_batch():
    record = trial("b16", 0, [8.0, 4.0, 2.0, 1.0, 0.5], per_epoch=1)
    assert speedup.curve(record, 16) == [(1.5, 3.75), (2.5, 1.875)]
    assert speedup.curve(record, 64) == list(enumerate([8.0, 4.0, 2.0, 1.0, 0.5]))
    assert speedup.curve(record, 4) == [(2.0, 3.1)]  # shorter than 64 examples
    thinned = record.model_copy(update={"curve": record.curve.model_copy(update={"batch_loss_updates": 2})})
    assert speedup.curve(thinned, 16) == [(1.5, 6.0), (3.5, 3.0), (5.5, 1.5), (7.5, 0.75)]


def test_a_loss_that_is_not_reached():
    points = [(5.0, 1.0), (15.0, 0.9), (25.0, 0.8)]
    assert speedup.steps_to(points, 0.5) is None
    assert speedup.steps_to(points, 0.9) == 15.0
    assert speedup.steps_to(points, 1.5) == 5.0  # at once: the first number there is


def test_learning_rates_go_with_the_root_of_the_batch():
    setting = PRESETS["small"].candidates(("adasam",), (0.9,), BUDGET)["adasam-0.9"][0]
    found = speedup.arms(setting, 8)
    assert [arm["lr"] / setting["lr"] for arm in found.values()] == pytest.approx([0.5**0.5, 1.0, 2**0.5, 2.0])
    assert [arm["schedules"]["batch_size"]["size"] for arm in found.values()] == [4, 8, 16, 32]
    assert {arm["schedules"]["lr"] for arm in found.values()} == {"constant"}
    assert {arm["updates"] for arm in found.values()} == {4 * 40}


# The report


def study(tmp_path, tests):
    """A study of what is said: for every task and row a list of test metrics, None where a trial diverged."""
    runs = {}
    for task, found in tests.items():
        records = [
            trial(name, seed, [1.0, 0.5], test=value)
            for name, values in found.items()
            for seed, value in enumerate(values)
        ]
        plan = SimpleNamespace(metric_name="accuracy (%)", seeds=(0, 1, 2))
        tuned = {
            name: Tuned({"lr": 0.1, "rho": 0.01}, 80.0, ({"lr": 0.1}, {"lr": 0.2}), (80.0, 79.0)) for name in found
        }
        runs[task] = run.Run(SimpleNamespace(records=records, plan=plan), tuned, BUDGET)
    return run.Study(
        title="A study",
        model="a model",
        optimizers=OPTIMIZERS,
        momenta=MOMENTA,
        runs=runs,
        findings=run.judged(runs),
        speedups={},
        tuned_on=None,
        tuning_seeds=1,
        out=tmp_path,
        command="steppe study adasam-glue",
    )


def test_the_papers_four_tables(tmp_path):
    one = {name: [80.0 + k, 81.0 + k, 82.0 + k] for k, name in enumerate(ROWS)}
    two = {name: [70.0, 71.0, 72.0] for name in ROWS} | {"sam-0.9": [None] * 3, "adasam-0": [90.0, None, 92.0]}
    found = study(tmp_path, {"one": one, "two": two})
    titles = [title for title, _ in report.tables(found)]
    assert titles == [
        "AdaSAM and AMSGrad, beta1 = 0.9",
        "SAM and SGD, beta1 = 0.9",
        "AdaSAM and AMSGrad, beta1 = 0",
        "SAM and SGD, beta1 = 0",
    ]
    lines = [{line[0]: line[1:] for line in table} for _, table in report.tables(found)]
    assert lines[0]["AMSGrad"] == ["83.00 ± 0.58", "71.00 ± 0.58", "77.00", "0"]
    assert lines[0]["AdaSAM"] == ["84.00 ± 0.58", "71.00 ± 0.58", "77.50", "1"]  # the other is a draw
    assert lines[1]["SAM"] == ["82.00 ± 0.58", "diverged", "", "1"]
    assert lines[1]["SGD"][-1] == "1"
    assert lines[2]["AdaSAM"][1] == "91.00 ± 1.00 (1 diverged)"
    path = report.write(found)
    text = path.read_text()
    assert "Every row chose out of 2 settings by the validation metric of 1 other seed" in text
    assert "lr 0.1!, rho 0.01" in text
    assert text.endswith("    steppe study adasam-glue\n")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["scores"]["two"]["adasam-0"] == {"0": 90.0, "2": 92.0}
    assert scores_of({"two": found.runs["two"].comparison.records})["two"].get("sam-0.9") is None


# Made-up data


def test_made_up_rows_are_read_and_can_be_learnt(tmp_path):
    folder = made_up.write_glue(tmp_path / "glue")
    tokenizer = load_tokenizer(made_up.write_model(tmp_path / "model"))
    for task in glue.GLUE:
        found = glue.load(task, folder)
        assert [len(found[split]) for split in ("train", "dev")] == [made_up.TRAIN, made_up.DEV]
        assert len(set(found["train"].labels)) == (len(glue.GLUE[task].classes) or 2)
        for texts in found["train"].texts:
            assert tokenizer.unk_token_id not in tokenizer(*texts)["input_ids"]
        assert len(set(found["train"].texts)) > 0.9 * made_up.TRAIN


def test_made_up_weights_are_the_same_again_and_stay(tmp_path):
    for name in ("a", "b"):
        torch.rand(len(name))
        made_up.write_model(tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    before = (tmp_path / "a" / "config.json").stat().st_mtime_ns
    made_up.write_model(tmp_path / "a")
    assert (tmp_path / "a" / "config.json").stat().st_mtime_ns == before


# The commands


def call(capsys, *words):
    capsys.readouterr()
    code = cli.main(["study", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.timeout(240)
def test_all_tasks_of_glue_from_tsv_files_to_the_report_and_again(tmp_path, capsys, monkeypatch):
    # In this process: workers would import transformers thirty times over.
    monkeypatch.setattr("steppe.lab.trials.host.launched", lambda: True)
    monkeypatch.setattr("steppe.lab.trials.host.AcceleratedHost", Host)
    words = ("adasam-glue", "--preset", "smoke", "--seeds", 1, "--out", tmp_path / "out")
    code, text, error = call(capsys, *words)
    assert (code, error) == (0, "")
    for task in GLUE_TASKS:
        assert len(list((tmp_path / "out" / task / "trials").iterdir())) == 8
        assert len(list((tmp_path / "out" / task / "tuning" / "trials").iterdir())) == 16
    assert "AdaSAM and AMSGrad, beta1 = 0.9" in text
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(found["scores"]) == list(GLUE_TASKS)
    assert all(set(rows_) <= set(ROWS) for rows_ in found["scores"].values())
    trials = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("trials/*.json")}
    words = (*words[:3], "--task", "cola,stsb", *words[3:])
    assert call(capsys, *words)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("trials/*.json")} == trials
    assert list(json.loads((tmp_path / "out" / "study.json").read_text())["scores"]) == ["cola", "stsb"]


def own_table(path, rows=60):
    draw = random.Random(0)
    good, bad = ("bright", "clear", "fine", "kind"), ("cold", "dull", "grey", "harsh")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        for i in range(rows):
            writer.writerow([i, " ".join([f"n{i}", *draw.sample((bad, good)[i % 2], 3)]), ("bad", "good")[i % 2]])
    return path


def test_own_texts(tmp_path, capsys):
    model = made_up.write_model(tmp_path / "model")
    words = ("text", "--data", own_table(tmp_path / "own.csv"), "--text-columns", "review", "--label-column", "stars")
    more = ("--model", model, "--length", 16, "--epochs", 1, "--seeds", 3, "--jobs", 2, "--out", tmp_path / "out")
    code, text, error = call(capsys, *words, *more)
    assert (code, error) == (0, "")
    assert "AdaSAM and AMSGrad, beta1 = 0.9" in text
    page = (tmp_path / "out" / "study.md").read_text()
    assert page.startswith("# Fine-tuning on own.csv\n")
    assert "own: 3 updates with batches of 16, 0 of them warm-up" in page
    assert f"steppe study text --data {tmp_path / 'own.csv'} --text-columns review --label-column stars" in page


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, (), "does not exist"),
        ("", (), "own.csv"),
        ("review,stars\n", (), "own.csv"),
        ("review,stars\nfine,good\n", ("--text-columns", "reviews"), "'review'"),
        ("review,stars\nfine,good\nbright,good\n", (), "all labels are 'good'"),
        ("review,stars\nfine,good\n,bad\n", (), "own.csv, line 3"),
        (b"review,stars\nfine,good\n\xff\xfe,bad\n", (), "own.csv, line 3"),
        ("review,stars\nfine,good\n", ("--methods", "adam"), "--methods: unknown method 'adam'"),
        ("review,stars\nfine,good\n", ("--beta1", "0.5"), "--beta1 must be 0.9 or 0, got 0.5"),
        ("review,stars\nfine,good\ndull,bad\n", ("--metric", "accurate"), "unknown metric 'accurate'"),
    ],
)
def test_own_texts_that_are_wrong_are_one_line(tmp_path, capsys, content, words, message):
    path = tmp_path / "own.csv"
    if content is not None:
        write(path, content)
    given = {"--data": path, "--text-columns": "review", "--label-column": "stars", "--model": tmp_path}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    flat = [word for pair in given.items() for word in pair]
    code, _, error = call(capsys, "text", *flat, "--out", tmp_path / "out")
    assert code == 2
    assert error.startswith("steppe: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "tiny"), "--preset: unknown preset 'tiny'"),
        (("--task", "colla"), "--task: unknown task 'colla'; did you mean 'cola'"),
        (("--methods", ","), "--methods names nothing"),
        (("--beta1", "1"), "--beta1 must be 0.9 or 0, got 1"),
        (
            ("--preset", "small", "--task", "rte", "--data", "nowhere"),
            "nowhere' does not exist; give one with train.tsv and dev.tsv",
        ),
    ],
)
def test_wrong_words_are_one_line(tmp_path, capsys, words, message):
    code, _, error = call(capsys, "adasam-glue", *words, "--out", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.timeout(240)
def test_two_processes_are_one_with_the_same_batches(tmp_path):
    """Without dropout, which every process draws for its own examples."""
    model = made_up.write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    words = ["study", "adasam-glue", "--preset", "smoke", "--task", "rte,stsb", "--model", str(model), "--seeds", "1"]
    assert cli.main([*words, "--jobs", "1", "--out", str(tmp_path / "one")]) == 0
    script = write(tmp_path / "script.py", "import sys\nfrom steppe.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    torchrun(script, *words, "--out", tmp_path / "two", log=tmp_path / "log.txt", timeout=200.0)
    for task in ("rte", "stsb"):
        one, two = (trials_of(tmp_path / name / task) for name in ("one", "two"))
        names = {name for name, _, _ in one}
        assert names == {name for name, _, _ in two} == {*ROWS, *(f"{name}@{k}" for name in ROWS for k in range(2))}
        assert len(one) == len(two) == len(names)
        # Where two settings of a row are as good but for rounding, either may be chosen, and be trained once more.
        same = set(one) & set(two)
        assert all("@" not in name for name, _, _ in set(one) ^ set(two))
        assert len(same) >= len(one) - 2
        for key in same:
            assert two[key].curve.train_loss == pytest.approx(one[key].curve.train_loss, rel=1e-4)
            assert two[key].final.validation_loss == pytest.approx(one[key].final.validation_loss, rel=1e-4)
            if "@" not in key[0]:  # the choice does not read the test split
                assert two[key].final.test_loss == pytest.approx(one[key].final.test_loss, rel=1e-4)


def trials_of(folder):
    """The records of a task, those of the choice of settings among them, by row, radius and learning rate."""
    found = [Record.model_validate_json(path.read_text()) for path in folder.rglob("trials/*.json")]
    configs = [record.config for record in found]
    keys = [(config.row, config.hyperparameters.get("rho"), config.hyperparameters["lr"]) for config in configs]
    return dict(zip(keys, found, strict=True))


def test_the_budget_of_another_task_replaces_that_of_the_choice():
    setting = PRESETS["small"].candidates(("adasam",), (0.9,), BUDGET)["adasam-0.9"][0]
    found = run._at(setting, replace(BUDGET, batch=4, updates=7, warmup=2))
    assert (found["updates"], found["schedules"]["batch_size"]["size"]) == (7, 4)
    assert found["schedules"]["lr"] == {"kind": "polynomial", "power": 1.0, "warmup": 2}
    assert (found["lr"], found["rho"]) == (setting["lr"], setting["rho"])
