"""What one run read, by name instead of by line, and a compact form of it in a file.

To read one quantity of 10,000 runs, 10 million lines would be taken apart. So the readings of a run lie a second time beside
their lines, in ``readings.safetensors``, one tensor a quantity, and only what is asked for is read.

The lines are the truth. The file holds what identifies them on this machine (size, times, inode) and a checksum of each tensor.
It is written anew from the lines if it is damaged, older than they are, or came with a store from elsewhere. One quantity of a
run of 1,000 readings takes 17 us so, and 380 us with polars from Arrow or Parquet, that is 4 s for 10,000 runs.

Shapes: R readings, K of them with a quantity, N elements of an array.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from halflife.errors import StoreError
from halflife.studies.store.files import LARGEST_READINGS, DamagedError, checksum, read_bytes, stamp, write_whole
from halflife.studies.store.records import Array, Record, read_records

__all__ = ["Columns", "Recent", "read_columns", "tensors_of", "unpacked"]

Tensor = NDArray[Any]
COMPACT = ".safetensors"
FORMAT = "halflife readings 1"
DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
WIDTHS = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
USUAL_HEADER = 1 << 13  # bytes
SMALL = 256  # bytes of a tensor that is kept from the first look at a file
SMALLEST_COMPACT = 1 << 14  # bytes of lines; fewer are read as fast as another file


def unpacked(array: Array) -> NDArray[np.float64]:
    """A stored array as numbers.

    Args:
        array: As in a reading.

    Returns:
        Its elements, shape (N,); 0 or 1 for bits.
    """
    return _numbers(np.frombuffer(array.data, dtype=_item(array.dtype)), array.length)


def _item(dtype: str) -> str:
    return "u1" if dtype == "bits" else dtype


def _numbers(raw: Tensor, length: int) -> NDArray[np.float64]:
    """Elements of an array from its bytes, if it is one of bits, or from its numbers."""
    found = np.unpackbits(raw, count=length) if raw.dtype == np.uint8 else raw
    return found.astype(np.float64)


def tensors_of(records: Iterable[Record]) -> dict[str, Tensor]:
    """The tensors of a run's readings.

    Args:
        records: In the order of their steps.

    Returns:
        ``step`` and ``epoch``, (R,); for each quantity ``value:NAME``, (K,), and ``value-rows:NAME``, (K,), unless K = R; for
        each array ``array:NAME``, (K, N) or as bytes of bits, and ``array-rows:NAME``, (1 + K,), N and then the rows.

    Raises:
        StoreError: An array has another length or type than it had before.
    """
    steps: list[int] = []
    epochs: list[float] = []
    groups: dict[tuple[str, ...], tuple[list[int], list[tuple[float, ...]]]] = {}  # readings with the same names
    arrays: dict[str, tuple[list[int], list[Array]]] = {}
    for row, (step, epoch, values, found) in enumerate(records):
        steps.append(step)
        epochs.append(epoch)
        rows, numbers = groups.setdefault(tuple(values), ([], []))
        rows.append(row)
        numbers.append(tuple(values.values()))
        for name, array in found.items():
            own_rows, own = arrays.setdefault(name, ([], []))
            own_rows.append(row)
            own.append(array)
    tensors: dict[str, Tensor] = {"step": np.array(steps, dtype="<i8"), "epoch": np.array(epochs, dtype="<f8")}
    for names in groups:
        if both := arrays.keys() & set(names):
            raise StoreError(f"{min(both)} is a number and an array, expected one of them")
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for names, (rows, numbers) in groups.items():
        table = np.array(numbers, dtype="<f8").T
        for name, column in zip(names, table, strict=True):
            parts.setdefault(name, []).append((np.array(rows, dtype="<i4"), column))
    for name, found_parts in parts.items():
        all_rows = np.concatenate([rows for rows, _ in found_parts])
        order = np.argsort(all_rows)
        tensors[f"value:{name}"] = np.concatenate([column for _, column in found_parts])[order]
        if len(all_rows) < len(steps):
            tensors[f"value-rows:{name}"] = all_rows[order]
    for name, (rows, own) in arrays.items():
        kinds = list(dict.fromkeys((array.length, array.dtype) for array in own))
        if len(kinds) > 1:
            words = " and ".join(f"{length:,} {dtype}" for length, dtype in kinds[:2])
            raise StoreError(f"{name} has {words} in different readings, expected one length and type")
        ((length, dtype),) = kinds
        raw = b"".join(array.data for array in own)
        tensors[f"array:{name}"] = np.frombuffer(raw, dtype=_item(dtype)).reshape(
            len(own), -(-length // 8) if dtype == "bits" else length
        )
        tensors[f"array-rows:{name}"] = np.array([length, *rows], dtype="<i8")
    return tensors


class Columns:
    """What one run read, by name.

    Args:
        tensors: As `tensors_of` gives them; they may be read when they are asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def step(self) -> NDArray[np.int64]:
        """The steps of the readings, shape (R,), in ascending order."""
        return self._tensors["step"]

    @property
    def epoch(self) -> NDArray[np.float64]:
        """The epochs of the readings, shape (R,)."""
        return self._tensors["epoch"]

    @property
    def quantities(self) -> list[str]:
        """The names of the quantities, sorted."""
        return sorted(name.removeprefix("value:") for name in self._tensors if name.startswith("value:"))

    @property
    def names(self) -> list[str]:
        """The names of the quantities and arrays, sorted."""
        kinds = ("value:", "array:")
        return sorted(name.partition(":")[2] for name in self._tensors if name.startswith(kinds))

    def rows(self, name: str) -> NDArray[np.int64]:
        """Which readings have a quantity or an array of this name, shape (K,)."""
        if (key := f"array-rows:{name}") in self._tensors:
            return self._tensors[key][1:]
        if (key := f"value-rows:{name}") in self._tensors:
            return self._tensors[key]
        return np.arange(len(self.step) if f"value:{name}" in self._tensors else 0)

    def quantity(self, name: str) -> NDArray[np.float64]:
        """A quantity, shape (K,), at `rows`."""
        key = f"value:{name}"
        return self._tensors[key] if key in self._tensors else np.empty(0)

    def at(self, row: int, name: str) -> float | NDArray[np.float64] | None:
        """A quantity's number or an array's numbers, (N,), 0 or 1 for bits, at a reading (``None``: it has neither)."""
        tensors = self._tensors
        if (key := f"value:{name}") in tensors and f"value-rows:{name}" not in tensors:
            return float(tensors[key][row])
        rows = self.rows(name)
        index = int(rows.searchsorted(row))
        if index == len(rows) or rows[index] != row:
            return None
        if key in tensors:
            return float(tensors[key][index])
        return _numbers(tensors[f"array:{name}"][index], int(tensors[f"array-rows:{name}"][0]))


