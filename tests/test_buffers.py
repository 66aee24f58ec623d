"""Buffers that a pass changes, and that come back after it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

from steppe import SAM
from steppe.passes import frozen_buffers, frozen_norm_stats
from test_passes import over_devices, over_doors, plain_backward, through


class Codebook(nn.Module):
    """Vector quantization whose codes are moving averages of what falls to them."""

    def __init__(self, past_autograd=False, width=3):
        super().__init__()
        self.past_autograd = past_autograd
        self.register_buffer("codes", torch.randn(4, width))
        self.register_buffer("sizes", torch.ones(4))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x):
        nearest = torch.cdist(x, self.codes).argmin(1)
        codes = self.codes[nearest]
        if self.training:
            with torch.no_grad():
                hot = nn.functional.one_hot(nearest, 4).to(x)
                for buffer, seen in ((self.sizes, hot.sum(0)), (self.codes, hot.T @ x)):
                    (buffer.data if self.past_autograd else buffer).mul_(0.9).add_(seen, alpha=0.1)
                self.started.fill_(True)
        return x + (codes - x).detach() + 0.1 * x


class Buffered(nn.Module):
    """Does something to buffers in every pass."""

    def __init__(self, act, **buffers):
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(torch.ones(3))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=not name.startswith("loose"))

    def forward(self, x):
        out = x * self.weight
        with torch.no_grad():
            self.act(self, x)
        return out


def replacing(m, x):
    m.a = m.a + x.mean()


def resizing(m, x):
    m.a.resize_(len(m.a) + 5).fill_(2.0)


def moving(m, x):
    m.a.data = torch.cat([m.a, x.mean()[None]])


def casting(m, x):
    m.a.data = m.a.double() + 1


def filling(m, x):
    m.late = x.mean()


def emptying(m, x):
    m.a = None


def adding(m, x):
    if not hasattr(m, "more"):
        m.register_buffer("more", torch.zeros(1), persistent=False)


def removing(m, x):
    del m.a


def reordering(m, x):
    old = m.a
    del m.a
    m.register_buffer("a", old + 1, persistent=False)


def counting(m, x):
    for name, buffer in m.named_buffers():
        if "view" not in name:
            buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer + 1)


def writing_to_a_view(m, x):
    m.a_view.add_(x.mean())
    m.a[0] -= 1


def expanded(m, x):
    m.a[:, :1].add_(x.mean())


def sharing():
    one = torch.zeros(3)
    return nn.Sequential(Buffered(counting, a=one), Buffered(counting, b=one, loose=torch.zeros(2)))


def with_views():
    a = torch.zeros(4)
    return Buffered(writing_to_a_view, a_view=a[1:3], a=a, loose_view=a.flip(0), transposed=torch.zeros(2, 3).T)


def of_many_types():
    return Buffered(
        counting,
        integers=torch.arange(3),
        bits=torch.tensor([True, False]),
        scalar=torch.tensor(3, dtype=torch.uint8),
        short=torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
        imaginary=torch.tensor([1j, 2.0]),
        nothing=None,
        empty=torch.zeros(0, 3),
    )


def made_in_inference():
    with torch.inference_mode():
        return torch.zeros(3)


@torch.inference_mode()
def in_inference(m, x):
    m.a = m.a + 1
    m.b.add_(1)


def doubling(m, x):
    m.a.mul_(2)


def spectral(norm):
    return nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), norm(nn.Linear(4, 3)))


# name: (model, whether a pass changes buffers)
MODELS = {
    "codebook": (Codebook, True),
    "codebook, past autograd": (lambda: Codebook(past_autograd=True), True),
    "fake quantization": (lambda: FakeQuantize(MovingAverageMinMaxObserver), True),
    "fake quantization, evaluating": (lambda: FakeQuantize(MovingAverageMinMaxObserver).eval(), True),
    "fake quantization by channel": (
        lambda: FakeQuantize(MovingAveragePerChannelMinMaxObserver, qscheme=torch.per_channel_affine, ch_axis=1),
        True,
    ),
    "spectral norm": (lambda: spectral(nn.utils.parametrizations.spectral_norm), True),
    "spectral norm, the hook": (lambda: spectral(nn.utils.spectral_norm), True),
    "spectral norm, evaluating": (lambda: spectral(nn.utils.parametrizations.spectral_norm).eval(), False),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None)), True),
    "batch norm, evaluating": (lambda: nn.BatchNorm1d(3).eval(), False),
    "instance norm": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True)),
        True,
    ),
    "replaced": (lambda: Buffered(replacing, b=torch.ones(1), a=torch.zeros(3), c=torch.ones(1)), True),
    "resized": (lambda: Buffered(resizing, a=torch.zeros(3)), True),
    "moved": (lambda: Buffered(moving, a=torch.zeros(3)), True),
    "cast": (lambda: Buffered(casting, a=torch.zeros(3)), True),
    "there after the first pass": (lambda: Buffered(filling, late=None), True),
    "None after the first pass": (lambda: Buffered(emptying, a=torch.zeros(3), b=torch.ones(1)), True),
    "added": (lambda: Buffered(adding, a=torch.zeros(3)), True),
    "removed and added": (lambda: Buffered(reordering, a=torch.zeros(3), b=torch.ones(1)), True),
    "shared": (sharing, True),
    "views": (with_views, True),
    "expanded": (lambda: Buffered(expanded, a=torch.zeros(2, 1).expand(2, 3)), True),
    "sparse": (lambda: Buffered(doubling, a=torch.eye(2).to_sparse()), True),
    "inference": (lambda: Buffered(in_inference, a=made_in_inference(), b=made_in_inference()), True),
    "many types": (of_many_types, True),
    "no buffers": (lambda: nn.Linear(3, 2), False),
}
GROWING = ("resized", "fake quantization by channel")
over_models = pytest.mark.parametrize("name", MODELS)


def made(name, device="cpu"):
    """A model behind a layer that has parameters."""
    if device != "cpu" and name == "inference":
        pytest.skip("moving it makes another tensor")
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), MODELS[name][0]()).to(device)


def example(device="cpu"):
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).to(device)


def bits(buffer):
    dense = buffer.to_dense() if buffer.is_sparse else buffer
    values = (torch.view_as_real(dense) if dense.is_complex() else dense).contiguous().reshape(-1)
    return values.view(torch.uint8).tolist()


def contents(model):
    """All there is to say of a model's buffers but for objects and memory: names, order, layout and bits."""
    found = []
    for module in model.modules():
        found.append(sorted(module._non_persistent_buffers_set))
        for name, buffer in module._buffers.items():
            found.append((name, None if buffer is None else (buffer.dtype, buffer.shape, bits(buffer))))
    return found


