"""What a sharpness-aware step costs on models whose weights do not fit into a cache, in passes over the weights.

    python benchmarks/bench_engine.py [--device cpu] [--shapes minilm gpt2] [--bases SGD AdamW] [--page FILE]

Three tables. **Time**: what a step takes beyond its closures and its base's step. One move is one read or one write of
all parameters; copying them takes two, and is timed before every step that is measured, so that a machine that becomes
slower changes nothing. Closures point `.grad` at gradients that are there already. A plain climb needs 8 moves: one
for the norm, two for the copy, three to go up, two to come back. **Memory**: the most that is alive at once in tensors
during a step, in copies of the parameters; the closures free the gradients and make new ones, as `zero_grad()` and
`backward()` do, and every row is a process of its own. **Small model**: whole steps of the default task's network,
forward and backward passes included, where no memory is moved and every call counts.

Other packages' optimizers are measured if they are installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

import steppe
from steppe import ASAM, GSAM, MSAM, SAM, LookSAM

Closure = Callable[[], float]
Step = Callable[[Closure], object]

PEERS = {"pytorch_optimizer": "pytorch-optimizer", "temperon": "temperon", "heavyball": "heavyball opt_einsum"}
LOOK_EVERY = 5
BLOCK = 10  # so many steps of one small model run in a row, as in a training, before it is another's turn


def minilm() -> list[tuple[int, ...]]:
    """all-MiniLM-L6-v2 without its pooler."""
    h, wide = 384, 1536
    block = [(h, h), (h,)] * 4 + [(h,), (h,), (wide, h), (wide,), (h, wide), (h,), (h,), (h,)]
    return [(30522, h), (512, h), (2, h), (h,), (h,)] + 6 * block


def gpt2() -> list[tuple[int, ...]]:
    """GPT-2 small, whose head is its embedding."""
    h, wide = 768, 3072
    block = [(h,), (h,), (h, 3 * h), (3 * h,), (h, h), (h,), (h,), (h,), (h, wide), (wide,), (wide, h), (h,)]
    return [(50257, h), (1024, h)] + 12 * block + [(h,), (h,)]


SHAPES = {"minilm": minilm, "gpt2": gpt2}

# name: (class, options)
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "foreach": True}),
    "SGD fused": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "fused": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-6, "foreach": True}),
    "AdamW fused": (torch.optim.AdamW, {"lr": 1e-6, "fused": True}),
}

WRAPPED: dict[str, Callable[..., Any]] = {
    "SAM": lambda base: SAM(base, rho=0.05),
    "ASAM": lambda base: ASAM(base, rho=0.5),
    "GSAM": lambda base: GSAM(base, rho=0.05),
    "MSAM": lambda base: MSAM(base, rho=0.2),
    "LookSAM": lambda base: LookSAM(base, rho=0.05, k=LOOK_EVERY),
}


class Clock:
    """Seconds, without those that are spent in what it has timed."""

    def __init__(self, device: str) -> None:
        self.wait = torch.accelerator.synchronize if device != "cpu" else lambda: None
        self.elsewhere = 0.0

    def now(self) -> float:
        self.wait()
        return time.perf_counter()

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``work`` so that its time does not count."""

        def run(*args: object, **options: object) -> Any:
            start = self.now()
            result = work(*args, **options)
            self.elsewhere += self.now() - start
            return result

        return run

    def seconds(self, work: Callable[[], object]) -> float:
        self.elsewhere = 0.0
        start = self.now()
        work()
        return self.now() - start - self.elsewhere


def base_of(name: str, params: list[Parameter], state: Any = None) -> torch.optim.Optimizer:
    make, options = BASES[name]
    base = make(params, **options)
    if state is not None:  # many optimizers, one momentum
        base.state = state
    return base


