"""Claims on GSAM: with a growing batch size or a decaying learning rate, with a constant rho, and on its gap."""

from __future__ import annotations

import torch

from steppe.theory.claims import gsam_setups

from .picking import picked


def gsam(lr=1.0, rho=1.0, alpha=1.0, start=None):
    """Break a claim: GSAM with other numbers than it says, or from another start."""

    def apply(patch):
        made = gsam_setups.gsam

        def broken(problem, rate, radius, weight, at=None):
            radius = radius if hasattr(radius, "rho_max") else rho * radius
            return made(problem, lr * rate, radius, alpha * weight, at if start is None else start(problem))

        patch.setattr(gsam_setups, "gsam", broken)

    return apply


def nothing_grows(patch):
    patch.setattr(gsam_setups, "sizes", lambda p: [p["batch"]] * p["steps"])


def nothing_decays(patch):
    patch.setattr(gsam_setups, "annealed", lambda optimizer, schedule, steps: None)


def rho_stays(patch):
    scheduled = gsam_setups.scheduled
    patch.setattr(
        gsam_setups,
        "scheduled",
        lambda problem, p, *rest, **named: scheduled(problem, {**p, "rho falls": ""}, *rest, **named),
    )


def beside_the_minimum(problem):
    """Return a point with hardly a gradient, which is along the top eigenvector."""
    return 1e-9 * torch.eye(problem.dimension, dtype=torch.float64)[0]


CASES = {
    "gsam-bound": (gsam(lr=0.02), picked(problem=["quadratic"], alpha=[0.3]), 3),
    "gsam-noise-floor": (gsam(lr=1.3), picked(lr=[0.5], batch=[1, 8]), 8),
    "gsam-noise-floor-rises": (gsam(alpha=-1.0), picked(alpha=[-0.8, 1.6]), 6),
    "gsam-growing-batch": (nothing_grows, picked(steps=[120, 240]), 12),
    "gsam-decaying-lr": (nothing_decays, picked(steps=[50, 200]), 14),
    "gsam-rho-floor": (gsam(rho=0.5), picked(steps=[100]), 4),
    "gsam-rho-floor-growing-batch": (gsam(alpha=0.5), picked(alpha=[-0.2]), 4),
    "gsam-rho-floor-decaying-lr": (gsam(alpha=0.5), picked(alpha=[-0.2]), 4),
    "gsam-growing-batch-two-cycle": (gsam(rho=1.5), picked(alpha=[0.4], rho=[0.1]), 3),
    "gsam-skewed-noise": (gsam(alpha=0.5), picked(alpha=[1.0], rho=[0.02]), 10),
    "gsam-without-rho-floor": (rho_stays, picked(problem=["sine", "two-cycle"]), 4),
    "gsam-surrogate-gap": (rho_stays, picked(rho=[0.01]), 1),
    "gsam-one-step-gap": (gsam(rho=1.5), picked(steps=[0, 10]), 4),
    "gsam-circles-on-top": (gsam(lr=0.5), picked(alpha=[0.4, 1.0]), 3),
    "gsam-one-step-gap-is-curvature": (gsam(lr=1e-9, start=beside_the_minimum), picked(), 4),
    "gsam-decomposition": (gsam(alpha=1.5), picked(), 10),
}
