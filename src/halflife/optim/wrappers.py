"""Optimizers around optimizers: wrappers that are looked through, and inner optimizers that move the weights.

`unwrapped` is the one place that knows the wrappers; `attach`, `explain`, `identify` and the audit all ask it.
`inner_optimizers` finds what an optimizer such as SAM or Lookahead steps: a rule belongs there.
"""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Inner", "codes_in", "inner_optimizers", "unwrapped", "wrapped_path"]

# Wrappers whose step is that of the optimizer inside: by package, which classes; empty for all of them.
TRANSPARENT: dict[str, frozenset[str]] = {
    "accelerate": frozenset(),
    "lightning": frozenset({"LightningOptimizer", "_FabricOptimizer"}),
    "lightning_fabric": frozenset({"_FabricOptimizer"}),
    "pytorch_lightning": frozenset({"LightningOptimizer"}),
}

DEEPEST = 4  # attributes of attributes that are followed
LARGEST = 1000  # members of one collection that are looked at
MOST = 20_000  # objects that are looked at


def unwrapped(optimizer: Any) -> Any:
    """Look through the wrappers that add no step of their own: accelerate's, Lightning's, Fabric's.

    Args:
        optimizer: An optimizer, or a wrapper of one.

    Returns:
        The optimizer inside.
    """
    while (inner := _wrapped_by(optimizer)) is not None:
        optimizer = inner
    return optimizer


def wrapped_path(optimizer: Any) -> str:
    """Return how `unwrapped` is reached: ``""``, ``".optimizer"``, ``".optimizer.optimizer"``."""
    count = 0
    while (inner := _wrapped_by(optimizer)) is not None:
        optimizer, count = inner, count + 1
    return ".optimizer" * count


def _wrapped_by(optimizer: Any) -> Optimizer | None:
    """Return what is directly inside a known wrapper, or None."""
    for kind in type(optimizer).__mro__:  # Lightning's are subclasses that are made for each optimizer
        names = TRANSPARENT.get(kind.__module__.partition(".")[0])
        if names is not None and (not names or kind.__name__ in names):
            inner = _attribute(optimizer, "optimizer")
            return inner if isinstance(inner, Optimizer) and inner is not optimizer else None
    return None


@dataclass(frozen=True)
class Inner:
    """An optimizer inside another one, whose step moves the weights.

    Args:
        path: How to reach it: ``".base_optimizer"``, ``".optimizers[0]"``; empty if only a function holds it.
        optimizer: The optimizer, of torch or an object with ``step`` and ``param_groups``.
    """

    path: str
    optimizer: Any


def inner_optimizers(optimizer: Any) -> list[Inner]:
    """Find the optimizers that another one steps, over the same weights or over wider copies of them.

    Attributes, lists, dicts, weak references, closures and plain objects are followed. An optimizer that is only
    referred to does not count: one of other weights, the optimizer itself, and one that no method could step. Of an
    object that is no torch optimizer all that are found count.

    Args:
        optimizer: An optimizer, or any object around one.

    Returns:
        The innermost ones; none for an optimizer that moves the weights itself.
    """
    return _Search(optimizer).found()


Chain = tuple[tuple[type, str], ...]  # the attributes on the way, each with the class that has it


