"""Token files on disk in nanoGPT's layout: raw little-endian integers, mapped into memory, checked when opened.

A file holds token ids one after the other, two bytes each (one byte where there are at most 256 ids). Beside
``train.bin`` lies ``train.bin.json``, which says what it must be: so a file that was cut short or belongs to another
tokenizer is refused before anything is trained on it. A file of nanoGPT comes without; then one is made, beside it or in
the cache where its folder may not be written. Every file is read whole once on each machine, for its digest and its largest
id, and again when its size or its times have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError, UserError
from halflife.studies.store.files import read_object, stamp, write_object
from halflife.studies.store.schema import COUNT, DIGEST, TEXT, Fields

__all__ = ["Sidecar", "Tokens", "cache_folder", "content_of", "open_shard", "token_dtype", "write_shard"]

CONTENT = Fields({"stamp": TEXT, "dtype": TEXT, "sha256": DIGEST, "largest": COUNT})
STREAM = 1 << 24  # bytes read at once
SETTLED = 2_000_000_000  # nanoseconds after which a change of a file shows in its times

Tokens = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Sidecar:
    """What a token file must be.

    Args:
        dtype: ``"<u2"`` or ``"|u1"``, as numpy writes it.
        length: Number of tokens.
        vocab_size: Number of ids of the tokenizer, 0 where it is not known.
        sha256: Of the file.
        tokenizer: Digest of the tokenizer that made it.
    """

    dtype: str
    length: int
    vocab_size: int
    sha256: str
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


def content_of(path: Path, dtype: str = "<u2") -> tuple[str, int]:
    """What a token file holds: it is read whole, or was since it was changed last.

    Args:
        path: The file.
        dtype: Its integers, ``"<u2"`` or ``"|u1"``.

    Returns:
        Its sha256, and its largest id.

    Raises:
        UserError: It cannot be read.
    """
    try:
        about = path.stat()
        if time.time_ns() - about.st_ctime_ns < SETTLED:
            return _read_whole(path, dtype)
        return _remembered(path.resolve(), dtype, stamp(about))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable, or copy it again") from error


@lru_cache(maxsize=64)
def _remembered(path: Path, dtype: str, stamped: str) -> tuple[str, int]:
    """What a file held when it had this stamp, from the cache if it is there."""
    kept = _in_cache("contents", path, dtype)

    with contextlib.suppress(StoreError, FileNotFoundError):
        found = read_object(kept, CONTENT)
        if (found["stamp"], found["dtype"]) == (stamped, dtype):
            return found["sha256"], found["largest"]
    content = _read_whole(path, dtype)
    with contextlib.suppress(UserError):  # without a cache it is read again
        make_cache_folder(kept.parent)
        write_object(kept, {"stamp": stamped, "dtype": dtype, "sha256": content[0], "largest": content[1]})
    return content


def _read_whole(path: Path, dtype: str) -> tuple[str, int]:
    digest, largest, width = hashlib.sha256(), 0, np.dtype(dtype).itemsize
    with path.open("rb", buffering=0) as file:
        # Not through the map: pages of a large file would push everything else out of memory.
        left = b""
        while block := file.read(STREAM):
            digest.update(block)
            block = left + block
            whole = len(block) // width * width
            left = block[whole:]
            largest = max(largest, int(np.frombuffer(block[:whole], dtype).max(initial=0)))
    return digest.hexdigest(), largest


def _in_cache(kind: str, path: Path, dtype: str = "") -> Path:
    """Where the cache keeps something about a file."""
    return (
        cache_folder() / kind / f"{hashlib.sha256(os.fsencode(path.resolve()) + dtype.encode()).hexdigest()[:32]}.json"
    )


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
    length, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            if not part.size:
                continue
            if part.min() < 0 or part.max() >= vocab_size:
                raise UserError(
                    f"the tokenizer made id {part.max()}, expected ids below vocab_size {vocab_size:,}: raise vocab_size"
                )
            length += part.size
            raw = part.astype(dtype, copy=False).tobytes()
            digest.update(raw)
            file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    sidecar = Sidecar(dtype.str, length, vocab_size, digest.hexdigest(), tokenizer)
    write_object(_sidecar_path(path), asdict(sidecar))
    return sidecar


def open_shard(
    path: Path, *, vocab_size: int, tokenizer: str, remedy: str, nanogpt: bool = False
) -> tuple[Tokens, Sidecar]:
    """Map a token file into memory, read-only, after checking that it is what its sidecar says.

    Args:
        path: The file.
        vocab_size: Number of ids of the model.
        tokenizer: Digest of the tokenizer that must have made it.
        remedy: What to do about a file that is not whole, for the message.
        nanogpt: Whether it may come without a sidecar, as little-endian uint16.

    Returns:
        The tokens (1-D, mapped), and what is known of them.

    Raises:
        UserError: The file is cut short or replaced, of another tokenizer, or holds ids outside the vocabulary.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable, or copy it again") from error
    sidecar_path = _sidecar_path(path)
    if not sidecar_path.is_file():
        sidecar_path = _in_cache("sidecars", path)
    if not sidecar_path.is_file() and not nanogpt:
        raise UserError(f"{_sidecar_path(path)} is missing, expected what halflife wrote there: {remedy}")
    sidecar = _read_sidecar(sidecar_path) if sidecar_path.is_file() else _make_sidecar(path, size, tokenizer)
    dtype = np.dtype(sidecar.dtype)
    if size != sidecar.length * dtype.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, expected {sidecar.length * dtype.itemsize:,} as {sidecar_path} says: it was cut"
            f" short or made anew, {remedy}"
        )
    if sidecar.tokenizer != tokenizer:
        raise UserError(f"{path} was made with tokenizer {sidecar.tokenizer[:12]}, expected {tokenizer[:12]}: {remedy}")
    sha256, largest = content_of(path, sidecar.dtype)
    if sidecar.sha256 != sha256:
        raise UserError(f"{path} has other content than {sidecar_path} says: it was changed or made anew, {remedy}")
    if largest >= vocab_size:
        raise UserError(
            f"{path} holds token id {largest:,}, expected ids below vocab_size {vocab_size:,}: raise vocab_size,"
            " or name the tokens of another tokenizer"
        )
    tokens: Tokens = np.memmap(path, dtype=dtype, mode="r")
    return tokens, sidecar


def _sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_sidecar(path: Path) -> Sidecar:
    try:
        values = read_object(path)
        sidecar = Sidecar(**values)
        fits = all(type(values[name]).__name__ == kind for name, kind in Sidecar.__annotations__.items())
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no sidecar of a token file ({error}): delete it, and the file is read anew"
        ) from error
    if not fits or sidecar.dtype not in {"|u1", "<u2"}:
        raise UserError(f"{path} is no sidecar of a token file: delete it, and the file is read anew")
    return sidecar


def _make_sidecar(path: Path, size: int, tokenizer: str) -> Sidecar:
    """What a file without a sidecar holds, which is kept."""
    if size % 2 or not size:
        raise UserError(
            f"{path} has {size:,} bytes, expected an even number above 0 (two bytes per token): it was cut short, copy it again"
        )
    sidecar = Sidecar("<u2", size // 2, 0, content_of(path)[0], tokenizer)
    try:
        write_object(_sidecar_path(path), asdict(sidecar))
    except StoreError:
        kept = _in_cache("sidecars", path)
        make_cache_folder(kept.parent)
        write_object(kept, asdict(sidecar))
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
