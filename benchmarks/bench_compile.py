"""What a compiled SAM step costs, in units of a compiled step of its base.

    python benchmarks/bench_compile.py [--steps 100] [--device cpu] [--only WORDS]

Two gradients and a climb should cost little more than two steps. Both steps run `torch.compile`d models of equal
weights on the same batch, and take turns: a ratio is that of one SAM step to the base step before it, and the table has
their median and quartiles. On the CPU seconds are those of the process, so that others do not count, and there is one
thread, unless OMP_NUM_THREADS says otherwise. `more graphs` is what torch compiled for SAM after it had compiled the
base's model; "frozen" runs sharp passes in `frozen_norm_stats`. Eager rows do the same without the compiler.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from statistics import quantiles

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from steppe import SAM
from steppe.passes import frozen_norm_stats


def mlp() -> tuple[nn.Module, Tensor]:
    """The default task's network, with its batch."""
    model = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, torch.randn(100, 40)


def convnet() -> tuple[nn.Module, Tensor]:
    """Three convolutions with batch norm on images of 32 x 32."""
    layers: list[nn.Module] = []
    for into, out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)), torch.randn(64, 3, 32, 32)


def encoder() -> tuple[nn.Module, Tensor]:
    """Two transformer layers on 32 sequences of 32 vectors."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(4096, 10))
    return model, torch.randn(32, 32, 128)


BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-4),
}

# title: (model and batch, base, compiled, frozen statistics)
ROWS = {
    "MLP, SGD": (mlp, "SGD", True, False),
    "MLP, SGD, eager": (mlp, "SGD", False, False),
    "MLP, AdamW": (mlp, "AdamW", True, False),
    "convnet, SGD": (convnet, "SGD", True, False),
    "convnet, SGD, frozen": (convnet, "SGD", True, True),
    "convnet, SGD, eager": (convnet, "SGD", False, False),
    "encoder, AdamW": (encoder, "AdamW", True, False),
    "encoder, AdamW, eager": (encoder, "AdamW", False, False),
}


def steps_of(title: str, device: str) -> list[Callable[[], object]]:
    """Return one step of the base and one of SAM."""
    make, base, compiled, frozen = ROWS[title]
    torch.manual_seed(0)
    model, x = make()
    x, y = x.to(device), torch.randint(10, (len(x),), device=device)
    steps: list[Callable[[], object]] = []
    for sharp in (False, True):
        mine = copy.deepcopy(model).to(device)
        run = torch.compile(mine) if compiled else mine
        opt = BASES[base](mine.parameters())
        opt = SAM(opt, rho=0.05) if sharp else opt
        if frozen and isinstance(opt, SAM):
            opt.around_sharp_pass(lambda mine=mine: frozen_norm_stats(mine))

        def closure(run=run, opt=opt) -> Tensor:
            opt.zero_grad()
            loss = cross_entropy(run(x), y)
            loss.backward()
            return loss

        steps.append(lambda opt=opt, closure=closure: opt.step(closure))
    return steps


def seconds(step: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    start = time.perf_counter()
    step()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="rows whose title has these words")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print("| step | base (ms) | SAM / base | quartiles | n | more graphs |\n| --- | ---: | ---: | --- | ---: | ---: |")
    for title in ROWS:
        if arguments.only not in title:
            continue
        torch._dynamo.reset()
        plain, sharp = steps_of(title, arguments.device)
        for _ in range(10):
            plain()
        counters.clear()
        for _ in range(10):
            sharp()
        graphs = counters["stats"]["unique_graphs"]
        pairs = [(seconds(plain, arguments.device), seconds(sharp, arguments.device)) for _ in range(arguments.steps)]
        assert counters["stats"]["unique_graphs"] == graphs, "something was compiled again"
        _, base, _ = quantiles([1000 * base for base, _ in pairs], n=4)
        low, middle, high = quantiles([sam / base for base, sam in pairs], n=4)
        print(
            f"| {title} | {base:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} | {len(pairs)} | {graphs} |", flush=True
        )


if __name__ == "__main__":
    main()
