"""The store: a folder of runs and of studies' manifests that is readable after a crash at any byte.

    halflife-runs/
      store.json                     the schema version
      sheets/<study>-<preset>.json   the manifest: which runs a study consists of, and how it was started
      runs/<id>/run.json             spec, versions, hashes, status
      runs/<id>/readings.jsonl       append-only, one reading a line
      runs/<id>/readings.safetensors     the same by quantity, for reading many runs (`halflife.studies.store.columns`)
      runs/<id>/checkpoint.safetensors   until the run is finished; checkpoint/ of several processes
      runs/<id>/kept/                what other runs start from: checkpoints, norms

Whole files are written aside and renamed. A torn last line of ``readings.jsonl`` is dropped with a warning, and so is
never parsed. One process writes a store at a time. ``sheets`` is what schema 1 calls the folder of the manifests.

A store may come from somebody else: names in it are checked before they become paths, and it holds folders and regular
files, no links.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halflife.errors import StoreError
from halflife.studies.store.files import (
    LARGEST_READINGS,
    DamagedError,
    check_tree,
    explain_write_errors,
    named_in,
    read_bytes,
    read_object,
    write_object,
    write_whole,
)
from halflife.studies.store.records import Reading, read_records
from halflife.studies.store.schema import HEADER, MANIFEST, RUN_NAME, STORE

if TYPE_CHECKING:
    from halflife.studies.store.columns import Columns, Recent

__all__ = ["LARGEST_READINGS", "MANIFEST_NAME", "RUN_NAME", "RunFolder", "Store", "run_id"]

SCHEMA = 1
ID_LENGTH = 16
MANIFEST_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,199}"


def run_id(spec_digest: str, trainer: str, data_digest: str) -> str:
    """The name of a run: a digest of what it is, of what trains it in which version, and of its data.

    Args:
        spec_digest: `halflife.studies.specs.RunSpec.digest`.
        trainer: Name and version, such as ``"images-1"`` (`halflife.studies.specs.trainers`).
        data_digest: The digest of the data set's files.

    Returns:
        Sixteen hexadecimal digits.
    """
    return hashlib.sha256(f"{spec_digest}\0{trainer}\0{data_digest}".encode()).hexdigest()[:ID_LENGTH]


@contextlib.contextmanager
def _lock(folder: Path, timeout: float, said: str) -> Iterator[None]:
    """Hold the lock file of a folder; ``said`` is the error if another process does not let go in ``timeout`` seconds."""
    from filelock import FileLock, Timeout  # here, because whoever only lists or reads needs no lock

    with explain_write_errors(folder):
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise StoreError(said) from error
    try:
        yield
    finally:
        lock.release()


def _record(count: int, size: int, sha256: hashlib._Hash) -> dict[str, Any]:
    return {"count": count, "bytes": size, "sha256": sha256.hexdigest()}


class RunFolder:
    """One run's folder.

    Args:
        path: The folder; its name is the run's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._file: FileIO | None = None
        self._last_step, self._count, self._bytes, self._sha256 = -1, 0, 0, hashlib.sha256()

    @property
    def checkpoint(self) -> Path:
        """Where the run's checkpoint lies, if it has one."""
        return self.path / "checkpoint.safetensors"

    def discard_checkpoint(self) -> None:
        """Remove the run's checkpoint, in the form of one process or of several."""
        self.checkpoint.unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    @property
    def kept(self) -> Path:
        """Where lies what other runs start from: checkpoints, norms."""
        return self.path / "kept"

    def header(self) -> dict[str, Any]:
        """What ``run.json`` says, with ``status`` "running", "finished" or "failed"; empty if the run was never started."""
        path = self.path / "run.json"
        try:
            header = read_object(path, HEADER)
        except FileNotFoundError:
            return {}
        if header["id"] != self.id:
            raise StoreError(
                f"{path} is of the run {header['id']}, expected {self.id}: remove the folder, and run again"
            )
        if header["status"] == "failed" and "failure" not in header:
            raise StoreError(f"{path} does not say why the run failed: remove it, and run the study again")
        return header

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.header().get("status") == "finished"

    @property
    def diverged(self) -> bool:
        """Whether the run ended because a number was NaN or infinite."""
        return "diverged_at" in (header := self.header()) and header.get("status") == "failed"

    def write_header(self, header: dict[str, Any]) -> None:
        """Replace ``run.json``."""
        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_object(self.path / "run.json", header)

    def finish(self, header: dict[str, Any]) -> None:
        """Say that the run reached its end, and record its readings, so that whoever reads them later notices a change.

        Args:
            header: What ``run.json`` shall say, without status and readings.

        Raises:
            DamagedError: The readings are not those that the run wrote.
            StoreError: They are damaged, or nothing may be written.
        """
        written = None if self._file is None else self.record()
        self.close()
        with explain_write_errors(self.path):
            self._lines.touch()  # a run that read nothing has none yet
        raw, _ = read_bytes(self._lines, LARGEST_READINGS)
        record = _record(raw.count(b"\n"), len(raw), hashlib.sha256(raw))
        if written is not None and written != record:
            raise DamagedError(self._lines, "it was changed while the run wrote it")
        header = header | {"status": "finished", "readings": record}
        self.columns(header)  # reads them once, and leaves the compact form behind
        self.write_header(header)

    @property
    def _lines(self) -> Path:
        return self.path / "readings.jsonl"

    def readings(self) -> list[Reading]:
        """All readings by step; a torn last line is dropped with a warning, any other damage is a `StoreError`."""
        try:
            raw, _ = read_bytes(self._lines, LARGEST_READINGS)
        except FileNotFoundError:
            return []
        whole = raw.rfind(b"\n") + 1
        if tail := len(raw) - whole:
            warnings.warn(f"{self._lines}: dropped a torn last line of {tail} bytes", stacklevel=2)
        try:
            return [Reading(**record._asdict()) for record in read_records(raw[:whole].decode("utf-8"))]
        except ValueError as error:
            raise DamagedError(self._lines, error) from error

    def columns(self, header: Mapping[str, Any], recent: Recent | None = None) -> Columns:
        """What a finished run read, by name; where its compact form is there, only what is asked for is read.

        Args:
            header: The run's `header`; one of older runs has no digest of the readings.
            recent: Holds what was read of several runs.

        Returns:
            The columns.

        Raises:
            StoreError: The lines are damaged, or not those with which the run finished.
        """
        from halflife.studies.store.columns import Recent, read_columns  # here, because listing studies needs no numpy

        return read_columns(self._lines, header.get("readings"), Recent() if recent is None else recent)

    def append(self, reading: Reading) -> None:
        """Add one reading, if its step was not read before.

        A resumed run repeats the steps since its last checkpoint, to the same bits, so what is there already stays.
        """
        file = self._opened()
        if reading.step <= self._last_step:
            return
        line = left = memoryview(reading.to_line().encode() + b"\n")
        try:
            with explain_write_errors(self.path):
                while left:  # unbuffered, so that a full disk leaves nothing to be written at close
                    left = left[file.write(left) :]
                # A checkpoint follows, and must never be on the disk before the readings that it stands for.
                os.fsync(file.fileno())
        except BaseException:
            self.close()  # whoever goes on opens it again and cuts off the torn line
            raise
        self._last_step, self._count, self._bytes = reading.step, self._count + 1, self._bytes + len(line)
        self._sha256.update(line)

    def record(self) -> dict[str, Any]:
        """The number, bytes and sha256 of the readings so far: what a header has to say before a checkpoint stands for them.

        Returns:
            The header's ``readings``.

        Raises:
            StoreError: Those that an earlier header recorded are damaged, or nothing may be written.
        """
        self._opened()
        return _record(self._count, self._bytes, self._sha256)

    def _opened(self) -> FileIO:
        # The file ends with what an earlier header recorded: damage there is an error, and what follows comes again.
        if self._file is not None:
            return self._file
        try:
            raw, _ = read_bytes(self._lines, LARGEST_READINGS)
        except FileNotFoundError:
            raw = b""
        raw = raw[: raw.rfind(b"\n") + 1]
        if (recorded := self.header().get("readings")) is not None:
            raw = raw[: recorded["bytes"]]
            if hashlib.sha256(raw).hexdigest() != recorded["sha256"]:
                raise DamagedError(
                    self._lines, f"its first {recorded['count']:,} readings are not those of its last checkpoint"
                )
        try:
            steps = [record.step for record in read_records(raw.decode("utf-8"))]
        except ValueError as error:
            raise DamagedError(self._lines, error) from error
        with explain_write_errors(self.path):
            self._file = self._lines.open("ab", buffering=0)
            self._file.truncate(len(raw))
        self._last_step, self._count = max(steps, default=-1), len(steps)
        self._bytes, self._sha256 = len(raw), hashlib.sha256(raw)
        return self._file

    def close(self) -> None:
        """Close the readings' file; what was appended is on the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def locked(self, timeout: float = 30.0) -> Iterator[None]:
        """Hold the run for this process: a worker that outlives its command ends its epoch first.

        Args:
            timeout: Seconds to wait for another process to let go.

        Yields:
            Nothing.

        Raises:
            StoreError: The other process did not let go.
        """
        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        said = f"another process still works on the run {self.id}: wait until it ends, or stop it"
        with _lock(self.path, timeout, said):
            for left in (*self.path.glob(".*.aside"), *self.kept.glob(".*.aside")):
                left.unlink()  # of a process that was killed while it wrote
            try:
                yield
            finally:
                self.close()


class Store:
    """A folder of runs and of studies' manifests.

    Args:
        path: The folder; made when something is first written.

    Raises:
        StoreError: It was written by another schema version, is no folder, or its parts are links.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"the store {self.path} is a file, expected a folder: choose another with --store")
        for part in ("runs", "sheets", "figures", ".lock"):
            if (self.path / part).is_symlink():
                raise StoreError(
                    f"{self.path / part} is a link, expected a part of the store itself: remove it, or name the folder that"
                    " holds the whole store with --store"
                )
        with contextlib.suppress(FileNotFoundError):
            found = read_object(self.path / "store.json", STORE)["schema"]
            if found != SCHEMA:
                raise StoreError(
                    f"the store {self.path} has schema version {found}, and this halflife writes {SCHEMA}: choose another"
                    " folder with --store, or use the halflife that wrote it"
                )

    def create(self) -> None:
        """Make the folder, if it is not there."""
        with explain_write_errors(self.path):
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            (self.path / "sheets").mkdir(exist_ok=True)
        if not (self.path / "store.json").exists():
            write_whole(self.path / "store.json", json.dumps({"schema": SCHEMA, "made_by": "halflife"}) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for this process; reading it stays possible for others.

        Yields:
            Nothing.

        Raises:
            StoreError: Another process holds it.
        """
        self.create()
        said = (
            f"another halflife process is writing the store {self.path}: wait until it ends, or give this one its own"
            " folder with --store"
        )
        with _lock(self.path, 0, said):
            yield

    def run(self, identity: str) -> RunFolder:
        """The folder of one run, whether it exists or not.

        Args:
            identity: The run's id.

        Returns:
            The folder.

        Raises:
            StoreError: The id is none, or the folder holds something that is neither a folder nor a regular file.
        """
        path = named_in(
            self.path / "runs", identity, RUN_NAME, what="the id of a run", expected="16 hexadecimal digits"
        )
        check_tree(path)
        return RunFolder(path)

    def write_manifest(self, name: str, manifest: dict[str, Any]) -> None:
        """Write the manifest ``name``, which is ``<study>-<preset>``: the runs that a study consists of."""
        self.create()
        words = "letters, digits, dots and dashes"
        path = named_in(self.path / "sheets", name, MANIFEST_NAME, what="the name of a manifest", expected=words)
        write_object(path.with_name(f"{name}.json"), manifest)

    def manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest ``name``, which is ``<study>-<preset>``.

        Args:
            name: Its name.

        Returns:
            The manifest, ``None`` where there is none.

        Raises:
            StoreError: It is none, or is of another study or preset.
        """
        path = self.path / "sheets" / f"{name}.json"
        try:
            manifest = read_object(path, MANIFEST)
        except FileNotFoundError:
            return None
        own = f"{manifest['study']}-{manifest['preset']}"
        sizes = [(arm["key"], arm["size"]) for arm in manifest["arms"]]
        problem = ""
        if own != name:
            problem = f"it is of {own}, expected {name}"
        elif manifest["main_size"] not in {size for _, size in sizes}:
            problem = f"main_size is {manifest['main_size']}, expected the size of an arm"
        elif len(set(sizes)) < len(sizes):
            problem = "two arms have the same key and size, expected one of each"
        if problem:
            raise StoreError(f"{path} cannot be used, {problem}: remove it, and run the study again")
        return manifest

    def manifests(self, trouble: Callable[[str, StoreError], None] | None = None) -> list[dict[str, Any]]:
        """All manifests in the order of their names: one JSON object a study and preset.

        Args:
            trouble: Told the name of a manifest that cannot be read, and why (``None``: that is an error).

        Returns:
            The manifests.

        Raises:
            StoreError: One cannot be read, and nobody is to be told.
        """
        found = []
        for path in sorted((self.path / "sheets").glob("*.json")):
            try:
                manifest = self.manifest(path.stem)
            except StoreError as error:
                if trouble is None:
                    raise
                trouble(path.stem, error)
            else:
                if manifest is not None:  # removed meanwhile
                    found.append(manifest)
        return found
