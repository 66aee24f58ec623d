"""Examples of `steppe compare` on one's own problem run, and show their metrics by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steppe import cli

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/your-own-problem.md").read_text(encoding="utf-8")

# FILE.py:FUNCTION, the metrics in their order, whether the larger is better, and how many updates an epoch has.
COMPARED = [
    ("table.py:breast_cancer", ["accuracy (%)"], True, 7),
    ("regression.py:diabetes", ["rmse"], False, 7),
    ("imbalanced.py:task", ["AUC", "F1"], True, 32),
    ("segmentation.py:blobs", ["mean IoU"], True, 10),
    ("texts.py:news", ["accuracy (%)"], True, 38),
    ("equation.py:poisson", ["relative error"], False, 8),
]


@pytest.mark.parametrize(("example", "metrics", "higher", "updates"), COMPARED, ids=[row[0] for row in COMPARED])
def test_an_example_says_its_command_and_is_on_the_page(example, metrics, higher, updates):
    command = f"steppe compare --task examples/{example} --methods adamw,sam --seeds 5"
    lines = (EXAMPLES / example.partition(":")[0]).read_text(encoding="utf-8").splitlines()
    assert command in lines[0]
    assert len(lines) <= 40
    _, _, after = PAGE.partition(command)
    header, _, *rows = [line.split(" | ") for line in after.splitlines()[3:7]]
    assert header[1] == f"test {metrics[0]}"
    assert {row[0].strip("| ") for row in rows} == {"adamw", "sam"}


@pytest.mark.parametrize(("example", "metrics", "higher", "updates"), COMPARED, ids=[row[0] for row in COMPARED])
def test_an_example(example, metrics, higher, updates, tmp_path, capsys):
    words = [
        "--methods",
        "adamw,sam",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--jobs",
        "1",
        "--tune",
        "0",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(["compare", "--task", str(EXAMPLES / example), *words]) == 0
    assert capsys.readouterr().err == ""
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (found["metric"], found["higher_is_better"]) == (metrics[0], higher)
    rows = {row["method"]: row for row in found["rows"]}
    assert {name: row["updates"] for name, row in rows.items()} == {"adamw": updates, "sam": updates}
    assert {name: row["gradient_evaluations"] for name, row in rows.items()} == {"adamw": updates, "sam": 2 * updates}
    for row in rows.values():
        assert row["diverged"] == 0
        assert list(row["more"]) == metrics[1:]
        numbers = [
            row["metric"]["value"],
            row["train_loss"],
            row["gap"],
            *(more["value"] for more in row["more"].values()),
        ]
        assert all(map(math.isfinite, numbers))
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"test {name} |" in table for name in metrics)
