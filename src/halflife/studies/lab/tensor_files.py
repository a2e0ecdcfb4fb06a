"""Files of tensors that runs write and later read: safetensors, with the run that wrote them and plain values in the header.

A store may come from somebody else, so nothing in it is unpickled, and a file of another run is refused. A checksum of each
tensor and of the values tells damage; what a file holds is besides compared with what its reader has, name by name.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from halflife.errors import UserError
from halflife.optim.norms import local
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.files import checksum, explain_write_errors, loads, named_in, write_whole
from halflife.studies.store.schema import shown

__all__ = [
    "Values",
    "check_alike",
    "check_count",
    "check_run",
    "check_tensors",
    "header_of",
    "kept_file",
    "read_tensors",
    "readable",
    "write_tensors",
]

Values = dict[str, Any]
KEPT_NAME = r"[a-z]+(-[0-9]+)?(\.safetensors)?"
UNREADABLE: tuple[type[BaseException], ...] = (
    SafetensorError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,  # of torch; a recursion that is too deep is one
)


def kept_file(kept: Path | None, spec: RunSpec) -> Path:
    """The file that a run starts from.

    Args:
        kept: The folder of what its parent kept.
        spec: The run.

    Returns:
        The file in that folder.

    Raises:
        UserError: There is no such folder, or the file has no name of one.
    """
    if kept is None:
        raise UserError(f"a {spec.kind} starts from what its parent kept: run the parent first and name its folder")
    expected = "a name such as step-100 or epoch-10.safetensors"
    return named_in(kept, spec.parent_file, KEPT_NAME, what="the file of the parent", expected=expected)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Values, *, run: str) -> None:
    """Write whole tensors aside and rename the file.

    Args:
        path: The file.
        tensors: By name.
        values: Values that JSON can hold.
        run: The digest of the spec of the run that writes.
    """
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors wants each tensor dense in its own order of dimensions, channels_last is not.
    dense = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    words = {"run": run, "values": json.dumps(values)}
    write_whole(path, save(dense, words | {"crc32": json.dumps(_checksums(dense, words["values"]))}))


def _checksums(tensors: Mapping[str, Tensor], values: str) -> dict[str, str]:
    """A checksum of the values, under no name, and of each tensor, which stands in order."""
    found = {name: checksum(f"{tensor.dtype} {list(tensor.shape)}", _raw(tensor)) for name, tensor in tensors.items()}
    return found | {"": checksum("values", values.encode())}


def _raw(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def read_tensors(
    path: Path, *, run: str, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], Values] | None:
    """Read what `write_tensors` wrote.

    Args:
        path: The file.
        run: The digest of the spec of the run that must have written it.
        wanted: Which tensors to read, by name.

    Returns:
        Tensors by name and the values, ``None`` where there is no file.

    Raises:
        UserError: It cannot be read, or another run wrote it.
    """
    if not path.exists():
        return None
    with readable(path), safe_open(path, framework="pt") as file:
        values, checksums = _header(path, file.metadata(), run)
        names = set(file.keys())
        tensors = {name: file.get_tensor(name) for name in sorted(names) if wanted(name)}
        _refuse_damage(names, tensors, checksums)
    return tensors, values


def _refuse_damage(names: set[str], tensors: Mapping[str, Tensor], checksums: Mapping[str, str]) -> None:
    if other := names ^ (checksums.keys() - {""}):
        raise ValueError(f"{min(other)} is missing, or was added")
    for name, found in _checksums(tensors, "").items():
        if name and found != checksums[name]:
            raise ValueError(f"{name} is damaged: its checksum is {found}, expected {shown(checksums[name])}")


def header_of(path: Path, *, run: str) -> Values | None:
    """The values alone, as `read_tensors` gives them.

    Args:
        path: The file.
        run: The digest of the spec of the run that must have written it.

    Returns:
        The values, ``None`` where there is no file.

    Raises:
        UserError: It cannot be read, or another run wrote it.
    """
    if not path.exists():
        return None
    with readable(path), safe_open(path, framework="pt") as file:
        return _header(path, file.metadata(), run)[0]


def _header(path: Path, metadata: Mapping[str, str], run: str) -> tuple[Values, dict[str, str]]:
    """The values and the checksums."""
    check_run(path, metadata["run"], run)
    if "crc32" not in metadata:
        raise ValueError("it has no checksums, as those of earlier versions")
    checksums: dict[str, str] = loads(metadata["crc32"])
    if checksums[""] != checksum("values", metadata["values"].encode()):
        raise ValueError("its values are damaged: their checksum differs")
    values = loads(metadata["values"])
    if not isinstance(values, dict):
        raise ValueError("its values are no object")
    return values, checksums


def check_run(path: Path, found: object, expected: str) -> None:
    """Refuse what another run wrote.

    Args:
        path: Where it lies.
        found: The digest that is written there.
        expected: The digest of the spec of the run that must have written it.

    Raises:
        UserError: They differ.
    """
    if found != expected:
        raise UserError(
            f"{path} was written by another run (its spec is {str(found)[:12]}, expected {expected[:12]}): remove it and run"
            " again"
        )


def check_tensors(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not like the reader's own, which would be broadcast or rounded, and weights that are not finite.

    Args:
        found: What was read, by name.
        own: What the reader has.

    Raises:
        ValueError: One is missing, has another shape or type, or is not finite.
    """
    for name, value in own.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        shape, dtype = found[name].shape, found[name].dtype
        if shape != value.shape or dtype != value.dtype:
            raise ValueError(f"{name} is {tuple(shape)} {dtype}, expected {tuple(value.shape)} {value.dtype}")
        if (
            not name.startswith("optimizer.") and not local(found[name]).isfinite().all()
        ):  # a second moment may overflow
            raise ValueError(f"{name} has numbers that are not finite, which no run writes")


