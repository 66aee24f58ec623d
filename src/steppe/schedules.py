"""Schedules of the radius and of any other number in the parameter groups; torch's own do for learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._scalars import free_to_read
from .angle import Angle
from .groups import found_again


@final
@dataclass(frozen=True)
class ProportionalToLR:
    """A radius that follows the learning rate; a value for ``rho=`` or for ``rho`` in a parameter group.

    ``rho = rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min)``, at least 0, from the learning rate that
    the group has at the moment of the step. With ``lr_max == lr_min`` it is ``rho_max``. A learning rate outside
    ``[lr_min, lr_max]``, as in a warm-up from zero, continues the line.

    Args:
        rho_max: radius at ``lr_max``, >= 0.
        rho_min: radius at ``lr_min``, >= 0.
        lr_max: the schedule's largest learning rate.
        lr_min: the schedule's smallest learning rate, <= ``lr_max``.

    Raises:
        ValueError: if a radius is negative or ``lr_min > lr_max``.

    Example:
        >>> rho = ProportionalToLR(rho_max=0.6, rho_min=0.1, lr_max=3e-3, lr_min=3e-5)
        >>> round(rho(3e-3), 3), round(rho(3e-5), 3)
        (0.6, 0.1)

    Reference:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022
        (https://arxiv.org/abs/2203.08065), line 0 of the algorithm.
    """

    rho_max: float
    rho_min: float
    lr_max: float
    lr_min: float

    def __post_init__(self) -> None:
        for name in ("rho_max", "rho_min"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}.")
        if not self.lr_min <= self.lr_max:
            raise ValueError(f"lr_min must be <= lr_max, got lr_min={self.lr_min} and lr_max={self.lr_max}.")

    def __call__(self, lr: float | Tensor) -> float | Tensor:
        """Return the radius at learning rate ``lr``; a tensor gives a tensor, on its device."""
        if self.lr_max == self.lr_min:
            return self.rho_max
        rho = self.rho_min + (self.rho_max - self.rho_min) * (lr - self.lr_min) / (self.lr_max - self.lr_min)
        return torch.clamp(rho, min=0.0) if isinstance(rho, Tensor) else max(0.0, rho)


Radius = float | Tensor | ProportionalToLR | Angle

FOLLOWING = (ProportionalToLR, Angle)
"""Radii that are no numbers, but make them."""


def check_radius(rho: object, group: int | None = None) -> None:
    """Raise unless ``rho`` is a radius, naming the parameter group. Nobody waits for the value of a tensor."""
    if isinstance(rho, Tensor) and rho.numel() == 1 and free_to_read(rho):
        rho = float(rho)
    if (isinstance(rho, float) and 0.0 <= rho < math.inf) or isinstance(rho, FOLLOWING):
        return
    where = "" if group is None else f" (param group {group})"
    if isinstance(rho, Tensor):
        if rho.numel() != 1:
            raise ValueError(f"rho must be one number, got a tensor of shape {tuple(rho.shape)}{where}.")
    elif isinstance(rho, bool) or not isinstance(rho, (int, float)):
        raise TypeError(f"rho must be a number, a ProportionalToLR or an Angle, got {rho!r}{where}.")
    elif not 0 <= rho < math.inf:
        raise ValueError(f"rho must be a finite number >= 0, got {rho}{where}.")


Schedule = Callable[[int], float]

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, type)


@final
class ParamGroupSchedule:
    """A schedule of one number of the parameter groups: ``rho``, ``weight_decay``, ``momentum``, ``lr``, ...

    At count ``t``, which is 0 at construction and goes up by 1 with each `step`::

        group[key] = group["initial_" + key] * schedule(t)

    Args:
        optimizer: a sharpness-aware optimizer, its base, or any torch optimizer.
        key: name of a number in the parameter groups. A tensor is filled in place, and its value is not looked at.
        schedule: a function of ``t`` for every group; or a list with one per group, where None leaves a group alone.
            Its values must be finite, and for ``rho`` >= 0.
        last_epoch: -1 to begin; ``t - 1`` to go on at count ``t`` with an optimizer whose state has been loaded.

    Raises:
        KeyError: if a group has no ``key``, or, to go on, no ``"initial_" + key``.
        TypeError: if a value is not a number.
        ValueError: if the list has the wrong length, a value is out of range, groups with different schedules share a
            tensor, or the radius of a group follows a `ProportionalToLR` (which only the sharpness-aware optimizer
            knows, not its base). Nothing is changed then, in `step` neither.

    Note:
        Call `step` after the optimizer's, once per step or once per epoch, whatever ``t`` counts. A schedule belongs to
        its group, wherever that stands when others come or go. Groups that are added later keep their value; a second
        `ParamGroupSchedule`, with None for the others, schedules them.

    Example:
        >>> import torch
        >>> from steppe import SAM, ParamGroupSchedule
        >>> opt = SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), rho=0.2)
        >>> warm_up = ParamGroupSchedule(opt, "rho", lambda t: min(1.0, (t + 1) / 4))
        >>> for _ in range(4):
        ...     print(opt.param_groups[0]["rho"])
        ...     warm_up.step()
        0.05
        0.1
        0.15000000000000002
        0.2
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        schedule: Schedule | list[Schedule | None],
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an instance of torch.optim.Optimizer, got {type(optimizer).__name__}.")
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int) or last_epoch < -1:
            raise ValueError(f"last_epoch must be an int >= -1, got {last_epoch!r}.")
        n = len(optimizer.param_groups)
        schedules = list(schedule) if isinstance(schedule, (list, tuple)) else [schedule] * n
        if len(schedules) != n:
            raise ValueError(
                f"schedule must be one function, or a list with one per parameter group: got {len(schedules)} for {n} "
                "groups. None in the list leaves a group alone."
            )
        for one in schedules:
            if one is None and isinstance(schedule, (list, tuple)):
                continue
            if not callable(one):
                raise TypeError(f"schedule must be a function of t, or a list of functions and None, got {one!r}.")
        self.optimizer = optimizer
        self.key = key
        self.schedules = schedules
        self._groups = [(group, group["params"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._initial: list[Any] = [None if one is None else self._find_initial(i) for i, one in enumerate(schedules)]
        self._last: list[Any] = []
        self.step()

    def step(self) -> None:
        """Go on to the next count and set the groups' values."""
        t = self.last_epoch + 1
        self._check_groups()
        values = [self._value(i, t) for i in range(len(self.schedules))]
        self.last_epoch = t
        self._set(values)

    def get_last_value(self) -> list[Any]:
        """Return the values that were set last, one per group that was there at construction."""
        return [_copy(value) for value in self._last]

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the values; save the optimizer's state along with it.

        A schedule that is an object is saved as its ``__dict__``; functions and lambdas are not saved.
        """
        return {
            "key": self.key,
            "last_epoch": self.last_epoch,
            "initial_values": [_copy(value) for value in self._initial],
            "last_values": self.get_last_value(),
            "schedules": [dict(vars(one)) if _is_object(one) else None for one in self.schedules],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, and set the groups' values at once.

        Raises:
            KeyError: if something of it is missing.
            ValueError: if it is the state of another key or of other groups.

        If it raises, nothing is changed.
        """
        ours = (self.key, [one is not None for one in self.schedules])
        theirs = (state_dict.get("key"), [value is not None for value in state_dict.get("initial_values", ())])
        if ours != theirs:
            raise ValueError(
                f"This is the state of a schedule of {theirs[0]!r} with scheduled groups {theirs[1]}, and not of "
                f"{ours[0]!r} with {ours[1]}. Build the schedule as it was built when the state was saved."
            )
        # All is read before anything is written.
        objects = [*zip(self.schedules, state_dict["schedules"], strict=True)]
        count = state_dict["last_epoch"]
        initial, last = ([_copy(value) for value in state_dict[f"{name}_values"]] for name in ("initial", "last"))
        for one, saved in objects:
            if saved is not None and _is_object(one):
                vars(one).update(saved)
        self.last_epoch, self._initial = count, initial
        self._set(last)

    def _find_initial(self, i: int) -> Any:
        group, name = self._groups[i][0], f"initial_{self.key}"
        if self.key not in group:
            known = ", ".join(sorted(set(group) - {"params"}))
            raise KeyError(f"param group {i} has no {self.key!r}. It has: {known}.")
        if name in group:
            return _copy(group[name])
        if self.last_epoch >= 0:
            raise KeyError(
                f"param group {i} has no {name!r}, from which to go on at last_epoch={self.last_epoch}. Load the "
                "optimizer's state first, or begin with last_epoch=-1."
            )
        return _copy(group[self.key])

    def _find_groups(self) -> list[dict[str, Any] | None]:
        """Return the groups that there were at construction, wherever they stand now, and None for those that went."""
        groups = enumerate(self._groups)
        found = [found_again(self.optimizer.param_groups, group, params, i) for i, (group, params) in groups]
        known = zip(found, self._groups, strict=True)
        self._groups = [was if now is None else (now, now["params"]) for now, was in known]
        return found

    def _check_groups(self) -> None:
        groups, key = self._find_groups(), self.key
        radii: Any = getattr(self.optimizer, "_radii", None)
        following = radii.following(self.optimizer.param_groups) if radii is not None and key == "rho" else []
        followed = [group for group, yes in zip(self.optimizer.param_groups, following) if yes]  # noqa: B905
        for i, (group, one) in enumerate(zip(groups, self.schedules, strict=True)):
            if one is None or group is None:
                continue
            value = group[key]
            if isinstance(value, FOLLOWING) or any(group is other for other in followed):
                raise ValueError(
                    f"The rho of param group {i} follows its learning rate (ProportionalToLR) or the angle of its "
                    "gradients (Angle); a second schedule would fight with it. Construct the optimizer with a number "
                    "for rho, or leave this group alone with None."
                )
            if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
                raise TypeError(f"{key} must be a number to be scheduled, got {value!r} (param group {i}).")
            for j, another in enumerate(self.optimizer.param_groups):
                places = [k for k, known in enumerate(groups) if known is another]
                other = self.schedules[places[0]] if places else None
                if isinstance(value, Tensor) and another.get(key) is value and other is not one:
                    raise ValueError(
                        f"param groups {i} and {j} share one tensor as {key}, but not one schedule. Give each its own: "
                        f'group["{key}"] = group["{key}"].clone().'
                    )

    def _value(self, i: int, t: int) -> Any:
        one, initial = self.schedules[i], self._initial[i]
        if one is None:
            return None
        factor: Any = one(t)
        if isinstance(factor, bool) or not isinstance(factor, (Real, Tensor)):
            raise TypeError(f"schedule must return a number, got {factor!r} at t={t} (param group {i}).")
        value = initial * factor
        number = factor if isinstance(value, Tensor) else value
        if not isinstance(number, Tensor):
            lowest, bound = (0.0, " >= 0") if self.key == "rho" else (-math.inf, "")
            if not (math.isfinite(number) and float(number) >= lowest):
                raise ValueError(
                    f"{self.key} must be a finite number{bound}, but the schedule gives {factor} times {initial} at "
                    f"t={t} (param group {i}). Change the schedule; nothing was changed at this step."
                )
        return value if isinstance(value, (int, Tensor)) else float(value)

    def _set(self, values: list[Any]) -> None:
        groups = self._find_groups()
        for group, one, initial, value in zip(groups, self.schedules, self._initial, values, strict=True):
            if one is None or group is None:
                continue
            group[f"initial_{self.key}"] = initial
            if isinstance(group[self.key], Tensor):
                group[self.key].fill_(value.squeeze() if isinstance(value, Tensor) else value)
            else:
                group[self.key] = value
        self._last = [None if group is None else _copy(group.get(self.key)) for group in groups]


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_object(schedule: object) -> bool:
    return hasattr(schedule, "__dict__") and not isinstance(schedule, _FUNCTIONS)
