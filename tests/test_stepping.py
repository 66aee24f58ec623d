"""``train_step`` is the closure that one would write by hand, for every method and every option."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import CASES
from problems import same_bits
from steppe import GSAM, MSAM, SAM, USAM, AdaSAM, AMSGrad, LookSAM, SharpnessAware, train_step
from steppe.batches import fraction_of, microbatches
from steppe.methods import METHODS
from steppe.passes import frozen_buffers, frozen_norm_stats, same_random_state
from steppe.triggers import Every, LargeGradient

STEPS, N = 7, 12
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
over_climbs_of_parts = pytest.mark.parametrize(
    "case", [case for case in CASES if case.climbs and case.clean], ids=lambda case: case.name
)
over_fractions = pytest.mark.parametrize(
    ("case", "fraction"),
    [(case, fraction) for case in CASES for fraction in (None, 0.5) if case.clean or fraction is None],
    ids=lambda value: getattr(value, "name", str(value)),
)
over_dropouts = pytest.mark.parametrize("same", [False, True], ids=["own masks", "same masks"])


class Averaged(nn.Module):
    """Keeps a moving average of what it sees, as codebooks and observers do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(8, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - self.average


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def model_with_state():
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), Averaged(), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def batches(n=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(N, 6, generator=generator, dtype=torch.float64), torch.randint(3, (N,), generator=generator))
        for _ in range(n)
    ]


