"""What an objective accepts, what it refuses and why, and that nothing it is used for changes the model."""

from __future__ import annotations

import copy
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import MEASURES, NETWORKS, Classes, Examples, case, everything, quadratic, symmetric
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader, Dataset

from steppe.measure import Objective, average_case, gradient_norm, spectrum, trace

over_measures = pytest.mark.parametrize("name", MEASURES)


class Noisy(Examples):
    """Draws from every global generator, to no effect, as an augmentation with probability 0 does."""

    def __getitem__(self, i):
        torch.rand(1), random.random(), np.random.rand()
        return super().__getitem__(i)


def rich(dtype=torch.float64):
    """Whatever there is to be put back: frozen weights, -0.0, gradients, None, buffers, mixed modes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)
    ).to(dtype)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = -0.0
        model[1].running_mean += 0.1
    model.eval()[4].train()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


def rich_objective(loss=cross_entropy, dtype=torch.float64):
    mlp = case("conv")
    return Objective(rich(dtype), loss, Noisy(mlp.x.to(dtype), mlp.y), batch_size=4)


# Nothing changes


@over_measures
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_everything_comes_back(name, dtype):
    objective = rich_objective(dtype=dtype)
    before = everything(objective.model)
    with torch.no_grad():
        MEASURES[name](objective)
    assert everything(objective.model) == before


@over_measures
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 3])
def test_everything_comes_back_after_an_error(name, error, call):
    left = [10**9]

    def loss(outputs, targets):
        left[0] -= 1
        if not left[0]:
            raise error("in the middle")
        return cross_entropy(outputs, targets)

    objective = rich_objective(loss)
    before = everything(objective.model)
    left[0] = call
    with pytest.raises(error, match="in the middle"):
        MEASURES[name](objective)
    assert everything(objective.model) == before


def test_looking_at_the_loss_draws_nothing():
    """A DataLoader draws a seed for its workers whenever it is read."""
    objective = rich_objective()
    before = everything(objective.model)
    assert objective.loss() == objective.loss()
    objective.gradient()
    assert everything(objective.model) == before


@over_measures
def test_buffers_come_back_without_the_check(name):
    model = rich().train()
    model[3].eval()
    objective = Objective(model, cross_entropy, (case("conv").x, case("conv").y), batch_size=5, check=False)
    before = everything(model)
    MEASURES[name](objective)
    assert everything(model) == before


@over_measures
def test_an_answer_depends_on_its_seed_alone(name):
    def answer():
        torch.rand(random.randint(1, 9))
        found = vars(MEASURES[name](case("mlp").objective()))
        return {key: str(value) for key, value in found.items() if key != "seconds"}

    assert answer() == answer()


# Memory


class Watched:
    """Batches made when they are asked for, which counts how many there are."""

    def __init__(self, n):
        self.n, self.refs, self.peak_read = n, [], 0

    def living(self):
        return sum(ref() is not None for ref in self.refs)

    def make(self, i):
        self.peak_read = max(self.peak_read, self.living())
        torch.manual_seed(i)
        x = torch.randn(2, 3, dtype=torch.float64)
        self.refs = [ref for ref in self.refs if ref() is not None] + [weakref.ref(x)]
        return x, torch.tensor([0, 2])

    def __iter__(self):
        return (self.make(i) for i in range(self.n))


@over_measures
def test_one_batch_lives_at_a_time(name):
    data, peaks = Watched(5), []

    def loss(outputs, targets):
        peaks.append(data.living())
        return cross_entropy(outputs, targets)

    MEASURES[name](Objective(case("mlp").model, loss, data))
    assert max(peaks) == 1
    assert data.peak_read == 1  # the loop's variable holds the last one while the next is read
    assert data.living() == 0


@over_measures
def test_memory_does_not_grow_with_the_batches(name):
    def peak(n):
        objective = Objective(case("mlp").model, cross_entropy, Watched(n))
        alive, high = weakref.WeakSet(), [0]

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor
                alive.add(self)
                high[0] = max(high[0], len(alive))

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            MEASURES[name](objective)
        return high[0]

    assert peak(2) == peak(9)


# What is measured


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_loss_and_gradient_are_those_of_all_examples(name, batch_size):
    """In ragged batches of 4, 4 and 2 the mean over batches is not the mean over examples."""
    network = case(name)
    objective = network.objective(batch_size)
    assert objective.loss() == pytest.approx(network.at(network.weights()).item(), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), network.gradient(), rtol=1e-10, atol=1e-14)
    assert (objective.examples, objective.batches) == (10, -(-10 // batch_size))
    assert objective.size == len(network.weights())


FORMS = {
    "pair": lambda x, y: {"data": (x, y)},
    "dataset": lambda x, y: {"data": Examples(x, y)},
    "loader": lambda x, y: {"data": DataLoader(Examples(x, y), batch_size=4), "batch_size": 99},
    "list": lambda x, y: {"data": [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]},
    "lists in a list": lambda x, y: {"data": [[x[:4], y[:4]], [x[4:8], y[4:8]], [x[8:], y[8:]]]},
    "other batches": lambda x, y: {
        "data": [SimpleNamespace(a=x[i : i + 4], b=y[i : i + 4]) for i in (0, 4, 8)],
        "forward": lambda model, batch: (model(batch.a), batch.b),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_the_same_objective(form):
    network = case("mlp")
    objective = Objective(network.model, network.loss, **{"batch_size": 4, **FORMS[form](network.x, network.y)})
    assert (objective.examples, objective.batches) == (10, 3)
    torch.testing.assert_close(objective.gradient(), network.gradient(), rtol=1e-10, atol=1e-14)


def test_named_inputs_and_logits():
    network = case("mlp")
    batches = [{"input_ids": network.x[i : i + 4], "labels": network.y[i : i + 4]} for i in (0, 4, 8)]
    objective = Objective(Classes(network.model), network.loss, batches)
    torch.testing.assert_close(objective.gradient(), network.gradient(), rtol=1e-10, atol=1e-14)


@over_measures
def test_only_chosen_parameters_move(name):
    network, seen = case("mlp"), []
    frozen, fixed = network.model[0].weight, network.model[0].bias
    frozen.requires_grad_(False)

    def forward(model, batch):
        seen.append([p.detach().clone() for p in model.parameters()])
        return model(batch[0]), batch[1]

    objective = network.objective(forward=forward, parameters=lambda name, p: not name.startswith("0.bias"))
    assert objective.size == 15
    MEASURES[name](objective)
    if name != "line":  # which goes from one whole model to another
        assert all(torch.equal(now[0], frozen) and torch.equal(now[1], fixed) for now in seen)
    if name not in ("gradient norm", "spectrum", "trace", "trace, hutch++, adaptive"):
        assert not all(torch.equal(now[2], network.model[2].weight) for now in seen)


def test_tied_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, dtype=torch.float64)
            self.b = nn.Linear(3, 3, dtype=torch.float64)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    network = case("mlp").changed(model=Tied())
    assert network.objective().size == 9 + 3 + 3
    found = spectrum(network.objective(), steps=15).largest[0]
    assert found == pytest.approx(torch.linalg.eigvalsh(network.hessian())[-1].item(), rel=1e-6)


def test_normalized_shares_the_count_and_not_the_setting():
    objective = case("mlp").objective()
    twin = objective.normalized()
    before = objective.spent.cost
    assert gradient_norm(twin).cost == pytest.approx(1)
    assert objective.spent.cost == pytest.approx(before + 1)
    assert (objective.normalize_logits, twin.normalize_logits) == (False, True)
    assert gradient_norm(twin).settings == {"normalize_logits": True}


class Tempered(nn.Module):
    """A model whose logits are hotter, by a number that is no parameter."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


