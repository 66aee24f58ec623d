"""Everything at once, within a budget."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import __version__
from .._extras import need
from ..drawing.html import fragment
from ..drawing.markdown import table
from .average import average_case
from .checks import refuse
from .curvature import Method, Spectrum, has_custom_functions, spectrum, trace
from .estimate import Estimate, Meter
from .local import gradient_norm, sam_edge, surrogate_gap
from .objective import FORWARD_COST, HVP_COST, Forward, Objective
from .slices import Slice, slice_1d, slice_2d
from .worst import Norm, worst_case

if TYPE_CHECKING:
    import pandas

RADII: Mapping[str, float] = {
    "l2": 0.05,
    "l2 adaptive": 0.5,
    "linf": 2e-4,
    "linf adaptive": 2e-3,
    "average": 5e-3,
    "average adaptive": 0.1,
    "gap": 0.05,
}
"""The radii of a report unless told otherwise: SAM's and ASAM's usual ones, and those of the papers that compare."""


@dataclass(frozen=True)
class Report:
    """Every measure of one model on one set of data.

    Attributes:
        loss: over all the data, at the weights.
        measures: by name, in the order of the table.
        spectrum: of the Hessian.
        adaptive_spectrum: of ``diag|w| H diag|w|``.
        line: the loss along one random, filter-normalised direction.
        plane: the loss across two.
        examples: in the data.
        batches: that they came in; worst cases are per batch.
        weights: that were moved.
        budget: what was allowed, in gradients over all the data.
        cost: what it took, in that unit, counted.
        seconds: what it took on this machine.
        versions: of what computed it.
    """

    loss: float
    measures: dict[str, Estimate]
    spectrum: Spectrum
    adaptive_spectrum: Spectrum
    line: Slice
    plane: Slice
    examples: int
    batches: int
    weights: int
    budget: float
    cost: float
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """Return the numbers as a Markdown table."""
        return table(self._lines, _COLUMNS)

    def __repr__(self) -> str:
        """Return what it is about."""
        return f"Report of {len(self.measures)} measures: {self._title}"

    def __str__(self) -> str:
        """Return the table with what it is about and how to read it."""
        return f"{self._title}\n\n{self.table()}\n\n{NOTE}"

    def _repr_html_(self) -> str:
        """Return all that as notebooks show it."""
        return fragment(self._lines, [self._title], NOTE, columns=_COLUMNS)

    @property
    def _title(self) -> str:
        return (
            f"loss {self.loss:.5g} over {self.examples} examples in {self.batches} batches; {self.weights} weights; "
            f"{self.cost:.0f} gradients (of {self.budget:.0f} allowed) in {self.seconds:.0f} s"
        )

    @property
    def _lines(self) -> list[list[str]]:
        head = ["measure", "value", "±", "n", "setting", "cost", "seconds"]
        return [head, *(_row(name, found) for name, found in self.measures.items())]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the numbers as a table of pandas, a line for each measure; what is not there is NaN.

        Raises:
            ImportError: pandas is not installed.
        """
        need("pandas", None)
        import pandas

        return pandas.DataFrame(
            {
                "measure": name,
                "value": found.value,
                "error": math.nan if found.error is None else found.error,
                "n": found.n,
                "cost": found.cost,
                "seconds": found.seconds,
                **found.settings,
            }
            for name, found in self.measures.items()
        )

    def to_json(self) -> str:
        """Return all of it as JSON; numbers that are not finite are the texts "inf", "-inf" and "nan"."""
        return json.dumps(_plain(asdict(self)), indent=1, allow_nan=False) + "\n"

    def figures(self) -> dict[str, bytes]:
        """Draw the loss slices and the spectral densities; return PNG files by name. Needs matplotlib."""
        need("matplotlib", "measure")
        from .figures import draw

        return draw(self.line, self.plane, self.spectrum, self.adaptive_spectrum)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.md``, ``report.json`` and the figures into a folder, made if need be; return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"report.md": f"{self}\n".encode(), "report.json": self.to_json().encode(), **self.figures()}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return [folder / name for name in files]


_COLUMNS = "lrrrlrr"
NOTE = (
    "Values are in units of the loss; eigenvalues and the trace in loss per weight². ±: standard error over n batches, "
    "draws or probes; for eigenvalues, a bound of the distance to a true one. Cost: gradients over all the data. "
    "Numbers compare between models only at equal settings, data and mode; plain measures change when layers are "
    "rescaled although the function does not, adaptive ones do not."
)


