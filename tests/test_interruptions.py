"""Whatever breaks a step off, and wherever: the weights are w, autograd is as it was, and the next step is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from cases import CLIMBING
from commands import environment
from problems import Problem, same_bits, weights
from steppe import GSAM, SAM
from steppe._signals import BeforeRaising
from steppe._visits import Visit
from steppe.passes import frozen_buffers, frozen_norm_stats


@pytest.fixture(autouse=True)
def interruptible():
    """What runs in the background may have been told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STORM = Path(__file__).with_name("storm.py")

# Two doors, and both paths; methods with a memory, with a blend, and without a clean pass.
STORMS = [
    ("sam", "step", True, 900),
    ("sam", "step", False, 900),
    ("sam", "ascended", True, 900),
    ("sam", "ascended", False, 900),
    ("gsam", "step", False, 400),
    ("looksam", "ascended", True, 400),
    ("friendlysam", "backward", False, 400),
    ("msam", "ascended", True, 400),
]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer that sends signals")
@pytest.mark.parametrize(("name", "door", "foreach", "signals"), STORMS)
def test_a_storm_of_signals_leaves_nothing_wrong(name, door, foreach, signals):
    done = subprocess.run(
        [sys.executable, str(STORM), name, door, str(foreach), str(signals), "0"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["signals"] == signals
    assert found["broken off"] > signals / 10  # the storm hits steps, and not what lies between them
    assert found["wrong"] == 0, done.stderr


def fail_at(monkeypatch, owner, name, n, error=KeyboardInterrupt):
    """Let call number ``n`` of a function raise, before it does anything."""
    plain, calls = getattr(owner, name), []

    def fails(*args, **kwargs):
        calls.append(name)
        if len(calls) == n + 1:
            raise error("no more")
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails)
    return calls


@pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("foreach", "owner", "name", "n"),
    [
        *[(foreach, torch, "clear_autocast_cache", n) for foreach in (True, False) for n in range(2)],
        *[(True, torch, "_foreach_copy_", n) for n in range(2)],
        *[(True, torch, "_foreach_add_", n) for n in range(1)],
        *[(False, torch.Tensor, "copy_", n) for n in range(4)],
        *[(False, torch.Tensor, "add_", n) for n in range(4)],
    ],
    ids=str,
)
def test_an_operation_that_fails_leaves_the_weights_and_a_usable_optimizer(case, foreach, owner, name, n, monkeypatch):
    problem = Problem()
    opt = case.build(problem.model.parameters(), foreach=foreach)
    batches = problem.batches(case.first + 2)
    for batch in batches[: case.first]:
        opt.step(problem.closure(opt, batch))
    before = weights(problem.model)
    for group in opt.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    with monkeypatch.context() as patched:
        fail_at(patched, owner, name, n, MemoryError)
        with pytest.raises(MemoryError):
            opt.step(problem.closure(opt, batches[-2]))
    assert same_bits(problem.model.parameters(), before)
    assert torch.is_grad_enabled()
    opt.step(problem.closure(opt, batches[-1]))
    assert same_bits(problem.model.parameters(), before)


def test_a_copy_for_which_there_is_no_memory_is_made_at_the_next_step(monkeypatch):
    problem, straight = Problem(), Problem()
    opt, other = (SAM(SGD(p.model.parameters(), lr=0.1), rho=0.1) for p in (problem, straight))
    first, second = problem.batches(2)
    opt.keep_copy = other.keep_copy = False
    for o, p in ((opt, problem), (other, straight)):
        o.step(p.closure(o, first))
    with monkeypatch.context() as patched:
        fail_at(patched, torch, "empty_like", 2, torch.OutOfMemoryError)
        with pytest.raises(torch.OutOfMemoryError, match="no more"):
            opt.step(problem.closure(opt, second))
    for o, p in ((opt, problem), (other, straight)):
        o.step(p.closure(o, second))
    assert same_bits(problem.model.parameters(), straight.model.parameters())


def test_the_handler_of_a_signal_that_does_not_raise_lets_the_sharp_pass_go_on():
    problem, calls = Problem(), []
    opt = SAM(SGD(problem.model.parameters(), lr=0.0), rho=0.1)
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    plain = signal.signal(signal.SIGUSR1, lambda *_: calls.append("noted"))
    try:
        problem.loss(batch).backward()
        with opt.ascended():
            away = weights(problem.model)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert same_bits(weights(problem.model), away)
            problem.loss(batch).backward()
    finally:
        signal.signal(signal.SIGUSR1, plain)
    assert calls == ["noted"]
    assert same_bits(weights(problem.model), before)


