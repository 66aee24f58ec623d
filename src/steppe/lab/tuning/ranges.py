"""What is varied of a row when its settings are chosen."""

from __future__ import annotations

from torch import nn

from ..errors import UserError
from ..plans import grid
from ..plans.arms import Arm
from ..plans.grid import Axis, rounded, shown
from ..trials import optimizers

_AROUND = 10.0
_VARIED = ("lr", "rho")
_INSTEAD_OF_RHO = "weight_decay"


def axes(arm: Arm, base: str, model: nn.Module | None = None) -> tuple[Axis, ...]:
    """Return what is varied of a row; nothing that the method refuses somewhere in its range.

    Args:
        arm: The row.
        base: What methods wrap.
        model: To try it on, if it cannot be tried without.
    """
    found = (grid.parse([text], counted=False)[0] for text in ranges(arm))
    return tuple(axis for axis in found if _takes(arm, base, axis, model))


def ranges(arm: Arm) -> list[str]:
    """Return what may be varied of a row, as a sweep takes it.

    Example:
        >>> ranges(Arm("sam", "sam", {"lr": 0.1, "momentum": 0.9, "rho": 0.05}))
        ['lr=0.01:1:log', 'rho=0.005:0.5:log']
    """
    names = [name for name in _VARIED if _above_zero(arm, name)]
    if "rho" not in names and _above_zero(arm, _INSTEAD_OF_RHO):
        names.append(_INSTEAD_OF_RHO)
    return [_range(name, float(arm.hyperparameters[name])) for name in names]


def _range(name: str, middle: float) -> str:
    return f"{name}={shown(rounded(middle / _AROUND))}:{shown(rounded(middle * _AROUND))}:log"


def _above_zero(arm: Arm, name: str) -> bool:
    value = arm.hyperparameters.get(name, 0.0)
    return not isinstance(value, tuple) and value > 0


def _takes(arm: Arm, base: str, axis: Axis, model: nn.Module | None) -> bool:
    try:
        for setting in grid.probes([axis]):
            optimizers.check_hyperparameters(arm.method, base, {**arm.hyperparameters, **setting}, model)
    except UserError:
        return False
    return True
