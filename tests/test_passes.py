"""Running statistics, random numbers, and whatever else surrounds a sharp pass."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cases import CLIMBING
from problems import same_bits, through_ascended, weights
from steppe import SAM
from steppe.passes import frozen_norm_stats, same_random_state

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
over_devices = pytest.mark.parametrize("device", DEVICES)
over_doors = pytest.mark.parametrize("door", ["step", "backward", "ascended"])
over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)

# name: (module of 3 channels, shape of a batch of an odd number of examples)
NORMS = {
    "batch norm": (lambda: nn.BatchNorm1d(3), (7, 3)),
    "batch norm over a sequence": (lambda: nn.BatchNorm1d(3), (7, 3, 5)),
    "batch norm, cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), (7, 3)),
    "batch norm, plain": (lambda: nn.BatchNorm1d(3, affine=False), (7, 3)),
    "batch norm without statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (7, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), (7, 3, 4, 4)),
    "batch norm 2d, cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (7, 3, 4, 4)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(3), (7, 3, 2, 2, 2)),
    "instance norm": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (7, 3, 5)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(3, track_running_stats=True, affine=True), (7, 3, 4, 4)),
    "instance norm without statistics": (lambda: nn.InstanceNorm1d(3), (7, 3, 5)),
    "group norm": (lambda: nn.GroupNorm(3, 3), (7, 3, 5)),
    "layer norm": (lambda: nn.LayerNorm(3), (7, 3)),
}
TRACKING = [name for name in NORMS if name not in ("batch norm without statistics", "group norm", "layer norm")]
TRACKING.remove("instance norm without statistics")


def norm_and_data(name, device, seed=0):
    torch.manual_seed(seed)
    make, shape = NORMS[name]
    module = make().to(device)
    module(torch.randn(shape, device=device))  # statistics that are not those of the start
    return module, torch.randn(shape, device=device)


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same_buffers(model, before):
    now = dict(model.named_buffers())
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


# Frozen statistics


@over_devices
@pytest.mark.parametrize("name", NORMS)
def test_outputs_are_the_same_and_buffers_stay(name, device):
    norm, x = norm_and_data(name, device)
    model = nn.Sequential(norm)
    free, before, objects = copy.deepcopy(model), buffers(model), list(model.buffers())
    settings = [copy.copy(vars(module)) for module in model.modules()]
    with frozen_norm_stats(model):
        out = model(x)
    assert torch.equal(out, free(x))
    assert same_buffers(model, before)
    assert all(a is b for a, b in zip(model.buffers(), objects, strict=True))
    assert [vars(module) for module in model.modules()] == settings
    model(x)
    assert same_buffers(model, buffers(free))
    assert same_buffers(model, before) == (name not in TRACKING)


@over_devices
@pytest.mark.parametrize("name", TRACKING)
def test_evaluation_mode_keeps_using_its_statistics(name, device):
    norm, x = norm_and_data(name, device)
    norm.eval()
    before, expected = buffers(norm), norm(x + 5)
    with frozen_norm_stats(norm):
        assert torch.equal(norm(x + 5), expected)
    assert same_buffers(norm, before)


def test_modules_in_evaluation_mode_are_left_alone_next_to_others():
    training, x = norm_and_data("batch norm", "cpu")
    evaluating, _ = norm_and_data("batch norm", "cpu", seed=1)
    model = nn.Sequential(training, evaluating.eval())
    expected, before = copy.deepcopy(model)(x), buffers(model)
    with frozen_norm_stats(model):
        assert (training.track_running_stats, evaluating.track_running_stats) == (False, True)
        assert torch.equal(model(x), expected)
    assert same_buffers(model, before)


@pytest.mark.parametrize("name", ["batch norm", "instance norm"])
def test_what_is_not_finite_stays_out(name):
    norm, x = norm_and_data(name, "cpu")
    before = buffers(norm)
    with frozen_norm_stats(norm):
        assert not norm(x * float("inf")).isfinite().any()
    assert same_buffers(norm, before)


@pytest.mark.parametrize("name", ["batch norm", "instance norm"])
def test_nested_and_with_an_exception(name):
    norm, x = norm_and_data(name, "cpu")
    before, settings = buffers(norm), copy.copy(vars(norm))

    def nested():
        with frozen_norm_stats(norm):
            with frozen_norm_stats(norm):
                norm(x)
            norm(x)  # leaving the inner one thaws nothing
            raise KeyError

    with pytest.raises(KeyError):
        nested()
    assert same_buffers(norm, before)
    assert vars(norm) == settings
    norm(x)
    assert not same_buffers(norm, before)


def test_a_module_that_is_used_twice_is_frozen_and_thawed_once():
    norm, x = norm_and_data("batch norm", "cpu")
    model, before = nn.Sequential(norm, nn.Linear(3, 3), norm), buffers(norm)
    with frozen_norm_stats(model):
        model(x)
    assert same_buffers(norm, before)
    assert norm.track_running_stats


def test_synchronised_batch_norm_is_batch_norm():
    """Its forward pass is for accelerators; it reads the same flag, and nothing else, to find its buffers."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    assert isinstance(model[0], nn.SyncBatchNorm)
    with frozen_norm_stats(model):
        assert not model[0].track_running_stats
    assert model[0].track_running_stats
    model.eval()
    with frozen_norm_stats(model):
        assert model[0].track_running_stats


