"""What the commands of studies share: the store that is meant, the studies that are meant, and warnings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from halflife.cli.console import PlainConsole
from halflife.errors import StoreError

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Study
    from halflife.studies.store.store import Store

__all__ = [
    "NamesArgument",
    "OwnOption",
    "StoreOption",
    "check_names",
    "console",
    "existing_store",
    "given_path",
    "store_at",
    "warn",
]

DEFAULT_STORE = "halflife-runs"


def given_path(text: str) -> Path:
    """The path that an option gives; an empty one, as a variable of the shell that is not set gives it, is refused."""
    if not text:
        raise typer.BadParameter("it is empty, expected a path: give one, or leave the option out")
    return Path(text)


StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        parser=given_path,
        metavar="DIR",
        help="Folder of runs, or archives to read [default: $HALFLIFE_STORE or halflife-runs]",
    ),
]
NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Studies, own ones as my_file.py:STUDY [default: all in the store]"),
]
OwnOption = Annotated[
    list[str] | None,
    typer.Option("--study", metavar="FILE:NAME", help="Know this study of your own, too; may be repeated"),
]

console = PlainConsole()


def warn(words: str) -> None:
    """Print a warning to standard error."""
    PlainConsole(stderr=True).print(f"[yellow]warning:[/] {escape(words)}", highlight=False, soft_wrap=True)


def _path(path: Path | None) -> Path:
    return Path(path or os.environ.get("HALFLIFE_STORE") or DEFAULT_STORE)


def store_at(path: Path | None) -> Store:
    """The store of ``--store`` for writing, which may not be there yet; archives are a `StoreError`."""
    from halflife.studies.store.archives import holds_archives
    from halflife.studies.store.store import Store

    place = _path(path)
    if holds_archives(place):
        raise StoreError(f"{place} holds archives, which are only read: choose another folder with --store to run into")
    return Store(place)


def existing_store(path: Path | None) -> Store:
    """The store of ``--store`` for reading, or the archives that are there; if nothing is, a `StoreError`."""
    from halflife.studies.store.archives import ArchivedStore, holds_archives

    place = _path(path)
    if holds_archives(place):
        return ArchivedStore(place, warn)
    if not place.exists():
        raise StoreError(
            f"there is no store at {place}: run `halflife study run stabilization` first, or name one with --store"
        )
    return store_at(place)


def check_names(store: Store, names: Sequence[str], studies: Mapping[str, Study]) -> None:
    """Refuse a name that is neither that of a study nor in the store, and an own study that was not run.

    Raises:
        StoreError: The store has no runs of an own study.
    """
    from halflife.studies.catalog import get_study

    held = {manifest["study"] for manifest in store.manifests(lambda name, error: None)}  # told where they are read
    for name in names:
        if name not in held and (origin := get_study(name, studies).origin) is not None:
            raise StoreError(
                f"the store {store.path} has no runs of {name}: run `halflife study run {origin.reference}` first, or name"
                " another --store"
            )
