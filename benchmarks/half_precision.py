"""How much of a climb arrives at weights in half precision.

    python benchmarks/half_precision.py [--weights 25000000] [--rho 0.05]

Weights are normal with standard deviation 0.02, gradients normal. Prints how many weights move, the cosine of the way
they take with the gradient, and its length over rho.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from steppe import SAM


def arrives(dtype: torch.dtype, n: int, rho: float) -> tuple[float, float, float]:
    """Return the part of weights that move, the cosine with the gradient, and the length in units of rho."""
    torch.manual_seed(0)
    w = torch.nn.Parameter((0.02 * torch.randn(n)).to(dtype))
    w.grad = torch.randn(n).to(dtype)
    g, before = w.grad.float(), w.detach().clone().float()
    opt = SAM(torch.optim.SGD([w], lr=0.0), rho=rho)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with opt.ascended():
            delta = w.detach().float() - before
            w.grad = torch.zeros_like(w)
    cosine = torch.nn.functional.cosine_similarity(delta.double(), g.double(), dim=0).item()
    return (delta != 0).float().mean().item(), cosine, delta.double().norm().item() / rho


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--rho", type=float, default=0.05)
    arguments = parser.parse_args()
    print("| weights in | move | cosine with g | length / rho |")
    print("| --- | ---: | ---: | ---: |")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        part, cosine, length = arrives(dtype, arguments.weights, arguments.rho)
        print(f"| {str(dtype).removeprefix('torch.')} | {100 * part:.1f} % | {cosine:.2f} | {length:.2f} |")


if __name__ == "__main__":
    main()
