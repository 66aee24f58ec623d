"""One step out of several micro-batches, on one process or, with DDP and FSDP2, on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from ._closures import keeping
from ._scalars import Scalar
from ._shards import resharded
from .climb import marked
from .optimizer import SharpnessAware

Batch = TypeVar("Batch")
Loss = Tensor | float | None


def accumulated_step(
    opt: SharpnessAware,
    micro_batches: Sequence[Batch],
    backward: Callable[[Batch], Loss],
    *,
    climb: Literal["replay", "micro"] = "replay",
    model: nn.Module | None = None,
    replicas: Literal["global", "own"] = "global",
    ascent: Callable[[Batch], Loss] | None = None,
    scale: Scalar = 1.0,
    step: Callable[[], object] | None = None,
) -> Tensor | None:
    """Take one step on several micro-batches and return the sum of their clean losses.

    It is for several batches that a loader hands out one by one, for climbs of each of them or of each process, and for
    FSDP2. For one batch, cut into parts or not, `train_step` is shorter.

    With ``w + delta(B)`` for where a batch ``B`` climbs to, the base gets

    ===========  ===========================================================  =====================
    ``climb``    gradient                                                     which is
    ===========  ===========================================================  =====================
    ``replay``   ``sum_i grad L_i(w + delta(B_1 + ... + B_k))``               SAM on the whole batch
    ``micro``    ``sum_i grad L_i(w + delta(B_i))``                           m-SAM, m = the micro-batch
    ===========  ===========================================================  =====================

    On several processes ``replicas="global"`` climbs along the gradient of all of them, and ``"own"`` lets each climb
    along its own, as in SAM's paper, which saves all traffic in clean passes: again m-SAM, m = what one process holds.

    Args:
        opt: its gradients are zeroed before.
        micro_batches: whatever ``backward`` takes, at least one; all of them are kept until the step is done.
        backward: computes the loss of a micro-batch, calls ``backward()`` and returns the loss, without zeroing. Divide
            it, by ``len(micro_batches)`` if it is a mean, so that the sum over micro-batches is the loss of the step.
        climb: where to climb, see above.
        model: the DDP or FSDP2 model, so that gradients are exchanged once per pass and not once per micro-batch.
            FSDP2 keeps whole gradients meanwhile. None exchanges them as the model does by itself.
        replicas: see above; ``"own"`` needs ``model``, in DDP.
        ascent: what is called instead of ``backward`` in clean passes of a step that climbs, likewise: as a rule the
            same on a part of the micro-batch, as in ``ascent=lambda batch: backward(fraction_of(batch, 0.1))``, so that
            climbs cost a part of a gradient.
        scale: what the gradients are multiplied by, as in `SharpnessAware.ascended`.
        step: takes the step, instead of ``opt.base.step``. With a GradScaler let ``backward`` call
            ``scaler.scale(loss).backward()``, and give ``scale=scaler.get_scale()`` and
            ``step=lambda: scaler.step(opt.base)``.

    Returns:
        The sum of what ``backward``, or ``ascent``, returned in clean passes; where there are none, in the only ones.
        None if that was None.

    Raises:
        TypeError: if ``opt`` is not sharpness-aware; if ``micro_batches`` is not a sequence: a loader shuffles anew,
            and a generator runs dry; if there is an ``ascent``, but no clean pass.
        ValueError: without micro-batches; with an ``ascent`` if the trigger looks at gradients; for ``"own"`` if the
            model is not in DDP, if whether to climb depends on gradients, which are not the same everywhere, or if
            climbs remember them, as those of `LightSAM` do, or a radius is an `Angle`.
        RuntimeError: if no parameter has a gradient after a pass, or ``backward`` zeroes those of other micro-batches.
            With ``"own"``, a process that finds none to climb along stays where it is; the others do not wait for it.

    Cost:
        2 gradients per micro-batch, less with ``ascent``. Exchanges of all gradients with DDP: 2 with ``replay``, 1
        with ``"own"``, and with ``micro`` 1 or 2 per micro-batch.

    Reference:
        Foret et al. 2021 (https://arxiv.org/abs/2010.01412) on m-sharpness.

    Note:
        With ``micro``, `USAM` and `LightSAM`, whose climbs follow the scale of the loss, climb along the gradient of
        the divided loss. ``scale=1 / len(micro_batches)`` undoes that.

        If the clean gradient of one process is not finite, all processes get a gradient that is not finite.

    Example:
        >>> import torch
        >>> from steppe import SAM, accumulated_step
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = SAM(torch.optim.SGD([w], lr=0.1), rho=0.05)
        >>> def backward(x):
        ...     loss = (w * x).square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> accumulated_step(opt, [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], backward).item()
        2.5
    """
    _check(opt, micro_batches, climb, model, replicas)
    if ascent is not None:
        check_fraction_allowed(opt, "ascent=")
        ascent = None if opt.looks_whole() else ascent
    alone = not opt.ascent.needs_gradient
    traffic = _Traffic(opt, model, "global" if alone else replicas)
    opt.zero_grad()
    with traffic.fresh():
        if alone:  # the same climb for all
            with opt.ascended():
                loss = _run(micro_batches, backward, traffic, exchanged=True)
        elif climb == "replay":
            loss = _replay(opt, micro_batches, backward, ascent, traffic, scale)
        else:
            loss = _micro(opt, micro_batches, backward, ascent, traffic, scale)
    if traffic.own or traffic.by_hand:
        _agree(opt, model)
    (step or opt.base.step)()
    return loss


def _replay(
    opt: SharpnessAware,
    micro_batches: Sequence[Batch],
    backward: Callable[[Batch], Loss],
    ascent: Callable[[Batch], Loss] | None,
    traffic: _Traffic,
    scale: Scalar,
) -> Tensor | None:
    clean = ascent if ascent is not None and traffic.climbs else backward
    loss = _run(micro_batches, clean, traffic, exchanged=not traffic.own)
    if traffic.by_hand and not traffic.climbs:
        return loss
    if traffic.own:
        _stay_without_gradient(opt)
    with opt.ascended(scale, part=ascent is not None) as climbs:
        if climbs:
            _run(micro_batches, backward, traffic, exchanged=True)
            if traffic.by_hand:
                _stay_without_gradient(opt)
    return loss


def _run(
    micro_batches: Sequence[Batch], backward: Callable[[Batch], Loss], traffic: _Traffic, *, exchanged: bool
) -> Tensor | None:
    losses, visits = [], traffic.opt._visits
    for i, batch in enumerate(micro_batches):
        with traffic.exchanged(exchanged and i + 1 == len(micro_batches)):
            run = partial(backward, batch)
            if i == 1:  # what the second does, all others do
                run = partial(keeping, traffic.params, run)
            losses.append(visits.at_rest(run))
    return _sum(losses)


def _sum(losses: Sequence[Loss]) -> Tensor | None:
    """Add up losses, which may be numbers; one that nobody returned is not known, and neither is the sum."""
    found = [torch.as_tensor(loss).detach() for loss in losses if loss is not None]
    return torch.stack(found).sum() if len(found) == len(losses) else None


def _micro(
    opt: SharpnessAware,
    micro_batches: Sequence[Batch],
    backward: Callable[[Batch], Loss],
    ascent: Callable[[Batch], Loss] | None,
    traffic: _Traffic,
    scale: Scalar,
) -> Tensor | None:
    losses = []
    each = each_by_itself(opt, traffic.climbs)
    for i, batch in enumerate(micro_batches):
        last = i + 1 == len(micro_batches)
        clean = traffic.climbs

        def closure(batch: Batch = batch, last: bool = last) -> Loss:
            nonlocal clean
            exchanged = not traffic.own if clean else last or (each and traffic.apart)
            with traffic.exchanged(exchanged):
                loss = (ascent if clean and ascent is not None else backward)(batch)
            if traffic.own and (not exchanged or traffic.by_hand):
                _stay_without_gradient(opt)
            clean = False
            return loss

        if each:
            losses.append(opt.backward(closure, scale, part=ascent is not None))
        else:
            losses.append(opt._visits.at_rest(partial(keeping, traffic.params, closure) if i == 1 else closure))
    return _sum(losses)


def each_by_itself(opt: SharpnessAware, climbs: bool) -> bool:
    """Say whether the gradient of each micro-batch is made by itself, and not added up by autograd.

    It is if this step ``climbs``, and also where a blend changes each of them, or a trigger looks at it.
    """
    return climbs or opt.trigger.needs_gradient or bool(opt.blend is not None and opt.blend.memories)


def passes_apart(opt: SharpnessAware, model: nn.Module | None) -> bool:
    """Say whether each pass over a micro-batch exchanges its gradients: where both are blended, compared, or mixed."""
    mixes = _finds_unused(model) or not isinstance(_plain(model), _ddp())
    return mixes or opt.compares or opt.trigger.needs_gradient


@contextmanager
def exchanged(model: nn.Module | None, yes: bool) -> Iterator[None]:
    """Let the passes of a model inside exchange gradients with other processes, or not."""
    found: Any = _plain(model)
    if found is None or yes:
        yield
    elif hasattr(found, "no_sync"):  # DDP
        with found.no_sync():
            yield
    elif hasattr(found, "set_requires_gradient_sync"):  # FSDP2
        found.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            found.set_requires_gradient_sync(True)
    else:
        yield


@final
class _Traffic:
    """Which passes exchange gradients with other processes."""

    def __init__(self, opt: SharpnessAware, model: nn.Module | None, replicas: str) -> None:
        self.opt = opt
        self.params = [p for group in opt.base.param_groups for p in group["params"]]
        self.model: Any = _plain(model)
        self.climbs = opt.will_climb()
        self.own = replicas == "own" and self.climbs
        self.by_hand = replicas == "own" and _by_hand(opt, model)
        self.apart = passes_apart(opt, model)

    def exchanged(self, yes: bool) -> AbstractContextManager[None]:
        """Let the passes inside exchange gradients, or not."""
        return exchanged(self.model, yes and not self.by_hand)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Let FSDP2 collect its parameters anew after every climb and every return."""
        if not hasattr(self.model, "reshard"):
            yield
            return
        handle = self.opt.around_sharp_pass(lambda: resharded(self.model), also_single=True)
        try:
            yield
        finally:
            handle.remove()


def _finds_unused(model: nn.Module | None) -> bool:
    """Say whether the model is in DDP that notes in every pass which parameters were used.

    It keeps the notes until gradients are exchanged, and fails if a parameter was used in a pass before, but not in the
    one that exchanges them.
    """
    return bool(getattr(_plain(model), "find_unused_parameters", False))


def _by_hand(opt: SharpnessAware, model: nn.Module | None) -> bool:
    """Say whether gradients of own climbs are exchanged here and not by DDP, because they are blended before."""
    return opt.blend is not None or _finds_unused(model)


def _climbers(opt: SharpnessAware) -> list[Tensor]:
    return [p for params, _ in opt.climbing_groups() for p in params if p.requires_grad]


def _stay_without_gradient(opt: SharpnessAware) -> None:
    """Let a process with own climbs go on to where the others wait, if it alone has found no gradient."""
    params = _climbers(opt)
    grads = [p.grad for p in params if p.grad is not None]
    if grads:
        # They may be from earlier micro-batches. The engine looks whether a pass has written to any.
        torch.autograd.graph.increment_version(grads[0])
    elif params:
        params[0].grad = torch.zeros_like(params[0])


def _agree(opt: SharpnessAware, model: nn.Module | None) -> None:
    """Give all processes the same gradients after own climbs."""
    processes = _plain(model).process_group  # type: ignore[union-attr]
    climbers = _climbers(opt)
    if not _by_hand(opt, model):
        _mark_all([p.grad for p in climbers if p.grad is not None], processes)
        return
    for lent in climbers[:1]:
        if lent.grad is not None and not lent.grad.any():
            lent.grad = None
    _average([p for group in opt.param_groups for p in group["params"] if p.requires_grad], processes)


def _mark_all(grads: list[Tensor], processes: Any) -> None:
    """Make a gradient not finite everywhere, if one is not finite on one process."""
    mark = marked(grads)
    if mark is not None:
        # A climb has marked a whole tensor, but which one depends on the gradients that its process found.
        firsts = [g.reshape(-1)[:1].to(mark.device) for g in grads if g.numel() > 0]
        flag = (torch.cat(firsts) * 0).sum().float()
        torch.distributed.all_reduce(flag, group=processes)
        mark.add_(flag.to(mark.dtype))


def _average(params: list[Tensor], processes: Any) -> None:
    """Average gradients over processes; where only some have one, the others count as zero."""
    present = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device)
    torch.distributed.all_reduce(present, group=processes)
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p, count in zip(params, present.tolist(), strict=True):
        if count > 0:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            alike.setdefault((p.device, p.dtype), []).append(p.grad)
    if not alike:
        raise RuntimeError("No parameter has a gradient on any process. Did backward call loss.backward()?")
    for grads in alike.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        torch.distributed.all_reduce(flat, group=processes)
        flat /= torch.distributed.get_world_size(processes)
        means = torch.split(flat, [g.numel() for g in grads])
        for g, mean in zip(grads, means, strict=True):
            g.copy_(mean.view_as(g))