def test_a_body_that_swallows_the_exception_of_a_signal_is_told():
    problem = Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    problem.loss(batch).backward()

    def sharp_pass():
        with opt.ascended():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                assert same_bits(weights(problem.model), before)
            problem.loss(batch).backward()

    with pytest.raises(RuntimeError, match=r"caught the exception of a signal.* take the next step"):
        sharp_pass()
    assert same_bits(weights(problem.model), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    opt.step(problem.closure(opt, batch))


def test_what_surrounds_the_sharp_pass_is_left_when_a_signal_breaks_it_off():
    problem = Problem()
    opt = GSAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)
    model = torch.nn.BatchNorm1d(3)
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    problem.loss(batch).backward()

    def sharp_pass():
        with opt.ascended():
            assert not model.track_running_stats
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sharp_pass()
    assert model.track_running_stats


@pytest.mark.parametrize("name", ["SIGINT", "SIGCHLD", "SIGQUIT", "SIGPROF", "SIGVTALRM", "SIGXCPU", "SIGTERM"])
def test_a_handler_that_raises_on_the_way_out_of_a_visit_comes_back_first(name, monkeypatch):
    """Python looks for signals on the way into ``__exit__``, of which nothing has run yet."""
    problem = Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    plain = signal.signal(getattr(signal, name), signal.default_int_handler)
    leave = Visit.__exit__

    def interrupted(*args):
        signal.raise_signal(getattr(signal, name))
        return leave(*args)

    try:
        problem.loss(batch).backward()
        with monkeypatch.context() as patched:
            patched.setattr(Visit, "__exit__", interrupted)
            with pytest.raises(KeyboardInterrupt), opt.ascended():
                problem.loss(batch).backward()
    finally:
        signal.signal(getattr(signal, name), plain)
    assert same_bits(weights(problem.model), before)
    opt.step(problem.closure(opt, batch))


def test_visits_one_in_the_other_come_back_from_the_inner_one_outwards():
    problem = Problem()
    one, two = (SAM(SGD(problem.model.parameters(), lr=0.1), rho=rho) for rho in (0.1, 0.2))
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    problem.loss(batch).backward()

    def both():
        with one.ascended():
            problem.loss(batch).backward()
            with two.ascended():
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        both()
    assert same_bits(weights(problem.model), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupted_at_every_line(function, run):
    """Run again and again, with a signal at one more line of a function each time, until it comes to its end."""
    for n in range(1000):
        lines = []

        def trace(frame, event, _, lines=lines, n=n):
            if frame.f_code is not function.__code__:
                return None if event == "call" else trace
            if event == "line":
                lines.append(frame.f_lineno)
                if len(lines) == n + 1:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                run()
        finally:
            sys.settrace(None)
        yield
        if len(lines) <= n:
            assert n > 5
            return
    raise AssertionError("it has no end")


@pytest.mark.parametrize("context", [frozen_norm_stats, frozen_buffers])
@pytest.mark.parametrize("door", ["step", "ascended", "alone"])
def test_a_signal_at_any_line_of_what_surrounds_a_pass_is_undone(context, door):
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.InstanceNorm1d(3, track_running_stats=True)
    )
    batch = torch.nn.BatchNorm1d(3)  # of which the sharp pass alone writes the statistics
    opt = SAM(SGD(model.parameters(), lr=0.0), rho=0.1)
    opt.around_sharp_pass(lambda: context(torch.nn.ModuleList([model, batch])))
    x = torch.randn(4, 3)

    def loss():
        return (model[1](model[0](x)) + batch(x)).square().sum()

    def closure():
        opt.zero_grad()
        found = loss()
        found.backward()
        return found

    def state():
        return [(m.track_running_stats, m.running_mean is None) for m in (*model[1:], batch)]

    before = state()

    def run():
        if door == "step":
            opt.step(closure)
        elif door == "ascended":
            closure()
            with opt.ascended():
                closure()
        else:
            with context(model):
                loss()

    for _ in interrupted_at_every_line(context.__wrapped__, run):
        assert state() == before
        opt.step(closure)


def test_signals_are_left_alone_in_other_threads_and_handlers_of_the_body_stay():
    problem, found = Problem(), []
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)

    def train():
        problem.loss(batch).backward()
        with opt.ascended():
            found.append(signal.getsignal(signal.SIGINT))
            problem.loss(batch).backward()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]

    watch = BeforeRaising(lambda: found.append("undone"))
    plain = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        watch.begin()
        own = lambda *_: None  # noqa: E731
        signal.signal(signal.SIGUSR1, own)
        watch.end()
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, plain)
    assert "undone" not in found
