from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from html import escape as plain
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steppe.lab.errors import RunError, UserError
from steppe.lab.judge.comparison import Comparison
from steppe.lab.judge.stats import summarize
from steppe.lab.judge.words import probability
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.comparison import Plan
from steppe.lab.plans.workers import Workers
from steppe.lab.show import report
from steppe.lab.show.report import html, write_report
from steppe.lab.show.table import summary
from steppe.lab.tasks.sources import TaskSource
from steppe.lab.trials.finding import names

SHOW = Path(report.__file__).parent
BASE = [65.1, 66.0, 64.2, 65.9, 67.0]
SAM = [70.2, 70.9, 68.8, 71.5, 70.0]
SAME = [65.2, 65.9, 64.1, 66.1, 66.9]


@pytest.fixture
def compared(record, tmp_path):
    def make(methods, base="adamw", name="mnist1d", higher=True, metric="accuracy (%)"):
        costs = {"adamw": 10}
        records = [
            record(method, seed, value, evaluations=costs.get(method, 20), seconds=costs.get(method, 20) / 10)
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
        seeds = tuple(range(max(len(values) for values in methods.values())))
        arms = tuple(Arm(method, method if method in names() else "sam", {"lr": 0.1}) for method in methods)
        plan = Plan(TaskSource(name), base, arms, seeds, 2, 5, Workers(1), tmp_path / "out", metric, higher)
        return Comparison(plan, records, summarize(records, base, higher))

    return make


def test_yes(compared):
    first, second, settings, cost, target = compared({"adamw": BASE, "sam": SAM, "gsam": SAME}).verdict
    assert settings.startswith("Settings are ")
    assert first == "Yes: sam takes the test accuracy (%) from 65.64 [64.34, 66.94] to 70.28 [69.02, 71.54]."
    assert second.startswith("The difference to adamw is +4.64 (95 % interval +3.")
    assert "corrected for 2 methods" in second
    assert cost.startswith(
        "At equal epochs sam takes 2.0 times the gradient evaluations of adamw and 2.0 times its training time;"
    )
    assert "(epoch 1 of 2, its learning rate still high) its validation accuracy (%) was 50.00, against 65.64" in cost
    assert target.startswith("It reached and kept the final validation accuracy (%) of adamw (65.64) after ")


def test_the_cost_is_that_of_the_method_that_the_answer_names(compared):
    """A higher mean that chance explains does not take the place of the significant one."""
    noisy = [value + shift for value, shift in zip(SAM, [30.0, -20.0, 30.0, -20.0, 30.0], strict=True)]
    found = compared({"adamw": BASE, "sam": SAM, "gsam": noisy})
    means = {row.method: row.metric.value for row in found.rows}
    assert means["gsam"] > means["sam"]
    assert found.verdict[0].startswith("Yes: sam takes")
    assert found.verdict[-2].startswith("At equal epochs sam takes")


def test_a_method_that_costs_no_more(compared):
    found = compared({"adamw": BASE, "sam": SAM})
    cheap = [record.model_copy(update={"gradient_evaluations": 10}) for record in found.records]
    again = Comparison(found.plan, cheap, summarize(cheap, "adamw", True))
    assert again.verdict[3] == (
        "At equal epochs sam takes as many gradient evaluations as adamw and 2.0 times its training time."
    )


def test_a_lower_metric_can_be_the_better_one(compared):
    methods = {"adamw": SAM, "sam": BASE}
    assert compared(methods, higher=False).verdict[0].startswith("Yes: sam takes")
    assert compared(methods).verdict[0] == "No: sam is significantly worse than adamw here."
    assert compared(methods).verdict[1].startswith("The difference is -4.64 (95 % interval")
    one_of_two = compared({**methods, "gsam": SAM}).verdict
    assert one_of_two[0] == "No: none of the 2 methods tested is significantly better than adamw here."
    assert "Significantly worse than adamw: sam." in one_of_two[1]


def test_no_when_nothing_helps(compared):
    first, second, sees, *_ = compared({"adamw": BASE, "sam": SAME, "gsam": BASE}).verdict
    assert first == "No: none of the 2 methods tested is significantly better than adamw here."
    assert second.startswith("The most favourable difference is that of ")
    assert sees.startswith("With 5 seeds, a true difference of ")


def test_one_seed_gives_no_answer(compared):
    found = compared({"adamw": [65.0], "sam": [70.0]})
    assert found.verdict[0].startswith("No answer yet: ")
    assert "--seeds 10" in found.verdict[0]
    assert "| sam | 70.00 | n/a |" in summary(found).markdown


def test_base_missing(compared):
    found = compared({"sam": SAM, "gsam": SAME})
    assert found.verdict == [
        "No comparison: the base adamw is not among the methods, so no differences are stated.",
        "The best mean test accuracy (%) is that of sam: 70.28 [69.02, 71.54] (n=5).",
    ]
    assert re.search(r"\| sam \| 70\.28 \[69\.02, 71\.54\] \| n/a \|.* n/a \|", summary(found).markdown)


def test_only_the_base(compared):
    assert compared({"adamw": BASE}).verdict[0] == "No comparison: adamw is the only method here."


def test_all_diverged(compared):
    found = compared({"adamw": [None] * 3, "sam": [None] * 3})
    assert found.verdict[0].startswith("No answer: every trial diverged")
    assert "| sam | n/a | n/a | n/a | n/a | n/a | n/a | 3 of 3 |" in summary(found).markdown
    assert "3 of 3" in html(found)


def test_base_diverged(compared):
    verdict = compared({"adamw": [None] * 3, "sam": [70.0, 71.0, 72.0]}).verdict
    assert verdict[0] == "No comparison: every trial of the base adamw diverged."
    assert "adamw (3 of 3)" in verdict[2]
    other = compared({"adamw": [70.0, 71.0, 72.0], "sam": [None] * 3}).verdict
    assert other[0] == "No comparison: adamw is the only method that ever reached the end."


def test_some_diverged(compared):
    verdict = compared({"adamw": BASE, "sam": [*SAM[:4], None], "gsam": SAME}).verdict
    assert "Some trials diverged and are left out of the means: sam (1 of 5)." in verdict


def test_small_metrics_get_more_decimals(compared):
    found = compared({"adamw": [0.0123, 0.0125, 0.0121], "sam": [0.0101, 0.0104, 0.0102]}, higher=False, metric="loss")
    assert "| sam | 0.01023 [0.00985, 0.01061] | -0.00207 [-0.00" in summary(found).markdown
    assert found.verdict[0] == (
        "Yes: sam takes the test loss from 0.01230 [0.01180, 0.01280] to 0.01023 [0.00985, 0.01061]."
    )


def test_files(compared):
    found = compared({"adamw": BASE, "sam": SAM})
    found.plan.out.mkdir()
    write_report(found)
    assert (found.plan.out / "table.md").read_text() == summary(found).markdown
    assert (found.plan.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((found.plan.out / "results.json").read_text())
    assert [row["method"] for row in numbers["rows"]] == ["adamw", "sam"]
    assert numbers["rows"][1]["difference"]["value"] == pytest.approx(4.64)
    assert not list(found.plan.out.glob(".*"))


def test_a_folder_that_cannot_be_written_at_the_end(compared):
    found = compared({"adamw": BASE})
    (found.plan.out / "table.md").mkdir(parents=True)
    with pytest.raises(RunError, match=r"the report cannot be written to '.*out': "):
        write_report(found)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.scripts, self.addresses, self.text = set(), [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "script":
            self.scripts.append("")
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset") and value
        ]

    def handle_data(self, data):
        if self.lasttag == "script" and data.strip():
            self.scripts[-1] += data
        else:
            self.text += data


def test_the_page_needs_nothing_else_and_escapes_names(compared):
    hostile = "<script>alert(1)</script>&\"'"
    text = html(compared({"adamw": BASE, "sam": SAM}, name=hostile, metric="<img src=x onerror=alert(2)>"))
    page = _Page()
    page.feed(text)
    assert not page.tags & {"img", "link", "iframe", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert all(address.startswith("#") for address in re.findall(r"url\((.*?)\)", text))
    assert hostile in page.text
    assert "lr 0.1" in page.text
    assert "torch 2, steppe 0, python 3" in page.text
    numbers, script = page.scripts
    assert [row["name"] for row in json.loads(numbers)[0]["rows"]] == ["adamw", "sam"]
    assert script.strip() == (SHOW / "templates/page.js").read_text().strip()


@pytest.mark.parametrize("name", ["<b onclick=x>", "</script><b onclick=x>", "<!--<script>", "-->"])
def test_a_hostile_method_name_is_escaped(compared, name):
    text = html(compared({"adamw": BASE, name: SAM}))
    page = _Page()
    page.feed(text)
    assert "b" not in page.tags
    assert len(page.scripts) == 2
    assert {row["name"] for panel in json.loads(page.scripts[0]) for row in panel["rows"]} == {"adamw", name}


def test_a_name_of_the_users_is_no_mathematics(compared):
    """It fails after all training where a figure takes it for a formula that is none."""
    found = compared({"adamw": BASE, "sam": SAM}, metric="cost $x_$ y", name="a$_$b.py:f")
    write_report(found)
    assert "cost $x_$ y" in (found.plan.out / "report.html").read_text()


def test_markdown_escapes_what_would_break_the_table(compared):
    text = summary(compared({"adamw": BASE}, metric="a|b")).markdown
    assert "test a\\|b" in text


@pytest.mark.parametrize(("value", "text"), [(0.0004, "p<0.001"), (0.0123, "p=0.012"), (1.0, "p=1.000")])
def test_p_values_are_written_as_people_write_them(value, text):
    assert probability(value) == text


# In scripts and notebooks


def shown(found):
    return replace(found, summary=summary(found))


def test_a_result_is_two_lines_and_no_dump(compared):
    found = compared({"adamw": BASE, "sam": SAM})
    expected = f"Comparison of mnist1d, base adamw, 2 epochs, 5 seeds\n{found.verdict[0]}"
    assert repr(found) == repr(shown(found)) == str(found) == expected
    assert str(shown(found)) == summary(found).markdown
    assert found._repr_html_() is None


class Cells(HTMLParser):
    """The texts of a table, and those that are bold."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.bold, self.inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag, dict(attrs).get("style", "")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside and self.inside[0] in ("td", "th"):
            self.rows[-1].append(data)
            if "bold" in self.inside[1]:
                self.bold.append(data)


def test_notebooks_show_table_and_verdict(compared):
    found = shown(compared({"adamw": BASE, "sam": SAM, "gsam": SAME}))
    page = found._repr_html_()
    cells = Cells(page)
    assert cells.rows[0][:2] == ["method", "test accuracy (%)"]
    assert {row[0]: row[1] for row in cells.rows[1:]} == {
        "adamw": "65.64 [64.34, 66.94]",
        "sam": "70.28 [69.02, 71.54]",
        "gsam": "65.64 [64.33, 66.95]",
    }
    assert {row[0] for row in cells.rows} & set(cells.bold) == {"adamw", "sam"}  # the base, and what is significant
    assert page.startswith(f"<p><strong>{found.verdict[0]}</strong> {plain(found.verdict[1])}")
    assert not re.search(r"color|background|<script|<style", page)  # those of the notebook, light or dark


def test_notebooks_are_given_no_names_as_markup(compared):
    page = shown(compared({"adamw": BASE, "sam": SAM}, metric="<img src=x>"))._repr_html_()
    assert "<img" not in page
    assert "&lt;img src=x&gt;" in page


def test_pandas_has_a_line_for_each_method(compared):
    found = compared({"adamw": BASE, "sam": SAM, "gsam": [None] * 5})
    frame = found.to_pandas()
    assert list(frame["method"]) == [row.method for row in found.rows]
    by_name = frame.set_index("method").to_dict("index")
    sam = next(row for row in found.rows if row.method == "sam")
    assert by_name["sam"] == {
        "is_base": False,
        "trials": 5,
        "diverged": 0,
        "test_metric": sam.metric.value,
        "test_metric_error": sam.metric.error,
        "test_metric_low": sam.metric.low,
        "test_metric_high": sam.metric.high,
        "difference": sam.difference.value,
        "difference_low": sam.difference.low,
        "difference_high": sam.difference.high,
        "p": sam.difference.p,
        "p_holm": sam.difference.p_holm,
        "significant": True,
        "train_loss": 0.5,
        "gap": pytest.approx(sam.gap),
        "gradient_evaluations": 20.0,
        "examples": 100.0,
        "updates": 10.0,
        "seconds": 2.0,
        "relative_time": 2.0,
        "relative_memory": pytest.approx(math.nan, nan_ok=True),
    }
    assert by_name["gsam"]["diverged"] == 5
    assert math.isnan(by_name["gsam"]["test_metric"])
    assert math.isnan(by_name["adamw"]["difference"])
    assert {name: str(frame[name].dtype) for name in ("is_base", "significant", "trials", "test_metric", "p")} == {
        "is_base": "bool",
        "significant": "bool",
        "trials": "int64",
        "test_metric": "float64",
        "p": "float64",
    }


def test_pandas_has_nan_where_all_diverged(compared):
    found = compared({"adamw": [None] * 3, "sam": [None] * 3})
    for frame, columns in ((found.to_pandas(), ["test_metric", "gap"]), (found.to_pandas("trials"), ["test_metric"])):
        for name in columns:
            assert str(frame[name].dtype) == "float64"
            assert frame[name].isna().all()


def test_pandas_has_a_line_for_each_trial(record, compared):
    found = compared({"adamw": [65.1, None], "sam": SAM[:2]})
    measured = record("gsam", 3, 50.0, sharpness={"trace": 2.5}, base="adamw")
    found = replace(found, records=[*found.records, measured])
    frame = found.to_pandas("trials")
    assert len(frame) == 5
    assert list(zip(frame["row"], frame["seed"], frame["status"], strict=True)) == [
        ("adamw", 0, "finished"),
        ("adamw", 1, "diverged"),
        ("sam", 0, "finished"),
        ("sam", 1, "finished"),
        ("gsam", 3, "finished"),
    ]
    assert frame["test_metric"].to_list() == pytest.approx([65.1, math.nan, 70.2, 70.9, 50.0], nan_ok=True)
    assert frame["diverged_epoch"].to_list() == pytest.approx([math.nan, 1, math.nan, math.nan, math.nan], nan_ok=True)
    assert frame["trace"].to_list() == pytest.approx([math.nan] * 4 + [2.5], nan_ok=True)
    assert frame["base"].isna().to_list() == [True] * 4 + [False]
    for name, kind in {
        "seed": "int64",
        "epochs": "int64",
        "gradient_evaluations": "int64",
        "seconds": "float64",
    }.items():
        assert str(frame[name].dtype) == kind


def test_what_pandas_cannot_have(compared, monkeypatch):
    found = compared({"adamw": BASE, "sam": SAM})
    with pytest.raises(UserError, match=r"^unknown table 'trial'; did you mean 'trials'\? known: methods, trials$"):
        found.to_pandas("trial")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"^the module 'pandas' is not installed; install it with: pip install pandas$"):
        found.to_pandas()
