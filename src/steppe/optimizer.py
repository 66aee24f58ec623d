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

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._checks import check_base, refuse_others
from ._shards import like, local, refuse_flat
from ._tensors import Ops, Scalar, on_host
from .ascents import Ascent, Slope
from .blends import Blend
from .climb import Anchor, Climb, Stay
from .descent import load_uncast
from .schedules import ProportionalToLR, Radius, check_radius
from .triggers import Always, Trigger

_NOTHING: Mapping[str, Any] = {}
_AFTER_SHARP = "after the sharp pass. Did it call loss.backward()?"


class SharpnessAware(Optimizer):
    """A torch optimizer that gives its base the gradient a sharpness-aware method asks for.

    Every method of this library is a `SharpnessAware` with its parts chosen; use it directly to combine parts that
    no paper has combined yet.

    A climbing step costs two gradients and one copy of the parameters that climb, whose memory is kept for the next
    step unless `keep_copy` is False (another copy, not kept, if the blend needs the clean gradient). Where it does not
    climb (every ``rho`` is 0, or the trigger says no), a step is exactly the base's own, at the price of one gradient.

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
        ValueError: if a radius is negative or not finite, the base cannot work with one gradient per step, or the
            parameters are of FullyShardedDataParallel (FSDP1).

    Note:
        `step` is for loops that can evaluate a batch on demand, `ascended` for hosts that run forward and backward
        themselves (GradScaler, trainers). Weights are ``w`` whenever neither is running. One ``autocast`` may surround
        both passes: the casts of the weights that it keeps are dropped in between. Parameters without a gradient in the
        clean pass do not climb; those without one in the sharp pass are left alone by the base. If the clean gradient
        is zero nothing moves; if it is not finite nothing moves either, and the gradient handed on is not finite. Step
        hooks fire once per step here and once on the base; global hooks see two optimizers.

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
        check_base(base)
        check_radius(rho)
        ascent.check_base(base)
        self.base = base
        self.ascent = ascent
        self.blend = blend
        self.trigger = Always() if trigger is None else trigger
        _check_parts(self.ascent, self.blend, self.trigger)
        self.foreach = foreach
        self._rho = rho
        self._schedules: list[ProportionalToLR | None] = []
        self._inside = False
        self._anchor = Anchor()
        self._around_sharp: dict[int, tuple[Callable[[], AbstractContextManager[Any]], bool]] = OrderedDict()
        groups, defaults = base.param_groups, base.defaults
        for i, group in enumerate(groups):
            check_radius(group.get("rho", rho), i)
            refuse_flat(group["params"])
        # Groups that are added to the base behind our back get a rho as well.
        base.defaults = {**defaults, "rho": 0.0 if isinstance(rho, ProportionalToLR) else rho}
        try:
            super().__init__(groups, base.defaults)
        except BaseException:
            base.param_groups, base.defaults = groups, defaults
            raise
        self._follow()

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

    def step(self, closure: Callable[[], Any] | None = None, *, ascent: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the clean loss.

        Args:
            closure: zeroes the gradients, computes the loss, calls ``backward()`` and returns the loss. It is called
                twice if this step climbs and once otherwise, on the same batch each time.
            ascent: what is called instead in the clean pass, likewise: as a rule the same on a part of the batch
                (`steppe.batches.fraction_of`), so that the climb costs a part of a gradient. Where a step does not
                climb, only ``closure`` counts; ``ascent`` is called before it if the trigger looks at gradients.

        Returns:
            What the clean pass returned: where a step with ``ascent`` climbs, what that returned. If the ascent needs
            no gradient, and there is no clean pass, what the closure returned at ``w + delta``.

        Raises:
            TypeError: if there is an ``ascent`` but no clean pass.
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
        if not self.ascent.needs_gradient:
            if ascent is not None:
                raise TypeError(f"{type(self).__name__} climbs without a gradient: leave ascent= out.")
            climb = self._decide("")
            params = [p for group in self.param_groups for p in group["params"]]
            loss = self._sharp(climb or Stay(params, only=True), closure, params)
            self.base.step()
            return loss
        part = ascent is not None and self.will_climb()
        loss = _evaluate(ascent if ascent is not None and part else closure)
        climb = self._decide("after the closure. Did it call loss.backward()?")
        if climb is not None:
            self._sharp(climb, closure)
        else:
            if part:
                loss = _evaluate(closure)
                self._need_gradient("after the closure. Did it call loss.backward()?")
            self._reuse()
        self.base.step()
        return loss

    def backward(self, closure: Callable[[], Any], scale: Scalar = 1.0) -> Any:
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
            RuntimeError: if the micro-batch gives no parameter a gradient in either pass; inside `ascended` or `step`.
                Then, and if the closure raises, the weights are ``w``; what was accumulated is lost if it raises in
                the sharp pass.
        """
        self._refuse_nesting()
        params = [p for group in self.param_groups for p in group["params"]]
        if not self.ascent.needs_gradient:
            with self._inside_of(self._decide("") or nullcontext()):
                return self._add_up(params, closure)
        # Where there are processes, gradients may lie in memory that the next backward pass uses.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        held = [p.grad.clone() if distributed and p.grad is not None else p.grad for p in params]
        _put(params, [None] * len(params))
        try:
            loss = _evaluate(closure)
            climb = self._decide("after the closure. Did it call loss.backward()?", scale)
        except BaseException:
            _put(params, held)
            raise
        if climb is not None:
            with self._inside_of(climb):
                if self.blend is None:
                    _put(params, held)
                    held = [None] * len(params)
                else:
                    _put(params, [None] * len(params))
                self._add_up(params, closure)
        else:
            self._reuse()
        for p, g in zip(params, held, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else g.add_(p.grad)
        return loss

    @staticmethod
    def _add_up(params: list[Tensor], closure: Callable[[], Any]) -> Any:
        before = _versions(params)
        loss = _evaluate(closure)
        if all(g is h and v == u for (g, v), (h, u) in zip(before, _versions(params), strict=True)):
            raise RuntimeError(f"No parameter has a gradient {_AFTER_SHARP}")
        return loss

    @contextmanager
    def ascended(self, scale: Scalar = 1.0) -> Iterator[bool]:
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
            RuntimeError: if no parameter has a gradient before or after the body; inside itself or `step`.
        """
        self._refuse_nesting()
        climb = self._decide("to climb along. Call loss.backward() before ascended().", scale)
        params = [p for group in self.param_groups for p in group["params"]]
        with self._inside_of(climb or Stay(params, only=not self.ascent.needs_gradient)):
            _put(params, [None] * len(params))
            yield climb is not None
            if climb is not None:
                self._need_gradient(_AFTER_SHARP)
        if climb is None:
            self._need_gradient(_AFTER_SHARP)
            self._reuse()

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
        handle = RemovableHandle(self._around_sharp)
        self._around_sharp[handle.id] = context, only
        return handle

    def _sharp(self, climb: Climb | Stay, closure: Callable[[], Any], params: Sequence[Tensor] = ()) -> Any:
        """Evaluate ``closure`` inside of ``climb``, where ``params`` begin without gradients."""
        # What `_inside_of` does, without the cost of a generator in every step.
        if self._around_sharp:
            with self._inside_of(climb):
                return self._pass(closure, params)
        self._inside = True
        try:
            with climb:
                return self._pass(closure, params)
        finally:
            self._inside = False

    def _pass(self, closure: Callable[[], Any], params: Sequence[Tensor]) -> Any:
        for p in params:
            p.grad = None
        loss = _evaluate(closure)
        self._need_gradient(_AFTER_SHARP)
        return loss

    @contextmanager
    def _inside_of(self, climb: AbstractContextManager[None]) -> Iterator[None]:
        self._inside = True
        try:
            with climb:
                if not self._around_sharp or not isinstance(climb, Climb):
                    yield
                    return
                with ExitStack() as stack:
                    for context, only in self._around_sharp.values():
                        if only or self.ascent.needs_gradient:
                            stack.enter_context(context())
                    yield
        finally:
            self._inside = False

    @property
    def needs_scale(self) -> bool:
        """Whether `ascended` and `backward` have to know what gradients are multiplied by."""
        return self.trigger.needs_gradient or not self.ascent.scale_free

    def will_climb(self) -> bool:
        """Say whether the next step climbs, as far as that can be known without its gradient: if not, it does not."""
        climbing = self._groups()
        due = self.trigger.due(self.state["engine"].get("step", 0))
        if not self.ascent.needs_gradient:  # then all is known
            return due and any(self._vector(p) is not None for params, _ in climbing for p in params)
        return due and bool(climbing)

    def _groups(self) -> list[tuple[list[Tensor], Scalar]]:
        """Return the parameters of the groups that climb, with their radii."""
        radii = [(group["params"], self._radius(i, group)) for i, group in enumerate(self.param_groups)]
        return [(params, rho) for params, rho in radii if isinstance(rho, Tensor) or rho > 0]

    def _decide(self, when: str, scale: Scalar = 1.0) -> Climb | None:
        """Prepare a climb, or return None if this step does not climb."""
        owners: list[Tensor] = []
        vectors: list[Tensor] = []
        spans: list[tuple[int, int, Scalar]] = []
        stretch = self.trigger.stretch
        for params, rho in self._groups():
            start = len(owners)
            for p in params:
                vector = self._vector(p)
                if vector is not None:
                    owners.append(p)
                    vectors.append(vector)
            spans.append((start, len(owners), rho if stretch == 1.0 else rho * stretch))
        if not owners:
            if self.ascent.needs_gradient:
                self._need_gradient(when)
            return None
        refuse_flat(owners[:1])  # in case they became flat after they came here
        slope = self._slope(owners, vectors, scale if self.needs_scale else 1.0)
        if not self.trigger.fires(slope):
            return None
        return Climb(slope, spans, self.ascent, self.blend, self._anchor, keep=self.keep_copy)

    def _vector(self, p: Tensor) -> Tensor | None:
        return p.grad if self.ascent.needs_gradient else self.ascent.vector(p, self.base.state.get(p, _NOTHING))

    def _slope(self, owners: list[Tensor], vectors: list[Tensor], scale: Scalar = 1.0) -> Slope:
        """Return what ``owners`` climb along."""
        step = self.state["engine"].get("step", 0)
        ops = Ops.choose(owners, self.foreach)
        return Slope(owners, vectors, self.state, ops, guarded=True, scale=scale, step=step)

    def _reuse(self) -> None:
        """Let a blend that remembers earlier climbs change the gradient of a step that does not climb."""
        if self.blend is None or not self.blend.memories:
            return
        name = self.blend.memories[0]
        climbing = [p for params, _ in self._groups() for p in params if p.grad is not None]
        owners = [p for p in climbing if name in self.state.get(p, _NOTHING)]
        if owners:
            with torch.no_grad():
                for p in owners:
                    p.grad = None if p.grad is None else like(p.grad, p)
                self.blend.between_(self._slope(owners, [p.grad for p in owners if p.grad is not None]))

    def _follow(self) -> None:
        """Count the steps of the base, whoever asks for them: this optimizer, a GradScaler, a trainer."""
        count = WeakMethod(self._count)  # a cycle of references would keep the copy of the weights alive

        def stepped(*hooked: object) -> None:
            alive = count()
            if alive is not None:
                alive()

        self.base.register_step_post_hook(stepped)

    def _count(self) -> None:
        step = self.state["engine"].get("step", 0) + 1
        # A GradScaler skips the step of most bases, but a fused one it tells what it found, and that leaves all as it
        # is by itself. Then, on an accelerator, the count is a tensor, for which only a trigger that asks has to wait.
        found_inf: Tensor | None = getattr(self.base, "found_inf", None)
        self.state["engine"]["step"] = step if found_inf is None else on_host(step - (found_inf != 0).long())
        # A scheduler that is attached here, not to the base, asks whether a step came before its own.
        self._opt_called = True

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
            ValueError: if the parameter groups do not match, or if it is the state of another package's SAM; nothing
                is changed then.
        """
        if "base" not in state_dict:
            refuse_others(state_dict)
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
        parts = ("base", "ascent", "blend", "trigger")
        names = ("defaults", "state", *parts, "foreach", "keep_copy", "_rho", "_schedules", "_inside")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.load_state_dict ends here with groups of its own making; ours are the base's.
        self._anchor = Anchor()
        super().__setstate__({name: value for name, value in state.items() if name != "param_groups"})
        if "base" in state:  # a copy, whose base has no hooks yet
            self._around_sharp = OrderedDict()
            self._follow()

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


def _check_parts(ascent: Ascent, blend: Blend | None, trigger: Trigger) -> None:
    for part in (blend, trigger if trigger.needs_gradient else None):
        if not ascent.needs_gradient and part is not None:
            raise ValueError(
                f"{type(part).__name__} looks at the clean gradient, but {type(ascent).__name__} climbs without one. "
                "Leave it out, or take another ascent."
            )


def _put(params: list[Tensor], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


def _versions(params: list[Tensor]) -> list[tuple[Tensor | None, int]]:
    """Return the gradients with how often each has been written to."""
    return [(g, 0 if g is None else local(g)._version) for g in (p.grad for p in params)]


def _evaluate(closure: Callable[[], Any]) -> Any:
    if torch.is_grad_enabled():
        return closure()
    with torch.enable_grad():
        return closure()
