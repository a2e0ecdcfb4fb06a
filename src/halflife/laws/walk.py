"""Ways from the code of an optimizer to the real weights that no copy can follow: globals, class attributes, closures."""

from __future__ import annotations

import bisect
import dis
import functools
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from halflife.laws.copier import address_of, attributes_of, is_like_an_optimizer, storage_key
from halflife.laws.graph import children, reachable, with_inner
from halflife.optim.norms import is_distributed

__all__ = ["shared_places", "unfaithful"]

MANY = 5000  # objects that one name may lead to
MANY_KEPT = 100_000  # objects that are looked through for memory of weights
MOST_ADDRESSES = 10_000  # numbers in one tensor or array that may be addresses
FUNCTIONS = 500  # that are read
LIBRARIES = frozenset(
    {"torch", "numpy", "halflife", "typing_extensions", "torchgen", "accelerate", *sys.stdlib_module_names}
)
LIBRARIES -= {"__main__"}

# What a step does not run.
NOT_RUN = frozenset(
    {
        *(
            "__init__",
            "__new__",
            "__init_subclass__",
            "__del__",
            "__repr__",
            "__str__",
            "__doc__",
            "__module__",
            "__dict__",
        ),
        *("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__weakref__"),
        *(
            "__annotations__",
            "__qualname__",
            "__slots__",
            "__firstlineno__",
            "__static_attributes__",
            "__abstractmethods__",
        ),
        *("state_dict", "load_state_dict", "add_param_group", "_abc_impl"),
    }
)
# What says nothing about the values of a tensor, and is the same for its stand-in.
OUTSIDE = frozenset({"shape", "ndim", "dtype", "device", "size", "dim", "numel", "layout", "is_cuda"})

# What code names that treats the parts of distributed tensors in a way of its own: copies are plain tensors.
DISTRIBUTED = frozenset({"DTensor", "to_local", "_local_tensor", "full_tensor", "placements", "device_mesh"})
# What code names that reaches memory past torch.
PAST_TORCH = frozenset({"ctypes", "from_address", "memmove", "memset"})
SEARCHES = frozenset({"get_objects", "get_referrers"})

Use = tuple[
    str, str, tuple[str, ...]
]  # "global", "written", "closure" or "import"; name; the attributes that are read from it


def unfaithful(optimizers: Iterable[Any]) -> str | None:
    """Say how the step of an optimizer reaches the real weights past its own attributes, so that no copy can follow.

    Read is the code that a step may run: that of the classes that are not torch's, of inner optimizers, and of the
    functions and objects that it names. What it names counts, not what stands beside it: a script's global ``model``
    is nothing to an optimizer whose code does not name it.

    Args:
        optimizers: The optimizers that are to be copied.

    Returns:
        A sentence, or None if no such way was found.
    """
    walk = _Walk(optimizers)
    walk.run()
    if walk.found is None:
        if walk.is_distributed and walk.names & DISTRIBUTED:
            named = min(walk.names & DISTRIBUTED)
            what = f"its code treats distributed tensors in a way of its own (`{named}`)"
            return f"{what}, and copies are plain"
        if walk.names & PAST_TORCH:
            return f"its code reaches memory past torch (`{min(walk.names & PAST_TORCH)}`), which no copy can follow"
        kept = _memory_kept(walk.optimizers, walk.parameters)
        return None if kept is None else f"it keeps {kept}, which no copy can follow"
    name, what = walk.found
    return f"its code reads the real weights through `{name}`, {what}, which no copy can follow"