def candidates(base_name: str, params: list[Parameter], clock: Clock, state: Any) -> Iterator[tuple[str, Step]]:
    """Return what is measured: titles, and functions that take a step with a closure that costs nothing."""
    make, options = BASES[base_name]
    for title, wrap in WRAPPED.items():
        opt = wrap(base_of(base_name, params, state))
        opt.base.step = clock.timed(opt.base.step)
        yield title, opt.step
    if "pytorch_optimizer" in PEERS and importlib.util.find_spec("pytorch_optimizer"):
        import pytorch_optimizer

        for kind in ("SAM", "LookSAM"):
            # Its foreach= is its base's as well, and excludes fused.
            for foreach in (None,) if "fused" in base_name else (True, False):
                given = {k: v for k, v in options.items() if k != "foreach"}
                extra = {"k": LOOK_EVERY} if kind == "LookSAM" else {}
                opt = getattr(pytorch_optimizer, kind)(params, make, rho=0.05, foreach=foreach, **extra, **given)
                opt.base_optimizer.step = clock.timed(opt.base_optimizer.step)
                if state is not None:
                    opt.base_optimizer.state = state
                    if kind == "SAM":  # it keeps its copy there
                        opt.state = state

                def step(closure: Closure, opt: Any = opt) -> None:
                    closure()
                    opt.step(closure)

                how = {None: "", True: ", foreach", False: ", loop"}[foreach]
                yield f"pytorch-optimizer's {kind}{how}", step
    if "temperon" in PEERS and importlib.util.find_spec("temperon"):
        import temperon

        base = base_of(base_name, params, state)
        base.step = clock.timed(base.step)
        yield "temperon", temperon.Temperon(base, total_steps=10**6, tail_frac=1.0, rho=0.05).step
    if "heavyball" in PEERS and importlib.util.find_spec("heavyball") and "fused" not in base_name:
        import heavyball

        kind = {"SGD": heavyball.SGD, "AdamW": heavyball.AdamW}[base_name]
        inner = kind(params, lr=1e-6)
        opt = heavyball.SAMWrapper(params, inner, ball=0.05)
        # Its base calls the closure in the middle of its own step. What it does afterwards is the base's.
        update = inner._step if hasattr(inner, "_step") else None
        if update is not None:
            inner._step = clock.timed(update)
            yield "heavyball's SAMWrapper (adaptive, no norm)", opt.step


def ready(name: str, device: str) -> tuple[list[Parameter], list[list[Tensor]]]:
    """Return parameters, and gradients for a clean and a sharp pass."""
    torch.manual_seed(0)
    params = [Parameter(0.02 * torch.randn(shape, device=device)) for shape in SHAPES[name]()]
    return params, [[0.01 * torch.randn_like(p) for p in params] for _ in range(2)]


def time_table(shape: str, base_name: str, device: str, repetitions: int) -> Iterator[str]:
    clock = Clock(device)
    params, grads = ready(shape, device)
    numbers = sum(p.numel() for p in params)
    turn = 0

    def closure() -> float:
        nonlocal turn
        for p, g in zip(params, grads[turn % 2], strict=True):
            p.grad = g
        turn += 1
        return 0.0

    buffer = [torch.empty_like(p) for p in params]

    def copy() -> None:
        with torch.no_grad():
            torch._foreach_copy_(buffer, params)

    shared = base_of(base_name, params)
    closure()
    shared.step()
    rows: list[tuple[str, Step, list[float], list[float]]] = []
    for title, step in candidates(base_name, params, clock, shared.state):
        if "LookSAM" in title:
            rows.append((f"{title}, steps that climb", step, [], []))
            rows.append((f"{title}, steps that do not", step, [], []))
        else:
            rows.append((title, step, [], []))
    timed = clock.timed(closure)
    for title, step, *_ in rows:
        if not title.endswith("not"):
            turn = 0
            step(timed)  # now every kept buffer is there, and a LookSAM is at step 1
    moves: list[float] = []
    for _ in range(repetitions):
        for title, step, costs, seconds in rows:
            if title.endswith("not"):
                continue
            steps = LOOK_EVERY if "LookSAM" in title else 1
            for i in range(steps):
                turn = 0
                move = clock.seconds(copy) / 2
                moves.append(move)
                cost = clock.seconds(lambda step=step: step(timed))
                row = (costs, seconds)
                if i < steps - 1:
                    row = next((c, s) for t, _, c, s in rows if t == title.replace("that climb", "that do not"))
                row[0].append(cost / move)
                row[1].append(cost)
    low, middle, high = quantiles([1000 * move for move in moves], n=4)
    yield f"### {shape}, {numbers / 1e6:.1f} million parameters in {len(params)} tensors, {base_name}"
    yield ""
    gigabytes = 4 * numbers / (middle / 1000) / 1e9
    yield (
        f"One move: {middle:.2f} ms ({low:.2f} to {high:.2f}, n = {len(moves)}), {gigabytes:.1f} GB/s. "
        "The ratio is that of the medians to the best other package's SAM."
    )
    yield ""
    yield "| step | moves | quartiles | n | ms | of the best peer |\n| --- | ---: | --- | ---: | ---: | ---: |"
    peers = [median(c) for t, _, c, _ in rows if t not in WRAPPED and "LookSAM" not in t]
    for title, _, costs, seconds in rows:
        low, middle, high = quantiles(costs, n=4)
        ratio = f"{middle / min(peers):.2f}" if peers else ""
        yield (
            f"| {title} | {middle:.2f} | {low:.2f} to {high:.2f} | {len(costs)} | "
            f"{1000 * median(seconds):.1f} | {ratio} |"
        )


