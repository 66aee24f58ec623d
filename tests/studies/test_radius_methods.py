"""The candidates of the study of radii against plain loops over one flat vector."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

import reference
from problems import Problem
from steppe.batches import fraction_of
from steppe.lab.trials.optimizers import build
from steppe.studies.radius import methods
from steppe.studies.radius.design import CANDIDATES
from steppe.studies.radius.following import START, WHOLE

LR, STEPS = 0.1, 8
EPS = 1e-8


def train(make, problem, batches, rho):
    """Train, and return the weights after every step."""
    opt = make(SGD(problem.model.parameters(), lr=LR, momentum=0.9), rho=rho)
    for batch in batches:
        opt.step(problem.closure(opt, batch))
        yield problem.flat()


def losses(problem):
    def loss(w, batch):
        other = copy.deepcopy(problem.model)
        torch.nn.utils.vector_to_parameters(w, other.parameters())
        return float(problem.loss(batch, other).detach())

    return loss


def tensors(problem, w):
    return w.split([p.numel() for p in problem.model.parameters()])


class Loop:
    """A plain SAM, whose climb ``delta(g, w, batch)`` is the candidate's equation; ``after`` sees both gradients."""

    def __init__(self, problem, rho):
        self.problem, self.rho = problem, rho
        self.loss = losses(problem)
        self.start()

    def start(self):
        pass

    def after(self, g, s, w, batch):
        pass

    def run(self, batches):
        w, update = self.problem.flat(), reference.sgd(LR, momentum=0.9)
        for batch in batches:
            g = self.problem.gradient(w, batch)
            self.delta_ = self.delta(g, w, batch)
            s = self.problem.gradient(w + self.delta_, batch)
            self.after(g, s, w, batch)
            w = update(w, s)
            yield w


class Absolute(Loop):
    def delta(self, g, w, batch):
        return self.rho * g / g.norm()


class Adaptive(Loop):
    def delta(self, g, w, batch):
        t = w.abs() + 0.01
        return self.rho * t**2 * g / (t * g).norm()


class Angle(Loop):
    def start(self):
        self.radius = 0.05

    def delta(self, g, w, batch):
        return self.radius * g / g.norm()

    def after(self, g, s, w, batch):
        cosine = float(g @ s / (g.norm() * s.norm()))
        self.radius *= math.exp(0.5 * (cosine - (1 - self.rho)))


class LossBudget(Loop):
    def delta(self, g, w, batch):
        return self.rho * g / g.norm() ** 2


class RelativeLossBudget(Loop):
    def delta(self, g, w, batch):
        return self.rho * self.loss(w, batch) * g / g.norm() ** 2


class LossGap(Loop):
    def start(self):
        self.radius = START

    def delta(self, g, w, batch):
        return self.radius * g / g.norm()

    def after(self, g, s, w, batch):
        clean = self.loss(w, batch)
        off = 1 - (self.loss(w + self.delta_, batch) - clean) / clean / self.rho
        self.radius *= math.exp(0.1 * min(max(off, -1), 1))


class Weights(Loop):
    def delta(self, g, w, batch):
        return self.rho * w.norm() * g / g.norm()


class EachTensor(Loop):
    def delta(self, g, w, batch):
        pairs = zip(tensors(self.problem, w), tensors(self.problem, g), strict=True)
        return torch.cat([self.rho * v.norm() * h / h.norm() for v, h in pairs])


class LastUpdate(Loop):
    def start(self):
        self.before = None

    def delta(self, g, w, batch):
        moved = 0.0 if self.before is None else (w - self.before).norm()
        self.before = w
        return self.rho * moved * g / g.norm()


class LearningRate(Loop):
    def delta(self, g, w, batch):
        return self.rho * LR * g / g.norm()


class Noise(Loop):
    def start(self):
        self.t, self.m, self.v = 0, 0.0, 0.0

    def delta(self, g, w, batch):
        self.t += 1
        self.m = 0.99 * self.m + 0.01 * g
        self.v = 0.99 * self.v + 0.01 * g.norm() ** 2
        signal, whole = (self.m / (1 - 0.99**self.t)).norm(), self.v / (1 - 0.99**self.t)
        noise = 0.0 if self.t == 1 else max(float(whole - signal**2), 0.0) ** 0.5
        return self.rho * noise / signal * g / g.norm()