def _memory_kept(optimizers: Sequence[Any], parameters: Iterable[Tensor]) -> str | None:
    """Say in which objects that are no tensors an optimizer keeps the memory of its weights, or addresses in it.

    The address at which a weight begins is no matter where it stands alone: a copy has that of its own weight there.

    Args:
        optimizers: The optimizers.
        parameters: Their weights.

    Returns:
        What it keeps, in words; None if nothing was found.
    """
    memory = sorted(
        {(each.untyped_storage().data_ptr(), each.untyped_storage().nbytes()) for each in parameters if _is_here(each)}
    )
    starts = [start for start, _ in memory]

    def is_inside(address: int) -> bool:
        place = bisect.bisect_right(starts, address) - 1
        return place >= 0 and address < starts[place] + memory[place][1]

    keys = {storage_key(each) for each in parameters}
    begins = {each.data_ptr() for each in parameters if _is_here(each)}
    for value in reachable(optimizers, limit=MANY_KEPT, without=torch.nn.Module):
        kind = type(value)
        if kind is memoryview or any(base.__module__ == "_ctypes" for base in kind.__mro__):
            if any(is_inside(each) for each in _addresses_of(value)):
                return f"the memory of weights past torch (a {kind.__name__})"
            continue
        if issubclass(kind, torch.UntypedStorage | torch.TypedStorage) and is_inside(value.data_ptr()):
            return "the storage of weights"
        numbers: list[Any] = []
        if issubclass(kind, Tensor):
            if _is_here(value) and storage_key(value) not in keys and value.numel() and is_inside(value.data_ptr()):
                return "the memory of weights in a tensor that was made past torch"
            if value.dtype == torch.int64 and value.numel() <= MOST_ADDRESSES and _is_here(value):
                numbers = value.flatten().tolist()
        elif kind.__module__ == "numpy" and hasattr(value, "__array_interface__"):
            if is_inside(value.__array_interface__["data"][0]):
                return "the memory of weights in an array of NumPy"
            if value.dtype.kind in "iu" and value.size <= MOST_ADDRESSES:
                numbers = value.reshape(-1).tolist()
        elif issubclass(kind, dict | list | tuple | set | frozenset):
            numbers = [each for each in children(value) if type(each) is int and each not in begins]
        if any(is_inside(each) for each in numbers):
            return "addresses in the memory of weights"
    return None


def _addresses_of(value: Any) -> Iterator[int]:
    """Yield where the memory of a memoryview, or of an object of ctypes, begins, and what addresses it holds."""
    with suppress(Exception), warnings.catch_warnings():  # of other memory than bytes in a row, or none
        warnings.simplefilter("ignore")  # that torch must not write into it
        yield torch.frombuffer(value, dtype=torch.uint8).data_ptr()
    if hasattr(value, "_length_"):  # an array, maybe of pointers
        yield from [each for each in value[:MOST_ADDRESSES] if type(each) is int]
    elif hasattr(value, "contents") and value:  # a pointer; one to nothing is false
        with suppress(Exception):
            yield torch.frombuffer(value.contents, dtype=torch.uint8).data_ptr()


def _is_here(tensor: Tensor) -> bool:
    """Return whether a tensor has memory whose address can be compared."""
    return storage_key(tensor) is not None and tensor.device.type != "meta" and tensor.layout == torch.strided


def shared_places(optimizers: Iterable[Any]) -> list[tuple[Any, str | None]]:
    """Return the globals and class attributes that the step of an optimizer names: a step of a copy may change them.

    Args:
        optimizers: The optimizers.

    Returns:
        Pairs: the dictionary of a module and the name there, or a class and None.
    """
    walk = _Walk(optimizers, stop=False)
    walk.run()
    return [*walk.places.values(), *((kind, None) for kind in walk.classes)]


