"""The report: pages that need no network, or the same figures as files. Everything in it is read from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halflife.errors import StoreError, UserError
from halflife.studies.catalog import STUDIES
from halflife.studies.catalog.own import explained, study_of
from halflife.studies.catalog.papers import PAPERS
from halflife.studies.evidence.claims import Study
from halflife.studies.evidence.verdicts import StudyResults, manifests_of
from halflife.studies.store.archives import ArchivedStore
from halflife.studies.store.files import write_whole
from halflife.studies.store.store import Store

if TYPE_CHECKING:
    from halflife.studies.report.pages.page import Problem

__all__ = ["build_report", "report_folder"]

FORMATS = ("html", "svg", "pdf")
FOLDER = "halflife-report"


def build_report(
    store: Store,
    names: Sequence[str] = (),
    *,
    fmt: Literal["html", "svg", "pdf"] = "html",
    out: Path | None = None,
    notice: Callable[[str], None] = lambda words: None,
    studies: Mapping[str, Study] = STUDIES,
) -> list[Path]:
    """Write the report of the store's studies.

    A manifest of a preset that is made for tests is shown only for a study that has no other. A study whose runs lack
    readings is named as a problem, and the others are shown. Damaged runs are named and left out.

    Args:
        store: Where the runs are.
        names: Studies to show (none: all).
        fmt: ``"html"`` for pages that need no network: a first page that says what was found, beside it one for every study
            and preset, ``study-<name>-<preset>.html``, one for every paper that has a study among them,
            ``paper-<key>.html``, and the script that draws their figures. ``"svg"`` or ``"pdf"`` for one file per figure.
        out: The first page if it ends in ``.html``, else the folder for the pages or figures; by default ``report.html`` or
            ``figures`` in the store, or in ``halflife-report`` where archives are read.
        notice: Is told which study cannot be shown, and why.
        studies: The studies that are known, by name: ours, and own ones whose files were given.

    Returns:
        The files that were written, the first page first.

    Raises:
        UserError: The format is not known, a study has no runs, or ``out`` cannot be written.
        StoreError: No study can be shown; the message is that of the first.
    """
    if fmt not in FORMATS:
        raise UserError(f"the format is {fmt!r}, expected one of {', '.join(FORMATS)}: choose one of these")
    # Altair and the pages are imported here: `halflife.studies.report.pages.tables` serves the terminal without them.
    from halflife.studies.report.pages.page import Problem

    problems: list[Problem] = []

    def trouble(study: str, preset: str, error: UserError) -> None:
        problems.append(Problem(study, preset, str(error)))
        notice(f"{study}, preset {preset}, cannot be shown: {error}")

    results = _results(store, names, studies, trouble)
    for one in results:
        for words in one.damaged.values():
            notice(f"{one.study.name}, preset {one.preset_name}, is shown without a damaged run: {words}")
    contents: dict[str, str | bytes] = {}
    if fmt == "html":
        path = out or report_folder(store) / "report.html"
        path = path if path.suffix == ".html" and not path.is_dir() else path / "report.html"
        folder = path.parent
        contents = _pages(results, names, path.name, problems, trouble)
    else:
        from halflife.studies.report.files import render_files

        folder = out or report_folder(store) / "figures"
        for one in results:
            try:
                with explained(one.study):
                    contents |= render_files([one], fmt)
            except UserError as error:
                trouble(one.study.name, one.preset_name, error)
    if not contents:
        raise StoreError(problems[0].words)
    _make_folder(folder)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def report_folder(store: Store) -> Path:
    """Where a report is written by default: into the store, and of archives, which are for reading, into a folder here."""
    return Path(FOLDER) if isinstance(store, ArchivedStore) else store.path


def _pages(
    many: Sequence[StudyResults],
    names: Sequence[str],
    report: str,
    problems: list[Problem],
    trouble: Callable[[str, str, UserError], None],
) -> dict[str, str | bytes]:
    """The pages by their file names; none where nothing can be shown."""
    from halflife.studies.report.facts import Facts, findings_html
    from halflife.studies.report.findings import read_findings
    from halflife.studies.report.pages.guide import guide_of
    from halflife.studies.report.pages.page import (
        CHARTS_FILE,
        charts_script,
        paper_file,
        render_first,
        render_paper,
        render_study,
    )
    from halflife.studies.report.pages.sections import section_of, study_file

    # This takes more than a second and needs nothing of the rest.
    script = ThreadPoolExecutor(max_workers=1).submit(charts_script)
    shown: list[StudyResults] = []
    sections: list[dict[str, Any]] = []
    for results in many:
        try:
            with explained(results.study):
                sections.append(section_of(results))
        except UserError as error:
            trouble(results.study.name, results.preset_name, error)
        else:
            shown.append(results)
    if not shown:
        return {}
    guides = {paper.key: [s for s in guide_of(paper, shown) if not names or s.study.name in names] for paper in PAPERS}
    papers = [paper for paper in PAPERS if any(step.results is not None for step in guides[paper.key])]

    def link(study: str, preset: str, claim: str) -> str:
        return study_file(study, preset) + (f"#{claim}" if claim else "")

    facts = Facts([(results, section["verdicts"]) for results, section in zip(shown, sections, strict=True)], link)
    words = read_findings()
    told = any(facts.has(name) for question in words.questions for name in question.studies)
    findings = findings_html(words, facts) if told else None
    pages: dict[str, str | bytes] = {
        report: render_first(sections, findings=findings, problems=problems, papers=papers)
    }
    pages |= {section["file"]: render_study(section, sections, report=report) for section in sections}
    for paper in papers:
        pages[paper_file(paper)] = render_paper(
            paper, guides[paper.key], sections, report=report, problems=problems, papers=papers
        )
    if any(section["figures"] for section in sections):
        pages[CHARTS_FILE] = script.result()
    return pages


def _results(
    store: Store,
    names: Sequence[str],
    studies: Mapping[str, Study],
    trouble: Callable[[str, str, UserError], None],
) -> list[StudyResults]:
    """The results of all manifests to show, in the order of studies and presets."""
    found = []
    for manifest in manifests_of(store, names, trouble):
        try:
            found.append(StudyResults(store, study_of(manifest, studies), manifest))
        except UserError as error:
            trouble(manifest["study"], manifest["preset"], error)
    serious = {results.study.name for results in found if _decides(results)}
    shown = [results for results in found if _decides(results) or results.study.name not in serious]
    order = list(studies)
    return sorted(shown, key=lambda r: (order.index(r.study.name), list(r.study.presets).index(r.preset_name)))


def _decides(results: StudyResults) -> bool:
    return results.study.presets[results.preset_name].decides


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be made ({error.strerror}), expected a folder that you may write to: choose another --out"
        ) from error
