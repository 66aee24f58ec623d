"""Every method against its paper: three printed steps, and a plain loop over 200 mini-batches."""

from __future__ import annotations

import pytest
import torch

import cases
import reference
from cases import COMBINATIONS, combination_id
from problems import Problem, quadratic
from steppe import (
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    PGN,
    SAM,
    USAM,
    AdaSAM,
    FriendlySAM,
    LightSAM,
    LookSAM,
    UnifiedSAM,
    VaSSO,
)

_SGD = lambda params: torch.optim.SGD(params, lr=0.05)  # noqa: E731

# f = (x1^2 + 10 x2^2) / 2 from (1, -2), deterministic: the iterates after steps 1, 2 and 3.
VECTORS = {
    "sam": (
        lambda p, **kw: SAM(_SGD(p), rho=0.1, **kw),
        [(0.949750311915, -0.950062383056), (0.901765439529, -0.425279170239), (0.855640022801, -0.163727080824)],
    ),
    "usam": (
        lambda p, **kw: USAM(_SGD(p), rho=0.1, **kw),
        [(0.945, 0.0), (0.893025, 0.0), (0.843908625, 0.0)],
    ),
    "gsam": (
        lambda p, **kw: GSAM(_SGD(p), rho=0.1, alpha=0.4, **kw),
        [(0.950604479699, -0.950021502851), (0.904185203787, -0.425111954236), (0.860887654724, -0.163127801685)],
    ),
    "adasam": (
        lambda p, **kw: AdaSAM(p, 0.01, rho=0.1, betas=(0.9, 0.999), eps=1e-3, **kw),
        [(0.968392850799, -1.96837725922), (0.925948689111, -1.92589939443), (0.876611273414, -1.8764642455)],
    ),
    "adasam-beta1-0": (
        lambda p, **kw: AdaSAM(p, 0.01, rho=0.1, betas=(0.0, 0.999), eps=1e-3, **kw),
        [(0.683928507986, -1.6837725922), (0.505295437344, -1.4789890488), (0.383363604491, -1.32166183003)],
    ),
    "lightsam-i": (
        lambda p, **kw: LightSAM(p, 0.5, rho=0.1, variant="adagrad-norm", **kw),
        [(0.976097514631, -1.5005716556), (0.957395202443, -1.20276590618), (0.940844891969, -0.988138355753)],
    ),
    "lightsam-ii": (
        lambda p, **kw: LightSAM(p, 0.5, rho=0.1, variant="adagrad", **kw),
        [(0.5, -1.5), (0.278115003485, -1.20183799933), (0.158566560102, -0.986950335361)],
    ),
    "lightsam-iii": (
        lambda p, **kw: LightSAM(p, 0.01, rho=0.01, variant="adam", **kw),
        [(0.968377223398, -1.9683772234), (0.925906057821, -1.92589324891), (0.876513700759, -1.87644268058)],
    ),
}


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("name", VECTORS)
def test_three_printed_steps(name, foreach):
    make, iterates = VECTORS[name]
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = make([w], foreach=foreach)

    def closure():
        opt.zero_grad()
        loss = quadratic(w)
        loss.backward()
        return loss

    for expected in iterates:
        opt.step(closure)
        torch.testing.assert_close(w.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("eta", "expected"), [(0.0, (0.00249921912, -0.19993752928))])