class _Walk:
    """Reads the code that a step may run."""

    def __init__(self, optimizers: Iterable[Any], *, stop: bool = True) -> None:
        self.optimizers = list(with_inner(optimizers))
        parameters = [
            each
            for optimizer in self.optimizers
            for group in getattr(optimizer, "param_groups", ())
            for each in group["params"]
            if isinstance(each, Tensor)
        ]
        self.parameters = parameters
        self.is_distributed = any(is_distributed(each) for each in parameters)
        self.ids = {id(each) for each in (*parameters, *self.optimizers)}
        self.ids |= {address for each in parameters if (address := address_of(each)) is not None}
        self.storages = {storage_key(each) for each in parameters} - {None}
        self.stop = stop
        self.found: tuple[str, str] | None = None
        self.places: dict[tuple[int, str], tuple[Any, str]] = {}
        self.names = {"step"}
        self.classes: dict[type, set[str]] = {}  # and what of them was read
        self.instances: dict[int, Any] = {}
        self._read: set[int] = set()
        self._waiting: list[tuple[types.FunctionType, bool]] = []
        self._keep: list[Any] = []

    def run(self) -> None:
        """Read on until no new code is named."""
        for optimizer in self.optimizers:
            self._enter(optimizer)
        while self.found is None and len(self._read) < FUNCTIONS:
            while self._waiting and self.found is None and len(self._read) < FUNCTIONS:
                self._read_function(*self._waiting.pop())
            before = len(self._read), len(self.names), len(self.classes), len(self.instances)
            self._look_up()
            after = len(self._read), len(self.names), len(self.classes), len(self.instances)
            if not self._waiting and before == after:
                return

    def _enter(self, value: Any) -> None:
        """Take an object into account: its attributes, and the attributes of its class."""
        kind = type(value)
        if id(value) in self.instances or issubclass(kind, Tensor | torch.nn.Module | type | types.ModuleType):
            return
        if is_library(kind.__module__) and not is_like_an_optimizer(value):
            return
        self.instances[id(value)] = value
        self._enter_class(kind)

    def _enter_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if not is_library(base.__module__) and not issubclass(base, torch.nn.Module):
                self.classes.setdefault(base, set())

    def _look_up(self) -> None:
        """Find what the names that were read mean as attributes."""
        for kind, seen in list(self.classes.items()):
            for name, value in list(vars(kind).items()):
                if name in seen or name in NOT_RUN or not (name in self.names or name.startswith("__")):
                    continue
                seen.add(name)
                self._take(value, name, "a class attribute", class_level=True)
        for value in list(self.instances.values()):
            for name, each in list(attributes_of(value).items()):
                if name in self.names:
                    self._take_own(each)

    def _take_own(self, value: Any) -> None:
        """Take the value of an instance's attribute: it is copied, and only code that it leads to matters."""
        for each in (value, *(children(value) if isinstance(value, list | tuple | dict) else ())):
            for function in _functions_in(each):
                self._wait(function, class_level=False)
            target = each.__self__ if isinstance(each, types.MethodType) else each
            self._enter(target)

    def _wait(self, function: types.FunctionType, *, class_level: bool) -> None:
        if id(function) not in self._read:
            self._waiting.append((function, class_level))

    def _take(self, value: Any, name: str, what: str, *, class_level: bool) -> None:
        """Take what a name means: code is read, data is looked through for real weights."""
        if isinstance(value, property):
            for function in (value.fget, value.fset):
                if isinstance(function, types.FunctionType):
                    self._wait(function, class_level=class_level)
            return
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        functions = list(_functions_in(value))
        for function in functions:
            self._wait(function, class_level=class_level)
        if isinstance(value, type):
            if not is_library(value.__module__):
                self._enter_class(value)
            return
        if isinstance(value, types.FunctionType | types.ModuleType | types.BuiltinFunctionType):
            return
        if self._leads(value):
            self._report(name, what)
            return
        self._enter(value)

    def _report(self, name: str, what: str) -> None:
        if self.stop:
            self.found = (name, what)

    def _leads(self, value: Any) -> bool:
        """Return whether a value leads to a parameter, its memory, its id, or the optimizer itself."""
        seen: set[int] = set()
        waiting = [value]
        while waiting and len(seen) < MANY:
            each = waiting.pop()
            kind = type(each)
            if kind is int:
                if each in self.ids:
                    return True
                continue
            if each is None or id(each) in seen or issubclass(kind, str | float | bytes | type | types.ModuleType):
                continue
            if id(each) in self.ids:
                return True
            if issubclass(kind, Tensor) and each.device.type != "meta" and storage_key(each) in self.storages:
                return True
            seen.add(id(each))
            self._keep.append(each)  # or its id is given to the next one
            waiting += children(each)
        return False

    # Code

    def _read_function(self, function: types.FunctionType, class_level: bool) -> None:
        if id(function) in self._read:
            return
        self._read.add(id(function))
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        values = {name: cell.cell_contents for name, cell in cells.items() if _is_filled(cell)}
        if is_library(str(function.__globals__.get("__name__", ""))):  # a wrapper, such as torch.no_grad's
            for value in values.values():
                for inner in _functions_in(value):
                    self._wait(inner, class_level=class_level)
            return
        if class_level:
            code, defaults = function.__code__, function.__defaults__ or ()
            names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
            for name, value in (*zip(names, defaults, strict=True), *(function.__kwdefaults__ or {}).items()):
                self._take(value, name, "a default argument", class_level=True)
        self._read_code(function.__code__, function.__globals__, values, class_level)

    def _read_code(
        self, code: types.CodeType, names: dict[str, Any], cells: Mapping[str, Any], class_level: bool
    ) -> None:
        uses, attributes = _uses(code)
        self.names |= attributes
        if attributes & SEARCHES:
            self._report("gc", "the list of all objects")
        if any(use[:2] == ("global", "getattr") for use in uses):  # any name may be meant
            for optimizer in self.optimizers:
                self.names |= {name for base in type(optimizer).__mro__ if base in self.classes for name in vars(base)}
        for origin, name, chain in uses:
            if origin == "written":
                self.places.setdefault((id(names), name), (names, name))
            elif origin == "global" and name in names:
                self.names |= {name} & (DISTRIBUTED | PAST_TORCH)
                self.places.setdefault((id(names), name), (names, name))
                self._follow(names[name], chain, name, "a global", class_level=True)
            elif origin == "closure" and name in cells:
                if class_level and name != "__class__":
                    self._follow(cells[name], chain, name, "a variable around its class", class_level=True)
                elif name != "__class__":
                    self._take_own(cells[name])
            elif origin == "import" and (module := _imported(name, names)) is not None:
                for each in sorted(attributes & vars(module).keys()):
                    self.places.setdefault((id(vars(module)), each), (vars(module), each))
                    self._follow(module, (each,), f"{name}.{each}", "a global", class_level=True)
            elif origin == "global" and name == "globals":
                for each in code.co_consts:
                    if isinstance(each, str) and each in names:
                        self._follow(names[each], (), each, "a global", class_level=True)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._read_code(inner, names, cells, class_level)

    def _follow(self, value: Any, chain: tuple[str, ...], name: str, what: str, *, class_level: bool) -> None:
        """Go from a value along the attributes that the code reads from it, as far as that is certain."""
        for attribute in chain:
            if isinstance(value, types.ModuleType):
                if is_library(value.__name__) or attribute not in vars(value):
                    return
                self.places.setdefault((id(vars(value)), attribute), (vars(value), attribute))
                value = vars(value)[attribute]
                name = f"{name}.{attribute}"
                continue
            if issubclass(type(value), Tensor) and attribute in OUTSIDE:
                return
            inner = _own(value, attribute)
            if inner is _UNKNOWN:
                break
            value, name = inner, f"{name}.{attribute}"
        self._take(value, name, what, class_level=class_level)


