"""Every "reduces to" as an equality, and a few limits."""

from __future__ import annotations

import copy

import pytest
import torch

import reference
from problems import Problem, same_bits, through_ascended
from steppe import (
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    PGN,
    SAM,
    USAM,
    AdaSAM,
    AMSGrad,
    FriendlySAM,
    LightSAM,
    LookSAM,
    ProportionalToLR,
    SharpnessAware,
    UnifiedSAM,
    VaSSO,
    norm_layers,
)
from steppe.ascents import L2, Adam, Adaptive, Filtered, Masked, Mix, Momentum, Unnormalized
from steppe.blends import Reuse, SurrogateGap, Weighted
from steppe.descent import Descent
from steppe.triggers import After, Always, Every, Randomly

over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


def sgd(params, **kwargs):
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **kwargs})


def trained(make, n=30, dtype=torch.float64):
    problem = Problem(dtype)
    opt = make(problem.model.parameters())
    for batch in problem.batches(n):
        opt.step(problem.closure(opt, batch))
    return list(problem.model.parameters())


# name: (this, is that), bit for bit
EXACTLY = {
    "GSAM with alpha = 0 is SAM": (
        lambda p, **f: GSAM(sgd(p), rho=0.1, alpha=0.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "AdaSAM with rho = 0 is AMSGrad": (
        lambda p, **f: AdaSAM(p, 0.01, rho=0.0, weight_decay=0.1, **f),
        lambda p, **f: AMSGrad(p, 0.01, weight_decay=0.1, **f),
    ),
    "AdaSAM is SAM around AMSGrad": (
        lambda p, **f: AdaSAM(p, 0.01, rho=0.1, **f),
        lambda p, **f: SAM(AMSGrad(p, 0.01, **f), rho=0.1, **f),
    ),
    "AMSGrad is the Adam accumulator with the maximum, downhill": (
        lambda p, **f: AMSGrad(p, 0.01, **f),
        lambda p, **f: Descent(p, 0.01, Adam(amsgrad=True), **f),
    ),
    "SAM is the engine with L2": (
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), blend=None, trigger=Always(), rho=0.1, **f),
    ),
    "every single step is always": (
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), trigger=Every(1), rho=0.1, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "a trigger of SAM is that of the engine": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(3), **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), trigger=Every(3), rho=0.1, **f),
    ),
    "a trigger of USAM is that of the engine": (
        lambda p, **f: USAM(sgd(p), rho=0.1, trigger=Every(3), **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=Unnormalized(), trigger=Every(3), rho=0.1, **f),
    ),
    "a trigger of ASAM is that of the engine": (
        lambda p, **f: ASAM(sgd(p), rho=0.5, trigger=Every(3), **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=Adaptive(), trigger=Every(3), rho=0.5, **f),
    ),
    "a trigger of GSAM is that of the engine": (
        lambda p, **f: GSAM(sgd(p), rho=0.1, trigger=Every(3), **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), blend=SurrogateGap(), trigger=Every(3), rho=0.1, **f),
    ),
    "always & x is x": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Always() & Every(3, stretched=True), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(3, stretched=True), **f),
    ),
    "x & always is x": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(3, stretched=True) & Always(), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(3, stretched=True), **f),
    ),
    "every 2 & every 3 is every 6": (
        lambda p, **f: SAM(sgd(p), rho=0.05, trigger=Every(2, stretched=True) & Every(3), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(6), **f),
    ),
    "stretched by 4 is a radius of 4 rho": (
        lambda p, **f: SAM(sgd(p), rho=0.025, trigger=Every(4, stretched=True), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(4), **f),
    ),
    "after 0 is always": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=After(0), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "after the end is never": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=After(30), **f),
        lambda p, **f: sgd(p, **f),
    ),
    "with probability 1 is always": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Randomly(1.0), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "with probability 0 is never": (
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Randomly(0.0), **f),
        lambda p, **f: sgd(p, **f),
    ),
    "LookSAM with k = 1 is SAM": (
        lambda p, **f: LookSAM(sgd(p), rho=0.1, k=1, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "LookSAM with alpha = 0 is SAM every k steps": (
        lambda p, **f: LookSAM(sgd(p), rho=0.1, k=4, alpha=0.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, trigger=Every(4), **f),
    ),
    "LookSAM is the engine with Reuse": (
        lambda p, **f: LookSAM(sgd(p), rho=0.1, k=4, alpha=0.3, **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), blend=Reuse(0.3), trigger=Every(4), rho=0.1, **f),
    ),
    "FriendlySAM with sigma = 0 is SAM": (
        lambda p, **f: FriendlySAM(sgd(p), rho=0.1, sigma=0.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "FriendlySAM is the engine with Filtered": (
        lambda p, **f: FriendlySAM(sgd(p), rho=0.1, sigma=0.7, decay=0.6, **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=Filtered(0.7, 0.6), rho=0.1, **f),
    ),
    "VaSSO with theta = 1 is SAM": (
        lambda p, **f: VaSSO(sgd(p), rho=0.1, theta=1.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "VaSSO is FriendlySAM with a negative sigma": (
        lambda p, **f: VaSSO(sgd(p), rho=0.1, theta=0.25, **f),
        lambda p, **f: FriendlySAM(sgd(p), rho=0.1, sigma=-3.0, decay=0.75, **f),
    ),
    "PGN with alpha = 1 is SAM": (
        lambda p, **f: PGN(sgd(p), rho=0.1, alpha=1.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "PGN with alpha = 0 is the base": (
        lambda p, **f: PGN(sgd(p), rho=0.1, alpha=0.0, **f),
        lambda p, **f: sgd(p, **f),
    ),
    "PGN is the engine with Weighted": (
        lambda p, **f: PGN(sgd(p), rho=0.1, alpha=0.6, **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=L2(), blend=Weighted(0.6), rho=0.1, **f),
    ),
    "UnifiedSAM with lam = 0 is USAM": (
        lambda p, **f: UnifiedSAM(sgd(p), rho=0.1, lam=0.0, **f),
        lambda p, **f: USAM(sgd(p), rho=0.1, **f),
    ),
    "UnifiedSAM with lam = 1 is SAM": (
        lambda p, **f: UnifiedSAM(sgd(p), rho=0.1, lam=1.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "UnifiedSAM is the engine with Mix": (
        lambda p, **f: UnifiedSAM(sgd(p), rho=0.1, lam="1/t", **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=Mix("1/t"), rho=0.1, **f),
    ),
    "ESAM with beta = 1 is SAM": (
        lambda p, **f: ESAM(sgd(p), rho=0.1, beta=1.0, **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
    "ESAM is the engine with Masked": (
        lambda p, **f: ESAM(sgd(p), rho=0.1, beta=0.3, seed=5, **f),
        lambda p, **f: SharpnessAware(sgd(p), ascent=Masked(0.3, 5), rho=0.1, **f),
    ),
    "MSAM that warms up to the end is the base": (
        lambda p, **f: MSAM(sgd(p), rho=0.1, warmup=30, **f),
        lambda p, **f: sgd(p, **f),
    ),
    "MSAM is the engine with Momentum": (
        lambda p, **f: MSAM(sgd(p), rho=0.1, eta=0.1, warmup=3, **f),
        lambda p, **f: SharpnessAware(
            sgd(p), ascent=Momentum(Adaptive(0.1)), trigger=After(3), blend=None, rho=0.1, **f
        ),
    ),
    "one step that warms up costs MSAM nothing": (
        lambda p, **f: MSAM(sgd(p), rho=0.1, warmup=1, **f),
        lambda p, **f: MSAM(sgd(p), rho=0.1, **f),
    ),
    "ProportionalToLR at one learning rate is rho_max": (
        lambda p, **f: SAM(sgd(p), rho=ProportionalToLR(0.1, 0.0, 0.05, 0.05), **f),
        lambda p, **f: SAM(sgd(p), rho=0.1, **f),
    ),
}


@over_paths
@pytest.mark.parametrize("name", EXACTLY)
def test_reduces_bit_for_bit(name, foreach):
    this, that = EXACTLY[name]
    assert same_bits(trained(lambda p: this(p, foreach=foreach)), trained(lambda p: that(p, foreach=foreach)))


# name: (this, is that up to rounding, tolerance)
NEARLY = {
    "AdaSAM with betas = (0, 1) is SAM with learning rate lr / eps": (
        lambda p: AdaSAM(p, 1e-3, rho=0.1, betas=(0.0, 1.0), eps=1e-2),
        lambda p: SAM(torch.optim.SGD(p, lr=0.1), rho=0.1),
        1e-13,
    ),
    "AMSGrad with betas = (0, 1) is SGD with learning rate lr / eps": (
        lambda p: AMSGrad(p, 1e-3, betas=(0.0, 1.0), eps=1e-2),
        lambda p: torch.optim.SGD(p, lr=0.1),
        1e-13,
    ),
    "ASAM with a large eta is SAM": (
        lambda p: ASAM(sgd(p), rho=0.1 / 1e9, eta=1e9),
        lambda p: SAM(sgd(p), rho=0.1),
        1e-7,
    ),
    "LightSAM II descends like torch's Adagrad": (
        lambda p: LightSAM(p, 0.05, rho=0.0, variant="adagrad", eps=1e-8),
        lambda p: torch.optim.Adagrad(p, lr=0.05, eps=0.0, initial_accumulator_value=1e-16),
        1e-13,
    ),
    "MSAM with a large eta is MSAM": (
        lambda p: MSAM(sgd(p), rho=0.1 / 1e9, eta=1e9),
        lambda p: MSAM(sgd(p), rho=0.1),
        1e-7,
    ),
    "USAM and SAM both become the base as rho vanishes": (
        lambda p: USAM(sgd(p), rho=1e-9),
        lambda p: SAM(sgd(p), rho=1e-9),
        1e-6,
    ),
}


@pytest.mark.parametrize("name", NEARLY)
def test_reduces_up_to_rounding(name):
    this, that, tolerance = NEARLY[name]
    for x, y in zip(trained(this), trained(that), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance)


def test_adamw_and_amsgrad_differ_as_documented():
    """torch's AMSGrad corrects the bias and adds eps; ours must not agree with it."""
    ours = trained(lambda p: AMSGrad(p, 0.01))
    torchs = trained(lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True))
    assert max((x - y).abs().max() for x, y in zip(ours, torchs, strict=True)) > 1e-2


@over_paths
@pytest.mark.parametrize("parts", ["all norm", "all climb"])
def test_norm_layers_are_groups(parts, foreach):
    """With norm layers alone, and with the radius of their group for all, it is SAM on the model."""
    runs = []
    for grouped in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 3), torch.nn.LayerNorm(3)).double()
        if parts == "all norm":
            model[1].requires_grad_(False)
        groups = norm_layers(model, rho=0.5)
        if parts == "all climb":
            groups[1]["rho"] = 0.5
        order = [p for group in groups for p in group["params"]]  # the order of a sum is that of the groups
        opt = SAM(sgd(groups if grouped else order), rho=0.5, foreach=foreach)
        for _ in range(5):

            def closure(opt=opt, model=model):
                opt.zero_grad()
                loss = (model(torch.arange(24.0, dtype=torch.float64).view(4, 6)) - 1).square().mean()
                loss.backward()
                return loss

            opt.step(closure)
        runs.append(list(model.parameters()))
    assert same_bits(*runs)


@pytest.mark.parametrize("door", ["step", "ascended", "backward"])
def test_without_a_radius_nothing_is_reused(door):
    """A radius that becomes 0 makes LookSAM its base from then on, whatever it remembers."""
    ours, plain = Problem(), Problem()
    opt = LookSAM(sgd(ours.model.parameters()), rho=0.1, k=3, alpha=0.5)
    batches = ours.batches(10)
    for batch in batches[:4]:
        opt.step(ours.closure(opt, batch))
    plain.model.load_state_dict(ours.model.state_dict())
    base = sgd(plain.model.parameters())
    base.load_state_dict(copy.deepcopy(opt.base.state_dict()))
    opt.param_groups[0]["rho"] = 0.0
    for batch in batches[4:]:
        base.step(plain.closure(base, batch))
        if door == "step":
            opt.step(ours.closure(opt, batch))
            continue
        opt.zero_grad()
        if door == "backward":
            opt.backward(lambda batch=batch: ours.loss(batch).backward())
        else:
            through_ascended(opt, lambda batch=batch: ours.loss(batch).backward())
        opt.base.step()
    assert same_bits(ours.model.parameters(), plain.model.parameters())


def wsam(w, f, batches, update, rho, gamma):
    """WSAM without decoupling: the gradient of ``L + gamma / (1 - gamma) (L(w + delta) - L)``."""
    for batch in batches:
        g = f(w, batch)
        s = f(w + rho * g / g.norm(), batch)
        w = update(w, g + gamma / (1 - gamma) * (s - g))
        yield w


@pytest.mark.parametrize("gamma", [0.3, 0.6])
def test_wsam_in_its_coupled_form_is_pgn(gamma):
    problem = Problem()
    *_, expected = wsam(problem.flat(), problem.gradient, problem.batches(30), reference.sgd(0.05, 0.9), 0.1, gamma)
    found = trained(lambda p: PGN(sgd(p), rho=0.1, alpha=gamma / (1 - gamma)))
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in found]), expected, rtol=0, atol=1e-12)


def test_parts_combine_freely():
    """No paper has ASAM's climb with the surrogate gap every other step; the engine does."""
    params = trained(
        lambda p: SharpnessAware(
            sgd(p),
            ascent=Adaptive(0.01),
            blend=SurrogateGap(0.2),
            trigger=Every(2),
            rho=ProportionalToLR(0.5, 0, 0.1, 0),
        )
    )
    assert all(p.isfinite().all() for p in params)


def test_a_trigger_counts_through_a_checkpoint():
    problem = Problem()

    def make():
        return SharpnessAware(sgd(problem.model.parameters()), ascent=L2(), trigger=Every(3), rho=0.1)

    opt, calls = make(), []

    def passes(opt, batch):
        calls.clear()
        inner = problem.closure(opt, batch)

        def closure():
            calls.append(1)
            return inner()

        opt.step(closure)
        return len(calls)

    batches = problem.batches(8)
    assert [passes(opt, batch) for batch in batches[:4]] == [2, 1, 1, 2]
    other = make()
    other.load_state_dict(opt.state_dict())
    assert [passes(other, batch) for batch in batches[4:]] == [1, 1, 2, 1]


# The radius that follows the learning rate


@pytest.mark.parametrize("attach", ["opt", "base"])
def test_rho_follows_the_learning_rate(attach):
    problem = Problem()
    opt = GSAM(sgd(problem.model.parameters(), lr=0.1), rho=ProportionalToLR(0.6, 0.1, 0.1, 0.02))
    assert opt.param_groups[0]["rho"] == pytest.approx(0.6)
    scheduler = torch.optim.lr_scheduler.LinearLR(
        opt if attach == "opt" else opt.base, start_factor=1.0, end_factor=0.2, total_iters=4
    )
    radii = []
    for batch in problem.batches(6):
        before = problem.flat()
        problem.closure(opt, batch)()
        with opt.ascended():
            radii.append((problem.flat() - before).norm().item())
            problem.loss(batch).backward()
        opt.base.step()
        scheduler.step()
    assert radii == pytest.approx([0.6, 0.475, 0.35, 0.225, 0.1, 0.1])


def test_rho_schedules_belong_to_groups_and_survive_checkpoints():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "rho": ProportionalToLR(1.0, 0.0, 0.1, 0.0)}]
    opt = SAM(sgd(groups, lr=0.1), rho=0.05)
    assert [group["rho"] for group in opt.param_groups] == [0.05, 1.0]
    opt.load_state_dict(opt.state_dict())
    for group in opt.param_groups:
        group["lr"] = 0.025
    first.grad = second.grad = torch.ones(2)
    with opt.ascended():
        first.grad = torch.ones(2)
    assert [group["rho"] for group in opt.param_groups] == [0.05, pytest.approx(0.25)]
    opt.param_groups[0]["rho"] = ProportionalToLR(2.0, 0.0, 0.1, 0.0)
    first.grad = torch.ones(2)
    with opt.ascended():
        first.grad = torch.ones(2)
    assert opt.param_groups[0]["rho"] == pytest.approx(0.5)


def test_a_group_added_to_the_base_follows_the_schedule():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = SAM(sgd([first], lr=0.1), rho=ProportionalToLR(1.0, 0.0, 0.1, 0.0))
    opt.base.add_param_group({"params": [second], "lr": 0.05})
    first.grad = second.grad = torch.ones(2)
    with opt.ascended():
        first.grad = torch.ones(2)
    assert [group["rho"] for group in opt.param_groups] == [pytest.approx(1.0), pytest.approx(0.5)]


@pytest.mark.parametrize(("lr", "rho"), [(0.1, 0.6), (0.0, 0.1), (0.05, 0.35), (0.2, 1.1), (-0.1, 0.0)])
def test_proportional_to_lr(lr, rho):
    schedule = ProportionalToLR(rho_max=0.6, rho_min=0.1, lr_max=0.1, lr_min=0.0)
    assert schedule(lr) == pytest.approx(rho)
    assert schedule(torch.tensor(lr)).item() == pytest.approx(rho)
