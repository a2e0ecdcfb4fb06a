"""Points that a study computes from its results: any figure that is no curve along a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from halflife.errors import StoreError
from halflife.studies.evidence.claims import PointRow, PointsPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import named_chart, points_chart
from halflife.studies.report.figures.fields import sentence_start, size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.theme import STROKE, series_styles

__all__ = ["points_figure"]


def points_figure(results: StudyResults, panel: PointsPanel) -> Figure:
    """Points with their intervals, and lines, as the study computes them.

    Args:
        results: What the store holds of the study, at least two seeds finished in every arm.
        panel: What to draw.

    Returns:
        The figure.

    Raises:
        StoreError: There are no points, one is not finite, or one is not above 0 on a logarithmic axis; or names that each
            stand for one point stand for several.
    """
    rows = panel.rows(results)
    if not rows:
        raise StoreError(f"the figure {panel.title!r} of {results.study.name} has no points: run the study again")
    for row in rows:
        _check(panel, row)
    if panel.named and len({row.series for row in rows}) < len(rows):
        raise StoreError(
            f"the figure {panel.title!r} of {results.study.name} has two points of one name: mend the study"
        )
    styles = series_styles(list(dict.fromkeys(row.series for row in rows)), own_shapes=panel.equal)
    drawn = {row.series for row in rows if row.style == "point"}
    if drawn:
        styles = [style if style.label in drawn else replace(style, shape=STROKE) for style in styles]
    data = [_plain(row) for row in rows]
    caption = panel.note
    caption += (
        f" {sentence_start(size_name(results))} {results.main_size}, {len(results.seeds(results.main_size))} seeds."
    )
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    listed = [row for row in rows if row.style == "point"] or rows
    zero = min(row.x for row in rows) if panel.zero_first else None
    words = [(row.series, "0" if row.x == zero else f"{row.x:.4g}", f"{row.y:.4g}", _interval(row)) for row in listed]
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    if panel.named:
        header, table = (panel.x_label, panel.y_label, "interval"), tuple((name, y, bar) for name, _, y, bar in words)
        first = "; ".join(f"{name}: {y}" for name, _, y, _ in words[:12])
        chart = named_chart(data, x_label=panel.y_label, y_label=panel.x_label)
    else:
        header, table = ("series", panel.x_label, panel.y_label, "interval"), tuple(words)
        first = "; ".join(f"{name} at {x}: {y}" for name, x, y, _ in words[:12])
        chart = points_chart(
            data,
            styles=styles,
            x_label=panel.x_label,
            y_label=panel.y_label,
            log_x=panel.log_x,
            log_y=panel.log_y,
            equal=panel.equal,
            zero_first=panel.zero_first,
        )
    return Figure(
        slug=panel.slug,
        title=panel.title,
        caption=caption.strip(),
        description=f"{panel.title}: {panel.y_label} against {panel.x_label}, {len(styles)} series. {first}"
        + ("; and so on." if len(table) > 12 else "."),
        charts=(("", chart),),
        header=header,
        rows=table,
        fixed=panel.equal,
    )


def _check(panel: PointsPanel, row: PointRow) -> None:
    where = f"the point of {row.series!r} at {row.x:g} of the figure {panel.title!r}"
    bar = [row.low, row.high]
    if (row.low is None) != (row.high is None):
        raise StoreError(f"{where} has one end of its interval, expected both or none: run the study again")
    numbers = [row.x, row.y, *(value for value in bar if value is not None)]
    if not all(map(math.isfinite, numbers)):
        raise StoreError(f"{where} is not finite: a reading is damaged, run the study again")
    heights = numbers[1:]
    if (panel.log_x and row.x <= 0) or (panel.log_y and min(heights) <= 0):
        raise StoreError(f"{where} is not above 0, so its logarithmic axis would draw less: run the study again")


def _interval(row: PointRow) -> str:
    return "" if row.low is None else f"{row.low:.4g} to {row.high:.4g}"


def _plain(row: PointRow) -> dict[str, Any]:
    """A row for the chart; its numbers are what the tooltip shows."""
    numbers = {"x": row.x, "y": row.y, "low": row.low, "high": row.high}
    digits = {"x": 8}  # steps and tokens can have more than five
    short = {name: float(f"{value:.{digits.get(name, 5)}g}") for name, value in numbers.items() if value is not None}
    return {"series": row.series, **short, "style": row.style}
