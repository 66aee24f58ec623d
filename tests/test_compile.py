"""torch.compile: the sharp pass runs what the clean pass compiled."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cases import CLIMBING
from problems import same_bits, through_ascended, weights
from steppe import SAM, accumulated_step
from steppe.passes import frozen_buffers, frozen_norm_stats, same_random_state

over_doors = pytest.mark.parametrize("door", ["step", "backward", "ascended"])
# torch warns of itself: of the imports of inductor, and of what dynamo looks at where a loss is returned.
imports_inductor = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")
returns_a_loss = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)


class Counting:
    """A backend that runs what it is given as it is, and counts how often it is given something."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


@pytest.fixture
def no_recompilation():
    """Make torch raise where it would compile again what it compiled before."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def network(norm=nn.BatchNorm1d, dropout=0.0):
    torch.manual_seed(0)
    middle = (norm(8), nn.Dropout(dropout)) if norm else ()
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3))


def data(n):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)) for _ in range(n)]


def closure_of(opt, model, batch):
    def closure():
        opt.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def take(door, opt, model, batch):
    """One step through a door."""
    if door == "step":
        opt.step(closure_of(opt, model, batch))
        return
    opt.zero_grad()

    def backward():
        cross_entropy(model(batch[0]), batch[1]).backward()

    if door == "backward":
        opt.backward(backward)
    else:
        through_ascended(opt, backward)
    opt.base.step()


def sam(model, rho=0.1):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), rho=rho)


@over_climbing
@over_doors
@pytest.mark.stack("torch.compile", "plain")
def test_both_passes_run_one_graph(case, door, backend, no_recompilation):
    model, eager = network(None), network(None)
    compiled = torch.compile(model, backend=backend)
    opt, other = case.build(model.parameters()), case.build(eager.parameters())
    for batch in data(4):
        take(door, opt, compiled, batch)
        take(door, other, eager, batch)
    assert backend.graphs == 1
    assert same_bits(model.parameters(), eager.parameters())  # weights are looked up, not compiled in


def test_it_is_noticed_if_something_compiles_again(backend, no_recompilation):
    """As a change of the weights' dtype does, which a climb must not make."""
    model = network(None)
    compiled = torch.compile(model, backend=backend)
    compiled(torch.ones(12, 6))
    model.double()
    with pytest.raises(torch._dynamo.exc.RecompileError):
        compiled(torch.ones(12, 6, dtype=torch.float64))


@over_doors
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d,
        lambda n: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten()),
    ],
    ids=["batch norm", "instance norm"],
)
def test_frozen_statistics_are_one_more_graph(door, norm, backend):
    model, eager = network(norm), network(norm)
    compiled = torch.compile(model, backend=backend)
    opt, other = sam(model), sam(eager)
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    other.around_sharp_pass(lambda: frozen_norm_stats(eager))
    graphs = []
    for batch in data(5):
        take(door, opt, compiled, batch)
        take(door, other, eager, batch)
        graphs.append(backend.graphs)
    assert graphs == [2] * 5
    assert same_bits(model.state_dict().values(), eager.state_dict().values())


@pytest.mark.stack("torch.compile", "clip", "resume")
def test_clipping_and_resuming(backend, no_recompilation):
    def clipped(opt, model, batches):
        for x, y in batches:
            opt.zero_grad()
            cross_entropy(model(x), y).backward()
            with opt.ascended():
                cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            opt.base.step()

    model, eager, resumed = network(None), network(None), network(None)
    compiled, again = torch.compile(model, backend=backend), torch.compile(resumed, backend=backend)
    opt, other, later = sam(compiled), sam(eager), sam(again)
    clipped(opt, compiled, data(8)[:4])
    again.load_state_dict(compiled.state_dict())
    later.load_state_dict(opt.state_dict())
    clipped(later, again, data(8)[4:])
    clipped(other, eager, data(8))
    assert same_bits(resumed.parameters(), eager.parameters())
    assert later.state["engine"]["step"] == 8


@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.stack("torch.compile", "accumulation")
def test_accumulation_runs_one_graph(climb, backend, no_recompilation):
    model, eager = network(None), network(None)
    compiled = torch.compile(model, backend=backend)
    runs = [(sam(model), compiled), (sam(eager), eager)]
    for x, y in data(4):
        for opt, module in runs:

            def backward(part, module=module):
                loss = cross_entropy(module(part[0]), part[1]) / 3
                loss.backward()
                return loss

            parts = list(zip(x.chunk(3), y.chunk(3), strict=True))
            accumulated_step(opt, parts, backward, climb=climb, model=module)
    assert backend.graphs == 1
    assert same_bits(model.parameters(), eager.parameters())


