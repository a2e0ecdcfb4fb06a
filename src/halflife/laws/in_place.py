"""Step the real optimizer and put everything back: what was recorded before has the same bits afterwards."""

from __future__ import annotations

import io
import queue
import random
import socket
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from halflife.errors import HalflifeError
from halflife.laws.copier import attributes_of, is_wrapper, slots_of, storage_key
from halflife.laws.graph import MANY, reachable
from halflife.laws.guard import alike, picture, put_back
from halflife.laws.law import NotProbedError
from halflife.laws.walk import shared_places

__all__ = ["NotRestoredError", "Snapshot", "unrestorable"]


FEW = 10_000  # objects, or elements of a tensor, that globals lead to and that are put back after a copy's step
_MISSING = object()


class NotRestoredError(HalflifeError, RuntimeError):
    """Something that was recorded could not be put back to the bit."""


class Snapshot:
    """What optimizers lead to, as it is now.

    Recorded are the contents of containers and objects, each tensor's memory, bits, ``grad`` and ``requires_grad``, random
    generators, also torch's, Python's and NumPy's global ones, the default dtype, the globals and class attributes that the
    code of a step names. What cannot be recorded: see `unrestorable`. The ``_version`` of tensors goes up. Memory: as much
    again as all these tensors have.

    In a ``with`` statement, as often as one likes: after the body, also after an error, everything is as it was.

    Args:
        optimizers: The optimizers.
        extra: What else is recorded, such as the model.

    Raises:
        NotProbedError: If they lead to too many objects.
        NotRestoredError: At the end of a body, if something could not be put back.
    """

    def __init__(self, optimizers: Iterable[Any], extra: Iterable[Any] = ()) -> None:
        optimizers = list(optimizers)
        self._start(shared_places(optimizers))
        objects = reachable([*optimizers, *extra, *_data_in(self._places)])
        if len(objects) >= MANY:
            raise NotProbedError(
                f"it leads to {len(objects)} objects or more, too many to be put back; "
                "take what it does not need (a dataset, a log) out of its attributes"
            )
        self._record_all(objects)
        self._record_global({each.device for each in objects if issubclass(type(each), Tensor)})

    @classmethod
    def of_places(cls, places: Iterable[tuple[Any, str | None]]) -> Snapshot:
        """Record globals and class attributes alone, with the small things that they lead to; no models.

        Args:
            places: What `halflife.laws.walk.shared_places` gives for the real optimizers; empty for those of torch.

        Returns:
            The snapshot.
        """
        made = cls.__new__(cls)
        made._start(places)
        objects = reachable(_data_in(made._places), limit=FEW, without=torch.nn.Module)
        made._record_all([each for each in objects if not (issubclass(type(each), Tensor) and each.numel() > FEW)])
        return made

    def _start(self, places: Iterable[tuple[Any, str | None]]) -> None:
        self._places = [
            (holder, name, value)
            for holder, key in places
            for name, value in ([(key, holder.get(key, _MISSING))] if key is not None else list(vars(holder).items()))
        ]
        self._classes = {holder: set(vars(holder)) for holder, key in places if key is None}
        self._undo: list[
            tuple[str, Callable[[], bool]]
        ] = []  # each puts one thing back and says whether it is as it was
        self._memory: dict[int, tuple[torch.UntypedStorage, Tensor, Tensor]] = {}
        self._tensors: list[tuple[Tensor, tuple[Any, ...]]] = []
        self._dicts: list[tuple[dict[Any, Any], tuple[tuple[Any, Any], ...], str]] = []

    def _record_all(self, objects: list[Any]) -> None:
        self._kept = objects  # no id is used twice while this lives
        for value in objects:
            if issubclass(type(value), Tensor):
                self._record_tensor(value)
            else:
                self._record(value)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put everything back.

        Raises:
            NotRestoredError: If something is not as it was to the bit.
        """
        failed = []
        for kind, names in self._classes.items():
            for name in set(vars(kind)) - names:
                delattr(kind, name)
        for holder, name, value in self._places:
            _put_back_place(holder, name, value)
        failed += [what for value, items, what in self._dicts if not _put_back_items(value, items)]
        for what, undo in self._undo:
            try:
                if not undo():
                    failed.append(what)
            except Exception as error:  # whatever the objects of others raise
                failed.append(f"{what} ({type(error).__name__}: {error})")
        for tensor, before in self._tensors:
            if not alike(picture(tensor), before):
                put_back(tensor, before)
                if not alike(picture(tensor), before):
                    failed.append(_name_of(tensor))
        with torch.no_grad():
            for storage, bits, tensor in self._memory.values():
                if not _put_back_bits(storage, bits):
                    failed.append(_name_of(tensor))
        if failed:
            raise NotRestoredError(
                f"after stepping the optimizer in place {failed[0]} could not be put back as it was; "
                "start again from your last checkpoint"
            )

    def recorded(self, tensor: Tensor) -> Tensor:
        """Return the values that a tensor had, without a copy: nobody may write into them.

        Args:
            tensor: One that was recorded, with memory of its own.
        """
        key = storage_key(tensor)
        assert key is not None
        bits = self._memory[key][1].untyped_storage()
        like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return like.set_(bits, tensor.storage_offset(), tensor.size(), tensor.stride())

    # Recording

    def _record_tensor(self, tensor: Tensor) -> None:
        self._tensors.append((tensor, picture(tensor)))
        self._record_attributes(tensor)
        if tensor.device.type == "meta" or is_wrapper(tensor):  # the values are in other tensors, which are recorded
            return
        key = storage_key(tensor)
        if key is None:
            value = tensor.detach().clone()

            def undo_value() -> bool:
                with torch.no_grad():
                    tensor.copy_(value)
                return _same_values(tensor.detach(), value)

            self._undo.append((_name_of(tensor), undo_value))
        elif key not in self._memory:
            storage = tensor.untyped_storage()
            self._memory[key] = (storage, _bytes_of(storage).clone(), tensor)

    def _record_attributes(self, value: Any) -> None:
        own = attributes_of(value)
        if own is not value and type(value).__dictoffset__:
            self._record_items(own, f"an attribute of a {type(value).__name__}")
        for slot, each in slots_of(value):
            self._undo.append((f"{slot.__name__} of a {type(value).__name__}", _resetter(slot, value, each)))

    def _record_items(self, value: dict[Any, Any], what: str) -> None:
        self._dicts.append((value, _items_of(value), what))

    def _record(self, value: Any) -> None:
        kind = type(value)
        what = f"a {kind.__name__}"
        if issubclass(kind, dict):
            self._record_items(value, what)
        elif issubclass(kind, list | deque):
            self._record_sequence(value, what)
        elif issubclass(kind, set):
            members = list(value)

            def undo_set() -> bool:
                if len(value) != len(members) or any(each not in value for each in members):
                    set.clear(value)
                    set.update(value, members)
                return len(value) == len(members)

            self._undo.append((what, undo_set))
        elif issubclass(kind, types.CellType):
            self._record_cell(value)
        elif issubclass(kind, torch.Generator):
            state = value.get_state()

            def undo_generator() -> bool:
                value.set_state(state)
                return torch.equal(value.get_state(), state)

            self._undo.append((what, undo_generator))
        elif issubclass(kind, random.Random):
            self._record_state(what, value.getstate, value.setstate)
        elif issubclass(kind, bytearray):
            self._record_state(what, lambda: bytes(value), lambda old: value.__setitem__(slice(None), old))
        elif (place := _place_of(value)) is not None:

            def undo_iterator() -> bool:
                value.__setstate__(place)
                return _place_of(value) == place

            self._undo.append((what, undo_iterator))
        elif issubclass(kind, types.FunctionType):
            defaults, keywords = value.__defaults__, value.__kwdefaults__

            def undo_function() -> bool:
                value.__defaults__, value.__kwdefaults__ = defaults, keywords
                return True

            self._undo.append((what, undo_function))
        elif kind.__module__.partition(".")[0] == "numpy":
            self._record_numpy(value, what)
        self._record_attributes(value)

    def _record_sequence(self, value: Any, what: str) -> None:
        items = list(value)
        base: Any = list if isinstance(value, list) else deque

        def undo() -> bool:
            if not _same_objects(list(value), items):
                base.clear(value)
                base.extend(value, items)
            return _same_objects(list(value), items)

        self._undo.append((what, undo))

    def _record_cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # an empty one
            return

        def undo() -> bool:
            cell.cell_contents = content
            return True

        self._undo.append(("a variable of a closure", undo))

    def _record_state(self, what: str, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        state = get()

        def undo() -> bool:
            put(state)
            return bool(get() == state)

        self._undo.append((what, undo))

    def _record_numpy(self, value: Any, what: str) -> None:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return
        if isinstance(value, numpy.ndarray):
            old, bits = value.copy(), value.tobytes()

            def undo() -> bool:
                if value.dtype.hasobject or value.tobytes() != bits:
                    value[...] = old
                return value.dtype.hasobject or bool(value.tobytes() == bits)

            self._undo.append((what, undo))
        elif isinstance(value, numpy.random.Generator):
            self._record_bit_generator(value.bit_generator, what)
        elif isinstance(value, numpy.random.BitGenerator):
            self._record_bit_generator(value, what)
        elif isinstance(value, numpy.random.RandomState):
            self._record_legacy(value, what)

    def _record_bit_generator(self, value: Any, what: str) -> None:
        state = value.state

        def undo() -> bool:
            value.state = state
            return repr(value.state) == repr(state)

        self._undo.append((what, undo))

    def _record_legacy(self, value: Any, what: str) -> None:
        state = value.get_state()

        def undo() -> bool:
            value.set_state(state)
            return repr(value.get_state()) == repr(state)

        self._undo.append((what, undo))

    def _record_global(self, devices: Iterable[torch.device]) -> None:
        self._record_state("Python's random generator", random.getstate, random.setstate)
        numpy_random: Any = sys.modules.get("numpy.random")
        if numpy_random is not None:
            self._record_legacy(numpy_random, "NumPy's random generator")
        self._record_rng("torch's random generator", torch.get_rng_state, torch.set_rng_state)
        for device in devices:
            if device.type not in {"cpu", "meta"}:
                self._record_device(device)
        self._record_state("the default dtype", torch.get_default_dtype, torch.set_default_dtype)

    def _record_device(self, device: torch.device) -> None:
        module = torch.get_device_module(device)
        self._record_rng(
            f"the random generator of {device}",
            lambda: module.get_rng_state(device),
            lambda state: module.set_rng_state(state, device),
        )

    def _record_rng(self, what: str, get: Callable[[], Tensor], put: Callable[[Tensor], None]) -> None:
        state = get()

        def undo() -> bool:
            put(state)
            return torch.equal(get(), state)

        self._undo.append((what, undo))


# Objects that change when they are used, and cannot be set back.
_ONE_WAY: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType), "a generator"),
    (io.IOBase, "an open file"),
    (socket.socket, "a socket"),
    (threading.Thread, "a thread"),
    ((queue.Queue, queue.SimpleQueue), "a queue"),
    (torch.jit.ScriptModule, "a compiled module"),
)


def unrestorable(optimizers: Iterable[Any]) -> list[str]:
    """Name what a step in place may change and nothing can put back.

    Args:
        optimizers: The optimizers.

    Returns:
        Such as ``"handle, a generator"``, by the attribute that leads there; usually nothing.
    """
    found: dict[str, None] = {}
    for optimizer in optimizers:
        for name, value in attributes_of(optimizer).items():
            for each in reachable([value]):
                kind = type(each)
                word = next((word for kinds, word in _ONE_WAY if issubclass(kind, kinds)), None)
                if word is None and hasattr(kind, "__next__") and _place_of(each) is None:
                    word = "an iterator"
                if word is None and "ProcessGroup" in kind.__name__:
                    word = "a process group"
                if word is not None:
                    found[f"{name}, {word}"] = None
    return list(found)


def _place_of(value: Any) -> int | None:
    """Return where an iterator over a sequence stands, if it can be set back."""
    kind: Any = type(value)
    if kind.__module__ != "builtins" or not hasattr(kind, "__next__") or not hasattr(kind, "__setstate__"):
        return None
    reduced = value.__reduce__()
    return reduced[2] if len(reduced) == 3 and type(reduced[2]) is int else None


def _data_in(places: Iterable[tuple[Any, str, Any]]) -> list[Any]:
    """Return the values that are neither code nor missing."""
    code = (types.FunctionType, staticmethod, classmethod, property, types.GetSetDescriptorType)
    return [value for *_, value in places if value is not _MISSING and not isinstance(value, code)]


def _put_back_place(holder: Any, name: str, value: Any) -> None:
    """Put a global or class attribute back."""
    if isinstance(holder, type):
        if vars(holder).get(name, _MISSING) is not value:
            setattr(holder, name, value)
    elif value is _MISSING:
        holder.pop(name, None)
    else:
        holder[name] = value


def _resetter(slot: Any, owner: Any, value: Any) -> Callable[[], bool]:
    def undo() -> bool:
        slot.__set__(owner, value)
        return True

    return undo


def _name_of(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}"


def _items_of(value: dict[Any, Any]) -> tuple[tuple[Any, Any], ...]:
    """Return the items of a dictionary in their order, whatever its class makes of them."""
    return tuple(OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value))


def _put_back_items(value: dict[Any, Any], items: Sequence[tuple[Any, Any]]) -> bool:
    """Put the items of a dictionary back, in their order; return whether they are there."""
    if not _same_pairs(_items_of(value), items):
        ordered = isinstance(value, OrderedDict)
        (OrderedDict.clear if ordered else dict.clear)(value)
        for key, each in items:
            (OrderedDict.__setitem__ if ordered else dict.__setitem__)(value, key, each)
    return _same_pairs(_items_of(value), items)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    bits = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return bits if bits.numel() % 8 else bits.view(torch.int64)  # words are compared several times faster than bytes


def _put_back_bits(storage: torch.UntypedStorage, bits: Tensor) -> bool:
    if storage.nbytes() != bits.nbytes:
        storage.resize_(bits.nbytes)
    now = _bytes_of(storage)
    if not torch.equal(now, bits):
        now.copy_(bits)
    return torch.equal(now, bits)


def _same_values(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 - NaN


def _same_pairs(one: Sequence[tuple[Any, Any]], other: Sequence[tuple[Any, Any]]) -> bool:
    return len(one) == len(other) and all(a is c and b is d for (a, b), (c, d) in zip(one, other, strict=True))


def _same_objects(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
