"""Claims on LightSAM, and on others on the same grid of radii and learning rates."""

from __future__ import annotations

from steppe.theory.claims import lightsam, lightsam_grid, setups

from .constant_rho import rho as sam_rho
from .picking import picked


def other(variant):
    """Break a claim: another variant of LightSAM than it says."""

    def apply(patch):
        made = lightsam.lightsam
        patch.setattr(
            lightsam,
            "lightsam",
            lambda problem, said, lr, rho, start=None, beta2=0.999: made(problem, variant, lr, rho, start, beta2),
        )

    return apply


def lr(factor):
    """Break a claim: another learning rate than it says."""

    def apply(patch):
        made = lightsam.lightsam
        patch.setattr(
            lightsam,
            "lightsam",
            lambda problem, variant, lr, *rest, **named: made(problem, variant, factor * lr, *rest, **named),
        )

    return apply


def rho(factor):
    """Break a claim: another radius than it says."""

    def apply(patch):
        made = lightsam.lightsam
        patch.setattr(
            lightsam,
            "lightsam",
            lambda problem, variant, lr, rho, *rest, **named: made(problem, variant, lr, factor * rho, *rest, **named),
        )

    return apply


def sam_instead(patch):
    patch.setattr(lightsam, "lightsam", lambda problem, variant, *rest: setups.sam(problem, *rest))


def beta2(value):
    """Break a claim: LightSAM-III that forgets in another way."""
    return lambda patch: patch.setattr(lightsam, "forgetting", value)


def without_climb(patch):
    made = lightsam_grid.adasam
    patch.setattr(lightsam_grid, "adasam", lambda problem, lr, rho: made(problem, lr, 1e-3 * rho))


some = picked(rho=[0.01, 1.0], lr=[0.01, 10.0])

CASES = {
    "lightsam-perturbations-bound": (sam_instead, picked(), 2),
    "lightsam-perturbations": (sam_instead, picked(steps=[10, 80], rho=[1.0]), 20),
    "lightsam-noise-level": (lr(1.5), picked(variant=["adagrad-norm"], rho=[0.1]), 5),
    "lightsam-3-fixed-beta2": (beta2(lambda p: 1 - 1 / p["steps"]), picked(steps=[2000]), 1),
    "lightsam-3-growing-beta2": (beta2(lambda p: 0.99), picked(steps=[1000]), 1),
    "lightsam-3-average": (other("adagrad"), picked(falls=[True], rho=[1.0]), 1),
    "lightsam-sine": (sam_instead, picked(lr=[0.5, 0.4]), 5),
    "lightsam-sine-maximum": (sam_instead, picked(lr=[0.5, 0.4]), 5),
    "lightsam-maxima": (rho(3.0), picked(rho=[0.3]), 12),
    "lightsam-1-any-setting": (sam_instead, some, 1),
    "lightsam-2-any-setting": (sam_instead, some, 1),
    "lightsam-bound": (lr(0.02), picked(steps=[1000]), 1),
    "lightsam-1-any-setting-noise": (other("adam"), some, 5),
    "lightsam-2-any-setting-noise": (other("adam"), some, 5),
    "lightsam-3-any-setting": (other("adagrad"), picked(rho=[1.0], lr=[0.1, 10.0]), 1),
    "sam-same-grid": (sam_rho(1.5), some, 1),
    "adasam-same-grid": (without_climb, some, 1),
}
