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

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ._checks import check_base, refuse_foreign_calls
from ._climbers import check_parts, climbers, vectors_of, warn_of_half, without_clean
from ._closures import (
    AFTER_CLEAN,
    AFTER_SHARP,
    adding_up,
    code_of,
    evaluate,
    need_gradient,
    new_gradients,
    set_grads,
    zeroing,
)
from ._memory import separate
from ._radii import climbs
from ._recording import is_recording, record
from ._scalars import Scalar
from ._shards import refuse_flat
from ._tensors import Ops
from ._visits import Visit, Visits
from ._wrapping import Wrapping
from .angle import Angle
from .ascents import Ascent, Slope
from .blends import Blend
from .climb import Anchor, Climb, Stay, reuse_
from .schedules import Radius, check_radius
from .together import Bases, joined
from .triggers import Always, Trigger

Result = TypeVar("Result")


class SharpnessAware(Wrapping):
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
        rho: radius of the climb, >= 0, a `ProportionalToLR` or an `Angle`. A group with its own ``"rho"`` keeps it;
            groups with ``rho=0`` do not climb and do not count in any norm.
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
        base's ``step`` is called, whoever calls it, and once each; not one at a learning rate of 0 that no gradient was
        prepared for, by which others make a base's state. A step that nobody sees is counted with a warning, unless
        others were seen before: then what changes weights is taken for clipping or the like. After any exception, that
        of Ctrl-C too, weights are ``w``, and the next step is right; what climbs remember of earlier gradients, where
        they do, may have seen that of the step that was broken off.

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
        radii = [rho, *(group["rho"] for group in base.param_groups if "rho" in group)]
        check_parts(ascent, blend, Always() if trigger is None else trigger, radii)
        for i, group in enumerate(base.param_groups):
            check_radius(group.get("rho", rho), i)
            refuse_flat(group["params"])
        self.ascent = ascent
        self.blend = blend
        self.trigger = Always() if trigger is None else trigger
        self.foreach = foreach
        self._visits = Visits()
        self._anchor = Anchor()
        self._zeroes: object = None  # the code of the closure that has been seen to zero gradients
        self._warned = False
        super().__init__(base, rho)

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
        params = self._params()
        if not self.ascent.needs_gradient:
            if ascent is not None:
                raise TypeError(f"{type(self).__name__} climbs without a gradient: leave ascent= out.")
            alone = self._decide("") or Stay(params, only=True)
            loss = self._visits.run(alone, partial(new_gradients, params, closure, AFTER_SHARP), params)
            self._due.prepared(params)
            return loss
        ascent = None if self.looks_whole() else ascent
        part = ascent is not None and self._asks_first()
        first = ascent if ascent is not None and part else closure
        loss = self._visits.at_rest(partial(new_gradients, params, first, AFTER_CLEAN))
        # Gradients that are let go of do not show whether the closure zeroes them.
        climb = self._decide(AFTER_CLEAN, lets_go=self._zeroes is code_of(closure), looks=not part)
        if climb is not None:
            self._visits.run(climb, partial(self._sharp_pass, params, closure), climb.releases)
            self._turn(climb)
        else:
            if part:
                loss = self._visits.at_rest(partial(new_gradients, params, closure, AFTER_CLEAN))
            self._reuse()
        self._due.prepared(params)
        return loss

    def _sharp_pass(self, params: list[Tensor], closure: Callable[[], Any]) -> None:
        code = code_of(closure)
        if self._zeroes is code:  # once is enough
            new_gradients(params, closure, AFTER_SHARP)
        elif new_gradients(params, partial(zeroing, params, closure), AFTER_SHARP):
            self._zeroes = code

    def _asks_first(self) -> bool:
        """Say whether a step with an ascent of its own begins with that."""
        return self.will_climb() or (self.trigger.needs_gradient and bool(self.climbing_groups()))

    def backward(self, closure: Callable[[], Result], scale: Scalar = 1.0, *, part: bool = False) -> Result:
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
                gradients, unless there is a blend: then each of its passes begins without any. It is called twice if
                this step climbs and once otherwise.
            scale: what the gradients are multiplied by, as in `ascended`, where the closure calls
                ``scaler.scale(loss).backward()`` and ``scaler.step(opt.base)`` comes last.
            part: whether the clean pass is on a part of the micro-batch, as in `ascended`.

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
            self._due.prepared(self._params())
            return loss
        # Where there are processes, gradients may lie in memory that the next backward pass uses.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        held = [p.grad.clone() if distributed and p.grad is not None else p.grad for p in params]
        set_grads(params, [None] * len(params))
        try:
            loss = self._visits.at_rest(partial(evaluate, closure))
            climb = self._decide(AFTER_CLEAN, scale, looks=not part)
        except BaseException:
            set_grads(params, held)
            raise
        if climb is not None:
            waiting: list[Tensor | None] = [None] * len(params)
            if not self.compares:  # then the sharp pass itself adds to what there is
                held, waiting = waiting, held

            def sharp() -> None:
                set_grads(params, waiting)
                adding_up(params, closure)

            self._visits.run(climb, sharp)
            self._turn(climb)
        else:
            self._reuse()
        if not separate([g for g in held if g is not None]):
            held = [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in held]
        for p, g in zip(params, held, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else g.add_(p.grad)
        self._due.prepared(self._params())
        return loss

    def ascended(self, scale: Scalar = 1.0, *, part: bool = False) -> AbstractContextManager[bool]:
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
            part: whether the clean gradient is that of a part of the batch, which says little of the angle to the sharp
                one. Ask `looks_whole` before such a pass.

        Raises:
            ValueError: if parameters that climb share memory.
            RuntimeError: if no parameter has a gradient before or after the body; inside itself or `step`; if the base
                is stepped in the body.
        """

        def decide() -> Climb | Stay:
            climb = self._decide("to climb along. Call loss.backward() before ascended().", scale, looks=not part)
            return climb or Stay(self._params(), only=not self.ascent.needs_gradient)

        def finish(climb: Climb | Stay) -> None:
            need_gradient(self._params(), AFTER_SHARP)
            if isinstance(climb, Stay):
                self._reuse()
            else:
                self._turn(climb)
            self._due.prepared(self._params())

        return Visit(self._visits, self._params, decide, finish)

    def around_sharp_pass(
        self, context: Callable[[], AbstractContextManager[Any]], *, also_single: bool = False
    ) -> RemovableHandle:
        """Surround every sharp pass that follows a clean one, of `step`, `backward` and `ascended` alike.

        Args:
            context: makes a context manager, which is entered once the weights are at ``w + delta``, and left before
                they come back. It is not part of the state, nor of copies.
            also_single: whether to surround sharp passes too that are the only ones of their step, as `MSAM` has. What
                keeps a second pass from leaving traces, such as `frozen_norm_stats`, must not.

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
        self._visits.around[handle.id] = context, also_single
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
            vector_of = vectors_of(self.base, self.ascent)
            return due and any(vector_of(p) is not None for params, _ in climbing for p in params)
        return due and any(p.requires_grad for params, _ in climbing for p in params)

    def climbing_groups(self) -> list[tuple[list[Tensor], Scalar]]:
        """Return the parameters of groups that climb, with their radii: numbers, or tensors where nobody may look."""
        return [(params, rho) for params, rho in self._radii.of(self.base.param_groups) if climbs(rho)]

    def _decide(self, when: str, scale: Scalar = 1.0, *, lets_go: bool = True, looks: bool = True) -> Climb | None:
        """Prepare a climb, or return None if this step does not climb."""
        self._look_for_a_step()
        blends = self.blend is not None and self.blend.needs_clean
        looks = looks and self.follows_angle
        if looks and not self.ascent.needs_gradient:
            raise ValueError(without_clean(Angle(), self.ascent))
        found = climbers(self.base, self._radii, self.ascent, self.trigger.stretch, blends=blends, looks=looks)
        if not found.owners:
            if self.ascent.needs_gradient:
                need_gradient(self._params(), when)
            return None
        refuse_flat(found.owners[:1])  # in case they became flat after they came here
        if not self._warned:
            self._warned = True
            warn_of_half(found.owners, type(self).__name__)
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
            looks=looks,
        )

    @property
    def compares(self) -> bool:
        """Whether the clean gradient is looked at once more when the sharp one is there."""
        return self.blend is not None or self.follows_angle

    @property
    def follows_angle(self) -> bool:
        """Whether a radius is an `Angle`."""
        return bool(self._angles())

    def looks_whole(self) -> bool:
        """Say whether the next step is to climb along the whole batch, though others climb along a part of it.

        So it is now and then where the radius is an `Angle`, which a part of the batch does not tell. `step` sees to it
        by itself.
        """
        step = self.state["engine"].get("step", 0)
        return any(step % angle.whole == 0 for angle in self._angles())

    def _angles(self) -> list[Angle]:
        return self._radii.angles(self.base.param_groups)

    def _turn(self, climb: Climb) -> None:
        """Let radii follow the angle that a climb has found."""
        if climb.cosine is not None:
            self._radii.turn(self.base.param_groups, climb.cosine)

    def _slope(self, owners: list[Tensor], vectors: list[Tensor], **options: Any) -> Slope:
        """Return what ``owners`` climb along."""
        step = self.state["engine"].get("step", 0)
        ops = Ops.choose(owners, self.foreach, vectors)
        return Slope(owners, vectors, self.state, ops, guarded=True, step=step, **options)

    def _reuse(self) -> None:
        """Let a blend that remembers earlier climbs change the gradient of a step that does not climb."""
        if self.blend is not None and self.blend.memories and self.climbing_groups():
            reuse_(self.blend, self._radii.of(self.base.param_groups), self.state, self._slope)

    def _refuse_a_step(self) -> None:
        self._visits.refuse_a_step()

    def _before_base_step(self) -> None:
        self._due.begin(self.base)

    def __repr__(self) -> str:
        radii = ", ".join(self._radii.words(self.base.param_groups))
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
        names = ("ascent", "blend", "trigger", "foreach", "keep_copy", "_warned")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._anchor, self._zeroes = Anchor(), None
        if "base" in state:  # a copy, whose weights are its own: wherever they are, nobody will move them
            self._visits = Visits()
        super().__setstate__(state)

    def _refuse_grad_scaler(self) -> None:
        # GradScaler takes its marks back only after a step that returns.
        vars(self).pop("grad_scale", None)
        vars(self).pop("found_inf", None)
        raise RuntimeError(
            "The gradients are multiplied by a GradScaler, which torch does not combine with closures. Use "
            '"with opt.ascended():" around a second scaler.scale(loss).backward(), then scaler.step(opt.base).'
        )