@pytest.mark.stack("torch.compile", "AMP")
def test_under_a_grad_scaler_and_autocast(backend, no_recompilation):
    model, eager = network(None), network(None)
    compiled = torch.compile(model, backend=backend)
    for module, opt in ((compiled, sam(model)), (eager, sam(eager))):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)

        def backward(batch, module=module, scaler=scaler):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = cross_entropy(module(batch[0]), batch[1])
            scaler.scale(loss).backward()

        for batch in data(4):
            opt.base.zero_grad()
            backward(batch)
            with opt.ascended():
                backward(batch)
            scaler.step(opt.base)
            scaler.update()
    assert backend.graphs == 1
    assert same_bits(model.parameters(), eager.parameters())


@returns_a_loss
@pytest.mark.parametrize("what", ["loss", "loss and backward", "closure"])
def test_compiled_functions_run_one_graph(what, backend, no_recompilation):
    model, eager = network(None), network(None)
    opt, other = sam(model), sam(eager)
    x, y = (torch.empty_like(part) for part in data(1)[0])

    def loss_of(x, y):
        return cross_entropy(model(x), y)

    def loss_and_backward(x, y):
        loss = loss_of(x, y)
        loss.backward()
        return loss

    if what == "closure":  # compiled once, so batches come in through the same tensors
        closure = torch.compile(closure_of(opt, model, (x, y)), backend=backend)
    else:
        inner = torch.compile(
            loss_of if what == "loss" else loss_and_backward, backend=backend, fullgraph=what == "loss"
        )

        def closure():
            opt.zero_grad()
            loss = inner(x, y)
            if what == "loss":
                loss.backward()
            return loss

    for batch in data(4):
        x.copy_(batch[0])
        y.copy_(batch[1])
        opt.step(closure)
        take("step", other, eager, batch)
    assert backend.graphs == 1
    assert same_bits(model.parameters(), eager.parameters())


@returns_a_loss
@imports_inductor
@pytest.mark.parametrize("door", ["step", "ascended"])
def test_a_compiled_training_step_settles_and_is_the_same(door, backend):
    """torch breaks the graph at optimizers and backward passes; what it compiles in between is right, and stays."""
    model, eager = network(None), network(None)
    opt, other = sam(model), sam(eager)

    @torch.compile(backend=backend)
    def training_step(x, y):
        take(door, opt, model, (x, y))

    graphs = []
    for batch in data(6):
        training_step(*batch)
        take(door, other, eager, batch)
        graphs.append(backend.graphs)
    assert len(set(graphs[2:])) == 1
    assert same_bits(model.parameters(), eager.parameters())
    assert opt.state_dict()["state"] == other.state_dict()["state"]


@imports_inductor
def test_a_compiled_base_step_is_counted(backend):
    """Its first step makes the momentum; from the second on it is one graph."""
    model, eager = network(None), network(None)
    opt, other = sam(model), sam(eager)
    compiled = torch.compile(opt.base.step, backend=backend)
    graphs = []
    for batch in data(4):
        for o, m, step in ((opt, model, compiled), (other, eager, other.base.step)):
            o.zero_grad()
            cross_entropy(m(batch[0]), batch[1]).backward()
            with o.ascended():
                cross_entropy(m(batch[0]), batch[1]).backward()
            step()
        graphs.append(backend.graphs)
    assert graphs == [1, 2, 2, 2]
    assert opt.state["engine"]["step"] == 4
    torch.testing.assert_close(weights(model), weights(eager), rtol=0, atol=1e-7)


@imports_inductor
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="inductor needs a C++ compiler")
def test_inductor_trains_as_eager_does():
    """The real compiler: frozen statistics, and the same dropout mask in both passes."""
    torch._dynamo.reset()
    model, eager = network(), network()
    compiled = torch.compile(model)
    for module, o in ((compiled, sam(model)), (eager, sam(eager))):
        o.around_sharp_pass(lambda module=module: frozen_norm_stats(module))
        for batch in data(6):
            take("step", o, module, batch)
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=0, atol=1e-6)

    model[2].p = 0.5
    x, same = data(1)[0][0], same_random_state()
    outs = []
    with torch.no_grad():
        for _ in range(2):
            with same:
                outs.append(compiled(x))
        assert torch.equal(*outs)
        assert not torch.equal(outs[0], compiled(x))
    torch._dynamo.reset()


class Counted(nn.Module):
    """A layer with a buffer that every pass changes, and reads."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


@over_doors
@pytest.mark.parametrize("middle", [lambda n: Counted(), nn.BatchNorm1d], ids=["average", "batch norm"])
@pytest.mark.parametrize("name", ["counting", "aot_eager"])
def test_buffers_that_come_back_need_no_other_graph(door, middle, name, backend, no_recompilation):
    """The graph reads them anew from where they were when it was made."""
    model, eager = network(middle), network(middle)
    compiled = torch.compile(model, backend=backend if name == "counting" else name)
    opt, other = sam(model), sam(eager)
    opt.around_sharp_pass(lambda: frozen_buffers(compiled))
    other.around_sharp_pass(lambda: frozen_buffers(eager))
    for batch in data(4):
        take(door, opt, compiled, batch)
        take(door, other, eager, batch)
    assert backend.graphs == (1 if name == "counting" else 0)
    for p, q in zip(model.state_dict().values(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
