"""Claims on SAM with a constant radius."""

from __future__ import annotations

from steppe.theory.claims import setups

from .picking import picked


def rho(factor):
    """Break a claim: SAM with another radius than it says."""

    def apply(patch):
        sam = setups.sam
        patch.setattr(setups, "sam", lambda problem, lr, rho, start=None: sam(problem, lr, factor * rho, start))

    return apply


def lr(factor):
    """Break a claim: SAM with another learning rate than it says."""

    def apply(patch):
        sam = setups.sam
        patch.setattr(setups, "sam", lambda problem, lr, rho, start=None: sam(problem, factor * lr, rho, start))

    return apply


def without_normalisation(patch):
    patch.setattr(setups, "sam", setups.usam)


def with_normalisation(patch):
    patch.setattr(setups, "usam", setups.sam)


def nothing_falls(patch):
    variant = setups.variant
    patch.setattr(setups, "variant", lambda *arguments: variant(*arguments[:-1], lambda t: 1.0))


CASES = {
    "sam-two-cycle": (rho(1.5), picked(beta=[2.0]), 1),
    "sam-strongly-convex-rate": (without_normalisation, picked(kappa=[2]), 1),
    "sam-strongly-convex-bound": (lr(0.05), picked(steps=[600, 300]), 1),
    "sam-strongly-convex-lower": (rho(0.1), picked(), 1),
    "sam-convex-bound": (lr(0.02), picked(steps=[100, 1000]), 1),
    "sam-nonconvex-bound": (lr(0.02), picked(), 1),
    "sam-sine-trap": (rho(1.5), picked(lr=[0.5, 0.4]), 5),
    "sam-nonsmooth-frozen": (rho(0.05), picked(lr=[0.1]), 1),
    "sam-valley": (without_normalisation, picked(), 1),
    "valley-without-constant-rho": (with_normalisation, picked(), 1),
    "usam-converges": (with_normalisation, picked(), 1),
    "decaying-rho-converges": (nothing_falls, picked(method=["falling rho"]), 1),
    "sam-skewed-noise": (rho(1.5), picked(), 5),
    "sam-floor-in-rho": (without_normalisation, picked(rho=[0.05, 0.4]), 6),
    "sam-floor-in-lr": (rho(1.5), picked(lr=[0.04, 0.01]), 10),
    "sam-unequal-curvature": (rho(1.5), picked(p=[0.5], samples=["same"]), 4),
    "usam-unequal-curvature": (with_normalisation, picked(samples=["same"]), 4),
    "sam-trap-strongly-convex": (rho(0.5), picked(lr=[0.5, 0.3]), 5),
    "sam-trap-convex": (rho(0.1), picked(z=[50.0]), 5),
    "trap-without-constant-rho": (nothing_falls, picked(method=["sam", "falling rho"]), 4),
    "skewed-noise-without-constant-rho": (nothing_falls, picked(method=["falling rho", "usam"]), 4),
    "sam-stochastic-bound": (lr(0.02), picked(rho=[0.1]), 5),
    "sam-stochastic-strongly-convex-bound": (lr(0.01), picked(), 5),
}
