"""An optimizer around another one: it has the same groups, counts its steps, and saves its state."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ._checks import put_back_if_it_fails, refuse_classes, refuse_foreign_calls, refuse_others, stepped_by, with_inner
from ._due import Due
from ._radii import Radii
from ._scalars import on_host
from ._steps import watch
from .descent import load_uncast
from .schedules import Radius, check_radius

_NOTHING: Mapping[str, Any] = {}


class Wrapping(Optimizer):
    """An optimizer around a base, whose groups are its own, and get a radius.

    Args:
        base: the optimizer that takes the steps. If construction fails, it is as it was.
        rho: the radius of groups that bring none.
    """

    state: defaultdict[Any, dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Wrapping:
        refuse_classes(cls.__name__, [*args, *kwargs.values()])
        return super().__new__(cls)

    def __init__(self, base: Optimizer, rho: Radius) -> None:
        super().__init__([{}], {})  # what it makes of groups is not needed: ours are the base's
        self.base = base
        self._radii = Radii(rho)
        self._due = Due()
        self._stepped = stepped_by(base)
        without = [group for group in base.param_groups if "rho" not in group]
        try:
            with put_back_if_it_fails(base):
                self._radii.of(base.param_groups)
                # Groups that are added to the base behind our back get a rho as well.
                base.defaults = self.defaults = {**getattr(base, "defaults", {}), "rho": rho}
                self._watch()
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

    def _watch(self) -> None:
        """See the steps of the base, and those of bases that it has inside, which are refused where they would be."""
        watch(self._stepped, self)
        for each in (self.base, *getattr(self.base, "bases", ())):
            for one in with_inner(each):
                if one is not self._stepped:
                    watch(one, self, counts=False)

    def _params(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    def _after_base_step(self, *, surely: bool) -> None:
        if self._due.end(self.base, self._params, surely=surely):
            self._count()

    def _count(self) -> None:
        step = self.state["engine"].get("step", 0) + 1
        # A GradScaler skips the step of most bases, but a fused one it tells what it found, and that leaves all as it
        # is by itself. Then, on an accelerator, the count is a tensor, for which only a trigger that asks has to wait.
        found_inf: Tensor | None = getattr(self._stepped, "found_inf", None)
        self.state["engine"]["step"] = step if found_inf is None else on_host(step - (found_inf != 0).long())
        # A scheduler that is attached here, not to the base, asks whether a step came before its own.
        self._opt_called = True

    def _look_for_a_step(self) -> None:
        """Count a step that was taken where it could not be seen, and wait for none any longer."""
        if self._due.taken_unseen():
            name = type(self).__name__
            warnings.warn(
                f"The weights have changed after {name} had prepared a gradient, but no step of its base was seen; it "
                "is counted as one. Step opt.base itself, so that steps are counted for sure.",
                stacklevel=4,
            )
            self._count()
        self._due.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming bit for bit needs: our state, and the base's under ``"base"``.

        It holds tensors and plain Python values only, so ``torch.load(..., weights_only=True)`` reads it.

        Raises:
            TypeError: if ``torch.distributed.checkpoint`` asks, which has no place for it; see
                `steppe.integrations.distributed.SharpnessAwareState`.
        """
        refuse_foreign_calls(self, "state_dict")
        self._note_radii()
        with_base = self.register_state_dict_post_hook(
            lambda _, found: {**found, "base": self.base.state_dict()},
            prepend=True,  # those of users see all of it
        )
        here = set(self._params())
        gone = [p for p in self.state if isinstance(p, Tensor) and p not in here]
        memory = [self.state.pop(p) for p in gone]  # of groups that were removed, which may come back
        try:
            return super().state_dict()
        finally:
            self.state.update(zip(gone, memory, strict=True))
            with_base.remove()

    def _note_radii(self) -> None:
        """Write into the state, which is to be saved, which groups no longer follow their schedule."""
        by_hand = self._radii.by_hand(self.base.param_groups)
        if by_hand or "by_hand" in self.state.get("engine", _NOTHING):
            self.state["engine"]["by_hand"] = by_hand

    def _check_radii(self) -> None:
        for i, group in enumerate(self.base.param_groups):
            check_radius(group.get("rho", self._radii.given), i)

    def _loaded(self) -> None:
        """Go on from groups and a state that were loaded."""
        self._radii.loaded(self.base.param_groups, self.state.get("engine", _NOTHING).get("by_hand", ()))
        self._due.forget()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, or, with a warning, the state of a plain base optimizer.

        Raises:
            ValueError: if the parameter groups do not match, a radius is negative or not finite, or it is the state of
                another package's SAM.

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
                tuple(self.state["engine"].get("by_hand", ()))  # fails here if it is no state of this
                self._check_radii()
        except BaseException:
            self.state = mine
            raise
        finally:
            for hook in hooks:
                hook.remove()
        self._loaded()

    def _load_plain(self, state_dict: Mapping[str, Any]) -> None:
        radii = [group["rho"] for group in self.base.param_groups]
        with put_back_if_it_fails(self.base):
            self.base.load_state_dict(dict(state_dict))
        for group, rho in zip(self.base.param_groups, radii, strict=True):
            group["rho"] = rho
        self.state.clear()
        self._due.forget()
        warnings.warn(
            f"This is the state of a plain optimizer, not of {type(self).__name__}: the base is loaded, every rho "
            "stays as it is, and counters and accumulators start anew.",
            stacklevel=3,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("defaults", "state", "base", "_radii")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.load_state_dict ends here with groups of its own making; ours are the base's.
        super().__setstate__({name: value for name, value in state.items() if name != "param_groups"})
        if "base" in state:
            self._due, self._stepped = Due(), stepped_by(self.base)
            self._watch()

    def __copy__(self) -> Wrapping:
        other = object.__new__(type(self))
        vars(other).update(vars(self))  # all that is known of the weights, too, which are the same
        other._watch()
        return other

    def _refuse_unscaling(self) -> None:
        raise RuntimeError(
            f"scaler.unscale_() got the {type(self).__name__}, but scaler.step() must get its base, and would divide "
            "the gradients once more: it tells optimizers apart. Call scaler.unscale_(opt.base)."
        )
