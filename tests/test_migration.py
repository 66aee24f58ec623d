"""docs/migration.md is true: its code runs, steps agree where it says so, and old checkpoints load.

The other side is a plain loop over flat vectors, and dicts with the keys that the other packages write.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from problems import Problem
from steppe import ASAM, GSAM, PGN, SAM, FriendlySAM, LookSAM, SharpnessAware
from steppe.ascents import Adaptive
from steppe.blends import SurrogateGap
from steppe.passes import frozen_norm_stats

GUIDE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (before|after)\n(.*?)```", GUIDE, re.DOTALL)
AFTER = [code for side, code in BLOCKS if side == "after"]
(RECIPE,) = [code for code in AFTER if "def base_state" in code]
RHO = 0.1

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}
over_bases = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())


def plain(w, g):
    return RHO * g / (g.norm() + 1e-12)


def adaptive(w, g):
    return RHO * w**2 * g / ((w.abs() * g).norm() + 1e-12)


def decomposed(g, s, alpha=0.4):
    """GSAM by way of the angle between the gradients."""
    cosine = g @ s / (g.norm() * s.norm() + 1e-12)
    return s - alpha * (g - cosine * g.norm() * s / (s.norm() + 1e-12))


class OldRun:
    """The loop of the other packages."""

    def __init__(self, make, climb=plain, hand_on=lambda g, s: s):
        self.problem = Problem()
        self.params = list(self.problem.model.parameters())
        self.base = make(self.params)
        self.climb, self.hand_on = climb, hand_on

    def step(self, batch):
        w = self.problem.flat()
        g = self.problem.gradient(w, batch)
        e = self.climb(w, g)
        self.last = {"old_p": w, "e_w": e, "old_g": g, "grad": g, "sharpness": e, "gv": g, "momentum": g}
        self.put(self.hand_on(g, self.problem.gradient(w + e, batch)))
        self.base.step()
        # The tensor that they keep is the one that the base has stepped.
        self.last["old_p"] = self.problem.flat()

    def put(self, flat):
        for p, piece in zip(self.params, self.pieces(flat), strict=True):
            p.grad = piece

    def pieces(self, flat):
        return [x.view_as(p) for x, p in zip(flat.split([p.numel() for p in self.params]), self.params, strict=True)]

    def entries(self, *names):
        """What a wrapper keeps for each parameter."""
        return {i: {name: self.pieces(self.last[name])[i] for name in names} for i in range(len(self.params))}

    def checkpoint(self, state, **more):
        """The state of a wrapper; its groups are the base's with options of its own."""
        groups = [{**g, "rho": RHO, "adaptive": False} for g in self.base.state_dict()["param_groups"]]
        return {"state": state, "param_groups": groups, **more}


def same_steps(ours, theirs, n=6, rel=1e-11):
    problem = Problem()
    opt = ours(problem.model.parameters())
    for batch in problem.batches(n):
        opt.step(problem.closure(opt, batch))
        theirs.step(batch)
    return torch.allclose(problem.flat(), theirs.problem.flat(), rtol=rel, atol=rel)


# The code


def test_every_block_is_one_side():
    assert len(BLOCKS) == GUIDE.count("```python") == len(AFTER) + 4


@pytest.fixture
def names():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
    x, y = data[0]
    return {"model": model, "data": data, "x": x, "y": y, "loss_fn": nn.functional.cross_entropy}


def start_anew(names):
    """Put the model back to where it was at the first call, and return its weights."""
    start = names.setdefault("start", {k: v.clone() for k, v in names["model"].state_dict().items()})
    names["model"].load_state_dict(start)
    return torch.cat([p.detach().clone().flatten() for p in names["model"].parameters()])


def test_code_runs(names):
    line_for_line, one_line, closure, package, gsam, coupled, scaled, norm, recipe, loading = AFTER
    start = start_anew(names)

    exec(line_for_line, names)
    twice = torch.cat([p.detach().flatten() for p in names["model"].parameters()])
    for block in (one_line, closure):
        start_anew(names)
        exec(block, names)
        once = torch.cat([p.detach().flatten() for p in names["model"].parameters()])
        assert torch.equal(once, twice)
        assert not torch.equal(once, start)
        assert names["loss"].item() > 0

    exec(package, names)
    assert type(names["opt"].base) is torch.optim.AdamW
    exec(gsam, names)
    assert names["opt"].param_groups[0]["rho"] < 0.1  # it follows the schedule
    counted = names["model"][1].num_batches_tracked.item()
    exec(norm, names)
    names["opt"].step(names["closure"])
    assert names["model"][1].num_batches_tracked.item() == counted + 1

    exec(coupled, names)
    names["opt"].step(names["closure"])
    assert names["opt"].blend.alpha == pytest.approx(9.0)

    before = start_anew(names)
    exec(scaled, names | {"scaler": torch.amp.GradScaler("cpu")})
    assert not torch.equal(torch.cat([p.detach().flatten() for p in names["model"].parameters()]), before)

    base = torch.optim.AdamW(names["model"].parameters(), lr=0.5)
    names["closure"]()
    base.step()
    names["checkpoint"] = {"model": names["model"].state_dict(), "optimizer": base.state_dict()}
    exec(recipe, names)
    with pytest.warns(UserWarning, match="plain optimizer"):
        exec(loading, names)
    assert names["opt"].param_groups[0]["lr"] == 0.5


