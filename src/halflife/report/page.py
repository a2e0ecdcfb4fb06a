"""The page: one HTML file that needs no network, drawn from the store."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt
import jinja2
import vl_convert

from halflife import __version__
from halflife.report.beside import HEADER, beside_rows
from halflife.report.figure import Figure
from halflife.report.figures import panel_figures, why_not_drawn
from halflife.report.ladder import DRAWN_UNITS, ladder_figure
from halflife.report.provenance import banners, provenance_of
from halflife.report.tables import SYMBOLS, numbers, verdict_rows
from halflife.report.theme import PAGE_COLOURS, PAGE_FONT, chart_config
from halflife.studies.results import Results

__all__ = ["render_page"]


def render_page(many: Sequence[Results]) -> str:
    """The page of these studies.

    Args:
        many: One per sheet, in the order of the page.

    Returns:
        The whole HTML document.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halflife", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # tooltips show a row in its own order
    environment.filters["typeset"] = _typeset
    sections = [_section(results) for results in many]
    return environment.get_template("template.html.j2").render(
        version=__version__,
        sections=sections,
        symbols=SYMBOLS,
        beside_header=HEADER,
        config=chart_config(PAGE_COLOURS, PAGE_FONT),
        bundle=_bundle() if any(section["figures"] for section in sections) else "",
    )


def _typeset(text: str) -> str:
    """Real minus signs, and intervals that are not broken over two lines."""
    text = re.sub(r"(?<![\w.^])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"\[[^][]*\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # Inside a script element these two sequences alone would end or suspend the script.
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _section(results: Results) -> dict[str, Any]:
    """What the template shows of one sheet."""
    study = results.study
    name = f"{study.name}-{results.preset_name}"
    verdicts = results.verdicts()
    rows = verdict_rows(verdicts)
    ladder = ladder_figure(results, verdicts)
    counts = Counter(row["outcome"] for row in rows)
    paper = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", study.source)
    return {
        "id": name,
        "study": study,
        "preset": results.preset_name,
        "paper": f"https://arxiv.org/abs/{paper[1]}" if paper else None,
        "banners": banners(results),
        "summary": [(outcome, counts[outcome]) for outcome in SYMBOLS if counts[outcome]],
        "rows": rows,
        "numbers": {
            verdict.claim.key: numbers(verdict.finding.effect, verdict.claim.unit)
            for verdict in verdicts
            if verdict.finding.effect is not None
        },
        "marks": _marks(rows),
        "beside": beside_rows(results),
        "not_drawn": _not_drawn(results),
        "figures": [_figure(f"{name}-{figure.slug}", figure) for figure in panel_figures(results)],
        "ladder": _figure(f"{name}-ladder", ladder) if ladder else None,
        "run": provenance_of(results),
    }


def _not_drawn(results: Results) -> str:
    """Which panels wait for more runs, in one sentence."""
    reasons: dict[str, list[str]] = {}
    for panel in results.study.panels:
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
        spec = (chart if figure.fixed else chart.properties(width="container")).to_dict()
        # The page has one configuration for all charts, and no address of a schema.
        for key in ("$schema", "config"):
            spec.pop(key, None)
        if not figure.fixed:
            spec["autosize"] = {"type": "fit-x", "contains": "padding"}
        charts.append({"id": f"{identity}-{index}".replace(".", "-"), "heading": heading, "spec": spec})
    return {"id": identity.replace(".", "-"), "figure": figure, "charts": charts}
