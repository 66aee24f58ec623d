"""The notebook among the examples: it runs, and what it was saved with is what a run shows, and nothing more."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import environment

EXAMPLES = Path(__file__).parents[1] / "examples"


def outputs(notebook):
    """What each cell of code shows, by its name: kinds of data with their texts."""
    shown = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            found = [output.get("data", {"stream": output.get("text")}) for output in cell["outputs"]]
            shown[cell["id"]] = {kind: "".join(text) for data in found for kind, text in data.items()}
    return shown


def rows(html):
    return [re.sub("<.*?>", " ", line).split()[0] for line in re.findall("<tr>(?:<td.*)</tr>", html)]


def check(shown, epochs):
    assert {*rows(shown["compare"]["text/html"])} == {"adamw", "sam"}
    assert {*rows(shown["method"]["text/html"])} == {"adamw", "sam", "every_second"}
    assert "test_metric" in shown["pandas"]["text/html"]
    assert f"Sweep of notebook:spirals, sam, base adamw, {epochs} epochs, 9 settings" in shown["sweep"]["text/plain"]
    for name in ("curves", "heatmap"):
        assert base64.b64decode(shown[name]["image/png"]).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def saved():
    return json.loads((EXAMPLES / "notebook.ipynb").read_text())


def test_what_it_was_saved_with(saved):
    check(outputs(saved), 20)
    assert saved["metadata"].keys() == {"kernelspec", "language_info"}
    assert all(cell["metadata"] == {} for cell in saved["cells"])
    texts = [text for data in outputs(saved).values() for kind, text in data.items() if kind != "image/png"]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|work|usr)/", text)]


def test_it_runs(saved, tmp_path):
    for cell in saved["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
            cell["source"] = "".join(cell["source"]).replace("epochs=20", "epochs=2")
    (tmp_path / "short.ipynb").write_text(json.dumps(saved))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "make_notebook.py"), str(tmp_path / "short.ipynb")],
        env=environment(IPYTHONDIR=str(tmp_path / "ipython")),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    check(found := outputs(json.loads((tmp_path / "short.ipynb").read_text())), 2)
    # A line of progress for each call, which ends as a plain text.
    raw = json.loads((tmp_path / "short.ipynb").read_text())
    lines = [
        "".join(output["data"]["text/plain"])
        for cell in raw["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "display_data"
    ]
    assert lines == [
        "6 of 6 trials",
        "adamw, seed 2, repeated in a new process: the same to the last digit\n",
        "6 of 9 trials were finished in an earlier run\n",
        "9 of 9 trials",
        "every_second, seed 2, repeated in a new process: the same to the last digit\n",
        "9 of 9 settings",
    ]
    assert found["compare"]["text/plain"].startswith("Comparison of notebook:spirals, base adamw, 2 epochs, 3 seeds\n")
