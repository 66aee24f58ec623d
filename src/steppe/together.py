"""Several bases that take one step together, so that one climb serves them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._checks import check_base, put_back_if_it_fails

Bases: TypeAlias = Optimizer | Sequence[Optimizer]
"""What a method takes as its base: an optimizer instance, or several, which go `Together`."""

_HOME = "in_base"  # what a saved group says of where it belongs
_NAME = re.compile(r"bases\[(\d+)\]\.(.*)", re.DOTALL)


def joined(base: Bases) -> Optimizer:
    """Return the one base that a method stands on."""
    if isinstance(base, Together):
        for i, each in enumerate(base.bases):
            check_base(each, f"bases[{i}]")  # one may have been wrapped meanwhile
    return Together(*base) if isinstance(base, Sequence) else base


@final
class Together(Optimizer):
    r"""Several optimizers, each with parameters of its own, as one base: Muon for matrices and AdamW for the rest.

    ``SAM([muon, adamw], rho=0.05)`` is ``SAM(Together(muon, adamw), rho=0.05)``, and so with every method. One step of
    SAM, with the parameters ``w_i`` and the update ``U_i`` of each base::

        g     = grad f(w)                    of all parameters, w = (w_1, ..., w_k)
        delta = rho g / ||g||_2              one norm over the parameters of all bases
        s     = grad f(w + delta)
        w_i   = U_i(w_i, s_i)                for each base

    Two SAMs, one in the other, would climb by ``rho`` each, which is ``sqrt(2) rho`` in all.

    Args:
        bases: optimizer instances, as `SharpnessAware` takes them. They stay in ``opt.base.bases``.

    Raises:
        TypeError: if one is no optimizer instance, or is sharpness-aware.
        ValueError: if there is none, if one is given twice, needs a closure or is a `Together`, or if two have a
            parameter in common.

    Cost:
        That of the bases; nothing is copied.

    Note:
        Groups and states are the bases' own. ``param_groups`` is a new list of their dicts each time: groups of the
        first base, then of the next, then what was added later. To add a group, add it to its base:
        ``opt.base.bases[i].add_param_group(...)``. ``defaults`` has the options that all bases have: OneCycleLR and
        CyclicLR turn the momentum if all call it by one name, and else want ``cycle_momentum=False``. Schedulers attach
        to the method, to this, or to one base.

        A GradScaler gets this, and never one of the bases. It divides all gradients once, and skips all bases or none,
        fused ones as well; for that it waits for the accelerator, as for every base that is not fused.

        `MSAM` climbs along the momenta as they are. That of SGD is a sum, 1 / (1 - momentum) times as long as the
        averages of AdamW and Muon; SGD with ``dampening=momentum`` keeps an average too.

    Example:
        >>> import torch
        >>> from steppe import SAM
        >>> model = torch.nn.Linear(2, 1)
        >>> matrices = torch.optim.SGD([model.weight], lr=0.1)  # or torch.optim.Muon
        >>> opt = SAM([matrices, torch.optim.AdamW([model.bias], lr=1e-3)], rho=0.05)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = model(torch.ones(3, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> [group["lr"] for group in opt.param_groups]
        [0.1, 0.001]
    """

    bases: tuple[Optimizer, ...]

    def __init__(self, *bases: Optimizer) -> None:
        if not bases:
            raise ValueError(
                "Together needs a base optimizer, got none. Write for example SAM([torch.optim.SGD(matrices, lr=0.1), "
                "torch.optim.AdamW(others)], rho=0.05)."
            )
        for i, base in enumerate(bases):
            check_base(base, f"bases[{i}]")
            if isinstance(base, Together):
                raise ValueError(f"bases[{i}] is a Together itself. Give its bases instead: Together(*it.bases, ...).")
            for j in range(i):
                if bases[j] is base:
                    raise ValueError(
                        f"bases[{j}] and bases[{i}] are the same {type(base).__name__}, which would step twice. Give "
                        "it once."
                    )
        _refuse_shared(bases)
        # Optimizer.__init__ would make groups and state of its own, where the bases have theirs.
        self.__setstate__({"bases": bases, "_homes": [i for i, b in enumerate(bases) for _ in b.param_groups]})

    def __getstate__(self) -> dict[str, Any]:
        return {"bases": self.bases, "_homes": self._homes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._homes: list[int] = []
        self._taken: list[tuple[dict[str, Any], int]] = []
        super().__setstate__(state)

    def __repr__(self) -> str:
        return f"Together ({', '.join(map(repr, self.bases))})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The bases' own group dicts, whoever replaced or added them, in a new list."""
        rest = [iter(base.param_groups) for base in self.bases]
        # Hosts and schedules know groups by their position, so a group that is added to any base comes last.
        placed = [(group, i) for i in self._homes for group in [next(rest[i], None)] if group is not None]
        placed += [(group, i) for i, groups in enumerate(rest) for group in groups]
        homes = [i for _, i in placed]
        if homes != self._homes:
            _refuse_shared(self.bases)
            self._homes = homes
        return [group for group, _ in placed]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        known = [*zip(self.param_groups, self._homes, strict=True), *self._taken]
        owners = {p: i for group, i in known for p in group["params"]}
        homes: list[int] = []
        for k, group in enumerate(groups):
            found = {i for other, i in known if other is group} or {owners.get(p, -1) for p in group["params"]}
            if len(found) != 1 or -1 in found:
                raise ValueError(
                    f"param group {k} is not of one of the bases, by its parameters. Give it to its base: "
                    "opt.base.bases[i].param_groups = ..."
                )
            homes += found
        for i, base in enumerate(self.bases):
            base.param_groups = [group for group, home in zip(groups, homes, strict=True) if home == i]
        # Whoever takes groups away to add them again, as the constructor of torch's optimizers does, may do so.
        self._taken = [(group, i) for group, i in known if not any(group is other for other in groups)]
        self._homes = homes

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group that was here before; a new one is refused, for only its base knows its options."""
        for k, (group, i) in enumerate(self._taken):
            if group is param_group:
                self.bases[i].add_param_group(param_group)
                del self._taken[k]
                self._homes.append(i)
                return
        names = ", ".join(f"{i} is {type(base).__name__}" for i, base in enumerate(self.bases))
        raise ValueError(
            f"Together cannot know which base the group is for. Add it there: opt.base.bases[i].add_param_group(...), "
            f"where {names}."
        )

    @property
    def state(self) -> Any:
        """A view of the bases' states; what a base keeps for no single parameter is called ``"bases[i].name"``."""
        return _States(self.bases)

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        state = dict(state)
        self.state.clear()
        self.state.update(state)

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that all bases have, with the values of the first; what is set here is set in all of them."""
        first, *others = (base.defaults for base in self.bases)
        return {name: value for name, value in first.items() if all(name in other for other in others)}

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        before = self.defaults
        changed = {k: v for k, v in defaults.items() if k not in before or before[k] is not v}
        for base in self.bases:
            kept = {k: v for k, v in base.defaults.items() if k in defaults or k not in before}
            base.defaults = {**kept, **changed}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let every base clear its gradients."""
        for base in self.bases:
            base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let every base step once. Returns the loss of the closure, which is called once before, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for base in self.bases:
            base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all bases in torch's format for one optimizer; groups also say whose they are."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        _ = self.param_groups  # with groups that have just been added
        parts = [base.state_dict() for base in self.bases]
        rest = [iter(part["param_groups"]) for part in parts]
        numbers: list[dict[Any, int]] = [{} for _ in parts]
        groups, start = [], 0
        for i in self._homes:
            group = next(rest[i])
            for k, number in enumerate(group["params"], start):
                numbers[i].setdefault(number, k)
            start += len(group["params"])
            groups.append({**group, "params": [numbers[i][number] for number in group["params"]], _HOME: i})
        state = {
            numbers[i].get(key, f"bases[{i}].{key}"): memory
            for i, part in enumerate(parts)
            for key, memory in part["state"].items()
        }
        found: dict[str, Any] = {"state": state, "param_groups": groups}
        others = [{k: v for k, v in part.items() if k not in found} for part in parts]
        if any(others):  # what a base adds of its own
            found["bases"] = others
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, found)
            found = found if changed is None else changed
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned into all bases, or into none.

        Raises:
            ValueError: if it is the state of one plain optimizer, or of other groups; or what a base raises. Nothing is
                changed then.
        """
        saved = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, saved)
            saved = saved if changed is None else changed
        parts = self._parts(saved)
        with put_back_if_it_fails(self):
            for base, part in zip(self.bases, parts, strict=True):
                base.load_state_dict(part)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _parts(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the state of each base, with numbers of its own."""
        groups = saved["param_groups"]
        if any(_HOME not in group for group in groups):
            raise ValueError(
                "This is the state of one plain optimizer, not of several together. Load it into the base that it "
                "belongs to: opt.base.bases[i].load_state_dict(...)."
            )
        here = [len(group["params"]) for group in self.param_groups], self._homes
        there = [len(group["params"]) for group in groups], [group[_HOME] for group in groups]
        if here != there:
            raise ValueError(
                f"This is the state of other groups: with {there[0]} parameters, of bases {there[1]}, where here are "
                f"{here[0]}, of bases {here[1]}. Give the same bases with the same groups, in the same order."
            )
        more = saved.get("bases", [{} for _ in self.bases])
        parts: list[dict[str, Any]] = [{**other, "state": {}, "param_groups": []} for other in more]
        # Not always numbers: torch.distributed.checkpoint calls parameters by their names.
        numbers: dict[Any, tuple[int, int]] = {}
        counts = [0] * len(parts)
        for group, i in zip(groups, self._homes, strict=True):
            for k, name in enumerate(group["params"], counts[i]):
                numbers.setdefault(name, (i, k))
            counts[i] += len(group["params"])
            own = {k: v for k, v in group.items() if k != _HOME}
            parts[i]["param_groups"].append({**own, "params": [numbers[name][1] for name in group["params"]]})
        for key, memory in saved["state"].items():
            place = numbers.get(key) or _named(key, len(parts))
            if place is None:
                raise ValueError(f"This state has something of {key!r}, which is in no group and no name of a base.")
            parts[place[0]]["state"][place[1]] = memory
        return parts


@final
class _States(MutableMapping[Any, Any]):
    """The states of several optimizers as one mapping; like each of them, it makes what is missing when it is read."""

    def __init__(self, bases: Sequence[Optimizer]) -> None:
        self._bases = bases
        self._owners: dict[Tensor, int] = {}

    def _place(self, key: Any) -> tuple[Any, Any]:
        """Return the state that has ``key``, or should have it, and what it is called there."""
        if not isinstance(key, Tensor):
            place = _named(key, len(self._bases))
            if place is None:
                raise KeyError(f"{key!r} is neither a parameter nor a name like 'bases[0].name'.")
            return self._bases[place[0]].state, place[1]
        for base in self._bases:
            if key in base.state:
                return base.state, key
        if key not in self._owners:
            groups = [(group, i) for i, base in enumerate(self._bases) for group in base.param_groups]
            self._owners = {p: i for group, i in groups for p in group["params"]}
        if key not in self._owners:
            raise KeyError(f"No base has the parameter of shape {tuple(key.shape)}.")
        return self._bases[self._owners[key]].state, key

    def __getitem__(self, key: Any) -> Any:
        state, name = self._place(key)
        return state[name]

    def __setitem__(self, key: Any, value: Any) -> None:
        state, name = self._place(key)
        state[name] = value

    def __delitem__(self, key: Any) -> None:
        state, name = self._place(key)
        del state[name]

    def __iter__(self) -> Iterator[Any]:
        for i, base in enumerate(self._bases):
            for key in base.state:
                yield key if isinstance(key, Tensor) else f"bases[{i}].{key}"

    def __len__(self) -> int:
        return sum(len(base.state) for base in self._bases)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, Tensor):
            return any(key in base.state for base in self._bases)
        place = _named(key, len(self._bases))
        return place is not None and place[1] in self._bases[place[0]].state

    # Those of Mapping find out by reading, which here would make what is missing.

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            return self[key]
        return default

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        state, name = self._place(key)
        return state.pop(name)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def clear(self) -> None:
        for base in self._bases:
            base.state.clear()

    def __repr__(self) -> str:
        return repr(dict(self))


def _named(key: Any, n: int) -> tuple[int, Any] | None:
    """Return which of ``n`` bases a name is of, and what it is there."""
    found = _NAME.fullmatch(key) if isinstance(key, str) else None
    return None if found is None or int(found[1]) >= n else (int(found[1]), found[2])


def _refuse_shared(bases: Sequence[Optimizer]) -> None:
    owners: dict[Tensor, int] = {}
    for i, base in enumerate(bases):
        for p in chain.from_iterable(group["params"] for group in base.param_groups):
            j = owners.setdefault(p, i)
            if j != i:
                raise ValueError(
                    f"bases[{j}] ({type(bases[j]).__name__}) and bases[{i}] ({type(base).__name__}) both have the "
                    f"parameter of shape {tuple(p.shape)}, which would climb and step twice. Give it to one of them."
                )
