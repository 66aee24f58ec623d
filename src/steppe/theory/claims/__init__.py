"""The claims, one file for each paper or part of it. To add one: define it there, and list it in the file's CLAIMS."""

from __future__ import annotations

from ..claim import Claim
from . import constant_rho, constant_rho_stochastic

_PARTS = {
    "SAM with a constant radius, without noise": constant_rho.CLAIMS,
    "SAM with a constant radius, with sampled gradients": constant_rho_stochastic.CLAIMS,
}

CLAIMS: dict[str, Claim] = {claim.id: claim for part in _PARTS.values() for claim in part}
"""All claims by id."""

PARTS: dict[str, tuple[str, ...]] = {title: tuple(claim.id for claim in part) for title, part in _PARTS.items()}
"""Their ids under headings, in the same order."""