class Recent:
    """Tensors that were read last, so that files are not opened again for each question.

    Args:
        most: Bytes that it holds at most.
    """

    def __init__(self, most: int = 256 << 20) -> None:
        self._most, self._held = most, 0
        self._tensors: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    def get(self, key: tuple[str, str], load: Callable[[], Tensor]) -> Tensor:
        """The tensor of this key, loaded if it is not held."""
        if (found := self._tensors.get(key)) is not None:
            self._tensors.move_to_end(key)
            return found
        self._tensors[key] = tensor = load()
        self._held += tensor.nbytes
        while self._held > self._most and len(self._tensors) > 1:
            self._held -= self._tensors.popitem(last=False)[1].nbytes
        return tensor


def _checksum(name: str, dtype: str, shape: Sequence[int], data: bytes | memoryview) -> str:
    return checksum(f"{name} {dtype} {list(shape)}", data)


def read_columns(lines: Path, recorded: Mapping[str, Any] | None, recent: Recent) -> Columns:
    """What a finished run read, from the compact form beside its lines, which is made where it is not there.

    Args:
        lines: The file of the lines.
        recorded: How many readings the run had when it finished, of how many bytes, with which sha256 (``None``: not recorded).
        recent: Holds what is read.

    Returns:
        The columns.

    Raises:
        DamagedError: The lines are damaged, or are not those with which the run finished.
    """
    try:
        about = lines.lstat()
    except FileNotFoundError as error:
        raise DamagedError(lines, "it is missing, and the run is finished") from error
    if about.st_size >= SMALLEST_COMPACT:
        compact = _Compact.open(lines, about, recorded, recent)
        if compact is not None:
            return Columns(compact)
    tensors = _read_lines(lines, recorded)
    # A run that is held in its compact form takes less memory; there is none where nothing may be written.
    compact = _Compact.open(lines, about, recorded, recent) if about.st_size >= SMALLEST_COMPACT else None
    return Columns(tensors if compact is None else compact)


