"""Gradients that are missing, zero, infinite, sparse, complex, half, or spread over dtypes and devices."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import steppe._tensors
import steppe.climb
from cases import CASES, CLIMBING
from problems import Problem, everywhere, same_bits, through_ascended, weights
from steppe import SAM, USAM, AdaSAM, AMSGrad, LightSAM

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


@pytest.fixture
def device_decides(monkeypatch):
    """Take the path that accelerators take, on the CPU."""
    everywhere(monkeypatch, "free_to_read", lambda x: False)


@pytest.fixture(params=[True, False], ids=["host", "device"])
def on_host(request, monkeypatch):
    """Run a test on the path of the CPU and on that of accelerators."""
    everywhere(monkeypatch, "free_to_read", lambda x: request.param)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sharp", [True, False])
def test_a_gradient_in_either_pass_or_none(clean, sharp):
    """f = x^2/2 + y^2/2 from (1, 2) with lr and rho 0.1; whether y takes part changes between the passes."""
    x, y = Parameter(torch.tensor(1.0, dtype=torch.float64)), Parameter(torch.tensor(2.0, dtype=torch.float64))
    opt = SAM(torch.optim.SGD([x, y], lr=0.1), rho=0.1)
    takes_part = iter([clean, sharp])

    def closure():
        opt.zero_grad()
        loss = 0.5 * x**2 + (0.5 * y**2 if next(takes_part) else 0.0)
        loss.backward()
        return loss

    opt.step(closure)
    norm = math.sqrt(5.0) if clean else 1.0
    assert x.item() == pytest.approx(1.0 - 0.1 * (1.0 + 0.1 * 1.0 / norm), rel=1e-12)
    climbed = 2.0 + 0.1 * 2.0 / norm if clean else 2.0
    assert y.item() == pytest.approx(2.0 - 0.1 * climbed if sharp else 2.0, rel=1e-12)


@over_climbing
@pytest.mark.parametrize("missing_in", [1, 2])
def test_every_method_lives_with_changing_gradients(case, missing_in):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    bias = problem.model[0].bias
    calls = 0
    for step, batch in enumerate(problem.batches(6)):
        before = bias.detach().clone()

        def closure(batch=batch):
            nonlocal calls
            calls += 1
            loss = problem.closure(opt, batch)()
            if calls == missing_in:
                bias.grad = None
            return loss

        calls = 0
        opt.step(closure)
        assert torch.equal(bias, before) == (missing_in == len(case.passes(step)))
    assert problem.flat().isfinite().all()


@over_climbing
def test_a_step_without_a_climbing_parameter_is_the_bases(case):
    """The parameters that would climb have no gradient: nothing to climb along, one pass, and the base goes on."""
    problem = Problem()
    first, *rest = problem.model.parameters()
    groups = [{"params": [first]}, {"params": rest, "rho": 0.0}]
    opt = case.build(groups)
    first.requires_grad_(False)
    calls = 0
    (batch,) = problem.batches(1)

    def closure():
        nonlocal calls
        calls += 1
        return problem.closure(opt, batch)()

    opt.step(closure)
    assert calls == 1


@over_climbing
@over_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_zero_gradient_climbs_nowhere(case, foreach, dtype, on_host):
    w = Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
    opt = case.build([w], foreach=foreach)
    seen = []

    def closure():
        opt.zero_grad()
        seen.append(w.detach().clone())
        loss = (w * 0.0).sum()
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
    assert w.isfinite().all()
    if case.clean and not case.remembers:
        assert torch.equal(seen[0], seen[1])


@over_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_tiny_gradient_is_not_taken_for_zero_nor_overflows(foreach, dtype, on_host):
    """rho / ||g|| overflows in half precision long before the gradient vanishes."""
    w = Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
    opt = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5, foreach=foreach)
    w.grad = torch.tensor([3e-6, 4e-6], dtype=dtype)
    with opt.ascended():
        torch.testing.assert_close(w.detach().float(), torch.tensor([3.3, 4.4]), rtol=2e-2, atol=0)
        w.grad = torch.ones_like(w)


@over_paths
@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-42), (torch.float64, 1e-310)], ids=str)
def test_a_gradient_below_all_normal_numbers_counts_as_zero(foreach, dtype, tiny, on_host):
    """rho / ||g|| is infinite for it, and infinity times it is not rho."""
    w = Parameter(torch.tensor([3.0], dtype=dtype))
    opt = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5, foreach=foreach)
    w.grad = torch.tensor([tiny], dtype=dtype)
    with opt.ascended():
        assert w.item() == 3.0
        w.grad = torch.ones_like(w)
    assert w.grad.item() == 1.0


@pytest.mark.parametrize("case", [case for case in CLIMBING if case.clean], ids=lambda case: case.name)
@over_paths
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 1])
def test_a_clean_gradient_that_is_not_finite_leaves_no_trace_but_is_handed_on(case, foreach, bad, where, on_host):
    problem = Problem()
    opt = case.build(problem.model.parameters(), foreach=foreach)
    for batch in problem.batches(case.every * 2):
        opt.step(problem.closure(opt, batch))
    assert case.climbs_at(case.every * 2)
    before = weights(problem.model)
    remembered = copy.deepcopy([memory for key, memory in opt.state.items() if key != "engine"])
    (batch,) = problem.batches(1)
    problem.model.zero_grad()
    problem.loss(batch).backward()
    list(problem.model.parameters())[where].grad.view(-1)[-1] = bad
    with opt.ascended() as climbing:
        assert climbing
        assert same_bits(weights(problem.model), before)  # the sharp pass, too, sees finite weights
        problem.loss(batch).backward()
    assert same_bits(weights(problem.model), before)
    assert not all(p.grad.isfinite().all() for p in problem.model.parameters())
    after = [memory for key, memory in opt.state.items() if key != "engine"]
    assert bool(after) == (case.remembers or case.reuses)
    torch.testing.assert_close(after, remembered, rtol=0, atol=0)


@over_climbing
@over_paths
def test_a_sharp_gradient_that_is_not_finite_restores_and_is_handed_on(case, foreach):
    problem = Problem()
    opt = case.build(problem.model.parameters(), foreach=foreach)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    case.warm_up(opt)
    before = weights(problem.model)
    with opt.ascended() as climbs:
        assert climbs
        problem.loss(batch).backward()
        problem.model[0].weight.grad[0, 0] = math.inf
    assert same_bits(weights(problem.model), before)
    assert not problem.model[0].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("case", "bad_pass"),
    [(case, name) for case in CLIMBING for name in (*case.passes(case.first), None)],
    ids=lambda x: getattr(x, "name", x),
)
def test_grad_scaler_skips_and_backs_off(case, bad_pass, on_host):
    problem = Problem(torch.float32)
    opt = case.build(problem.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = weights(problem.model)
    (batch,) = problem.batches(1)
    passes = iter(case.passes(case.first))

    def backward():
        scaler.scale(problem.loss(batch)).backward()
        if next(passes) == bad_pass:
            problem.model[2].bias.grad[0] = math.inf

    through_ascended(opt, backward)
    scaler.step(opt.base)
    scaler.update()
    assert same_bits(weights(problem.model), before) == (bad_pass is not None)
    assert scaler.get_scale() == (2.0**9 if bad_pass else 2.0**10)


@pytest.mark.parametrize("case", [case for case in CLIMBING if case.scale_free], ids=lambda case: case.name)
def test_scaled_gradients_climb_like_unscaled_ones(case):
    scaled, unscaled = Problem(torch.float32), Problem(torch.float32)
    opt, other = case.build(scaled.model.parameters()), case.build(unscaled.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for batch in scaled.batches(5):
        opt.base.zero_grad()
        through_ascended(opt, lambda batch=batch: scaler.scale(scaled.loss(batch)).backward())
        scaler.step(opt.base)
        scaler.update()
        other.step(unscaled.closure(other, batch))
    torch.testing.assert_close(scaled.flat(), unscaled.flat(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@over_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_kept_and_the_loss_falls(case, foreach, dtype, on_host):
    w = Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=dtype))
    opt = case.build([w], foreach=foreach)

    def closure():
        opt.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(120)]
    assert w.dtype == dtype
    assert losses[-1] < 0.5 * losses[0]


@over_climbing
@over_paths
def test_several_dtypes_in_one_optimizer(case, foreach, on_host):
    """Two of three parameters in another precision give the same climb to that precision."""
    values = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    deltas = []
    for dtypes in ([torch.float64] * 3, [torch.float64, torch.bfloat16, torch.float32]):
        params = [Parameter(v.to(torch.bfloat16).to(dtype)) for v, dtype in zip(values, dtypes, strict=True)]
        opt = case.build(params, foreach=foreach)
        start = [p.detach().clone() for p in params]
        sum((p.double() ** 2).sum() for p in params).backward()
        case.warm_up(opt)
        with opt.ascended():
            deltas.append([(p.detach() - s).double() for p, s in zip(params, start, strict=True)])
            sum((p.double() ** 2).sum() for p in params).backward()
        opt.base.step()
    # bfloat16 rounds w + delta to 3 digits of w
    torch.testing.assert_close(deltas[0], deltas[1], rtol=0, atol=2e-2)
    torch.testing.assert_close(deltas[0][2], deltas[1][2], rtol=1e-2, atol=1e-6)


@over_climbing
@over_paths
@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last", "gradient transposed"])
def test_strides_do_not_matter(case, foreach, layout, on_host):
    torch.manual_seed(0)
    value, gradient = torch.randn(2, 4, 4, 3, dtype=torch.float64), torch.randn(2, 4, 4, 3, dtype=torch.float64)
    if layout == "transposed":
        w = Parameter(value.transpose(1, 2).contiguous().transpose(1, 2))
    elif layout == "strided":
        w = Parameter(torch.randn(2, 4, 4, 6, dtype=torch.float64)[..., ::2].copy_(value))
    elif layout == "channels_last":
        w = Parameter(value.to(memory_format=torch.channels_last))
    else:
        w = Parameter(value.clone())
    like = Parameter(value.clone())
    moved = []
    for p in (w, like):
        opt = case.build([p], foreach=foreach)
        p.grad = gradient.clone()
        if p is w and layout == "gradient transposed":
            p.grad = gradient.transpose(1, 2).contiguous().transpose(1, 2)
        stride = p.stride()
        case.warm_up(opt)
        with opt.ascended() as climbs:
            assert climbs
            moved.append(p.detach().clone().contiguous())
            p.grad = gradient.clone()
        assert p.stride() == stride
        assert torch.equal(p, value)
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@over_paths
def test_complex_parameters_are_pairs_of_reals(case, foreach):
    parts = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, pair = Parameter(torch.view_as_complex(parts.clone())), Parameter(parts.clone())
    for p in (z, pair):
        opt = case.build([p], foreach=foreach)
        for _ in range(3):

            def closure(p=p, opt=opt):
                opt.zero_grad()
                x = torch.view_as_real(p) if p.is_complex() else p
                loss = (x**2).sum() + (x[:, 0] * x[:, 1]).sum()
                loss.backward()
                return loss

            opt.step(closure)
    torch.testing.assert_close(torch.view_as_real(z.detach()), pair.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", [case for case in CASES if case.clean], ids=lambda case: case.name)
def test_sparse_gradients_are_refused_and_nothing_moves(case):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    opt = case.build(embedding.parameters())
    before = weights(embedding)

    def closure():
        opt.zero_grad()
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"shape \(5, 2\) has a sparse gradient, .* Use sparse=False"):
        opt.step(closure)
    assert same_bits(weights(embedding), before)


def test_sparse_gradients_in_a_group_without_radius_are_the_bases_business():
    embedding, head = torch.nn.Embedding(5, 2, sparse=True), torch.nn.Linear(2, 1)
    groups = [{"params": embedding.parameters(), "rho": 0.0}, {"params": head.parameters()}]
    opt = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.05)
    before = weights(embedding)

    def closure():
        opt.zero_grad()
        loss = head(embedding(torch.tensor([1, 2]))).sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert not same_bits(weights(embedding), before)


class NoSync(TorchDispatchMode):
    """Stops at whatever would make a host wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default), func
        return func(*args, **(kwargs or {}))


