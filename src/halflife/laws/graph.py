"""Which objects an optimizer leads to."""

from __future__ import annotations

import enum
import functools
import gc
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from halflife.laws.copier import attributes_of, is_absent, is_like_an_optimizer, is_of_library, is_wrapper, slots_of

__all__ = ["children", "reachable", "real_tensors", "tensors_in", "with_inner"]

MANY = 1_000_000  # objects
_LEAVES = (int, float, complex, str, bytes, bool, type, enum.Enum, types.ModuleType, types.CodeType, torch.dtype)


@functools.lru_cache
def _cached() -> None:
    """Stand for the class of functions whose results are kept, which Python does not name."""


def children(value: Any) -> Iterator[Any]:
    """Yield what an object leads to by itself: items, attributes, slots, closures, weak references.

    Not its class, the globals of its code, or modules.

    Args:
        value: The object.

    Yields:
        The objects that it leads to.
    """
    kind = type(value)
    if issubclass(kind, dict):
        yield from list(dict.keys(value))
        yield from list(dict.values(value))
    elif issubclass(kind, list | tuple | set | frozenset | deque):
        yield from list(value)
    elif issubclass(kind, types.FunctionType):
        if not is_of_library(value):
            yield from (value.__closure__, value.__defaults__, value.__kwdefaults__)
    elif issubclass(kind, types.CellType):
        try:
            yield value.cell_contents
        except ValueError:  # an empty one
            return
    elif issubclass(kind, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif issubclass(kind, types.BuiltinFunctionType):
        yield value.__self__
    elif issubclass(kind, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif kind is type(_cached):
        yield from gc.get_referents(value)  # the function, and what was kept of earlier calls
    elif issubclass(kind, weakref.ref):
        yield value()
    elif issubclass(kind, types.MappingProxyType):
        yield dict(value)
    elif issubclass(kind, Tensor):
        if value.is_leaf:
            yield value.grad
        if is_wrapper(value):
            yield from (getattr(value, name) for name in value.__tensor_flatten__()[0])
    elif kind.__module__ == "numpy" and getattr(getattr(value, "dtype", None), "hasobject", False):
        yield value.tolist()
    yield from list(attributes_of(value).values())
    for _, each in slots_of(value):
        yield each


def reachable(roots: Iterable[Any], *, limit: int = MANY, without: type | tuple[type, ...] = ()) -> list[Any]:
    """Return all objects that some objects lead to, themselves included; no numbers, strings, classes and modules.

    Args:
        roots: Where to begin.
        limit: How many objects at most.
        without: Classes whose instances are left out, with what only they lead to.

    Returns:
        The objects, each once.
    """
    found: dict[int, Any] = {}
    waiting = list(roots)
    while waiting and len(found) < limit:
        value = waiting.pop()
        if value is None or id(value) in found or issubclass(type(value), _LEAVES) or issubclass(type(value), without):
            continue
        found[id(value)] = value
        waiting += children(value)
    return list(found.values())


def with_inner(optimizers: Iterable[Any]) -> Iterator[Any]:
    """Yield optimizers, and those that stand in their attributes, alone or in lists, tuples and dicts; each once.

    Args:
        optimizers: Where to begin.

    Yields:
        The optimizers, the outer ones first.
    """
    seen: dict[int, Any] = {}
    waiting = deque(optimizers)
    while waiting:
        each = waiting.popleft()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        yield each
        for value in attributes_of(each).values():
            inside = children(value) if isinstance(value, list | tuple | dict) else ()
            waiting += [one for one in (value, *inside) if is_like_an_optimizer(one)]


def real_tensors(optimizers: Iterable[Any], model: torch.nn.Module | None = None) -> list[Tensor]:
    """Return the tensors that belong to the user: parameters, gradients, state, all that attributes lead to.

    Args:
        optimizers: The optimizers.
        model: The model, where it is known.

    Returns:
        The tensors, each once.
    """
    return [each for each in reachable([*optimizers, model]) if issubclass(type(each), Tensor)]


def tensors_in(optimizer: Any, without: Iterable[int]) -> list[Tensor]:
    """Return the tensors in an optimizer's state, groups and attributes, inner optimizers included, in a fixed order.

    Args:
        optimizer: The optimizer, or several.
        without: The ids of tensors that are left out, such as its parameters.

    Returns:
        The tensors, each once.
    """
    found: list[Tensor] = []
    _visit(optimizer, 0, set(without), found)
    return found


def _visit(value: Any, depth: int, seen: set[int], found: list[Tensor]) -> None:
    # No function inside of `tensors_in`: one that calls itself holds itself, and the tensors, until a garbage collection.
    if id(value) in seen or depth > 6 or is_absent(value):
        return
    inside: Iterable[Any] = ()
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set):
        inside = value
    elif is_like_an_optimizer(value) or callable(
        getattr(type(value), "step", None)
    ):  # a wrapper that is no optimizer, too
        inside = list(attributes_of(value).values())
    else:
        return
    seen.add(id(value))
    for each in inside:
        _visit(each, depth + 1, seen, found)
