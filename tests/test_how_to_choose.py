"""docs/how-to-choose.md is true: its rows stand in docs/bench.md, and its lines of code run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "how-to-choose.md").read_text(encoding="utf-8")


def test_every_row_stands_in_the_table():
    bench = (DOCS / "bench.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in PAGE.splitlines() if re.match(r"\| m?sam", line)]
    assert len(rows) > 5
    assert [row for row in rows if row not in bench] == []


def test_the_lines_of_code_run():
    first, *others = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(first, names)
    weight = names["model"].weight
    for code in others:
        before = weight.detach().clone()
        exec(code, names)
        names["opt"].step(lambda: names["gradient"](names["x"], names["y"]))
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, before), code
