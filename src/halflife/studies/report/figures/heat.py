"""Grids of coloured cells: a quantity over two settings, its value written in each cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import altair as alt

from halflife.errors import StoreError
from halflife.studies.evidence.panels import Cell, HeatPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import SHORT, inline_data, log_ticks, y_title
from halflife.studies.report.figures.fields import sentence_start, size_name
from halflife.studies.report.figures.figure import Figure

__all__ = ["heat_chart", "heat_figure"]

DARK = 0.47  # up to this part of the scale white stands out more than black; the contrast is 4.5 or more on both sides
ROW = 34  # pixels
LOWEST, HIGHEST = 160, 420
LETTER = 0.62  # width of a digit, in font sizes
SMALLEST = 6  # pixels of a font that can still be read
MANY_LETTERS = 36  # column labels with more letters than this altogether are turned


def heat_figure(results: StudyResults, panel: HeatPanel) -> Figure:
    """A grid as the study computes it.

    Args:
        results: What the store holds of the study, at least two seeds finished in every arm.
        panel: What to draw.

    Returns:
        The figure.

    Raises:
        StoreError: There are no values, two are for one setting, a value is not finite, or one is not above 0 on a
            logarithmic scale; the message names the figure.
    """
    cells = panel.cells(results)
    if not cells:
        raise StoreError(f"the figure {panel.title!r} of {results.study.name} has no values: run the study again")
    for cell in cells:
        _check(panel, cell)
    digits = _digits([cell.value for cell in cells])
    cells = [replace(cell, text=cell.text or f"{cell.value * panel.factor:.{digits}g}") for cell in cells]
    columns, rows = _labels([cell.x for cell in cells]), _labels([cell.y for cell in cells])
    if rows and not isinstance(cells[0].y, str):
        rows = rows[::-1]  # numbers grow upwards
    by_setting = {(_name(cell.x), _name(cell.y)): cell for cell in cells}
    if len(by_setting) < len(cells):
        raise StoreError(
            f"the figure {panel.title!r} of {results.study.name} has two values for one setting: mend the study"
        )
    empty = len(columns) * len(rows) - len(cells)
    caption = panel.note
    caption += (
        f" {sentence_start(size_name(results))} {results.main_size}, {len(results.seeds(results.main_size))} seeds."
    )
    if empty:
        caption += f" {empty} of {len(columns) * len(rows)} settings of the grid were not run."
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    least, most = (pick(cells, key=lambda cell: cell.value) for pick in (min, max))
    ends = "; ".join(
        f"{word} {cell.text} at {panel.x_label} {_name(cell.x)}, {panel.y_label} {_name(cell.y)}"
        for word, cell in (("lowest", least), ("highest", most))
    )
    table = tuple(
        (row, *(by_setting[column, row].text if (column, row) in by_setting else "" for column in columns))
        for row in rows
    )
    return Figure(
        slug=panel.slug,
        title=panel.title,
        caption=caption.strip(),
        description=f"{panel.title}: {panel.value_label} over {panel.x_label} and {panel.y_label}, {len(cells)} cells; {ends}.",
        charts=(("", heat_chart(panel, cells, columns=columns, rows=rows)),),
        header=(f"{panel.y_label}, by {panel.x_label}", *columns),
        rows=table,
    )


def heat_chart(
    panel: HeatPanel, cells: Sequence[Cell], *, columns: Sequence[str], rows: Sequence[str]
) -> alt.LayerChart:
    """Coloured cells with their values, and numbers at the pointer.

    Args:
        panel: Labels and scale.
        cells: The cells, all drawable, with their texts.
        columns: Labels of the columns, from the left.
        rows: Labels of the rows, from the top.

    Returns:
        The chart.
    """
    values = [cell.value * panel.factor for cell in cells]
    domain = [min(values), max(values)]
    table = [
        _plain(panel, cell, _part(value, domain, log=panel.log_value))
        for cell, value in zip(cells, values, strict=True)
    ]
    turned = sum(map(len, columns)) > MANY_LETTERS
    x = alt.X(
        "column:O",
        title=panel.x_label,
        sort=list(columns),
        axis=alt.Axis(labelAngle=-45 if turned else 0, labelOverlap=False, domain=False, ticks=False),
    )
    height = min(HIGHEST, max(LOWEST, ROW * len(rows)))
    y = alt.Y(
        "row:O", title=y_title(panel.y_label, height), sort=list(rows), axis=alt.Axis(labelOverlap=False, grid=False)
    )
    # The lightness of this scheme grows evenly, so that it can be read in grey and without a sense of red and green.
    kind = {"type": "log"} if panel.log_value else {"zero": False}
    scale = alt.Scale(scheme="cividis", domain=domain, nice=False, **kind)
    ticks = {"values": log_ticks(*domain)} if panel.log_value and domain[0] < domain[1] else {"tickCount": 5}
    legend = alt.Legend(title=panel.value_label, gradientLength=240, titleLimit=320, labelExpr=SHORT, **ticks)
    base = alt.Chart().encode(x=x, y=y)
    tooltip = [
        alt.Tooltip("column:N", title=panel.x_label),
        alt.Tooltip("row:N", title=panel.y_label),
        alt.Tooltip("words:N", title=panel.value_label),
    ]
    # Cells touch: the edge is that of the page, so that equal neighbours stay two cells.
    boxes = base.mark_rect(aria=False, style="box").encode(
        color=alt.Color("value:Q", scale=scale, legend=legend), tooltip=tooltip
    )
    longest = max(len(row["words"]) for row in table)
    fits = f"min(bandwidth('x') / {LETTER * longest:.2f}, 0.7 * bandwidth('y'))"
    words = base.mark_text(aria=False, fontSize=alt.ExprRef(f"{fits} < {SMALLEST} ? 0 : min(12, {fits})")).encode(
        text="words:N",
        tooltip=tooltip,  # words lie above their cell and catch the pointer
        color=alt.when("datum.light").then(alt.value("#000000")).otherwise(alt.value("#ffffff")),
    )
    chart = alt.layer(boxes, words, data=inline_data(table))
    assert isinstance(chart, alt.LayerChart)
    return chart.properties(height=height)


def _check(panel: HeatPanel, cell: Cell) -> None:
    where = f"the value at {_name(cell.x)}, {_name(cell.y)} of the figure {panel.title!r}"
    numbers = [part for part in (cell.x, cell.y, cell.value) if not isinstance(part, str)]
    if not all(map(math.isfinite, numbers)):
        raise StoreError(f"{where} is not finite: a reading is damaged, run the study again")
    if panel.log_value and cell.value * panel.factor <= 0:
        raise StoreError(f"{where} is not above 0, so its logarithmic scale has no colour for it: run the study again")


def _name(setting: str | float) -> str:
    return setting if isinstance(setting, str) else f"{setting:.6g}"


def _labels(settings: Sequence[str | float]) -> list[str]:
    """The labels of an axis, each once: numbers in their order, names in that in which they come."""
    assert len({isinstance(setting, str) for setting in settings}) == 1, "numbers and names on one axis"
    ordered = settings if isinstance(settings[0], str) else sorted(settings)
    return list(dict.fromkeys(map(_name, ordered)))


def _digits(values: Sequence[float]) -> int:
    """How many digits tell the values apart: three, or four where all lie within a twentieth of the largest."""
    largest = max(map(abs, values))
    return 4 if 0 < max(values) - min(values) < largest / 20 else 3


def _part(value: float, domain: Sequence[float], *, log: bool) -> float:
    """Where a value stands on the scale of colours, from 0 to 1; the middle if all are the same."""
    low, high, at = (math.log(number) if log else number for number in (*domain, value))
    return (at - low) / (high - low) if high > low else 0.5


def _plain(panel: HeatPanel, cell: Cell, part: float) -> dict[str, Any]:
    """The value of a setting, for the chart."""
    return {
        "column": _name(cell.x),
        "row": _name(cell.y),
        "value": float(f"{cell.value * panel.factor:.5g}"),
        "words": cell.text,
        "light": part > DARK,
    }
