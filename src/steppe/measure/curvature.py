"""The Hessian of the loss, through hessian-eigenthings: largest eigenvalues, trace, spectral density."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._extras import need
from .estimate import Estimate, Meter, progress
from .objective import Objective

if TYPE_CHECKING:
    from hessian_eigenthings import CurvatureOperator

Method = Literal["autograd", "finite_difference"]


@dataclass(frozen=True)
class Spectrum:
    """What Lanczos found of the eigenvalues of the Hessian, or of ``diag|w| H diag|w|``.

    Attributes:
        largest: the k largest eigenvalues (not in magnitude), descending; fewer if the Krylov space was smaller.
        smallest: the smallest one.
        errors: for each of ``largest``, a bound of its distance to a true eigenvalue: the residual norm.
        nodes: eigenvalues of the tridiagonal matrix of every run, shape (runs, steps), NaN where a run ended early.
        weights: what share of all eigenvalues every node stands for, shape (runs, steps); a run's sum is 1.
        cost: in gradients over all the data, counted.
        seconds: on this machine.
        settings: everything that the numbers depend on besides model and data.
    """

    largest: tuple[float, ...]
    smallest: float
    errors: tuple[float, ...]
    nodes: Tensor
    weights: Tensor
    cost: float
    seconds: float
    settings: dict[str, Any]

    def density(self, points: int = 512, width: float | None = None) -> tuple[Tensor, Tensor]:
        """Return a grid of eigenvalues and the spectral density there, smoothed by a Gaussian; it integrates to 1.

        ``phi(t) = mean over runs of sum_i weight_i N(t; node_i, width^2)``.

        Args:
            points: of the grid, >= 2.
            width: standard deviation of the Gaussian; by default 1 % of the spectrum's range.
        """
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points must be a whole number >= 2, got {points!r}.")
        there = ~self.nodes.isnan()
        nodes, weights = self.nodes[there], self.weights[there] / len(self.nodes)
        low, high = nodes.min().item(), nodes.max().item()
        if width is None:
            width = max(0.01 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-12)
        if not 0 < width < math.inf:
            raise ValueError(f"width must be a finite number > 0, got {width}.")
        grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
        bumps = torch.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return grid, bumps @ weights


def spectrum(
    objective: Objective,
    *,
    k: int = 1,
    steps: int = 20,
    runs: int = 1,
    adaptive: bool = False,
    method: Method = "autograd",
    seed: int = 0,
) -> Spectrum:
    """Find the largest eigenvalues and the spectral density of the Hessian by Lanczos with full reorthogonalisation.

    Every run begins at a random normal vector, so that the same matrix-vector products also give stochastic Lanczos
    quadrature: the density ``phi(t) = (1/P) sum_j delta(t - lambda_j)``, smoothed. Eigenvalues are of the run that
    finds the largest. A multiple eigenvalue is found once.

    Args:
        objective: model, loss and data.
        k: how many of the largest eigenvalues, >= 1.
        steps: matrix-vector products per run, >= k; cut to the number of weights. The top converges first.
        runs: independent runs, >= 1; the density's noise falls as their square root.
        adaptive: take ``diag|w| H diag|w|``, which does not change under element-wise rescaling of ReLU layers.
        method: ``"autograd"`` differentiates twice; ``"finite_difference"`` takes the difference of two gradients, for
            models whose kernels have no second derivative (error about 1e-4 relative in float32).
        seed: of the first vectors.

    Returns:
        Eigenvalues with error bounds, and the quadrature.

    Raises:
        ValueError: if an argument is out of its range.
        RuntimeError: if an operation of the model has no second derivative; use ``method="finite_difference"``.

    Note:
        Costs ``runs * steps`` Hessian-vector products, counted as 4 gradients each (2 by finite differences), and
        memory for ``steps`` copies of the weights. Attention runs in its plain form here, since the fused one has no
        second derivative.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, spectrum
        >>> w = torch.nn.Linear(2, 1, bias=False).double()  # L = (4 w_1^2 + 1 w_2^2) / 2: eigenvalues 4 and 1
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = spectrum(Objective(w, lambda out, y: (out**2).mean(), (x, torch.zeros(2))), k=2)
        >>> [round(value, 9) for value in found.largest]
        [4.0, 1.0]

    Reference:
        Lanczos quadrature: Ubaru, Chen and Saad, SIAM J. Matrix Anal. 2017; of neural networks: Ghorbani et al., ICML
        2019 (https://arxiv.org/abs/1901.10159).
    """
    _check_counts(k=k, steps=steps, runs=runs)
    if steps < k:
        raise ValueError(f"steps must be at least k = {k}, got {steps}.")
    need("hessian_eigenthings", "measure")
    from hessian_eigenthings import lanczos_tridiagonal

    steps = min(steps, objective.size)
    meter, found = Meter(objective), []
    with objective.exploring() as w, _operator(objective, w, adaptive, method, "spectrum", runs * steps) as h:
        for run in range(runs):
            start = _start(objective, seed + run)
            tridiagonal = lanczos_tridiagonal(h, start, steps, reorthogonalize=True)
            found.append(_ritz(tridiagonal.alphas, tridiagonal.betas, tridiagonal.last_beta))
    top = max(found, key=lambda pairs: pairs[0].max().item())
    order = torch.argsort(top[0], descending=True)[:k]
    width = max(len(values) for values, _, _ in found)
    settings = {
        "k": k,
        "steps": steps,
        "runs": runs,
        "adaptive": adaptive,
        "method": method,
        "seed": seed,
        "normalize_logits": objective.normalize_logits,
    }
    return Spectrum(
        largest=tuple(top[0][order].tolist()),
        smallest=min(values.min().item() for values, _, _ in found),
        errors=tuple(top[2][order].tolist()),
        nodes=torch.stack([_padded(values, width, math.nan) for values, _, _ in found]),
        weights=torch.stack([_padded(shares, width, 0.0) for _, shares, _ in found]),
        cost=meter.cost,
        seconds=meter.seconds,
        settings=settings,
    )


def trace(
    objective: Objective,
    *,
    products: int = 30,
    estimator: Literal["hutchinson", "hutch++"] = "hutchinson",
    adaptive: bool = False,
    method: Method = "autograd",
    seed: int = 0,
) -> Estimate:
    """Estimate the trace of the Hessian from matrix-vector products with random sign vectors ``v``::

        tr H = E[v' H v]                                                     (Hutchinson)
        tr H = tr(Q' H Q) + E[v' (I - QQ') H (I - QQ') v],  Q ~ range of H   (Hutch++)

    Both are unbiased. Hutch++ is better where few eigenvalues make up the trace.

    Args:
        objective: model, loss and data.
        products: matrix-vector products in all, >= 2; for Hutch++ >= 6, a third each for Q, its part, and the rest.
        estimator: ``"hutchinson"`` or ``"hutch++"``.
        adaptive: of ``diag|w| H diag|w|``.
        method: see `spectrum`.
        seed: of the vectors.

    Returns:
        The estimate, with the standard error over its probes.

    Raises:
        ValueError: if an argument is out of its range.
        RuntimeError: see `spectrum`.

    Note:
        Costs ``products`` Hessian-vector products (see `spectrum`), and memory for four copies of the weights, or
        ``products / 3`` more for Hutch++.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, trace
        >>> w = torch.nn.Linear(2, 1, bias=False).double()  # L = (4 w_1^2 + 1 w_2^2) / 2: the trace is 5
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> trace(Objective(w, lambda out, y: (out**2).mean(), (x, torch.zeros(2)))).value
        5.0

    Reference:
        Hutchinson 1989; Meyer et al., Hutch++, SOSA 2021 (https://arxiv.org/abs/2010.09649).
    """
    _check_counts(products=products)
    if estimator not in ("hutchinson", "hutch++"):
        raise ValueError(f"estimator must be 'hutchinson' or 'hutch++', got {estimator!r}.")
    least = 2 if estimator == "hutchinson" else 6
    if products < least:
        raise ValueError(f"{estimator} needs products >= {least} for a standard error, got {products}.")
    need("hessian_eigenthings", "measure")
    from hessian_eigenthings import trace as estimate

    meter = Meter(objective)
    with objective.exploring() as w, _operator(objective, w, adaptive, method, "trace", products) as h:
        found = estimate(h, num_matvecs=products, method=estimator, distribution="rademacher", seed=seed)
    settings = {
        "products": products,
        "estimator": estimator,
        "adaptive": adaptive,
        "method": method,
        "seed": seed,
        "normalize_logits": objective.normalize_logits,
    }
    return Estimate(found.estimate, found.stderr, len(found.samples), meter.cost, meter.seconds, settings)


@contextmanager
def _operator(
    objective: Objective, w: Tensor, adaptive: bool, method: Method, title: str, products: int
) -> Iterator[CurvatureOperator]:
    """Make ``v -> H v``, or ``v -> |w| H |w| v``; it counts, and shows progress.

    The library's own Hessian operator takes the plain mean over batches and refuses parameters that are unused or enter
    linearly; the products are ours for that reason, and the algorithms that ask for them are the library's.
    """
    from hessian_eigenthings import LambdaOperator

    if method not in ("autograd", "finite_difference"):
        raise ValueError(f"method must be 'autograd' or 'finite_difference', got {method!r}.")
    hessian_product = _double_backward if method == "autograd" else partial(_central_difference, weights=w)
    scale = w.abs() if adaptive else None
    doubtful = method == "autograd" and has_custom_functions(objective)

    with progress(title, products) as tick:

        def product(v: Tensor) -> Tensor:
            nonlocal doubtful
            v = v if scale is None else scale * v
            h = hessian_product(objective, v)
            if doubtful:
                _check_product(h, _central_difference(objective, v, w))
                objective.move(w)
                doubtful = False
            tick()
            return h if scale is None else h.mul_(scale)

        yield LambdaOperator(product, objective.size, objective.device, objective.dtype)


def _double_backward(objective: Objective, v: Tensor) -> Tensor:
    """Return ``H v = grad (grad L . v)``, batch by batch."""
    params, directions = objective.params, objective.unflat(v)
    total = [torch.zeros_like(p, dtype=objective.dtype) for p in params]
    for batch in objective:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss, n = objective.batch_loss(batch)
            first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
            # Where the loss does not depend on a parameter, or depends on it linearly, there is nothing to go on with.
            curved = [(g, d.to(g.dtype)) for g, d in zip(first, directions, strict=True) if g is not None and g.grad_fn]
            try:
                second = (
                    torch.autograd.grad([g for g, _ in curved], params, [d for _, d in curved], allow_unused=True)
                    if curved
                    else ()
                )
            except RuntimeError as error:
                if "derivative for" not in str(error):
                    raise
                raise RuntimeError(
                    f"This model cannot be differentiated twice ({str(error).splitlines()[0]}). "
                    "Pass method='finite_difference'."
                ) from error
        for sum_, part in zip(total, second or [None] * len(params), strict=True):
            if part is not None:
                sum_.add_(part, alpha=n / objective.examples)
    objective.spent.hvps += 1
    return objective.flat(total)


def has_custom_functions(objective: Objective) -> bool:
    """Say whether the loss goes through functions that may hide a second derivative from autograd: custom kernels."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss, _ = objective.batch_loss(next(iter(objective)))
        first = torch.autograd.grad(loss, objective.params, create_graph=True, allow_unused=True)
    waiting = [node for node in (loss.grad_fn, *(g.grad_fn for g in first if g is not None)) if node is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "Error" in node.name():
            return True
        below = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= below
        waiting += below
    return False


def _check_product(h: Tensor, difference: Tensor) -> None:
    """Refuse a product that is far from what two gradients say of it: autograd takes what it cannot see for linear."""
    off = torch.linalg.vector_norm(h - difference)
    if off > 0.1 * torch.maximum(torch.linalg.vector_norm(h), torch.linalg.vector_norm(difference)):
        raise RuntimeError(
            "This model cannot be differentiated twice: a custom function hides its second derivative, and the Hessian "
            "that autograd gives is far from the difference of two gradients. Pass method='finite_difference'."
        )


def _central_difference(objective: Objective, v: Tensor, weights: Tensor) -> Tensor:
    """Return ``(grad L(w + h v) - grad L(w - h v)) / 2h``, the step's length balancing rounding and truncation."""
    length = torch.linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny).item()
    step = max(torch.finfo(p.dtype).eps for p in objective.params) ** (1 / 3) / length
    objective.move(weights + step * v)
    ahead = objective.gradient()
    objective.move(weights - step * v)
    return ahead.sub_(objective.gradient()).div_(2 * step)


def _start(objective: Objective, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device begins at the same vector
    return torch.randn(objective.size, generator=generator).to(objective.device, objective.dtype)


def _ritz(alphas: Tensor, betas: Tensor, last_beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues of the tridiagonal matrix, their quadrature weights, and the residuals of the Ritz pairs."""
    betas = betas[: len(alphas) - 1]
    matrix = torch.diag(alphas) + torch.diag(betas, 1) + torch.diag(betas, -1)
    values, vectors = torch.linalg.eigh(matrix.double().cpu())
    return values, vectors[0] ** 2, vectors[-1].abs() * last_beta


def _padded(values: Tensor, width: int, value: float) -> Tensor:
    return nn.functional.pad(values, (0, width - len(values)), value=value)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")
