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

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._checks import (
    called_by_checkpoint,
    check_base,
    put_back_if_it_fails,
    refuse_classes,
    refuse_foreign_calls,
    refuse_others,
    stepped_by,
)
from ._climbers import climbers, vector_of
from ._closures import (
    AFTER_CLEAN,
    AFTER_SHARP,
    adding_up,
    evaluate,
    need_gradient,
    new_gradients,
    put,
    zeroing,
)
from ._memory import separate
from ._radii import Radii, climbs
from ._recording import is_recording, record
from ._scalars import HALF, Scalar, on_host
from ._shards import like, local, refuse_flat
from ._steps import watch
from ._tensors import Ops
from ._visits import Visit, Visits
from .ascents import Ascent, Slope
from .blends import Blend
from .climb import Anchor, Climb, Stay, alone
from .descent import load_uncast
from .schedules import Radius, check_radius
from .together import Bases, joined
from .triggers import Always, Trigger

_NOTHING: Mapping[str, Any] = {}

Result = TypeVar("Result")


@dataclass
class _Due:
    """A step that the base is to take: an object, for hosts make copies of optimizers that share all they hold."""

    weight: tuple[Tensor, int] | None = None
    """One that it has not changed yet, and how often that has been written to."""

    begun: bool = False
    seen: bool = False
    """Whether steps of the base are seen: then what else changes the weights is none."""


