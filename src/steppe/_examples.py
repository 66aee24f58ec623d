"""What in a batch belongs to single examples, and how to take some of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from functools import cached_property
from types import MemberDescriptorType, ModuleType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# Of how many examples a thing can be a part, in all the ways to read it; None: of any number.
Sizes = frozenset[int] | None
_NONE: frozenset[int] = frozenset()

# What is no data of single examples, whatever its length. Of texts it is a list of them that is.
WHOLE = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, torch.Size)


class Examples:
    """A batch, and how it is read: ``n`` is the number of its examples.

    Tensors say it by their first dimension. Of a list with tensors one cannot know whether its items are fields, each
    with all examples (``[x, y]``), or examples (images that differ in size); the rest of the batch decides.
    """

    def __init__(self, batch: Any) -> None:
        self._root = _read(batch, outermost=True)
        sizes = self._root.sizes
        if sizes == _NONE:
            self._refuse()
        sizes = (sizes or _NONE) - {0}
        if not sizes:
            raise ValueError(
                f"There is nothing to split: the batch, a {type(batch).__name__}, has no tensor with at least one "
                "example."
            )
        if len(sizes) > 1:
            sizes = frozenset(filter(self._pairs_up, sizes)) or sizes
        if len(sizes) > 1:
            _refuse_both(*next(_both(self._root, sizes)))
        (self.n,) = sizes
        # Lists of one batch are read alike: as examples, if that is the only way to read one of them.
        sure = any(self.n not in (found.fields or ()) for found in _lists(self._root, self.n))
        self._as_examples = sure or self._pairs_up(self.n)

    def take(self, part: slice | Tensor) -> Any:
        """Return a slice of the examples, or those at some indices."""
        return self._root.cut(Cut(self.n, part, self._as_examples))

    def _pairs_up(self, n: int) -> bool:
        """Return whether a list of n tensors and one of n dicts go together, as images and their boxes do."""
        return {found.of_tensors for found in _lists(self._root, n)} == {True, False}

    def _refuse(self) -> NoReturn:
        for node in _walk(self._root):
            if isinstance(node, _Refused):
                node.refuse()
        lengths = sorted({node.length for node in _walk(self._root) if isinstance(node, _Leaf)})
        raise ValueError(
            f"The tensors of a batch must have one first dimension, got {lengths}. Split them alike. If each is an "
            "example, cut the batch yourself, as in ascent=lambda: gradient(part)."
        )


@dataclasses.dataclass
class Cut:
    """Which examples to take out of n, and whether lists that can be read both ways hold one each."""

    n: int
    part: slice | Tensor
    as_examples: bool
    offsets: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def takes_all(self) -> bool:
        if isinstance(self.part, slice):
            return bool(self.part.stop - self.part.start == self.n)
        return len(self.part) == self.n

    def of(self, sequence: Sequence[Any]) -> Any:
        if isinstance(self.part, slice) and isinstance(sequence, (list, tuple, range)):
            return sequence[self.part]
        indices = range(self.n)[self.part] if isinstance(self.part, slice) else self.part.tolist()
        picked = [sequence[i] for i in indices]
        return type(sequence)(picked) if isinstance(sequence, (list, tuple)) else picked


class _Node:
    """Something in a batch that goes into every part as it is."""

    sizes: Sizes = None
    children: Sequence[_Node] = ()

    def __init__(self, value: Any) -> None:
        self.value = value

    def cut(self, cut: Cut) -> Any:
        return self.value


class _Leaf(_Node):
    """A tensor or an array."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.length = value.size(0) if isinstance(value, Tensor) else len(value)
        self.sizes = frozenset([self.length])

    def cut(self, cut: Cut) -> Any:
        value, part = self.value, cut.part
        if not isinstance(value, Tensor):
            return value[part] if isinstance(part, slice) else value[part.cpu().numpy()]
        if value.is_nested:
            return _cut_nested(value, cut)
        if value.layout == torch.sparse_coo:
            at = torch.arange(part.start, part.stop) if isinstance(part, slice) else part
            return value.index_select(0, at.to(value.device))
        return value[part] if isinstance(part, slice) else value[part.to(value.device)]


class _Fields(_Node):
    """What has its parts by name."""

    def __init__(self, value: Any, parts: Iterable[Any], rebuild: Callable[[list[Any]], Any]) -> None:
        super().__init__(value)
        self.children = [_read(part) for part in parts]
        self.sizes = _common(self.children)
        self.rebuild = rebuild

    def cut(self, cut: Cut) -> Any:
        return self.rebuild([child.cut(cut) for child in self.children])


