"""The pages: HTML files that need no network, drawn from the store: what was found, one a study, a guide through each paper."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import jinja2
import vl_convert

from halflife import __version__
from halflife.studies.catalog.papers import Paper
from halflife.studies.evidence.stats import NOT_COVERED
from halflife.studies.report.figures.beside import HEADER
from halflife.studies.report.figures.fields import sentence_start
from halflife.studies.report.figures.theme import PAGE_COLOURS, PAGE_FONT, chart_config
from halflife.studies.report.pages.guide import Step
from halflife.studies.report.pages.sections import counts_of, not_drawn, together_words
from halflife.studies.report.pages.tables import MARKS, ROLES, SYMBOLS, typeset

__all__ = ["CHARTS_FILE", "Problem", "charts_script", "paper_file", "render_first", "render_paper", "render_study"]

CHARTS_FILE = "report-charts.js"
# A label of a legend ends where the plot does, after 30 pixels for its stroke: a phone's window is 360 pixels wide.
LABEL_LIMIT = {"expr": "min(420, width - 30)"}
BRIEF_FACTS = ("preset", "runs", "seeds", "started", "wall time", "data")  # of how a study was run, on a paper's page
Section = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A study that cannot be shown.

    Args:
        study: The study's name.
        preset: The preset.
        words: Why, in one sentence.
    """

    study: str
    preset: str
    words: str


def paper_file(paper: Paper) -> str:
    """The file of a paper's page, beside the report."""
    return f"paper-{paper.key}.html"


def render_first(
    sections: Sequence[Section],
    *,
    findings: dict[str, Any] | None = None,
    problems: Sequence[Problem] = (),
    papers: Sequence[Paper] = (),
) -> str:
    """The first page: what was found, then the studies with the counts of their verdicts.

    Args:
        sections: From `halflife.studies.report.pages.sections.section_of`, one per manifest, in the order of the page.
        findings: From `halflife.studies.report.findings.findings_html` (``None``: nothing of it was run).
        problems: Studies that cannot be shown.
        papers: The papers that have a page beside this one.

    Returns:
        The whole HTML document.
    """
    return _rendered(
        "report.html.j2",
        sections=sections,
        multiplicity=together_words([verdict for section in sections for verdict in section["verdicts"]]),
        findings=findings,
        problems=problems,
        papers=[(paper_file(paper), paper) for paper in papers],
        drawn_charts=False,
    )


def render_study(section: Section, sections: Sequence[Section] = (), *, report: str) -> str:
    """The page of one study and preset.

    Args:
        section: From `halflife.studies.report.pages.sections.section_of`.
        sections: All sections, among which are the other presets of the study.
        report: File of the first page.

    Returns:
        The whole HTML document.
    """
    others = [other for other in sections if other["study"] is section["study"] and other is not section]
    return _rendered(
        "study.html.j2", section=section, others=others, report=report, drawn_charts=bool(section["figures"])
    )


def render_paper(
    paper: Paper,
    steps: Sequence[Step],
    sections: Sequence[Section],
    *,
    report: str,
    problems: Sequence[Problem] = (),
    papers: Sequence[Paper] = (),
) -> str:
    """The page of a paper: its claims in its own order, each with verdict, numbers and figures.

    Args:
        paper: The paper.
        steps: From `halflife.studies.report.pages.guide.guide_of`.
        sections: From `halflife.studies.report.pages.sections.section_of`, of all manifests that the steps show.
        report: File of the first page.
        problems: Studies that cannot be shown.
        papers: All papers that have a page, this one among them.

    Returns:
        The whole HTML document.
    """
    by_name = {section["id"]: section for section in sections}
    shown = [_step(step, by_name, problems) for step in steps]
    return _rendered(
        "paper.html.j2",
        paper=paper,
        address=_address(paper.reference),
        steps=shown,
        report=report,
        papers=[(paper_file(other), other) for other in papers],
        drawn_charts=any(step["figure"] for step in shown),
    )


def _step(step: Step, by_name: dict[str, Section], problems: Sequence[Problem]) -> dict[str, Any]:
    """What the template shows of one step."""
    shown: dict[str, Any] = {
        "number": step.number,
        "told": step.told,
        "study": step.study,
        "section": None,
        "problems": [problem for problem in problems if problem.study == step.study.name],
        "figure": None,
        "summary": [],
        "rows": [],
    }
    if step.results is None:
        return shown
    section = by_name[f"{step.study.name}-{step.results.preset_name}"]
    slugs = {panel.file_slug for panel in step.panels}
    figures = [item for item in section["figures"] if item["figure"].slug in slugs]
    rows = [row for row in section["rows"] if step.has_claim(row["claim"])]
    return shown | {
        "section": section,
        "rows": rows,
        "summary": counts_of(rows),
        "figure": next(iter(figures), None),
        "further": figures[1:],
        "not_drawn": not_drawn(step.results, step.panels),
        "facts": [fact for fact in section["run"].facts if fact[0] in BRIEF_FACTS],
        "others": [by_name[f"{step.study.name}-{other.preset_name}"] for other in step.others],
    }


def _address(text: str) -> str | None:
    """Where the first paper on arXiv that a text names can be read."""
    found = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", text)
    return f"https://arxiv.org/abs/{found[1]}" if found else None


def _rendered(template: str, *, drawn_charts: bool, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halflife.studies.report", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # tooltips show a row in its own order
    environment.filters["typeset"] = typeset
    environment.filters["address"] = _address
    environment.filters["sentence"] = _sentence
    # Macros that are imported see globals, and not the values of the page.
    environment.globals |= {
        "symbols": SYMBOLS, "roles": ROLES, "part_marks": MARKS, "beside_header": HEADER, "not_covered": NOT_COVERED,
    }  # fmt: skip
    return environment.get_template(template).render(
        version=__version__,
        config=chart_config(PAGE_COLOURS, PAGE_FONT, label_limit=LABEL_LIMIT),
        charts_file=CHARTS_FILE,
        drawn_charts=drawn_charts,
        **values,
    )


def _sentence(text: str) -> str:
    """Words as a sentence: a large letter at the start of a word, and a stop."""
    return (sentence_start(text) if text[1:2].isalpha() else text) + "."


@functools.cache
def charts_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, the content of `CHARTS_FILE`, which all pages share."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;', vl_version=version)}\n}})();\n"
