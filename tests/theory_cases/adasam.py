"""Claims on AdaSAM."""

from __future__ import annotations

from steppe.theory.claims import adasam_setups, adasam_variants

from .picking import picked


def made(lr=1.0, rho=1.0, betas=None):
    """Break a claim: AdaSAM with another learning rate, radius or betas than it says."""

    def apply(patch):
        adasam = adasam_setups.adasam

        def other(problem, old_lr, old_rho, old_betas, eps, start=None):
            return adasam(problem, lr * old_lr, rho * old_rho, betas or old_betas, eps, start)

        patch.setattr(adasam_setups, "adasam", other)

    return apply


def same_lr_for_all_batches(patch):
    schedules = adasam_setups.schedules
    patch.setattr(adasam_setups, "schedules", lambda c, batch, samples: schedules(c, 64, samples))


def smaller_lr(patch):
    schedules = adasam_setups.schedules
    patch.setattr(adasam_setups, "schedules", lambda c, batch, samples: schedules(0.1 * c, batch, samples))


def larger_cap(patch):
    patch.setattr(adasam_setups, "capped", lambda lr, most: min(lr, 2 * most))


def max_in_both(patch):
    patch.setattr(adasam_setups, "without_max", adasam_setups.adasam)


def max_in_neither(patch):
    patch.setattr(adasam_setups, "adasam", adasam_setups.without_max)


def nothing_falls(patch):
    patch.setattr(adasam_variants, "falls", lambda t: 1.0)


CASES = {
    "adasam-bound": (made(lr=0.02), picked(rho=[0.05], eps=[1.0, 4.0]), 4),
    "adasam-linear-speed-up": (same_lr_for_all_batches, picked(batch=[4, 64]), 8),
    "adasam-speed-up-needs-schedule": (smaller_lr, picked(), 6),
    "adasam-speed-up-ends": (larger_cap, picked(c=[0.05], height=[2.0, 3.0]), 2),
    "adasam-beta2-one": (made(betas=(0.5, 0.999)), picked(problem=["quadratic"], beta1=[0.5]), 3),
    "adasam-without-max-drift": (max_in_both, picked(beta2=[0.0]), 4),
    "adasam-without-max": (max_in_both, picked(beta1=[0.0]), 4),
    "adasam-with-max": (max_in_neither, picked(beta1=[0.0]), 5),
    "adasam-residual": (made(rho=1.5), picked(start=[1.0]), 1),
    "adasam-residual-momentum": (made(rho=1.5), picked(n=[4]), 1),
    "adasam-decaying-rho": (nothing_falls, picked(rho=[0.1]), 1),
}
