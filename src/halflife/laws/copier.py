"""A faithful copy of an optimizer: its whole object graph, over throw-away parameters, with ids and references mapped."""

from __future__ import annotations

import copyreg
import enum
import functools
import sys
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakTensorKeyDictionary

from halflife.laws.law import NotProbedError
from halflife.optim.config import ATTRIBUTES

__all__ = [
    "APART",
    "LIMIT",
    "Absent",
    "Copier",
    "address_of",
    "at_the_start",
    "attributes_of",
    "copies_in",
    "flags_of",
    "is_absent",
    "is_like_an_optimizer",
    "is_near",
    "is_of_library",
    "is_wrapper",
    "slots_of",
    "storage_key",
    "world_size",
]

LIMIT = 2**24  # bytes of tensors that are cloned, beside this many times the bytes of the stand-ins:
TIMES = 8  # two moments, masters and slow weights in float32 are 8 times the bytes of bfloat16
MANY = 300_000  # objects; what leads to more is not copied
APART = 0.5  # relative distance from the weights up to which a tensor in the state is a copy of them
SEVERAL = 4  # as many numbers as a group has parameters are one for each, if they are at least so many
SOME = 2**16  # elements of a tensor that are compared with the weights, about

# What no copy has. GradScaler leaves `grad_scale` and `found_inf` there during a step.
NOT_COPIED = frozenset({"grad_scale", "found_inf", *ATTRIBUTES})

State = Literal["real", "start", "flags", "none"]
_STATE = "state of a parameter"
Path = tuple[Any, ...]  # (parent path, what leads on), () is the optimizer

_ATOMIC = frozenset(
    {
        type(None),
        bool,
        float,
        complex,
        str,
        bytes,
        type,
        range,
        type(Ellipsis),
        type(NotImplemented),
        property,
        types.ModuleType,
        types.CodeType,
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
        torch.Size,
    }
)
_LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_SIMPLE = frozenset({Tensor, torch.nn.Parameter})
_WORDS = {
    "generator": "a generator",
    "lock": "a lock",
    "TextIOWrapper": "an open file",
    "BufferedWriter": "an open file",
    "BufferedReader": "an open file",
    "Thread": "a thread",
    "socket": "a socket",
}


class Absent:
    """Stands where something could not be copied: every use of it says so.

    Args:
        name: Where it was, such as ``"named_parameters"``.
        kind: What it was, such as ``"a generator"``.
    """

    __slots__ = ("__weakref__", "_kind", "_name")

    def __init__(self, name: str, kind: str) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_kind", kind)

    def __repr__(self) -> str:
        return f"<no copy of {_told(self)}>"

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __getattribute__(self, name: str) -> Any:
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("halflife."):
            return object.__getattribute__(self, name)  # what looks through a copy may ask what it is; a step may not
        raise _used(self)


def _told(absent: Absent) -> str:
    """Return what is absent, and what it was."""
    return f"{object.__getattribute__(absent, '_name')}, {object.__getattribute__(absent, '_kind')}"


def _used(absent: Absent) -> NotProbedError:
    """Return the error that a use of it raises."""
    return NotProbedError(f"its step uses {_told(absent)}, which cannot be copied; pass in_place=True")


def _refuse(absent: Absent, *_: Any, **__: Any) -> Any:
    raise _used(absent)


for _name in (
    *("__setattr__", "__delattr__", "__call__", "__iter__", "__next__", "__reversed__", "__len__", "__bool__"),
    *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__enter__", "__exit__", "__await__", "__aiter__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__int__", "__float__", "__index__", "__complex__"),
    *("__neg__", "__pos__", "__abs__", "__invert__", "__str__", "__format__", "__bytes__", "__fspath__"),
    *(f"__{way}{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow") for way in ("", "r", "i")),
    *(f"__{way}{op}__" for op in ("matmul", "and", "or", "xor", "lshift", "rshift", "divmod") for way in ("", "r")),
):
    setattr(Absent, _name, _refuse)


def is_absent(value: Any) -> bool:
    """Return whether a value stands for what could not be copied."""
    return type(value) is Absent


def is_like_an_optimizer(value: Any) -> bool:
    """Return whether an object is an optimizer, or is one in all but its class: it has groups of its own and a step."""
    kind = type(value)
    if issubclass(kind, Optimizer):
        return True
    return callable(getattr(kind, "step", None)) and isinstance(attributes_of(value).get("param_groups"), list)


def is_wrapper(tensor: Any) -> bool:
    """Return whether a tensor is made of others, in which its values are."""
    return type(tensor) not in _SIMPLE and is_traceable_wrapper_subclass(tensor)


def storage_key(tensor: Tensor) -> int | None:
    """Return what two tensors have in common exactly where they share memory; None where a tensor has none to share."""
    if is_wrapper(tensor):
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors, wrappers around others
        return None


class _TooManyError(Exception):
    """What an attribute leads to has too many objects."""