@over_climbing
@over_paths
def test_where_looking_is_not_free_nobody_looks(case, foreach, device_decides):
    problem = Problem()
    opt = case.build(problem.model.parameters(), foreach=foreach)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    case.warm_up(opt)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        float(torch.ones(()).sum())  # the trap works
    with NoSync(), opt.ascended() as climbs:
        assert climbs
        problem.loss(batch).backward()


@pytest.mark.parametrize("case", [case for case in CLIMBING if not case.draws], ids=lambda case: case.name)
@over_paths
def test_a_climb_needs_no_data_at_all(case, foreach):
    """On the meta device there is nothing to look at: whoever asks for a value fails."""
    model = torch.nn.Linear(3, 2, device="meta")
    opt = case.build(model.parameters(), foreach=foreach)
    model(torch.ones(4, 3, device="meta")).sum().backward()
    case.warm_up(opt)
    for _ in range(2):
        model(torch.ones(4, 3, device="meta")).sum().backward()
        with opt.ascended() as climbs:
            assert climbs
            model(torch.ones(4, 3, device="meta")).sum().backward()


@over_climbing
@over_paths
def test_host_and_device_decide_alike(case, foreach, monkeypatch):
    runs = []
    for on_host in (True, False):
        everywhere(monkeypatch, "free_to_read", lambda x, on_host=on_host: on_host)
        problem = Problem()
        opt = case.build(problem.model.parameters(), foreach=foreach)
        for batch in problem.batches(20):
            opt.step(problem.closure(opt, batch))
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=0, atol=1e-13)