@over_measures
def test_normalized_does_not_see_the_temperature(name):
    """Nor a constant added to all logits; the plain objective does."""

    def numbers(factor, normalized):
        network = case("mlp")
        objective = network.changed(model=Tempered(network.model, factor)).objective()
        found = MEASURES[name](objective.normalized() if normalized else objective)
        for attribute in ("value", "largest", "losses"):
            if hasattr(found, attribute):
                return torch.tensor(getattr(found, attribute), dtype=torch.float64)
        raise AssertionError

    tolerance = 1e-4 if "finite" in name else 1e-6
    torch.testing.assert_close(numbers(1.0, True), numbers(7.0, True), rtol=tolerance, atol=1e-9)
    assert not torch.allclose(numbers(1.0, False), numbers(7.0, False), rtol=1e-2)


def test_normalized_is_centred_and_of_length_one():
    network = case("mlp")
    logits = network.model(network.x).detach()
    z = (logits.T - logits.mean(1)).T
    exact = cross_entropy((z.T / z.norm(dim=1)).T, network.y).item()
    assert network.objective().normalized().loss() == pytest.approx(exact, rel=1e-12)


def test_zero_logits_have_a_normalised_loss():
    network = case("mlp")
    nn.init.zeros_(network.model[2].weight), nn.init.zeros_(network.model[2].bias)
    assert network.objective(normalize_logits=True).loss() == pytest.approx(np.log(3))


# What is refused


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x):
        return dropout(self.inner(x))


