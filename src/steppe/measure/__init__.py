"""Is the minimum flat, by which definition, and may the number be believed? Measures of sharpness.

Every measure is a function of one `Objective`. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .average import average_case as average_case
    from .curvature import Spectrum as Spectrum
    from .curvature import spectrum as spectrum
    from .curvature import trace as trace
    from .estimate import Estimate as Estimate
    from .local import gradient_norm as gradient_norm
    from .local import sam_edge as sam_edge
    from .local import surrogate_gap as surrogate_gap
    from .objective import Objective as Objective
    from .reporting import RADII as RADII
    from .reporting import Report as Report
    from .reporting import report as report
    from .reporting import report_of as report_of
    from .slices import Slice as Slice
    from .slices import line as line
    from .slices import slice_1d as slice_1d
    from .slices import slice_2d as slice_2d
    from .worst import M_APGD_LINF as M_APGD_LINF
    from .worst import worst_case as worst_case

_HOME = {
    "Objective": ".objective",
    "Estimate": ".estimate",
    "worst_case": ".worst",
    "M_APGD_LINF": ".worst",
    "average_case": ".average",
    **dict.fromkeys(("gradient_norm", "surrogate_gap", "sam_edge"), ".local"),
    **dict.fromkeys(("Spectrum", "spectrum", "trace"), ".curvature"),
    **dict.fromkeys(("RADII", "Report", "report", "report_of"), ".reporting"),
    **dict.fromkeys(("Slice", "slice_1d", "slice_2d", "line"), ".slices"),
}

__all__ = [
    "M_APGD_LINF",
    "RADII",
    "Estimate",
    "Objective",
    "Report",
    "Slice",
    "Spectrum",
    "average_case",
    "gradient_norm",
    "line",
    "report",
    "report_of",
    "sam_edge",
    "slice_1d",
    "slice_2d",
    "spectrum",
    "surrogate_gap",
    "trace",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
