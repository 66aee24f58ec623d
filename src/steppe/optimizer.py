"""The engine: a closure becomes the gradient that an ordinary optimizer should see, and that optimizer does the rest.

One step::

    batch -> closure()   .grad = clean gradient at w
          -> ascent      keep a copy of w; w += delta
    batch -> closure()   .grad = sharp gradient at w + delta
          -> always      w comes back bit for bit, in place
          -> blend       the gradient to hand on
          -> base.step() one gradient at w
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._tensors import Ops, Scalar
from .ascents import Ascent, Slope
from .blends import Blend
from .climb import Anchor, Climb, Stay
from .descent import load_uncast
from .schedules import ProportionalToLR, Radius, check_radius
from .triggers import Always, Trigger

_AFTER_SHARP = "after the sharp pass. Did it call loss.backward()?"


class SharpnessAware(Optimizer):
    """A torch optimizer that gives its base the gradient a sharpness-aware method asks for.

    Every method of this library is a `SharpnessAware` with its parts chosen; use it directly to combine parts that
    no paper has combined yet.

    A climbing step costs two gradients and one copy of the parameters that climb, whose memory is kept for the next
    step (another copy, not kept, if the blend needs the clean gradient). Where it does not climb (every ``rho`` is 0,
    or the trigger says no), a step is exactly the base's own, at the price of one gradient.

    Args:
        base: the optimizer *instance* that takes the step; any torch optimizer whose ``step`` works without a closure.
            Its parameter groups become this optimizer's own (the same dicts), so schedulers attach to either.
        ascent: where to climb.
        blend: which gradient to hand on to the base; None hands on the sharp one.
        trigger: whether to climb at this step; None climbs always.
        rho: radius of the climb, >= 0, or a `ProportionalToLR`. A group with its own ``"rho"`` keeps it; groups with
            ``rho=0`` do not climb and do not count in any norm.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError: if ``base`` is not an optimizer instance, or is sharpness-aware already.
        ValueError: if a radius is negative or not finite, or the base cannot work with one gradient per step.

    Note:
        `step` is for loops that can evaluate a batch on demand, `ascended` for hosts that run forward and backward
        themselves (GradScaler, trainers). Weights are ``w`` whenever neither is running. Parameters without a gradient
        in the clean pass do not climb; those without one in the sharp pass are left alone by the base. If the clean
        gradient is zero nothing moves; if it is not finite nothing moves either, and the gradient handed on is not
        finite. Step hooks fire once per step here and once on the base; global hooks see two optimizers.

    Example:
        >>> import torch
        >>> from steppe import SharpnessAware
        >>> from steppe.ascents import L2
        >>> from steppe.triggers import Every
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = SharpnessAware(torch.optim.SGD([w], lr=0.1), ascent=L2(), trigger=Every(2), rho=0.05)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (w**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> opt.step(closure).item()
        5.0
    """

    # GradScaler announces itself to optimizers that claim to handle scaled gradients. This one claims it to refuse.
    _step_supports_amp_scaling = True

    found_inf: Tensor | None = None
    """Set by a GradScaler while it steps an optimizer that claims so."""

    state: defaultdict[Any, dict[str, Any]]

    def __init__(
        self,
        base: Optimizer,
        *,
        ascent: Ascent,
        blend: Blend | None = None,
        trigger: Trigger | None = None,
        rho: Radius,
        foreach: bool | None = None,
    ) -> None:
        _check_base(base)
        check_radius(rho)
        self.base = base
        self.ascent = ascent
        self.blend = blend
        self.trigger = Always() if trigger is None else trigger
        self.foreach = foreach
        self._rho = rho
        self._schedules: list[ProportionalToLR | None] = []
        self._inside = False
        self._anchor = Anchor()
        groups, defaults = base.param_groups, base.defaults
        for i, group in enumerate(groups):
            check_radius(group.get("rho", rho), i)
        # Groups that are added to the base behind our back get a rho as well.
        base.defaults = {**defaults, "rho": 0.0 if isinstance(rho, ProportionalToLR) else rho}
        try:
            super().__init__(groups, base.defaults)
        except BaseException:
            base.param_groups, base.defaults = groups, defaults
            raise

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's own group dicts, whoever replaced them last."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; without its own ``"rho"`` it gets the one given at construction."""
        rho = param_group.get("rho", self._rho)
        check_radius(rho, len(self.param_groups))
        self.base.add_param_group(param_group)
        self._adopt(self.param_groups[-1], rho)

    def _adopt(self, group: dict[str, Any], rho: Radius) -> None:
        schedule = rho if isinstance(rho, ProportionalToLR) else None
        self._schedules.append(schedule)
        group["rho"] = schedule(group["lr"]) if schedule else rho

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the clean loss.

        Args:
            closure: zeroes the gradients, computes the loss, calls ``backward()`` and returns the loss. It is called
                twice if this step climbs and once otherwise, on the same batch each time; with mixed precision it
                opens ``autocast`` itself, because one ``autocast`` around both calls would reuse the unperturbed
                weights' casts.

        Returns:
            What the closure returned in the clean pass.

        Raises:
            RuntimeError: without a closure; if no parameter has a gradient after either pass; if a GradScaler passes
                the closure; inside `ascended`. In every case, and if the closure raises, the weights are ``w``.
        """
        if self.found_inf is not None:
            self._refuse_grad_scaler()
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}.step() needs a closure that zeroes the gradients, computes the loss, calls "
                "backward() and returns the loss. If your framework calls step() without one, give it the base "
                'optimizer and use "with opt.ascended():" around a second backward pass.'
            )
        self._refuse_nesting()
        loss = _evaluate(closure)
        climb = self._decide("after the closure. Did it call loss.backward()?")
        if climb is not None:
            self._inside = True
            try:
                with climb:
                    _evaluate(closure)
                    self._need_gradient(_AFTER_SHARP)
            finally:
                self._inside = False
        self._count()
        self.base.step()
        return loss

    @contextmanager
    def ascended(self) -> Iterator[bool]:
        """Climb, run the body at ``w + delta``, come back to ``w``, and leave in ``.grad`` the gradient to hand on.

        For hosts that run forward and backward themselves::

            loss_fn(model(x), y).backward()        # clean gradient
            with opt.ascended():                   # weights are w + delta inside, w outside
                loss_fn(model(x), y).backward()    # sharp gradient, same batch
            opt.base.step()                        # or scaler.step(opt.base)

        The body starts without gradients, as after ``zero_grad()``, and may add up several backward passes. It gets
        True, or False if this step does not climb: then it may be skipped, and whatever it does the clean gradient
        stays. With a GradScaler the gradients are scaled; that is harmless to ascents that are normalised (SAM, ASAM,
        GSAM), while the others (USAM, LightSAM) need ``scaler.unscale_`` of the clean gradient.

        Raises:
            RuntimeError: if no parameter has a gradient before or after the body; inside itself or `step`.
        """
        self._refuse_nesting()
        climb = self._decide("to climb along. Call loss.backward() before ascended().")
        params = [p for group in self.param_groups for p in group["params"]]
        self._inside = True
        try:
            with climb or Stay(params):
                for p in params:
                    p.grad = None
                yield climb is not None
                if climb is not None:
                    self._need_gradient(_AFTER_SHARP)
        finally:
            self._inside = False
        self._count()
        # A scheduler that is attached here, not to the base, asks whether a step came before its own.
        self._opt_called = True

    def _decide(self, when: str) -> Climb | None:
        """Prepare a climb, or return None if this step does not climb."""
        owners: list[Tensor] = []
        spans: list[tuple[int, int, Scalar]] = []
        for i, group in enumerate(self.param_groups):
            rho = self._radius(i, group)
            if isinstance(rho, Tensor) or rho > 0:
                start = len(owners)
                owners += [p for p in group["params"] if p.grad is not None]
                spans.append((start, len(owners), rho))
        if not owners:
            self._need_gradient(when)
            return None
        slope = Slope(owners, self.state, Ops.choose(owners, self.foreach), guarded=True)
        if not self.trigger.fires(self.state["engine"].get("step", 0), slope):
            return None
        return Climb(slope, spans, self.ascent, self.blend, self._anchor)

    def _count(self) -> None:
        self.state["engine"]["step"] = self.state["engine"].get("step", 0) + 1

    def _radius(self, i: int, group: dict[str, Any]) -> Scalar:
        """Bring the group's ``"rho"`` up to date and return it."""
        if i == len(self._schedules):  # added to the base directly
            added = group["rho"]
            self._adopt(group, self._rho if added == self.base.defaults["rho"] else added)
        if isinstance(group["rho"], ProportionalToLR):
            self._schedules[i] = group["rho"]
        schedule = self._schedules[i]
        if schedule is not None:
            group["rho"] = schedule(group["lr"])
        rho: Scalar = group["rho"]
        check_radius(rho, i)
        return rho

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming bit for bit needs: our state, and the base's under ``"base"``.

        It holds tensors and plain Python values only, so ``torch.load(..., weights_only=True)`` reads it.
        """
        return {**super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, or, with a warning, the state of a plain base optimizer.

        Raises:
            ValueError: if the parameter groups do not match; nothing is changed then.
        """
        if "base" not in state_dict:
            radii = [group["rho"] for group in self.param_groups]
            self.base.load_state_dict(dict(state_dict))
            for group, rho in zip(self.param_groups, radii, strict=True):
                group["rho"] = rho
            self.state.clear()
            warnings.warn(
                f"This is the state of a plain optimizer, not of {type(self).__name__}: the base is loaded, every rho "
                "stays as it is, and counters and accumulators start anew.",
                stacklevel=2,
            )
            return
        self.base.load_state_dict(state_dict["base"])
        ours = {name: state_dict[name] for name in ("state", "param_groups")}
        super().load_state_dict(ours)
        load_uncast(self, ours)

    def __getstate__(self) -> dict[str, Any]:
        names = ("defaults", "state", "base", "ascent", "blend", "trigger", "foreach", "_rho", "_schedules", "_inside")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.load_state_dict ends here with groups of its own making; ours are the base's.
        self._anchor = Anchor()
        super().__setstate__({name: value for name, value in state.items() if name != "param_groups"})

    def _refuse_grad_scaler(self) -> None:
        # GradScaler takes its marks back only after a step that returns.
        vars(self).pop("grad_scale", None)
        vars(self).pop("found_inf", None)
        raise RuntimeError(
            "The gradients are multiplied by a GradScaler, which torch does not combine with closures. Use "
            '"with opt.ascended():" around a second scaler.scale(loss).backward(), then scaler.step(opt.base).'
        )

    def _refuse_nesting(self) -> None:
        if self._inside:
            raise RuntimeError(
                "The weights are at w + delta already: step() and ascended() cannot run inside a closure or inside "
                "ascended(). Step after the with block, with opt.base.step()."
            )

    def _need_gradient(self, when: str) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    return
        raise RuntimeError(f"No parameter has a gradient {when}")


def _evaluate(closure: Callable[[], Any]) -> Any:
    if torch.is_grad_enabled():
        return closure()
    with torch.enable_grad():
        return closure()


def _check_base(base: object) -> None:
    if isinstance(base, type) and issubclass(base, Optimizer):
        raise TypeError(
            f"base must be an optimizer instance, got the class {base.__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"base must be an instance of torch.optim.Optimizer, got {type(base).__name__}. Write for example "
            "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)."
        )
    name = type(base).__name__
    if isinstance(base, SharpnessAware):
        raise TypeError(f"base must be a plain optimizer, got {name}, which is sharpness-aware itself.")
    if "rho" in base.defaults:
        raise ValueError(
            f"The groups of this {name} already have a 'rho': either it is wrapped by another sharpness-aware "
            "optimizer (make a new base), or it means something else by it, as Adadelta does (choose another base)."
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{name}.step() needs a closure of its own, so it cannot be given one gradient per step.")
