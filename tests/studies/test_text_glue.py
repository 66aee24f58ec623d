"""GLUE: eight tasks in every layout, and what is said of files that are not right."""

from __future__ import annotations

import shutil

import datasets
import pytest
from glue_files import SIZES, rows, write_glue, write_split

from steppe.lab import UserError
from steppe.lab.tasks.text import glue
from steppe.lab.tasks.text.glue import GLUE, load
from steppe.lab.tasks.text.metrics import METRICS


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {form: write_glue(tmp_path_factory.mktemp(form), form) for form in ("tsv", "jsonl", "parquet")}


def expected(task, split):
    found = rows(task, split)
    return [texts for texts, _ in found], [label if GLUE[task].classes else pytest.approx(label) for _, label in found]


@pytest.mark.parametrize("form", ["tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("task", GLUE)
def test_every_task_in_every_layout(places, task, form):
    found = load(task, places[form])
    dev = "dev_matched" if task == "mnli" else "dev"
    assert list(found) == ["train", "dev"]
    for split, part in found.items():
        texts, labels = expected(task, dev if split == "dev" else "train")
        assert (part.texts, part.labels) == (texts, labels)
        assert all(isinstance(label, int if GLUE[task].classes else float) for label in part.labels)
        first = 1 if (form, task) == ("tsv", "cola") or form != "tsv" else 2
        assert part.numbers == list(range(first, first + SIZES[split]))
        assert part.file.endswith(form)


def test_development_rows_of_other_genres(places):
    for place in places.values():
        assert load("mnli", place, mismatched=True)["dev"].texts == expected("mnli", "dev_mismatched")[0]
    with pytest.raises(UserError, match="mismatched development rows are there for mnli alone, got the task 'rte'"):
        load("rte", places["tsv"], mismatched=True)


@pytest.mark.parametrize("name", ["SST-2", "sst-2", "SST2", "sst2", "sst_2", "."])
def test_spellings_of_a_folder(tmp_path, places, name):
    shutil.copytree(places["tsv"] / "SST-2", tmp_path / "data" / name, dirs_exist_ok=True)
    assert load("sst2", tmp_path / "data")["train"].texts == expected("sst2", "train")[0]


def test_the_folder_of_the_task_comes_first(tmp_path, places):
    shutil.copytree(places["tsv"], tmp_path, dirs_exist_ok=True)
    shutil.copytree(places["tsv"] / "RTE", tmp_path, dirs_exist_ok=True)
    assert load("qnli", tmp_path)["train"].texts == expected("qnli", "train")[0]


def test_files_as_microsoft_and_the_hub_call_them(tmp_path):
    write_split(tmp_path / "msr_paraphrase_train.txt", "mrpc", rows("mrpc", "train"))
    write_split(tmp_path / "msr_paraphrase_test.txt", "mrpc", rows("mrpc", "dev"))
    content = (tmp_path / "msr_paraphrase_test.txt").read_text()
    (tmp_path / "msr_paraphrase_test.txt").write_text("\ufeff" + content, newline="\r\n")
    assert load("mrpc", tmp_path)["dev"].texts == expected("mrpc", "dev")[0]
    for split, name in (("train", "train"), ("dev_matched", "validation_matched")):
        write_split(tmp_path / f"{name}-00000-of-00001.parquet", "mnli", rows("mnli", split))
    assert load("mnli", tmp_path)["dev"].texts == expected("mnli", "dev_matched")[0]
    write_split(tmp_path / "train-00001-of-00002.parquet", "mnli", rows("mnli", "train"))
    with pytest.raises(UserError, match=r"MNLI: '.*' has 2 files train-\*-of-\*.parquet; write one file of them"):
        load("mnli", tmp_path)


# The hub


def hub_of(task, split):
    return datasets.Dataset.from_list(
        [dict(zip((*GLUE[task].texts, "label"), (*texts, label), strict=True)) for texts, label in rows(task, split)]
    )


def test_from_the_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        assert datasets.utils.are_progress_bars_disabled()
        dev = {"validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched", "test_matched": "dev"}
        names = dev if arguments[1] == "mnli" else {"validation": "dev", "test": "dev"}
        return {"train": hub_of(arguments[1], "train"), **{k: hub_of(arguments[1], v) for k, v in names.items()}}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for task in GLUE:
        found = load(task)
        for split, dev in (("train", "train"), ("dev", "dev_matched" if task == "mnli" else "dev")):
            assert (found[split].texts, found[split].labels) == expected(task, dev)
        assert found["train"].sha256 != found["dev"].sha256
    assert asked == [("nyu-mll/glue", task) for task in GLUE]
    assert found["dev"].where(0) == "nyu-mll/glue:rte:validation, row 1"
    assert load("rte")["train"].sha256 == found["train"].sha256
    assert not datasets.utils.are_progress_bars_disabled()


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load_dataset(*_):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        load("cola")
    assert str(caught.value) == (
        "CoLA: datasets.load_dataset('nyu-mll/glue', 'cola') failed with ConnectionError: no network; "
        "connect to the hub, or give a folder with the data (--data)"
    )


def test_a_package_that_is_missing(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(glue, "import_module", import_module)
    with pytest.raises(UserError, match=r'the module \'datasets\' is not installed; install it with: pip install "steppe\[studies,text\]"'):  # fmt: skip
        load("cola")


# What is wrong


def test_unknown_tasks_and_folders(tmp_path):
    with pytest.raises(UserError, match="unknown task of GLUE 'sst-2'; did you mean 'sst2'"):
        load("sst-2")
    with pytest.raises(UserError, match=r"RTE: the folder '.*no' does not exist; give one with train.tsv and dev.tsv or train.jsonl and validation.jsonl or "):  # fmt: skip
        load("rte", tmp_path / "no")
    with pytest.raises(UserError, match=r"RTE: the folder '.*', or RTE in it, must hold train.tsv and dev.tsv or .*; it holds nothing$"):  # fmt: skip
        load("rte", tmp_path)
    for name in "abcdefg":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"it holds a, b, c, d, e and 2 more$"):
        load("rte", tmp_path)
    write_split(tmp_path / "train.tsv", "rte", rows("rte", "train"))
    with pytest.raises(UserError, match=r"RTE: the folder '.*' lacks dev.tsv; put it there$"):
        load("rte", tmp_path)
    write_split(tmp_path / "dev.tsv", "mnli", rows("mnli", "dev"))
    with pytest.raises(UserError, match=r"MNLI: the folder '.*' lacks dev_matched.tsv; put it there$"):
        load("mnli", tmp_path)


def test_rows_with_missing_fields_are_counted(tmp_path, places):
    shutil.copytree(places["tsv"] / "QQP", tmp_path / "QQP")
    path = tmp_path / "QQP" / "train.tsv"
    lines = path.read_text().split("\n")
    for number in (7, 20, 21):
        lines[number - 1] = "\t".join(lines[number - 1].split("\t")[:4])
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        load("qqp", tmp_path)
    assert str(caught.value) == (
        f"{path}, line 7: there are 6 columns, but fields in this row: 4 (3 wrong rows in all: lines 7, 20, 21); "
        "correct or remove them"
    )


@pytest.mark.parametrize(
    ("form", "task", "old", "new", "message"),
    [
        ("tsv", "cola", "\t1\t", "\t2\t", "line 2: the label is str '2'; labels of CoLA are 0, 1"),
        ("tsv", "cola", "x\t", "", "line 1: there are 4 columns, but fields in this row: 2 (48 wrong rows in all"),
        ("tsv", "rte", "not_entailment", "-", "line 3: the label is str '-'; labels of RTE are entailment, not_ent"),
        ("tsv", "mnli", "gold_label", "label", "there is no column 'gold_label'; did you mean"),
        ("tsv", "stsb", "\t0.106", "\tgood", "line 3: the label is str 'good'; labels of STS-B are numbers from 0 to"),
        ("jsonl", "stsb", "0.106", "5.5", "line 2: the label is float 5.5; labels of STS-B are numbers from 0 to 5"),
        (
            "jsonl",
            "sst2",
            '"label": 1',
            '"label": -1',
            "line 2: the label is int -1; labels of SST-2 are 0 (negative), 1 (positive)",
        ),
        ("jsonl", "mrpc", '"label": 1', '"label": true', "line 2: the label is str 'true'; labels of MRPC are 0 (not_eq"),
        ("jsonl", "qnli", '"label": 1', '"label": 1.0', "line 2: the label is float 1.0; labels of QNLI are 0 (entail"),
    ],
)  # fmt: skip
def test_labels_and_columns_that_are_not_of_the_task(tmp_path, places, form, task, old, new, message):
    name = GLUE[task].title if form == "tsv" else task
    shutil.copytree(places[form] / name, tmp_path / name)
    path = tmp_path / name / f"train.{form}"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    with pytest.raises(UserError) as caught:
        load(task, tmp_path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The tasks as data


STAND_INS = """
CoLA | 1e-5 / 16 / 5336 / 320 | 1e-5 / 32 / 2668 / 160
MRPC | 1e-5 / 16 / 2296 / 137 | 1e-5 / 32 / 1148 / 68
RTE | 2e-5 / 16 / 2036 / 122 | 2e-5 / 32 / 1018 / 61
STS-B | 2e-5 / 16 / 3598 / 214 | 2e-5 / 32 / 1799 / 107
SST-2 | 1e-5 / 32 / 20935 / 1256 | 1e-5 / 64 / 10467 / 628
MNLI | 1e-5 / 32 / 123873 / 7432 |
QNLI | 1e-5 / 32 / 33112 / 1986 |
QQP | 1e-5 / 32 / 113272 / 28318 |
"""


def test_the_stand_in_settings():
    said = {line.split("|")[0].strip(): line.split("|")[1:] for line in STAND_INS.strip().split("\n")}
    for one in GLUE.values():
        for recipe, words in zip((one.fairseq, one.fsam), said.pop(one.title), strict=True):
            if recipe is None:
                assert not words.strip()
            else:
                found = (recipe.lr, recipe.batch_size, recipe.updates, recipe.warmup)
                assert found == tuple(map(float, words.split("/")))
    assert not said


def test_metrics_fit_their_tasks():
    for name, one in GLUE.items():
        assert METRICS[one.metric].regression == (not one.classes) == (name == "stsb")
        assert len(one.texts) == len(one.tsv_texts) == (1 if name in ("cola", "sst2") else 2)