def loss_by(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def trained(make, model, step):
    """Train and return all that can differ afterwards: losses, weights, buffers, and what is drawn next."""
    opt = make(model.parameters())
    torch.manual_seed(5)
    losses = [step(opt, model, batch) for batch in batches()]
    return [*losses, *model.state_dict().values(), torch.rand(3)]


def by_train_step(**options):
    def step(opt, model, batch):
        return train_step(opt, batch, loss_by(model), **options)

    return step


def closure_of(opt, model, batch):
    def closure():
        opt.zero_grad()
        loss = loss_by(model)(batch)
        loss.backward()
        return loss.detach()

    return closure


def by_hand(opt, model, batch):
    return opt.step(closure_of(opt, model, batch))


# Every method


def test_all_methods_are_cases():
    assert {"-".join(case.name.split("-")[:2]) for case in CASES} >= {*METHODS}


@over_cases
def test_a_step_is_that_of_the_closure_by_hand(case):
    assert same_bits(trained(case.build, plain_model(), by_train_step()), trained(case.build, plain_model(), by_hand))


@over_climbs_of_parts
def test_a_climb_along_a_part_is_that_of_two_closures_by_hand(case):
    def two_closures(opt, model, batch):
        part = fraction_of(batch, 0.25)
        assert len(part[0]) == 3
        return opt.step(closure_of(opt, model, batch), ascent=closure_of(opt, model, part))

    found = trained(case.build, plain_model(), by_train_step(fraction=0.25))
    assert same_bits(found, trained(case.build, plain_model(), two_closures))
    assert not same_bits(found, trained(case.build, plain_model(), by_hand))


def stateful_by_hand(fraction, same):
    """The lines that a loop needs for what passes leave behind, and for what they draw."""

    def step(opt, model, batch):
        passes, draws = count(), same_random_state() if same else nullcontext()

        def one(part, leaves):
            opt.zero_grad()
            with ExitStack() as stack:
                stack.enter_context(draws)
                if not leaves:
                    stack.enter_context(frozen_norm_stats(model))
                    stack.enter_context(frozen_buffers(model, norm_stats=False))
                loss = loss_by(model)(part)
                loss.backward()
            return loss.detach()

        if fraction is None:
            return opt.step(lambda: one(batch, next(passes) == 0))
        return opt.step(lambda: one(batch, True), ascent=lambda: one(fraction_of(batch, fraction), False))

    return step


@over_dropouts
@over_cases
def test_buffers_move_once_a_step(case, same):
    model, other = model_with_state(), model_with_state()
    found = trained(case.build, model, by_train_step(model=model, same_dropout=same))
    assert same_bits(found, trained(case.build, other, stateful_by_hand(None, same)))
    assert model[1].num_batches_tracked == STEPS


@over_dropouts
@over_climbs_of_parts
def test_with_a_part_the_pass_over_everything_moves_buffers(case, same):
    model, other = model_with_state(), model_with_state()
    found = trained(case.build, model, by_train_step(model=model, same_dropout=same, fraction=0.5))
    assert same_bits(found, trained(case.build, other, stateful_by_hand(0.5, same)))
    assert model[1].num_batches_tracked == STEPS


def test_running_statistics_are_those_of_one_pass_over_each_batch():
    """Of a layer in front of all weights: it sees the same whatever is learned behind it."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()

    plain = model()
    for x, _ in batches():
        plain(x)
    for make in (sam, looksam, momentum_sam, torch.optim.Adam):
        for fraction in (None, 0.5) if make in (sam, looksam) else (None,):
            found = model()
            trained(make, found, by_train_step(model=found, fraction=fraction))
            assert same_bits(found[0].buffers(), plain[0].buffers())


def test_passes_with_the_same_masks_draw_as_much_as_one():
    ours, plain = model_with_state(), model_with_state()
    found = trained(sam, ours, by_train_step(model=ours, same_dropout=True))
    torch.manual_seed(5)
    for x, _ in batches():
        plain(x)
    assert torch.equal(found[-1], torch.rand(3))


def test_without_a_model_every_pass_moves_buffers():
    model = model_with_state()
    trained(sam, model, by_train_step())
    assert model[1].num_batches_tracked == 2 * STEPS


def test_several_models_go_in_a_list():
    first, second = model_with_state(), nn.BatchNorm1d(3).double()
    opt, models = sam([*first.parameters(), *second.parameters()]), nn.ModuleList([first, second])
    for batch in batches():
        train_step(opt, batch, lambda b: F.cross_entropy(second(first(b[0])), b[1]), model=models)
    assert first[1].num_batches_tracked == second.num_batches_tracked == STEPS


# Micro-batches


@over_fractions
def test_parts_of_a_batch_are_the_batch(case, fraction):
    seen = []

    def in_parts(opt, model, batch):
        def loss_of(part):
            seen.append(len(part[0]))
            return loss_by(model)(part)

        return train_step(opt, batch, loss_of, micro=5, fraction=fraction)

    found = trained(case.build, plain_model(), in_parts)
    expected = trained(case.build, plain_model(), by_train_step(fraction=fraction))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert max(seen) == 4
    assert not same_bits(found, expected)


def test_parts_are_those_by_hand():
    def in_parts(opt, model, batch):
        def closure():
            opt.zero_grad()
            losses = []
            for part, weight in microbatches(batch, 5):
                loss = weight * loss_by(model)(part)
                loss.backward()
                losses.append(loss.detach())
            return torch.stack(losses).sum()

        return opt.step(closure)

    assert same_bits(trained(sam, plain_model(), by_train_step(micro=5)), trained(sam, plain_model(), in_parts))


def test_only_the_last_part_of_a_pass_exchanges_gradients():
    class Wrapped(nn.Module):
        """What of DDP there is to see."""

        def __init__(self):
            super().__init__()
            self.module, self.silent, self.seen = plain_model(), False, []

        def no_sync(self):
            stack = ExitStack()
            self.silent = True
            stack.callback(setattr, self, "silent", False)
            return stack

        def forward(self, x):
            self.seen.append(self.silent)
            return self.module(x)

    model = Wrapped()
    train_step(sam(model.parameters()), batches(1)[0], loss_by(model), model=model, micro=5)
    assert model.seen == 2 * [True, True, False]


# Optimizers


def sam(params, **options):
    return SAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), **{"rho": 0.1, **options})


def looksam(params):
    return LookSAM(torch.optim.SGD(params, lr=0.1), rho=0.1, k=3)


def momentum_sam(params):
    return MSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1)


PLAIN = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "amsgrad": lambda params: AMSGrad(params, lr=0.01),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("options", [{}, {"fraction": 0.5}], ids=["plain", "fraction"])
def test_a_plain_optimizer_takes_a_plain_step(make, options):
    model, other = model_with_state(), model_with_state()
    found = trained(make, model, by_train_step(model=model, **options))
    assert same_bits(found, trained(make, other, stateful_by_hand(None, False)))
    assert model[1].num_batches_tracked == STEPS


@pytest.mark.parametrize("around", [lambda bases: SAM(bases, rho=0.1), lambda bases: GSAM(bases, rho=0.1, alpha=0.4)])
def test_bases_together(around):
    def make(params):
        first, *others = params
        return around([torch.optim.SGD([first], lr=0.1), torch.optim.AdamW(others, lr=0.01)])

    assert same_bits(trained(make, plain_model(), by_train_step()), trained(make, plain_model(), by_hand))


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_triggers_that_look_at_gradients(fraction):
    """Where they say no after a pass over a part, the pass over everything counts, for the loss and for buffers."""

    def make(params):
        return sam(params, trigger=LargeGradient(steps=STEPS, early=0.2, late=0.4, decay=0.5))

    model, other = model_with_state(), model_with_state()
    found = trained(make, model, by_train_step(model=model, fraction=fraction))
    assert same_bits(found, trained(make, other, stateful_by_hand(fraction, False)))
    assert model[1].num_batches_tracked == STEPS


def test_the_loss_is_the_clean_one():
    model = plain_model()
    opt, (batch,) = sam(model.parameters()), batches(1)
    expected = loss_by(model)(batch).detach()
    loss = train_step(opt, batch, loss_by(model))
    assert torch.equal(loss, expected)
    assert not loss.requires_grad


# Batches and backward


@pytest.mark.parametrize("options", [{}, {"fraction": 0.5}, {"micro": 5}], ids=["whole", "fraction", "micro"])
def test_batches_are_what_can_be_cut(options):
    def by_dict(opt, model, batch):
        texts = ["a text"] * N

        def loss_of(part):
            assert len(part["texts"]) == len(part["x"])
            return loss_by(model)((part["x"], part["more"][0]))

        return train_step(opt, {"x": batch[0], "more": (batch[1], None), "texts": texts}, loss_of, **options)

    assert same_bits(trained(sam, plain_model(), by_dict), trained(sam, plain_model(), by_train_step(**options)))


def test_a_batch_that_is_not_cut_may_be_anything():
    model = plain_model()
    opt, rows = sam(model.parameters()), iter([*batches(1)])
    batch = next(rows)
    train_step(opt, object(), lambda _: loss_by(model)(batch))
    with pytest.raises(TypeError, match="No part can be taken of a list_iterator"):
        train_step(opt, rows, loss_by(model), micro=2)


def test_backward_may_be_another():
    lost = []

    def backward(loss):
        lost.append(loss.item())
        loss.backward()

    model = plain_model()
    found = trained(sam, model, by_train_step(backward=backward))
    assert same_bits(found, trained(sam, plain_model(), by_hand))
    assert len(lost) == 2 * STEPS
    assert lost[::2] == [loss.item() for loss in found[:STEPS]]


def test_gradients_are_made_where_there_would_be_none():
    for make in (sam, PLAIN["sgd"]):
        model, other = plain_model(), plain_model()
        opt, (batch,) = make(model.parameters()), batches(1)
        with torch.no_grad():
            train_step(opt, batch, loss_by(model))
        train_step(make(other.parameters()), batch, loss_by(other))
        assert same_bits(model.parameters(), other.parameters())


# Scaled gradients


def scaled_by_hand(scaler, fraction=None):
    """README's block."""

    def step(opt, model, batch):
        opt.zero_grad()
        loss = None
        climbs = isinstance(opt, SharpnessAware) and opt.will_climb()
        if not isinstance(opt, SharpnessAware) or opt.ascent.needs_gradient:
            part = batch if fraction is None or not climbs else fraction_of(batch, fraction)
            loss = loss_by(model)(part)
            scaler.scale(loss).backward()
        if isinstance(opt, SharpnessAware):
            with opt.ascended(scaler.get_scale()) as there:
                if there or loss is None:
                    sharp = loss_by(model)(batch)
                    scaler.scale(sharp).backward()
            scaler.step(opt.base)
        else:
            scaler.step(opt)
        scaler.update()
        return (sharp if loss is None else loss).detach()

    return step


def new_scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)


