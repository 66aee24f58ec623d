"""A storm of real signals over training steps.

    python tests/storm.py METHOD DOOR FOREACH SIGNALS SEED

A timer of the system sends each signal at a random instant of a step, or of the way in or out of it, and its handler is
that of Ctrl-C. The base's learning rate is 0: whatever is broken off, the weights must be what they were bit for bit, grad
mode on, batch norm, which the sharp pass leaves alone, as it was, and the next step, without a signal, one step more. Prints how many signals came, how many of them broke off a
step, and how many left something wrong, as JSON.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time

import torch
from torch import nn

from cases import CASES
from steppe.passes import frozen_norm_stats


def storm(name: str, door: str, foreach: bool, signals: int, seed: int) -> dict[str, int]:
    torch.manual_seed(seed)
    random.seed(seed)
    torch.set_num_threads(1)
    norm = nn.BatchNorm1d(16)
    model = nn.Sequential(norm, *[layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.Tanh())])
    x, y = torch.randn(8, 16), torch.randn(8, 16)
    case = next(case for case in CASES if case.name == name)
    opt = case.build(model.parameters(), foreach=foreach, **({} if case.wraps else {"lr": 0.0}))
    for group in opt.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))

    def closure():
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    def step():
        if door == "step":
            opt.step(closure)
        elif door == "backward":
            opt.zero_grad()
            opt.backward(lambda: (model(x) - y).square().mean().backward())
            opt.base.step()
        else:
            if case.clean:
                closure()
            with opt.ascended():
                (model(x) - y).square().mean().backward()
            opt.base.step()

    params = list(model.parameters())
    for _ in range(5):
        step()
    before = [p.detach().clone() for p in params]
    start = time.perf_counter()
    for _ in range(20):
        step()
    seconds = (time.perf_counter() - start) / 20
    seen = 0

    def handler(number, frame):
        nonlocal seen
        seen += 1
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGALRM, handler)
    broken = wrong = 0
    for i in range(signals):
        count = opt.state["engine"]["step"]
        done = False
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, random.random() * 1.3 * seconds))
            step()
            done = True
            while seen == i:  # it comes for sure
                pass
        except KeyboardInterrupt:
            broken += not done
        found = {
            "weights": all(torch.equal(p, w) for p, w in zip(params, before, strict=True)),
            "grad mode": torch.is_grad_enabled(),
            "norm": norm.track_running_stats,
            "handler": signal.getsignal(signal.SIGALRM) is handler,
            "count": opt.state["engine"]["step"] in (count, count + 1),
        }
        count = opt.state["engine"]["step"]
        try:
            step()
        except Exception as error:
            found[repr(error)] = False
        found["next step"] = opt.state["engine"]["step"] == count + 1
        found["next weights"] = all(torch.equal(p, w) for p, w in zip(params, before, strict=True))
        if not all(found.values()):
            wrong += 1
            print([what for what, well in found.items() if not well], file=sys.stderr)
            torch.set_grad_enabled(True)
            norm.track_running_stats = True
            signal.signal(signal.SIGALRM, handler)
            with torch.no_grad():
                for p, w in zip(params, before, strict=True):
                    p.copy_(w)
    return {"signals": seen, "broken off": broken, "wrong": wrong}


if __name__ == "__main__":
    method, door, foreach, signals, seed = sys.argv[1:]
    print(json.dumps(storm(method, door, foreach == "True", int(signals), int(seed))))
