"""The claims, one file for each paper or part of it. To add one: define it there, and list it in the file's CLAIMS."""

from __future__ import annotations

from ..claim import Claim
from . import constant_rho, constant_rho_stochastic

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in (*constant_rho.CLAIMS, *constant_rho_stochastic.CLAIMS)}
"""All claims by id."""
