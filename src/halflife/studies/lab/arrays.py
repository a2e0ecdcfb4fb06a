"""Tensors as arrays of a reading."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from halflife.studies.store.records import Array

__all__ = ["floats"]


def floats(values: Tensor, dtype: Literal["<f4", "<f8"] = "<f4") -> Array:
    """A tensor's numbers in a row, little-endian."""
    flat = values.detach().flatten().to("cpu", torch.float64 if dtype == "<f8" else torch.float32)
    return Array(dtype, len(flat), flat.numpy().astype(dtype).tobytes())
