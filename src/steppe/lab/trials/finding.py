"""From words to what makes an optimizer: bases of torch, methods of steppe, and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from ...methods import METHODS
from ..code import cells
from ..code.code import Code, find_file, find_module, is_file, words_of
from ..errors import UserError, exits_raise, nearest, one_line, shortened

OWN = "or your own as FILE.py:NAME or MODULE:NAME"

_FIRST = ("adamw", "sgd")


def _of_torch() -> dict[str, Callable[..., Optimizer]]:
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type) and issubclass(kind, Optimizer)]
    found = {kind.__name__.lower(): kind for kind in kinds if kind is not Optimizer}
    return {name: found[name] for name in (*_FIRST, *sorted(found.keys() - _FIRST))}


BASES: dict[str, Callable[..., Optimizer]] = _of_torch()
"""The optimizers that this version of torch has; whether a method can wrap one is for `check_base` to say."""


def names() -> list[str]:
    """Return the names of all methods, the usual bases first."""
    return list(dict.fromkeys([*_FIRST, *METHODS, *BASES]))


def check_base(base: str) -> None:
    """Refuse an unknown base, and one that no method can wrap.

    Args:
        base: A name in `BASES`, or the user's own; see `find`.

    Raises:
        UserError: With the nearest names, or the reason.
    """
    if _is_own(base):
        if keywords(find(base, "base"))[0] == "base":
            raise UserError(f"the base {shown(base)} takes a base itself; name it as a method, and what it is to wrap")
        return
    if base not in BASES:
        raise UserError(f"unknown base {base!r}{nearest(base, filter(_can_be_wrapped, BASES))}, {OWN}")
    reason = refusal(base, (2, 2))
    if reason is not None:
        raise UserError(f"{base} cannot be a base of sharpness-aware methods: {reason}")


def check_methods(methods: Iterable[str], arms: Iterable[str] = ()) -> None:
    """Refuse an empty list of methods, unknown names and repetitions.

    Args:
        methods: The list.
        arms: Names that are known besides those of methods.

    Raises:
        UserError: With the nearest names.
    """
    seen: set[str] = set()
    known = [*names(), *arms]
    for method in methods:
        if method not in known:
            raise UserError(f"unknown method {method!r}{nearest(method, known)}, {OWN}")
        if method in seen:
            raise UserError(f"the method {method!r} is listed twice; list every method once")
        seen.add(method)
    if not seen:
        raise UserError(f"no method to compare; list at least one of {', '.join(known)}")


def find(method: str, kind: str = "method") -> Callable[..., Optimizer]:
    """Return what makes the optimizer.

    Args:
        method: A name in `BASES` or in ``steppe.methods.METHODS``, or ``FILE.py:NAME`` or ``MODULE:NAME``: a function,
            or a class, that takes parameters or, if it calls its first argument ``base``, an optimizer instance, then
            hyper-parameters by name, and returns an optimizer whose ``step`` takes a closure.
        kind: What it is to be, ``method`` or ``base``, for messages.

    Raises:
        UserError: There is no such method, file, module or function.
    """
    if not _is_own(method):
        known: Mapping[str, Callable[..., Optimizer]] = {**BASES, **METHODS}
        if method not in known:
            raise UserError(f"unknown {kind} {method!r}{nearest(method, names())}, {OWN}")
        return known[method]
    with exits_raise():
        code = code_of(method, kind)
        assert code is not None
        found: Callable[..., Optimizer] = _loaded(code)
    try:
        takes = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"the {kind} {shown(method)!r} is no function or class whose parameters can be seen") from error
    if not takes:
        raise UserError(f"the {kind} {shown(method)!r} takes no parameters to optimize")
    return found


def keywords(make: Callable[..., object]) -> list[str]:
    """Return the names of all parameters of a function or class, its first one included."""
    return list(inspect.signature(make).parameters)


def is_wrapper(method: str) -> bool:
    """Return whether a method wraps a base optimizer instance (its first parameter is called ``base``)."""
    return method not in BASES and next(iter(keywords(find(method)))) == "base"


def has_radius(method: str) -> bool:
    """Return whether a method has a ``rho``."""
    return method not in BASES and "rho" in keywords(find(method))


def words_for(found: object, kind: str = "method") -> str:
    """Return the words for what the user gives: names and modules as they are, files by their whole path.

    Args:
        found: Words, or a function or class at the top level of a file or module, or of a notebook.
        kind: See `find`.

    Raises:
        UserError: Worker processes could not find it again.
    """
    if not isinstance(found, str):
        known = next((name for name, make in {**BASES, **METHODS}.items() if make is found), None)
        found = known or cells.words_for(found, kind) or words_of(found, kind)
    file, _, function = found.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if is_file(found) and Path(file).is_file() else found


def row_of(words: str) -> str:
    """Return what the row of a method is called, unless the user calls it something else.

    Example:
        >>> row_of("sam"), row_of("/home/me/optim.py:muon_adamw")
        ('sam', 'muon_adamw')
    """
    return words.rpartition(":")[2]


def shown(words: str) -> str:
    """Return words as they are shown: files without their folders."""
    file, _, function = words.rpartition(":")
    return f"{Path(file).name}:{function}" if is_file(words) else words


def code_of(words: str, kind: str = "method") -> Code | None:
    """Return the user's code that words name; None if they are a name.

    Raises:
        UserError: There is no such file, module or function.
    """
    if not _is_own(words):
        return None
    known = _brought.get(words) or cells.find_cell(words, kind)
    return known or (find_file if is_file(words) else find_module)(words, kind)


_brought: dict[str, Code] = {}


@contextmanager
def brought(codes: Iterable[Code]) -> Iterator[None]:
    """Within this, words mean these, whatever files are now; so do names as records have them, without a folder."""
    before = dict(_brought)
    _brought.update({name: code for code in codes for name in (code.name, code.words)})
    try:
        yield
    finally:
        _brought.clear()
        _brought.update(before)


@cache
def refusal(base: str, shape: tuple[int, ...]) -> str | None:
    """Return why no method can wrap an optimizer of torch's with a parameter of some shape; None if one can."""
    weight = nn.Parameter(torch.zeros(shape))
    try:
        made = METHODS["sam"](BASES[base]([weight]))
        take_steps(made, [weight])
    except Exception as error:
        return shortened(one_line(error))
    return None


def take_steps(made: Optimizer, weights: Iterable[nn.Parameter]) -> None:
    """Take two steps down a bowl, as steps are taken in training."""
    free = [weight for weight in weights if weight.requires_grad]

    def closure() -> torch.Tensor:
        made.zero_grad()
        loss = torch.stack([(weight - 1).square().sum() for weight in free]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(2):
        made.step(closure)  # type: ignore[arg-type]


def _can_be_wrapped(base: str) -> bool:
    return refusal(base, (2, 2)) is None


def _is_own(words: str) -> bool:
    return ":" in words or words.endswith(".py")


@cache
def _loaded(code: Code) -> Callable[..., Optimizer]:
    return code.load()