class _List(_Node):
    """A sequence: of fields, of examples, or of neither."""

    def __init__(self, value: Sequence[Any], outermost: bool) -> None:
        super().__init__(value)
        self.children = [] if set(map(type, value)) <= set(WHOLE) else [_read(item) for item in value]
        self.fields = _common(self.children)
        self.of_tensors = any(isinstance(child, _Leaf) for child in self.children)
        if self.fields is None:
            # Lists of numbers are one per example, as sizes are: collation makes tensors of columns of numbers. Columns
            # of texts it leaves lists.
            texts = [item for item in value if isinstance(item, (list, tuple)) and set(map(type, item)) == {str}]
            self.columns = _shared({len(item) for item in texts}) if texts and len(texts) == len(value) else _NONE
            self.examples = frozenset([len(value)])
        else:
            # The batch itself is its fields, [x, y], unless it is a list of samples.
            can = not outermost or (isinstance(value, list) and not self.of_tensors)
            self.columns = self.fields
            self.examples = frozenset([len(value)]) if can and len(set(map(_kind, value))) == 1 else _NONE
            self.sizes = self.fields | self.examples

    def cut(self, cut: Cut) -> Any:
        if cut.n in self.examples:
            if cut.n in self.columns and not cut.as_examples and not cut.takes_all:
                _refuse_both(self, cut.n)
            if cut.n not in self.columns or cut.as_examples:
                return cut.of(self.value)
        items = [child.cut(cut) for child in self.children]
        if all(item is child.value for item, child in zip(items, self.children, strict=True)):
            return self.value
        return type(self.value)(items) if isinstance(self.value, (list, tuple)) else items


class _Unknown(_Node):
    """An object with a length, of which one cannot know whether it counts examples."""

    def cut(self, cut: Cut) -> Any:
        if len(self.value) == cut.n and not cut.takes_all:
            _refuse(self.value, "it is as long as the batch, and no sequence. Make it a list")
        return self.value


class _Refused(_Node):
    """What can be no part of a batch in parts; of a list with one per example it can."""

    sizes = _NONE

    def __init__(self, value: Any, why: str) -> None:
        super().__init__(value)
        self.why = why

    def refuse(self) -> NoReturn:
        _refuse(self.value, self.why)


