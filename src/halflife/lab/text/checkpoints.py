"""Checkpoints as files: of one process one safetensors file, of several a folder of parts.

    checkpoint.safetensors          tensors, and plain values in its header
    checkpoint/values.json          plain values, and the name of the folder that holds the tensors
    checkpoint/a/                   tensors, by torch.distributed.checkpoint

Either is read by any number of processes, whether they hold whole tensors or parts. Files are written aside and renamed;
a folder of parts counts from the moment at which ``values.json`` names it. A checkpoint in one form replaces that in the
other.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from halflife.errors import UserError
from halflife.files import said_plainly, write_whole
from halflife.lab.text.world import World

__all__ = ["found", "read", "write_file", "write_folder"]

Values = dict[str, Any]
UNREADABLE = (SafetensorError, CheckpointException, pickle.UnpicklingError, EOFError)


def _file(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


def write_file(path: Path, tensors: dict[str, Tensor], values: Values) -> None:
    """Write whole tensors.

    Args:
        path: Without suffix.
        tensors: The tensors.
        values: JSON values.
    """
    content = save_safetensors(
        {name: value.contiguous() for name, value in tensors.items()}, {"values": json.dumps(values)}
    )
    write_whole(_file(path), content)
    shutil.rmtree(path, ignore_errors=True)


def write_folder(path: Path, tensors: dict[str, Tensor], values: Values, world: World) -> None:
    """Write what each process holds; all of them call it, and see the same file system.

    Args:
        path: The folder.
        tensors: The tensors, sharded or the same in all processes.
        values: JSON values, of which those of the first process count.
        world: The processes.
    """
    about = path / "values.json"
    # Only the first process looks: a file that has just been renamed may look old to another machine.
    taken = world.rank == 0 and about.exists() and json.loads(about.read_text(encoding="utf-8"))["folder"] == "a"
    name = "b" if world.any(taken) else "a"
    if world.rank == 0:
        shutil.rmtree(path / name, ignore_errors=True)
        with said_plainly(path):
            path.mkdir(parents=True, exist_ok=True)
    world.any(False)  # nobody writes before it is gone
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(path / name))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        with said_plainly(path):
            raise cause from error
    if world.rank == 0:
        write_whole(about, json.dumps({"folder": name, "values": values}))
        shutil.rmtree(path / ("a" if name == "b" else "b"), ignore_errors=True)
        _file(path).unlink(missing_ok=True)
    world.any(False)  # nobody goes on, and perhaps ends, before it counts


def found(path: Path) -> bool:
    """Whether there is a checkpoint in either form."""
    return _file(path).exists() or (path / "values.json").exists()


def read(
    path: Path, mine: Callable[[], dict[str, Tensor]], wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], Values] | None:
    """Read a checkpoint, the later one where a crash has left both forms.

    The index of a folder of parts is a pickle, as torch writes it: read the folders of your own runs only.

    Args:
        path: Without suffix.
        mine: The tensors as this process holds them, which says who gets which part.
        wanted: Which tensors to read, by name.

    Returns:
        Tensors, sharded as ``mine`` are, and plain values; ``None`` where there is no checkpoint.

    Raises:
        UserError: It cannot be read.
    """
    about, file_path = path / "values.json", _file(path)
    try:
        one = _header(file_path) if file_path.exists() else None
        many = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
        if many is not None and (one is None or many["values"]["step"] > one["step"]):
            return _read_folder(path / many["folder"], mine(), wanted), many["values"]
        if one is None:
            return None
        with safe_open(file_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 - it is no dict
    except (*UNREADABLE, KeyError, TypeError, ValueError, OSError) as error:
        where = file_path if file_path.exists() else path
        said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(f"the checkpoint {where} cannot be read ({said[0]}): remove it and run again") from error
    return _parted(tensors, mine), one


def _header(path: Path) -> Values:
    with safe_open(path, framework="pt") as file:
        values: Values = json.loads(file.metadata()["values"])
    return values


def _parted(tensors: dict[str, Tensor], mine: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Give whole tensors the sharding of mine, without a word to other processes: each has read all of them."""
    if not torch.distributed.is_initialized():
        return tensors
    cut = {
        name: distribute_tensor(tensors[name].to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        for name, own in mine().items()
        if isinstance(own, DTensor) and name in tensors
    }
    return tensors | cut


def _read_folder(folder: Path, mine: dict[str, Tensor], wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    tensors: dict[str, Tensor] = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        if not wanted(name) or not isinstance(about, TensorStorageMetadata):
            continue
        own = mine.get(name)
        if own is not None and own.shape == about.size:
            tensors[name] = torch.empty_like(own)
        else:
            tensors[name] = torch.empty(about.size, dtype=about.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is meant
        load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    return tensors