# Steps


@over_bases
def test_sam_is_the_same_to_rounding(make):
    assert same_steps(lambda p: SAM(make(p), rho=RHO), OldRun(make))


@over_bases
def test_adaptive_is_asam_without_eta(make):
    assert same_steps(lambda p: ASAM(make(p), rho=RHO, eta=0.0), OldRun(make, adaptive))
    assert not same_steps(lambda p: ASAM(make(p), rho=RHO), OldRun(make, adaptive), rel=1e-6)


@over_bases
def test_gsam_is_the_same_to_rounding(make):
    assert same_steps(lambda p: GSAM(make(p), rho=RHO), OldRun(make, hand_on=decomposed))
    both = {"ascent": Adaptive(0.0), "blend": SurrogateGap(0.4)}
    assert same_steps(lambda p: SharpnessAware(make(p), rho=RHO, **both), OldRun(make, adaptive, decomposed))


@over_bases
def test_pgn_is_wsam_without_decoupling_to_rounding(make):
    gamma = 0.7
    alpha = gamma / (1 - gamma)
    theirs = OldRun(make, hand_on=lambda g, s: alpha * s + (1 - alpha) * g)
    assert same_steps(lambda p: PGN(make(p), rho=RHO, alpha=alpha), theirs)


def looked(theirs, g, s):
    """Their LookSAM, which decomposes each tensor by itself."""
    pieces = zip(theirs.pieces(g), theirs.pieces(s), strict=True)
    return torch.cat([(y - (x * y).sum() / (x * x).sum() * x).flatten() for x, y in pieces])


def test_looksam_and_friendlysam_take_other_steps():
    """The formulas that the page says are theirs."""

    class Look(OldRun):
        def step(self, batch):
            w = self.problem.flat()
            g = self.problem.gradient(w, batch)
            self.count = getattr(self, "count", -1) + 1
            if self.count % 2 == 0:
                s = self.problem.gradient(w + plain(w, g), batch)
                self.v = looked(self, g, s)
                self.put(s)
            else:
                both = zip(self.pieces(g), self.pieces(self.v), strict=True)
                self.put(torch.cat([(x + 0.7 * x.norm() / y.norm() * y).flatten() for x, y in both]))
            self.base.step()

    class Friendly(OldRun):
        def step(self, batch):
            w = self.problem.flat()
            g = self.problem.gradient(w, batch)
            if not hasattr(self, "m"):
                self.m = g.clone()
            else:
                g = g - self.m
                self.m = 0.9 * self.m + 0.1 * g
            self.put(self.problem.gradient(w + plain(w, g), batch))
            self.base.step()

    make = BASES["sgd"]
    assert same_steps(lambda p: LookSAM(make(p), rho=RHO, k=2, alpha=0.7), Look(make), n=1)
    assert not same_steps(lambda p: LookSAM(make(p), rho=RHO, k=2, alpha=0.7), Look(make), rel=1e-6)
    assert same_steps(lambda p: FriendlySAM(make(p), rho=RHO), Friendly(make), n=1)
    assert not same_steps(lambda p: FriendlySAM(make(p), rho=RHO), Friendly(make), rel=1e-6)


@pytest.mark.parametrize(("norm", "theirs"), [(1e-3, 1.0), (1e-12, 0.5)])
def test_nothing_is_added_to_the_norm(norm, theirs):
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    opt = SAM(torch.optim.SGD([w], lr=0.0), rho=RHO)
    g = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
    assert plain(w, g).norm().item() == pytest.approx(theirs * RHO, rel=1e-8)
    w.grad = g
    with opt.ascended():
        assert w.norm().item() == pytest.approx(RHO, rel=1e-8)
        w.grad = g


def test_coming_back_is_exact_and_subtraction_is_not():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(10_000))
    before, e = w.detach().clone(), 0.05 * nn.functional.normalize(torch.randn(10_000), dim=0)
    assert not torch.equal(before + e - e, before)
    opt = SAM(torch.optim.SGD([w], lr=0.1), rho=0.05)
    w.grad = e.clone()
    with opt.ascended():
        w.grad = e.clone()
    assert torch.equal(w, before)


