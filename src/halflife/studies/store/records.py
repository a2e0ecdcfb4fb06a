"""Plain records that the training side writes and the evidence side reads; no torch, no numpy.

A `Reading` is what one run measured at one step. It is one JSON object on one line.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from halflife.errors import StoreError
from halflife.studies.store.schema import LARGEST_INTEGER, MISSING, MisfitError, is_count, is_number, is_text, shown

__all__ = ["ITEM_BYTES", "Array", "Reading", "Record", "read_records"]

ITEM_BYTES = {"bits": 0.125, "<f4": 4, "<f8": 8}
ARRAY_FIELDS = {"dtype", "length", "data"}


@dataclass(frozen=True)
class Array:
    """A small array as bytes, for what has one value per example.

    Args:
        dtype: ``"bits"`` (eight booleans a byte, first example in the highest bit, as ``numpy.packbits`` does), or ``"<f4"`` or
            ``"<f8"``, little-endian floats.
        length: Number of elements.
        data: The elements' bytes.

    Raises:
        MisfitError: There are more or fewer bytes than that, or the last byte of bits goes on behind the last element.
    """

    dtype: str
    length: int
    data: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in ITEM_BYTES:
            raise MisfitError("the dtype of an array", self.dtype, f"one of {', '.join(ITEM_BYTES)}")
        if not is_count(self.length):
            raise MisfitError("the length of an array", self.length, "an integer >= 0")
        expected = math.ceil(ITEM_BYTES[self.dtype] * self.length)
        if len(self.data) != expected:
            what = f"the number of bytes of an array of {self.length:,} {self.dtype}"
            raise MisfitError(what, len(self.data), str(expected))
        if self.dtype == "bits" and self.length % 8 and self.data[-1] & (0xFF >> self.length % 8):
            raise MisfitError(f"a bit behind the last of an array of {self.length:,} bits", 1, "0")

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        if self.dtype == "bits":
            return True
        numbers = struct.unpack(f"<{self.length}{'f' if self.dtype == '<f4' else 'd'}", self.data)
        return all(map(math.isfinite, numbers))

    def to_json(self) -> dict[str, Any]:
        """The array as JSON values, its bytes in base64."""
        return {
            "dtype": self.dtype,
            "length": self.length,
            "data": base64.b64encode(self.data).decode("ascii"),
        }

    @classmethod
    def from_json(cls, value: Any) -> Array:
        """The inverse of `to_json`, and the one place where arrays are decoded.

        Args:
            value: Of any type.

        Returns:
            The array.

        Raises:
            MisfitError: It is no array: a field is missing or of another type, the data are not base64, or not as long as said.
        """
        if not isinstance(value, dict):
            raise MisfitError("an array", value, "an object")
        dtype, length, data = (value.get(name, MISSING) for name in ("dtype", "length", "data"))
        if not isinstance(data, str):
            raise MisfitError("the data of an array", data, "base64")
        try:
            raw = binascii.a2b_base64(data, strict_mode=True)
        except ValueError as error:
            raise MisfitError("the data of an array", data, f"base64 ({error})") from error
        array = cls(dtype, length, raw)
        if not array.finite:
            raise MisfitError("an element of an array", math.nan, "a finite number")
        return array


class Record(NamedTuple):
    """A line of ``readings.jsonl`` as JSON values that were checked: the fields of a `Reading`."""

    step: int
    epoch: float
    values: dict[str, float]
    arrays: dict[str, Array]


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).raw_decode
_FLOAT = {float}


def _record_at(text: str, start: int, after: int) -> tuple[Record, int]:
    """The reading of the line that begins at a place, with a step above ``after``, and where it ends; else a `ValueError`."""
    try:
        found, end = _decode(text, start)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise MisfitError("it", found, "an object")
    step, epoch, values = found.get("step", MISSING), found.get("epoch", MISSING), found.get("values", MISSING)
    if text[end : end + 1] != "\n":
        raise ValueError("something follows on its line")
    if not is_count(step) or step <= after:
        raise MisfitError("step", step, f"an integer >= {after + 1} and <= {LARGEST_INTEGER}")
    if not is_number(epoch) or epoch < 0:
        raise MisfitError("epoch", epoch, "a finite number >= 0")
    if not isinstance(values, dict):
        raise MisfitError("values", values, "an object")
    # One comparison for all numbers where nothing is wrong, which is nearly always.
    numbers = values.values()
    if not (set(map(type, numbers)) <= _FLOAT and math.isfinite(sum(numbers))):
        for name, value in values.items():
            if not is_number(value):
                raise MisfitError(f"values[{shown(name)}]", value, "a finite number")
    if "arrays" not in found:
        return Record(step, epoch, values, {}), end
    arrays = found["arrays"]
    if not isinstance(arrays, dict):
        raise MisfitError("arrays", arrays, "an object")
    return Record(step, epoch, values, {name: Array.from_json(value) for name, value in arrays.items()}), end


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not is_text(name):
            raise MisfitError("a name", name, "text without control characters")


def read_records(text: str) -> Iterator[Record]:
    """The readings of whole lines, in order.

    Args:
        text: Lines, each with its newline.

    Yields:
        One record a line.

    Raises:
        StoreError: A line is no reading, or its step is not above that of the line before.
    """
    start, number, last, names = 0, 0, -1, set[str]()
    while start < len(text):
        number += 1
        try:
            record, end = _record_at(text, start, last)
            if not (names.issuperset(record.values) and names.issuperset(record.arrays)):
                names.update(record.values, record.arrays)
                _check_names(names)
        except ValueError as error:
            raise StoreError(f"line {number} is no reading: {error}") from error
        last, start = record.step, end + 1
        yield record


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one run measured at one step.

    Args:
        step: Optimizer steps done, >= 0.
        epoch: The same in passes over the training set.
        values: Name to finite number, names as ``part/quantity`` (``test/error``, ``ema/test/error``).
        arrays: Name to one value per example.

    Examples:
        >>> line = Reading(step=39, epoch=1, values={"train/loss": 0.5}).to_line()
        >>> line
        '{"step":39,"epoch":1,"values":{"train/loss":0.5}}'
        >>> Reading.from_line(line).values["train/loss"]
        0.5
    """

    step: int
    epoch: float
    values: Mapping[str, float]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def to_line(self) -> str:
        """The reading as one line of JSON without the newline; NaN or infinity, which JSON lacks, is a `StoreError`."""
        bad = [(name, str(value)) for name, value in self.values.items() if not math.isfinite(value)]
        bad += [(name, "an array with nan or inf") for name, array in self.arrays.items() if not array.finite]
        for name, value in bad[:1]:
            raise StoreError(
                f"the reading {name!r} at step {self.step} is {value}, and a store holds finite numbers only: lower the"
                " learning rate so that the run does not diverge"
            )
        record: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "values": dict(self.values)}
        if self.arrays:
            record["arrays"] = {name: array.to_json() for name, array in self.arrays.items()}
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Reading:
        """The inverse of `to_line`; a line that is not a whole reading is a `StoreError`."""
        (record,) = read_records(f"{line}\n")
        return cls(**record._asdict())
