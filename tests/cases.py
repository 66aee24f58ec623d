"""One row per method. Every generic test runs over these rows; what a method cannot do is a column, never a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import reference
from steppe import (
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    PGN,
    SAM,
    USAM,
    AdaSAM,
    AMSGrad,
    FriendlySAM,
    LightSAM,
    LookSAM,
    UnifiedSAM,
    VaSSO,
)
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
    clean: bool = True  # False: climbs without a clean pass
    first: int = 0  # the first step that climbs: before, there is no momentum
    every: int = 1  # climbs at steps first, first + every, ...
    scale_free: bool = True  # the climb does not change with the scale of the loss
    remembers: bool = False  # the ascent has a memory of past gradients
    blends: bool = False  # what it hands on is made of both gradients
    reuses: bool = False  # steps that do not climb hand on something else than their gradient
    draws: bool = False  # the climb is random
    held: int = 1  # tensors per parameter in the state, with the first base
    bases: tuple[str, ...] = ("sgd-momentum", "adamw", "adamw-fused")  # with which the generic tests run
    lr: float | None = None  # of methods that do not wrap
    plain: Callable[..., Any] | None = None  # the same method without a climb, of methods that do not wrap

    def build(self, params, base=None, foreach=None, **override):
        kwargs = {**self.kwargs, **override}
        if self.wraps:
            return self.make((base or BASES[0]).make(params, foreach=foreach), foreach=foreach, **kwargs)
        return self.make(params, **{"lr": self.lr, **kwargs}, foreach=foreach)

    def rows(self, problem, batches, base, gradient=None, update=None, **override):
        """The reference's iterates on ``problem``, or on another gradient or with another step of the base."""
        kwargs = {**self.kwargs, **override}
        kwargs |= {"update": update or base.update()} if self.wraps else {"lr": self.lr}
        kwargs.pop("variant", None)
        return self.reference(problem.flat(), gradient or problem.gradient, batches, **kwargs)

    def climbs_at(self, step):
        """Whether step number ``step`` climbs."""
        return self.climbs and step >= self.first and (step - self.first) % self.every == 0

    def passes(self, step):
        """The passes of step number ``step``, by name."""
        return ["clean", "sharp"] if self.clean and self.climbs_at(step) else ["sharp" if not self.clean else "clean"]

    def warm_up(self, opt):
        """Let the base take the steps before the first climb, along the present gradients, to where it is."""
        rates = [group["lr"] for group in opt.param_groups]
        for group in opt.param_groups:
            group["lr"] = 0.0
        for _ in range(self.first):
            opt.base.step()
        for group, lr in zip(opt.param_groups, rates, strict=True):
            group["lr"] = lr


def periodic(base, *, k, stretched=False, **kwargs):
    return SAM(base, trigger=Every(k, stretched=stretched), **kwargs)


_ADAM = {"betas": (0.9, 0.99), "eps": 1e-3}

CASES = [
    Case("sam", SAM, {"rho": 0.1}, reference.sam),
    Case("usam", USAM, {"rho": 0.1}, reference.usam, scale_free=False),
    Case("asam", ASAM, {"rho": 0.5, "eta": 0.01}, reference.asam),
    Case("gsam", GSAM, {"rho": 0.1, "alpha": 0.4}, reference.gsam, blends=True),
    Case(
        "adasam",
        AdaSAM,
        {"rho": 0.1, "weight_decay": 0.01, **_ADAM},
        reference.adasam,
        wraps=False,
        held=3,
        lr=0.01,
        plain=lambda params, rho, **kwargs: AMSGrad(params, **kwargs),
    ),
    Case("amsgrad", AMSGrad, dict(_ADAM), reference.amsgrad, wraps=False, climbs=False, held=3, lr=0.01),
    Case(
        "lightsam-i",
        LightSAM,
        {"rho": 0.1, "variant": "adagrad-norm", "eps": 1e-8},
        reference.lightsam_i,
        wraps=False,
        scale_free=False,
        remembers=True,
        held=0,
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
        held=2,
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
        held=4,
        lr=0.01,
        plain=lambda params, rho, variant, **kwargs: _descent("adam", params, **kwargs),
    ),
    Case("sam-every-3", periodic, {"rho": 0.1, "k": 3}, reference.periodic, every=3),
    Case(
        "msam",
        MSAM,
        {"rho": 0.1},
        reference.msam,
        clean=False,
        first=1,
        bases=("sgd-momentum", "adamw-fused"),
    ),
    Case("msam-adaptive", MSAM, {"rho": 0.1, "eta": 0.01}, reference.msam, clean=False, first=1, bases=("adamw",)),
    Case(
        "looksam",
        LookSAM,
        {"rho": 0.1, "k": 3, "alpha": 0.5},
        reference.looksam,
        every=3,
        blends=True,
        reuses=True,
        held=2,
        bases=("sgd-momentum", "adamw-fused"),
    ),
    Case(
        "friendlysam",
        FriendlySAM,
        {"rho": 0.1, "sigma": 1.0, "decay": 0.6},
        reference.friendlysam,
        scale_free=False,
        remembers=True,
        held=2,
        bases=("sgd-momentum",),
    ),
    Case(
        "vasso",
        VaSSO,
        {"rho": 0.1, "theta": 0.4},
        reference.vasso,
        scale_free=False,
        remembers=True,
        held=2,
        bases=("adamw",),
    ),
    Case("pgn", PGN, {"rho": 0.1, "alpha": 0.8}, reference.pgn, blends=True, bases=("sgd-momentum",)),
    Case(
        "unifiedsam",
        UnifiedSAM,
        {"rho": 0.1, "lam": "1-1/t"},
        reference.unifiedsam,
        scale_free=False,
        bases=("sgd-momentum", "adamw-fused"),
    ),
    Case("esam", ESAM, {"rho": 0.1, "beta": 0.7, "seed": 1}, None, draws=True, bases=("sgd-momentum",)),
]


def _descent(variant, params, lr, foreach=None, **kwargs):
    ascent = LightSAM([torch.nn.Parameter(torch.zeros(1))], lr, rho=0.0, variant=variant, **kwargs).ascent
    return Descent(params, lr, ascent, foreach=foreach)


CLIMBING = [case for case in CASES if case.climbs]

# Every method with the bases of its row; a method that owns its base stands once.
COMBINATIONS = [
    (case, base)
    for case in CASES
    for base in (BASES if case.wraps else BASES[:1])
    if not case.wraps or base.name in case.bases
]


def combination_id(value):
    return value.name if isinstance(value, (Case, Base)) else None
