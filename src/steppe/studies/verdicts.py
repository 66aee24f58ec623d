"""What differences say of a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..compare.stats import Difference, holm

Verdict = Literal["replicated", "in part", "not replicated", "the opposite"]


def corrected(differences: Sequence[Difference | None]) -> tuple[Difference | None, ...]:
    """Return differences with p-values that are corrected by Holm for how many they are; None stays None."""
    p_holm = iter(holm([one.p for one in differences if one is not None]))
    return tuple(None if one is None else replace(one, p_holm=next(p_holm)) for one in differences)


def verdict(differences: Sequence[Difference | None], *, above: bool) -> Verdict | None:
    """Judge a claim that all of some differences are above 0, or below.

    It is replicated if every difference goes the right way and is significant, the opposite if every one is significant
    the wrong way, in part if some significant one goes the right way and none the wrong way, and not replicated else.

    Args:
        differences: Corrected.
        above: Whether the right way is up.

    Returns:
        The verdict; None if a difference is not known.
    """
    known = [one for one in differences if one is not None]
    if len(known) < len(differences):
        return None
    right = sum(one.significant and (one.value > 0) == above for one in known)
    wrong = sum(one.significant and (one.value > 0) != above for one in known)
    if right == len(known):
        return "replicated"
    if wrong == len(known):
        return "the opposite"
    return "in part" if right and not wrong else "not replicated"