def report(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    *,
    batch_size: int = 128,
    forward: Forward | None = None,
    parameters: Callable[[str, nn.Parameter], bool] | None = None,
    budget: float = 200.0,
    radii: Mapping[str, float] | None = None,
    lr: float | None = None,
    method: Method = "autograd",
    seed: int = 0,
) -> Report:
    """Measure sharpness in every way that this library knows, within a budget.

    Worst case in l2 and l-infinity balls, plain and adaptive, the adaptive ones with and without logit normalisation;
    average case, likewise; surrogate gap; gradient norm; SAM's edge of stability (with ``lr``); largest eigenvalue of H
    and of ``diag|w| H diag|w|``; trace; spectral densities; loss slices. The budget sets how many iterations, draws and
    products each of them gets. Where the model returns one number per example there are no logits to normalise, and
    those lines are left out.

    Args:
        model: see `Objective`, like the next five. Call ``model.eval()`` first.
        loss_fn: the mean loss of a batch.
        data: tensors, Dataset, DataLoader or list of batches.
        batch_size: examples in a batch.
        forward: for batches of an unusual form.
        parameters: which parameters to move.
        budget: gradients over all the data that it may cost, >= 90.
        radii: in place of some of `RADII`.
        lr: learning rate of the training, for the edge of stability at the radius ``"gap"``.
        method: how Hessian-vector products are made; see `spectrum`.
        seed: of everything random.

    Returns:
        The report: ``print`` it, ``save`` it to a folder, or read its fields.

    Raises:
        ValueError: if the loss is not repeatable, the budget too small, or a radius unknown or out of its range.
        ImportError: if hessian-eigenthings is not installed.

    Note:
        Cost: the budget. Memory: a dozen copies of the weights, more with a large budget (see `spectrum`). Needs
        hessian-eigenthings, and matplotlib for figures: ``pip install "steppe[measure]"``.

    Example:
        >>> import torch
        >>> from steppe import measure
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(100, 3), torch.arange(100) % 2
        >>> found = measure.report(model, torch.nn.functional.cross_entropy, (x, y), budget=100)
        >>> found.measures["worst-case l2"].value > 0
        True
    """
    objective = Objective(model, loss_fn, data, batch_size=batch_size, forward=forward, parameters=parameters)
    return report_of(objective, budget=budget, radii=radii, lr=lr, method=method, seed=seed)


