"""A tiny GLUE: generated rows of all eight tasks, in GLUE's own files or with the hub's columns."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from steppe.lab.tasks.text.glue import GLUE

SIZES = {"train": 48, "dev": 18}
DEV = {"tsv": "dev", "jsonl": "validation", "parquet": "validation"}
_GOOD = ("bright", "clear", "fine", "gentle", "happy", "lively", "lovely", "warm")
_BAD = ("awful", "bleak", "cold", "cruel", "dull", "gloomy", "sad", "stale")
_OTHER = ("river", "house", "table", "window", "garden", "street", "letter", "morning", '"quoted', "it's", "a,b")
# Columns of GLUE's own files that steppe does not read.
_TSV = {
    "cola": ("source", "label", "mark", "sentence"),
    "sst2": ("sentence", "label"),
    "mrpc": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "stsb": (
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ),
    "qqp": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    "mnli": ("index", "promptID", "pairID", "genre", "sentence1", "sentence2", "label1", "gold_label"),
    "qnli": ("index", "question", "sentence", "label"),
    "rte": ("index", "sentence1", "sentence2", "label"),
}


def rows(task: str, split: str) -> list[tuple[tuple[str, ...], int | float]]:
    """Return texts, all different, with labels as the hub has them; the words of a text tell its label."""
    draw, glue, found = random.Random(f"{task} {split}"), GLUE[task], []
    for number in range(SIZES["train" if split == "train" else "dev"]):
        label = number % len(glue.classes) if glue.classes else round(5 * number / 47, 3)
        share = label / (len(glue.classes) - 1) if glue.classes else label / 5
        words = [draw.choice(_GOOD if draw.random() < share else _BAD) for _ in range(draw.randint(3, 6))]
        texts = [[f"{split}{number}", *words], [draw.choice(_OTHER) for _ in range(draw.randint(2, 9))]]
        found.append((tuple(" ".join(text) for text in texts[: len(glue.texts)]), label))
    return found


def write_glue(folder: Path, form: str = "tsv") -> Path:
    """Write all eight tasks as ``folder/TASK/``, in the form ``tsv``, ``jsonl`` or ``parquet``."""
    for task in GLUE:
        suffixes = {"dev_matched": "_matched", "dev_mismatched": "_mismatched"} if task == "mnli" else {"dev": ""}
        for split, suffix in {"train": "", **suffixes}.items():
            name = "train" if split == "train" else DEV[form]
            place = folder / (GLUE[task].title if form == "tsv" else task)
            place.mkdir(parents=True, exist_ok=True)
            write_split(place / f"{name}{suffix}.{form}", task, rows(task, split))
    return folder


def write_split(path: Path, task: str, found: list[tuple[tuple[str, ...], int | float]]) -> None:
    """Write one split of a task in the form that the file's suffix says."""
    if path.suffix in (".tsv", ".txt"):
        path.write_text("".join("\t".join(line) + "\n" for line in _tsv(task, found)), encoding="utf-8")
        return
    objects = [
        dict(zip((*GLUE[task].texts, "label", "idx"), (*texts, label, i), strict=True))
        for i, (texts, label) in enumerate(found)
    ]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")
        return
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(objects), path)


def _tsv(task: str, found: list[tuple[tuple[str, ...], Any]]) -> list[list[str]]:
    glue, names = GLUE[task], _TSV[task]
    lines = [] if glue.tsv_header else [list(names)]
    for texts, label in found:
        written = str(label) if glue.tsv_numbers or not glue.classes else glue.classes[label]
        cells = {**dict.fromkeys(names, "x"), glue.tsv_label: written, **dict(zip(glue.tsv_texts, texts, strict=True))}
        lines.append([cells[name] for name in names])
    return lines
