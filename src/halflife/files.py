"""Writing files so that nothing is ever lost: aside, to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from halflife.errors import StoreError

__all__ = ["said_plainly", "write_whole"]


@contextlib.contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one sentence each.

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
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StoreError(
                f"the disk of {path} is full, and everything written so far is kept: free some space and run the same"
                " command again, it goes on where it stopped"
            ) from error
        if error.errno in {
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENOENT,
        }:
            raise StoreError(
                f"{path} cannot be written ({error.strerror}), expected a place that you may write to: choose another"
                " with --store, HALFLIFE_STORE or --out"
            ) from error
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash at any moment leaves either the old content or the new.

    Args:
        path: The file.
        content: Its new content; text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    with said_plainly(path):
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
