"""Hugging Face's Trainer: both passes are its own `training_step`, and what it steps is the base."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._parts import first_of, need_fraction
from .._scalars import Scalar
from ..accumulation import accumulated_step, check_fraction_allowed
from ..optimizer import SharpnessAware
from ..passes import frozen_buffers, frozen_norm_stats, same_random_state


class SharpnessAwareTrainerMixin:
    """Let a `transformers.Trainer`, or any class derived from it, take sharpness-aware steps.

    Everything else stays the Trainer's: its optimizer with its decay groups, schedules, clipping, mixed precision,
    accumulation, DDP, FSDP2, logs and checkpoints. One update::

        each micro-batch     training_step    .grad = clean gradient at w
        after the last one   climb            w += delta
        each micro-batch     training_step    .grad = sharp gradient at w + delta
        then                 come back        w, bit for bit
        the Trainer          clip, base.step(), scheduler.step(), log the clean loss

    With ``gradient_accumulation_steps > 1`` there are two ways to climb, and on several processes again two, which
    `steppe.accumulated_step` defines. The default of both is SAM on the whole batch of the update: then the result does
    not depend on how the batch is cut into micro-batches and processes.

    Args:
        *args: what the Trainer takes.
        sharpness: makes the method around the optimizer that the Trainer makes, as in
            ``lambda base: SAM(base, rho=0.05)``. Without it the method comes as ``optimizers=(SAM(...), None)``, or, if
            it owns its base, as ``optimizer_cls_and_kwargs=(LightSAM, {...})``.
        climb: ``"replay"`` climbs once per update, along the gradient of all micro-batches, which are then run again;
            ``"micro"`` lets every micro-batch climb on its own, which is m-SAM, m = ``per_device_train_batch_size``.
        replicas: with DDP, ``"global"`` climbs along the gradient of all processes, ``"own"`` lets each climb along its
            own, which saves the traffic of clean passes: m-SAM again. On one process they are the same.
        fraction: None, or which part of every micro-batch clean passes see, in (0, 1]: then a climb follows the
            gradient of a part, and costs as little. The number of examples is rounded up; losses that are divided by
            what the whole update holds are divided by as much less. Sharp passes, which see everything, are then those
            that count for running statistics and other buffers.
        freeze_norm_stats: whether one pass per micro-batch, the clean one, makes the running statistics of batch norm.
        freeze_buffers: whether it alone writes to all other buffers too, such as codebooks, ranges of fake quantization
            and the vectors of spectral norm; the other passes bring them back from a copy.
        same_random_state: whether sharp passes draw the dropout masks of their clean passes. By default they do: then
            both see one loss function, and later random numbers are those of the plain Trainer.
        **kwargs: what the Trainer takes.

    Raises:
        ValueError: for a host that updates weights, or keeps gradients, where no optimizer sees it: DeepSpeed, XLA,
            FSDP of version 1, SageMaker's model parallelism, Apex, context parallelism, LOMO and layer-wise optimizers;
            for a ``fraction`` out of range; in ``train()`` if there is no method, or two, and for what
            `steppe.accumulated_step` refuses.
        TypeError: for a class that names a Trainer before this one; if ``sharpness`` is no function, or returns no
            `SharpnessAware`; with a ``fraction`` if the method has no clean pass.
        RuntimeError: in ``train()`` if the Trainer is about to step something else than the method's base.

    Attributes:
        sharpness_aware: the method, from the start of ``train()`` on, None before.

    Cost:
        Two ``training_step`` per micro-batch where the step climbs, the first on ``fraction`` of it, a copy of the
        weights, and one of the buffers during passes that leave nothing behind. ``"micro"`` holds one more gradient
        during its clean passes.

    Note:
        Name this class before the Trainer. All passes of an update run in the ``training_step`` of its last
        micro-batch, which returns the sum of the losses; before that it returns 0. The logged ``grad_norm`` is of the
        gradient that is handed on, and ``total_flos`` counts both passes. ``optimizer.pt`` of a checkpoint holds the
        method with its base; that of a plain Trainer is loaded with a warning, but not with FSDP2.

    Reference:
        Foret et al. 2021 (https://arxiv.org/abs/2010.01412).

    Example::

        from steppe import SAM
        from steppe.integrations.transformers import SharpnessAwareTrainerMixin

        class SharpTrainer(SharpnessAwareTrainerMixin, Trainer):
            pass

        SharpTrainer(model, args, train_dataset=data, sharpness=lambda base: SAM(base, rho=0.05)).train()
    """

    sharpness_aware: SharpnessAware | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_order(cls)

    def __init__(
        self,
        *args: Any,
        sharpness: Callable[[Optimizer], SharpnessAware] | None = None,
        climb: Literal["replay", "micro"] = "replay",
        replicas: Literal["global", "own"] = "global",
        fraction: float | None = None,
        freeze_norm_stats: bool = True,
        freeze_buffers: bool = True,
        same_random_state: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("climb", climb, ("replay", "micro")), ("replicas", replicas, ("global", "own"))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")
        if sharpness is not None and (isinstance(sharpness, Optimizer) or not callable(sharpness)):
            raise TypeError(
                "sharpness must be a function of the base, as in lambda base: SAM(base, rho=0.05), got "
                f"{type(sharpness).__name__}. An optimizer that is made already goes to optimizers=(optimizer, None)."
            )
        if fraction is not None:
            need_fraction(fraction)
        self._sharpness, self._climb, self._replicas, self._fraction = sharpness, climb, replicas, fraction
        self._freeze_norm_stats, self._freeze_buffers = freeze_norm_stats, freeze_buffers
        self._same_random_state = same_random_state
        self._micro_batches: list[Callable[[float | None], Tensor]] = []
        super().__init__(*args, **kwargs)
        _refuse_host(self)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Let the Trainer make its optimizer, put the method around it, and leave the base to the Trainer."""
        from accelerate.optimizer import AcceleratedOptimizer

        self._micro_batches.clear()  # of a training that was cut short
        self.optimizer: Any = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        prepared = isinstance(self.optimizer, AcceleratedOptimizer)
        made = self.optimizer.optimizer if prepared else self.optimizer
        if self.sharpness_aware is None or self.sharpness_aware.base is not made:
            self.sharpness_aware = self._around(made)
            if self._fraction is not None:
                check_fraction_allowed(self.sharpness_aware, "fraction=")
            if self.sharpness_aware.base is not made:
                self.optimizer = self.sharpness_aware.base
        return self.optimizer

    def _around(self, made: Optimizer) -> SharpnessAware:
        if isinstance(made, SharpnessAware):
            if self._sharpness is not None:
                raise ValueError(
                    f"There are two methods: the optimizer is {type(made).__name__} already, and sharpness would go "
                    "around it once more. Leave one of them out."
                )
            return made
        if self._sharpness is None:
            raise ValueError(
                f"The optimizer is {type(made).__name__}, and nothing says how it is to climb. Pass for example "
                "sharpness=lambda base: SAM(base, rho=0.05), or optimizers=(SAM(...), None)."
            )
        opt = self._sharpness(made)
        if not isinstance(opt, SharpnessAware):
            raise TypeError(
                f"sharpness must return a sharpness-aware optimizer, as in lambda base: SAM(base, rho=0.05), got "
                f"{type(opt).__name__}."
            )
        if opt.base is not made:
            name = type(opt).__name__
            raise ValueError(
                f"sharpness must go around the {type(made).__name__} that it gets, but {name} has a base of its own. "
                f"Pass optimizer_cls_and_kwargs=({name}, {{...}}) instead."
            )
        return opt

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Keep the micro-batch; run all of an update, clean and sharp, once the last of them has come."""
        opt = self._method()
        step = super().training_step  # type: ignore[misc]
        part = None if opt.looks_whole() else self._fraction
        draws = same_random_state() if self._same_random_state else nullcontext()
        passes = 0

        def run(fraction: float | None) -> Tensor:
            nonlocal passes
            seen, more = (inputs, args) if fraction is None else _part(inputs, args, fraction)
            passes += fraction is None
            if passes != 1 or fraction is not None:  # the Trainer itself counts one pass over everything
                self.current_flos += float(self.floating_point_ops(seen))  # type: ignore[attr-defined]
            with draws, nullcontext() if fraction is None else self._without_traces(model):
                loss: Tensor = step(model, seen, *more, **kwargs)
            return loss

        self._micro_batches.append(run)
        if not self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            return torch.zeros((), device=self.args.device)  # type: ignore[attr-defined]
        runs, self._micro_batches = self._micro_batches, []
        with ExitStack() as stack:
            if part is None:
                stack.callback(opt.around_sharp_pass(lambda: self._without_traces(model)).remove)
            loss = accumulated_step(
                opt,
                runs,
                lambda run: run(None),
                ascent=None if part is None else lambda run: run(part),
                climb=self._climb,
                model=model,
                replicas=self._replicas if self.accelerator.num_processes > 1 else "global",  # type: ignore[attr-defined]
                scale=self._scale(),
                step=lambda: None,  # the Trainer clips first
            )
            assert loss is not None
            return loss

    @contextmanager
    def _without_traces(self, model: nn.Module) -> Iterator[None]:
        """Surround passes that leave nothing behind but gradients."""
        with ExitStack() as stack:
            if self._freeze_buffers:  # norm statistics too, for DDP hands out those of the first process before a pass
                stack.enter_context(frozen_buffers(model, norm_stats=self._freeze_norm_stats))
            if self._freeze_norm_stats:
                stack.enter_context(frozen_norm_stats(model))
            yield

    def _method(self) -> SharpnessAware:
        stepped = getattr(self.optimizer, "optimizer", self.optimizer)
        if self.sharpness_aware is None or self.sharpness_aware.base is not stepped:
            raise RuntimeError(
                f"The Trainer would step {type(stepped).__name__}, which is not the base of a sharpness-aware "
                "optimizer. Let an own create_optimizer() call super().create_optimizer(), and leave .optimizer alone."
            )
        return self.sharpness_aware

    def _scale(self) -> Scalar:
        """Return what a GradScaler multiplies gradients by, without waiting for an accelerator."""
        scaler: Any = self.accelerator.scaler  # type: ignore[attr-defined]
        if scaler is None:
            return 1.0
        scale: Tensor = scaler.scale(torch.ones((), device=self.args.device))  # type: ignore[attr-defined]
        return scale

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:  # type: ignore[attr-defined]
            with self._whole_state():
                super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        # A sharded checkpoint has room for the state of the base's parameters, and for nothing else.
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        own = {name: value for name, value in self._method().state_dict().items() if name != "base"}
        torch.save(own, self._own_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:  # type: ignore[attr-defined]
            with self._whole_state():
                super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        if not os.path.isfile(self._own_file(checkpoint)):
            raise ValueError(
                f"There is no {self._own_file(checkpoint)}: with FSDP only a sharpness-aware run on as many processes "
                "can be resumed. To start anew from weights, load them into the model."
            )
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        opt = self._method()
        own = torch.load(self._own_file(checkpoint), weights_only=True)
        opt.load_state_dict({**own, "base": opt.base.state_dict()})

    def _own_file(self, folder: Any) -> str:
        return os.path.join(folder, f"sharpness_aware_{self.args.process_index}.pt")  # type: ignore[attr-defined]

    @contextmanager
    def _whole_state(self) -> Iterator[None]:
        """Let the Trainer save or load the method, which includes the base."""
        base, self.optimizer = self.optimizer, self._method()
        try:
            yield
        finally:
            self.optimizer = base


def _part(inputs: Any, args: tuple[Any, ...], fraction: float) -> tuple[Any, tuple[Any, ...]]:
    """Return a part of a micro-batch, and what else `training_step` takes: first of all what losses are divided by."""
    part, count, n = first_of(inputs, fraction)
    if not args or args[0] is None:
        return part, args
    return part, (args[0] * count / n, *args[1:])


def _refuse_order(cls: type) -> None:
    """Refuse a class whose Trainer hides what the mixin does."""
    ahead = cls.__mro__[: cls.__mro__.index(SharpnessAwareTrainerMixin)]
    # It is known by its name, so that nothing has to import it.
    if not any((kind.__module__, kind.__name__) == ("transformers.trainer", "Trainer") for kind in ahead):
        return
    mixin = SharpnessAwareTrainerMixin
    bases = sorted(cls.__bases__, key=lambda base: not issubclass(base, mixin))
    raise TypeError(
        f"{cls.__name__} names a Trainer before {mixin.__name__}, whose methods it hides, so that training would be "
        f"plain. Write class {cls.__name__}({', '.join(base.__name__ for base in bases)})."
    )


def _refuse_host(trainer: Any) -> None:
    args, accelerator = trainer.args, trainer.accelerator
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    parallel = getattr(accelerator, "parallelism_config", None)
    optim = str(getattr(args.optim, "value", args.optim))
    why = None
    if trainer.is_deepspeed_enabled:
        why = "DeepSpeed, whose engine keeps gradients and steps to itself: use DDP or FSDP2"
    elif args.device.type == "xla" or trainer.is_fsdp_xla_enabled:
        why = "XLA, on which none of this was ever run: use a GPU or a CPU"
    elif plugin is not None and plugin.fsdp_version < 2:
        why = 'FSDP of version 1, whose flat pieces hide the norm of the gradient: use fsdp_config={"version": 2}'
    elif os.environ.get("SM_HP_MP_PARAMETERS"):
        why = "SageMaker's model parallelism, which runs passes by itself: use DDP or FSDP2"
    elif getattr(trainer, "use_apex", False):
        why = "Apex, which scales gradients behind the optimizer's back: use the fp16 or bf16 of torch"
    elif parallel is not None and parallel.cp_enabled:
        why = "context parallelism, which cuts the inputs in place in the first pass: use cp_size=1"
    elif "lomo" in optim or "layerwise" in optim:
        why = f"optim={optim!r}, which updates the weights during backward: use one that steps after it"
    if why is not None:
        raise ValueError(
            f"Sharpness-aware steps need gradients in .grad and weights that stay until step(), got {why}."
        )
