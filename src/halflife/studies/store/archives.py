"""Archives of runs, read as a store: files that `tools/results.py pack` writes, one a study and preset.

An archive may come from somebody else, like a store. So its names are checked before they become paths, its sizes and the
memory of its unpacking are bounded, and of a damaged one nothing is used.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from halflife.errors import StoreError
from halflife.studies.store.files import LARGEST_JSON
from halflife.studies.store.store import LARGEST_READINGS, MANIFEST_NAME, RUN_NAME, Store

__all__ = ["MEMBER", "ArchivedStore", "holds_archives"]

ENDING = ".tar.xz"
MEMBER = re.compile(rf"store\.json|sheets/{MANIFEST_NAME}\.json|runs/{RUN_NAME}/(run\.json|readings\.jsonl)")
LARGEST_ARCHIVE = 2 << 30  # bytes, unpacked
LARGEST_DICTIONARY = 256 << 20  # bytes of memory; the strongest setting of xz needs 65 MiB
CHUNK = 1 << 16


def holds_archives(path: Path) -> bool:
    """Whether a path is an archive, or a folder of archives that is no store itself."""
    if path.is_dir():
        return not (path / "store.json").exists() and any(path.glob(f"*{ENDING}"))
    return path.is_file() and path.name.endswith(ENDING)


class ArchivedStore(Store):
    """A store unpacked from archives, for reading; it is removed when nothing uses it any more.

    Args:
        path: An archive, or a folder of them.
        notice: Is told in one sentence which archive cannot be read; the others are.

    Raises:
        StoreError: None can be read; the message is that of the first.
    """

    def __init__(self, path: Path, notice: Callable[[str], None] = lambda words: None) -> None:
        target = Path(tempfile.mkdtemp(prefix="halflife-archives-"))
        weakref.finalize(self, shutil.rmtree, target, ignore_errors=True)  # a TemporaryDirectory would warn of it
        problems = []
        archives = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else [path]
        for archive in archives:
            try:
                _merge(archive, target)
            except StoreError as error:
                problems.append(str(error))
        if len(problems) == len(archives):
            raise StoreError(
                problems[0] if problems else f"{path} holds no archive, expected *{ENDING}: name another --store"
            )
        for words in problems:
            notice(words)
        super().__init__(target)


def _merge(archive: Path, store: Path) -> None:
    """Add the files of an archive to those of others; all of them, or none."""
    files = _files(archive)
    new = {name: content for name, content in files.items() if not (store / name).exists()}
    for name in files.keys() - new.keys():
        if (store / name).read_bytes() != files[name]:
            raise StoreError(_no_archive(archive, f"its {name} differs from that of another archive"))
    try:
        for folder in {(store / name).parent for name in new}:
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in new.items():
            (store / name).write_bytes(content)
    except OSError as error:
        raise StoreError(f"{archive} cannot be unpacked to {store} ({error.strerror}): free some space") from error


def _files(archive: Path) -> dict[str, bytes]:
    """The files of a whole archive by their names."""
    files: dict[str, bytes] = {}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=(unpacked := _Unpacked(file)), mode="r|") as members:
            for member in members:
                name = member.name
                if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or MEMBER.fullmatch(name) is None:
                    raise StoreError(_no_archive(archive, f"{name[:80]!r} is no file of a store"))
                if name in files or member.size > (LARGEST_READINGS if name.endswith(".jsonl") else LARGEST_JSON):
                    raise StoreError(_no_archive(archive, f"{name} is in it twice, or too large"))
                content = members.extractfile(member)
                assert content is not None
                files[name] = content.read()
            unpacked.read_to_the_end()  # where its checksum is: damage may look like the end of the members
    except StoreError:
        raise
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise StoreError(_no_archive(archive, str(error))) from error
    except OSError as error:
        raise StoreError(f"{archive} cannot be read ({error.strerror}): make it readable, or leave it out") from error
    if "store.json" not in files or len(files) == 1:
        raise StoreError(_no_archive(archive, "it holds no runs"))
    return files


def _no_archive(archive: Path, why: str) -> str:
    return (
        f"{archive} is no whole archive of runs ({why}), expected what `tools/results.py pack` writes: fetch it again, or"
        " leave it out"
    )


class _Unpacked(io.RawIOBase):
    """The bytes within an xz file, read in order; no more of them, and no more memory for them, than is allowed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_DICTIONARY)
        self._left = LARGEST_ARCHIVE

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        parts, wanted = [], size
        while wanted and not self._decoder.eof:
            packed = self._file.read(CHUNK) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("it ends too early")
            part = self._decoder.decompress(packed, max_length=wanted)
            parts.append(part)
            wanted -= len(part)
        self._left -= size - wanted
        if self._left < 0:
            raise lzma.LZMAError("it is too large")
        return b"".join(parts)

    def read_to_the_end(self) -> None:
        """Unpack what follows, too, so that the whole is checked."""
        while not self._decoder.eof:
            self.read(CHUNK)
