"""Claims: they hold, they can fail, and what the command line makes of them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from steppe import cli
from steppe.theory import CLAIMS, Claim
from steppe.theory.claim import Bound, Equal, Point, Power, interval
from theory_cases import reduced
from theory_cases.constant_rho import rho


def made(checks, measured, predicted, parameters=None, seeds=1):
    """Return the judgement of a claim about numbers made by hand, one list of a number per seed for each point."""
    parameters = [{} for _ in measured] if parameters is None else parameters
    claim = Claim("made", "ours", "Made.", "", tuple(parameters), lambda p: {}, lambda p, seed: {}, checks, seeds)
    points = [
        Point(p, {"y": y}, [{"x": value} for value in values])
        for p, values, y in zip(parameters, measured, predicted, strict=True)
    ]
    return claim.judge(points)


def test_bounds_without_noise():
    found = made((Bound("x", "<=", "y"),), [[1.0], [3.0]], [2.0, 4.0])
    assert (found.verdict, found.nearest.margin, found.nearest.room) == (
        "holds",
        pytest.approx(1.0),
        pytest.approx(0.25),
    )
    assert found.nearest.predicted == 4.0
    found = made((Bound("x", "<=", "y"),), [[1.0], [4.1]], [2.0, 4.0])
    assert (found.verdict, found.nearest.margin) == ("refuted", pytest.approx(-0.1))
    found = made((Bound("x", ">=", "y"),), [[2.5], [3.0]], [2.0, 4.0])
    assert (found.verdict, found.nearest.margin) == ("refuted", pytest.approx(-1.0))
    assert made((Bound("x", ">=", "y"),), [[2.0 - 1e-12]], [2.0]).verdict == "holds"  # rounding
    assert made((Bound("x", "<=", "y"),), [[0.0]], [0.0]).verdict == "holds"


def test_bounds_of_expectations_and_of_every_run():
    values = [1.0, 2.0, 3.0]
    half = 9.924843 / math.sqrt(3)  # Student's t at 99 % with 2 degrees of freedom
    found = made((Bound("x", "<=", "y"),), [values], [8.0], seeds=3)
    assert found.verdict == "holds"
    assert (found.nearest.low, found.nearest.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert (found.nearest.measured, found.nearest.margin) == (2.0, pytest.approx(6 - half))
    assert made((Bound("x", "<=", "y"),), [values], [7.0], seeds=3).verdict == "refuted"
    assert made((Bound("x", ">=", "y"),), [values], [-3.5], seeds=3).verdict == "refuted"
    surely = made((Bound("x", "<=", "y", surely=True),), [values], [3.0], seeds=3)
    assert (surely.verdict, surely.nearest.measured) == ("holds", 3.0)
    assert made((Bound("x", "<=", "y", surely=True),), [values], [2.9], seeds=3).verdict == "refuted"
    assert made((Bound("x", ">=", "y", surely=True),), [values], [1.1], seeds=3).verdict == "refuted"


def test_intervals_are_wider_for_several_findings():
    one = made((Bound("x", "<=", "y"),), [[1.0, 2.0]], [1e6], seeds=2).nearest
    two = made((Bound("x", "<=", "y"),), [[1.0, 2.0]] * 2, [1e6] * 2, seeds=2).nearest
    assert two.high == pytest.approx(interval([1.0, 2.0], 0.995)[1])
    assert two.high > one.high


def test_equalities():
    exact = (Equal("x", "y", within=0.1),)
    assert made(exact, [[1.05]], [1.0]).verdict == "holds"
    assert made(exact, [[1.05]], [1.0]).nearest.margin == pytest.approx(0.05)
    assert made(exact, [[0.85]], [1.0]).verdict == "refuted"
    assert made((Equal("x", "y", within=0.1, unit="rho"),), [[0.3]], [0.0], [{"rho": 4.0}]).verdict == "holds"
    assert made((Equal("x", "y", within=0.1, unit="rho"),), [[0.5]], [0.0], [{"rho": 4.0}]).verdict == "refuted"
    every = (Equal("x", "y", within=0.1, surely=True),)
    assert made(every, [[1.0, 1.09]], [1.0], seeds=2).verdict == "holds"
    assert made(every, [[1.0] * 50 + [1.2]], [1.0], seeds=51).nearest.measured == 1.2
    assert made(every, [[1.0] * 50 + [1.2]], [1.0], seeds=51).verdict == "refuted"


def test_equalities_of_expectations():
    check = (Equal("x", "y", within=0.1),)
    values = [0.98, 1.0, 1.02, 1.01, 0.99]
    half = 4.604095 * math.sqrt(0.00025 / 5)  # 4 degrees of freedom
    found = made(check, [values], [1.01], seeds=5)
    assert (found.verdict, found.nearest.margin) == ("holds", pytest.approx(half - 0.01))
    outside = made(check, [values], [1.05], seeds=5)  # within the tolerance, but the interval excludes it
    assert (outside.verdict, outside.nearest.margin) == ("refuted", pytest.approx(half - 0.05))
    wide = made(check, [[0.5, 1.5, 1.0, 0.6, 1.4]], [1.0], seeds=5)  # it cannot tell
    assert wide.verdict == "refuted"
    assert wide.nearest.low < 1.0 < wide.nearest.high
    assert made(check, [[1.0, 1.0]], [1.0], seeds=2).verdict == "holds"  # no spread at all


def test_powers():
    steps, check = [10, 100, 1000, 10000], (Power("x", over="T", power=-2.0, within=0.1),)
    where = [{"T": t} for t in steps]
    found = made(check, [[3 * t**-2.02] for t in steps], [0] * 4, where)
    assert (found.verdict, found.nearest.measured) == ("holds", pytest.approx(-2.02))
    assert found.nearest.margin == pytest.approx(0.08)
    assert made(check, [[3 * t**-1.8] for t in steps], [0] * 4, where).verdict == "refuted"
    # The right slope, but so far from a line that it may be another.
    assert made(check, [[f * t**-2.0] for f, t in zip((1, 3, 3, 1), steps, strict=True)], [0] * 4, where).verdict == (
        "refuted"
    )
    assert made(check, [[0.0], *([t**-2.0] for t in steps[1:])], [0] * 4, where).verdict == "refuted"
    assert (
        made(check, [[t**-2.0] for t in steps[:2]], [0] * 2, where[:2]).verdict == "refuted"
    )  # two points tell nothing
    apart = [{"T": t, "kappa": k} for k in (1, 2) for t in steps]
    both = (Power("x", over="T", power=-2.0, within=0.1, each=("kappa",)),)
    found = made(both, [[p["kappa"] * p["T"] ** -2.0] for p in apart], [0] * 8, apart)
    assert [f.parameters for f in found.findings] == [{"kappa": 1}, {"kappa": 2}]
    assert found.verdict == "holds"


def test_powers_with_seeds():
    where, check = [{"T": 1.0}, {"T": 10.0}], (Power("x", over="T", power=1.0, within=0.1),)
    slopes = [0.99, 1.0, 1.01, 1.02, 0.985]
    found = made(check, [[1.0] * 5, [10**s for s in slopes]], [0, 0], where, seeds=5)
    assert (found.verdict, found.nearest.measured) == ("holds", pytest.approx(1.001))
    low, high = interval(slopes, 0.99)
    assert (found.nearest.low, found.nearest.high) == (pytest.approx(low), pytest.approx(high))
    assert made(check, [[1.0] * 5, [10 ** (s + 0.06) for s in slopes]], [0, 0], where, seeds=5).verdict == "refuted"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("surely", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_what_diverged_refutes(value, surely, first):
    values = [value, 1.0] if first else [1.0, value]
    for check in (Bound("x", "<=", "y", surely), Bound("x", ">=", "y", surely), Equal("x", "y", 10.0, surely=surely)):
        found = made((check,), [[1.0, 1.01], values], [1.0, 1.0], seeds=2)
        assert found.verdict == "refuted"
        assert found.nearest.margin == -math.inf
        assert made((check,), [[value]], [1.0]).verdict == "refuted"


# The command line.

QUICK = ("sam-two-cycle", "sam-nonsmooth-frozen")


@pytest.fixture
def theory(capsys):
    def run(*words):
        capsys.readouterr()
        code = cli.main(["theory", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_list(theory):
    code, out, error = theory()
    assert (code, error) == (0, "")
    for claim in CLAIMS.values():
        assert f"{claim.id}\n    {claim.statement}\n    source: {claim.source}\n" in out


def test_the_list_does_not_import_what_is_slow():
    heavy = ("torch", "numpy", "matplotlib", "scipy", "sklearn")
    script = (
        "import sys\nfrom steppe import cli\ncode = cli.main(['theory'])\n"
        f"print('heavy:', [name for name in {heavy} if name in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("jobs", [1, 2])
def test_running_claims(theory, tmp_path, jobs):
    file = tmp_path / "new" / "claims.json"
    code, out, error = theory(*QUICK, QUICK[0], "--json", file, "--jobs", jobs)
    assert (code, error) == (0, "")
    assert out.endswith("2 of 2 verdicts are as expected\n")
    records = json.loads(file.read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == list(QUICK)
    for record in records:
        claim = CLAIMS[record["id"]]
        judgement = claim.run()
        assert {name: record[name] for name in ("source", "statement", "formula", "seeds", "expected")} == {
            name: getattr(claim, name) for name in ("source", "statement", "formula", "seeds", "expected")
        }
        for name in ("predicted", "measured", "low", "high", "margin", "room"):
            assert record[name] == getattr(judgement.nearest, name)
        assert record["verdict"] == "holds"
        assert len(record["findings"]) == len(judgement.findings)
        assert [f["margin"] for f in record["findings"]] == [f.margin for f in judgement.findings]
        for text in (claim.id, claim.source, claim.statement, claim.formula, f"{judgement.nearest.predicted:.6g}"):
            assert text in out
        assert f"verdict    holds, margin {judgement.nearest.margin:.3g}\n" in out


def test_a_verdict_that_is_not_expected(theory, monkeypatch, tmp_path):
    name, file = "sam-two-cycle", tmp_path / "claims.json"
    rho(1.5)(monkeypatch)
    code, out, _ = theory(*QUICK, "--jobs", 1, "--json", file)
    assert code == 1
    assert "verdict    refuted (expected: holds), margin -" in out
    assert out.endswith("1 of 2 verdicts are as expected; not as expected: sam-two-cycle\n")
    assert [record["verdict"] for record in json.loads(file.read_text())] == ["refuted", "holds"]
    monkeypatch.setitem(CLAIMS, name, replace(CLAIMS[name], expected="refuted"))
    code, out, _ = theory(name, "--jobs", 1)
    assert code == 0
    assert "verdict    refuted, margin -" in out
    monkeypatch.undo()
    monkeypatch.setitem(CLAIMS, name, replace(CLAIMS[name], expected="refuted"))
    code, out, _ = theory(name, "--jobs", 1)
    assert code == 1
    assert "verdict    holds (expected: refuted), margin" in out


def test_runs_that_diverge_are_null_in_json(theory, monkeypatch, tmp_path):
    file, name = tmp_path / "claims.json", "sam-two-cycle"
    broken = {"distance": math.nan, "jump": math.inf}
    monkeypatch.setitem(CLAIMS, name, replace(CLAIMS[name], simulate=lambda p, seed: broken))
    code, _, _ = theory(name, "--jobs", 1, "--json", file)
    (record,) = json.loads(file.read_text())
    assert code == 1
    assert (record["verdict"], record["measured"], record["margin"]) == ("refuted", None, None)


def test_all_claims_and_their_figures(theory, monkeypatch, tmp_path):
    for name in CLAIMS:
        small = reduced(name)
        grid = tuple({**p, "steps": max(30, p["steps"] // 40)} for p in small.grid)  # too short for most verdicts
        monkeypatch.setitem(CLAIMS, name, replace(small, grid=grid, seeds=min(small.seeds, 2)))
    folder = tmp_path / "new" / "figures"
    code, out, _ = theory("all", "--jobs", 1, "--plots", folder)
    assert code == 1
    assert re.findall(r"^(\S+)  \(", out, re.MULTILINE) == list(CLAIMS)
    drawn = sorted(f"{name}.png" for name, claim in CLAIMS.items() if claim.plot is not None)
    assert len(drawn) > 10
    assert sorted(path.name for path in folder.iterdir()) == drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


def test_the_page(theory, tmp_path, monkeypatch):
    page = tmp_path / "docs" / "lab.md"
    monkeypatch.setitem(CLAIMS, QUICK[1], replace(CLAIMS[QUICK[1]], formula="f = max{|x|, |y|}", expected="refuted"))
    code, _, _ = theory(*QUICK, "--jobs", 1, "--page", page)
    assert code == 1
    text, claim = page.read_text(encoding="utf-8"), reduced("sam-strongly-convex-rate")
    monkeypatch.setitem(CLAIMS, claim.id, claim)
    for name in QUICK:
        assert f"\n### {name}\n\n{CLAIMS[name].statement}\n\n`{CLAIMS[name].formula}`\n" in text
        assert f"\n| [{name}](#{name}) | " in text
    assert "(expected: refuted)" in text
    assert claim.id not in text
    # Figures lie beside the page, and links to them lead there.
    code, _, _ = theory(claim.id, "--jobs", 1, "--page", page)
    assert code == 0
    assert f"![{claim.id}](lab/{claim.id}.png)" in page.read_text(encoding="utf-8")
    assert (page.parent / "lab" / f"{claim.id}.png").read_bytes().startswith(b"\x89PNG")
    code, _, _ = theory(claim.id, "--jobs", 1, "--page", page, "--plots", tmp_path / "elsewhere")
    assert f"![{claim.id}](../elsewhere/{claim.id}.png)" in page.read_text(encoding="utf-8")


def test_the_page_in_docs_is_about_these_claims():
    text = (Path(__file__).parents[2] / "docs/theory.md").read_text(encoding="utf-8")
    assert re.findall("^### (.+)$", text, re.MULTILINE) == list(CLAIMS)
    for claim in CLAIMS.values():
        assert f"### {claim.id}\n\n{claim.statement}\n\n`{claim.formula}`\n\n* source: {claim.source}\n" in text
        assert (f"(theory/{claim.id}.png)" in text) == (claim.plot is not None)
    assert "(expected" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sam-two-cylce"], "unknown claim 'sam-two-cylce'; did you mean 'sam-two-cycle'? known: sam-two-cycle, "),
        (["al"], "unknown claim 'al'; did you mean 'all'?"),
        (["all", "--jobs", 0], "--jobs: must be greater than or equal to 1, got 0"),
        (["--jsn", "x"], "No such option: --jsn"),
    ],
)
def test_bad_words_are_one_line(theory, words, message):
    code, out, error = theory(*words)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {message}")
    assert error.count("\n") == 1


def test_what_cannot_be_written_is_one_line(theory, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["--json", tmp_path], ["--plots", tmp_path / "file" / "figures"], ["--page", tmp_path]):
        code, _, error = theory(QUICK[0], *words, "--jobs", 1)
        assert code == 2
        assert error.startswith(f"steppe: cannot write to {words[1]}: ")
        assert error.count("\n") == 1


def test_a_claim_that_cannot_be_carried_out_is_one_line(theory, monkeypatch):
    def simulate(p, seed):
        raise ValueError("no such thing")

    monkeypatch.setitem(CLAIMS, QUICK[0], replace(CLAIMS[QUICK[0]], simulate=simulate))
    code, _, error = theory(QUICK[0], "--jobs", 1)
    assert code == 1
    assert error.startswith("steppe: the claim sam-two-cycle failed with ValueError: no such thing (")
    assert error.count("\n") == 1


def test_interrupted(theory, monkeypatch):
    def simulate(p, seed):
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, QUICK[1], replace(CLAIMS[QUICK[1]], simulate=simulate))
    code, out, error = theory(*QUICK, "--jobs", 1)
    assert code == 130
    assert out.startswith(QUICK[0])
    assert error == "steppe: interrupted; nothing is kept but what is shown above\n"
