"""Token files on disk in nanoGPT's layout: raw little-endian integers, mapped into memory, checked when opened.

A file holds token ids one after the other, two bytes each (one byte where there are at most 256 ids). Beside
``train.bin`` lies ``train.bin.json``, which says what it must be: so a file that was cut short or belongs to another
tokenizer is refused before anything is trained on it. A file of nanoGPT comes without; then its largest id is looked
for once, and what was found is kept beside it, or in the cache where its folder may not be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError, UserError
from halflife.studies.store.files import write_whole

__all__ = ["Sidecar", "Tokens", "cache_folder", "open_shard", "sample_digest", "token_dtype", "write_shard"]

BLOCK = 1 << 20  # bytes of a sample
STREAM = 1 << 24  # bytes read at once while the largest id is looked for

Tokens = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Sidecar:
    """What a token file must be.

    Args:
        dtype: ``"<u2"`` or ``"|u1"``, as numpy writes it.
        length: Number of tokens.
        vocab_size: Number of ids of the tokenizer, 0 where it is not known.
        largest: The largest id in the file.
        sample: `sample_digest` of the file.
        tokenizer: Digest of the tokenizer that made it.
    """

    dtype: str
    length: int
    vocab_size: int
    largest: int
    sample: str
    tokenizer: str


def cache_folder() -> Path:
    """Where tokens are kept: ``HALFLIFE_CACHE``, else ``halflife`` in ``XDG_CACHE_HOME``, else ``~/.cache/halflife``."""
    named = os.environ.get("HALFLIFE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halflife"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The integers that ``vocab_size`` ids need.

    Args:
        vocab_size: Number of ids.

    Returns:
        uint8 or little-endian uint16.

    Raises:
        UserError: They do not fit into 16 bits.
    """
    if vocab_size > 1 << 16:
        raise UserError(
            f"vocab_size is {vocab_size:,}, expected at most 65,536 (tokens have 16 bits): lower vocab_size"
        )
    return np.dtype("|u1") if vocab_size <= 256 else np.dtype("<u2")


def sample_digest(path: Path) -> str:
    """sha256 of a file's size and of 1 MiB each at its head, middle and tail: a file of 17 GB is known in milliseconds.

    Returns:
        Hexadecimal digits.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(f"{size}\0".encode())
            for start in sorted({0, max(0, (size - BLOCK) // 2), max(0, size - BLOCK)}):
                file.seek(start)
                digest.update(file.read(BLOCK))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable, or copy it again") from error
    return digest.hexdigest()


def write_shard(path: Path, parts: Iterable[NDArray[Any]], *, vocab_size: int, tokenizer: str) -> Sidecar:
    """Write token ids and the sidecar that describes them.

    Args:
        path: The file.
        parts: Token ids, in order, piece by piece.
        vocab_size: Number of ids.
        tokenizer: Digest of the tokenizer.

    Returns:
        The sidecar.

    Raises:
        UserError: An id is outside the vocabulary.
    """
    dtype = token_dtype(vocab_size)
    length, largest = 0, 0
    with path.open("wb") as file:
        for part in parts:
            if not part.size:
                continue
            if part.min() < 0 or part.max() >= vocab_size:
                raise UserError(
                    f"the tokenizer made id {part.max()}, expected ids below vocab_size {vocab_size:,}: raise vocab_size"
                )
            largest = max(largest, int(part.max()))
            length += part.size
            file.write(part.astype(dtype, copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
    sidecar = Sidecar(dtype.str, length, vocab_size, largest, sample_digest(path), tokenizer)
    _sidecar_path(path).write_text(json.dumps(asdict(sidecar), indent=1), encoding="utf-8")
    return sidecar


def open_shard(path: Path, *, vocab_size: int, tokenizer: str, remedy: str) -> tuple[Tokens, Sidecar]:
    """Map a token file into memory, read-only, after checking that it is what its sidecar says.

    Args:
        path: The file; without a sidecar it is read as nanoGPT's: little-endian uint16.
        vocab_size: Number of ids of the model.
        tokenizer: Digest of the tokenizer that must have made it.
        remedy: What to do about a file that is not whole, for the message.

    Returns:
        The tokens (1-D, mapped), and what is known of them.

    Raises:
        UserError: The file is cut short or replaced, of another tokenizer, or holds ids outside the vocabulary.
    """
    sample = sample_digest(path)
    sidecar_path, size = _sidecar_path(path), path.stat().st_size
    if not sidecar_path.is_file():
        sidecar_path = _remembered_path(path)
    sidecar = _read_sidecar(sidecar_path) if sidecar_path.is_file() else _survey(path, sample, tokenizer)
    dtype = np.dtype(sidecar.dtype)
    if size != sidecar.length * dtype.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, expected {sidecar.length * dtype.itemsize:,} as {sidecar_path} says: it was cut"
            f" short or made anew, {remedy}"
        )
    if sidecar.tokenizer != tokenizer:
        raise UserError(f"{path} was made with tokenizer {sidecar.tokenizer[:12]}, expected {tokenizer[:12]}: {remedy}")
    if sidecar.sample != sample:
        raise UserError(f"{path} has other content than {sidecar_path} says: it was changed or made anew, {remedy}")
    if sidecar.largest >= vocab_size:
        raise UserError(
            f"{path} holds token id {sidecar.largest:,}, expected ids below vocab_size {vocab_size:,}: raise vocab_size,"
            " or name the tokens of another tokenizer"
        )
    tokens: Tokens = np.memmap(path, dtype=dtype, mode="r")
    return tokens, sidecar


def _sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _remembered_path(path: Path) -> Path:
    """Where a sidecar goes whose file lies in a folder that may not be written."""
    return cache_folder() / "sidecars" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _read_sidecar(path: Path) -> Sidecar:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sidecar = Sidecar(**values)
        fits = all(type(values[name]).__name__ == kind for name, kind in Sidecar.__annotations__.items())
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no sidecar of a token file ({error}): delete it, and the file is read anew"
        ) from error
    if not fits or sidecar.dtype not in {"|u1", "<u2"}:
        raise UserError(f"{path} is no sidecar of a token file: delete it, and the file is read anew")
    return sidecar


def _survey(path: Path, sample: str, tokenizer: str) -> Sidecar:
    """What a file without a sidecar holds: it is read once from end to end, and the result is kept."""
    size = path.stat().st_size
    if size % 2 or not size:
        raise UserError(
            f"{path} has {size:,} bytes, expected an even number above 0 (two bytes per token): it was cut short, copy it again"
        )
    largest = 0
    with path.open("rb", buffering=0) as file:
        # Not through the map: pages of a large file would push everything else out of memory.
        while block := file.read(STREAM):
            largest = max(largest, int(np.frombuffer(block[: len(block) // 2 * 2], "<u2").max(initial=0)))
            if len(block) % 2:  # a short read: go back to the start of the token
                file.seek(-1, os.SEEK_CUR)
    sidecar = Sidecar("<u2", size // 2, 0, largest, sample, tokenizer)
    content = json.dumps(asdict(sidecar), indent=1)
    try:
        write_whole(_sidecar_path(path), content)
    except StoreError:
        kept = _remembered_path(path)
        make_cache_folder(kept.parent)
        write_whole(kept, content)
    return sidecar


def make_cache_folder(folder: Path) -> None:
    """Make a folder of the cache.

    Args:
        folder: The folder.

    Raises:
        UserError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}), expected a folder for the tokens: name one with HALFLIFE_CACHE"
        ) from error
