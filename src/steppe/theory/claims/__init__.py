"""The claims, one file for each paper or part of it. To add one: define it there, and list it in the file's CLAIMS."""

from __future__ import annotations

from ..claim import Claim
from . import (
    adasam,
    adasam_variants,
    constant_rho,
    constant_rho_stochastic,
    edge_of_stability,
    gsam,
    gsam_gap,
    gsam_rho,
    lightsam,
    lightsam_grid,
    lightsam_sine,
)

_PARTS = {
    "SAM with a constant radius, without noise": constant_rho.CLAIMS,
    "SAM with a constant radius, with sampled gradients": constant_rho_stochastic.CLAIMS,
    "AdaSAM": (*adasam.CLAIMS, *adasam_variants.CLAIMS),
    "GSAM with a growing batch size or a decaying learning rate": (*gsam.CLAIMS, *gsam_rho.CLAIMS),
    "GSAM's surrogate gap": gsam_gap.CLAIMS,
    "LightSAM": (*lightsam.CLAIMS, *lightsam_sine.CLAIMS),
    "LightSAM and others, with every radius and learning rate over four decades": lightsam_grid.CLAIMS,
    "SAM's edge of stability": edge_of_stability.CLAIMS,
}

CLAIMS: dict[str, Claim] = {claim.id: claim for part in _PARTS.values() for claim in part}
"""All claims by id."""

PARTS: dict[str, tuple[str, ...]] = {title: tuple(claim.id for claim in part) for title, part in _PARTS.items()}
"""Their ids under headings, in the same order."""
