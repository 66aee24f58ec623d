"""What is said of LightSAM's sensitivity, with numbers and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from ...lab.judge.differences import Difference, paired
from ..verdicts import Verdict, corrected, verdict
from .design import LIGHT, Preset, Width
from .grids import Grid

Grids = Mapping[str, Mapping[str, Grid]]
"""By task and method."""

SPREAD = "sd over the grid"


@dataclass(frozen=True)
class Claim:
    """What is said to be less, or more, in the average over tasks.

    Attributes:
        text: In words.
        statistic: Of a grid.
        width: Of the grid.
        pairs: Methods; the first of each is said to have more of it, or less.
        above: Whether more.
        published: What the paper reports.
    """

    text: str
    statistic: str
    width: Width
    pairs: tuple[tuple[str, str], ...]
    above: bool
    published: str


@dataclass(frozen=True)
class Finding:
    """What this run says of a claim.

    Attributes:
        claim: The claim.
        differences: Of every pair, first minus second: the mean over tasks, paired by seed. None with fewer than 3
            seeds.
        verdict: From the signs and the p-values, which are corrected by Holm within the claim.
    """

    claim: Claim
    differences: tuple[Difference | None, ...]
    verdict: Verdict | None


def _against(other: str) -> tuple[tuple[str, str], ...]:
    return tuple((light, other) for light in LIGHT)


_SMALL = "a small spread over nine settings"

CLAIMS = tuple(
    claim
    for width in ("narrow", "wide")
    for claim in (
        Claim("LightSAM depends less on its setting than SAM", SPREAD, width, _against("sam"), False, _SMALL),
        Claim("LightSAM depends less on its setting than AdaSAM", SPREAD, width, _against("adasam"), False, _SMALL),
        Claim(
            "LightSAM's best setting is above SAM's",
            "best",
            width,
            _against("sam"),
            True,
            "marginal gains",
        ),
        Claim(
            "LightSAM's best setting is above AdaSAM's",
            "best",
            width,
            _against("adasam"),
            True,
            "on a par",
        ),
        # A method that is as bad everywhere has a small spread: these two say whether a setting at random is any good.
        Claim("LightSAM's median setting is above SAM's", "median", width, _against("sam"), True, "not reported"),
        Claim("LightSAM's median setting is above AdaSAM's", "median", width, _against("adasam"), True, "not reported"),
        Claim("LightSAM's worst setting is above SAM's", "worst", width, _against("sam"), True, "not reported"),
    )
)


def judged(design: Preset, grids: Grids) -> tuple[Finding, ...]:
    """Judge all claims on the validation metrics of the grids."""
    return tuple(_judge(claim, design, grids) for claim in CLAIMS)


def _judge(claim: Claim, design: Preset, grids: Grids) -> Finding:
    found = []
    for first, second in claim.pairs:
        by_task = [
            {
                seed: value - others[seed]
                for others in [of[second].statistic(claim.statistic, design.inside(second, claim.width))]
                for seed, value in of[first].statistic(claim.statistic, design.inside(first, claim.width)).items()
            }
            for of in grids.values()
        ]
        found.append(paired([fmean(task[seed] for task in by_task) for seed in sorted(by_task[0])]))
    differences = corrected(found)
    return Finding(claim, differences, verdict(differences, above=claim.above))
