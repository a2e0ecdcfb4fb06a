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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halflife.errors import StoreError

__all__ = ["check_regular", "check_tree", "explain_write_errors", "named_in", "read_object", "write_whole"]

DEEPEST_JSON = 32  # levels; a branch of a branch in a header has 4
LARGEST_JSON = 64 << 20  # bytes; a manifest of 10,000 runs has half a million
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = {
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
KINDS = {stat.S_IFLNK: "link", stat.S_IFIFO: "named pipe", stat.S_IFDIR: "folder", stat.S_IFREG: "file"}


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
    left = [folder]
    try:
        if folder.is_symlink() or folder.exists():
            _refuse_kind(folder, folder.lstat().st_mode, "folder")
        while left:
            with contextlib.suppress(FileNotFoundError), os.scandir(left.pop()) as entries:  # others may remove files
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False):
                        _refuse_kind(Path(entry.path), entry.stat(follow_symlinks=False).st_mode, "file")
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be read ({error.strerror}), expected a folder of your own: remove it"
        ) from error


def _depth_exceeds(most: int, value: object) -> bool:
    level = [value]
    for _ in range(most + 1):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in inner for child in children]
    return bool(level)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file of bounded size and depth; anything else is a `StoreError`."""
    too_deep = f"{path} is nested too deeply to be read: remove it, and run the study again"
    try:
        check_regular(path, LARGEST_JSON)
        value = json.loads(path.read_text(encoding="utf-8"))
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): remove it, and run the study again") from error
    except RecursionError as error:
        raise StoreError(too_deep) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): make it readable, or remove it") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a {type(value).__name__}, expected a JSON object: remove it and run again")
    if _depth_exceeds(DEEPEST_JSON, value):  # whoever walks through it may do so by recursion
        raise StoreError(too_deep)
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


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash at any moment leaves either the old content or the new, text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    with explain_write_errors(path):
        aside.unlink(missing_ok=True)
        try:
            with aside.open("xb") as file:  # never through a link that lies there
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
