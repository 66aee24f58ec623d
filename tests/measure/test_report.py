"""Everything at once: the names, the numbers, the cost, the files; and the few numbers of a comparison."""

from __future__ import annotations

import copy
import json
import math
import re
import runpy
import struct
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from steppe import measure
from steppe.measure import Objective, worst
from steppe.measure.quick import quick
from steppe.measure.reporting import RADII, _Sizes

PLAIN = [
    "worst-case l2",
    "worst-case l2 adaptive",
    "worst-case linf",
    "worst-case linf adaptive",
    "average-case",
    "average-case adaptive",
    "surrogate gap",
    "gradient norm",
    "largest eigenvalue",
    "largest eigenvalue, adaptive",
    "trace",
]
NORMALISED = ["worst-case l2 adaptive", "worst-case linf adaptive", "average-case adaptive"]
EDGE = "SAM's edge of stability"


@pytest.fixture(scope="module")
def found():
    return measure.report_of(tiny.case("mlp").objective(), budget=120, lr=0.1, seed=3)


def with_normalised(names):
    return [n for name in names for n in ([name, f"{name}, logits normalised"] if name in NORMALISED else [name])]


def test_all_names_are_there_in_order(found):
    names = with_normalised(PLAIN)
    names.insert(names.index("largest eigenvalue") + 1, EDGE)
    assert list(found.measures) == names
    assert (found.examples, found.batches, found.weights, found.budget) == (10, 3, 31, 120)
    assert found.loss == tiny.case("mlp").objective().loss()
    assert set(found.versions) == {"steppe", "torch", "python"}


def test_every_number_is_what_its_measure_says(found):
    objective, sizes = tiny.case("mlp").objective(), _Sizes.within(120)
    twin = objective.normalized()
    more = {"iterations": sizes.iterations, "seed": 3}
    expected = {
        "worst-case l2": measure.worst_case(objective, 0.05, **more),
        "worst-case linf": measure.worst_case(objective, 2e-4, norm="linf", **more),
        "average-case": measure.average_case(objective, 5e-3, pairs=sizes.pairs, seed=3),
        "surrogate gap": measure.surrogate_gap(objective, 0.05),
        "gradient norm": measure.gradient_norm(objective),
        "trace": measure.trace(objective, products=sizes.products, seed=3),
    }
    for end, one in (("", objective), (", logits normalised", twin)):
        expected[f"worst-case l2 adaptive{end}"] = measure.worst_case(one, 0.5, adaptive=True, **more)
        expected[f"worst-case linf adaptive{end}"] = measure.worst_case(one, 2e-3, norm="linf", adaptive=True, **more)
        pairs = sizes.pairs
        expected[f"average-case adaptive{end}"] = measure.average_case(one, 0.1, adaptive=True, pairs=pairs, seed=3)
    for name, one in expected.items():
        got = found.measures[name]
        assert (got.value, got.error, got.n, got.settings) == (one.value, one.error, one.n, one.settings), name
    for name, got, adaptive in (
        ("largest eigenvalue", found.spectrum, False),
        ("largest eigenvalue, adaptive", found.adaptive_spectrum, True),
    ):
        one = measure.spectrum(objective, steps=sizes.steps, adaptive=adaptive, seed=3)
        assert (got.largest, got.smallest, got.settings) == (one.largest, one.smallest, one.settings)
        assert (found.measures[name].value, found.measures[name].error) == (one.largest[0], one.errors[0])
    assert found.measures[EDGE].value == measure.sam_edge(expected["gradient norm"].value, 0.05, 0.1)
    line, plane = measure.slice_1d(objective, points=sizes.line, seed=3), measure.slice_2d(objective, points=sizes.plane, seed=3)  # fmt: skip
    assert (found.line.axes, found.line.losses) == (line.axes, line.losses)
    assert (found.plane.axes, found.plane.losses) == (plane.axes, plane.losses)


def test_report_is_report_of_an_objective():
    case = tiny.case("mlp")
    options = {"budget": 90, "method": "finite_difference", "seed": 1, "radii": {"linf": 1e-3}}
    one = measure.report(
        case.model, case.loss, (case.x, case.y), batch_size=4, parameters=lambda name, _: "weight" in name, **options
    )
    other = measure.report_of(case.objective(parameters=lambda name, _: "weight" in name), **options)
    assert {n: e.value for n, e in one.measures.items()} == {n: e.value for n, e in other.measures.items()}
    assert one.weights == 24
    assert one.measures["worst-case linf"].settings["rho"] == 1e-3
    assert one.spectrum.settings["method"] == one.measures["trace"].settings["method"] == "finite_difference"