# Memory


def freed(opt: Any) -> Any:
    opt.keep_copy = False
    return opt


class Ledger:
    """Bytes alive in tensors, as torch's allocators see them."""

    def __init__(self, device: str) -> None:
        self.device = device

    def peak(self, work: Callable[[], object]) -> int:
        """Return the most bytes that ``work`` has alive at once beyond those alive before."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        # Every allocation of the CPU's allocator is an event, also those inside of kernels.
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        alive = most = 0
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            alive += event.nbytes()
            most = max(most, alive)
        return most


def measure_memory(title: str, shape: str, base_name: str, device: str) -> float:
    """Return the peak during a step of what is alive beyond parameters, gradients and the base's state, in copies."""
    ledger, clock = Ledger(device), Clock(device)
    alive: dict[str, int] = {}

    def work() -> None:
        params, _ = ready(shape, device) if device == "none" else (_parameters(shape, device), None)
        alive["parameters"] = sum(p.numel() * p.element_size() for p in params)

        def closure() -> float:
            for p in params:
                p.grad = None
            for p in params:
                p.grad = torch.full_like(p, 0.01)
            return 0.0

        base = base_of(base_name, params)
        if title == "base alone":

            def step(closure: Closure) -> None:
                closure()
                base.step()
        elif title.endswith(", copy freed"):
            step = freed(WRAPPED[title.removesuffix(", copy freed")](base)).step
        else:
            step = next(step for name, step in candidates(base_name, params, clock, None) if name == title)
        for _ in range(3):
            step(closure)
        gc.collect()

    peak = ledger.peak(work)
    state = {"SGD": 1, "AdamW": 2}[base_name.split()[0]]
    return peak / alive["parameters"] - 2 - state


def _parameters(shape: str, device: str) -> list[Parameter]:
    return [Parameter(torch.full(size, 0.02, device=device)) for size in SHAPES[shape]()]


def in_a_process(title: str, shape: str, base_name: str, device: str) -> float:
    child = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([title, shape, base_name, device])]
    out = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


def memory_table(shape: str, base_name: str, device: str) -> Iterator[str]:
    clock, params = Clock(device), [Parameter(torch.zeros(2))]
    titles = [title for title, _ in candidates(base_name, params, clock, None)]
    own = list(WRAPPED)
    titles = ["base alone", *own, *(f"{title}, copy freed" for title in own), *titles[len(own) :]]
    yield f"### {shape}, {base_name}"
    yield ""
    yield "| step | copies beyond parameters, gradients and state | beyond the base's own peak |"
    yield "| --- | ---: | ---: |"
    alone = 0.0
    for title in titles:
        copies = in_a_process(title, shape, base_name, device)
        alone = copies if title == "base alone" else alone
        yield f"| {title} | {copies:.2f} | {copies - alone:.2f} |"