def _check(
    opt: SharpnessAware, micro_batches: Sequence[Any], climb: str, model: nn.Module | None, replicas: str
) -> None:
    if not isinstance(opt, SharpnessAware):
        raise TypeError(
            f"opt must be a sharpness-aware optimizer, got {type(opt).__name__}. A plain one needs no help: call "
            "backward for every micro-batch, then its step()."
        )
    if not isinstance(micro_batches, (Sequence, Tensor)):
        raise TypeError(
            f"micro_batches must be a list or another sequence, got {type(micro_batches).__name__}, which may not give "
            "the same batches again in the sharp pass. Put as many of its batches as make a step into a list."
        )
    if len(micro_batches) == 0:
        raise ValueError("micro_batches must hold at least one, got none.")
    for name, value, known in (("climb", climb, ("replay", "micro")), ("replicas", replicas, ("global", "own"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")
    if replicas == "global":
        return
    if not isinstance(_plain(model), _ddp()):
        raise ValueError(
            'replicas="own" needs the model in torch.nn.parallel.DistributedDataParallel, got '
            f"{'no model' if model is None else type(_plain(model)).__name__}. Other models have no gradient of one "
            'process alone: use replicas="global".'
        )
    if opt.trigger.needs_gradient:
        raise ValueError(
            f'replicas="own" does not go with {type(opt.trigger).__name__}, which looks at gradients: some processes '
            'would climb and others not. Use replicas="global".'
        )
    remembers = opt.ascent.remembers or (opt.blend is not None and opt.blend.memories)
    if remembers or opt.follows_angle:
        follows = "a radius that follows the angle of gradients (Angle)"
        who = f"{type(opt).__name__}, whose climbs remember gradients" if remembers else follows
        what = "memory" if remembers else "radius"
        raise ValueError(
            f'replicas="own" does not go with {who}: each process would have a {what} of its own, of which a '
            'checkpoint holds one. Use replicas="global".'
        )


def need_clean_pass(opt: SharpnessAware, option: str) -> None:
    """Refuse ``option``, which says what clean passes see, where there are none."""
    if not opt.ascent.needs_gradient:
        raise TypeError(f"{type(opt).__name__} climbs without a gradient: leave {option} out.")


def check_fraction_allowed(opt: SharpnessAware, option: str) -> None:
    """Refuse clean passes that see parts of micro-batches, which ``option`` asks for, where that cannot be."""
    need_clean_pass(opt, option)
    if opt.trigger.needs_gradient:
        raise ValueError(
            f"{option} does not go with {type(opt.trigger).__name__}, which looks at gradients: where it does not "
            f"climb, those of the whole micro-batches are needed as well. Leave {option} out."
        )


def _plain(model: nn.Module | None) -> nn.Module | None:
    """Return the model that torch.compile and Lightning's Fabric wrap."""
    for inner in ("_forward_module", "_orig_mod", "_forward_module"):
        model = getattr(model, inner, model)
    return model


def _ddp() -> type[nn.Module] | tuple[()]:
    return nn.parallel.DistributedDataParallel if torch.distributed.is_available() else ()