def places(model, memory=True):
    """Which objects they are, and where in memory."""
    buffers = [(module, name, b) for module in model.modules() for name, b in module._buffers.items() if b is not None]
    return [
        (id(b), None if b.is_sparse or not memory else (b.data_ptr(), b.stride()), b.requires_grad)
        for _, _, b in buffers
    ]


def train(model, x):
    out = model(x)
    out.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    return [out, *gradients]


@over_devices
@over_models
def test_buffers_come_back_and_passes_are_the_same(name, device):
    model, twin, x = made(name, device), made(name, device), example(device)
    before, where = contents(model), places(model, memory=name not in GROWING)
    w = [p.detach().clone() for p in model.parameters()]
    with frozen_buffers(model):
        inside = train(model, x)
        assert (contents(model) != before) == MODELS[name][1]
    assert contents(model) == before
    assert places(model, memory=name not in GROWING) == where
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), w, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(inside, train(twin, x), strict=True))
    train(model, x)
    assert contents(model) == contents(twin)


# A pass of these changes what the next one needs.
ONCE = ("None after the first pass",)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONCE])
def test_nested_and_with_an_exception(name):
    model, x = made(name), example()
    before = contents(model)

    def nested():
        with frozen_buffers(model):
            train(model, x)
            middle = contents(model)
            with frozen_buffers(model):
                train(model, x)
            assert contents(model) == middle
            raise KeyError

    with pytest.raises(KeyError):
        nested()
    assert contents(model) == before