# Small model


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def small_table(device: str, steps: int) -> Iterator[str]:
    x, y = torch.randn(100, 40, device=device), torch.randint(10, (100,), device=device)
    yield (
        f"Steps take turns with those of their base, {BLOCK} at a time. Beyond: what a step takes outside of its closures and its base's "
        "step, measured with a clock at their borders. Whole: one step over one step of the base, both with their "
        "forward and backward passes. Medians and quartiles."
    )
    yield ""
    yield "| step | base step (us) | beyond (us) | quartiles | whole / base | quartiles | n |"
    yield "| --- | ---: | ---: | --- | ---: | --- | ---: |"
    for base_name in BASES:
        runs: dict[str, tuple[Callable[[], object], Clock, Any]] = {}
        for title in ("base", "MSAM", "SAM"):
            model = mlp().to(device)
            opt: Any = base_of(base_name, list(model.parameters()))
            opt = opt if title == "base" else WRAPPED[title](opt)

            def closure(model: nn.Module = model, opt: Any = opt) -> Tensor:
                opt.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            runs[title] = (lambda opt=opt, closure=closure: opt.step(closure)), Clock(device), (opt, closure)
        whole: dict[str, list[float]] = {title: [] for title in runs}
        beyond: dict[str, list[float]] = {title: [] for title in runs}
        for i in range(steps // BLOCK + 2):
            for title, (run, clock, _) in runs.items():
                cost = clock.seconds(lambda run=run: [run() for _ in range(BLOCK)]) / BLOCK
                if i >= 2:
                    whole[title].append(cost)
        for title, (_, clock, (opt, closure)) in runs.items():
            if title == "base":
                continue
            opt.base.step, timed = clock.timed(opt.base.step), clock.timed(closure)
            for _ in range(steps):
                beyond[title].append(clock.seconds(lambda opt=opt, timed=timed: opt.step(timed)))
            low, middle, high = quantiles([w / b for w, b in zip(whole[title], whole["base"], strict=True)], n=4)
            first, second, third = quantiles([1e6 * b for b in beyond[title]], n=4)
            yield (
                f"| {title}({base_name}) | {1e6 * median(whole['base']):.0f} | {second:.0f} | {first:.0f} to "
                f"{third:.0f} | {middle:.3f} | {low:.3f} to {high:.3f} | {steps // BLOCK} |"
            )


def header(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"* {_processor(arguments.device)}; {torch.get_num_threads()} thread(s), OMP_NUM_THREADS sets them"
    yield f"* Python {platform.python_version()}, torch {torch.__version__}, steppe {steppe.__version__}"
    for module, package in PEERS.items():
        if importlib.util.find_spec(module):
            yield f"* {package.split()[0]} {version(package.split()[0])}"
        else:
            yield f"* {package.split()[0]} is not installed: `pip install --no-deps {package}` adds its rows"


def _processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--small-steps", type=int, default=2000)
    parser.add_argument("--tables", nargs="+", default=["time", "memory", "small"], choices=["time", "memory", "small"])
    parser.add_argument("--without", nargs="*", default=[], choices=list(PEERS), help="packages to leave out")
    parser.add_argument("--page", help="a Markdown file to write the tables to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.child:
        print(measure_memory(*json.loads(arguments.child)))
        return
    for name in arguments.without:
        del PEERS[name]
    lines: list[str] = []

    def tell(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    for line in header(arguments):
        tell(line)
    if "time" in arguments.tables:
        tell("\n## Time\n")
        for shape in arguments.shapes:
            for base_name in arguments.bases:
                for line in time_table(shape, base_name, arguments.device, arguments.repetitions):
                    tell(line)
                tell("")
    if "memory" in arguments.tables:
        tell("\n## Memory\n")
        for base_name in arguments.bases:
            for line in memory_table(arguments.shapes[0], base_name, arguments.device):
                tell(line)
            tell("")
    if "small" in arguments.tables:
        tell("\n## Small model\n")
        for line in small_table(arguments.device, arguments.small_steps):
            tell(line)
    if arguments.page:
        write_page(arguments, lines)


if __name__ == "__main__":
    main()
