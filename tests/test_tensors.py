"""Arithmetic on lists of tensors: all paths agree, over the whole range of a dtype, and nobody looks who must not."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import steppe._tensors
from problems import everywhere
from steppe import ASAM, GSAM, SAM, LookSAM
from steppe._pieces import pieces
from steppe._tensors import Ops

over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
over_sizes = pytest.mark.parametrize(
    "shapes", [[(3,)] * 50, [(3,), (2, 2), ()] * 9, [(2, 3), (), (4000,)]], ids=["tiny lines", "tiny", "mixed"]
)
over_ranges = pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[(torch.float32, value) for value in (1.0, 3e36, 1e20, 1e-12, 1e-25, 1e-40)],
        *[(torch.bfloat16, value) for value in (1.0, 2.0**120, 2.0**-100)],
        *[(torch.float16, value) for value in (1.0, 2.0**15, 2.0**-20)],
        *[(torch.float64, value) for value in (1.0, 1e200, 1e-200, 1e-310)],
    ],
    ids=str,
)


class NobodyLooks(TorchDispatchMode):
    """Stops at whatever would make a host wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["host", "device", "no float64"])
def place(request, monkeypatch):
    """Take the paths of the CPU, of accelerators, and of those that know no float64."""
    if request.param != "host":
        everywhere(monkeypatch, "free_to_read", lambda x: False)
    if request.param == "no float64":
        monkeypatch.setattr(steppe._sums, "_WITH_FLOAT64", ())
    return request.param


def looked_at(place, work):
    """Return what ``work`` returns, as numbers; on an accelerator it must not look at any."""
    if place == "host":
        found = work()
    else:
        with NobodyLooks():
            found = work()
    return [float(x) for x in found] if isinstance(found, (tuple, list)) else float(found)


def random(shapes, dtype=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64).to(dtype) for shape in shapes]


def flat(xs):
    return torch.cat([x.reshape(-1) for x in xs]).double()


@over_paths
@over_sizes
@over_ranges
def test_norms_are_right_over_the_whole_range_of_a_dtype(foreach, shapes, dtype, value, place):
    xs = [torch.full(shape, value, dtype=dtype) for shape in shapes]
    ops = Ops.choose(xs, foreach)
    found = looked_at(place, lambda: ops.norm(xs))
    count = sum(x.numel() for x in xs)
    expected = xs[0].view(-1)[0].item() * math.sqrt(count)
    assert found == pytest.approx(expected, rel=1e-5 if value > 1e-300 else 1e-9)


@over_paths
@over_sizes
@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1e25), (torch.float32, 1e-30), (torch.bfloat16, 2.0**90)])
def test_norms_of_products_are_right_over_the_whole_range(foreach, shapes, dtype, value, place):
    xs, ys = random(shapes, dtype), [torch.full(shape, value, dtype=dtype) for shape in shapes]
    ops = Ops.choose(xs, foreach)
    found = looked_at(place, lambda: ops.norm_of(lambda some, others: ops.mul(some, others), xs, ys))
    assert found == pytest.approx(flat(ops.mul(xs, ys)).norm().item(), rel=1e-5)


@over_paths
@over_sizes
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[(torch.float32, value) for value in (1.0, 1e25, 1e-25, 1e-37)],
        (torch.bfloat16, 2.0**100),
        (torch.bfloat16, 2.0**-100),
        (torch.float16, 2.0**12),
        (torch.float64, 1e100),
    ],
    ids=str,
)
def test_inner_products_are_right_over_the_whole_range_of_a_dtype(foreach, shapes, dtype, value, place):
    xs, ys = ([(value * x.double()).to(dtype) for x in random(shapes, seed=seed)] for seed in (0, 1))
    ops = Ops.choose(xs, foreach)
    x, y = flat(xs), flat(ys)
    exact = [(x @ y).item(), (x @ x).item(), (y @ y).item()]
    near = {"rel": 1e-4, "abs": 1e-5 * value**2}
    pair = looked_at(place, lambda: ops.dots(xs, ys))
    found = looked_at(place, lambda: ops.products((xs, ys), ((0, 1), (0, 0), (1, 1))))
    number = torch.finfo(torch.promote_types(dtype, torch.float32))
    if place == "no float64" and not 1e6 * number.tiny < value**2 < number.max / 1e6:  # and none is made up
        assert not any(number.tiny < abs(product) < math.inf for product in (*pair, *found))
    else:
        assert pair == pytest.approx(exact[::2], **near)
        assert found == pytest.approx(exact, **near)


@over_paths
@over_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [[math.inf], [-math.inf], [math.nan], [math.inf, -math.inf]], ids=str)
def test_what_is_not_finite_has_no_finite_norm(foreach, shapes, dtype, bad, place):
    xs, ys = random(shapes, dtype), random(shapes, dtype, seed=1)
    for i, value in zip((0, -1), bad, strict=False):
        xs[i].view(-1)[-1] = value
    ops = Ops.choose(xs, foreach)
    assert not math.isfinite(looked_at(place, lambda: ops.norm(xs)))
    assert not math.isfinite(looked_at(place, lambda: ops.norm_of(lambda some, others: ops.mul(some, others), xs, ys)))
    assert not any(map(math.isfinite, looked_at(place, lambda: ops.dots(ys, xs))))