def _read(value: Any, outermost: bool = False) -> _Node:
    if _is_array(value):
        return _read_array(value)
    if isinstance(value, WHOLE):
        return _Node(value)
    if isinstance(value, PackedSequence):
        return _Refused(value, "its first dimension counts steps of all sequences together. Pack the part")
    if isinstance(value, Mapping):
        return _Fields(value, value.values(), lambda items: dict(zip(value, items, strict=True)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _Fields(value, value, cast(Any, value)._make)
    if isinstance(value, tuple) and hasattr(value, "n_fields"):  # what torch.max and its kin return
        return _Fields(value, value, type(value))
    if dataclasses.is_dataclass(value):
        return _read_dataclass(value)
    if hasattr(value, "shape") and (hasattr(value, "__len__") or hasattr(value, "__getitem__")):
        # Data frames, and arrays of other libraries.
        return _Refused(value, "it is neither a tensor nor a numpy array. Make it one") if value.shape else _Node(value)
    if isinstance(value, Sequence):
        return _List(value, outermost)
    if isinstance(value, Iterator):
        return _Refused(value, "whoever reads it first leaves nothing for the next. Make it a list")
    if _holds_arrays(value):
        return _Refused(value, "it holds tensors, of which nothing says what they have per example. Make it a dict")
    # A set has no order, in which its items could be those of the examples.
    if isinstance(value, Sized) and (hasattr(value, "__getitem__") or hasattr(value, "__iter__")):
        return _Node(value) if isinstance(value, Set) else _Unknown(value)
    return _Node(value)


def _read_array(value: Any) -> _Node:
    if not value.ndim:
        return _Node(value)
    if not isinstance(value, Tensor) or (value.layout == torch.strided and not value.is_nested):
        return _Leaf(value)
    if value.is_nested:
        if value.layout == torch.jagged and getattr(value, "_ragged_idx", 1) != 1:
            return _Refused(value, "it is nested, and transposed. Transpose the part")
        return _Leaf(value)
    if value.layout != torch.sparse_coo:
        return _Refused(value, f"its layout is {value.layout}, which torch does not index. Use torch.sparse_coo")
    if value.requires_grad:
        return _Refused(value, "it is sparse and requires a gradient, which torch does not index. Make it dense")
    return _Leaf(value)


def _cut_nested(value: Tensor, cut: Cut) -> Tensor:
    picked = cut.of(value.unbind())
    if value.layout != torch.jagged:
        return torch.nested.as_nested_tensor(list(picked))
    # Nested tensors go together if they share their offsets. Those that did should still do so.
    offsets = cut.offsets.get(key := str(value.shape[1]))
    if offsets is None:
        lengths = torch.tensor([0, *map(len, picked)], device=value.device)
        offsets = cut.offsets[key] = lengths.cumsum(0)
    return torch.nested.nested_tensor_from_jagged(torch.cat(picked), offsets)


def _read_dataclass(value: Any) -> _Node:
    anew = {name for cls in type(value).__mro__ for name, a in vars(cls).items() if isinstance(a, cached_property)}
    names = dict.fromkeys([field.name for field in dataclasses.fields(value)])
    names = {name: None for name in (*names, *getattr(value, "__dict__", ())) if hasattr(value, name)}
    kept = [name for name in names if name not in anew]
    parts = [getattr(value, name) for name in kept]

    def rebuild(items: list[Any]) -> Any:
        if all(item is part for item, part in zip(items, parts, strict=True)):
            return value
        return _rebuild_dataclass(value, dict(zip(kept, items, strict=True)))

    return _Fields(value, parts, rebuild)


def _rebuild_dataclass(value: Any, parts: dict[str, Any]) -> Any:
    given = {field.name: parts[field.name] for field in dataclasses.fields(value) if field.init}
    try:
        made = dataclasses.replace(value, **given)
    except Exception as error:
        _refuse(value, f"it could not be made anew from its cut fields ({error}). Make it a dict", error)
    derives = hasattr(value, "__post_init__")
    for name, part in parts.items():
        # What was derived, as a number of examples, is derived from the part; what was set by hand is handed on.
        derived = derives and part is getattr(value, name) and hasattr(made, name)
        if name not in given and not derived:
            object.__setattr__(made, name, part)
    if any(getattr(made, name) is not part for name, part in given.items()):
        _refuse(value, "its constructor changes its fields, and would do so twice. Make it a dict")
    return made


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")  # where it was not imported, nothing is an array of it
    return isinstance(value, Tensor) or (numpy is not None and isinstance(value, numpy.ndarray))


def _holds_arrays(value: Any, depth: int = 4) -> bool:
    """Return whether there are tensors or arrays in an object, or in those that it holds."""
    if _is_array(value):
        return bool(value.ndim)
    if not depth or isinstance(value, WHOLE):
        return False
    parts: Iterable[Any]
    if isinstance(value, Mapping):
        parts = value.values()
    else:
        parts = value if isinstance(value, (list, tuple, Set)) else _attributes(value)
    return any(_holds_arrays(part, depth - 1) for part in parts)


def _attributes(value: Any) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    for cls in type(value).__mro__:
        for slot in vars(cls).values() if "__slots__" in vars(cls) else ():
            if isinstance(slot, MemberDescriptorType) and hasattr(value, slot.__name__):
                yield getattr(value, slot.__name__)


def _kind(value: Any) -> object:
    """Return what is the same for all examples of a list."""
    if _is_array(value):
        return type(value), value.dtype, value.ndim
    if isinstance(value, Mapping):
        return type(value), frozenset(value)
    if isinstance(value, (list, tuple)):
        return type(value), frozenset(map(_kind, value))
    return type(value)


def _shared(sizes: set[int]) -> frozenset[int]:
    return frozenset(sizes) if len(sizes) == 1 else _NONE


def _common(nodes: Iterable[_Node]) -> Sizes:
    found = [node.sizes for node in nodes if node.sizes is not None]
    return frozenset.intersection(*found) if found else None


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _lists(node: _Node, n: int) -> Iterator[_List]:
    """Yield the outermost lists with tensors that can be read as n examples."""
    if isinstance(node, _List) and node.sizes is not None and n in node.examples:
        yield node
        return
    for child in node.children:
        yield from _lists(child, n)


def _both(root: _Node, sizes: frozenset[int]) -> Iterator[tuple[_List, int]]:
    """Yield the lists that can be read both ways, with the number of examples that they have as fields."""
    for node in _walk(root):
        if isinstance(node, _List) and node.fields is not None and node.examples & sizes and node.fields & sizes:
            yield node, min((node.fields & sizes) - node.examples or node.fields & sizes)


def _refuse_both(found: _List, n: int) -> NoReturn:
    name, length = type(found.value).__name__, len(found.value)
    raise ValueError(
        f"A {name} in the batch may hold one example per item, {length} in all, or fields with {n} examples each. If "
        "fields, make it a dict or a named tuple. If examples, stack them into one tensor, or cut the batch yourself, "
        "as in ascent=lambda: gradient(part)."
    )


def _refuse(value: Any, why: str, error: Exception | None = None) -> NoReturn:
    raise TypeError(
        f"No part can be taken of a {type(value).__name__}: {why}, or cut the batch yourself, as in "
        "ascent=lambda: gradient(part)."
    ) from error
