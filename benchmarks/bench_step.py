"""What a step costs beyond the gradients: `make bench`.

The model is the default task's MLP (40-256-256-10, 79 thousand parameters) on one thread. Gradients are in place and
the closures do nothing, so a row times the optimizer alone. The line at the end is what SAM adds to its base: the two
are timed in turns, so that whatever else the machine does hits both.
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


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_fixed_cost_of_sam(benchmark, base, capsys):
    """Time SAM and its base in turns and report the median of the differences."""
    sam, plain = (OPTIMIZERS[name](mlp().parameters()) for name in (f"SAM({base})", base))
    differences = []
    for turn in range(320):
        times = []
        for opt in (sam, plain):
            start = time.perf_counter()
            for _ in range(20):
                opt.step(no_work)
            times.append((time.perf_counter() - start) / 20)
        if turn >= 20:
            differences.append(times[0] - times[1])
    low, middle, high = statistics.quantiles(differences, n=4)
    benchmark.extra_info["fixed cost in microseconds"] = round(middle * 1e6, 1)
    with capsys.disabled():
        print(
            f"\nfixed cost of a SAM step beyond two closures and {base}.step(): "
            f"{middle * 1e6:.0f} us (quartiles {low * 1e6:.0f} and {high * 1e6:.0f}, n = {len(differences)} x 20 steps)"
        )
    benchmark.pedantic(sam.step, args=(no_work,), rounds=50, iterations=10)