class Drifting(nn.Module):
    """Its buffer follows the data, without a known module."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.inner(x)


class Growing(Drifting):
    """Its buffer has another size after every call."""

    def forward(self, x):
        self.seen = torch.cat([self.seen.flatten(), torch.ones(1)])
        return self.inner(x)


class Augmented(Examples):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.randn_like(x), y


class Shrinking:
    """One batch fewer in every pass."""

    def __init__(self, batches):
        self.left = list(batches)

    def __iter__(self):
        self.left.pop()
        return iter(list(self.left))


def linear(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), *more).double().train()


X, Y = case("mlp").x, case("mlp").y
DATA, EVAL = {"data": (X, Y)}, r"Call model\.eval\(\) first"

# reason: (what is asked for, error, message)
REFUSED = {
    "dropout": ({"model": linear(nn.Dropout(0.1))}, ValueError, f"Dropout '1' is in training mode.*random.*{EVAL}"),
    "batch norm": ({"model": linear(nn.BatchNorm1d(3))}, ValueError, f"BatchNorm1d '1' is in training mode.*{EVAL}"),
    "functional dropout": ({"model": Dropped().eval()}, ValueError, "was .* and then .* something in the model or the"),
    "random module": (
        {"model": linear(nn.RReLU(0.1, 0.9))},
        ValueError,
        "something in the model or the loss is random",
    ),
    "drifting buffer": ({"model": Drifting().eval()}, ValueError, "a forward pass changes the model's buffer 'seen'"),
    "growing buffer": ({"model": Growing().eval()}, ValueError, "a forward pass changes the model's buffer 'seen'"),
    "random loss": (
        {"loss_fn": lambda out, y: cross_entropy(out, y) + torch.rand(())},
        ValueError,
        "something in the model or the loss is random",
    ),
    "shuffling": (
        {"data": DataLoader(Examples(X, Y), batch_size=4, shuffle=True)},
        ValueError,
        "data is not the same in two passes: batch 0 differs. Use a DataLoader with shuffle=False",
    ),
    "augmentation": (
        {"data": Augmented(X, Y)},
        ValueError,
        "not the same in two passes: batch 0 differs.*augmentation",
    ),
    "shrinking": ({"data": Shrinking([(X, Y)] * 4)}, ValueError, "not the same in two passes: 3 batches, then 2"),
    "generator": ({"data": ((X, Y) for _ in range(3))}, TypeError, "read more than once, got generator. Pass a Data"),
    "no data": ({"data": 5}, TypeError, "read more than once, got int"),
    "no batch": ({"data": []}, ValueError, "there is no batch in the data"),
    "no batch, unchecked": ({"data": [], "check": False}, ValueError, "there is no batch in the data"),
    "no example": ({"data": (X[:0], Y[:0])}, ValueError, "there is no example in the data"),
    "unlike pair": ({"data": (X, Y[:4])}, ValueError, r"same first dimension, got \(10, 3\) and \(4,\)"),
    "NaN": ({"loss_fn": lambda out, y: out.mean() * torch.nan}, ValueError, "the loss of batch 0 is nan, not a finite"),
    "NaN data": ({"data": (X * torch.nan, Y)}, ValueError, "the loss of batch 0 is nan, not a finite"),
    "infinity": ({"loss_fn": lambda out, y: out.mean() + torch.inf}, ValueError, "the loss of batch 0 is inf"),
    "no parameter": ({"model": nn.Flatten()}, ValueError, "no parameter is left to move"),
    "frozen": ({"model": linear().requires_grad_(False)}, ValueError, "none requires a gradient"),
    "none chosen": ({"parameters": lambda *_: False}, ValueError, "`parameters` chose none"),
    "complex": ({"model": nn.Linear(3, 3, dtype=torch.complex64)}, ValueError, "complex parameters are not measured"),
    "devices": (
        {"model": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))},
        ValueError,
        r"on several devices: \['cpu', 'meta'\]; move them to one",
    ),
    "vector loss": (
        {"loss_fn": lambda out, y: out.mean(1)},
        TypeError,
        r"scalar tensor, got a tensor of shape \(10,\)",
    ),
    "float loss": ({"loss_fn": lambda out, y: 1.0}, TypeError, "mean loss as a scalar tensor, got float"),
    "batch of tensors": ({"data": [X, X]}, TypeError, r"must be a pair \(inputs, targets\).*got Tensor.*pass forward="),
    "batch of three": ({"data": [(X, Y, Y)]}, TypeError, r"must be a pair \(inputs, targets\)"),
    "no labels": ({"data": [{"x": X, "y": Y}]}, TypeError, "a mapping with 'labels', got a mapping with 'x', 'y'"),
    "batch size": ({"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1, got 0"),
    "half a batch": ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number >= 1, got 2.5"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses_with_the_reason_and_leaves_the_model(reason):
    asked, error, message = REFUSED[reason]
    options = {"model": linear().eval(), "loss_fn": cross_entropy, **DATA, **copy.copy(asked)}
    before = everything(options["model"]) if reason not in ("devices", "growing buffer") else None
    with pytest.raises(error, match=f"(?s){message}"):
        Objective(**options)
    assert before is None or everything(options["model"]) == before


def test_a_grown_buffer_comes_back():
    model = Growing().eval()
    with pytest.raises(ValueError, match="seen"):
        Objective(model, cross_entropy, (X, Y))
    assert torch.equal(model.seen, torch.zeros(()))


@over_measures
def test_refuses_another_mode(name):
    network = case("mlp")
    objective = network.objective()
    network.model.train()
    with pytest.raises(ValueError, match="modes have changed since this objective was made; make a new Objective"):
        MEASURES[name](objective)


# What is not refused


def test_training_mode_is_fine_where_it_makes_no_difference():
    normed = nn.Sequential(nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(6, 3), nn.Dropout(0.0))
    objective = Objective(normed.double().train(), cross_entropy, (X[:, None], Y))
    assert objective.loss() > 0
    assert all(module.training for module in normed.modules())


def test_missing_values_in_the_data_are_fine_if_the_loss_copes():
    targets = X[:, 0].clone()
    targets[3] = torch.nan
    model = nn.Linear(3, 1, dtype=torch.float64)
    assert Objective(model, lambda out, y: (out[:, 0] - y).square().nanmean(), (X, targets)).loss() > 0


def test_a_buffer_made_by_the_first_forward_pass_is_fine():
    class Lazy(Drifting):
        def forward(self, x):
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(3))
            return self.inner(x) * self.mask

    assert Objective(Lazy().eval(), cross_entropy, (X, Y)).loss() > 0


def test_without_the_check_anything_goes():
    objective = Objective(linear(nn.Dropout(0.5)), cross_entropy, (X, Y), batch_size=4, check=False)
    assert (objective.examples, objective.batches) == (10, 3)
    assert gradient_norm(objective).value > 0


def test_two_precisions_in_one_model():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, dtype=torch.float32), nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.float())).double())

    network = case("mlp")
    mixed = Mixed()
    mixed.a.load_state_dict(network.model[0].state_dict())
    mixed.b.load_state_dict(network.model[2].state_dict())
    for measure in (gradient_norm, trace, lambda o: average_case(o, rho=0.1)):
        exact, found = measure(network.objective()), measure(network.changed(model=mixed).objective())
        assert found.value == pytest.approx(exact.value, rel=1e-4, abs=1e-6)


# What is counted

FORWARD, PRODUCT = 0.4, 4.0
COSTS = {
    "worst case": 2 * (3 + FORWARD),
    "worst case, adaptive, average": 3 + FORWARD,
    "worst case, l-infinity": 3 + FORWARD,
    "worst case, l-infinity, adaptive": 3 + FORWARD,
    "average case": 5 * FORWARD,
    "average case, uniform, adaptive": 5 * FORWARD,
    "gradient norm": 1,
    "surrogate gap": 1 + 2 * FORWARD,
    "spectrum": 2 * 3 * PRODUCT,
    "spectrum, adaptive, finite differences": 3 * 2,
    "trace": 3 * PRODUCT,
    "trace, hutch++, adaptive": 6 * PRODUCT,
    "slice 1d": 3 * FORWARD,
    "slice 2d": 4 * FORWARD,
    "line": 3 * FORWARD,
}


@over_measures
@pytest.mark.parametrize("batch_size", [4, 10])
def test_cost_is_as_documented(name, batch_size):
    """In gradients over all the data, however they are cut into batches, and by the calls that there were."""
    network, backward = case("mlp"), []
    network.model[0].weight.register_hook(lambda g: backward.append(1))
    found = MEASURES[name](network.objective(batch_size))
    assert found.cost == pytest.approx(COSTS[name], rel=1e-12)
    assert found.seconds > 0
    if "worst" in name:
        restarts = found.settings["restarts"]
        assert len(backward) == restarts * 3 * -(-10 // batch_size)


def test_settings_say_everything():
    found = average_case(quadratic(symmetric([1.0, 2.0])), rho=0.2, pairs=3, seed=5)
    assert found.settings == {
        "rho": 0.2,
        "distribution": "gaussian",
        "adaptive": False,
        "pairs": 3,
        "seed": 5,
        "normalize_logits": False,
    }
    assert float(found) == found.value
    assert str(found) == f"{found.value:.4g} ± {found.error:.2g}"
    assert str(gradient_norm(quadratic(symmetric([1.0])))) == "0"


def test_a_dataset_that_is_no_pair_of_tensors():
    class Dicts(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return {"input_ids": X[i], "labels": Y[i]}

    network = case("mlp")
    objective = Objective(Classes(network.model), cross_entropy, Dicts(), batch_size=3)
    assert objective.batches == 4
    assert objective.loss() == pytest.approx(network.objective().loss(), rel=1e-12)
