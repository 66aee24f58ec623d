"""One row for every claim: what breaks it, and the part of its grid and the seeds that are enough in a test."""

from __future__ import annotations

from dataclasses import replace

from steppe.theory import CLAIMS

from . import adasam, constant_rho, edge_of_stability, gsam, lightsam

CASES = {**constant_rho.CASES, **adasam.CASES, **gsam.CASES, **lightsam.CASES, **edge_of_stability.CASES}


def reduced(name):
    """Return a claim with fewer settings and seeds."""
    _, keep, seeds = CASES[name]
    claim = CLAIMS[name]
    return replace(claim, grid=tuple(p for p in claim.grid if keep(p)), seeds=seeds)
