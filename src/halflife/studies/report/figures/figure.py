"""One figure: charts with their words and numbers, for the page and for a file."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import altair as alt

__all__ = ["Figure", "static_chart"]


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


def static_chart(figure: Figure) -> alt.TopLevelMixin:
    """The figure as one chart of fixed size with its title, for a file.

    Returns:
        An Altair chart.
    """
    if len(figure.charts) == 1:
        size = {} if figure.fixed else {"width": 460, "height": 300}
        return figure.charts[0][1].properties(title=figure.title, **size)
    parts = [
        chart.properties(
            width=210, height=180, title=alt.Title(textwrap.wrap(heading, 40), fontSize=12, fontWeight="normal")
        )
        for heading, chart in figure.charts
    ]
    return alt.concat(*parts, columns=3, title=figure.title)
