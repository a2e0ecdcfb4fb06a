"""Plain records that the training side writes and the evidence side reads; no torch, no numpy.

A `Reading` is what one run measured at one step. It is one JSON object on one line.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halflife.errors import StoreError

__all__ = ["Array", "Reading"]


@dataclass(frozen=True)
class Array:
    """A small array as bytes, for what has one value per example.

    Args:
        dtype: ``"bits"`` (eight booleans a byte, first example in the highest bit, as ``numpy.packbits`` does) or a
            little-endian numpy name such as ``"<f4"``.
        length: Number of elements.
        data: The elements' bytes.
    """

    dtype: str
    length: int
    data: bytes

    def to_json(self) -> dict[str, Any]:
        """The array as JSON values, its bytes in base64."""
        return {
            "dtype": self.dtype,
            "length": self.length,
            "data": base64.b64encode(self.data).decode("ascii"),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Array:
        """The inverse of `to_json`."""
        return cls(value["dtype"], int(value["length"]), base64.b64decode(value["data"]))


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
        bad = [name for name, value in self.values.items() if not math.isfinite(value)]
        if bad:
            raise StoreError(
                f"the reading {bad[0]!r} at step {self.step} is {self.values[bad[0]]}, and a store holds finite numbers"
                " only: lower the learning rate so that the run does not diverge"
            )
        record: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "values": dict(self.values)}
        if self.arrays:
            record["arrays"] = {name: array.to_json() for name, array in self.arrays.items()}
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Reading:
        """The inverse of `to_line`; a line that is not a whole reading is a `ValueError`."""
        try:
            record = json.loads(line)
            return cls(
                step=int(record["step"]),
                epoch=record["epoch"],
                values=record["values"],
                arrays={name: Array.from_json(value) for name, value in record.get("arrays", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a reading: {line[:80]!r}") from error
