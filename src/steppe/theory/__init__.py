"""What theory says, as claims that can be run: objectives with known constants, and the library's optimizers on them.

Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptive_traps import RareSpikes as RareSpikes
    from .claim import Claim as Claim
    from .claims import CLAIMS as CLAIMS
    from .deterministic import LogCosh as LogCosh
    from .deterministic import NonSmooth as NonSmooth
    from .deterministic import Quadratic as Quadratic
    from .deterministic import Sine as Sine
    from .deterministic import Valley as Valley
    from .network import TanhNetwork as TanhNetwork
    from .problems import Mixture as Mixture
    from .problems import Problem as Problem
    from .problems import Stochastic as Stochastic
    from .running import Trace as Trace
    from .running import run as run
    from .shifted import SineValley as SineValley
    from .shifted import SkewedQuadratic as SkewedQuadratic
    from .stochastic import NoisyQuadratic as NoisyQuadratic
    from .stochastic import PseudoHuber as PseudoHuber
    from .traps import ConvexTrap as ConvexTrap
    from .traps import SkewedNoise as SkewedNoise
    from .traps import StronglyConvexTrap as StronglyConvexTrap
    from .traps import UnequalCurvature as UnequalCurvature

_HOME = {
    **dict.fromkeys(("Problem", "Stochastic", "Mixture"), ".problems"),
    **dict.fromkeys(("Quadratic", "LogCosh", "Sine", "NonSmooth", "Valley"), ".deterministic"),
    **dict.fromkeys(("SkewedNoise", "UnequalCurvature", "StronglyConvexTrap", "ConvexTrap"), ".traps"),
    **dict.fromkeys(("PseudoHuber", "NoisyQuadratic"), ".stochastic"),
    **dict.fromkeys(("SineValley", "SkewedQuadratic"), ".shifted"),
    "TanhNetwork": ".network",
    **dict.fromkeys(("Trace", "run"), ".running"),
    "RareSpikes": ".adaptive_traps",
    "Claim": ".claim",
    "CLAIMS": ".claims",
}

__all__ = [
    "CLAIMS",
    "Claim",
    "ConvexTrap",
    "LogCosh",
    "Mixture",
    "NoisyQuadratic",
    "NonSmooth",
    "Problem",
    "PseudoHuber",
    "Quadratic",
    "RareSpikes",
    "Sine",
    "SineValley",
    "SkewedNoise",
    "SkewedQuadratic",
    "Stochastic",
    "StronglyConvexTrap",
    "TanhNetwork",
    "Trace",
    "UnequalCurvature",
    "Valley",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
