"""The report: one self-contained page, or the same figures as files. Everything in it is read from the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from halflife.errors import StoreError, UserError
from halflife.files import write_whole
from halflife.store import Store
from halflife.studies import STUDIES, get_study
from halflife.studies.results import Results, sheets_of

__all__ = ["build_report"]

FORMATS = ("html", "svg", "pdf")


def build_report(
    store: Store, names: Sequence[str] = (), *, fmt: Literal["html", "svg", "pdf"] = "html", out: Path | None = None
) -> list[Path]:
    """Write the report of the store's studies.

    A sheet of a preset that is made for tests is shown only for a study that has no other.

    Args:
        store: Where the runs are.
        names: Studies to show (none: all).
        fmt: ``"html"`` for one page that needs nothing else, ``"svg"`` or ``"pdf"`` for one file per figure.
        out: The page, or the folder for the figures; ``<store>/report.html`` or ``<store>/figures`` by default.

    Returns:
        The files that were written.

    Raises:
        UserError: The format is not known, a study has no runs, or ``out`` cannot be written.
        StoreError: A reading is missing; the message names the run.
    """
    if fmt not in FORMATS:
        raise UserError(f"the format is {fmt!r}, expected one of {', '.join(FORMATS)}: choose one of these")
    results = _results(store, names)
    # Altair and the page are imported here: `halflife.report.tables` serves the terminal without them.
    if fmt == "html":
        from halflife.report.page import render_page

        path = out or store.path / "report.html"
        path = path / "report.html" if path.is_dir() else path
        content = render_page(results)
        _make_folder(path.parent)
        write_whole(path, content)
        return [path]
    from halflife.report.files import render_files

    folder = out or store.path / "figures"
    contents = render_files(results, fmt)
    _make_folder(folder)
    for name, file in contents.items():
        write_whole(folder / name, file)
    return [folder / name for name in contents]


def _results(store: Store, names: Sequence[str]) -> list[Results]:
    """The results of all sheets to show, in the order of studies and presets."""
    sheets = sheets_of(store, names)
    found = [Results(store, get_study(sheet["study"]), sheet) for sheet in sheets]
    serious = {results.study.name for results in found if _decides(results)}
    shown = [results for results in found if _decides(results) or results.study.name not in serious]
    studies = list(STUDIES)
    return sorted(shown, key=lambda r: (studies.index(r.study.name), list(r.study.presets).index(r.preset_name)))


def _decides(results: Results) -> bool:
    return results.study.presets[results.preset_name].decides


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be made ({error.strerror}), expected a folder that you may write to: choose another --out"
        ) from error
