"""The radius of every parameter group, and what it follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ._scalars import Scalar, free_to_read, on_host
from .angle import Angle
from .groups import found_again
from .schedules import FOLLOWING, ProportionalToLR, Radius, check_radius

Group = dict[str, Any]


@dataclass
class _Entry:
    """What is known of a group: its dict and parameters when it was seen last, and its radius."""

    group: Group
    params: list[Tensor]
    rho: Any = None
    schedule: ProportionalToLR | Angle | None = None
    follows: bool = False
    wrote: Scalar | None = None
    """What stands in the group if nobody has set it by hand since."""


@final
class Radii:
    """The radii of groups.

    A radius and its schedule belong to their group: wherever it stands, and if another dict takes its place, as when a
    state is loaded, and ``rho`` is missing there. A number that is set by hand ends a schedule.
    """

    def __init__(self, given: Radius) -> None:
        self.given = given  # to groups that bring none
        self._entries: list[_Entry] = []

    def of(self, groups: list[Group]) -> list[tuple[list[Tensor], Scalar]]:
        """Bring ``"rho"`` of every group up to date, and return its parameters with its radius.

        A number, if it can be looked at without waiting for an accelerator, else a tensor, and then >= 0.

        Raises:
            TypeError: if it is no number.
            ValueError: if it is negative or not finite.
        """
        found = self._as_they_were(groups)
        if found is None:
            found = [(entry.group["params"], _number(entry.rho)) for entry in self._up_to_date(groups)]
        return found

    def _as_they_were(self, groups: list[Group]) -> list[tuple[list[Tensor], Scalar]] | None:
        """Return the same if nothing has changed and all are numbers, as in most steps."""
        entries = self._entries
        if len(entries) != len(groups):
            return None
        found: list[tuple[list[Tensor], Scalar]] = []
        for entry, group in zip(entries, groups, strict=True):
            rho = group.get("rho")
            if entry.group is not group or entry.follows or rho is not entry.rho or not isinstance(rho, (float, int)):
                return None
            found.append((group["params"], rho))
        return found

    def following(self, groups: list[Group]) -> list[bool]:
        """Say of every group whether its radius follows something."""
        return [entry.follows for entry in self._up_to_date(groups)]

    def angles(self, groups: list[Group]) -> list[Angle]:
        """Return what goes after the angle of gradients, of groups where something does."""
        if self._as_they_were(groups) is not None:
            return []
        schedules = [entry.schedule for entry in self._up_to_date(groups) if entry.follows]
        return [schedule for schedule in schedules if isinstance(schedule, Angle)]

    def turn(self, groups: list[Group], cosine: Scalar) -> None:
        """Let radii that go after the angle of gradients follow one whose cosine is this."""
        for entry in self._up_to_date(groups):
            if entry.follows and isinstance(entry.schedule, Angle):
                entry.rho = entry.wrote = entry.group["rho"] = on_host(entry.schedule.after(entry.rho, cosine))

    def words(self, groups: list[Group]) -> list[str]:
        """Say what the radius of every group is, whatever that is, and whether it follows the learning rate."""
        known = {id(entry.group): entry for entry in self._entries}
        found = []
        for group in groups:
            rho, entry = group.get("rho"), known.get(id(group))
            schedule = rho if isinstance(rho, FOLLOWING) else None
            if schedule is None and entry is not None and entry.follows and rho is not None:
                schedule = entry.schedule if entry.wrote is None or not _differ(rho, entry.wrote) else None
            if isinstance(schedule, ProportionalToLR):
                found.append(f"{schedule(group['lr'])} (follows lr)")
            else:
                now = rho.start if isinstance(rho, Angle) else rho
                found.append(f"{now}" if schedule is None else f"{now} (follows the angle, cosine {schedule.cosine})")
        return found

    def by_hand(self, groups: list[Group]) -> list[int]:
        """Return the places of groups that no longer follow their schedule."""
        entries = enumerate(self._up_to_date(groups))
        return [i for i, entry in entries if entry.schedule is not None and not entry.follows]

    def loaded(self, groups: list[Group], by_hand: Iterable[int]) -> None:
        """Let groups follow their schedules as those did whose state was loaded."""
        for i, entry in enumerate(self._aligned(groups)):
            entry.follows, entry.wrote = entry.schedule is not None and i not in by_hand, None
            if "rho" in entry.group:
                entry.rho = entry.group["rho"]

    def _up_to_date(self, groups: list[Group]) -> list[_Entry]:
        entries = self._aligned(groups)
        for i, entry in enumerate(entries):
            rho = entry.group.get("rho", entry.rho)
            if isinstance(rho, FOLLOWING):
                entry.schedule, entry.follows = rho, True
            elif entry.follows and entry.wrote is not None and _differ(rho, entry.wrote):
                entry.follows = False
            if entry.follows and isinstance(entry.schedule, ProportionalToLR):
                rho = entry.wrote = entry.schedule(entry.group["lr"])
            elif entry.follows:
                rho = entry.wrote = rho.start if isinstance(rho, Angle) else rho
            check_radius(rho, i)
            entry.rho = entry.group["rho"] = rho
        return entries

    def _aligned(self, groups: list[Group]) -> list[_Entry]:
        """Return what is known of each group, in their order."""
        known = self._entries
        if len(known) != len(groups) or any(e.group is not g for e, g in zip(known, groups, strict=True)):
            found = [(found_again(groups, e.group, e.params, place), e) for place, e in enumerate(known)]
            places = {id(now): entry for now, entry in found if now is not None}
            self._entries = [self._entry(group, places.get(id(group))) for group in groups]
        return self._entries

    def _entry(self, group: Group, known: _Entry | None) -> _Entry:
        if known is None:
            return _Entry(group, group["params"], self.given)
        if known.group is not group:
            known.group, known.wrote = group, None
        known.params = group["params"]
        return known


def _differ(x: Scalar, y: Scalar) -> bool:
    return x is not y if isinstance(x, Tensor) or isinstance(y, Tensor) else x != y


def _number(rho: Scalar) -> Scalar:
    if not isinstance(rho, Tensor):
        return rho
    if free_to_read(rho):
        number: float = rho.item()
        return number
    return torch.where(rho > 0, rho, 0.0).reshape(())  # neither negative nor NaN


def climbs(rho: Scalar) -> bool:
    """Say whether a group with this radius climbs, as far as that can be seen."""
    return isinstance(rho, Tensor) or bool(rho != 0)