@over_paths
@over_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_zeros_and_tensors_without_elements(foreach, shapes, dtype, place):
    xs = [torch.zeros(0, 3, dtype=dtype), *[torch.zeros(shape, dtype=dtype) for shape in shapes]]
    ops = Ops.choose(xs, foreach)
    assert looked_at(place, lambda: ops.norm(xs)) == 0.0
    assert looked_at(place, lambda: ops.dots(xs, xs)) == [0.0, 0.0]


@over_paths
@pytest.mark.parametrize("numel", [2**17, 2**20, 10_000_000])
def test_sums_over_large_tensors_keep_their_digits(foreach, numel):
    """Ten million equal squares that are added up in float32 are off in the third digit, on any processor."""
    x = torch.full((numel,), 0.01)
    ops = Ops.choose([x], foreach)
    exact = x[0].item() * math.sqrt(len(x))
    assert float(ops.norm([x])) == pytest.approx(exact, rel=1e-4)
    assert ops.dots([x], [x])[1] == pytest.approx(exact**2, rel=2e-4)


@over_paths
def test_strides_do_not_matter_to_norms_and_products(foreach, place):
    xs, ys = random([(4, 5), (3, 4), (70, 80)]), random([(4, 5), (3, 4), (70, 80)], seed=1)
    turned = [x.t().contiguous().t() for x in xs]
    ops = Ops.choose(xs, foreach)
    expected = [(flat(xs) @ flat(ys)).item(), (flat(ys) @ flat(ys)).item()]
    assert looked_at(place, lambda: ops.dots(turned, ys)) == pytest.approx(expected, rel=1e-4)
    assert looked_at(place, lambda: ops.norm(turned)) == pytest.approx(flat(xs).norm().item(), rel=1e-5)


class Odd(torch.Tensor):
    """A tensor for which multi-tensor kernels may lack a rule."""


def test_kernels_for_all_at_once_are_chosen_for_parameters_and_vectors():
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]

    def chosen(second, foreach=None):
        return Ops.choose(params, foreach, [torch.ones(3), second])

    alike = chosen(torch.ones(2))
    assert alike.foreach
    assert alike.kind == (torch.device("cpu"), torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert chosen(torch.ones(2, dtype=dtype)).foreach
        assert chosen(torch.ones(2, dtype=dtype)).kind is None
    odd = chosen(torch.ones(2).as_subclass(Odd))
    assert not odd.foreach
    assert odd.kind is None
    assert chosen(torch.ones(2), foreach=False).foreach is False


@over_paths
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_vectors_of_another_dtype_than_the_weights(foreach, dtype, place):
    """200^2 fits into no float16, nor does the sum of what fits into one."""
    params, vectors = [torch.ones(3), torch.ones(500)], [torch.ones(3), torch.full((500,), 200.0, dtype=dtype)]
    for ops in (Ops.choose(params, foreach, vectors), Ops.choose(params, foreach)):
        assert looked_at(place, lambda ops=ops: ops.norm(vectors)) == pytest.approx(math.sqrt(3 + 500 * 200**2))
        expected = [3 + 500 * 200, 3 + 500]
        assert looked_at(place, lambda ops=ops: ops.dots(vectors, params)) == pytest.approx(expected)


@over_paths
@pytest.mark.parametrize("bad", [0.5, math.inf, math.nan])
def test_what_has_the_weight_zero_counts_in_nothing(foreach, bad, place):
    xs, ys = random([(3,), (2, 2), (5,), (4,)]), random([(3,), (2, 2), (5,), (4,)], seed=1)
    weights = [None, torch.tensor(0.25), torch.tensor(0.0), torch.tensor(1.0)]
    xs[2][1] = bad
    factors = [1.0, 0.25, 1.0]
    some, others = ([zs[0], zs[1], zs[3]] for zs in (xs, ys))

    def weighed(us, vs):
        return sum(w * (u.double() * v.double()).sum().item() for w, u, v in zip(factors, us, vs, strict=True))

    ops = Ops.choose(xs, foreach)
    assert looked_at(place, lambda: ops.norm(xs, weights)) == pytest.approx(math.sqrt(weighed(some, some)), rel=1e-5)
    found = looked_at(place, lambda: ops.dots(xs, ys, weights))
    assert found == pytest.approx([weighed(some, others), weighed(others, others)], rel=1e-5)
    nothing = [torch.tensor(0.0)] * 4
    assert looked_at(place, lambda: ops.norm(xs, nothing)) == 0.0
    assert looked_at(place, lambda: ops.dots(xs, ys, nothing)) == [0.0, 0.0]


@over_paths
@over_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("a", "b"), [(0.7, 0.3), (-1.5, 1.0), (1.2, -0.4), (0.5, 0.0), (1.0, -0.4), (0.0, 2.0)])
@pytest.mark.parametrize("piece", [2**17, 1000])
def test_mixing_is_that_of_the_formula(foreach, shapes, dtype, a, b, piece, place, monkeypatch):
    everywhere(monkeypatch, "PIECE", piece)
    xs, ys = random(shapes, dtype), random(shapes, dtype, seed=1)
    expected = a * flat(xs) + b * flat(ys)
    near = {"rtol": 0.0, "atol": 1e-14 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else 0.1}
    ops = Ops.choose(xs, foreach)
    scale = a if place == "host" else torch.tensor(a, dtype=torch.float64)  # what an accelerator has found, it keeps
    mixed = [x.clone() for x in xs]
    ops.mix_(mixed, ys, scale, b)
    torch.testing.assert_close(flat(mixed), expected, **near)
    norm = looked_at(place, lambda: ops.sum_norm_(xs, ys, scale))
    torch.testing.assert_close(flat(xs), expected + (1 - b) * flat(ys), **near)
    assert norm == pytest.approx(flat(xs).norm().item(), rel=1e-5)


