"""One row per method. Every generic test runs over these rows; what a method cannot do is a column, never a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import reference
from steppe import ASAM, GSAM, SAM, USAM, AdaSAM, AMSGrad, LightSAM, SharpnessAware
from steppe.ascents import L2
from steppe.descent import Descent
from steppe.triggers import Every


@dataclass(frozen=True)
class Base:
    name: str
    make: Callable[..., torch.optim.Optimizer]
    update: Callable[[], Callable[..., torch.Tensor]]


BASES = [
    Base(
        "sgd-momentum",
        lambda params, foreach=None: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=foreach),
        lambda: reference.sgd(0.05, momentum=0.9, weight_decay=1e-3),
    ),
    Base(
        "adamw",
        lambda params, foreach=None: torch.optim.AdamW(params, lr=1e-2, weight_decay=1e-2, foreach=foreach),
        lambda: reference.adamw(1e-2, weight_decay=1e-2),
    ),
    Base(
        "adamw-fused",
        lambda params, foreach=None: torch.optim.AdamW(params, lr=1e-2, weight_decay=1e-2, fused=True),
        lambda: reference.adamw(1e-2, weight_decay=1e-2),
    ),
]


@dataclass(frozen=True)
class Case:
    """A method with its settings.

    ``make`` takes what the method takes first: a base instance if it ``wraps`` one, else parameters.
    """

    name: str
    make: Callable[..., Any]
    kwargs: dict[str, Any]
    reference: Callable[..., Any] | None
    wraps: bool = True
    climbs: bool = True  # False: a plain optimizer
    every: int = 1  # climbs at steps 0, every, 2 every, ...
    scale_free: bool = True  # the climb does not change with the scale of the loss
    remembers: bool = False  # the ascent has a memory of past gradients
    lr: float | None = None  # of methods that do not wrap
    plain: Callable[..., Any] | None = None  # the same method without a climb, of methods that do not wrap

    def build(self, params, base=None, foreach=None, **override):
        kwargs = {**self.kwargs, **override}
        if self.wraps:
            return self.make((base or BASES[0]).make(params, foreach=foreach), foreach=foreach, **kwargs)
        return self.make(params, **{"lr": self.lr, **kwargs}, foreach=foreach)

    def rows(self, problem, batches, base):
        """The reference's iterates on ``problem``."""
        kwargs = {**self.kwargs, "update": base.update()} if self.wraps else {**self.kwargs, "lr": self.lr}
        kwargs.pop("variant", None)
        return self.reference(problem.flat(), problem.gradient, batches, **kwargs)


def every_third(base, *, rho, foreach=None):
    return SharpnessAware(base, ascent=L2(), trigger=Every(3), rho=rho, foreach=foreach)


_ADAM = {"betas": (0.9, 0.99), "eps": 1e-3}

CASES = [
    Case("sam", SAM, {"rho": 0.1}, reference.sam),
    Case("usam", USAM, {"rho": 0.1}, reference.usam, scale_free=False),
    Case("asam", ASAM, {"rho": 0.5, "eta": 0.01}, reference.asam),
    Case("gsam", GSAM, {"rho": 0.1, "alpha": 0.4}, reference.gsam),
    Case(
        "adasam",
        AdaSAM,
        {"rho": 0.1, "weight_decay": 0.01, **_ADAM},
        reference.adasam,
        wraps=False,
        lr=0.01,
        plain=lambda params, rho, **kwargs: AMSGrad(params, **kwargs),
    ),
    Case("amsgrad", AMSGrad, dict(_ADAM), reference.amsgrad, wraps=False, climbs=False, lr=0.01),
    Case(
        "lightsam-i",
        LightSAM,
        {"rho": 0.1, "variant": "adagrad-norm", "eps": 1e-8},
        reference.lightsam_i,
        wraps=False,
        scale_free=False,
        remembers=True,
        lr=0.5,
        plain=lambda params, rho, variant, **kwargs: _descent("adagrad-norm", params, **kwargs),
    ),
    Case(
        "lightsam-ii",
        LightSAM,
        {"rho": 0.01, "variant": "adagrad", "eps": 1e-8},
        reference.lightsam_ii,
        wraps=False,
        scale_free=False,
        remembers=True,
        lr=0.05,
        plain=lambda params, rho, variant, **kwargs: _descent("adagrad", params, **kwargs),
    ),
    Case(
        "lightsam-iii",
        LightSAM,
        {"rho": 0.01, "variant": "adam", **_ADAM},
        reference.lightsam_iii,
        wraps=False,
        scale_free=False,
        remembers=True,
        lr=0.01,
        plain=lambda params, rho, variant, **kwargs: _descent("adam", params, **kwargs),
    ),
    Case("sam-every-3", every_third, {"rho": 0.1}, None, every=3),
]


def _descent(variant, params, lr, foreach=None, **kwargs):
    ascent = LightSAM([torch.nn.Parameter(torch.zeros(1))], lr, rho=0.0, variant=variant, **kwargs).ascent
    return Descent(params, lr, ascent, foreach=foreach)


CLIMBING = [case for case in CASES if case.climbs]

# Every method with every base it can wrap; a method that owns its base stands once.
COMBINATIONS = [(case, base) for case in CASES for base in (BASES if case.wraps else BASES[:1])]


def combination_id(value):
    return value.name if isinstance(value, (Case, Base)) else None