def test_accumulators_of_half_parameters_survive_a_checkpoint():
    """eps^2 = 1e-16 is zero in float16: cast on loading, it would divide zero by zero."""
    for make in (
        lambda p: AMSGrad(p, 0.01),
        lambda p: AdaSAM(p, 0.01, rho=0.01),
        lambda p: LightSAM(p, 0.01, rho=0.01, variant="adam"),
    ):
        w = Parameter(torch.tensor([1.0, 0.0], dtype=torch.float16))
        opt = make([w])

        def closure(w=w, opt=opt):
            opt.zero_grad()
            loss = (w**2).sum()
            loss.backward()
            return loss

        opt.step(closure)
        opt.load_state_dict(opt.state_dict())
        opt.step(closure)
        assert w.isfinite().all()
        base = opt if isinstance(opt, AMSGrad) else opt.base
        assert base.state[w]["exp_avg_sq"].dtype == torch.float32


def test_the_copy_of_the_weights_follows_them_to_another_dtype_or_shape(on_host):
    """Its memory is kept; a kept float32 copy of float64 weights would lose bits, and of other shapes would not fit."""
    model = torch.nn.Linear(3, 2)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)

    def step():
        before = weights(model)
        model.zero_grad()
        model(torch.ones(4, model.in_features, dtype=model.weight.dtype)).square().sum().backward()
        with opt.ascended():
            assert not same_bits(weights(model), before)
            model.weight.grad = torch.ones_like(model.weight)
        assert same_bits(weights(model), before)
        opt.base.step()

    step()
    step()
    model.double()
    with torch.no_grad():
        model.weight += 1e-12  # not a float32
    step()
    model.half()
    step()
    model.float()
    model.in_features = 1
    model.weight.data = torch.ones(2, 1)
    step()
    model.bias.requires_grad_(False)
    model.bias.grad = None
    step()