def test_a_buffer_that_is_gone_comes_back():
    model = Buffered(removing, b=torch.ones(1), a=torch.zeros(3), loose=torch.ones(2))
    before, where = contents(model), places(model)
    with frozen_buffers(model):
        model(example())
        del model.loose
        assert [*model._buffers] == ["b"]
    assert (contents(model), places(model)) == (before, where)
    assert [*model.state_dict()] == ["weight", "b", "a"]


def test_a_lazy_module_keeps_what_its_first_pass_makes():
    model = nn.LazyBatchNorm1d()
    with frozen_buffers(model):
        model(example())
    assert model.running_mean.shape == (3,)
    model(example())


def test_parameters_are_left_alone():
    model, x = made("codebook"), example()
    opt, before, buffers = torch.optim.SGD(model.parameters(), lr=0.1), model[0].weight.clone(), contents(model)
    with frozen_buffers(model):
        model(x).sum().backward()
        opt.step()
    assert not torch.equal(model[0].weight, before)
    assert contents(model) == buffers


# Graphs


def test_a_backward_pass_that_comes_too_late_is_refused():
    model = Buffered(lambda m, x: None, a=torch.tensor(2.0))
    with frozen_buffers(model):
        model.a += 1
        late = (model.weight * model.a).sum()
        late.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


def test_graphs_from_before_remain_good():
    """As that of a generator does while a discriminator steps."""
    model = nn.Sequential(Buffered(counting, a=torch.tensor(2.0)), Buffered(counting, b=torch.tensor(2.0)))
    out = (model[0].weight * model[0].a).sum()
    with frozen_buffers(model):
        model[1](example()).sum().backward()
    out.backward()
    assert model[0].weight.grad.tolist() == [2.0] * 3


def test_buffers_that_need_a_gradient_keep_it():
    model = Buffered(replacing, a=torch.zeros(3, requires_grad=True))
    with frozen_buffers(model):
        model(example())
        model.a = model.a * 2
    assert model.a.is_leaf
    assert model.a.requires_grad
    assert model.a.tolist() == [0.0] * 3


# Around the sharp passes of an optimizer


@over_devices
@over_doors
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONCE])
def test_a_step_leaves_behind_what_one_pass_leaves(name, door, device):
    model, twin, x = made(name, device), made(name, device), example(device)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    opt.around_sharp_pass(lambda: frozen_buffers(model))
    for _ in range(2):
        through(door, opt, plain_backward(model, x))
        twin(x)
        assert contents(model) == contents(twin)


@over_doors
@pytest.mark.parametrize("name", ["codebook", "fake quantization", "spectral norm", "batch norm"])
def test_without_it_the_sharp_pass_leaves_traces(name, door):
    model, twin, x = made(name), made(name), example()
    through(door, SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5), plain_backward(model, x))
    twin(x)
    assert contents(model) != contents(twin)


# Norm statistics


@pytest.mark.parametrize("norm", ["batch norm", "instance norm"])
@pytest.mark.parametrize("frozen", [True, False])
def test_norm_statistics_may_be_left_out(norm, frozen):
    model, twin = (nn.Sequential(made("codebook"), made(norm)) for _ in range(2))
    before, where = contents(model), places(model)
    with frozen_buffers(model, norm_stats=False), frozen_norm_stats(model) if frozen else nullcontext():
        model(example())
    assert places(model) == where
    assert contents(model[0]) == contents(twin[0])
    assert (contents(model) == before) == frozen
    if not frozen:
        twin(example())
    assert contents(model[1]) == contents(twin[1])


@pytest.mark.parametrize("norm", ["batch norm", "instance norm"])
@pytest.mark.parametrize("first", [frozen_norm_stats, frozen_buffers])
def test_both_contexts_go_together(norm, first):
    model = nn.Sequential(made("codebook"), made(norm))
    before, where = contents(model), places(model)
    second = frozen_buffers if first is frozen_norm_stats else frozen_norm_stats
    with first(model), second(model):
        model(example())
    assert (contents(model), places(model)) == (before, where)
