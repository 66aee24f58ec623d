"""Tasks of texts: from GLUE and from tables, and the file from which other processes load them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from glue_files import SIZES, rows, write_glue
from tiny_roberta import write_tiny_roberta

from steppe.lab import RunError, Task, UserError
from steppe.lab.comparing import comparison
from steppe.lab.plans import options as config
from steppe.lab.tasks.checks import check_fit
from steppe.lab.tasks.sources import find_task
from steppe.lab.tasks.text.data import read_data
from steppe.lab.tasks.text.glue import GLUE
from steppe.lab.tasks.text.metrics import METRICS
from steppe.lab.tasks.text.task import squared_error, text_task, write_task
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), "jsonl")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    texts = [text for task in GLUE for split in ("train", "dev", "dev_matched") for pair, _ in rows(task, split) for text in pair]  # fmt: skip
    return str(
        write_tiny_roberta(tmp_path_factory.mktemp("roberta"), [word for text in texts for word in text.split()])
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(
        "text,stars,label\n" + "".join(f"text {i},{i % 5},{'good' if i % 3 else 'bad'}\n" for i in range(60))
    )
    return path


def equal(a: Task, b: Task) -> bool:
    return all(
        torch.equal(getattr(a, name)[k], getattr(b, name)[k])
        for name in ("train", "validation", "test")
        for k in (0, 1)
    )


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_glue(glue, roberta, name):
    task = text_task(roberta, task=name, data=str(glue), length=24)
    check_fit(task)
    numbers = not GLUE[name].classes
    assert len(task.test[0]) == SIZES["dev"]
    assert len(task.train[0]) + len(task.validation[0]) == SIZES["train"]
    assert 5 <= len(task.validation[0]) <= 6
    assert task.train[0].shape[1:] == task.test[0].shape[1:]
    assert task.train[0].shape[1] == 3
    assert task.train[1].dtype == (torch.float32 if numbers else torch.int64)
    dev = torch.tensor([label for _, label in rows(name, "dev_matched" if name == "mnli" else "dev")])
    torch.testing.assert_close(task.test[1], dev.to(task.test[1].dtype))
    assert task.metric_name == METRICS[GLUE[name].metric].title
    assert task.higher_is_better
    torch.manual_seed(0)
    assert task.model()(task.train[0][:2]).shape == (2, len(GLUE[name].classes) or 1)


def test_numbers_are_learnt_by_their_squared_error(glue, roberta):
    task = text_task(roberta, task="stsb", data=str(glue), length=24)
    assert task.loss is squared_error
    assert squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])) == 2.0
    found = run_trial(trial(epochs=2), task)
    assert found.status == "finished"
    assert all(-100 <= value <= 100 for value in found.curve.validation_metric)


def test_a_tiny_glue_is_learnt(glue, roberta):
    found = run_trial(trial(epochs=12), text_task(roberta, task="sst2", data=str(glue), length=24, batch_size=8))
    assert found.curve.train_loss[-1] < 0.5 * found.curve.train_loss[0]
    assert found.final.test_metric > 70


def trial(epochs):
    return TrialConfig(
        task="t", arm="sam", method="sam", base="adamw", seed=0, epochs=epochs, batch_size=8, versions={},
        hyperparameters={"lr": 3e-3, "rho": 0.01, "weight_decay": 0.01},
    )  # fmt: skip


# Tables


def test_a_table_is_split_in_three(table, roberta):
    task = text_task(roberta, data=str(table), texts=["text"], label="label", length=8, batch_size=4, epochs=7)
    assert [len(getattr(task, name)[0]) for name in ("train", "validation", "test")] == [43, 5, 12]
    assert [getattr(task, name)[1].bincount().tolist() for name in ("validation", "test")] == [[2, 3], [4, 8]]
    assert (task.batch_size, task.epochs, task.metric_name) == (4, 7, "accuracy (%)")
    again = text_task(roberta, data=str(table), texts=["text"], label="label", length=8)
    assert equal(task, again)
    other = text_task(roberta, data=str(table), texts=["text"], label="label", length=8, seed=1)
    assert not torch.equal(task.train[1], other.train[1])
    few = text_task(roberta, data=str(table), texts=["text"], label="label", length=8, per_class=3, metric="f1")
    assert few.train[1].bincount().tolist() == [3, 3]
    assert few.metric_name == "F1 x 100"
    numbers = text_task(
        roberta, data=str(table), texts=["text"], label="stars", regression=True, metric="pearson", length=8
    )
    assert numbers.train[1].unique().tolist() == [0, 1, 2, 3, 4]
    assert numbers.metric_name == "Pearson's correlation x 100"


def test_classes_have_one_order_whatever_the_format(tmp_path):
    (tmp_path / "a.csv").write_text("t,y\n" + "".join(f"t{i},{i % 12}\n" for i in range(60)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"t": f"u{i}", "y": float(i)}) + "\n" for i in (11, 2)))
    found = read_data(data=str(tmp_path / "a.csv"), test=str(tmp_path / "b.jsonl"), texts=["t"], label="y")
    assert found.classes == tuple(map(str, range(12)))
    assert found.splits.test.labels == [11, 2]
    assert set(found.sha256) == {str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")}
    (tmp_path / "c.csv").write_text("t,y\n" + "".join(f"t{i},{'-10ab'[i % 5]}\n" for i in range(60)))
    assert read_data(data=str(tmp_path / "c.csv"), texts=["t"], label="y").classes == ("-", "0", "1", "a", "b")


def test_training_rows_of_the_test_file_are_left_out(table, tmp_path, roberta):
    (tmp_path / "test.csv").write_text("text,label\ntext 1,good\nTEXT  3,bad\nnew,bad\n")
    given = {"data": str(table), "test": str(tmp_path / "test.csv"), "texts": ["text"], "label": "label"}
    assert read_data(**given).splits.left_out == 2
    task = text_task(roberta, length=8, **given)
    assert [len(getattr(task, name)[0]) for name in ("train", "validation", "test")] == [52, 6, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name a task of GLUE, or a table as data; tasks: cola, sst2, mrpc"),
        ({"task": "rte", "texts": ["a"]}, "the task 'rte' of GLUE has columns and test rows of its own; leave out test, t"),
        ({"data": "{table}", "mismatched": True}, "mismatched is for the task mnli of GLUE; leave it out"),
        ({"data": "{table}", "label": "no"}, "{table}: there is no column 'no'; known: text, stars, label"),
        (
            {"data": "{table}", "metric": "pearson"},
            "unknown metric 'pearson' for classes; known: accuracy, matthews, f1",
        ),
        (
            {"data": "{table}", "regression": True, "label": "stars", "metric": "f1"},
            "unknown metric 'f1' for numbers; known: pearson-spearman, pearson, spearman",
        ),
        (
            {"data": "{table}", "regression": True},
            "{table}, line 2: the label 'bad' is not a finite number; correct it",
        ),
        ({"data": "{same}"}, "{same}: all labels are 'one'; at least 2 classes are needed"),
        ({"data": "{infinite}", "regression": True}, "{infinite}, line 3: the label 'inf' is not a finite number; corr"),
        (
            {"data": "{table}", "test": "{same}"},
            "{same}, line 2: no training row has the label 'one'; known: bad, good",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(table, tmp_path, given, message):
    (tmp_path / "same.csv").write_text("text,label\na,one\nb,one\n")
    (tmp_path / "infinite.csv").write_text("text,label\na,1e3\nb,inf\n")
    names = {"{table}": table, "{same}": tmp_path / "same.csv", "{infinite}": tmp_path / "infinite.csv"}
    for name, path in names.items():
        given = {key: str(path) if value == name else value for key, value in given.items()}
        message = message.replace(name, str(path))
    if "task" not in given:
        given = {"texts": ["text"], "label": "label", **given}
    with pytest.raises(UserError) as caught:
        read_data(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_lengths_that_the_model_cannot_read(table, roberta, tmp_path):
    given = {"data": str(table), "texts": ["text"], "label": "label"}
    with pytest.raises(UserError, match="length must be a whole number from 4 to 40, which the model can read, got 41"):
        text_task(roberta, length=41, **given)
    with pytest.raises(UserError, match=r"length must be at most 42, which '.*' can read, got 43"):
        text_task(roberta, length=43, **given)


# The file


def test_the_file_makes_the_same_task_here_and_elsewhere(glue, roberta, tmp_path, monkeypatch):
    monkeypatch.chdir(glue.parent)
    given = {"task": "mrpc", "data": glue.name, "length": 16, "per_class": 4, "seed": 3, "metric": None}
    name = write_task(tmp_path / "study", model=roberta, **given)
    assert name == f"{tmp_path / 'study' / 'task.py'}:task"
    content = (tmp_path / "study" / "task.py").read_text()
    assert f"data={str(glue)!r}" in content
    assert "Rows: train 8, validation 5, test 18; 0 left out of train" in content
    for split in ("train", "validation"):
        path = glue / "mrpc" / f"{split}.jsonl"
        assert f"{str(path)!r}: '{hashlib.sha256(path.read_bytes()).hexdigest()}'" in content
    task = find_task(name).load()
    given = {**given, "data": str(glue)}
    assert equal(task, text_task(roberta, **given))
    torch.save([task.train, task.test], tmp_path / "here.pt")
    code = (
        "import sys, torch; from steppe.lab.tasks.sources import find_task; task = find_task(sys.argv[1]).load()\n"
        "here = torch.load(sys.argv[2])\n"
        "assert all(torch.equal(a, b) for pair, other in zip(here, (task.train, task.test)) for a, b in zip(pair, other))"
    )
    command = [sys.executable, "-c", code, name, str(tmp_path / "here.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert write_task(tmp_path / "study", model=roberta, **given) == name
    assert (tmp_path / "study" / "task.py").read_text() == content


def test_a_comparison_runs_from_the_file(glue, roberta, tmp_path):
    name = write_task(tmp_path, model=roberta, task="cola", data=str(glue), length=16, epochs=1)
    asked = {"base": "adamw", "methods": ["adamw", "sam"], "seeds": 1, "jobs": 1}
    found = comparison.run(comparison.plan(name, config.from_flags(asked), tmp_path / "out"))
    assert [record.status for record in found.records] == ["finished"] * 2
    assert found.plan.metric_name == "Matthews' correlation x 100"


def test_data_that_has_changed_stops_the_study(table, roberta, tmp_path):
    model = shutil.copytree(roberta, tmp_path / "model")
    given = {"data": table, "texts": ("text",), "label": "label", "length": 8}
    name = write_task(tmp_path, model=model, **given)
    before = Path(table).read_text()
    find_task(name).load()
    table.write_text(before + "one more,good\n")
    with pytest.raises(
        UserError, match=r"^task.py:task: .*reviews.csv has changed since the study was set up; start it"
    ):
        find_task(name).load()
    table.write_text(before)
    find_task(name).load()
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(
        UserError, match=r"model has changed since the study was set up; start it again with the same c"
    ):
        find_task(name).load()
    with pytest.raises(RunError, match=r"reviews.csv has changed since the study was set up"):
        text_task(roberta, sha256={str(table): ""}, **{**given, "data": str(table)})
    digest = find_task(name).digest
    assert find_task(write_task(tmp_path, model=model, **given)).digest != digest
    find_task(name).load()


def test_arguments_that_are_wrong_write_nothing(table, tmp_path, roberta):
    given = {"data": str(table), "texts": ["text"], "label": "label"}
    with pytest.raises(UserError, match=r"name a model: one of the Hugging Face hub, or a folder$"):
        write_task(tmp_path / "study", **given)
    with pytest.raises(UserError, match="name one or two columns of texts as a list, got 'text'"):
        write_task(tmp_path / "study", model="a/b", **{**given, "texts": "text"})
    with pytest.raises(UserError, match="there is no column 'lable'; did you mean 'label'"):
        write_task(tmp_path / "study", model="a/b", **{**given, "label": "lable"})
    assert not (tmp_path / "study").exists()
    with pytest.raises(
        UserError, match=r"the file '.*reviews.csv/task.py' cannot be written: .*; choose another folder"
    ):
        write_task(table, model="a/b", **given)
    assert "model='a/b'," in Path(write_task(tmp_path / "study", model="a/b", **given).rpartition(":")[0]).read_text()
