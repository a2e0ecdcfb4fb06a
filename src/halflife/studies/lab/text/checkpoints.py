"""Checkpoints as files: of one process one safetensors file, of several a folder of parts.

    checkpoint.safetensors          tensors, and plain values in its header
    checkpoint/values.json          plain values, the shapes of the tensors, the name of the folder that holds them, checksums
    checkpoint/a/                   tensors, one safetensors file a process

Either is read by any number of processes, whether they hold whole tensors or parts. Files are written aside and renamed;
a folder of parts counts from the moment at which ``values.json`` names it. A checkpoint in one form replaces that in the
other.

The parts are written and read by torch.distributed.checkpoint, which cuts and joins tensors, with its storage of
safetensors: its usual one has a pickle as index, which can run code when it is read, and this one has none.
"""

from __future__ import annotations

import inspect
import math
import mmap
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from halflife.errors import UserError
from halflife.studies.lab.tensor_files import Values, check_run, header_of, read_tensors, readable, write_tensors
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.store.files import checksum, explain_write_errors, named_in, read_object, write_object

__all__ = ["read", "write_file", "write_folder"]

# The argument by which every process writes a file of its own: it has another name in torch 2.8.
_NAMES = inspect.signature(HuggingFaceStorageWriter).parameters
EACH_ITS_OWN: dict[str, Any] = {"save_distributed" if "save_distributed" in _NAMES else "save_sharded": True}


def _file(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


def write_file(path: Path, tensors: dict[str, Tensor], values: Values, *, run: str) -> None:
    """Write whole tensors.

    Args:
        path: Without suffix.
        tensors: The tensors.
        values: JSON values.
        run: The digest of the spec of the run that writes.
    """
    write_tensors(_file(path), tensors, values, run=run)
    shutil.rmtree(path, ignore_errors=True)


def write_folder(
    path: Path, tensors: dict[str, Tensor], values: Values, parallel: DataParallelContext, *, run: str
) -> None:
    """Write what each process holds; all of them call it, and see the same file system.

    Args:
        path: The folder.
        tensors: The tensors, sharded or the same in all processes.
        values: JSON values, of which those of the first process count.
        parallel: The processes.
        run: The digest of the spec of the run that writes.
    """
    about = path / "values.json"
    # Only the first process looks: a file that has just been renamed may look old to another machine.
    taken = parallel.rank == 0 and about.exists() and read_object(about).get("folder") == "a"
    name = "b" if parallel.any(taken) else "a"
    if parallel.rank == 0:
        shutil.rmtree(path / name, ignore_errors=True)
        with explain_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    parallel.any(False)  # nobody writes before it is gone
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch 2.8 of itself
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path / name), **EACH_ITS_OWN))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        with explain_write_errors(path):
            raise cause from error
    mine = torch.zeros(parallel.size, dtype=torch.int64)
    mine[parallel.rank] = int(_checksum_of(path / name / _part(parallel.rank)), 16)
    found = [f"{number:08x}" for number in parallel.sum(mine).tolist()]
    if parallel.rank == 0:
        shapes = {key: list(value.shape) for key, value in tensors.items()}
        index = {"folder": name, "run": run, "values": values, "shapes": shapes, "parts": found}
        write_object(about, index)
        shutil.rmtree(path / ("a" if name == "b" else "b"), ignore_errors=True)
        _file(path).unlink(missing_ok=True)
    parallel.any(False)  # nobody goes on, and perhaps ends, before it counts


def _part(rank: int) -> str:
    """The file of one process, as torch names it."""
    return f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"


def _checksum_of(path: Path) -> str:
    """The checksum of a file, 0 where there is none: a process may have held nothing."""
    if not path.exists():
        return f"{0:08x}"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return checksum("", memoryview(content))


def read(
    path: Path,
    mine: Callable[[], dict[str, Tensor]],
    wanted: Callable[[str], bool],
    parallel: DataParallelContext,
    *,
    run: str,
) -> tuple[dict[str, Tensor], Values] | None:
    """Read a checkpoint, the later one where a crash has left both forms.

    Args:
        path: Without suffix.
        mine: The tensors as this process holds them, which says who gets which part.
        wanted: Which tensors to read, by name.
        parallel: The processes that read it, each of which looks at its share of the files for damage.
        run: The digest of the spec of the run that must have written it.

    Returns:
        Tensors, sharded as ``mine`` are, and plain values; ``None`` where there is no checkpoint.

    Raises:
        UserError: It cannot be read, or another run wrote it.
    """
    one = header_of(_file(path), run=run)
    many = _index(path, run)
    with readable(path):
        if many is not None and (one is None or many["values"]["step"] > one["step"]):
            return _read_folder(path, many, mine(), wanted, parallel), many["values"]
    whole = read_tensors(_file(path), run=run, wanted=wanted)
    return None if whole is None else (_parted(whole[0], mine), whole[1])


def _index(path: Path, run: str) -> Values | None:
    """The file that lists the tensors of a folder of parts."""
    old = next(path.glob("*/.metadata"), None)
    if old is not None:
        raise UserError(
            f"the checkpoint {path} has an index that can run code when it is read ({old.name}), expected safetensors alone:"
            " remove that folder and run again"
        )
    about = path / "values.json"
    if not about.exists():
        return None
    index = read_object(about)
    check_run(path, index.get("run"), run)
    return index


def _parted(tensors: dict[str, Tensor], mine: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Cut whole tensors as mine are cut, without communication: each process has read all of them."""
    if not torch.distributed.is_initialized():
        return tensors
    cut = {
        name: distribute_tensor(tensors[name].to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        for name, own in mine().items()
        if isinstance(own, DTensor) and name in tensors
    }
    return tensors | cut


def _read_folder(
    path: Path, index: Values, mine: dict[str, Tensor], wanted: Callable[[str], bool], parallel: DataParallelContext
) -> dict[str, Tensor]:
    folder = named_in(path, index["folder"], "[ab]", what="the folder of a checkpoint", expected="a or b")
    with readable(folder, CheckpointException):
        share = list(enumerate(index["parts"]))[parallel.rank :: parallel.size]
        damaged = [_part(rank) for rank, expected in share if _checksum_of(folder / _part(rank)) != expected]
        if parallel.any(bool(damaged)):
            raise ValueError(f"{', '.join(damaged) or 'a part'} is damaged, or is not there: its checksum differs")
        reader = HuggingFaceStorageReader(str(folder))
        known = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Tensor] = {}
        for name in filter(wanted, index["shapes"]):
            about, shape = known[name], torch.Size(index["shapes"][name])
            assert isinstance(about, TensorStorageMetadata)  # this storage has no other
            if about.size != shape or sum(math.prod(part.sizes) for part in about.chunks) != shape.numel():
                raise ValueError(f"parts of {name} are missing")
            own = mine.get(name)
            if own is not None and (own.shape, own.dtype) == (shape, about.properties.dtype):
                tensors[name] = torch.empty_like(own)
            else:
                tensors[name] = torch.empty(shape, dtype=about.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is meant
            load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    return tensors
