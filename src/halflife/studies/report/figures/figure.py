"""One figure: charts with their words and numbers, for the page and for a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from halflife.studies.report.figures.charts import HOVER
from halflife.studies.report.figures.words import wrapped

__all__ = ["Figure", "static_chart"]

WIDTH = 460  # of a chart in a file, in pixels
TITLE = 14


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: what is drawn, in words and as charts.

    Args:
        slug: Names the figure's file within a study and preset.
        title: A headline.
        caption: What is drawn, the spread, the number of seeds, the paper's figure.
        description: The same with the last numbers, for who does not see the figure.
        charts: One chart, or small multiples, each with its own heading ("" for a single chart).
        header: Column titles of the figure's numbers.
        rows: The numbers themselves.
        fixed: Whether the charts have a width and a height of their own, instead of those of the place where they stand.
    """

    slug: str
    title: str
    caption: str
    description: str
    charts: tuple[tuple[str, alt.LayerChart], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    fixed: bool = False


def static_chart(figure: Figure) -> dict[str, Any]:
    """The figure as one chart of fixed size with its title, without what answers to a pointer, for a file.

    Returns:
        A Vega-Lite specification.
    """
    if len(figure.charts) == 1:
        chart = figure.charts[0][1]
        size = {} if figure.fixed else {"width": WIDTH, "height": 300}
        title = wrapped(figure.title, max(WIDTH, chart.width if figure.fixed else 0), TITLE, bold=True)
        return _still(chart.properties(title=title, **size).to_dict(validate=False))
    parts = [
        chart.properties(
            width=210, height=180, title=alt.Title(wrapped(heading, 210, 12), fontSize=12, fontWeight="normal")
        )
        for heading, chart in figure.charts
    ]
    spec = alt.concat(*parts, columns=3, title=figure.title).to_dict(validate=False)
    return spec | {"concat": [_still(part) for part in spec["concat"]]}


def _still(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart without the layers that are empty or invisible until somebody points at it."""
    layers = [layer for layer in spec["layer"] if not layer.get("name", "").startswith(HOVER)]
    names = {layer.get("name") for layer in layers}
    params = [param for param in spec.get("params", []) if names & set(param.get("views", names))]
    return spec | {"layer": layers, "params": params}