class SharpnessAware(Optimizer):
    """A torch optimizer that gives its base the gradient a sharpness-aware method asks for.

    Every method of this library is a `SharpnessAware` with its parts chosen; use it directly to combine parts that
    no paper has combined yet.

    A climbing step costs two gradients and one copy of the parameters that climb, whose memory is kept for the next
    step unless `keep_copy` is False (another copy, not kept, if the blend needs the clean gradient). Where it does not
    climb (every ``rho`` is 0, or the trigger says no), a step is exactly the base's own, at the price of one gradient.

    Args:
        base: the optimizer *instance* that takes the step; any torch optimizer whose ``step`` works without a closure,
            also one that wraps others. Its parameter groups become this optimizer's own (the same dicts), so schedulers
            attach to either. Or a list of them, which go `Together`.
        ascent: where to climb.
        blend: which gradient to hand on to the base; None hands on the sharp one.
        trigger: whether to climb at this step; None climbs always.
        rho: radius of the climb, >= 0, or a `ProportionalToLR`. A group with its own ``"rho"`` keeps it; groups with
            ``rho=0`` do not climb and do not count in any norm.
        foreach: multi-tensor kernels (True), one tensor at a time (False), or the faster that works (None).

    Raises:
        TypeError: if ``base`` is not an optimizer instance, is sharpness-aware already, or steps along more than a
            gradient (of single examples, as Opacus; its derivatives, as AdaHessian).
        ValueError: if a radius is negative or not finite, the base cannot work with one gradient per step, or the
            parameters are of FullyShardedDataParallel (FSDP1). If construction fails, the base is as it was.

    Note:
        `step` is for loops that can evaluate a batch on demand, `ascended` for hosts that run forward and backward
        themselves (GradScaler, trainers). Weights are ``w`` whenever neither is running. One ``autocast`` may surround
        both passes: the casts of the weights that it keeps are dropped in between. Parameters without a gradient in the
        clean pass do not climb; those without one in the sharp pass are left alone by the base. If the clean gradient
        is zero nothing moves; if it is not finite nothing moves either, and the gradient handed on is not finite. Step
        hooks fire once per step here and once on the base; global hooks see two optimizers.

        A group with ``maximize=True`` climbs the other way, to where its utility is lower. Steps are counted where the
        base's ``step`` is called, whoever calls it, and once each. After any exception, that of Ctrl-C too, weights are
        ``w``, and the next step is right.

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

    keep_copy: bool = True
    """Whether the memory of the copy of the weights is kept for the next climb.

    If False it is freed when a climb ends, so that the base's step and whatever comes between two steps can have it; a
    climb on large models is slower then. It is a setting of this object and of its copies, and not in the `state_dict`.
    """

    state: defaultdict[Any, dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> SharpnessAware:
        refuse_classes(cls.__name__, [*args, *kwargs.values()])
        return super().__new__(cls)

    def __init__(
        self,
        base: Bases,
        *,
        ascent: Ascent,
        blend: Blend | None = None,
        trigger: Trigger | None = None,
        rho: Radius,
        foreach: bool | None = None,
    ) -> None:
        base = joined(base)
        check_base(base)
        check_radius(rho)
        ascent.check_base(base)
        _check_parts(ascent, blend, Always() if trigger is None else trigger)
        for i, group in enumerate(base.param_groups):
            check_radius(group.get("rho", rho), i)
            refuse_flat(group["params"])
        super().__init__([{}], {})  # what it makes of groups is not needed: ours are the base's
        self.base = base
        self.ascent = ascent
        self.blend = blend
        self.trigger = Always() if trigger is None else trigger
        self.foreach = foreach
        self._radii = Radii(rho)
        self._visits = Visits()
        self._zeroes = False  # whether the closure has been seen to zero gradients
        self._due = _Due()
        self._warned = False
        self._anchor = Anchor()
        without = [group for group in base.param_groups if "rho" not in group]
        try:
            with put_back_if_it_fails(base):
                self._radii.of(base.param_groups)
                # Groups that are added to the base behind our back get a rho as well.
                base.defaults = self.defaults = {**getattr(base, "defaults", {}), "rho": rho}
                watch(stepped_by(base), self)
        except BaseException:
            for group in without:
                group.pop("rho", None)
            raise

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's own group dicts, whoever replaced them last."""
        asking = sys._getframe(1)
        if asking.f_code.co_name == "_unscale_grads_" and asking.f_back.f_code.co_name == "unscale_":  # type: ignore[union-attr]
            self._refuse_unscaling()
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if "base" in vars(self):
            self.base.param_groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; without its own ``"rho"`` it gets the one given at construction."""
        if "base" not in vars(self):
            return
        groups = self.base.param_groups
        check_radius(param_group.get("rho", self._radii.given), len(groups))
        self.base.add_param_group(param_group)
        self._radii.of(self.base.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the base forget gradients, as it does."""
        self.base.zero_grad(**({} if set_to_none else {"set_to_none": False}))

    def __getattr__(self, name: str) -> Any:
        # Bases without a schedule have two kinds of weights; hosts ask whether there is a switch.
        if name in ("train", "eval") and "base" in vars(self):
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def step(
        self, closure: Callable[[], Result] | None = None, *, ascent: Callable[[], Result] | None = None
    ) -> Result:
        """Take one step and return the clean loss.

        Args:
            closure: zeroes the gradients, computes the loss, calls ``backward()`` and returns the loss. It is called
                twice if this step climbs and once otherwise, on the same batch each time.
            ascent: what is called instead in the clean pass, likewise: as a rule the same on a part of the batch
                (`steppe.batches.fraction_of`), so that the climb costs a part of a gradient. Where a step does not
                climb, only ``closure`` counts; if the trigger looks at gradients, ``ascent`` is called before it in
                every step, so that gradients of the same part are compared.

        Returns:
            What the clean pass returned: where a step with ``ascent`` climbs, what that returned. If the ascent needs
            no gradient, and there is no clean pass, what the closure returned at ``w + delta``.

        Raises:
            TypeError: if there is an ``ascent`` but no clean pass.
            ValueError: if parameters that climb share memory.
            RuntimeError: without a closure; if no parameter has a gradient after either pass, or a parameter, as far as
                that can be seen, its old one; if gradients of the clean pass are added to in the sharp one; if a
                GradScaler passes the closure; inside `ascended`. In every case, and if the closure raises or is
                interrupted, the weights are ``w``.
        """
        if self.found_inf is not None:
            self._refuse_grad_scaler()
        if closure is None:
            refuse_foreign_calls(self, "step")
            raise RuntimeError(
                f"{type(self).__name__}.step() needs a closure that zeroes the gradients, computes the loss, calls "
                "backward() and returns the loss. If your framework calls step() without one, give it the base "
                'optimizer and use "with opt.ascended():" around a second backward pass.'
            )
        self._visits.refuse_another()
        recorded = is_recording()
        try:
            loss = self._gradient(closure, ascent)
            self.base.step()
            return loss
        finally:
            record(recorded)

    def _gradient(self, closure: Callable[[], Result], ascent: Callable[[], Result] | None) -> Result:
        """Run the passes of one step, and leave in ``.grad`` what the base should see."""
        if not self.ascent.needs_gradient:
            if ascent is not None:
                raise TypeError(f"{type(self).__name__} climbs without a gradient: leave ascent= out.")
            params = self._params()
            alone = self._decide("") or Stay(params, only=True)
            loss = self._visits.run(alone, partial(new_gradients, params, closure, AFTER_SHARP), params)
            self._await_step()
            return loss
        part = ascent is not None and self._asks_first()
        first = ascent if ascent is not None and part else closure
        loss = self._visits.at_rest(partial(new_gradients, self._params(), first, AFTER_CLEAN))
        # Gradients that are let go of do not show whether the closure zeroes them.
        climb = self._decide(AFTER_CLEAN, lets_go=self._zeroes)
        if climb is not None:
            self._visits.run(climb, partial(self._sharp_pass, closure), climb.releases)
        else:
            if part:
                loss = self._visits.at_rest(partial(new_gradients, self._params(), closure, AFTER_CLEAN))
            self._reuse()
        self._await_step()
        return loss

    def _sharp_pass(self, closure: Callable[[], Any]) -> None:
        params = self._params()
        if self._zeroes:  # once is enough: it is the same code in every step
            new_gradients(params, closure, AFTER_SHARP)
        else:
            self._zeroes = new_gradients(params, partial(zeroing, params, closure), AFTER_SHARP)

    def _asks_first(self) -> bool:
        """Say whether a step with an ascent of its own begins with that."""
        return self.will_climb() or (self.trigger.needs_gradient and bool(self.climbing_groups()))

    def backward(self, closure: Callable[[], Result], scale: Scalar = 1.0) -> Result:
        """Add to ``.grad`` what the base should see for one micro-batch, and return its clean loss.

        It is to this optimizer what ``loss.backward()`` is to a plain one. Several of them before one ``base.step()``
        accumulate, every micro-batch with a climb of its own, which is m-sharpness with the micro-batch's size as m::

            for x, y in micro_batches:
                opt.backward(closure_of(x, y))   # the loss divided by the number of micro-batches
            opt.base.step()
            opt.zero_grad()

        For one climb for all of them let the closure of `step` run over them. `accumulated_step` does either.

        Args:
            closure: computes the loss of the micro-batch, calls ``backward()`` and returns the loss. It must not zero
                gradients. It is called twice if this step climbs and once otherwise.
            scale: what the gradients are multiplied by, as in `ascended`, where the closure calls
                ``scaler.scale(loss).backward()`` and ``scaler.step(opt.base)`` comes last.

        Returns:
            What the closure returned in the clean pass.

        Raises:
            ValueError: if parameters that climb share memory.
            RuntimeError: if the micro-batch gives no parameter a gradient in either pass, or zeroes what was
                accumulated; inside `ascended` or `step`. Then, and if the closure raises, the weights are ``w``; what
                was accumulated is lost if it raises in the sharp pass.
        """
        self._visits.refuse_another()
        params = self._params()
        if not self.ascent.needs_gradient:
            loss = self._visits.run(self._decide("") or Stay([]), partial(adding_up, params, closure))
            self._await_step()
            return loss
        # Where there are processes, gradients may lie in memory that the next backward pass uses.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        held = [p.grad.clone() if distributed and p.grad is not None else p.grad for p in params]
        put(params, [None] * len(params))
        try:
            loss = self._visits.at_rest(partial(evaluate, closure))
            climb = self._decide(AFTER_CLEAN, scale)
        except BaseException:
            put(params, held)
            raise
        if climb is not None:
            waiting: list[Tensor | None] = [None] * len(params)
            if self.blend is None:  # then the sharp pass itself adds to what there is
                held, waiting = waiting, held

            def sharp() -> None:
                put(params, waiting)
                adding_up(params, closure)

            self._visits.run(climb, sharp)
        else:
            self._reuse()
        if not separate([g for g in held if g is not None]):
            held = [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in held]
        for p, g in zip(params, held, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else g.add_(p.grad)
        self._await_step()
        return loss

    def ascended(self, scale: Scalar = 1.0) -> AbstractContextManager[bool]:
        """Climb, run the body at ``w + delta``, come back to ``w``, and leave in ``.grad`` the gradient to hand on.

        For hosts that run forward and backward themselves::

            loss_fn(model(x), y).backward()        # clean gradient
            with opt.ascended():                   # weights are w + delta inside, w outside
                loss_fn(model(x), y).backward()    # sharp gradient, same batch
            opt.base.step()                        # or scaler.step(opt.base)

        The body starts without gradients, as after ``zero_grad()``, and may add up several backward passes. It gets
        True, or False if this step does not climb: then it may be skipped, and whatever it does the clean gradient
        stays. If the ascent needs no gradient there is nothing to do before: the one pass is that of the body, also in
        a step that does not climb. A GradScaler must get the base in every call, in ``scaler.unscale_(opt.base)`` for
        clipping too: it tells optimizers apart, and would divide twice.

        Args:
            scale: what the gradients are multiplied by, as a GradScaler does. Normalised ascents (SAM, ASAM, GSAM) do
                not care. The others (USAM, LightSAM, FriendlySAM) and triggers that look at gradients need it:
                ``scaler.get_scale()``, or without waiting for an accelerator
                ``scaler.scale(torch.ones((), device=device))``.

        Raises:
            ValueError: if parameters that climb share memory.
            RuntimeError: if no parameter has a gradient before or after the body; inside itself or `step`; if the base
                is stepped in the body.
        """

        def decide() -> Climb | Stay:
            climb = self._decide("to climb along. Call loss.backward() before ascended().", scale)
            return climb or Stay(self._params(), only=not self.ascent.needs_gradient)

        def finish(climb: Climb | Stay) -> None:
            need_gradient(self._params(), AFTER_SHARP)
            if isinstance(climb, Stay):
                self._reuse()
            self._await_step()

        return Visit(self._visits, self._params, decide, finish)

    def around_sharp_pass(
        self, context: Callable[[], AbstractContextManager[Any]], *, only: bool = False
    ) -> RemovableHandle:
        """Surround every sharp pass that follows a clean one, of `step`, `backward` and `ascended` alike.

        Args:
            context: makes a context manager, which is entered once the weights are at ``w + delta``, and left before
                they come back. It is not part of the state, nor of copies.
            only: whether to surround sharp passes too that are the only ones of their step, as `MSAM` has. What keeps
                a second pass from leaving traces, such as `frozen_norm_stats`, must not.

        Returns:
            A handle whose ``remove()`` ends it.

        Example:
            >>> import torch
            >>> from steppe import SAM
            >>> from steppe.passes import frozen_norm_stats
            >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
            >>> opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
            >>> handle = opt.around_sharp_pass(lambda: frozen_norm_stats(model))
        """
        handle = RemovableHandle(self._visits.around)
        self._visits.around[handle.id] = context, only
        return handle

    @property
    def needs_scale(self) -> bool:
        """Whether `ascended` and `backward` have to know what gradients are multiplied by."""
        return self.trigger.needs_gradient or not self.ascent.scale_free

    def will_climb(self) -> bool:
        """Say whether the next step climbs, as far as that can be known without its gradient: if not, it does not."""
        climbing = self.climbing_groups()
        due = self.trigger.due(self.state["engine"].get("step", 0))
        if not self.ascent.needs_gradient:  # then all is known
            vectors = (vector_of(p, self.base, self.ascent) for params, _ in climbing for p in params)
            return due and any(vector is not None for vector in vectors)
        return due and bool(climbing)

    def _params(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    def climbing_groups(self) -> list[tuple[list[Tensor], Scalar]]:
        """Return the parameters of groups that climb, with their radii: numbers, or tensors where nobody may look."""
        return [(params, rho) for params, rho in self._radii.of(self.base.param_groups) if climbs(rho)]

    def _decide(self, when: str, scale: Scalar = 1.0, *, lets_go: bool = True) -> Climb | None:
        """Prepare a climb, or return None if this step does not climb."""
        self._look_for_a_step()
        self._due.weight, self._due.begun = None, False
        blends = self.blend is not None and self.blend.needs_clean
        found = climbers(self.base, self._radii, self.ascent, self.trigger.stretch, blends=blends)
        if not found.owners:
            if self.ascent.needs_gradient:
                need_gradient(self._params(), when)
            return None
        refuse_flat(found.owners[:1])  # in case they became flat after they came here
        self._warn_of_half(found.owners)
        slope = self._slope(
            found.owners, found.vectors, scale=scale if self.needs_scale else 1.0, weights=found.weights or None
        )
        if not self.trigger.fires(slope):
            return None
        return Climb(
            slope,
            found.spans,
            found.still,
            self.ascent,
            self.blend,
            self._anchor,
            keep=self.keep_copy,
            held=[held and lets_go for held in found.held],
        )

    def _warn_of_half(self, owners: list[Tensor]) -> None:
        """Say once that weights of few digits swallow most of a climb."""
        if self._warned:
            return
        half = next((p for p in owners if p.dtype in HALF), None)
        self._warned = True
        if half is not None:
            warnings.warn(
                f"{type(self).__name__} climbs with weights in half precision ({half.dtype}), which swallow what is "
                "less than half of their spacing, and so a part of a climb: see docs/stacks.md. Keep them in float32 "
                "and let torch.autocast make the half-precision copies.",
                stacklevel=5,
            )

    def _slope(self, owners: list[Tensor], vectors: list[Tensor], **options: Any) -> Slope:
        """Return what ``owners`` climb along."""
        step = self.state["engine"].get("step", 0)
        ops = Ops.choose(owners, self.foreach, vectors)
        return Slope(owners, vectors, self.state, ops, guarded=True, step=step, **options)

    def _reuse(self) -> None:
        """Let a blend that remembers earlier climbs change the gradient of a step that does not climb."""
        if self.blend is None or not self.blend.memories or not self.climbing_groups():
            return
        name = self.blend.memories[0]
        groups = self._radii.of(self.base.param_groups)
        climbing, still = (
            [(p, rho) for params, rho in groups if climbs(rho) is up for p in params if p.grad is not None]
            for up in (True, False)
        )
        climbing, still = (
            [(p, rho) for p, rho in some if name in self.state.get(p, _NOTHING)] for some in (climbing, still)
        )
        if climbing:
            owners = [p for p, _ in climbing + still]
            weights = [(rho > 0).float() if isinstance(rho, Tensor) else None for _, rho in climbing]
            with torch.no_grad():
                for p in owners:
                    p.grad = None if p.grad is None else like(p.grad, p)
                alone(owners)
                grads = [p.grad for p in owners if p.grad is not None]
                slope = self._slope(
                    owners,
                    grads,
                    climbing=len(climbing) if still else None,
                    weights=weights if any(weight is not None for weight in weights) else None,
                )
                self.blend.between_(slope)
                slope.write_back()

    def _before_base_step(self) -> None:
        self._visits.refuse_a_step()
        # What is broken off now was no step that nobody saw.
        if not self._makes_state():
            self._due.weight, self._due.begun = None, self._due.begun or self._due.weight is not None

    def _after_base_step(self, *, surely: bool) -> None:
        if self._makes_state():
            if self._due.weight is not None:
                self._await_step()  # it has written to the weights what they are
            return
        if not self._due.begun and self._due.weight is None and (not surely or self._stands()):
            return
        self._due.weight, self._due.begun, self._due.seen = None, False, self._due.seen or surely
        step = self.state["engine"].get("step", 0) + 1
        # A GradScaler skips the step of most bases, but a fused one it tells what it found, and that leaves all as it
        # is by itself. Then, on an accelerator, the count is a tensor, for which only a trigger that asks has to wait.
        found_inf: Tensor | None = getattr(stepped_by(self.base), "found_inf", None)
        self.state["engine"]["step"] = step if found_inf is None else on_host(step - (found_inf != 0).long())
        # A scheduler that is attached here, not to the base, asks whether a step came before its own.
        self._opt_called = True

    def _stands(self) -> bool:
        """Say whether every learning rate is 0: then a step nobody prepared is how others make a base's state."""
        return all("lr" in group and group["lr"] == 0 for group in self.base.param_groups)

    def _makes_state(self) -> bool:
        """Say whether a checkpoint steps the base to see what state there is, whatever has been prepared."""
        return self._stands() and called_by_checkpoint()

    def _await_step(self) -> None:
        p = next((p for p in self._params() if p.grad is not None), None)
        self._due.weight = None if p is None else (p, local(p)._version)

    def _look_for_a_step(self) -> None:
        """Count a step that was taken where it could not be seen."""
        weight = None if self._due.seen else self._due.weight
        if weight is not None and local(weight[0])._version != weight[1]:
            name = type(self).__name__
            warnings.warn(
                f"The weights have changed after {name} had prepared a gradient, but no step of its base was seen; it "
                "is counted as one. Step opt.base itself, so that steps are counted for sure.",
                stacklevel=4,
            )
            self._after_base_step(surely=False)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming bit for bit needs: our state, and the base's under ``"base"``.

        It holds tensors and plain Python values only, so ``torch.load(..., weights_only=True)`` reads it.

        Raises:
            TypeError: if ``torch.distributed.checkpoint`` asks, which has no place for it; see
                `steppe.integrations.distributed.SharpnessAwareState`.
        """
        refuse_foreign_calls(self, "state_dict")
        by_hand = self._radii.by_hand(self.base.param_groups)
        if by_hand or "by_hand" in self.state.get("engine", _NOTHING):
            self.state["engine"]["by_hand"] = by_hand
        with_base = self.register_state_dict_post_hook(
            lambda _, found: {**found, "base": self.base.state_dict()},
            prepend=True,  # those of users see all of it
        )
        try:
            return super().state_dict()
        finally:
            with_base.remove()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, or, with a warning, the state of a plain base optimizer.

        Raises:
            ValueError: if the parameter groups do not match, or if it is the state of another package's SAM.

        If it raises, nothing is changed.
        """
        if "base" not in state_dict:
            refuse_others(state_dict)
            self._load_plain(state_dict)
            return
        mine = self.state
        found: dict[str, Any] = {}

        def base_first(_: Optimizer, state: dict[str, Any]) -> None:
            found.update(state)
            self.base.load_state_dict(state["base"])

        hooks = [
            self.register_load_state_dict_pre_hook(base_first),  # after those of users
            self.register_load_state_dict_post_hook(lambda _: load_uncast(self, found), prepend=True),
        ]
        try:
            with put_back_if_it_fails(self.base):
                super().load_state_dict(dict(state_dict))
                by_hand = tuple(self.state["engine"].get("by_hand", ()))
        except BaseException:
            self.state = mine
            raise
        finally:
            for hook in hooks:
                hook.remove()
        self._radii.loaded(self.base.param_groups, by_hand)
        self._due.weight = None

    def _load_plain(self, state_dict: Mapping[str, Any]) -> None:
        radii = [group["rho"] for group in self.base.param_groups]
        with put_back_if_it_fails(self.base):
            self.base.load_state_dict(dict(state_dict))
        for group, rho in zip(self.base.param_groups, radii, strict=True):
            group["rho"] = rho
        self.state.clear()
        self._due.weight = None
        warnings.warn(
            f"This is the state of a plain optimizer, not of {type(self).__name__}: the base is loaded, every rho "
            "stays as it is, and counters and accumulators start anew.",
            stacklevel=3,
        )

    def __repr__(self) -> str:
        following = self._radii.following(self.base.param_groups)
        radii = ", ".join(
            f"{group['rho']} (follows lr)" if follows else f"{group['rho']}"
            for group, follows in zip(self.base.param_groups, following, strict=True)
        )
        lines = [
            f"ascent: {self.ascent}",
            f"blend: {self.blend}" if self.blend is not None else "",
            f"trigger: {self.trigger}",
            f"rho: {radii}",
            f"base: {self.base}",
        ]
        return (
            "\n    ".join([f"{type(self).__name__} (", *(line.replace("\n", "\n    ") for line in lines if line)])
            + "\n)"
        )

    def __getstate__(self) -> dict[str, Any]:
        parts = ("base", "ascent", "blend", "trigger")
        names = ("defaults", "state", *parts, "foreach", "keep_copy", "_radii", "_zeroes", "_warned")
        return {name: getattr(self, name) for name in names}

    def __copy__(self) -> SharpnessAware:
        other = object.__new__(type(self))
        vars(other).update(vars(self))  # all that is known of the weights, too, which are the same
        watch(stepped_by(self.base), other)
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.load_state_dict ends here with groups of its own making; ours are the base's.
        self._anchor = Anchor()
        super().__setstate__({name: value for name, value in state.items() if name != "param_groups"})
        if "base" in state:  # a copy, whose weights are its own: wherever they are, nobody will move them
            self._visits, self._due = Visits(), _Due()
            watch(stepped_by(self.base), self)

    def _refuse_grad_scaler(self) -> None:
        # GradScaler takes its marks back only after a step that returns.
        vars(self).pop("grad_scale", None)
        vars(self).pop("found_inf", None)
        raise RuntimeError(
            "The gradients are multiplied by a GradScaler, which torch does not combine with closures. Use "
            '"with opt.ascended():" around a second scaler.scale(loss).backward(), then scaler.step(opt.base).'
        )

    def _refuse_unscaling(self) -> None:
        raise RuntimeError(
            f"scaler.unscale_() got the {type(self).__name__}, but scaler.step() must get its base, and would divide "
            "the gradients once more: it tells optimizers apart. Call scaler.unscale_(opt.base)."
        )


def _check_parts(ascent: Ascent, blend: Blend | None, trigger: Trigger) -> None:
    for part in (blend, trigger if trigger.needs_gradient else None):
        if not ascent.needs_gradient and part is not None:
            raise ValueError(
                f"{type(part).__name__} looks at the clean gradient, but {type(ascent).__name__} climbs without one. "
                "Leave it out, or take another ascent."
            )
