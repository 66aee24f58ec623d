"""The paper's claims, each with numbers and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...lab.judge.differences import Difference, paired
from ...lab.trials.records import Record
from ..verdicts import Verdict, corrected, verdict
from .design import OPTIMIZERS

SHARPNESS = "worst-case linf"
"""The paper's measure: Auto-PGD in an l-infinity ball of radius 2e-4, on 1024 training examples in batches of 128."""

Quantity = Literal["error", "sharpness"]


@dataclass(frozen=True)
class Claim:
    """What is said to hold for some pairs of columns.

    Attributes:
        text: In words.
        quantity: What is compared.
        pairs: Columns; the first of each is said to have less of it.
        published: What the paper's own table shows.
    """

    text: str
    quantity: Quantity
    pairs: tuple[tuple[str, str], ...]
    published: str


@dataclass(frozen=True)
class Finding:
    """What this run says of a claim.

    Attributes:
        claim: The claim.
        differences: For every pair, first minus second, paired by seed: percentage points of error, or factors of
            2 of sharpness (log2 of the ratio). None with fewer than 3 seeds.
        verdict: From the signs and the p-values, which are corrected by Holm within the claim.
    """

    claim: Claim
    differences: tuple[Difference | None, ...]
    verdict: Verdict | None


def claims(budget: str = "") -> list[Claim]:
    """Return the claims at a budget.

    Args:
        budget: ``""`` for equal epochs, as published; ``"@updates"`` for equal updates, which differ in +B only.
    """
    grown = tuple((f"{name}+B{budget}", name) for name in OPTIMIZERS)
    lower, flatter = "lower in 21 of 21 pairs", "flatter in 21 of 21 pairs, by 6.4 to 116 times"
    found = [
        Claim("growing batches (+B) lower the error", "error", grown, "not measured" if budget else lower),
        Claim("growing batches (+B) end flatter", "sharpness", grown, "not measured" if budget else flatter),
    ]
    if budget:
        return found
    cosine = tuple((f"{name}+C", name) for name in OPTIMIZERS)
    return [
        *found,
        Claim("a cosine learning rate (+C) lowers the error", "error", cosine, "lower in 18 of 21 pairs"),
        Claim(
            "a cosine learning rate (+C) ends flatter",
            "sharpness",
            cosine,
            "sharper in 21 of 21 pairs, against the same optimizer at a constant rate",
        ),
        Claim(
            "SAM and GSAM have a lower error than SGD",
            "error",
            tuple((f"{name}{suffix}", f"sgd{suffix}") for suffix in ("", "+B", "+C") for name in ("sam", "gsam")),
            "lower in 37 of 42 pairs",
        ),
        Claim(
            "SAM and GSAM end flatter than SGD",
            "sharpness",
            tuple((f"{name}{suffix}", f"sgd{suffix}") for suffix in ("", "+B", "+C") for name in ("sam", "gsam")),
            "flatter in 42 of 42 pairs",
        ),
    ]


def judge(claim: Claim, records: Sequence[Record]) -> Finding:
    """Test a claim on the records of a run.

    It is replicated if every pair goes the right way and is significant (p < 0.05 after Holm's correction for the pairs
    of this claim), the opposite if every pair is significant the wrong way, in part if some significant pair goes the
    right way and none the wrong way, and not replicated else.

    Args:
        claim: The claim.
        records: Of all trials.

    Returns:
        The finding; its verdict is None with fewer than 3 seeds.
    """
    values = _values(claim.quantity, records)
    differences = []
    for less, more in claim.pairs:
        seeds = sorted(set(values.get(less, {})) & set(values.get(more, {})))
        differences.append(paired([values[less][seed] - values[more][seed] for seed in seeds]))
    found = corrected(differences)
    return Finding(claim, found, verdict(found, above=False))


def _values(quantity: Quantity, records: Sequence[Record]) -> Mapping[str, Mapping[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for record in records:
        value = error(record) if quantity == "error" else sharpness(record)
        if value is not None:
            found.setdefault(record.config.row, {})[record.config.seed] = (
                value if quantity == "error" else math.log2(max(value, 1e-30))
            )
    return found


def error(record: Record) -> float | None:
    """Return the test error in percent, unless the trial diverged."""
    return None if record.final is None or record.final.test_metric is None else 100.0 - record.final.test_metric


def sharpness(record: Record) -> float | None:
    """Return the paper's measure, unless the trial diverged or the loss overflowed."""
    return None if record.final is None else (record.final.sharpness or {}).get(SHARPNESS)