def test_the_copy_of_the_weights_stays_where_it_is_and_out_of_checkpoints():
    problem = Problem()
    opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=0.5)
    pointers = set()
    for batch in problem.batches(4):
        opt.step(problem.closure(opt, batch))
        pointers.add(tuple(kept.data_ptr() for kept in opt._anchor._copies))
    assert len(pointers) == 1
    assert opt.state_dict()["state"] == {"engine": {"step": 4}}


def test_tensor_radius_and_learning_rate():
    w = Parameter(torch.tensor([3.0, 4.0]))
    groups = [{"params": [w], "rho": torch.tensor(0.5)}]
    opt = USAM(torch.optim.SGD(groups, lr=torch.tensor(0.1)))
    w.grad = torch.tensor([1.0, 2.0])
    with opt.ascended():
        torch.testing.assert_close(w.detach(), torch.tensor([3.5, 5.0]))
        w.grad = torch.ones(2)
    opt.base.step()
    torch.testing.assert_close(w.detach(), torch.tensor([2.9, 3.9]))


@over_climbing
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_are_cut_climb_like_whole_ones(case, groups, monkeypatch):
    """Large weights are saved and moved in parts that fit into a cache, and go back bit for bit."""
    runs = []
    for piece in (2**30, 5):
        everywhere(monkeypatch, "PIECE", piece)
        problem = Problem()
        params = list(problem.model.parameters())
        cut = len(params) // groups
        opt = case.build([{"params": params[:cut]}, {"params": params[cut:]}] if groups == 2 else params)
        for batch in problem.batches(4):
            problem.model.zero_grad()
            problem.loss(batch).backward()
            before = weights(problem.model)
            with opt.ascended():
                problem.loss(batch).backward()
            assert same_bits(weights(problem.model), before)
            opt.base.step()
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("when", ["copy_", "move_"])
def test_a_climb_that_is_broken_off_goes_back(keep, when, monkeypatch):
    everywhere(monkeypatch, "PIECE", 5)
    problem = Problem()
    opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=0.5)
    opt.keep_copy = keep
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    done, calls = getattr(steppe._tensors.Ops, when), 0

    def third(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return done(*args)

    monkeypatch.setattr(steppe._tensors.Ops, when, third)
    with pytest.raises(KeyboardInterrupt):
        opt.step(problem.closure(opt, batch))
    assert calls >= 3
    assert same_bits(weights(problem.model), before)
    assert bool(opt._anchor._copies) == keep


@over_climbing
def test_a_copy_of_the_weights_that_is_not_kept_is_freed_when_the_climb_ends(case):
    runs = []
    for keep in (True, False):
        problem = Problem()
        opt = case.build(problem.model.parameters())
        opt.keep_copy = keep
        for batch in problem.batches(3):
            opt.step(problem.closure(opt, batch))
            problem.model.zero_grad()
            problem.loss(batch).backward()
            with opt.ascended():
                problem.loss(batch).backward()
            assert bool(opt._anchor._copies) == keep
        runs.append(weights(problem.model))
        other = copy.deepcopy(opt)
        assert other.keep_copy == pickle.loads(pickle.dumps(opt)).keep_copy == keep
        assert "keep_copy" not in opt.state_dict()
        assert not other._anchor._copies
    assert same_bits(*runs)


@over_climbing
def test_the_fused_climb_of_accelerators_is_that_of_the_loop(case, device_decides):
    """In float32 alone, and where gradients lie in memory as the weights do."""
    runs = []
    for foreach in (True, False):
        problem = Problem(torch.float32)
        opt = case.build(problem.model.parameters(), foreach=foreach)
        for batch in problem.batches(4):
            problem.model.zero_grad()
            problem.loss(batch).backward()
            first = next(problem.model.parameters())
            first.grad = first.grad.t().contiguous().t() if len(runs) else first.grad
            with opt.ascended():
                problem.loss(batch).backward()
            opt.base.step()
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=0, atol=1e-6)