def test_groups_that_do_not_climb_are_not_in_the_norm():
    x, y = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    opt = SAM(torch.optim.SGD([{"params": [x]}, {"params": [y], "rho": 0.0}], lr=0.1), rho=RHO)
    x.grad, y.grad = torch.full_like(x, 3.0), torch.full_like(y, 4.0)
    with opt.ascended():
        assert x.item() == pytest.approx(RHO, rel=1e-12)  # and not 3/5 of it
        x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)


def test_a_closure_that_does_not_zero_is_refused():
    problem = Problem()
    opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=1.0), rho=RHO)
    (batch,) = problem.batches(1)
    before = problem.flat()

    def closure():
        loss = problem.loss(batch)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"does not zero the gradients.* Begin it with opt.zero_grad\(\)"):
        opt.step(closure)
    assert torch.equal(problem.flat(), before)


def test_a_pass_before_the_step_changes_nothing():
    flats = []
    for extra in (False, True):
        problem = Problem()
        opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9), rho=RHO)
        for batch in problem.batches(3):
            closure = problem.closure(opt, batch)
            if extra:
                closure()
            opt.step(closure)
        flats.append(problem.flat())
    assert torch.equal(*flats)


def test_batch_norm_has_the_statistics_of_a_momentum_of_zero_but_counts_steps():
    """Both ways from the same start; the other one sets the momentum to 0 around the second pass."""
    torch.manual_seed(0)
    batches = [torch.randn(8, 3) for _ in range(4)]
    norms = []
    for momentum_of_zero in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        norm = model[1]
        opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO)
        if not momentum_of_zero:
            opt.around_sharp_pass(lambda model=model: frozen_norm_stats(model))
        for x in batches:
            model(x).square().mean().backward()
            with opt.ascended():
                norm.momentum = 0.0 if momentum_of_zero else norm.momentum
                model(x).square().mean().backward()
            norm.momentum = 0.1
            opt.base.step()
            opt.zero_grad()
        norms.append(norm)
    here, there = norms
    assert torch.equal(here.running_mean, there.running_mean)
    assert torch.equal(here.running_var, there.running_var)
    assert (here.num_batches_tracked.item(), there.num_batches_tracked.item()) == (4, 8)