@dataclass(frozen=True)
class _Home:
    """The memory that stands for other memory, whose elements may have another precision."""

    storage: torch.UntypedStorage
    old: torch.dtype
    new: torch.dtype

    def view(self, like: Tensor) -> Tensor | None:
        """Return the part that a tensor is of the other memory; None where elements cannot be told apart."""
        if self.old not in {self.new, like.dtype}:
            return None
        made = torch.empty(0, dtype=like.dtype if self.old == self.new else self.new, device=self.storage.device)
        return made.set_(self.storage, like.storage_offset(), like.size(), like.stride())


class Copier:
    """Copies optimizers with all that they lead to: classes, attributes, state, groups, inner optimizers, closures.

    The copies lead to stand-ins instead of the real parameters. Ids of parameters are mapped, wherever they are kept.
    What cannot be copied is there as an `Absent`, so that a step that does not need it can be taken.

    Where an optimizer keeps the memory of gradients (one buffer for all), the stand-ins' ``grad`` are set to the views
    of the copied buffer: write gradients into a ``grad`` that is there already.

    Args:
        memo: By the id of each real parameter, its stand-in. A parameter that has none is left out of the groups. What
            is copied is added: the memo must live as long as the copies.
        more: By the same id, further stand-ins, which stand in the groups beside the first.
        state: Which state the copies have. ``"real"``: all of it. ``"start"``: all of it, but of tensors as large as
            their parameter only copies of the weights say something, and are those of the stand-in; the others are 0.
            ``"flags"``: the truth values, strings and Nones in it, no numbers and tensors. ``"none"``: none.
        hooks: Whether step hooks are copied.
        limit: How many bytes of tensors that are no parameters are cloned; None: 16 MiB and 8 times the bytes of the
            stand-ins. What is beyond stands in the copy itself: step under `halflife.laws.guard.read_only`, which
            refuses to write there.
        empty: Makes what stands where a parameter without stand-in is referred to. Default: a clone up to the limit,
            beyond it a tensor on the meta device.
    """

    def __init__(
        self,
        memo: dict[int, Any],
        *,
        more: Mapping[int, Sequence[Tensor]] | None = None,
        state: State = "real",
        hooks: bool = False,
        limit: int | None = None,
        empty: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.memo, self.more, self.state, self.hooks = memo, more or {}, state, hooks
        stand_ins = [each for each in memo.values() if isinstance(each, Tensor)]
        self.limit = limit if limit is not None else LIMIT + TIMES * sum(map(_nbytes, stand_ins))
        self._empty = empty
        self._stand_ins = set(memo)  # ids of the real parameters that have one
        self._members: dict[int, Tensor] = {}  # by id, the parameters of the optimizers met so far
        self._standing = set(memo)  # ids of the parameters that stand in the groups of the copies
        # By their number, the parameters of each group, and of all groups together.
        self._together: dict[int, list[list[Any]]] = defaultdict(list)
        self._some_left_out = False
        self._addresses: dict[int, Tensor] = {}
        # By memory, the parameters that are in it, or whose gradients are, with what of them is.
        self._by_storage: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._homes: dict[int, _Home | None] = {}
        self._kept: list[Any] = []  # so that no id is used twice
        self._added: list[int] = []
        self._open_cells: set[int] = set()  # ids of copied cells that have no content yet
        self._states: set[int] = set()  # ids of the real state dictionaries
        self._why: dict[int, str] = {}  # by the id of what is absent
        self._spent = self._count = 0

    def copy(self, optimizer: Any) -> Any:
        """Return the copy of an optimizer, the same one each time.

        Args:
            optimizer: An optimizer, or a wrapper that is none but has one.

        Returns:
            The copy.

        Raises:
            NotProbedError: If it cannot be copied.
        """
        made = self._attribute(optimizer, ())
        if is_absent(made):
            raise NotProbedError(
                f"it cannot be copied ({self._why.get(id(made), 'no reason given')}); pass in_place=True"
            )
        return made

    # What leads to what

    def _copied(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if kind in _ATOMIC:
            return value
        if kind is int:
            return self._number(value)
        known = self.memo.get(id(value), self)
        if known is not self:
            return known
        if kind is Absent or issubclass(kind, type | enum.Enum) or self._is_used_up(value):
            return value
        self._count += 1
        if self._count > MANY:
            raise _TooManyError
        make = self._maker(value, kind)
        try:
            return make(value, path)
        except (_TooManyError, RecursionError):
            raise
        except Exception as error:  # whatever the objects of others raise
            made = self._absent(value, path)
            self._why[id(made)] = f"{type(error).__name__}: {error}"
            return made

    def _number(self, value: int) -> int:
        """Return the id or the address of a stand-in for that of what it stands for."""
        if value in self.memo:
            return id(self.memo[value])
        parameter = self._addresses.get(value)
        if parameter is None:
            return value
        key = storage_key(parameter)
        if key is not None and key in self._by_storage:  # from now on it stays where it is
            self._home(parameter, key)
        return int(self.memo[id(parameter)].data_ptr())

    def _names_of(self, value: Any, path: Path) -> list[Any]:
        """Copy a member of a set, or a key: one that names a parameter names all its stand-ins."""
        copied = [self._copied(value, path)]
        if type(value) is int:
            copied += map(id, self.more.get(value, ()))
        else:
            copied += self.more.get(id(value), ())
        return copied

    @staticmethod
    def _is_used_up(value: Any) -> bool:
        """Return whether a generator has nothing left to give, as ``model.named_parameters()`` after a loop over it."""
        return type(value) is types.GeneratorType and value.gi_frame is None

    def _maker(self, value: Any, kind: type) -> Callable[[Any, Path], Any]:
        """Return what copies objects of a class."""
        exact = _EXACT.get(kind)
        if exact is not None:
            return functools.partial(exact, self)
        if issubclass(kind, Tensor):
            return self._tensor
        if issubclass(kind, torch.nn.Module):
            return self._module
        if is_like_an_optimizer(value):
            return self._optimizer
        if issubclass(kind, weakref.ref):
            return self._reference
        if kind in _LOCKS:
            return self._lock
        if getattr(kind, "__module__", "").startswith("torch") and _is_handle(kind):
            return self._handle
        if issubclass(kind, threading.Thread):
            return self._absent
        for base, method in _BASES:
            if issubclass(kind, base):
                return functools.partial(method, self)
        return self._object

    def _remember(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self._added.append(id(value))
        self._kept.append(value)
        return made

    def _absent(self, value: Any, path: Path) -> Any:
        kind = type(value)
        word = _WORDS.get(kind.__name__, f"{'an' if kind.__name__[:1].lower() in 'aeiou' else 'a'} {kind.__name__}")
        return self._remember(value, Absent(_spelt(path), word))

    # Optimizers

    def _optimizer(self, value: Any, path: Path) -> Any:
        made = self._remember(value, object.__new__(type(value)))
        attributes = attributes_of(value)
        self._meet(value, attributes)
        into = attributes_of(made)
        for name, each in attributes.items():
            if name in NOT_COPIED:
                continue
            is_torchs = name.startswith("_optimizer_") and name.endswith("_hooks")
            if is_torchs and not (self.hooks and "_step_" in name):
                into[name] = OrderedDict()
            else:
                into[name] = self._attribute(each, (path, name))
        for slot, each in slots_of(value):
            slot.__set__(made, self._attribute(each, (path, slot.__name__)))
        return made

    def _attribute(self, value: Any, path: Path) -> Any:
        """Copy an attribute; where it leads to too much, nothing of it."""
        start, self._count = len(self._added), 0
        try:
            return self._copied(value, path)
        except (_TooManyError, RecursionError):  # too many, or nested too deeply
            for key in self._added[start:]:
                self.memo.pop(key, None)
            del self._added[start:]
            return self._absent(value, path)

    def _meet(self, optimizer: Any, attributes: Mapping[str, Any]) -> None:
        """Make the copies of the groups and of the state, so that everything else finds them."""
        groups = attributes.get("param_groups", ())
        together = [list(group.get("params", ())) for group in groups]
        real = [each for parameters in together for each in parameters if isinstance(each, Tensor)]
        ids = list(map(id, real))
        new = [each for key, each in zip(ids, real, strict=True) if key not in self._members and key in self._stand_ins]
        self._members.update(zip(ids, real, strict=True))
        for parameter in new:
            for part in (parameter, parameter.grad) if self._fits(parameter) else ():
                key = None if part is None else storage_key(part)
                if part is not None and key is not None and part.shape == parameter.shape:
                    self._by_storage[key].append((parameter, part))
            if (address := address_of(parameter)) is not None:
                self._addresses[address] = parameter
        for key in {storage_key(parameter) for parameter in new}:
            if key is not None and len(self._by_storage.get(key, ())) > 1:
                self._home(self._by_storage[key][0][1], key)
        some_step = not self._stand_ins.isdisjoint(ids)
        if not some_step:
            for parameter in real:
                if id(parameter) not in self.memo:
                    self._left_out(parameter)
            self._standing.update(ids)
        self._some_left_out |= not self._standing.issuperset(ids)
        for each in (real, *together):
            self._together[len(each)].append(each)
        state = attributes.get("state")
        if isinstance(state, dict):
            self._states.add(id(state))
        unfilled = []
        for group in groups:
            if id(group) not in self.memo:
                self._remember(group, _new(type(group)))
                unfilled.append(group)
        for group in unfilled:
            self._fill_group(group, some_step)
        for parameter in new:
            self._mark(parameter)

    def _fill_group(self, group: dict[str, Any], some_step: bool) -> None:
        parameters = group.get("params", ())
        kept = [not some_step or id(each) in self._stand_ins for each in parameters]
        made = self.memo[id(group)]
        for key, value in group.items():
            if key == "params":
                chosen = [each for each, stays in zip(parameters, kept, strict=True) if stays]
                made[key] = [one for each in chosen for one in (self.memo[id(each)], *self.more.get(id(each), ()))]
                self._remember(value, made[key])
            elif _is_parallel(value, parameters):
                pairs = zip(value, kept, parameters, strict=True)
                chosen = [each for each, stays, p in pairs if stays for _ in range(1 + len(self.more.get(id(p), ())))]
                made[key] = self._remember(value, [self._copied(each, (((), "param_groups"), key)) for each in chosen])
            else:
                made[key] = self._attribute(value, (((), "param_groups"), key))

    def _mark(self, parameter: Tensor) -> None:
        """Write on the stand-ins whatever is written on the parameter."""
        for name, value in list(attributes_of(parameter).items()):
            for stand_in in (self.memo[id(parameter)], *self.more.get(id(parameter), ())):
                if isinstance(stand_in, Tensor) and not name.endswith("_hooks") and name not in stand_in.__dict__:
                    stand_in.__dict__[name] = self._attribute(value, ((), name))

    def _left_out(self, parameter: Tensor) -> Tensor:
        """Make what stands where a parameter without stand-in is referred to."""
        if self._empty is not None:
            made = self._empty(parameter)
        elif _nbytes(parameter) + self._spent <= self.limit:
            self._spent += _nbytes(parameter)
            made = torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        else:
            made = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        self._remember(parameter, made)
        return made

    def _state(self, value: dict[Any, Any], path: Path) -> Any:
        """Copy the state dictionary of an optimizer."""
        made = self._remember(value, _new(type(value)))
        if isinstance(value, defaultdict):
            made.default_factory = value.default_factory
        if self.state == "none":
            return made
        copies = copies_in(value) if self.state == "start" else frozenset()
        for key, each in list(value.items()):
            if self._is_left_out(key):
                continue
            copied = flags_of(each) if self.state == "flags" else self._attribute(each, (path, _STATE))
            if copied is None and self.state == "flags":
                continue
            stand_in = self._copied(key, path)
            begins = self.state == "start" and isinstance(key, Tensor)
            made[stand_in] = at_the_start(copied, key, stand_in, copies) if begins else copied
            for other in self.more.get(id(key), ()):
                made[other] = at_the_start(copied, key, other, copies) if begins else _cloned(copied)
        return made

    # Containers

    def _is_left_out(self, value: Any) -> bool:
        """Return whether a value is a parameter of an optimizer that has no stand-in, or its id."""
        key = value if type(value) is int else id(value)
        return key in self._members and key not in self._standing

    def _kept_of(self, value: Iterable[Any]) -> Iterable[Any]:
        """Return the items of a sequence: of parameters, or of what goes with all of them, without those left out."""
        items = list(value)
        if not self._some_left_out or not items:
            return items
        if all((each if type(each) is int else id(each)) in self._members for each in items):
            return [each for each in items if not self._is_left_out(each)]
        if all(isinstance(each, Tensor) for each in items):
            shapes = [each.shape for each in items]
            alike = [each for each in self._together.get(len(items), ()) if [p.shape for p in each] == shapes]
            masks = [[id(p) in self._standing for p in each] for each in alike]
            if masks and all(mask == masks[0] for mask in masks):
                return [each for each, stays in zip(items, masks[0], strict=True) if stays]
        return items

    def _dict(self, value: dict[Any, Any], path: Path) -> Any:
        if id(value) in self._states:
            return self._state(value, path)
        made = self._remember(value, _new(type(value)))
        if isinstance(value, defaultdict):
            made.default_factory = self._copied(value.default_factory, path)
        put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, each in list(dict.items(value)):
            if not self._is_left_out(key):
                for name in self._names_of(key, path):
                    put(made, name, self._copied(each, (path, [key])))
        self._add_attributes(value, made, path)
        return made

    def _list(self, value: list[Any], path: Path) -> Any:
        made = self._remember(value, _new(type(value)))
        list.extend(made, [self._copied(each, (path, [n])) for n, each in enumerate(self._kept_of(value))])
        self._add_attributes(value, made, path)
        return made

    def _tuple(self, value: tuple[Any, ...], path: Path) -> Any:
        items = [self._copied(each, (path, [n])) for n, each in enumerate(self._kept_of(value))]
        if id(value) in self.memo:  # it was reached again through one of its items
            return self.memo[id(value)]
        if len(items) == len(value) and all(one is other for one, other in zip(items, value, strict=True)):
            return value
        made = tuple.__new__(type(value), items)
        self._add_attributes(value, made, path)
        return self._remember(value, made)

    def _set(self, value: set[Any], path: Path) -> Any:
        made = self._remember(value, _new(type(value)))
        set.update(made, [name for each in list(value) for name in self._names_of(each, path)])
        self._add_attributes(value, made, path)
        return made

    def _frozenset(self, value: frozenset[Any], path: Path) -> Any:
        items = [name for each in value for name in self._names_of(each, path)]
        made = frozenset.__new__(type(value), items)
        self._add_attributes(value, made, path)
        return self._remember(value, made)

    def _deque(self, value: deque[Any], path: Path) -> Any:
        made = self._remember(value, type(value)(maxlen=value.maxlen))
        deque.extend(made, [self._copied(each, path) for each in list(value)])
        self._add_attributes(value, made, path)
        return made

    def _add_attributes(self, value: Any, made: Any, path: Path) -> None:
        """Copy what an instance of a class of one's own has besides its items."""
        if type(value).__module__ in {"builtins", "collections"}:
            return
        own = attributes_of(value)
        if own is value:  # a dictionary whose items are its attributes
            object.__setattr__(made, "__dict__", made)
            return
        into = attributes_of(made)
        for name, each in list(own.items()):
            into[name] = self._copied(each, (path, name))
        for slot, each in slots_of(value):
            slot.__set__(made, self._copied(each, (path, slot.__name__)))

    def _proxy_of_dict(self, value: types.MappingProxyType[Any, Any], path: Path) -> Any:
        return self._remember(value, types.MappingProxyType(self._copied(dict(value), path)))

    # Code

    def _function(self, value: types.FunctionType, path: Path) -> Any:
        eager = value.__dict__.get("_torchdynamo_orig_callable")
        if eager is not None:  # a compiled function: the code that it was compiled from
            return self._remember(value, self._copied(eager, path))
        if is_of_library(value):
            return value
        if value.__closure__ is None:
            defaults, keywords = self._copied(value.__defaults__, path), self._copied(value.__kwdefaults__, path)
            if defaults is value.__defaults__ and _same_items(keywords, value.__kwdefaults__):
                return self._remember(value, value)
        cells = tuple(self._memo_cell(cell) for cell in value.__closure__ or ())
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
        self._remember(value, made)
        made.__defaults__ = self._copied(value.__defaults__, path)
        made.__kwdefaults__ = self._copied(value.__kwdefaults__, path)
        made.__qualname__, made.__module__, made.__doc__ = value.__qualname__, value.__module__, value.__doc__
        made.__annotations__ = value.__annotations__
        for name, each in list(value.__dict__.items()):
            made.__dict__[name] = self._copied(each, (path, name))
        for name, cell, new in zip(value.__code__.co_freevars, value.__closure__ or (), cells, strict=True):
            if id(new) in self._open_cells:
                self._open_cells.discard(id(new))
                try:
                    content = cell.cell_contents
                except ValueError:  # an empty one
                    continue
                new.cell_contents = self._copied(content, (path, name))
        return made

    def _memo_cell(self, cell: types.CellType) -> types.CellType:
        made: types.CellType | None = self.memo.get(id(cell))
        if made is None:
            made = self._remember(cell, types.CellType())
            self._open_cells.add(id(made))
        return made

    def _cell(self, value: types.CellType, path: Path) -> Any:
        made = self._remember(value, types.CellType())
        made.cell_contents = self._copied(value.cell_contents, path)
        return made

    def _method(self, value: types.MethodType, path: Path) -> Any:
        owner = self._copied(value.__self__, path)
        function = value.__func__
        if getattr(type(value.__self__), getattr(function, "__name__", ""), None) is not function:
            function = self._copied(function, path)
        return self._remember(value, types.MethodType(function, owner))

    def _builtin(self, value: Any, path: Path) -> Any:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType | type):
            return value
        copied = self._copied(owner, path)
        return value if copied is owner else self._remember(value, getattr(copied, value.__name__))

    def _partial(self, value: functools.partial[Any], path: Path) -> Any:
        function, args = self._copied(value.func, path), self._copied(value.args, path)
        made = type(value)(function, *args, **self._copied(value.keywords, path))
        self._remember(value, made)
        for name, each in list(value.__dict__.items()):
            made.__dict__[name] = self._copied(each, (path, name))
        return made

    # Weak references

    def _reference(self, value: weakref.ref[Any], path: Path) -> Any:
        if isinstance(value, weakref.WeakMethod):
            method = value()
            return value if method is None else self._remember(value, weakref.WeakMethod(self._copied(method, path)))
        target = value()
        if target is None:
            return value
        copied = self._copied(target, path)
        return value if copied is target else self._remember(value, _keeping(copied))

    def _proxy(self, value: Any, path: Path) -> Any:
        target = value.__repr__.__self__
        copied = self._copied(target, path)
        return value if copied is target else self._remember(value, weakref.proxy(copied))

    def _weak_keys(self, value: Any, path: Path) -> Any:
        made: Any = self._remember(value, type(value)())
        items = [(self._copied(k, path), self._copied(v, path)) for k, v in value.items() if not self._is_left_out(k)]
        made.update(items)
        made.__dict__["_halflife_kept"] = [key for key, _ in items]
        return made

    def _weak_values(self, value: weakref.WeakValueDictionary[Any, Any], path: Path) -> Any:
        made: Any = self._remember(value, type(value)())
        items = [(self._copied(k, path), self._copied(v, path)) for k, v in value.items() if not self._is_left_out(k)]
        made.update(items)
        made.__dict__["_halflife_kept"] = [each for _, each in items]
        return made

    def _weak_set(self, value: weakref.WeakSet[Any], path: Path) -> Any:
        made: Any = self._remember(value, type(value)())
        items = [self._copied(each, path) for each in value if not self._is_left_out(each)]
        made.update(items)
        made.__dict__["_halflife_kept"] = items
        return made

    # Tensors and what computes with them

    def _fits(self, parameter: Tensor) -> bool:
        """Return whether the stand-in of a parameter can be seen through the same views."""
        made = self.memo.get(id(parameter)) if id(parameter) in self._stand_ins else None
        if not isinstance(made, Tensor) or made.shape != parameter.shape or storage_key(made) is None:
            return False
        return made.dtype == parameter.dtype or (made.is_floating_point() and parameter.is_floating_point())

    def _home(self, tensor: Tensor, key: int) -> _Home | None:
        """Return the memory that stands for the memory of a tensor; None if that one is too large."""
        if key in self._homes:
            return self._homes[key]
        real, owners = tensor.untyped_storage(), self._by_storage.get(key, [])
        if len({(part.dtype, self.memo[id(parameter)].dtype) for parameter, part in owners}) > 1:
            owners = [(each, part) for each, part in owners if part.dtype == self.memo[id(each)].dtype]
        old = new = tensor.dtype
        if owners:
            old, new = owners[0][1].dtype, self.memo[id(owners[0][0])].dtype
        num_bytes = real.nbytes() // old.itemsize * new.itemsize if old != new else real.nbytes()
        if len(owners) == 1 and owners[0][0] is owners[0][1]:
            stand_in, part = self.memo[id(owners[0][0])], owners[0][1]
            same_layout = stand_in.stride() == part.stride() and stand_in.storage_offset() == part.storage_offset()
            if same_layout and stand_in.untyped_storage().nbytes() >= num_bytes:
                self._homes[key] = _Home(stand_in.untyped_storage(), old, new)
                return self._homes[key]
        paid = 2 * sum(_nbytes(self.memo[id(parameter)]) for parameter, _ in owners)  # the stand-ins are there already
        if num_bytes > max(self.limit - self._spent, paid):
            self._homes[key] = None
            return None
        if num_bytes > paid:
            self._spent += num_bytes
        device = self.memo[id(owners[0][0])].device if owners else real.device
        storage = torch.UntypedStorage(num_bytes, device=device)  # type: ignore[no-untyped-call]
        home = self._homes[key] = _Home(storage, old, new)
        with torch.no_grad():
            if real.device == device and device.type != "meta":
                whole = torch.empty(0, dtype=new if old != new else torch.uint8, device=device).set_(storage)
                whole.copy_(torch.empty(0, dtype=old if old != new else torch.uint8, device=device).set_(real))
            for parameter, part in owners:
                stand_in, view = self.memo[id(parameter)], home.view(part)
                assert view is not None
                if part is parameter:
                    view.copy_(stand_in.detach())
                    stand_in.data = view
                else:
                    stand_in.grad = view
        return home

    def _tensor(self, value: Tensor, path: Path) -> Any:
        if id(value) in self._members:
            return self._left_out(value)
        key = storage_key(value)
        if value.device.type == "meta" and key not in self._by_storage:
            return value
        if key is None:
            made = self._wrapper(value, path) if is_wrapper(value) else value.detach().clone()
            if not made.is_leaf or made.requires_grad != value.requires_grad:
                made = made.detach().requires_grad_(value.requires_grad)
        else:
            home = self._home(value, key)
            if home is None:
                return value
            seen = home.view(value)
            made = value.detach().clone() if seen is None else seen
            if type(value) is not Tensor:
                made = torch.Tensor._make_subclass(type(value), made)
            made.requires_grad_(value.requires_grad)
        self._remember(value, made)
        for name, each in list(attributes_of(value).items()):
            if not name.endswith("_hooks") and name not in made.__dict__:
                made.__dict__[name] = self._copied(each, (path, name))
        return made

    def _wrapper(self, value: Any, path: Path) -> Any:
        """Copy a tensor that is made of others, such as one in 8 bits with its scales, or a distributed one."""
        names, how = value.__tensor_flatten__()
        inner = {name: self._copied(getattr(value, name), (path, name)) for name in names}
        return type(value).__tensor_unflatten__(inner, how, value.size(), value.stride())

    def _generator(self, value: torch.Generator, path: Path) -> Any:
        made = torch.Generator(device=value.device)
        made.set_state(value.get_state())
        return self._remember(value, made)

    def _module(self, value: torch.nn.Module, path: Path) -> Any:
        if isinstance(value, torch.jit.ScriptModule):
            return self._absent(value, path)
        made = self._remember(value, object.__new__(type(value)))
        into = attributes_of(made)
        for name, each in list(attributes_of(value).items()):
            is_hook = name.startswith("_") and ("hooks" in name)
            into[name] = type(each)() if is_hook and isinstance(each, dict) else self._copied(each, (path, name))
        return made

    def _lock(self, value: Any, path: Path) -> Any:
        if not value.acquire(blocking=False):
            return self._absent(value, path)
        value.release()
        return self._remember(value, _LOCKS[type(value)]())

    def _handle(self, value: Any, path: Path) -> Any:
        """Streams, graphs and process groups: the last may be used as they are by a process that is alone."""
        alone = "distributed" in type(value).__module__ and world_size() == 1
        return self._remember(value, value) if alone else self._absent(value, path)

    # All else

    def _object(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if self._is_over_weights(value):
            return self._absent(value, path)
        deep = getattr(kind, "__deepcopy__", None)
        if deep is not None:
            return self._remember(value, deep(value, self.memo))
        if _is_plain(kind):
            made = self._remember(value, object.__new__(kind))
            into = attributes_of(made)
            copied = self._copied if path else self._attribute  # a wrapper does without what it does not use, too
            for name, each in list(attributes_of(value).items()):
                into[name] = copied(each, (path, name))
            for slot, each in slots_of(value):
                slot.__set__(made, copied(each, (path, slot.__name__)))
            return made
        reduced = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(4)
        if isinstance(reduced, str):  # a global
            return self._remember(value, value)
        self._kept.append(reduced)
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        made = make(*[self._copied(each, path) for each in args])
        if made is value:
            return self._remember(value, value)
        self._remember(value, made)
        if state is not None:
            self._set_state(made, state, path)
        for each in items or ():
            made.append(self._copied(each, path))
        for key, each in pairs or ():
            made[self._copied(key, path)] = self._copied(each, (path, [key]))
        return made

    def _is_over_weights(self, value: Any) -> bool:
        """Return whether an array of another library lies in the memory of the parameters: its copy would not."""
        interface = getattr(type(value), "__array_interface__", None)
        if interface is None:
            return False
        address = value.__array_interface__["data"][0]
        return any(
            parameter.device.type == "cpu"
            and storage_key(parameter) is not None
            and parameter.data_ptr() <= address < parameter.data_ptr() + parameter.numel() * parameter.element_size()
            for parameter in self._members.values()
        )

    def _set_state(self, made: Any, state: Any, path: Path) -> None:
        set_state = getattr(type(made), "__setstate__", None)
        if set_state is not None:
            set_state(made, self._copied(state, path))
            return
        own, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        for name, each in (own or {}).items():
            attributes_of(made)[name] = self._copied(each, (path, name))
        for name, each in (slots or {}).items():
            object.__setattr__(made, name, self._copied(each, (path, name)))


class _KeepingRef(weakref.ref[Any]):
    """A weak reference to a copy that keeps it alive: the original is alive without the optimizer."""

    __slots__ = ("kept",)

    kept: Any


def _keeping(target: Any) -> _KeepingRef:
    made = _KeepingRef(target)
    made.kept = target
    return made


_EXACT: dict[type, Callable[[Copier, Any, Path], Any]] = {
    types.FunctionType: Copier._function,
    types.MethodType: Copier._method,
    types.BuiltinFunctionType: Copier._builtin,
    type("".__str__): Copier._builtin,
    types.CellType: Copier._cell,
    types.MappingProxyType: Copier._proxy_of_dict,
    torch.Generator: Copier._generator,
    weakref.ProxyType: Copier._proxy,
    weakref.CallableProxyType: Copier._proxy,
}
_BASES: tuple[tuple[type, Callable[[Copier, Any, Path], Any]], ...] = (
    (dict, Copier._dict),
    (list, Copier._list),
    (tuple, Copier._tuple),
    (set, Copier._set),
    (frozenset, Copier._frozenset),
    (deque, Copier._deque),
    (functools.partial, Copier._partial),
    (weakref.WeakKeyDictionary, Copier._weak_keys),
    (WeakTensorKeyDictionary, Copier._weak_keys),
    (weakref.WeakValueDictionary, Copier._weak_values),
    (weakref.WeakSet, Copier._weak_set),
)


def world_size() -> int:
    """Return how many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _new(kind: type) -> Any:
    """Make an empty container without running what its class does at first."""
    base: Any = next(base for base in kind.__mro__ if base.__module__ in {"builtins", "collections"})
    return base.__new__(kind)


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the dictionary of an instance, whatever its class does when attributes are read."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def slots_of(value: Any) -> list[tuple[Any, Any]]:
    """Return the slots of an instance that are set, with their values."""
    found = []
    for base in type(value).__mro__:
        if "__slots__" not in vars(base):  # the members of what is written in C cannot be set
            continue
        for slot in vars(base).values():
            if type(slot) is types.MemberDescriptorType:
                try:
                    found.append((slot, slot.__get__(value)))
                except AttributeError:
                    continue
    return found


def _is_plain(kind: Any) -> bool:
    """Return whether instances of a class are their attributes and nothing else."""
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and getattr(kind, "__getstate__", None) is getattr(object, "__getstate__", None)
        and not hasattr(kind, "__setstate__")
        and not any(hasattr(kind, name) for name in ("__getnewargs__", "__getnewargs_ex__"))
        and all(base.__flags__ & 1 << 9 for base in kind.__mro__[:-1])  # made by a class statement
    )


def _is_handle(kind: type) -> bool:
    """Return whether a class of torch is a handle of something outside of Python's memory."""
    return any(
        word in base.__name__
        for base in kind.__mro__
        for word in ("ProcessGroup", "Stream", "CUDAGraph", "Event", "Store", "DeviceMesh", "Work")
    )


def is_of_library(function: types.FunctionType) -> bool:
    """Return whether a function is torch's own or Python's, and found there under its name."""
    top = (function.__module__ or "").partition(".")[0]
    if top not in {"torch", "numpy"} and top not in sys.stdlib_module_names:
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _same_items(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(one[key] is value for key, value in other.items())


def _is_parallel(value: Any, parameters: Sequence[Any]) -> bool:
    """Return whether a setting of a group has one name, tensor or number for each of its parameters.

    Of few numbers it is not known: ``[0.9, 0.999]`` may be betas.
    """
    if not isinstance(value, list) or len(value) != len(parameters):
        return False
    if all(isinstance(each, str) for each in value) or all(isinstance(each, Tensor) for each in value):
        return True
    numbers = all(each is None or isinstance(each, bool | int | float) for each in value)
    return numbers and (len(value) >= SEVERAL or (None in value and len(value) > 1))


def address_of(tensor: Tensor) -> int | None:
    """Return where the memory of a tensor begins; None where it has none."""
    return None if storage_key(tensor) is None else tensor.data_ptr() or None


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def is_near(tensor: Tensor, weight: Tensor, distance: float, *, most: int) -> bool:
    """Return whether a tensor is about a weight; neither is 0.

    Args:
        tensor: A tensor.
        weight: Weights of the same shape.
        distance: Up to which relative distance it counts as a copy of the weights.
        most: How many elements, from everywhere, are compared at most, about.
    """
    step = max(1, weight.numel() // most) | 1
    wide = weight.detach().to(tensor.device).reshape(-1)[::step].double()
    size = wide.norm()
    return bool(size > 0 and (tensor.detach().reshape(-1)[::step].double() - wide).norm() <= distance * size)


def flags_of(value: Any) -> Any:
    """Return the flags in a state: truth values, strings, and dictionaries of them; None if there are none.

    A None says something only beside flags: alone it stands for a tensor that is still to come, and many optimizers
    begin where the state of a parameter is empty.
    """
    if type(value) in {bool, str}:
        return value
    if not isinstance(value, dict):
        return None
    flags = {key: flags_of(each) for key, each in value.items() if type(key) is str}
    if all(each is None for each in flags.values()):
        return None
    return {key: each for key, each in flags.items() if each is not None or value[key] is None}


def copies_in(state: Mapping[Any, Any]) -> frozenset[str]:
    """Return the names under which a state keeps copies of the weights: slow ones, averages, float32 masters.

    Args:
        state: The state of an optimizer, by parameter. What is told is told of all parameters together: one that is near
            0 moves far, for its size, in a few steps.
    """
    sums: dict[str, list[float]] = {}
    for weight, entries in state.items():
        if not isinstance(weight, Tensor) or not isinstance(entries, dict) or weight.device.type == "meta":
            continue
        for name, value in entries.items():
            if not _is_as_large(value, weight) or not value.is_floating_point() or value.device.type == "meta":
                continue
            step = max(1, weight.numel() // SOME) | 1
            wide = weight.detach().reshape(-1)[::step].double()
            far = (value.detach().to(weight.device).reshape(-1)[::step].double() - wide).square().sum()
            held = sums.setdefault(name, [0.0, 0.0])
            held[0], held[1] = held[0] + float(far), held[1] + float(wide.square().sum())
    return frozenset(name for name, (far, size) in sums.items() if size > 0.0 and far <= APART**2 * size)


def at_the_start(value: Any, weight: Tensor, stand_in: Tensor, copies: frozenset[str], name: str = "") -> Any:
    """Return the state of a parameter as it is before the first gradient: no moments, and copies of the weights.

    Args:
        value: The state, or one entry of it.
        weight: The weights that it belongs to.
        stand_in: The weights of the new state.
        copies: The names of what are copies of the weights.
        name: That of the entry.
    """
    if isinstance(value, dict):
        return {key: at_the_start(each, weight, stand_in, copies, key) for key, each in value.items()}
    if not _is_as_large(value, weight):
        return _cloned(value)
    dtype = torch.promote_types(value.dtype, stand_in.dtype) if value.is_floating_point() else value.dtype
    dtype = stand_in.dtype if value.dtype == weight.dtype else dtype
    made = torch.zeros(stand_in.shape, dtype=dtype, device=stand_in.device)
    return made.copy_(stand_in.detach()) if name in copies else made


def _is_as_large(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and type(value) in _SIMPLE and value.shape == weight.shape and value.ndim > 0


def _cloned(value: Any) -> Any:
    """Copy the state of one stand-in for another."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(each) for key, each in value.items()}
    return value


def _spelt(path: Path) -> str:
    """Return a path as code would: ``model.cache["x"]``."""
    steps: list[Any] = []
    while path:
        path, step = path
        steps.append(step)
    text = ""
    for step in reversed(steps):
        if isinstance(step, list):
            text += f"[{step[0]!r}]" if isinstance(step[0], int | str) else "[...]"
        else:
            text += f".{step}" if text else str(step)
    return text or "itself"