@over_paths
@pytest.mark.parametrize("value", [1e25, 1e-30])
def test_the_norm_of_a_mixture_is_right_over_the_whole_range(foreach, value, place):
    xs, ys = ([torch.full((5,), value), torch.full((3000,), value)] for _ in range(2))
    ops = Ops.choose(xs, foreach)
    assert looked_at(place, lambda: ops.sum_norm_(xs, ys, -3.0)) == pytest.approx(2 * value * math.sqrt(3005))


@over_paths
@over_sizes
def test_copies_are_of_each_alone(foreach, shapes, place):
    """Gradients of groups that stay may be of another dtype than those that climb, which say how all are copied."""
    climbing, still = random(shapes), random(shapes, torch.float64, seed=1)
    ops = Ops.choose(climbing, foreach)
    for xs in (climbing, [*climbing, *still], []):
        copies = ops.copies(xs)
        assert all(y.dtype is x.dtype and torch.equal(x, y) for x, y in zip(xs, copies, strict=True))
        copied = flat(xs) if xs else None
        for y in copies:
            y.mul_(2)
        assert copied is None or (torch.equal(flat(xs), copied) and torch.equal(flat(copies), 2 * copied))


@pytest.mark.parametrize("make", [GSAM, LookSAM])
@pytest.mark.parametrize("shapes", [[(3,)] * 50, [(3,), (2, 2), ()] * 9], ids=["lines", "others"])
def test_many_tiny_tensors_are_blended_as_each_by_itself(make, shapes):
    found = []
    for foreach in (True, False):
        params = [Parameter(x) for x in random(shapes, torch.float64)]
        opt = make(torch.optim.SGD([{"params": params[:-5]}, {"params": params[-5:], "rho": 0.0}], lr=0.1), rho=0.1)
        opt.foreach = foreach

        def closure(opt=opt, params=params):
            opt.zero_grad()
            loss = sum((i + 1) * p.square().sum() + p.sum() ** 3 for i, p in enumerate(params)) / len(params)
            loss.backward()
            return loss

        for _ in range(12):
            opt.step(closure)
        saved = [
            x for values in opt.state_dict()["state"].values() for x in values.values() if isinstance(x, torch.Tensor)
        ]
        found.append(flat([*params, *saved]))
    assert torch.allclose(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, 5, 7, 100])
def test_pieces_hold_every_element_once(size):
    xs = [torch.arange(n, dtype=torch.float32) + 100 * i for i, n in enumerate((3, 12, 0, 1, 9, 2))]
    ys = [-x for x in xs]
    found = list(pieces(xs, ys, size=size))
    assert torch.equal(flat([x for some, _ in found for x in some]).sort().values, flat(xs))
    assert torch.equal(flat([y for _, others in found for y in others]), -flat([x for some, _ in found for x in some]))
    assert all(x.shape == y.shape for some, others in found for x, y in zip(some, others, strict=True))
    assert all(sum(x.numel() for x in some) < 2 * size or size == 1 for some, _ in found)


@over_paths
@pytest.mark.parametrize("make", [SAM, ASAM, GSAM, LookSAM])
@pytest.mark.parametrize("value", [1e25, 1e-25, 1e-30])
def test_large_and_small_gradients_climb_as_far_as_others(make, value, foreach, place):
    climbs = []
    for scale in (1.0, value):
        w = Parameter(torch.tensor([3.0, -4.0, 1.0]))
        opt = make(torch.optim.SGD([w], lr=0.1), rho=0.5, foreach=foreach)
        w.grad = scale * torch.tensor([0.3, 0.4, -0.2])
        with opt.ascended():
            climbs.append(w.detach().clone())
            w.grad = scale * torch.tensor([0.2, 0.5, -0.1])
        climbs.append(w.grad / scale)
    torch.testing.assert_close(climbs[0], climbs[2], rtol=1e-5, atol=0)
    if place != "no float64":
        torch.testing.assert_close(climbs[1], climbs[3], rtol=1e-5, atol=0)