# Around the sharp passes of an optimizer


def network(device="cpu", dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(6, 3),
        nn.BatchNorm1d(3, momentum=None),
    ).to(device)


def data(n, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(9, 5, generator=generator).to(device) for _ in range(n)]


def loss_of(model, x):
    return (model(x) - 1).square().mean()


def through(door, opt, backward):
    """One step through a door; ``backward`` computes the loss and its gradient."""
    if door == "step":

        def closure():
            opt.zero_grad()
            return backward()

        return opt.step(closure)
    opt.zero_grad()
    if door == "backward":
        loss = opt.backward(backward)
    else:
        loss, _ = through_ascended(opt, backward)
    opt.base.step()
    return loss


def plain_backward(model, x, around=nullcontext):
    def backward():
        with around():
            loss = loss_of(model, x)
        loss.backward()
        return loss

    return backward


def sam(model, rho=0.05):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), rho=rho)


@over_devices
@over_doors
@over_climbing
def test_statistics_of_a_step_are_those_of_the_base(case, door, device):
    """One step from the same weights: the clean pass of one is the only pass of the other."""
    model, plain = network(device), network(device)
    opt = case.build(model.parameters())
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    (x,) = data(1, device)
    before = buffers(plain)
    through(door, opt, plain_backward(model, x))
    loss_of(plain, x)
    assert same_buffers(model, buffers(plain))
    assert not same_buffers(model, before)
    assert model[1].num_batches_tracked.item() == 1


@over_doors
def test_a_handle_ends_it(door):
    model, twin = network(), network()
    opt, other = sam(model), sam(twin)
    first, second = data(2)
    handle = opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    other.around_sharp_pass(lambda: frozen_norm_stats(twin))
    for o, m in ((opt, model), (other, twin)):
        through(door, o, plain_backward(m, first))
    handle.remove()
    for o, m in ((opt, model), (other, twin)):
        through(door, o, plain_backward(m, second))
    assert (model[1].num_batches_tracked.item(), twin[1].num_batches_tracked.item()) == (3, 2)
    handle.remove()  # a second time is nothing


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deep", "pickle"]
)
def test_copies_do_not_carry_it(copier):
    model = network()
    opt = sam(model)
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    twin, other = copier((model, opt))
    (x,) = data(1)
    through("step", other, plain_backward(twin, x))
    assert twin[1].num_batches_tracked.item() == 2
    assert model[1].num_batches_tracked.item() == 0
    other.around_sharp_pass(lambda: frozen_norm_stats(twin))  # it takes its own
    through("step", other, plain_backward(twin, x))
    assert twin[1].num_batches_tracked.item() == 3


