"""Files of tensors that runs write and later read: safetensors, with the run that wrote them and plain values in the header.

A store may come from somebody else, so nothing in it is unpickled, and a file of another run is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.files import explain_write_errors, named_in, write_whole

__all__ = ["Values", "check_run", "header_of", "kept_file", "read_tensors", "readable", "write_tensors"]

Values = dict[str, Any]
KEPT_NAME = r"[a-z]+(-[0-9]+)?(\.safetensors)?"
UNREADABLE: tuple[type[BaseException], ...] = (
    SafetensorError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    EOFError,
    RecursionError,
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
    dense = {name: value.contiguous() for name, value in tensors.items()}
    write_whole(path, save(dense, {"run": run, "values": json.dumps(values)}))


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
    values = header_of(path, run=run)
    if values is None:
        return None
    with readable(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}, values  # noqa: SIM118 - it is no dict


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
    with readable(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        values: Values = dict(json.loads(metadata["values"]))
        found = metadata["run"]
    check_run(path, found, run)
    return values


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
        raise UserError(f"the checkpoint {path} cannot be read ({said[0][:200]}): remove it and run again") from error
