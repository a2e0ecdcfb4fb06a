"""``halflife export``: the readings in a store as tables for other programs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from halflife.cli.common import NamesArgument, StoreOption, check_names, existing_store, given_path, warn
from halflife.cli.console import plain
from halflife.cli.documents import JsonOption, one_document
from halflife.errors import StoreError, UserError

__all__ = ["export_command"]

FORMATS = ("csv", "parquet")
FOLDER = "halflife-export"  # of archives, which are only read


def export_command(
    names: NamesArgument = None,
    store: StoreOption = None,
    fmt: Annotated[
        str, typer.Option("--format", metavar="csv|parquet", help="Text, or a compact binary table")
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="DIR", help="Folder to write to [default: export in the store]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the readings of paired seeds as tables, one file a study and preset.

    A row is what one run read at one step: arm, label, size, seed, run, step, epoch, and one column a quantity.
    """
    with one_document(as_json) as document:
        document["files"] = files = list[str]()
        for path in _written(names or [], store, fmt, out):
            files.append(str(path))
            if not as_json:
                print(plain(str(path)))


def _written(names: list[str], store: Path | None, fmt: str, out: Path | None) -> Iterator[Path]:
    if fmt not in FORMATS:
        raise UserError(f"--format is {fmt!r}, expected {' or '.join(FORMATS)}: choose one of these")
    from halflife.studies.catalog.own import known_studies
    from halflife.studies.evidence.results import Results
    from halflife.studies.evidence.verdicts import manifests_of
    from halflife.studies.store.archives import ArchivedStore
    from halflife.studies.store.files import explain_write_errors, named_in, write_whole
    from halflife.studies.store.store import MANIFEST_NAME

    studies, chosen = known_studies(names)
    where = existing_store(store)
    check_names(where, chosen, studies)
    folder = out or (Path(FOLDER) if isinstance(where, ArchivedStore) else where.path / "export")
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    written = 0

    def trouble(study: str, preset: str, error: UserError | str) -> None:
        problems.append(f"{study}-{preset}: {error}")

    for manifest in manifests_of(where, chosen, trouble):
        name = f"{manifest['study']}-{manifest['preset']}"
        try:
            results = Results(where, manifest)
            frame = results.frame
        except UserError as error:  # the others can be read
            trouble(manifest["study"], manifest["preset"], error)
            continue
        for words in results.damaged.values():
            trouble(manifest["study"], manifest["preset"], words)
        if frame.is_empty():
            warn(f"{name} has no seed that is finished in every arm, so there is nothing to export of it yet")
            continue
        table = io.BytesIO()
        frame.write_csv(table) if fmt == "csv" else frame.write_parquet(table)
        # Names come from the store, which may be somebody else's.
        path = named_in(
            folder, name, MANIFEST_NAME, what="the name of a manifest", expected="letters, digits, dots and dashes"
        )
        path = path.with_name(f"{name}.{fmt}")
        write_whole(path, table.getvalue())
        yield path
        written += 1
    if problems:
        raise StoreError("; ".join(problems))
    if not written:
        raise StoreError(
            f"the store {where.path} has nothing to export yet: let `halflife study run` finish a seed first"
        )