def test_loading_a_state_keeps_it():
    model = network()
    opt = sam(model)
    handle = opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    first, second, third = data(3)
    through("step", opt, plain_backward(model, first))
    assert not any("around" in str(key) for key in opt.state_dict())
    opt.load_state_dict(opt.state_dict())
    through("step", opt, plain_backward(model, second))
    assert model[1].num_batches_tracked.item() == 2
    handle.remove()
    through("step", opt, plain_backward(model, third))
    assert model[1].num_batches_tracked.item() == 4


@over_doors
def test_contexts_are_entered_at_the_climb_in_order_and_left_before_it_ends(door):
    model = network()
    opt, log = sam(model), []
    w = weights(model)

    def noting(name):
        @contextmanager
        def context():
            log.append((f"into {name}", same_bits(weights(model), w)))
            yield
            log.append((f"out of {name}", same_bits(weights(model), w)))

        return context

    opt.around_sharp_pass(noting("first"))
    opt.around_sharp_pass(noting("second"))
    opt.base.register_step_pre_hook(lambda *_: log.append(("base", same_bits(weights(model), w))))
    (x,) = data(1)
    through(door, opt, plain_backward(model, x, around=noting("a pass")))
    assert log == [
        ("into a pass", True),
        ("out of a pass", True),
        ("into first", False),
        ("into second", False),
        ("into a pass", False),
        ("out of a pass", False),
        ("out of second", False),
        ("out of first", False),
        ("base", True),
    ]


@over_doors
def test_steps_that_do_not_climb_do_not_enter_it(door):
    model = network()
    opt = sam(model, rho=0.0)
    opt.around_sharp_pass(lambda: pytest.fail("entered"))
    (x,) = data(1)
    through(door, opt, plain_backward(model, x))


@over_doors
@pytest.mark.parametrize("fails_in", ["making", "entering", "pass", "leaving"])
def test_an_exception_anywhere_restores_all(door, fails_in):
    model, log = network(), []
    opt = sam(model)
    (x,) = data(1)

    @contextmanager
    def noting():
        log.append("in")
        try:
            yield
        finally:
            log.append("out")

    @contextmanager
    def failing():
        if fails_in == "entering":
            raise ZeroDivisionError
        yield
        if fails_in == "leaving":
            raise ZeroDivisionError

    def make():
        if fails_in == "making":
            raise ZeroDivisionError
        return failing()

    passes = iter((False, fails_in == "pass"))

    def backward():
        if next(passes):
            raise ZeroDivisionError
        return plain_backward(model, x)()

    opt.around_sharp_pass(noting)
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    handle = opt.around_sharp_pass(make)
    before = weights(model)
    with pytest.raises(ZeroDivisionError):
        through(door, opt, backward)
    assert same_bits(weights(model), before)
    assert log == ["in", "out"]
    assert model[1].track_running_stats
    assert not opt.base.state
    handle.remove()
    through(door, opt, plain_backward(model, x))  # and it goes on
    assert model[1].num_batches_tracked.item() == 2


# Random numbers


def masks_of(model):
    """What the dropout layer lets through, pass by pass."""
    masks = []
    model[3].register_forward_hook(lambda module, args, out: masks.append((out != 0).detach().clone()))
    return masks


def run_with_dropout(device, n, *, rho, door="step", same=True, recompute=False, plain=False):
    """Losses, masks, weights, buffers and generators of a run of ``n`` steps."""
    model = network(device, dropout=0.5)
    masks = masks_of(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) if plain else sam(model, rho)
    if not plain:
        opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    torch.manual_seed(3)
    losses, drawn = [], []
    for x in data(n, device):
        draws = same_random_state() if same else nullcontext()

        def backward(x=x, draws=draws):
            with draws:
                out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
                loss = (out - 1).square().mean()
            loss.backward()
            return loss

        if plain:
            opt.zero_grad()
            loss = backward()
            opt.step()
        else:
            loss = through(door, opt, backward)
        losses.append(loss.item())
        drawn.append(torch.rand(3, device=device))  # whatever draws between steps: data order, augmentation
    generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device == "cuda" else [])]
    return {
        "losses": losses,
        "masks": masks,
        "model": list(model.state_dict().values()),
        "drawn": drawn,
        "generators": generators,
    }