@over_fractions
def test_a_scaler_steps_the_base(case, fraction):
    ours, theirs = new_scaler(), new_scaler()
    found = trained(case.build, plain_model(), by_train_step(scaler=ours, fraction=fraction))
    assert same_bits(found, trained(case.build, plain_model(), scaled_by_hand(theirs, fraction)))
    assert ours.get_scale() == theirs.get_scale() == 2.0**10


@pytest.mark.parametrize("make", [PLAIN["sgd"], sam, lambda params: USAM(PLAIN["sgd"](params), rho=0.1)])
def test_a_step_that_overflows_is_skipped(make):
    model = plain_model()
    opt, (batch,), scaler = make(model.parameters()), batches(1), new_scaler()
    before = [p.clone() for p in model.parameters()]
    loss = train_step(opt, (batch[0] * float("inf"), batch[1]), loss_by(model), scaler=scaler)
    assert not loss.isfinite()
    assert same_bits(model.parameters(), before)
    assert scaler.get_scale() == 2.0**7
    train_step(opt, batch, loss_by(model), scaler=scaler)
    assert not same_bits(model.parameters(), before)


@over_dropouts
def test_all_options_together(same):
    """Scales are powers of two, so that they round nothing."""
    model, other = model_with_state(), model_with_state()
    options = {"fraction": 0.5, "micro": 3, "same_dropout": same, "backward": torch.Tensor.backward}
    found = trained(sam, model, by_train_step(model=model, scaler=new_scaler(), **options))
    assert same_bits(found, trained(sam, other, by_train_step(model=other, **options)))
    assert model[1].num_batches_tracked == STEPS * 4