def check_alike(name: str, found: object, own: object) -> None:
    """Refuse a plain value that is not of the types of the reader's own, at any depth, or not finite.

    Args:
        name: What it is called.
        found: What was read.
        own: What the reader has.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(own, dict) and isinstance(found, dict):
        same = found.keys() == own.keys()
        inner = [(f"{name}.{key}", found[key], own[key]) for key in own] if same else []
    elif isinstance(own, Sequence) and not isinstance(own, str) and isinstance(found, list):
        same = len(found) == len(own)
        inner = [(f"{name}[{i}]", *both) for i, both in enumerate(zip(found, own, strict=True))] if same else []
    else:
        same, inner = type(found) is type(own) and not (isinstance(found, float) and not math.isfinite(found)), []
    if not same:
        raise ValueError(f"{name} is {shown(found)}, expected a value such as {shown(own)}")
    for each in inner:
        check_alike(*each)


def check_count(name: str, found: object, most: int) -> int:
    """Return a count; refuse what is no integer from 0 to ``most``.

    Args:
        name: What it is called.
        found: What was read.
        most: The largest that there can be.

    Returns:
        The count.

    Raises:
        ValueError: It is something else.
    """
    if type(found) is not int or not 0 <= found <= most:
        raise ValueError(f"{name} is {shown(found)}, expected an integer from 0 to {most}")
    return found


@contextlib.contextmanager
def readable(path: Path, *others: type[BaseException]) -> Iterator[None]:
    """Say in one sentence that a checkpoint cannot be read.

    Args:
        path: The file or folder.
        others: Further errors that mean it.

    Yields:
        Nothing.

    Raises:
        UserError: It cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except UNREADABLE + others as error:
        said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        remedy = "remove it and run again, the run then starts over"
        if (kept := next((folder for folder in path.parents if folder.name == "kept"), None)) is not None:
            remedy = f"remove the folder {kept.parent} and run again, that run is then trained anew"
        raise UserError(f"the checkpoint {path} cannot be read ({said[0][:200]}): {remedy}") from error