class _Search:
    """Follows the attributes of one optimizer, the near ones first."""

    def __init__(self, optimizer: Any) -> None:
        self._is_optimizer = isinstance(optimizer, Optimizer)
        self._weights = _weights(optimizer)
        self._seen: dict[int, object] = {id(optimizer): optimizer}  # held: a new object could take an id over
        self._queue: deque[tuple[Any, str, Chain]] = deque()
        self._found: list[Inner] = []
        self._attributes(optimizer, "", ())

    def found(self) -> list[Inner]:
        """Return the innermost optimizers that are stepped."""
        while self._queue and len(self._seen) < MOST:
            self._look(*self._queue.popleft())
        innermost = []
        for each in self._found:
            deeper = inner_optimizers(unwrapped(each.optimizer))
            before = each.path + wrapped_path(each.optimizer)
            innermost += [Inner(before + one.path if each.path and one.path else "", one.optimizer) for one in deeper]
            innermost += [] if deeper else [each]
        return innermost

    def _attributes(self, owner: Any, path: str, chain: Chain) -> None:
        for name, value in list(_own_attributes(owner)):
            if name not in SKIPPED and not (name.startswith("_optimizer_") and name.endswith("_hooks")):
                self._queue.append((value, f"{path}.{name}", (*chain, (type(owner), name))))

    def _members(self, members: Iterable[tuple[Any, str]], chain: Chain) -> None:
        self._queue.extend((value, path, chain) for value, path in islice(members, LARGEST))

    def _look(self, value: Any, path: str, chain: Chain) -> None:
        if isinstance(value, weakref.ref):
            value, path = value(), f"{path}()"
        elif isinstance(value, weakref.ProxyTypes):
            value = getattr(_attribute(value, "step"), "__self__", None)
        value = value if isinstance(value, PLAIN) or not _steps(value) else _same(value, self._seen)
        if isinstance(value, PLAIN) or id(value) in self._seen or type(value).__module__.startswith("halflife."):
            return
        self._seen[id(value)] = value
        if isinstance(value, Mapping):
            keys = [(key, "") for key in value if not isinstance(key, PLAIN)]
            values = [(each, f"{path}[{key!r}]" if isinstance(key, str | int) else "") for key, each in value.items()]
            self._members([*keys, *values], chain)
        elif isinstance(value, list | tuple):
            self._members(((each, f"{path}[{index}]") for index, each in enumerate(value)), chain)
        elif isinstance(value, set | frozenset | deque):
            self._members(((each, "") for each in value), chain)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            calls = _calls_step(_codes_of(value)) or getattr(value, "__name__", "").endswith("step")
            self._members(((each, "") for each in _held_by(value)), (*chain, (_Called, "")) if calls else chain)
        elif _steps(value):
            if not self._is_optimizer or (self._same_weights(value) and _stepped(chain)):
                self._found.append(Inner(path, value))
        elif len(chain) < DEEPEST:
            self._attributes(value, path, chain)

    def _same_weights(self, inner: Any) -> bool:
        """Return whether an inner optimizer has the weights of the outer one, or wider copies of them."""
        mine, other = self._weights, _weights(inner)
        if not mine or {id(each) for each in mine} & {id(each) for each in other}:
            return True
        if not other or {each.dtype for each in mine} == {each.dtype for each in other}:
            return False
        sizes, others = (sorted(each.numel() for each in tensors) for tensors in (mine, other))
        return sizes == others or sum(sizes) == sum(others)


def _same(optimizer: Any, seen: Mapping[int, object]) -> Any:
    """Return what a wrapper is around where that was seen already, else the wrapper."""
    inside = unwrapped(optimizer)
    return inside if id(inside) in seen else optimizer


class _Called:
    """Stands for the type of a function that calls ``step``."""


SKIPPED = {"state", "param_groups", "defaults", "_halflife_handle", "register_step_pre_hook"}
PLAIN = (
    type,
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    Tensor,
    nn.Module,
    LRScheduler,
    types.ModuleType,
    types.BuiltinFunctionType,
)
# Methods that are no part of a step: what only they read is only referred to.
PASSIVE = {
    "__init__",
    "__repr__",
    "__str__",
    "__getattr__",
    "__getstate__",
    "__setstate__",
    "__reduce__",
    "__del__",
    "state_dict",
    "load_state_dict",
    "add_param_group",
    "zero_grad",
    "param_groups",
    "state",
    "defaults",
}