class AdaGradNorm(Loop):
    def start(self):
        self.u = EPS**2

    def delta(self, g, w, batch):
        self.u = self.u + g.norm() ** 2
        return self.rho * g / self.u**0.5


class AdaGrad(Loop):
    def start(self):
        self.u = EPS**2

    def delta(self, g, w, batch):
        self.u = self.u + g**2
        return self.rho * g / self.u**0.5


class Adam(Loop):
    def start(self):
        self.m, self.v = 0.0, EPS**2

    def delta(self, g, w, batch):
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        return self.rho * self.m / self.v**0.5


class Edge(Loop):
    def start(self):
        self.radius, self.h = START, None

    def delta(self, g, w, batch):
        if self.h is not None:
            wanted = self.rho / (LR * self.h)
            self.radius = min(max(wanted, self.radius / 2), 2 * self.radius)
        return self.radius * g / g.norm()

    def after(self, g, s, w, batch):
        found = abs(float((s - g) @ g / (self.radius * g.norm())))
        self.h = found if self.h is None else 0.9 * self.h + 0.1 * found


LOOPS = {
    "absolute": (Absolute, 0.3),
    "adaptive": (Adaptive, 0.5),
    "angle": (Angle, 0.2),
    "loss_budget": (LossBudget, 0.2),
    "relative_loss_budget": (RelativeLossBudget, 0.2),
    "loss_gap": (LossGap, 0.05),
    "weights": (Weights, 0.1),
    "each_tensor": (EachTensor, 0.1),
    "last_update": (LastUpdate, 2.0),
    "learning_rate": (LearningRate, 3.0),
    "noise": (Noise, 0.2),
    "adagrad_norm": (AdaGradNorm, 0.5),
    "adagrad": (AdaGrad, 0.05),
    "adam": (Adam, 0.02),
    "edge": (Edge, 0.02),
}


@pytest.mark.parametrize("name", LOOPS)
def test_candidates_are_their_equations(name):
    loop, rho = LOOPS[name]
    problem = Problem()
    batches = problem.batches(STEPS)
    expected = list(loop(Problem(), rho).run(batches))
    found = list(train(getattr(methods, name), problem, batches, rho))
    for w, right in zip(found, expected, strict=True):
        assert torch.allclose(w, right, atol=1e-10, rtol=0)
    plain = list(loop(Problem(), rho / 1.5).run(batches))
    assert not torch.allclose(plain[-1], expected[-1], atol=1e-6)  # the constant counts


def test_all_candidates_have_a_loop():
    assert {candidate.method for candidate in CANDIDATES.values()} == LOOPS.keys()


@pytest.mark.parametrize("name", LOOPS)
def test_the_lab_builds_them(name):
    weight = Parameter(torch.ones(3))
    settings = {"lr": 0.1, "momentum": 0.9, "rho": 0.1, "fraction": 0.1}
    opt = build(f"{methods.__name__}:{name}", "sgd", [weight], settings)
    assert opt.base.param_groups[0]["momentum"] == 0.9
    signature = inspect.signature(getattr(methods, name))
    assert list(signature.parameters) == ["base", "rho"]
    assert {candidate.centre for candidate in CANDIDATES.values() if candidate.method == name} == {
        signature.parameters["rho"].default
    }


@pytest.mark.parametrize("name", ["loss_budget", "relative_loss_budget", "noise"])
def test_no_climb_is_longer_than_ten(name):
    """Where the gradient vanishes, or all of it is noise, these units ask for any length."""
    w = Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    opt = getattr(methods, name)(SGD([w], lr=0.0), rho=1e6)
    lengths = []
    for sign in (1.0, -0.9):

        def closure(sign=sign):
            opt.zero_grad()
            lengths.append(float((w.detach() - torch.tensor([1.0, 0.0])).norm()))
            loss = 5.0 + 1e-3 * sign * w[0]
            loss.backward()
            return loss

        opt.step(closure)
    assert max(lengths) == pytest.approx(10.0)


def test_what_is_zero_does_not_climb_by_its_norm():
    one, zero = Parameter(torch.tensor([3.0, 4.0])), Parameter(torch.zeros(2))
    opt = methods.each_tensor(SGD([one, zero], lr=0.0), rho=0.1)
    seen = []

    def closure():
        opt.zero_grad()
        seen.append((one.detach().clone(), zero.detach().clone()))
        loss = one[0] + zero.sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert seen[1][0].tolist() == pytest.approx([3.5, 4.0])
    assert seen[1][1].tolist() == [0.0, 0.0]


