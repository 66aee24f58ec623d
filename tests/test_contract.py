"""What every method promises, over every base."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from cases import BASES, CASES, CLIMBING, COMBINATIONS, combination_id
from problems import Problem, same_bits, through_ascended, weights

over_all = pytest.mark.parametrize(("case", "base"), COMBINATIONS, ids=combination_id)
over_climbing = pytest.mark.parametrize(("case", "base"), [c for c in COMBINATIONS if c[0].climbs], ids=combination_id)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


def train(opt, problem, batches):
    return [opt.step(problem.closure(opt, batch)).item() for batch in batches]


@over_climbing
@over_paths
def test_rho_zero_is_the_base_bit_for_bit(case, base, foreach):
    ours, plain = Problem(), Problem()
    opt = case.build(ours.model.parameters(), base, foreach, rho=0.0)
    if case.wraps:
        other = base.make(plain.model.parameters(), foreach=foreach)
    else:
        other = case.plain(plain.model.parameters(), **{"lr": case.lr, **case.kwargs}, foreach=foreach)
    batches = ours.batches(20)
    assert train(opt, ours, batches) == train(other, plain, batches)
    assert same_bits(ours.model.parameters(), plain.model.parameters())


@over_all
def test_the_closure_runs_once_for_each_pass(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    calls = []

    def counted(closure):
        def evaluate():
            calls.append(1)
            return closure()

        return evaluate

    for step, batch in enumerate(problem.batches(7)):
        calls.clear()
        opt.step(counted(problem.closure(opt, batch)))
        assert len(calls) == len(case.passes(step))


@over_climbing
def test_passes_see_the_climb_and_the_base_sees_w(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    seen = []
    *before, batch = problem.batches(case.first + 1)
    train(opt, problem, before)
    at_w = weights(problem.model)
    inner = problem.closure(opt, batch)

    def closure():
        seen.append(weights(problem.model))
        return inner()

    opt.base.register_step_pre_hook(lambda *_: seen.append(weights(problem.model)))
    opt.step(closure)
    *clean, sharp, descent = seen
    assert [same_bits(each, at_w) for each in clean] == ([True] if case.clean else [])
    assert not any(torch.equal(x, y) for x, y in zip(sharp, at_w, strict=True))
    assert same_bits(descent, at_w)


@pytest.mark.parametrize(
    ("case", "base", "fails_in"),
    [(case, base, i) for case, base in COMBINATIONS if case.climbs for i, _ in enumerate(case.passes(1), start=1)],
    ids=combination_id,
)
@over_paths
def test_a_raising_closure_leaves_the_weights_bit_for_bit(case, base, foreach, fails_in):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base, foreach)
    first, second = problem.batches(2)
    opt.step(problem.closure(opt, first))
    before = weights(problem.model)
    moments = copy.deepcopy(opt.base.state_dict()["state"])
    calls = 0
    inner = problem.closure(opt, second)

    def closure():
        nonlocal calls
        calls += 1
        if calls == fails_in:
            raise KeyboardInterrupt("no more")
        return inner()

    with pytest.raises(KeyboardInterrupt, match="no more"):
        opt.step(closure)
    assert same_bits(weights(problem.model), before)
    torch.testing.assert_close(opt.base.state_dict()["state"], moments, rtol=0, atol=0)
    opt.step(inner)  # and it goes on
    assert not same_bits(weights(problem.model), before)


@over_climbing
def test_a_raising_body_of_ascended_leaves_the_weights_bit_for_bit(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    case.warm_up(opt)
    before = weights(problem.model)
    inside = []

    def body():
        inside.extend(weights(problem.model))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), opt.ascended():
        body()
    assert not same_bits(inside, before)
    assert same_bits(weights(problem.model), before)


@over_all
@over_paths
def test_storage_stays_where_it_is(case, base, foreach):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base, foreach)
    pointers = [p.data_ptr() for p in problem.model.parameters()]
    train(opt, problem, problem.batches(4))
    assert pointers == [p.data_ptr() for p in problem.model.parameters()]


@over_climbing
def test_a_loss_of_zero_is_a_loss(case, base):
    problem, shifted = Problem(), Problem()
    opts = [case.build(p.model.parameters(), base) for p in (problem, shifted)]
    for step, batch in enumerate(problem.batches(3)):
        value = problem.loss(batch).item()

        def closure(batch=batch, value=value):
            opts[1].zero_grad()
            loss = shifted.loss(batch) - value
            loss.backward()
            return loss

        expected = opts[0].step(problem.closure(opts[0], batch)) - value
        assert torch.equal(opts[1].step(closure), expected)
        assert (expected.item() == 0.0) == (case.clean or not case.climbs_at(step))
    assert same_bits(shifted.model.parameters(), problem.model.parameters())


@over_all
def test_step_returns_the_clean_loss_or_that_of_the_only_pass(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    for step, batch in enumerate(problem.batches(4)):
        at_w, seen, inner = problem.loss(batch).item(), [], problem.closure(opt, batch)

        def closure(seen=seen, inner=inner):
            seen.append(inner())
            return seen[-1]

        found = opt.step(closure)
        assert found is seen[0]
        assert (found.item() == at_w) == (case.clean or not case.climbs_at(step))


def by_ascended(opt, problem, batch):
    opt.zero_grad()
    through_ascended(opt, lambda: problem.loss(batch).backward())
    opt.base.step()


@over_climbing
@pytest.mark.stack("Plain loop with `ascended`", "plain")
def test_both_doors_lead_to_the_same_weights(case, base):
    ours, theirs = Problem(), Problem()
    opt, host = (case.build(p.model.parameters(), base) for p in (ours, theirs))
    for batch in ours.batches(20):
        opt.step(ours.closure(opt, batch))
        by_ascended(host, theirs, batch)
    assert same_bits(ours.model.parameters(), theirs.model.parameters())
    torch.testing.assert_close(opt.state_dict(), host.state_dict(), rtol=0, atol=0)


@over_climbing
def test_ascended_says_whether_it_climbs_and_keeps_the_clean_gradient_if_not(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base, rho=0.0)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    clean = [p.grad.clone() for p in problem.model.parameters()]
    with opt.ascended() as climbing:
        (problem.loss(batch) * 8).backward()
    assert climbing is False
    found = [p.grad for p in problem.model.parameters()]
    assert same_bits(found, clean if case.clean else [8 * g for g in clean])
    opt.param_groups[0]["rho"] = 0.1
    with opt.ascended() as climbing:
        problem.loss(batch).backward()
    assert climbing is case.climbs_at(0)


@over_all
def test_foreach_equals_loop(case, base):
    ours, theirs = Problem(), Problem()
    batches = ours.batches(20)
    train(case.build(ours.model.parameters(), base, True), ours, batches)
    train(case.build(theirs.model.parameters(), base, False), theirs, batches)
    torch.testing.assert_close(ours.flat(), theirs.flat(), rtol=0, atol=1e-13)


@over_all
@pytest.mark.stack("Plain loop with `step`", "accumulation")
def test_micro_batches_inside_the_closure_are_the_big_batch(case, base):
    big, micro = Problem(), Problem()
    opts = [case.build(p.model.parameters(), base) for p in (big, micro)]
    for batch in big.batches(10):
        opts[0].step(big.closure(opts[0], batch))

        def closure(batch=batch):
            opts[1].zero_grad()
            losses = [micro.loss(part) / 4 for part in batch.chunk(4)]
            for loss in losses:
                loss.backward()
            return sum(losses)

        opts[1].step(closure)
    torch.testing.assert_close(big.flat(), micro.flat(), rtol=0, atol=1e-12)


# Checkpoints


def through_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@over_all
@over_paths
@pytest.mark.parametrize("saved_after", [0, 1, 5])
@pytest.mark.stack("Plain loop with `step`", "resume")
def test_resumes_bit_for_bit(case, base, foreach, saved_after):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base, foreach)
    batches = problem.batches(saved_after + 20)
    train(opt, problem, batches[:saved_after])
    model_state, opt_state = through_disk([problem.model.state_dict(), opt.state_dict()])
    uninterrupted = train(opt, problem, batches[saved_after:])

    resumed = Problem(seed=1)
    other = case.build(resumed.model.parameters(), base, foreach)
    train(other, resumed, resumed.batches(2))  # leftovers must not survive the loading
    resumed.x, resumed.y = problem.x, problem.y
    resumed.model.load_state_dict(model_state)
    other.load_state_dict(opt_state)
    assert train(other, resumed, batches[saved_after:]) == uninterrupted
    assert same_bits(resumed.model.parameters(), problem.model.parameters())


@over_climbing
@pytest.mark.stack("Plain loop with `ascended`", "resume")
def test_either_door_resumes_bit_for_bit(case, base):
    problem, resumed = Problem(), Problem(seed=1)
    opt, other = (case.build(p.model.parameters(), base) for p in (problem, resumed))
    resumed.x, resumed.y = problem.x, problem.y
    batches = problem.batches(20)
    for batch in batches[:4]:
        by_ascended(opt, problem, batch)
    model_state, opt_state = through_disk([problem.model.state_dict(), opt.state_dict()])
    resumed.model.load_state_dict(model_state)
    other.load_state_dict(opt_state)
    for i, batch in enumerate(batches[4:]):
        by_ascended(opt, problem, batch)
        if i % 2:
            by_ascended(other, resumed, batch)
        else:
            other.step(resumed.closure(other, batch))
    assert same_bits(resumed.model.parameters(), problem.model.parameters())
    torch.testing.assert_close(other.state_dict(), opt.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["usam", "amsgrad", "lightsam-ii", "lightsam-iii"])  # the others share a norm
def test_memories_are_known_by_their_parameter(name):
    """Twelve groups of twelve, each with gradients of its own, against as many optimizers of one parameter each."""
    case, base = next(case for case in CASES if case.name == name), BASES[0]
    start = torch.arange(144, dtype=torch.float64) / 50 + 1
    together = [nn.Parameter(value.view(1).clone()) for value in start]
    alone = [nn.Parameter(value.view(1).clone()) for value in start]
    groups = [{"params": together[i : i + 12]} for i in range(0, 144, 12)]
    opts = [case.build(groups, base), *(case.build([p], base) for p in alone)]
    for _ in range(3):
        for opt, params in [(opts[0], together), *zip(opts[1:], ([p] for p in alone), strict=True)]:

            def closure(opt=opt, params=params):
                opt.zero_grad()
                loss = torch.stack([p**2 / 2 for p in params]).sum()
                loss.backward()
                return loss

            opt.step(closure)
    assert same_bits(together, alone)


@pytest.mark.parametrize(
    "method", dict.fromkeys(case.make for case in CASES if isinstance(case.make, type)), ids=lambda m: m.__name__
)
def test_methods_choose_parts_and_see_no_model(method):
    """One engine takes all steps, and nothing but parameters, or a base with them, goes into it."""
    for name in ("step", "state_dict", "load_state_dict", "add_param_group"):
        owner = inspect.unwrap(getattr(method, name)).__qualname__.partition(".")[0]  # torch wraps them
        assert owner in ("SharpnessAware", "Wrapping", "Descent", "Optimizer")
    asked = inspect.signature(method).parameters
    assert next(iter(asked)) in ("base", "params")
    assert not asked.keys() & {"model", "module", "closure", "loss_fn", "scaler", "process_group"}


@over_all
@pytest.mark.parametrize("copied_after", [0, 3])
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deep", "pickle"]
)
def test_copies_go_their_own_way(case, base, copied_after, copier):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    batches = problem.batches(copied_after + 10)
    train(opt, problem, batches[:copied_after])
    before = weights(problem.model)
    other, other_opt = copier((problem, opt))
    losses = train(other_opt, other, batches[copied_after:])
    assert same_bits(weights(problem.model), before)
    assert train(opt, problem, batches[copied_after:]) == losses
    assert same_bits(problem.model.parameters(), other.model.parameters())


@over_climbing
def test_a_plain_base_checkpoint_loads_with_a_warning(case, base):
    problem = Problem()
    if case.wraps:
        plain = base.make(problem.model.parameters())
    else:
        plain = case.plain(problem.model.parameters(), **{"lr": case.lr, **case.kwargs})
    batches = problem.batches(6)
    train(plain, problem, batches[:3])
    saved = through_disk(plain.state_dict())
    model = through_disk(problem.model.state_dict())
    train(plain, problem, batches[3:])

    resumed = Problem()
    opt = case.build(resumed.model.parameters(), base)
    train(opt, resumed, resumed.batches(2))
    resumed.model.load_state_dict(model)
    with pytest.warns(UserWarning, match="state of a plain optimizer"):
        opt.load_state_dict(saved)
    assert opt.state_dict()["state"] == {}
    assert [group["rho"] for group in opt.param_groups] == [case.kwargs["rho"]]
    opt.param_groups[0]["rho"] = 0.0
    train(opt, resumed, batches[3:])
    assert same_bits(resumed.model.parameters(), problem.model.parameters())


@over_climbing
def test_state_dict_does_not_alias_what_it_was_loaded_from(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    train(opt, problem, problem.batches(3))
    saved = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    train(opt, problem, problem.batches(3))
    torch.testing.assert_close(saved["state"], kept["state"], rtol=0, atol=0)


def test_a_checkpoint_of_other_groups_is_refused_and_changes_nothing():
    problem = Problem()
    case, base = COMBINATIONS[0]
    opt = case.build(problem.model.parameters(), base)
    train(opt, problem, problem.batches(2))
    before = copy.deepcopy(opt.state_dict())
    other = case.build(nn.Linear(2, 2).parameters(), base)
    for state in (other.state_dict(), other.base.state_dict()):
        with pytest.raises(ValueError, match="doesn't match the size"):
            opt.load_state_dict(state)
        torch.testing.assert_close(opt.state_dict(), before, rtol=0, atol=0)


# Parameter groups and schedulers


@over_climbing
def test_groups_are_the_bases_own_dicts(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    assert all(x is y for x, y in zip(opt.param_groups, opt.base.param_groups, strict=True))
    opt.load_state_dict(opt.state_dict())
    assert all(x is y for x, y in zip(opt.param_groups, opt.base.param_groups, strict=True))
    opt.base.load_state_dict(opt.base.state_dict())  # as hosts do
    assert all(x is y for x, y in zip(opt.param_groups, opt.base.param_groups, strict=True))
    train(opt, problem, problem.batches(1))


@over_climbing
@over_paths
def test_groups_climb_by_their_own_rho_and_one_norm(case, base, foreach):
    problem = Problem()
    first, second, third, fourth = problem.model.parameters()
    groups = [{"params": [first], "rho": 0.2}, {"params": [second, third], "rho": 0.0}, {"params": [fourth]}]
    opt = case.build(groups, base, foreach, rho=0.1)
    assert [group["rho"] for group in opt.param_groups] == [0.2, 0.0, 0.1]
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    case.warm_up(opt)
    before = weights(problem.model)
    with opt.ascended():
        deltas = [p.detach() - w for p, w in zip(problem.model.parameters(), before, strict=True)]
        problem.loss(batch).backward()
    assert not deltas[1].any()
    assert not deltas[2].any()
    alone = Problem()
    expected = case.build([p for i, p in enumerate(alone.model.parameters()) if i in (0, 3)], base, foreach, rho=0.1)
    alone.loss(batch).backward()
    case.warm_up(expected)
    start = weights(alone.model)
    with expected.ascended():
        moved = [p.detach() - w for p, w in zip(alone.model.parameters(), start, strict=True)]
        alone.loss(batch).backward()
    torch.testing.assert_close(deltas[0], 2 * moved[0], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(deltas[3], moved[3], rtol=1e-9, atol=1e-15)


@over_climbing
@pytest.mark.parametrize("through", ["opt", "base"])
def test_added_groups_climb_too(case, base, through):
    problem = Problem()
    first, *rest = problem.model.parameters()
    opt = case.build([first], base)
    rest[0].requires_grad_(False)
    (opt if through == "opt" else opt.base).add_param_group({"params": rest[:2]})
    (opt if through == "opt" else opt.base).add_param_group({"params": rest[2:], "rho": 0.0})
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    case.warm_up(opt)
    before = weights(problem.model)
    with opt.ascended():
        moved = [not torch.equal(p, w) for p, w in zip(problem.model.parameters(), before, strict=True)]
        problem.loss(batch).backward()
    assert moved == [True, False, True, False]
    assert [group["rho"] for group in opt.param_groups] == [case.kwargs["rho"], case.kwargs["rho"], 0.0]


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=10, cycle_momentum="betas" in o.defaults or "momentum" in o.defaults
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@over_climbing
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_attach_to_either(case, base, name):
    runs = []
    for attach in ("opt", "base"):
        problem = Problem()
        opt = case.build(problem.model.parameters(), base)
        scheduler = SCHEDULERS[name](opt if attach == "opt" else opt.base)
        rates = []
        with warnings.catch_warnings():
            # SequentialLR calls its parts in a deprecated way of its own.
            warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step", category=UserWarning)
            for batch in problem.batches(6):
                opt.step(problem.closure(opt, batch))
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                assert opt.param_groups[0]["lr"] == opt.base.param_groups[0]["lr"]
                rates.append((opt.param_groups[0]["lr"], str(opt.param_groups[0].get("betas"))))
        runs.append((rates, problem.flat()))
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) > 1
    assert torch.equal(runs[0][1], runs[1][1])


# Hooks


@over_all
def test_step_hooks_fire_once_per_step(case, base):
    problem = Problem()
    opt = case.build(problem.model.parameters(), base)
    fired = []
    for name, o in {"opt": opt, "base": opt.base}.items() if case.climbs else {"opt": opt}.items():
        o.register_step_pre_hook(lambda *_, name=name: fired.append(f"{name} pre"))
        o.register_step_post_hook(lambda *_, name=name: fired.append(f"{name} post"))
    train(opt, problem, problem.batches(1))
    expected = ["opt pre", "base pre", "base post", "opt post"] if case.climbs else ["opt pre", "opt post"]
    assert fired == expected


@pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
def test_state_dict_hooks_fire(case):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    fired = []
    opt.register_state_dict_pre_hook(lambda *_: fired.append("pre"))
    opt.register_state_dict_post_hook(lambda *_: fired.append("post"))
    opt.register_load_state_dict_pre_hook(lambda *_: fired.append("load pre"))
    opt.register_load_state_dict_post_hook(lambda *_: fired.append("load post"))
    opt.load_state_dict(opt.state_dict())
    assert fired == ["pre", "post", "load pre", "load post"]
