"""The Altair charts behind the figures: they get plain rows and know nothing of studies or stores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from halflife.report.theme import ArmStyle

__all__ = ["curves_chart", "ladder_chart"]

FEW_POINTS = 25  # lines with at most this many readings show each as a dot
MANY_DECADES = 2  # an axis over fewer decades gets ticks at 2 and 5, too
DIMMED = 0.12

Rows = Sequence[Mapping[str, Any]]


def _layered(layers: Sequence[alt.Chart], rows: Rows) -> alt.LayerChart:
    """Layers over one table, which is written once; a layer may bring its own instead."""
    chart = alt.layer(*layers, data=_data(rows))
    assert isinstance(chart, alt.LayerChart)
    return chart


def _data(rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _log_ticks(low: float, high: float) -> list[float]:
    """Decades within the bounds, with 2 and 5 between them where there are few."""
    steps = (1, 2, 5) if high / low < 10**MANY_DECADES else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _y_scale_and_axis(rows: Rows, *, log: bool) -> tuple[alt.Scale, alt.Axis]:
    # The domain is stated, because a layer that is empty until somebody points at it would leave it open.
    low, high = min(row["lowest seed"] for row in rows), max(row["highest seed"] for row in rows)
    if not log:
        return alt.Scale(domain=[low, high], zero=False, nice=True), alt.Axis(tickCount=6, grid=True)
    low, high = low / 1.15, high * 1.15
    short = "datum.value < 0.001 || datum.value >= 100000 ? format(datum.value, '.0e') : format(datum.value, '~g')"
    axis = alt.Axis(values=_log_ticks(low, high), labelExpr=short, grid=True)
    return alt.Scale(type="log", domain=[low, high], nice=False), axis


def curves_chart(
    rows: Rows, *, styles: Sequence[ArmStyle], y_label: str, log: bool, drops: Sequence[float]
) -> alt.LayerChart:
    """Lines against the epoch with a band each, a legend that selects, and numbers near the pointer.

    Args:
        rows: One per arm and epoch: ``arm`` (its label), ``epoch``, ``mean``, ``lowest seed``, ``highest seed``, ``seeds``. The
            tooltip shows these as they are.
        styles: The arms, in the legend's order.
        y_label: Title of the vertical axis.
        log: Whether that axis is logarithmic.
        drops: Epochs at which a learning rate drops.

    Returns:
        The chart.
    """
    last = max(row["epoch"] for row in rows)
    scale, axis = _y_scale_and_axis(rows, log=log)
    labels = [style.label for style in styles]
    colour = alt.Color(
        "arm:N",
        scale=alt.Scale(domain=labels, range=[style.colour for style in styles]),
        # Two columns fit a phone, and a legend cannot wrap by itself.
        legend=alt.Legend(title=None, columns=2 if max(map(len, labels)) <= 20 else 1),
    )
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=labels, range=[list(style.dash) for style in styles]))
    picked = alt.selection_point(name="picked", fields=["arm"], bind="legend", toggle="true")
    # The nearest reading anywhere in the plot, so that nobody has to hit a line of two pixels.
    near = alt.selection_point(
        name="near", nearest=True, on="pointerover", clear="pointerout", fields=["arm", "epoch"], empty=False
    )
    shown = alt.when(picked).then(alt.value(1)).otherwise(alt.value(DIMMED))
    x = alt.X(
        "epoch:Q",
        title="epoch",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1, tickCount=6, labelFlush=False),
    )
    y = alt.Y("mean:Q", title=y_label, scale=scale, axis=axis)
    base = alt.Chart().encode(x=x)
    band = base.mark_area(aria=False).encode(
        y=alt.Y("lowest seed:Q", title=y_label),
        y2="highest seed:Q",
        color=colour,
        # Not the opacity, which the legend's symbols would take over.
        fillOpacity=alt.when(picked).then(alt.value(0.16)).otherwise(alt.value(0.02)),
    )
    line = base.mark_line(strokeWidth=2, strokeJoin="round", aria=False).encode(
        y=y, color=colour, strokeDash=dash, opacity=shown
    )
    dots = base.mark_point(filled=True, size=18, aria=False).encode(y=y, color=colour, opacity=shown)
    # The tooltip shows the whole row: with a nearest selection Vega-Lite loses words that are named one by one.
    catch = base.mark_point(opacity=0, size=80, aria=False, tooltip=alt.TooltipContent("data")).encode(y=y)
    rule = base.mark_rule(aria=False, style="hover").transform_filter(near)
    mark = base.mark_point(filled=True, size=70, opacity=1, aria=False).encode(y=y, color=colour).transform_filter(near)
    few = len({row["epoch"] for row in rows}) <= FEW_POINTS
    layers = [*_drop_layers(drops), band, line.add_params(picked), *([dots] if few else []), rule, mark]
    layers.append(catch.add_params(near))
    return _layered(layers, rows).properties(height=280)


def _drop_layers(drops: Sequence[float]) -> list[alt.Chart]:
    if not drops:
        return []
    fall = alt.Chart(_data([{"epoch": drop} for drop in drops])).encode(x="epoch:Q")
    above = fall.mark_text(y=-6, baseline="bottom", text="lr drop", aria=False, style="drop-note")
    return [fall.mark_rule(aria=False, style="drop"), above]


def ladder_chart(rows: Rows, *, sizes: Sequence[int], size_name: str, domain: Sequence[float]) -> alt.LayerChart:
    """One effect against size, with its intervals and a line at 0.

    Args:
        rows: One per size: ``size``, ``effect``, ``low``, ``high``, ``text``, ``outcome``, ``sample``.
        sizes: All sizes of the ladder, in order.
        size_name: What a size is.
        domain: Ends of the vertical axis.

    Returns:
        The chart.
    """
    x = alt.X(
        "size:Q",
        title=size_name,
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 2**0.5, sizes[-1] * 2**0.5], nice=False),
        axis=alt.Axis(values=list(sizes), grid=False, format="d"),
    )
    tooltip = [
        alt.Tooltip("size:Q", title=size_name, format="d"),
        alt.Tooltip("text:N", title="effect"),
        alt.Tooltip("outcome:N", title="outcome"),
        alt.Tooltip("sample:N", title="n"),
    ]
    y = alt.Y(
        "effect:Q",
        title="points",
        scale=alt.Scale(domain=list(domain), nice=True),
        axis=alt.Axis(tickCount=5, grid=True),
    )
    base = alt.Chart().encode(x=x, y=y)
    line = base.mark_line(strokeWidth=1, opacity=0.5, aria=False, style="effect-line")
    bars = base.mark_rule(strokeWidth=2, aria=False, style="effect-line").encode(y=alt.Y("low:Q"), y2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1, style="effect-dot").encode(tooltip=tooltip)
    zero = alt.Chart(_data([{"zero": 0}])).mark_rule(aria=False, style="zero").encode(y=alt.Y("zero:Q"))
    return _layered([line, zero, bars, dots], rows).properties(height=200)
