"""Files that can be trusted: written aside and renamed, so that nothing is lost; read only if they are what they should be.

A store may come from somebody else. So its names are checked before they become paths, only regular files of bounded size
are opened, links are not followed, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halflife.errors import StoreError
from halflife.studies.store.schema import ANY_OBJECT, MisfitError, Schema

__all__ = [
    "LARGEST_READINGS",
    "DamagedError",
    "check_regular",
    "check_tree",
    "checksum",
    "explain_write_errors",
    "loads",
    "named_in",
    "read_bytes",
    "read_object",
    "stamp",
    "write_object",
    "write_whole",
]

DEEPEST_JSON = 32  # levels; a branch of a branch in a header has 4
LARGEST_JSON = 64 << 20  # bytes; a manifest of 10,000 runs has half a million
LARGEST_READINGS = 1 << 30  # bytes
CRC32 = "crc32"
CRC32_MARK = b',\n "crc32": '
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = {
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
KINDS = {stat.S_IFLNK: "link", stat.S_IFIFO: "named pipe", stat.S_IFDIR: "folder", stat.S_IFREG: "file"}


class NestedError(ValueError):
    """JSON is nested too deeply."""

    def __init__(self) -> None:
        super().__init__("nested too deeply to be read")


def named_in(folder: Path, name: object, pattern: str, *, what: str, expected: str) -> Path:
    """Check a name that comes from a file, and return its path, which does not lead out of ``folder``.

    Args:
        folder: Where it lies.
        name: The name, of any type.
        pattern: What all of it must match.
        what: What it names, for the message.
        expected: The pattern in words.

    Returns:
        Its path.

    Raises:
        StoreError: It is no such name.
    """
    if not isinstance(name, str) or re.fullmatch(pattern, name) is None:
        raise StoreError(f"{what} is {str(name)[:80]!r}, expected {expected}: remove what names it in {folder.parent}")
    return folder / name


def _refuse_kind(path: Path, mode: int, expected: str) -> None:
    kind = KINDS.get(stat.S_IFMT(mode), "device")
    if kind != expected:
        raise StoreError(f"{path} is a {kind}, expected a {expected}: remove it, and run again")


def check_regular(path: Path, largest: int) -> None:
    """Refuse what is no regular file, such as a link or a pipe, and what has more than ``largest`` bytes."""
    about = path.lstat()
    _refuse_kind(path, about.st_mode, "file")
    if about.st_size > largest:
        raise StoreError(f"{path} has {about.st_size:,} bytes, expected at most {largest:,}: remove it, and run again")


def check_tree(folder: Path) -> None:
    """Refuse a folder that holds, at any depth, anything but folders and regular files; one that is not there is fine.

    Raises:
        StoreError: It is no folder, or holds a link, a pipe or a device, or may not be read.
    """
    try:
        if not stat.S_ISDIR(mode := folder.lstat().st_mode):
            _refuse_kind(folder, mode, "folder")
        left = [str(folder)]
        while left:
            with contextlib.suppress(FileNotFoundError), os.scandir(left.pop()) as entries:  # others may remove files
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        _refuse_kind(Path(entry.path), entry.stat(follow_symlinks=False).st_mode, "file")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be read ({error.strerror}), expected a folder of your own: remove it"
        ) from error


def _depth_exceeds(most: int, value: object) -> bool:
    level = [value]
    for _ in range(most + 1):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in inner for child in children]
        if not level:
            return False
    return True


def _no_number(text: str) -> None:
    raise ValueError(f"it has {text}")


def loads(text: str) -> Any:
    """The value of JSON text of bounded depth, whose numbers are finite.

    Args:
        text: The text.

    Returns:
        The value.

    Raises:
        NestedError: It is nested too deeply.
        ValueError: It is anything else.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise NestedError from error
    if _depth_exceeds(DEEPEST_JSON, value):  # whoever walks through it may do so by recursion
        raise NestedError
    return value


def checksum(about: str, data: bytes | memoryview) -> str:
    """Eight hexadecimal digits that tell damage of bytes, and of what is said about them."""
    return f"{zlib.crc32(data, zlib.crc32(about.encode())):08x}"


def stamp(about: os.stat_result) -> str:
    """What tells on this machine that a file is the one that it was: nobody can choose the time of the last change."""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"


def read_bytes(path: Path, largest: int) -> tuple[bytes, os.stat_result]:
    """What a regular file of bounded size holds, and what the system says about it.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Returns:
        Its content and its status.

    Raises:
        FileNotFoundError: There is none.
        StoreError: It is no regular file, is too large, or cannot be read.
    """
    try:
        check_regular(path, largest)
        with path.open("rb", buffering=0) as file:
            return file.read(), os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): make it readable, or remove it") from error


def read_object(path: Path, schema: Schema = ANY_OBJECT) -> dict[str, Any]:
    """Read the JSON object in a regular file of bounded size and depth.

    Args:
        path: The file.
        schema: What it must hold.

    Returns:
        The object.

    Raises:
        FileNotFoundError: There is no file.
        StoreError: It holds anything else, in one sentence.
    """
    raw, _ = read_bytes(path, LARGEST_JSON)
    try:
        value: Any = loads(raw.decode("utf-8"))
    except NestedError as error:
        raise StoreError(f"{path} is {error}: remove it, and run the study again") from error
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): remove it, and run the study again") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a {type(value).__name__}, expected a JSON object: remove it and run again")
    if (found := value.pop(CRC32, None)) is not None:  # older files have none
        text, mark, _ = raw.rpartition(CRC32_MARK)
        if not mark or found != checksum("", text):
            raise StoreError(f"{path} is damaged, its checksum differs: remove it, and run the study again")
    try:
        schema.check(value, "")
    except MisfitError as error:
        raise StoreError(f"{path} cannot be used, {error}: remove it, and run the study again") from error
    return value


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors of writing into one sentence each.

    Args:
        path: What is written, for the sentence.

    Yields:
        Nothing.

    Raises:
        StoreError: The disk is full, or the path may not be written.
        OSError: The system refused for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreError(
                f"the disk of {path} is full, and everything written so far is kept: free some space and run the same"
                " command again, it goes on where it stopped"
            ) from error
        if error.errno in UNWRITABLE:
            raise StoreError(
                f"{path} cannot be written ({error.strerror}), expected a place that you may write to: choose another"
                " with --store, HALFLIFE_STORE or --out"
            ) from error
        raise


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object with a checksum, which `read_object` takes out again.

    Args:
        path: The file.
        value: The object; it has at least one name.
    """
    text = json.dumps(value, indent=1).removesuffix("\n}").encode()
    write_whole(path, text + CRC32_MARK + f'"{checksum("", text)}"\n}}\n'.encode())


class DamagedError(StoreError):
    """The readings of a run are damaged; ``lines`` is their file."""

    def __init__(self, lines: Path, what: object) -> None:
        super().__init__(f"{lines} is damaged ({what}): remove the folder {lines.parent} and run again")


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file so that a crash at any moment leaves either the old content or the new, text as UTF-8.

    Args:
        path: The file.
        content: What it shall hold.
        durable: Wait for the disk. Without it a crash of the system may leave an empty file.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    with explain_write_errors(path):
        aside.unlink(missing_ok=True)
        try:
            with aside.open("xb") as file:  # never through a link that lies there
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