def test_a_hook_of_the_base_clips_what_it_sees():
    def make(params):
        params = [*params]
        opt = sam(params)
        opt.base.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(params, 0.01) and None)
        return opt

    norms = []
    model = plain_model()
    opt = make(model.parameters())
    opt.base.register_step_pre_hook(
        lambda *_: norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    )
    for batch in batches():
        train_step(opt, batch, loss_by(model))
    assert all(norm.item() == pytest.approx(0.01, rel=1e-3) for norm in norms)


# What is refused


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, r"opt must be an instance of torch.optim.Optimizer, got Sequential", {"opt": plain_model()}),
        (
            TypeError,
            r"loss_of must be a function of a batch that returns its loss, got Tensor",
            {"loss_of": torch.ones(())},
        ),
        (TypeError, r"loss_of must return the loss, a tensor, got float\. Return it alone", {"loss_of": lambda _: 1.0}),
        (
            ValueError,
            r"loss_of must return one number, got a tensor of shape \(12,\)",
            {"loss_of": lambda b: b[0].mean(1)},
        ),
        (
            TypeError,
            r"model must be a torch.nn.Module, got list\. Put several into a torch.nn.ModuleList",
            {"model": []},
        ),
        (ValueError, r"fraction must lie in \(0, 1\], got 10", {"fraction": 10}),
        (ValueError, r"at_most must be an int >= 1, got 0", {"micro": 0}),
        (RuntimeError, r"does not require grad", {"loss_of": lambda b: b[0].mean()}),
    ],
)
@pytest.mark.parametrize("make", [sam, PLAIN["sgd"]], ids=["sam", "sgd"])
def test_wrong_arguments(make, error, message, change):
    model = plain_model()
    before = [p.clone() for p in model.parameters()]
    given = {"opt": make(model.parameters()), "batch": batches(1)[0], "loss_of": loss_by(model), **change}
    with pytest.raises(error, match=message):
        train_step(given.pop("opt"), given.pop("batch"), given.pop("loss_of"), **given)
    assert same_bits(model.parameters(), before)


@pytest.mark.parametrize("scaler", [None, new_scaler()])
def test_a_fraction_without_a_clean_pass_is_refused(scaler):
    model = plain_model()
    with pytest.raises(TypeError, match="MSAM climbs without a gradient: leave fraction= out"):
        train_step(momentum_sam(model.parameters()), batches(1)[0], loss_by(model), fraction=0.5, scaler=scaler)


def test_a_fraction_under_a_scaler_needs_a_trigger_that_does_not_look():
    model = plain_model()
    opt = sam(model.parameters(), trigger=LargeGradient(steps=9) & Every(2))
    with pytest.raises(ValueError, match=r"fraction= does not go with Both, .* Leave fraction= out"):
        train_step(opt, batches(1)[0], loss_by(model), fraction=0.5, scaler=new_scaler())


def test_wrappers_around_a_method_are_refused():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = plain_model()
    with pytest.raises(TypeError, match=r"opt is Wrapper around AdaSAM\. Give the AdaSAM itself"):
        train_step(Wrapper(AdaSAM(model.parameters())), batches(1)[0], loss_by(model))


@pytest.mark.parametrize("scaler", [None, new_scaler()], ids=["", "scaler"])
@pytest.mark.parametrize(("make", "fails_in"), [(sam, 1), (sam, 2), (momentum_sam, 1), (looksam, 1), (PLAIN["sgd"], 1)])
def test_an_exception_in_any_pass_leaves_the_weights(make, fails_in, scaler):
    model = model_with_state()
    opt, (first, second) = make(model.parameters()), batches(2)
    train_step(opt, first, loss_by(model), model=model)
    before, passes = [p.clone() for p in model.parameters()], count(1)

    def fails(batch):
        loss = loss_by(model)(batch)
        if next(passes) == fails_in:
            raise KeyboardInterrupt("no more")
        return loss

    with pytest.raises(KeyboardInterrupt, match="no more"):
        train_step(opt, second, fails, model=model, scaler=scaler)
    assert same_bits(model.parameters(), before)
    assert model[1].num_batches_tracked == 2
    train_step(opt, second, loss_by(model), model=model)
    assert model[1].num_batches_tracked == 3
    assert not same_bits(model.parameters(), before)
