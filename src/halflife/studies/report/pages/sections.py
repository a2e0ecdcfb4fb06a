"""What the pages show of one manifest, as plain values: computed once, and shown by every page that needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from halflife.studies.evidence.claims import Verdict
from halflife.studies.evidence.history import fixed_before_runs
from halflife.studies.evidence.multiplicity import Multiplicity, multiplicity_of, name_of
from halflife.studies.evidence.panels import AnyPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.beside import beside_rows
from halflife.studies.report.figures.fields import size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.ladder import DRAWN_UNITS, ladder_figure
from halflife.studies.report.figures.panels import panel_figures, why_not_drawn
from halflife.studies.report.pages.provenance import banners, provenance_of
from halflife.studies.report.pages.scale import scale_of
from halflife.studies.report.pages.tables import SYMBOLS, verdict_rows

__all__ = ["counts_of", "fixed_words", "not_drawn", "section_of", "study_file", "together_words"]


def study_file(study: str, preset: str) -> str:
    """The file of a study's page, beside the report."""
    return f"study-{study}-{preset}.html"


def section_of(results: StudyResults) -> dict[str, Any]:
    """What the pages show of one manifest.

    Returns:
        Values for the templates.

    Raises:
        StoreError: A reading is missing; the message names the run.
    """
    study = results.study
    name = f"{study.name}-{results.preset_name}"
    verdicts = results.verdicts()
    many = multiplicity_of(verdicts)
    rows = [
        _with_history(row, verdict, results, many)
        for row, verdict in zip(verdict_rows(verdicts), verdicts, strict=True)
    ]
    ladder = ladder_figure(results, verdicts)
    figures = [_figure(f"{name}-{figure.slug}", figure) for figure in panel_figures(results)]
    named = sorted(
        (item for item in figures if item["figure"].slug in study.doc_panels),
        key=lambda item: study.doc_panels.index(item["figure"].slug),
    )
    return {
        "id": name,
        "verdicts": verdicts,
        "file": study_file(study.name, results.preset_name),
        "study": study,
        "size": f"{size_name(results)} {results.main_size}",
        "scale": scale_of(results),
        "preset": results.preset_name,
        "banners": banners(results),
        "summary": counts_of(rows),
        "rows": rows,
        "multiplicity": together_words(verdicts),
        "fixed": fixed_words(results),
        "marks": _marks(rows),
        "beside": beside_rows(results),
        "not_drawn": not_drawn(results, study.panels),
        "key_figure": next(iter(named or figures), None),
        "figures": figures,
        "ladder": _figure(f"{name}-ladder", ladder) if ladder else None,
        "run": provenance_of(results),
    }


def _with_history(row: dict[str, Any], verdict: Verdict, results: StudyResults, many: Multiplicity) -> dict[str, Any]:
    """A verdict's row with what was fixed when, and whether the decision stands beside the others."""
    name = name_of(verdict)
    decided = verdict.finding.outcome in {"reproduced", "not reproduced"}
    adjusted = many.adjusted.get(name)
    return row | {
        "fixed": fixed_before_runs(results.manifest, verdict.claim),
        "falls": decided and name not in many.stand,
        "adjusted": None if adjusted is None else f"{adjusted:.2g}",
    }


def fixed_words(results: StudyResults) -> str:
    """When claims and rules were fixed, as far as the manifest knows.

    Returns:
        A sentence.
    """
    claims = results.study.claims
    if not results.manifest.get("claims"):
        return "These runs are older than the record of claims, so this page does not know when the rules were fixed."
    fixed = sum(fixed_before_runs(results.manifest, claim) for claim in claims)
    if fixed == len(claims):
        return "All claims and rules were recorded before the first run was finished, and are the same since."
    return f"{fixed} of {len(claims)} claims and rules were recorded before the first run was finished, and are the same since."


def together_words(verdicts: Sequence[Verdict]) -> str:
    """How many distinct tests verdicts rest on, and which stand together; nothing where none is decided."""
    many = multiplicity_of(verdicts)
    return many.words if many.num_decided else ""


def counts_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """How many claims ended how.

    Args:
        rows: Their verdicts, from `halflife.studies.report.pages.tables.verdict_rows`.

    Returns:
        Outcome and number, for those outcomes that there are.
    """
    counts = Counter(row["outcome"] for row in rows)
    return [(outcome, counts[outcome]) for outcome in SYMBOLS if counts[outcome]]


def not_drawn(results: StudyResults, panels: Sequence[AnyPanel]) -> str:
    """Which panels wait for more runs.

    Args:
        results: What the store holds of the study.
        panels: The panels to ask for.

    Returns:
        One sentence without its stop; nothing when all can be drawn.
    """
    reasons: dict[str, list[str]] = {}
    for panel in panels:
        if reason := why_not_drawn(results, panel):
            reasons.setdefault(reason, []).append(panel.title)
    return "; ".join(f"{', '.join(titles)}: {reason}" for reason, titles in reasons.items())


def _marks(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Where interval, estimate and zero lie, in per cent of one scale that all effects in one unit share."""
    marks = {}
    for unit in DRAWN_UNITS:
        own = [row for row in rows if row["unit"] == unit and row["estimate"] is not None]
        low: float = min((row["low"] for row in own), default=0.0)
        high: float = max((row["high"] for row in own), default=0.0)
        ends = min(0.0, low), max(0.0, high)
        for row in own:
            marks[row["claim"]] = {
                "zero": _at(0, *ends),
                **{name: _at(row[name], *ends) for name in ("low", "estimate", "high")},
            }
    return marks


def _at(value: float, low: float, high: float) -> float:
    return round(4 + 92 * (value - low) / ((high - low) or 1.0), 2)


def _figure(identity: str, figure: Figure) -> dict[str, Any]:
    charts = []
    for index, (heading, chart) in enumerate(figure.charts):
        spec = (chart if figure.fixed else chart.properties(width="container")).to_dict(validate=False)
        # The page has one configuration for all charts, and no address of a schema.
        for key in ("$schema", "config"):
            spec.pop(key, None)
        if not figure.fixed:
            spec["autosize"] = {"type": "fit-x", "contains": "padding"}
        charts.append({"id": f"{identity}-{index}".replace(".", "-"), "heading": heading, "spec": spec})
    return {"id": identity.replace(".", "-"), "figure": figure, "charts": charts}