_UNKNOWN = object()


def _own(value: Any, name: str) -> Any:
    """Return a plain attribute of an object, or a marker if it may be made by code."""
    if isinstance(value, type):
        for base in value.__mro__:
            if name in vars(base):
                found = vars(base)[name]
                return found if not isinstance(found, staticmethod | classmethod | property) else _UNKNOWN
        return _UNKNOWN
    own = attributes_of(value)
    if name in own:
        return own[name]
    if issubclass(type(value), torch.nn.Module):
        for place in ("_parameters", "_buffers", "_modules"):
            if name in own.get(place, {}):
                return own[place][name]
    for base in type(value).__mro__:
        found = vars(base).get(name)
        if isinstance(found, bool | int | float | str):
            return found
    return _UNKNOWN


def is_library(module: str | None) -> bool:
    """Return whether a module belongs to torch, NumPy, Python or halflife."""
    return (module or "").partition(".")[0] in LIBRARIES


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions that a call of a value calls."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, types.MethodType):
        yield from _functions_in(value.__func__)
    elif isinstance(value, functools.partial):
        yield from _functions_in(value.func)


def _imported(name: str, names: Mapping[str, Any]) -> types.ModuleType | None:
    """Return the module that an import within a function gives; None for libraries."""
    for full in (f"{names.get('__package__')}.{name}".rstrip("."), name):
        if full in sys.modules and not is_library(full):
            return sys.modules[full]
    return None


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _uses(code: types.CodeType) -> tuple[tuple[Use, ...], frozenset[str]]:
    """Return what code reads from around it, and all names that it uses for attributes."""
    found: list[Use] = []
    attributes: set[str] = set()
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR", "STORE_ATTR"}:
            attributes.add(name)
            if chain is not None and operation in {"LOAD_ATTR", "LOAD_METHOD"}:
                chain.append(name)
                origin, first, _ = found[-1]
                found[-1] = (origin, first, tuple(chain))
            continue
        chain = None
        if operation in {"LOAD_GLOBAL", "LOAD_NAME"}:
            found.append(("global", name, ()))
            chain = []
        elif operation in {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}:
            found.append(("closure", name, ()))
            chain = []
        elif operation in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            found.append(("written", name, ()))
        elif operation == "IMPORT_NAME":
            found.append(("import", name, ()))
    return tuple(found), frozenset(attributes)