# Radii that follow


@pytest.mark.parametrize("name", ["loss_gap", "edge"])
def test_a_part_of_the_batch_is_not_followed(name):
    """Every twentieth step sees all of it, and is; what is known of the curvature tells on the next step."""
    problem, passes, radii = Problem(), [], []
    opt = getattr(methods, name)(SGD(problem.model.parameters(), lr=LR), rho=0.05)

    def along(batch, part=1.0):
        some = fraction_of(batch, part)
        passes.append(len(some))
        opt.zero_grad()
        loss = problem.loss(some)
        loss.backward()
        return loss

    for batch in problem.batches(WHOLE + 2):
        opt.step(lambda batch=batch: along(batch), ascent=lambda batch=batch: along(batch, 0.25))
        radii.append((opt.param_groups[0]["rho"], opt.state["shared"].get("curvature")))
    assert passes == [16, 16, *[4, 16] * (WHOLE - 1), 16, 16, 4, 16]
    seen = [known for _, known in radii] if name == "edge" else [rho for rho, _ in radii]
    assert len(set(seen[:WHOLE])) == 1
    assert seen[WHOLE] == seen[WHOLE + 1] != seen[WHOLE - 1]


def test_the_gap_becomes_what_it_should_be():
    w = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = methods.loss_gap(SGD([w], lr=0.0), rho=0.3)
    losses = []

    def closure():
        opt.zero_grad()
        loss = (w**2 * torch.tensor([1.0, 3.0])).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(100):
        opt.step(closure)
    assert losses[-1] / losses[-2] - 1 == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_at_the_edge_the_radius_is_one_over_lr_and_curvature(sign):
    w = Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    opt = methods.edge(SGD([w], lr=1e-9), rho=1e-9)

    def closure():
        opt.zero_grad()
        loss = sign * 2.0 * (w**2).sum()  # the curvature is 4 all ways, or -4
        loss.backward()
        return loss

    for _ in range(6):
        opt.step(closure)
    assert opt.param_groups[0]["rho"] == pytest.approx(0.25)
    assert opt.state["shared"]["curvature"] == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["loss_gap", "edge"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_change_no_radius(name, bad):
    w = Parameter(torch.tensor([1.0, 2.0]))
    opt = getattr(methods, name)(SGD([w], lr=0.1), rho=0.1)

    def closure():
        opt.zero_grad()
        loss = (w**2).sum() * bad
        loss.backward()
        return loss

    opt.step(closure)
    assert opt.param_groups[0]["rho"] == START
    assert "curvature" not in opt.state["shared"]


@pytest.mark.parametrize("name", ["loss_gap", "edge", "relative_loss_budget", "last_update", "noise"])
def test_copies_go_on_as_the_original(name):
    problem = Problem()
    opt = getattr(methods, name)(SGD(problem.model.parameters(), lr=LR, momentum=0.9), rho=0.05)
    for batch in problem.batches(3):
        opt.step(problem.closure(opt, batch))
    other_problem, other = copy.deepcopy((problem, opt))
    for batch in problem.batches(3):
        opt.step(problem.closure(opt, batch))
        other.step(other_problem.closure(other, batch))
    assert torch.equal(problem.flat(), other_problem.flat())


def test_hooks_fire_once_a_step():
    for name in LOOPS:
        w, calls = Parameter(torch.tensor([1.0, 2.0])), []
        opt = getattr(methods, name)(SGD([w], lr=0.1), rho=0.1)
        opt.register_step_post_hook(lambda *_, calls=calls: calls.append(1))

        def closure(opt=opt, w=w):
            opt.zero_grad()
            loss = (w**2).sum()
            loss.backward()
            return loss

        opt.step(closure)
        assert len(calls) == 1


@pytest.mark.parametrize("name", ["loss_gap", "edge"])
@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_constants_out_of_range_are_refused(name, rho):
    with pytest.raises(ValueError, match="rho must be a finite number > 0, got"):
        getattr(methods, name)(SGD([Parameter(torch.ones(2))], lr=0.1), rho=rho)
