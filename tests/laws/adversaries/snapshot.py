"""Everything that can be reached from some objects, as a list of lines: two lists differ where a bit was changed."""

from __future__ import annotations

import functools
import hashlib
import random
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["difference", "snapshot"]

ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, np.generic, type)


def digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return hashlib.sha256(data).hexdigest()[:16]


def _lines(value: Any, path: str, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, ATOMS):
        yield f"{path} = {value!r}"
        return
    yield f"{path}: {type(value).__name__} {id(value)}"
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        where = value.data_ptr() if value.device.type != "meta" else 0
        bits = digest(value) if value.device.type != "meta" else ""
        yield f"{path} = {tuple(value.shape)} {value.dtype} {value.requires_grad} {where} {bits}"
        yield from _lines(value.grad if value.is_leaf else None, f"{path}.grad", seen)
        for name, item in vars(value).items():
            yield from _lines(item, f"{path}.{name}", seen)
    elif isinstance(value, np.ndarray):
        yield f"{path} = {value.tobytes()!r}"
    elif isinstance(value, torch.Generator):
        yield f"{path} = {digest(value.get_state())}"
    elif isinstance(value, types.GeneratorType):
        yield f"{path} at {value.gi_frame.f_lasti if value.gi_frame else None}"
    elif isinstance(value, types.ModuleType):
        return
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            name = repr(key) if isinstance(key, ATOMS) else f"<{type(key).__name__} {id(key)}>"
            yield from _lines(item, f"{path}[{name}]", seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield from _lines(item, f"{path}[{index}]", seen)
    elif isinstance(value, weakref.ref):
        yield from _lines(value(), f"{path}()", seen)
    elif isinstance(value, functools.partial):
        for part in ("func", "args", "keywords"):
            yield from _lines(getattr(value, part), f"{path}.{part}", seen)
    elif isinstance(value, types.MethodType):
        yield from _lines(value.__self__, f"{path}.__self__", seen)
        yield from _lines(value.__func__, f"{path}.__func__", seen)
    elif isinstance(value, types.FunctionType):
        for index, cell in enumerate(value.__closure__ or ()):
            yield from _lines(cell.cell_contents, f"{path}.cell[{index}]", seen)
        yield from _lines(value.__defaults__, f"{path}.defaults", seen)
    else:
        if isinstance(value, Optimizer):
            yield f"{path}: its class steps by {id(type(value).step)}"
            counts = {name: item for name, item in vars(type(value)).items() if isinstance(item, int)}
            yield f"{path}: its class has {counts}"
        for name, item in list(getattr(value, "__dict__", {}).items()):
            yield from _lines(item, f"{path}.{name}", seen)
        for cls in type(value).__mro__:
            for name in getattr(cls, "__slots__", ()) if isinstance(getattr(cls, "__slots__", ()), tuple) else ():
                if hasattr(value, name) and name not in {"__dict__", "__weakref__"}:
                    yield from _lines(getattr(value, name), f"{path}.{name}", seen)
        if isinstance(value, nn.Module):
            yield f"{path}.training = {value.training}"


def snapshot(*values: Any) -> list[str]:
    """Lines for the values, the process's random states, the default dtype and whether gradients are recorded."""
    lines = [line for index, value in enumerate(values) for line in _lines(value, f"given[{index}]", {})]
    numpy_state: Any = np.random.get_state()
    return [
        *lines,
        f"torch random state {digest(torch.get_rng_state())}",
        f"python random state {hash(random.getstate())}",
        f"numpy random state {numpy_state[1].tobytes().hex()[:64]} {numpy_state[2:]}",
        f"default dtype {torch.get_default_dtype()}",
        f"grad mode {torch.is_grad_enabled()}",
    ]


def difference(before: list[str], after: list[str]) -> str:
    """The first lines that differ; empty if none does."""
    for one, two in zip(before, after, strict=False):
        if one != two:
            return f"{one}  ->  {two}"
    if len(before) != len(after):
        return f"{len(before)} lines -> {len(after)}: {(before + after)[min(len(before), len(after))]}"
    return ""