def test_printed_adaptive_climb(eta, expected):
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = ASAM(_SGD([w]), rho=0.1, eta=eta)
    quadratic(w).backward()
    with opt.ascended():
        delta = w.detach() - torch.tensor([1.0, -2.0], dtype=torch.float64)
        quadratic(w).backward()
    torch.testing.assert_close(delta, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize(("case", "base"), [c for c in COMBINATIONS if c[0].reference], ids=combination_id)
@pytest.mark.stack("Plain loop with `step`", "plain")
def test_plain_loop_over_200_mini_batches(case, base, foreach):
    problem = Problem()
    batches = problem.batches(200)
    expected = list(case.rows(Problem(), batches, base))
    start = problem.flat()
    opt = case.build(problem.model.parameters(), base, foreach)
    for batch, w in zip(batches, expected, strict=True):
        opt.step(problem.closure(opt, batch))
        torch.testing.assert_close(problem.flat(), w, rtol=0.0, atol=1e-12)
    assert (problem.flat() - start).norm() > 0.1


# name: (method, plain loop, settings of both)
FORMS = {
    "periodic, stretched": (cases.periodic, reference.periodic, {"rho": 0.02, "k": 4, "stretched": True}),
    "msam after a warm-up": (MSAM, reference.msam, {"rho": 0.1, "warmup": 7}),
    "adaptive msam after a warm-up": (MSAM, reference.msam, {"rho": 0.2, "eta": 0.1, "warmup": 7}),
    "looksam, the defaults": (LookSAM, reference.looksam, {"rho": 0.05, "k": 5, "alpha": 0.2}),
    "friendlysam, part of the average": (FriendlySAM, reference.friendlysam, {"rho": 0.1, "sigma": 0.3, "decay": 0.9}),
    "vasso, the defaults": (VaSSO, reference.vasso, {"rho": 0.05, "theta": 0.9}),
    "pgn beyond the sharp gradient": (PGN, reference.pgn, {"rho": 0.05, "alpha": 3.0}),
    "unified sam, half and half": (UnifiedSAM, reference.unifiedsam, {"rho": 0.1, "lam": 0.5}),
    "unified sam, from sam to usam": (UnifiedSAM, reference.unifiedsam, {"rho": 0.1, "lam": "1/t"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_other_settings(name):
    method, plain, kwargs = FORMS[name]
    problem, base = Problem(), cases.BASES[0]
    batches = problem.batches(40)
    opt = method(base.make(problem.model.parameters()), **kwargs)
    for batch, w in zip(
        batches, plain(problem.flat(), problem.gradient, batches, base.update(), **kwargs), strict=True
    ):
        opt.step(problem.closure(opt, batch))
        torch.testing.assert_close(problem.flat(), w, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
def test_esam_is_the_plain_loop_with_its_masks(foreach):
    problem, base, rho, beta = Problem(), cases.BASES[0], 0.1, 0.6
    batches, start = problem.batches(60), problem.flat()
    opt = ESAM(base.make(problem.model.parameters()), rho=rho, beta=beta, foreach=foreach)
    masks, rows = [], []
    for batch in batches:
        before = problem.flat()
        opt.zero_grad()
        problem.loss(batch).backward()
        with opt.ascended():
            masks.append((problem.flat() != before).double())  # no entry of this gradient is zero
            problem.loss(batch).backward()
        opt.base.step()
        rows.append(problem.flat())
    expected = reference.esam(start, problem.gradient, batches, base.update(), rho, beta, masks)
    for row, w in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, w, rtol=0.0, atol=1e-12)
    share = torch.stack(masks).mean(0)  # over steps, of each weight
    assert share.mean().item() == pytest.approx(beta, abs=3 * (beta * (1 - beta) / (60 * len(start))) ** 0.5)
    assert share.min() > 0.25
    assert share.max() < 0.95
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)


def test_masks_depend_on_seed_and_step_and_on_nothing_else():
    def moved(seed, step, layout=torch.contiguous_format, dtype=torch.float64, foreach=None):
        w = torch.nn.Parameter(torch.ones(4, 3, 2, 2, dtype=dtype).to(memory_format=layout))
        opt = ESAM(_SGD([w]), rho=0.5, seed=seed, foreach=foreach)
        opt.state["engine"]["step"] = step
        torch.manual_seed(int(torch.randint(1000, ())))  # whoever else draws
        w.grad = torch.ones_like(w)
        with opt.ascended():
            found = (w.detach() != 1).flatten().tolist()
            w.grad = torch.ones_like(w)
        return found

    first = moved(0, 0)
    assert 0 < sum(first) < len(first)
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float64, torch.bfloat16):
            for foreach in (True, False):
                assert moved(0, 0, layout, dtype, foreach) == first
    assert moved(0, 1) != first
    assert moved(1, 0) != first