def report_of(
    objective: Objective,
    *,
    budget: float = 200.0,
    radii: Mapping[str, float] | None = None,
    lr: float | None = None,
    method: Method = "autograd",
    seed: int = 0,
) -> Report:
    """Do what `report` does for an objective that is there already."""
    need("hessian_eigenthings", "measure")
    chosen = _radii(radii)
    if lr is not None:
        sam_edge(1.0, chosen["gap"], lr)  # refuses what is out of range now, not at the end
    sizes = _Sizes.within(budget, reserved=_checks(objective) if method == "autograd" else 0.0)
    meter, twin = Meter(objective), objective.normalized() if _has_logits(objective) else None
    with objective.exploring():
        loss = objective.loss()
    if not math.isfinite(loss):  # the weights may have changed since the objective was made
        refuse(f"the loss is {loss}, not a finite number")
    found: dict[str, Estimate] = {}

    def both(name: str, run: Callable[[Objective], Estimate]) -> None:
        found[name] = run(objective)
        if twin is not None:
            found[f"{name}, logits normalised"] = run(twin)

    norms: tuple[Norm, ...] = ("l2", "linf")
    for norm in norms:
        worst = partial(worst_case, norm=norm, iterations=sizes.iterations, seed=seed)
        found[f"worst-case {norm}"] = worst(objective, chosen[norm])
        both(f"worst-case {norm} adaptive", partial(worst, rho=chosen[f"{norm} adaptive"], adaptive=True))
    found["average-case"] = average_case(objective, chosen["average"], pairs=sizes.pairs, seed=seed)
    both(
        "average-case adaptive",
        partial(average_case, rho=chosen["average adaptive"], adaptive=True, pairs=sizes.pairs, seed=seed),
    )
    found["surrogate gap"] = surrogate_gap(objective, chosen["gap"])
    found["gradient norm"] = gradient_norm(objective)
    plain_spectrum = spectrum(objective, steps=sizes.steps, method=method, seed=seed)
    adaptive_spectrum = spectrum(objective, steps=sizes.steps, adaptive=True, method=method, seed=seed)
    found["largest eigenvalue"] = _top(plain_spectrum)
    if lr is not None:
        edge = sam_edge(found["gradient norm"].value, chosen["gap"], lr)
        found["SAM's edge of stability"] = Estimate(edge, None, 1, 0.0, 0.0, {"rho": chosen["gap"], "lr": lr})
    found["largest eigenvalue, adaptive"] = _top(adaptive_spectrum)
    found["trace"] = trace(objective, products=sizes.products, method=method, seed=seed)
    line = slice_1d(objective, points=sizes.line, seed=seed)
    plane = slice_2d(objective, points=sizes.plane, seed=seed)
    return Report(
        loss=loss,
        measures=found,
        spectrum=plain_spectrum,
        adaptive_spectrum=adaptive_spectrum,
        line=line,
        plane=plane,
        examples=objective.examples,
        batches=objective.batches,
        weights=objective.size,
        budget=budget,
        cost=meter.cost,
        seconds=meter.seconds,
        versions={"steppe": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


@dataclass(frozen=True)
class _Sizes:
    """How much of everything a budget buys."""

    iterations: int
    pairs: int
    steps: int
    products: int
    line: int
    plane: int

    @property
    def cost(self) -> float:
        """In gradients: six worst cases, three average cases, two spectra, the trace, the slices, and what is small."""
        worst = 6 * (self.iterations + FORWARD_COST)
        average = 3 * (2 * self.pairs + 1) * FORWARD_COST
        curvature = (2 * self.steps + self.products) * HVP_COST
        return worst + average + curvature + (self.line + self.plane**2) * FORWARD_COST + 2 + 5 * FORWARD_COST

    @classmethod
    def scaled(cls, t: float) -> _Sizes:
        def odd(x: float) -> int:
            return 2 * round(x / 2) + 1

        return cls(
            iterations=max(4, round(10 * t)),
            pairs=max(2, round(4 * t)),
            steps=max(4, round(8 * t)),
            products=max(2, round(4 * t)),
            line=max(5, min(101, odd(10 * t))),
            plane=max(3, min(51, odd(6 * math.sqrt(t)))),
        )

    @classmethod
    def within(cls, budget: float, reserved: float = 0.0) -> _Sizes:
        """Return the largest that costs no more than the budget, less what is reserved."""
        least = cls.scaled(0.0).cost + reserved
        if not least <= budget < math.inf:
            raise ValueError(f"budget must be at least {math.ceil(least)} gradients, got {budget}.")
        low, high = 0.0, budget  # at t = budget it surely costs more
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cls.scaled(middle).cost + reserved <= budget else (low, middle)
        return cls.scaled(low)


def _radii(own: Mapping[str, float] | None) -> dict[str, float]:
    for name in own or {}:
        if name not in RADII:
            raise ValueError(f"radii: unknown name {name!r}; known: {', '.join(RADII)}.")
    chosen = {**RADII, **(own or {})}
    for name, rho in chosen.items():
        if not 0 < rho < math.inf:
            raise ValueError(f"radii: {name!r} must be a finite number > 0, got {rho}.")
    return chosen


def _checks(objective: Objective) -> float:
    """Return what it costs that both spectra and the trace check a product first, where custom functions need that."""
    with objective.exploring():
        return 3 * 2.0 if has_custom_functions(objective) else 0.0


def _has_logits(objective: Objective) -> bool:
    with torch.no_grad(), objective.exploring():
        outputs, _ = objective.outputs(next(iter(objective)))
    return isinstance(outputs, Tensor) and outputs.ndim > 1 and outputs.shape[-1] > 1


def _top(found: Spectrum) -> Estimate:
    return Estimate(found.largest[0], found.errors[0], 1, found.cost, found.seconds, found.settings)


def _row(name: str, found: Estimate) -> list[str]:
    shown = {
        key: value
        for key, value in found.settings.items()
        if key not in ("seed", "adaptive", "normalize_logits", "norm", "restarts", "momentum", "method", "k", "runs")
    }
    texts = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    error = "" if found.error is None else f"{found.error:.2g}"
    prices = [f"{found.cost:.1f}", f"{found.seconds:.1f}"]
    return [name, f"{found.value:.4g}", error, str(found.n), ", ".join(texts), *prices]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