def _read_lines(lines: Path, recorded: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The tensors of the lines; if there are many, they are written beside them."""
    raw, about = read_bytes(lines, LARGEST_READINGS)
    sha256 = hashlib.sha256(raw).hexdigest()
    if recorded is not None and sha256 != recorded["sha256"]:
        raise DamagedError(lines, _difference(raw, recorded))
    if raw and not raw.endswith(b"\n"):
        raise DamagedError(lines, "its last line is torn, and the run is finished")
    try:
        tensors = tensors_of(read_records(raw.decode("utf-8")))
    except ValueError as error:
        raise DamagedError(lines, error) from error
    if about.st_size >= SMALLEST_COMPACT:
        words = {"format": FORMAT, "lines": stamp(about), "sha256": sha256}
        for name, tensor in tensors.items():
            dtype = next(key for key, value in DTYPES.items() if value == tensor.dtype)
            words[f"crc32 {name}"] = _checksum(name, dtype, tensor.shape, tensor.tobytes())
        with contextlib.suppress(StoreError, OSError):  # a copy, which a store that is read-only does without
            write_whole(Path(_compact(lines)), save(tensors, words), durable=False)
    return tensors


def _difference(raw: bytes, recorded: Mapping[str, Any]) -> str:
    """How lines differ from those with which the run finished."""
    found, expected = (raw.count(b"\n"), len(raw)), (recorded["count"], recorded["bytes"])
    if found == expected:
        return "its sha256 is not the one with which the run finished"
    return "it has {:,} readings in {:,} bytes, and the run finished with {:,} in {:,}".format(*found, *expected)


def _compact(lines: Path) -> str:
    return str(lines).removesuffix(lines.suffix) + COMPACT


class _Compact(Mapping[str, Tensor]):
    """The tensors of a compact form, read one by one.

    The library reads such a file, too; here the header is read once, and then each tensor in a third of the time.
    """

    def __init__(
        self,
        lines: Path,
        recorded: Mapping[str, Any] | None,
        recent: Recent,
        found: Mapping[str, tuple[str, list[int], int, int, str, bytes | None]],
    ) -> None:
        self._lines, self._recorded, self._recent = lines, recorded, recent
        self._path = _compact(lines)
        self._found = found

    @classmethod
    def open(
        cls, lines: Path, about: os.stat_result, recorded: Mapping[str, Any] | None, recent: Recent
    ) -> _Compact | None:
        """The compact form of these lines; ``None`` if it is not there, of other lines, or damaged."""
        try:
            with open(_compact(lines), "rb", buffering=0) as file:
                raw = file.read(USUAL_HEADER)
                start = 8 + int.from_bytes(raw[:8], "little")
                size = os.fstat(file.fileno()).st_size
                raw += file.read(start - len(raw)) if USUAL_HEADER < start < size else b""
            header = json.loads(raw[8:start])
            words = header.pop("__metadata__")
            if words["format"] != FORMAT or words["lines"] != stamp(about):
                return None
            if recorded is not None and words["sha256"] != recorded["sha256"]:
                return None
            found = {}
            for name, one in header.items():
                begin, end = one["data_offsets"]
                shape = one["shape"]
                if not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * WIDTHS[one["dtype"]]:
                    return None
                own = raw[start + begin : start + end] if end - begin <= SMALL and start + end <= len(raw) else None
                found[name] = (one["dtype"], one["shape"], start + begin, end - begin, words[f"crc32 {name}"], own)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return cls(lines, recorded, recent, found) if len(found) == len(words) - 3 else None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            raise KeyError(name)
        return self._recent.get((self._path, name), lambda: self._load(name))

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def _load(self, name: str) -> Tensor:
        dtype, shape, begin, size, expected, data = self._found[name]
        with contextlib.suppress(OSError):
            if data is None:
                file = os.open(self._path, os.O_RDONLY)
                try:
                    data = os.pread(file, size, begin)
                finally:
                    os.close(file)
            if _checksum(name, dtype, shape, data) == expected:
                return np.frombuffer(data, DTYPES[dtype]).reshape(shape)
        return _read_lines(self._lines, self._recorded)[name]
