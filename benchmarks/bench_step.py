"""What a step costs beyond the gradients: `make bench`.

The model is the default task's MLP (40-256-256-10, 79 thousand parameters) on one thread. Gradients are in place and
the closures do nothing, so a row times the optimizer alone. The lines that begin with "fixed cost" say what SAM adds:
the time inside `SAM.step` that is neither in a closure nor in the base's step, and how much of it four bare torch
kernels need in the same place (norm, copy, add, copy back), which is what memory costs.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn

from steppe import ASAM, GSAM, SAM, USAM, AdaSAM, AMSGrad, LightSAM

torch.set_num_threads(1)

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "SAM(SGD)": lambda params: SAM(torch.optim.SGD(params, lr=0.01, momentum=0.9), rho=0.05),
    "USAM(SGD)": lambda params: USAM(torch.optim.SGD(params, lr=0.01, momentum=0.9), rho=0.05),
    "ASAM(SGD)": lambda params: ASAM(torch.optim.SGD(params, lr=0.01, momentum=0.9), rho=0.5),
    "GSAM(SGD)": lambda params: GSAM(torch.optim.SGD(params, lr=0.01, momentum=0.9), rho=0.05),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "SAM(AdamW)": lambda params: SAM(torch.optim.AdamW(params, lr=1e-3), rho=0.05),
    "AMSGrad": lambda params: AMSGrad(params, 1e-3),
    "AdaSAM": lambda params: AdaSAM(params, 1e-3, rho=0.05),
    "LightSAM-I": lambda params: LightSAM(params, 0.1, rho=0.05),
    "LightSAM-II": lambda params: LightSAM(params, 0.1, rho=0.05, variant="adagrad"),
    "LightSAM-III": lambda params: LightSAM(params, 1e-3, rho=0.05, variant="adam"),
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def no_work() -> float:
    return 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_beyond_its_closures(benchmark, name):
    opt = OPTIMIZERS[name](mlp().parameters())
    for _ in range(50):
        opt.step(no_work)
    benchmark.pedantic(opt.step, args=(no_work,), rounds=300, iterations=10, warmup_rounds=20)


def test_one_gradient(benchmark):
    model, x, y = mlp(), torch.randn(100, 40), torch.randint(10, (100,))

    def gradient():
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    benchmark.pedantic(gradient, rounds=100, iterations=10, warmup_rounds=10)


def fixed_cost(base, steps=3000):
    """Return the seconds of each SAM step outside of its closures and its base's step."""
    opt = OPTIMIZERS[f"SAM({base})"](mlp().parameters())
    elsewhere = 0.0

    def timed(work):
        def run(*args):
            nonlocal elsewhere
            start = time.perf_counter()
            result = work(*args)
            elsewhere += time.perf_counter() - start
            return result

        return run

    closure, opt.base.step = timed(no_work), timed(opt.base.step)
    costs = []
    for _ in range(steps):
        elsewhere = 0.0
        start = time.perf_counter()
        opt.step(closure)
        costs.append(time.perf_counter() - start - elsewhere)
    return costs[100:]


def bare_kernels(base, steps=3000):
    """Return the seconds of the four kernels that no climb can do without, between steps of the base."""
    params = list(mlp().parameters())
    opt = OPTIMIZERS[base](params)
    kept, grads = [torch.empty_like(p) for p in params], [p.grad for p in params]
    costs = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.no_grad():
            torch._foreach_norm(grads)
            torch._foreach_copy_(kept, params)
            torch._foreach_add_(params, grads, alpha=1e-4)
            torch._foreach_copy_(params, kept)
        costs.append(time.perf_counter() - start)
        opt.step()
    return costs[100:]


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_fixed_cost_of_sam(base, capsys):
    costs = fixed_cost(base)
    low, middle, high = (1e6 * value for value in statistics.quantiles(costs, n=4))
    bare = 1e6 * statistics.median(bare_kernels(base))
    with capsys.disabled():
        print(
            f"\nfixed cost of a SAM step beyond two closures and {base}.step(): {middle:.0f} us "
            f"(quartiles {low:.0f} and {high:.0f}, n = {len(costs)} steps), of which bare kernels {bare:.0f} us"
        )