@over_devices
@over_doors
def test_both_passes_draw_the_same_masks_and_steps_draw_others(door, device):
    masks = run_with_dropout(device, 4, rho=0.05, door=door)["masks"]
    assert len(masks) == 8
    assert all(torch.equal(masks[i], masks[i + 1]) for i in range(0, 8, 2))
    assert not any(torch.equal(masks[i], masks[i + 2]) for i in range(0, 6, 2))
    free = run_with_dropout(device, 4, rho=0.05, door=door, same=False)["masks"]
    assert not any(torch.equal(free[i], free[i + 1]) for i in range(0, 8, 2))


@over_devices
@over_doors
@pytest.mark.parametrize("recompute", [False, True], ids=["", "checkpointing"])
def test_generators_go_the_way_of_the_base(door, device, recompute):
    """With a tiny radius the whole run is the base's: masks, what is drawn between steps, and, nearly, losses."""
    plain = run_with_dropout(device, 6, rho=0.0, plain=True, same=False)
    found = run_with_dropout(device, 6, rho=1e-6, door=door, recompute=recompute)
    per_step = 4 if recompute else 2
    assert len(found["masks"]) == per_step * len(plain["masks"])
    for i, mask in enumerate(plain["masks"]):
        assert all(torch.equal(mask, again) for again in found["masks"][per_step * i : per_step * (i + 1)])
    assert same_bits(found["drawn"], plain["drawn"])
    assert same_bits(found["generators"], plain["generators"])
    assert found["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    if not recompute:  # which updates statistics once more, with the base as well
        torch.testing.assert_close(found["model"], plain["model"], rtol=0, atol=1e-5)


@over_devices
@over_doors
def test_rho_zero_is_the_base_bit_for_bit_with_batch_norm_and_dropout(door, device):
    plain = run_with_dropout(device, 6, rho=0.0, plain=True, same=False)
    found = run_with_dropout(device, 6, rho=0.0, door=door)
    assert found["losses"] == plain["losses"]
    for what in ("masks", "model", "drawn", "generators"):
        assert same_bits(found[what], plain[what])


@over_devices
def test_sam_with_dropout_is_sam_on_the_one_network_that_dropout_left(device):
    """Against a plain loop with the mask held fixed by hand."""
    model = network(device, dropout=0.5).double()
    plain, masks = copy.deepcopy(model), masks_of(model)
    opt, rho, lr = sam(model, rho=0.1), 0.1, 0.05
    x = data(1, device)[0].double()
    draws = same_random_state()
    through("step", opt, plain_backward(model, x, around=lambda: draws))

    plain[3] = nn.Identity()
    plain[3].register_forward_hook(lambda module, args, out: out * masks[0] * 2)
    params = list(plain.parameters())
    clean = torch.autograd.grad(loss_of(plain, x), params)
    norm = torch.sqrt(sum(g.square().sum() for g in clean))
    before = weights(plain)
    with torch.no_grad():
        for p, g in zip(params, clean, strict=True):
            p += rho * g / norm
    sharp = torch.autograd.grad(loss_of(plain, x), params)
    expected = [w - lr * g for w, g in zip(before, sharp, strict=True)]
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=1e-12)


def test_a_pass_that_raises_can_be_taken_again():
    """The object knows where the first pass began, not whether it ended."""
    torch.manual_seed(0)
    begin = torch.get_rng_state()
    same = same_random_state()

    def fails():
        with same:
            torch.rand(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with same:
        found = torch.rand(5)
    torch.set_rng_state(begin)
    assert torch.equal(found, torch.rand(5))


def test_a_step_after_one_that_raised_draws_on():
    torch.manual_seed(0)
    model = network(dropout=0.5)
    opt, masks = sam(model), masks_of(model)
    first, second = data(2)
    passes = iter((False, True))

    def fails(backward):
        loss = backward()
        if next(passes):
            raise ZeroDivisionError
        return loss

    for x in (first, second):
        draws = same_random_state()
        backward = plain_backward(model, x, around=lambda draws=draws: draws)
        if x is first:
            with pytest.raises(ZeroDivisionError):
                opt.step(lambda backward=backward: fails(backward))
        else:
            through("step", opt, backward)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])