# What it costs


@settings(max_examples=200, deadline=None)
@given(st.floats(90, 1000), st.sampled_from([0.0, 6.0]))
def test_the_sizes_cost_no_more_than_the_budget(budget, reserved):
    sizes = _Sizes.within(budget, reserved)
    assert sizes.cost + reserved <= budget
    assert sizes.cost + reserved > 0.85 * budget - 8  # and not much less
    assert sizes.line % 2 == sizes.plane % 2 == 1  # with the weights themselves in the middle
    assert min(sizes.iterations, sizes.steps) >= 4
    assert min(sizes.pairs, sizes.products) >= 2


@given(st.floats(90, 5000), st.floats(1, 100))
def test_more_budget_never_buys_less(budget, more):
    small, large = _Sizes.within(budget), _Sizes.within(budget + more)
    assert all(getattr(small, name) <= getattr(large, name) for name in vars(small))


class Hidden(torch.autograd.Function):
    """A custom function; every Hessian-vector product is checked once where there is one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(Hidden.apply(self.first(x)))


@pytest.mark.parametrize("method", ["autograd", "finite_difference"])
@pytest.mark.parametrize("budget", [90, 133.3, 200])
@pytest.mark.parametrize("custom", [False, True])
def test_a_report_costs_no_more_than_its_budget(method, budget, custom):
    case = tiny.case("mlp")
    if custom:
        case = case.changed(model=Custom().double())
    objective = case.objective()
    before = objective.spent.cost
    found = measure.report_of(objective, budget=budget, lr=0.1, method=method)
    assert found.cost <= budget
    assert found.cost == pytest.approx(objective.spent.cost - before)
    parts = [*(one.cost for one in found.measures.values()), found.line.cost, found.plane.cost]
    assert sum(parts) == pytest.approx(found.cost - 0.4)  # the loss itself
    if method == "autograd":
        assert found.cost > 0.8 * budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 81.9}, r"^budget must be at least 82 gradients, got 81\.9\.$"),
        ({"budget": -1.0}, "^budget must be at least 82 gradients, got"),
        ({"budget": math.inf}, "^budget must be at least 82 gradients, got inf"),
        ({"budget": math.nan}, "^budget must be at least 82 gradients, got nan"),
        ({"radii": {"l1": 0.1}}, "^radii: unknown name 'l1'; known: l2, l2 adaptive, linf, "),
        ({"radii": {"gap": 0.0}}, r"^radii: 'gap' must be a finite number > 0, got 0\.0\.$"),
        ({"radii": {"average": math.nan}}, "^radii: 'average' must be a finite number > 0, got nan"),
        ({"lr": 0.0}, r"^lr must be a finite number > 0, got 0\.0\.$"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(options, message):
    objective = tiny.case("mlp").objective()
    before = objective.spent.cost
    with pytest.raises(ValueError, match=message):
        measure.report_of(objective, **options)
    assert objective.spent.cost == before


def test_a_small_budget_and_a_custom_function():
    objective = tiny.case("mlp").changed(model=Custom().double()).objective()
    with pytest.raises(ValueError, match=r"^budget must be at least 88 gradients, got 87"):
        measure.report_of(objective, budget=87)


def test_a_loss_that_is_no_number_any_more():
    case = tiny.case("mlp")
    objective = case.objective()
    with torch.no_grad():
        case.model[0].bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"^Cannot measure: the loss is nan, not a finite number\.$"):
        measure.report_of(objective)


# What it leaves out


def test_the_edge_needs_a_learning_rate():
    found = measure.report_of(tiny.case("mlp").objective(), budget=90)
    assert EDGE not in found.measures


@pytest.mark.parametrize("forward", [None, lambda model, batch: ({"out": model(batch[0])}, batch[1])])
def test_without_logits_there_is_nothing_to_normalise(forward):
    model, x, y = nn.Linear(3, 1).double(), tiny.normal(10, 3), tiny.normal(10, 1, seed=1)

    def loss(out, y):
        return mse_loss(out if forward is None else out["out"], y)

    found = measure.report(model, loss, (x, y), forward=forward, budget=90)
    assert list(found.measures) == PLAIN


# What it shows


def test_the_table(found):
    lines = found.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(found.measures)
    assert {line.count("|") for line in lines} == {8}
    worst_l2 = found.measures["worst-case l2"]
    assert f"| worst-case l2 | {worst_l2.value:.4g} | {worst_l2.error:.2g} | 3 | rho 0.05, iterations " in found.table()
    assert f"| gradient norm | {found.measures['gradient norm'].value:.4g} |  | 1 |  | 1.0 | " in found.table()
    text = str(found)
    assert text.startswith(f"loss {found.loss:.5g} over 10 examples in 3 batches; 31 weights; ")
    assert f"{found.cost:.0f} gradients (of 120 allowed)" in text


def test_a_report_in_scripts_and_notebooks(found):
    title = str(found).splitlines()[0]
    assert repr(found) == f"Report of {len(found.measures)} measures: {title}"
    page = found._repr_html_()
    assert page.startswith(f"<p><strong>{title}</strong></p>")
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", page)]
    assert cells[:3] == ["worst-case l2", f"{found.measures['worst-case l2'].value:.4g}", f"{found.measures['worst-case l2'].error:.2g}"]  # fmt: skip
    assert len(cells) == 7 * len(found.measures)
    assert "color" not in page


def test_the_numbers_in_pandas(found, monkeypatch):
    frame = found.to_pandas()
    assert list(frame["measure"]) == list(found.measures)
    assert list(frame["value"]) == [one.value for one in found.measures.values()]
    assert list(frame["error"].isna()) == [one.error is None for one in found.measures.values()]
    assert [str(frame[name].dtype) for name in ("value", "error", "n", "cost")] == [
        "float64",
        "float64",
        "int64",
        "float64",
    ]
    rho = dict(zip(frame["measure"], frame["rho"], strict=True))
    assert rho["worst-case l2"] == RADII["l2"]
    assert math.isnan(rho["trace"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ImportError, match=r"^the module 'pandas' is not installed; install it with: pip install pandas$"
    ):
        found.to_pandas()


def test_the_json(found):
    content = json.loads(found.to_json(), parse_constant=lambda text: pytest.fail(text))
    assert {name: one["value"] for name, one in content["measures"].items()} == {
        name: one.value for name, one in found.measures.items()
    }
    assert content["spectrum"]["nodes"] == found.spectrum.nodes.tolist()
    assert content["plane"]["losses"] == [list(part) for part in found.plane.losses]
    assert content["loss"] == found.loss


def png_size(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_the_figures(found):
    figures = found.figures()
    assert {name: png_size(content) for name, content in figures.items()} == {
        "slices.png": (1380, 570),
        "spectrum.png": (1380, 510),
    }
    assert all(len(content) > 20_000 for content in figures.values())  # something is drawn
    assert found.figures() == figures


def test_the_files(found, tmp_path):
    paths = found.save(tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["report.md", "report.json", "slices.png", "spectrum.png"]
    assert paths[0].read_text(encoding="utf-8") == f"{found}\n"
    assert paths[1].read_text() == found.to_json()
    assert paths[3].read_bytes() == found.figures()["spectrum.png"]
    assert found.save(str(tmp_path / "a" / "b")) == paths


def test_a_loss_that_overflows_nearby():
    w = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        w.weight.fill_(0.5)
    x, y = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    found = measure.report(w, tiny.exploding, (x, y), budget=90, radii={"l2": 0.5})
    assert found.measures["worst-case l2"].value == math.inf
    content = json.loads(found.to_json(), parse_constant=lambda text: pytest.fail(text))
    assert content["measures"]["worst-case l2"]["value"] == "inf"
    assert "inf" in content["line"]["losses"]
    assert "| worst-case l2 | inf |  | 1 |" in found.table()
    assert set(found.figures()) == {"slices.png", "spectrum.png"}


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4, -1e6])
def test_a_plane_that_is_flat_can_be_drawn(offset):
    """Where all weights have one dimension, directions are zero."""
    model = nn.Linear(3, 1).double()
    found = measure.report(
        model,
        lambda out, y: out.square().mean() + offset,
        (tiny.normal(8, 3), torch.zeros(8)),
        budget=90,
        parameters=lambda name, _: name == "bias",
    )
    assert len({loss for line in found.plane.losses for loss in line}) == 1
    assert png_size(found.figures()["slices.png"]) == (1380, 570)


def test_the_model_comes_back_as_it_was():
    case = tiny.case("conv")
    case.model.insert(1, nn.BatchNorm2d(2).double())
    case.model.eval()
    case.model[0].weight.grad = torch.ones_like(case.model[0].weight)
    before = tiny.everything(case.model)
    measure.report(case.model, case.loss, (case.x, case.y), batch_size=4, budget=90, lr=0.1).figures()
    assert tiny.everything(case.model) == before


# The settings of the paper, and the few numbers of a comparison


def test_the_papers_auto_pgd():
    expected = {"rho": 2e-4, "norm": "linf", "adaptive": False, "iterations": 20, "restarts": 1, "momentum": "average"}
    assert expected == worst.M_APGD_LINF
    assert measure.M_APGD_LINF is worst.M_APGD_LINF
    # Steps are looked at after 22 %, 41 %, 57 %, ... of all; the last gradient is not asked for.
    objective = tiny.case("mlp").objective(batch_size=10)
    found = measure.worst_case(objective, **measure.M_APGD_LINF)
    assert found.cost == pytest.approx(20.4)
    assert {name: found.settings[name] for name in expected} == expected
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    assert worst._checkpoints(20) == {math.ceil(share * 20) for share in shares[1:]} - {20, 21}
    # In a small box the loss is linear: rho times the 1-norm of the gradient, which sign steps find.
    assert found.value == pytest.approx(2e-4 * objective.gradient().abs().sum().item(), rel=1e-2)


def test_the_few_numbers_of_a_comparison():
    case = tiny.case("mlp")
    objective = case.objective(batch_size=4)
    found = quick(case.model, case.loss, (case.x, case.y), batch_size=4)
    assert found == {
        "worst-case linf": measure.worst_case(objective, **measure.M_APGD_LINF).value,
        "worst-case l2 adaptive": measure.worst_case(objective, RADII["l2 adaptive"], adaptive=True).value,
        "average-case adaptive": measure.average_case(
            objective, RADII["average adaptive"], adaptive=True, pairs=10
        ).value,
        "surrogate gap": measure.surrogate_gap(objective, RADII["gap"]).value,
        "largest eigenvalue": measure.spectrum(objective, steps=15).largest[0],
    }
    assert all(type(value) is float and value > 0 for value in found.values())


def test_the_few_numbers_cost_what_is_said(monkeypatch):
    from steppe.measure import quick as module

    made = []
    monkeypatch.setattr(module, "Objective", lambda *a, **k: made.append(Objective(*a, **k)) or made[0])
    case = tiny.case("mlp")
    quick(case.model, case.loss, (case.x, case.y), batch_size=10)
    assert made[0].spent.cost == pytest.approx(20.4 + 20.4 + 0.4 * 21 + 1.8 + 60 + 0.8)  # and the check
    assert "about 110 gradients" in quick.__doc__


def test_batches_of_128_unless_told_otherwise():
    model, x = nn.Linear(2, 2), torch.randn(300, 2)
    y = (x[:, 0] > 0).long()
    default, whole = (quick(copy.deepcopy(model), cross_entropy, (x, y), **more) for more in ({}, {"batch_size": 300}))
    assert default == quick(model, cross_entropy, (x, y), batch_size=128)
    assert default["worst-case linf"] >= whole["worst-case linf"] * (1 - 1e-3)  # m-sharpness is larger for smaller m


def test_the_benchmark_of_the_costs(monkeypatch, capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "measure_cost.py"
    monkeypatch.setattr("sys.argv", [str(path), "--repeats", "1"])
    script = runpy.run_path(str(path))
    script["main"].__globals__["objectives"] = lambda encoder: {"tiny": tiny.case("mlp").objective()}
    threads = torch.get_num_threads()
    try:
        script["main"]()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    counted = {line.split("|")[1].strip(): float(line.split("|")[3]) for line in lines if line.count("|") == 4 and line[-3].isdigit()}  # fmt: skip
    assert list(counted) == list(script["MEASURES"])
    assert counted["spectrum, 10 steps"] == 40
    assert counted["spectrum by differences, 10 steps"] == 20
    assert counted["2-D slice, 7 x 7 points"] == 19.6
    assert 190 < counted["report, default budget"] <= 200


def test_quick_refuses_what_is_random():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="Dropout '1' is in training mode"):
        quick(model, cross_entropy, (torch.randn(8, 3), torch.arange(8) % 2))