def _steps(value: Any) -> bool:
    """Return whether something is an optimizer, of torch or not."""
    if isinstance(value, Optimizer):
        return True
    if isinstance(value, PLAIN) or not callable(_attribute(value, "step")):
        return False
    groups = _attribute(value, "param_groups")
    return isinstance(groups, list | tuple) and all(isinstance(each, Mapping) and "params" in each for each in groups)


def _weights(optimizer: Any) -> list[Tensor]:
    groups = _attribute(optimizer, "param_groups") or ()
    found = [each for group in groups for each in group.get("params", ())]
    return [each[-1] if isinstance(each, tuple) else each for each in found]


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute; None where there is none, or where a property fails."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _own_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is kept on an object itself, in its dict and in its slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            member = vars(kind).get(name)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield name, member.__get__(value, kind)
                except AttributeError:
                    continue  # not set


def _held_by(function: Any) -> list[Any]:
    """Return what a function keeps: its object, its arguments, what it closes over."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, types.MethodType):
        return [function.__self__, function.__func__]
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue  # still empty
    return found


def _stepped(chain: Chain) -> bool:
    """Return whether methods of the classes on the way could step what the way leads to.

    Some method beyond the passive ones must read every attribute on it, and some method must call the ``step`` of
    something else than itself. Where there is no code to read, all is possible.
    """
    kinds = {kind for kind, _ in chain}
    if _Called in kinds:
        return True
    codes = {kind: _methods(kind) for kind in kinds}
    if any(found is None for found in codes.values()):
        return True
    every = [code for found in codes.values() for code in found or ()]
    names = {name for code in every for name in _names(code)}
    return _calls_step(every) and all(name in names for _, name in chain)


def _methods(kind: type) -> list[types.CodeType] | None:
    """Return the code of a class's active methods, without torch's; None where a class has none that can be read."""
    found: list[types.CodeType] = []
    for each in kind.__mro__:
        if each is object or each.__module__.startswith("torch.optim"):
            continue
        for name, value in vars(each).items():
            if isinstance(value, types.MethodDescriptorType):
                return None  # written in C
            if name not in PASSIVE:
                found += _codes_of(value)
    return found


def _codes_of(value: Any) -> list[types.CodeType]:
    """Return the code of a function, with what it wraps and what is defined in it."""
    if isinstance(value, property):
        return [code for each in (value.fget, value.fset) if each is not None for code in _codes_of(each)]
    if isinstance(value, staticmethod | classmethod | types.MethodType):
        return _codes_of(value.__func__)
    if isinstance(value, functools.partial):
        return _codes_of(value.func)
    if not isinstance(value, types.FunctionType):
        return []
    inside = getattr(value, "__wrapped__", None)  # torch wraps every step
    if getattr(value, "hooked", False) and inside is not None:
        return _codes_of(inside)
    return codes_in(value.__code__) + ([] if inside is None else _codes_of(inside))


def codes_in(code: types.CodeType) -> list[types.CodeType]:
    """Return code with that of the functions which are defined in it."""
    found, stack = [], [code]
    while stack:
        found.append(stack.pop())
        stack += [each for each in found[-1].co_consts if isinstance(each, types.CodeType)]
    return found


def _names(code: types.CodeType) -> set[str]:
    return {*code.co_names, *(each for each in code.co_consts if isinstance(each, str))}


def _calls_step(codes: list[types.CodeType]) -> bool:
    """Return whether code takes a ``step`` of something that is neither ``self`` nor ``super()``."""
    for code in codes:
        before: list[dis.Instruction] = []
        for instruction in dis.get_instructions(code):
            if instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"} and str(instruction.argval).endswith("step"):
                own = before and before[-1].opname.startswith("LOAD_FAST") and before[-1].argval in {"self", "cls"}
                inherited = any(each.opname == "LOAD_GLOBAL" and each.argval == "super" for each in before[-6:])
                if not own and not inherited:
                    return True
            before.append(instruction)
        if {"getattr", "methodcaller"} & set(code.co_names) and "step" in code.co_consts:
            return True
    return False
