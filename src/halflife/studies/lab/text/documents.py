"""The files of a folder that are documents: UTF-8 text, with what was left out, read and hashed once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halflife.errors import UserError
from halflife.studies.lab.text.shards import cache_folder

__all__ = ["Document", "Found", "Root", "look_through"]


@dataclass(frozen=True)
class Document:
    """A file of text.

    Args:
        name: Its path relative to the corpus, with slashes.
        path: Where it lies.
        size: Bytes.
        sha256: Of its content.
    """

    name: str
    path: Path
    size: int
    sha256: str

    @property
    def place(self) -> float:
        """A number in [0, 1) that depends on the name alone, which decides its split and its order in it."""
        return int.from_bytes(hashlib.sha256(os.fsencode(self.name)).digest()[:6]) / (1 << 48)

    def read(self) -> bytes:
        """The content.

        Returns:
            UTF-8 text.

        Raises:
            UserError: It is not what it was when the corpus was looked through.
        """
        content = _read_bytes(self.path)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(f"{self.path} was changed while its corpus was being read: run the same command again")
        return content


@dataclass(frozen=True)
class Root:
    """A folder whose files belong to a corpus.

    Args:
        label: First part of the names of its documents (empty: none).
        path: Where it lies.
        keeps_folder: Whether a folder with this last name counts.
        keeps_file: Whether a file with this whole name counts.
    """

    label: str
    path: Path
    keeps_folder: Callable[[str], bool]
    keeps_file: Callable[[str], bool]


@dataclass(frozen=True)
class Found:
    """What some roots hold.

    Args:
        documents: Sorted by name.
        not_text: Files that are not UTF-8, or hold byte 0, which separates documents.
        hidden: Files and folders whose names begin with a dot.
        linked: Folders that are links, which are not followed: they may lead back to where they start.
    """

    documents: tuple[Document, ...]
    not_text: tuple[str, ...]
    hidden: tuple[str, ...]
    linked: tuple[str, ...]

    def left_out(self) -> str:
        """What was left out of the text, for people to read; empty if nothing was."""
        kinds = ((self.not_text, "not UTF-8 text"), (self.hidden, "hidden"), (self.linked, "links to folders"))
        return "".join(f"; left out as {what}: {len(names)} ({_some(names)})" for names, what in kinds if names)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable, or leave it out") from error


def _hidden(name: str) -> bool:
    return name.startswith(".")


@dataclass(frozen=True)
class _Listing:
    files: tuple[tuple[str, Path, int, int], ...]
    """Name, path, size and time of change, sorted by name."""
    hidden: tuple[str, ...]
    linked: tuple[str, ...]


def _list_files(roots: tuple[Root, ...]) -> _Listing:
    """The files that count, and what was passed by."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): make it readable, or leave it out")

    files, hidden, linked = [], [], []
    own = cache_folder().resolve()  # what halflife makes of a text is no part of it
    for root in roots:
        for folder, folders, names in os.walk(root.path, onerror=refuse):
            base = Path(folder)
            inside = [part for part in (root.label, *base.relative_to(root.path).parts) if part]
            hidden += ["/".join((*inside, name)) for name in (*folders, *names) if _hidden(name)]
            linked += [
                "/".join((*inside, name)) for name in folders if not _hidden(name) and (base / name).is_symlink()
            ]
            folders[:] = [
                name
                for name in folders
                if not _hidden(name) and root.keeps_folder(name) and (base / name).resolve() != own
            ]
            for name in names:
                whole = "/".join((*inside, name))
                if not _hidden(name) and root.keeps_file(whole) and (base / name).is_file():
                    stat = (base / name).stat()
                    files.append((whole, base / name, stat.st_size, stat.st_mtime_ns))
    return _Listing(tuple(sorted(files)), tuple(sorted(hidden)), tuple(sorted(linked)))


_looked_through: dict[tuple[Root, ...], tuple[_Listing, Found]] = {}


def look_through(roots: tuple[Root, ...]) -> Found:
    """Read every file once; again only if the sizes or times of the files are no longer the same.

    Args:
        roots: The folders.

    Returns:
        Their documents. Empty files are none.
    """
    listing = _list_files(roots)
    if roots in _looked_through and _looked_through[roots][0] == listing:
        return _looked_through[roots][1]
    documents, not_text = [], []
    for name, path, _, _ in listing.files:
        content = _read_bytes(path)
        if not content:
            continue
        if _is_text(content):
            documents.append(Document(name, path, len(content), hashlib.sha256(content).hexdigest()))
        else:
            not_text.append(name)
    found = Found(tuple(documents), tuple(not_text), listing.hidden, listing.linked)
    _looked_through[roots] = listing, found
    return found


def _is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8 without NUL, which separates documents."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content
