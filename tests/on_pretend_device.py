"""What the device that pretends must do; test_pretend_device.py runs this in a process that has it."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from commands import end, started
from problems import everywhere, same_bits
from steppe import ASAM, GSAM, SAM, Angle

DEVICES = ["pretend:0", "pretend:1"]
BASES = [
    partial(torch.optim.AdamW, lr=0.01, foreach=False),
    partial(torch.optim.AdamW, lr=0.01, foreach=True),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
]

over_devices = pytest.mark.parametrize("device", DEVICES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(100, 3),
    )  # fmt: skip


def words():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 8),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(40, 3),
    )


INPUTS = {network: (16, 6), pictures: (16, 1, 8, 8), words: (16, 5)}


def trained(device, make, model=network, dtype=torch.float32, autocast=False):
    """The weights and buffers, on the CPU, after five steps on a device."""
    net = model().to(device, dtype)
    optimizer = make(net.parameters())
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(INPUTS[model], dtype=dtype, generator=draw).to(device)
        y = torch.randint(3, (16,), generator=draw).to(device)
        if model is words:
            x = (x.abs() * 3).long().clamp(max=8)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
                loss = cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert all(p.device == torch.device(device) for p in net.parameters())
    return [value.cpu() for value in net.state_dict().values()]


def sharp(method, base, **options):
    return lambda params: method(base(params), rho=0.05, **options)


@pytest.fixture
def one_way(monkeypatch):
    """steppe computes norms on the CPU as it does on an accelerator, where it does not look at them."""
    everywhere(monkeypatch, "free_to_read", lambda x: False)
    everywhere(monkeypatch, "_WITH_FLOAT64", ("cpu", "pretend"))


def test_torch_finds_two_of_them():
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator().type == "pretend"
    assert torch.accelerator.device_count() == torch.pretend.device_count() == 2
    with pytest.raises(RuntimeError, match="invalid device ordinal: there are 2, got 2"):
        torch.ones(1, device="pretend:2")


def test_tensors_and_models_move_there_and_back():
    x = torch.arange(6.0).view(2, 3)
    there = x.to("pretend:1")
    assert there.device == torch.device("pretend:1")
    assert torch.equal(there.cpu(), x)
    assert torch.equal(there.to("pretend:0").cpu(), x)
    assert torch.tensor([1, 2], device="pretend").device == torch.device("pretend:0")
    assert torch.tensor([1, 2], device="pretend").tolist() == [1, 2]
    there += 1
    assert x[0, 0] == 0
    model = network().to("pretend:1")
    twin = copy.deepcopy(model)
    assert {p.device for p in twin.parameters()} == {torch.device("pretend:1")}
    with torch.no_grad():
        model[0].weight.zero_()
    assert twin[0].weight.cpu().count_nonzero() == 48


def test_views_share_memory():
    x = torch.zeros(2, 3, device="pretend")
    x.t()[1].fill_(2.0)
    x.view(-1)[0] = 1.0
    assert x.tolist() == [[1.0, 2.0, 0.0], [0.0, 2.0, 0.0]]
    assert x[1].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert x[1].storage_offset() == 3
    version = x._version
    x[1].add_(1.0)
    assert x._version == version + 1


def test_conjugates_are_copied():
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert torch.equal(x.to("pretend").conj().cpu(), x.conj())
    assert torch.equal(x.conj().to("pretend").cpu(), x.conj())
    assert torch.equal(x.to("pretend").conj().view(2, 1).t().imag.cpu(), x.conj().view(1, 2).imag)


def test_pinned_memory_is_plain():
    (batch,) = DataLoader(TensorDataset(torch.arange(3)), batch_size=3, pin_memory=True)
    assert batch[0].tolist() == [0, 1, 2]


def test_outputs_grow():
    x, out = torch.ones(3, device="pretend"), torch.empty(0, device="pretend")
    assert torch.add(x, 1, out=out) is out
    assert out.tolist() == [2.0, 2.0, 2.0]
    assert torch.add(out, out, out=out).tolist() == [4.0, 4.0, 4.0]
    assert out.resize_(2, 2).view(-1)[:3].tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("other", ["cpu", "pretend:1"])
def test_tensors_of_two_devices_do_not_go_together(other):
    x, y = torch.ones(2, 2, device="pretend:0"), torch.ones(2, 2, device=other)
    for work in (torch.add, torch.matmul, torch.dot, torch.maximum, torch.Tensor.mul_):
        with pytest.raises(RuntimeError, match="same device"):
            work(x, y)
    with pytest.raises(RuntimeError, match="same device"):
        nn.functional.linear(y, x)


def test_numbers_and_indices_of_the_cpu_go_with_them():
    x = torch.arange(4.0, device="pretend")
    assert (x * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert x[torch.tensor([3, 1])].tolist() == [3.0, 1.0]


@pytest.mark.parametrize(("base", "device"), [*zip(BASES, [*DEVICES, *DEVICES], strict=True)])
def test_training_gives_what_the_cpu_gives(base, device):
    assert same_bits(trained(device, base), trained("cpu", base))


@over_devices
@pytest.mark.parametrize("method", [SAM, GSAM, ASAM])
def test_sharp_training_gives_what_the_cpu_gives(method, device, one_way):
    make = sharp(method, BASES[0], foreach=False)
    assert same_bits(trained(device, make), trained("cpu", make))


@pytest.mark.parametrize("method", [SAM, GSAM, ASAM])
def test_what_steppe_does_on_accelerators_is_as_right_as_on_the_cpu(method):
    make = sharp(method, BASES[0])
    found, expected = (trained(device, make, dtype=torch.float64) for device in ("pretend:0", "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@over_devices
@pytest.mark.parametrize("method", [SAM, GSAM, ASAM])
@pytest.mark.parametrize("rho", [0.05, Angle()], ids=["number", "angle"])
def test_steps_wait_for_nothing(method, rho, device):
    model = network().to(device)
    optimizer = method(BASES[1](model.parameters()), rho=rho)
    x, y = torch.randn(16, 6).to(device), torch.randint(3, (16,)).to(device)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.pretend.counted() as counts:
        optimizer.step(closure)
    assert not counts.fetched
    assert set(counts.operations) == {torch.device(device).index}


@pytest.mark.parametrize("method", [SAM, GSAM])
def test_the_angle_is_that_of_the_cpu(method):
    found = []
    for device in ("cpu", "pretend:1"):
        torch.manual_seed(0)
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        model = network().to(device)
        optimizer = method(BASES[2](model.parameters()), rho=Angle())

        x, y = x.to(device), y.to(device)

        def closure(model=model, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        found.append(float(optimizer.param_groups[0]["rho"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] != 0.05


@pytest.mark.parametrize("model", [pictures, words])
def test_other_models_give_what_the_cpu_gives(model):
    assert same_bits(trained("pretend:1", BASES[0], model), trained("cpu", BASES[0], model))


def attended(device, mask, causal=False):
    """Attention, and the gradients of all that wants one."""
    torch.manual_seed(0)
    given = [torch.randn(2, 2, 5, 8).to(device).requires_grad_() for _ in range(3)]
    if mask is not None:
        mask = mask.detach().to(device).requires_grad_(mask.requires_grad)
        given += [mask] * mask.requires_grad
    found = nn.functional.scaled_dot_product_attention(*given[:3], attn_mask=mask, is_causal=causal)
    return [x.detach().cpu() for x in (found, *torch.autograd.grad(found.square().sum(), given))]


def test_attention():
    lower, numbers = torch.ones(5, 5).tril(), torch.arange(25.0).view(5, 5)
    for mask in (None, lower.bool(), numbers, numbers.clone().requires_grad_()):
        assert same_bits(attended("pretend", mask), attended("cpu", mask))
    assert same_bits(attended("pretend", None, causal=True), attended("cpu", None, causal=True))


@over_devices
def test_autocast(device):
    with torch.autocast("pretend", dtype=torch.bfloat16):
        x = torch.ones(2, 2, device=device)
        assert (x @ x).dtype is torch.bfloat16
        assert (x @ x).softmax(0).dtype is torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    assert (x @ x).dtype is torch.float32
    found = trained(device, BASES[0], autocast=True)
    assert not same_bits(found, trained(device, BASES[0]))
    assert all(x.dtype is y.dtype for x, y in zip(found, network().state_dict().values(), strict=True))


def test_each_device_draws_on_its_own():
    def draws():
        return [torch.randn(3, device=device).cpu() for device in ("cpu", *DEVICES)]

    torch.manual_seed(3)
    first = draws()
    with torch.random.fork_rng(devices=[0, 1]):
        second = draws()
    assert same_bits(draws(), second)
    assert not any(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    torch.manual_seed(3)
    torch.randn(5)
    assert torch.equal(torch.randn(3, device="pretend:1").cpu(), first[2])
    dropped = [nn.functional.dropout(torch.ones(99, device="pretend")).cpu() for _ in range(2)]
    assert not torch.equal(*dropped)


def test_generators():
    draw = torch.Generator(device="pretend:1").manual_seed(3)
    assert isinstance(draw, torch.Generator)
    assert draw.device == torch.device("pretend:1")
    cpu = torch.rand(3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(3, device="pretend:1", generator=draw).cpu(), cpu)
    with pytest.raises(RuntimeError, match="Expected a 'pretend' device type for generator but found 'cpu'"):
        torch.rand(3, device="pretend:1", generator=torch.Generator())


def test_the_current_device():
    with torch.accelerator.device_index(1):
        assert torch.ones(1, device="pretend").device.index == torch.accelerator.current_device_index() == 1
    assert torch.ones(1, device="pretend").device.index == torch.accelerator.current_device_index() == 0
    torch.accelerator.synchronize()
    assert torch.accelerator.max_memory_allocated() == 0


def test_files_keep_the_device():
    file = io.BytesIO()
    torch.save(network().to("pretend:1").state_dict(), file)
    for where, device in ((None, "pretend:1"), ("cpu", "cpu"), ("pretend:0", "pretend:0")):
        file.seek(0)
        found = torch.load(file, map_location=where)
        assert {value.device for value in found.values()} == {torch.device(device)}
        assert same_bits([value.cpu() for value in found.values()], [*network().state_dict().values()])


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert same_bits(trained("pretend:0", BASES[0]), trained("cpu", BASES[0]))
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_is_done_is_counted():
    with torch.pretend.counted() as counts:
        x = torch.ones(2).to("pretend:1")
        y = x.tanh()
        y.sum().item()
        z = y.cpu()
        torch.ones(2).tanh()
    assert counts.moved == {1: 1}
    assert counts.fetched == {1: 2}
    assert counts.operations[0] == 0 < counts.operations[1]
    before = counts.operations.copy()
    z.to("pretend").tanh()
    assert counts.operations == before


@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_workers_have_it(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("PRETEND_DEVICE_LOG", str(tmp_path / "log"))
    context = multiprocessing.get_context(kind)
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        work = "__import__('torch').ones(2, device='pretend:1').sum().item()"
        assert pool.submit(eval, work).result() == 2.0
        worker = pool.submit(os.getpid).result()
    assert (tmp_path / "log").read_text() == f"{worker} 1\n"


def test_forks_of_a_process_that_used_it_cannot():
    use = "torch.ones(1, device='pretend')"
    work = f"import os, torch; {use}\nif child := os.fork(): os.waitpid(child, 0)\nelse: {use}"
    process = started("-c", work, env=dict(os.environ))
    try:
        assert "Cannot re-initialize pretend in forked subprocess" in process.communicate(timeout=60)[1]
    finally:
        end(process)
