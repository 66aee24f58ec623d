"""Claims on the edge of stability."""

from __future__ import annotations

from steppe.theory.claims import setups

from .constant_rho import rho
from .picking import picked


def other_lr(patch):
    sgd = setups.sgd
    patch.setattr(setups, "sgd", lambda problem, lr, start=None: sgd(problem, 0.8 * lr, start))


def one_radius(patch):
    sam = setups.sam
    patch.setattr(setups, "sam", lambda problem, lr, rho, start=None: sam(problem, lr, 0.05, start))


CASES = {
    "sam-edge-on-quadratics": (rho(1.5), picked(lr=[0.5, 0.4]), 3),
    "sam-edge-of-stability": (rho(2), picked(lr=[0.2], rho=[0.05]), 8),
    "gd-edge-of-stability": (other_lr, picked(lr=[0.5]), 8),
    "sam-edge-shrinks": (one_radius, picked(lr=[0.2]), 6),
}