@pytest.mark.parametrize("attach", [lambda opt: opt, lambda opt: opt.base], ids=["opt", "base"])
def test_schedulers_attach_to_either_in_loops_with_ascended(attach):
    problem = Problem()
    opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=1.0), rho=RHO)
    schedule = torch.optim.lr_scheduler.StepLR(attach(opt), 1)
    (batch,) = problem.batches(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.loss(batch).backward()
        with opt.ascended():
            problem.loss(batch).backward()
        opt.base.step()
        schedule.step()
    assert opt.param_groups[0]["lr"] == opt.base.param_groups[0]["lr"] == pytest.approx(0.1)


# Checkpoints


def string_keys(run):
    return {f"{name}_0{i}": {name: run.pieces(run.last["gv"])[i]} for i in range(4) for name in ("old_grad_p", "gv")}


WITH_MOMENTS = {
    "base alone": lambda run: run.base.state_dict(),
    "shared state": lambda run: run.checkpoint(run.base.state_dict()["state"]),
    "nested, LookSAM": lambda run: run.checkpoint(run.entries("gv"), base_optimizer=run.base.state_dict()),
    "nested, FriendlySAM": lambda run: run.checkpoint(run.entries("momentum"), base_optimizer=run.base.state_dict()),
    "nested, WSAM": lambda run: run.checkpoint(run.entries("sharpness"), base_optimizer=run.base.state_dict()),
    "nested, GSAM": lambda run: {
        "state": run.entries("e_w", "old_g"),
        "param_groups": [{"adaptive": False, "params": [0, 1, 2, 3]}],
        "base_optimizer": run.base.state_dict(),
    },
}
WITHOUT = {
    "SAM": lambda run: run.checkpoint(run.entries("old_p")),
    "SAM, subtracting": lambda run: run.checkpoint(run.entries("e_w")),
    "LookSAM": lambda run: run.checkpoint({**run.entries("old_p"), **string_keys(run)}),
    "FriendlySAM": lambda run: run.checkpoint({**run.entries("momentum", "old_p"), **string_keys(run)}),
    "WSAM": lambda run: run.checkpoint(run.entries("e_w", "grad", "sharpness")),
}


def saved_and_loaded(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def base_state(saved):
    names: dict = {}
    exec(RECIPE, names)
    return names["base_state"](saved)


def old_run(make):
    run = OldRun(make)
    for batch in run.problem.batches(4):
        run.step(batch)
    run.base.param_groups[0]["lr"] /= 4  # as a scheduler has
    return run


def resume(run, make, state):
    """Go on here from the weights of the old run and the state that is left of its checkpoint."""
    problem = Problem()
    problem.order = run.problem.order
    problem.model.load_state_dict(run.problem.model.state_dict())
    base = make(problem.model.parameters())
    opt = SAM(base, rho=RHO)
    with pytest.warns(UserWarning, match="plain optimizer"):
        opt.load_state_dict(state)
    assert opt.base is base
    return problem, opt


def next_steps_agree(run, problem, opt, n=2):
    for batch in problem.batches(n):
        opt.step(problem.closure(opt, batch))
        run.step(batch)
    return torch.allclose(problem.flat(), run.problem.flat(), rtol=1e-11, atol=1e-11)


@over_bases
@pytest.mark.parametrize("write", WITH_MOMENTS.values(), ids=WITH_MOMENTS.keys())
def test_moments_in_the_file_are_loaded(make, write):
    run = old_run(make)
    problem, opt = resume(run, make, base_state(saved_and_loaded(write(run))))
    for p, q in zip(problem.model.parameters(), run.params, strict=True):
        ours, theirs = opt.base.state[p], run.base.state[q]
        assert ours.keys() == theirs.keys() != set()
        assert all(torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(v)) for k, v in theirs.items())
    assert opt.param_groups[0]["lr"] == run.base.param_groups[0]["lr"]
    assert opt.param_groups[0]["rho"] == RHO
    assert next_steps_agree(run, problem, opt)


@over_bases
@pytest.mark.parametrize("write", WITHOUT.values(), ids=WITHOUT.keys())
def test_without_moments_the_next_step_is_that_of_a_fresh_base(make, write):
    run = old_run(make)
    problem, opt = resume(run, make, base_state(saved_and_loaded(write(run))))
    assert not any(opt.base.state.values())
    assert opt.param_groups[0]["lr"] == run.base.param_groups[0]["lr"]
    fresh = make(run.params)
    fresh.param_groups[0]["lr"] = run.base.param_groups[0]["lr"]
    run.base = fresh
    assert next_steps_agree(run, problem, opt)


@over_bases
@pytest.mark.parametrize(
    ("write", "names"),
    [
        (WITHOUT["SAM"], "old_p"),
        (WITHOUT["SAM, subtracting"], "e_w"),
        (WITHOUT["LookSAM"], "gv, old_grad_p, old_p"),
        (WITH_MOMENTS["nested, FriendlySAM"], "base_optimizer"),
    ],
)
def test_what_is_not_stripped_is_refused_and_changes_nothing(make, write, names):
    opt = SAM(make(Problem().model.parameters()), rho=RHO)
    before = opt.state_dict()
    with pytest.raises(
        ValueError, match=rf"another package's sharpness-aware optimizer, with {names}\. docs/migration\.md"
    ):
        opt.load_state_dict(write(old_run(make)))
    assert opt.state_dict() == before


def test_every_radius_stays_if_the_state_is_loaded_here_and_not_if_into_the_base():
    run = old_run(BASES["sgd"])
    saved = base_state(run.checkpoint(run.base.state_dict()["state"]))
    opt = SAM(BASES["sgd"](Problem().model.parameters()), rho=0.3)
    with pytest.warns(UserWarning, match="plain optimizer"):
        opt.load_state_dict(saved)
    assert opt.param_groups[0]["rho"] == 0.3
    opt.base.load_state_dict(saved)
    assert opt.param_groups[0]["rho"] == RHO


def test_a_file_without_anything_of_the_base_is_refused():
    run = old_run(BASES["sgd"])
    saved = {"state": run.entries("e_w", "old_g"), "param_groups": [{"adaptive": False, "params": [0, 1, 2, 3]}]}
    with pytest.raises(ValueError, match="base's"):
        base_state(saved)


def test_a_scheduler_goes_on():
    """Adam with an exponential schedule: stopped here and there it is one run."""
    make = BASES["adamw"]
    run = OldRun(make)
    schedule = torch.optim.lr_scheduler.ExponentialLR(run.base, 0.5)
    for batch in run.problem.batches(3):
        run.step(batch)
        schedule.step()
    state, old_schedule = saved_and_loaded((run.checkpoint(run.base.state_dict()["state"]), schedule.state_dict()))

    problem = Problem()
    problem.order = run.problem.order
    problem.model.load_state_dict(run.problem.model.state_dict())
    opt = SAM(make(problem.model.parameters()), rho=RHO)
    ours = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    with pytest.warns(UserWarning, match="plain optimizer"):
        opt.load_state_dict(base_state(state))
    ours.load_state_dict(old_schedule)
    for batch in problem.batches(3):
        opt.step(problem.closure(opt, batch))
        ours.step()
        run.step(batch)
        schedule.step()
    assert opt.param_groups[0]["lr"] == run.base.param_groups[0]["lr"] == pytest.approx(0.01 / 64)
    assert torch.allclose(problem.flat(), run.problem.flat(), rtol=1e-11, atol=1e-11)
