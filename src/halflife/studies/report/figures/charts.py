"""The Altair charts behind the figures: they get plain rows and know nothing of studies or stores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from halflife.studies.report.figures.theme import ArmStyle
from halflife.studies.report.figures.words import text_width, wrapped

__all__ = [
    "HOVER",
    "SHORT",
    "curves_chart",
    "inline_data",
    "ladder_chart",
    "log_ticks",
    "named_chart",
    "points_chart",
    "y_title",
]

HOVER = "hover"  # how the names of layers begin that answer to the pointer, and are left out of files

FEW_TICKS = 7
FEW_POINTS = 25  # lines with at most this many readings show each as a dot
FEW_FOLDS = 8  # an axis over less than this factor gets ticks at round numbers
CLOSE = 0.09  # of an axis: what a label takes of it
ROUNDED = 1.01  # a tick that is written with three digits lies within this factor of its place
MANY_DECADES = 2  # an axis over fewer decades gets ticks at 2 and 5, too
DIMMED = 0.12
TWO_COLUMNS = 105  # widest label, in pixels, of a legend in two columns
WORDS = 12  # pixels, size of the words at axes and in legends
HEIGHT = 280
WIDER = 1.2  # by what a reader's font may be wider than the one that is reckoned with
POINT_IN_LEGEND = 80
DOT = 55  # square pixels
PLANE = (270, 380)  # most that a plane is wide and high, in pixels: its axis and a phone's screen leave so much
SLIM = 90  # least
NARROW = 220  # pixels that a phone leaves beside names
NAME = 130  # pixels, of a name at the left of its point
SHORT = (
    "datum.value != 0 && (abs(datum.value) < 0.001 || abs(datum.value) >= 1000000)"
    " ? format(datum.value, '.0e') : format(datum.value, '~g')"
)

Rows = Sequence[Mapping[str, Any]]


def _layered(layers: Sequence[alt.Chart], rows: Rows) -> alt.LayerChart:
    """Layers over one table, which is written once; a layer may bring its own instead."""
    chart = alt.layer(*layers, data=inline_data(rows))
    assert isinstance(chart, alt.LayerChart)
    return chart


def inline_data(rows: Rows) -> alt.InlineData:
    """A table within a chart. Altair would look at every number of it for what a schema allows, which takes seconds."""
    with debug_mode(False):
        return alt.InlineData(values=[dict(row) for row in rows])


def y_title(words: str, height: float = HEIGHT) -> str | list[str]:
    """The title of an axis, in as many lines as its length asks for."""
    lines = wrapped(words, height / WIDER, WORDS)
    return lines if len(lines) > 1 else words


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis.

    Args:
        low: Its lower end.
        high: Its upper end.

    Returns:
        Decades within the bounds, with 2 and 5 between them where there are few; round numbers where there is no decade.
    """
    if high / low < FEW_FOLDS:
        rough = (high - low) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        return [float(f"{index * step:.10g}") for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    steps = (1, 2, 5) if high / low < 10**MANY_DECADES else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _scale_and_axis(low: float, high: float, *, log: bool) -> tuple[alt.Scale, alt.Axis]:
    # The domain is stated, because a layer that is empty until somebody points at it would leave it open.
    if not log:
        return alt.Scale(domain=[low, high], zero=False, nice=True), alt.Axis(tickCount=6, grid=True)
    low, high = low / 1.15, high * 1.15
    axis = alt.Axis(values=log_ticks(low, high), labelExpr=SHORT, grid=True)
    return alt.Scale(type="log", domain=[low, high], nice=False), axis


def _colour(styles: Sequence[ArmStyle], field: str, *, points: bool = False) -> alt.Color:
    labels = [style.label for style in styles]
    # Two columns fit a phone, and a legend cannot wrap by itself.
    columns = 2 if max(text_width(label, WORDS) for label in labels) <= TWO_COLUMNS else 1
    legend = alt.Legend(
        title=None, columns=columns, symbolLimit=0, symbolSize=POINT_IN_LEGEND if points else alt.Undefined
    )
    return alt.Color(
        f"{field}:N", scale=alt.Scale(domain=labels, range=[style.colour for style in styles]), legend=legend
    )


def _dash(styles: Sequence[ArmStyle], field: str) -> alt.StrokeDash:
    dashes = [list(style.dash) for style in styles]
    return alt.StrokeDash(f"{field}:N", scale=alt.Scale(domain=[style.label for style in styles], range=dashes))


def curves_chart(
    rows: Rows,
    at: Rows,
    *,
    x: str,
    first: float,
    styles: Sequence[ArmStyle],
    y_label: str,
    log: bool,
    drops: Sequence[float],
) -> alt.LayerChart:
    """Lines along runs with a band each, a legend that selects, and the numbers of all arms at the pointer.

    Args:
        rows: One per arm and place: ``arm`` (its label), the place under the name ``x``, ``mean``, ``low`` and ``high``.
        at: One per place: the place, then what each arm has there in words, under its label. The tooltip shows these as
            they are.
        x: ``"epoch"`` or ``"step"``.
        first: Where the horizontal axis begins.
        styles: The arms, in the legend's order.
        y_label: Title of the vertical axis.
        log: Whether that axis is logarithmic.
        drops: Epochs at which a learning rate drops.

    Returns:
        The chart.
    """
    last = max(row[x] for row in rows)
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    scale, axis = _scale_and_axis(low, high, log=log)
    colour, dash = _colour(styles, "arm"), _dash(styles, "arm")
    picked = alt.selection_point(name="picked", fields=["arm"], bind="legend", toggle="true")
    shown = alt.when(picked).then(alt.value(1)).otherwise(alt.value(DIMMED))
    across = alt.X(
        f"{x}:Q",
        title=x,
        scale=alt.Scale(domain=[first, last], nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1, tickCount=6, labelFlush=x == "step"),
    )
    y = alt.Y("mean:Q", title=y_title(y_label), scale=scale, axis=axis)
    base = alt.Chart().encode(x=across)
    band = base.mark_area(aria=False).encode(
        y=alt.Y("low:Q", title=y_title(y_label)),
        y2="high:Q",
        color=colour,
        # Not the opacity, which the legend's symbols would take over.
        fillOpacity=alt.when(picked).then(alt.value(0.16)).otherwise(alt.value(0.02)),
    )
    line = base.mark_line(strokeWidth=2, strokeJoin="round", aria=False).encode(
        y=y, color=colour, strokeDash=dash, opacity=shown
    )
    dots = base.mark_point(filled=True, size=18, aria=False).encode(y=y, color=colour, opacity=shown)
    few = len({row[x] for row in rows}) <= FEW_POINTS
    layers = [*_drop_layers(drops), band, line.add_params(picked), *([dots] if few else [])]
    marked = base.mark_point(filled=True, size=70, opacity=1, aria=False).encode(y=y, color=colour)
    return _layered([*layers, *_hover_layers(base, marked, at, x)], rows).properties(height=HEIGHT)


def _hover_layers(base: alt.Chart, marked: alt.Chart | None, at: Rows, x: str) -> list[alt.Chart]:
    """What answers to the pointer: a rule and the points at the nearest place, and one row of numbers for all series."""
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", fields=[x], empty=False)
    # The tooltip shows the whole row: with a nearest selection Vega-Lite loses words that are named one by one.
    catch = base.mark_rule(opacity=0, strokeWidth=6, aria=False, tooltip=alt.TooltipContent("data"))
    rule = base.mark_rule(aria=False, style="hover").transform_filter(near)
    points = [] if marked is None else [marked.transform_filter(near).properties(name=f"{HOVER}-points")]
    return [
        rule.properties(name=f"{HOVER}-rule", data=inline_data(at)),
        *points,
        catch.add_params(near).properties(name=f"{HOVER}-catch", data=inline_data(at)),
    ]


def _drop_layers(drops: Sequence[float]) -> list[alt.Chart]:
    if not drops:
        return []
    fall = alt.Chart(inline_data([{"epoch": drop} for drop in drops])).encode(x="epoch:Q")
    above = fall.mark_text(y=-6, baseline="bottom", text="lr drop", aria=False, style="drop-note")
    return [fall.mark_rule(aria=False, style="drop"), above]


def points_chart(
    rows: Rows,
    *,
    styles: Sequence[ArmStyle],
    x_label: str,
    y_label: str,
    log_x: bool,
    log_y: bool,
    equal: bool = False,
    zero_first: bool = False,
) -> alt.LayerChart:
    """Points with bars, and lines, a legend that selects, and numbers near the pointer.

    Args:
        rows: ``series`` (its label), ``x``, ``y``, ``low`` and ``high`` where there is a bar, ``style`` (``"point"``,
            ``"line"`` or ``"path"``).
        styles: The series, in the legend's order.
        x_label: Title of the horizontal axis.
        y_label: Title of the vertical axis.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
        equal: Whether one unit is as long on both axes; the chart has a size of its own then.
        zero_first: Whether the first place stands for 0.

    Returns:
        The chart.
    """
    places = sorted({row["x"] for row in rows})
    lows, highs = [row.get("low", row["y"]) for row in rows], [row.get("high", row["y"]) for row in rows]
    low, high = min(*lows, *(row["y"] for row in rows)), max(*highs, *(row["y"] for row in rows))
    y_scale, y_axis = _scale_and_axis(low, high, log=log_y)
    x_scale, x_axis = _across(places, log=log_x, zero_first=zero_first)
    size: dict[str, float] = {"height": 280}
    if equal:
        x_scale, y_scale, size = _plane((places[0], places[-1]), (low, high))
    has_points = any(row["style"] == "point" for row in rows)
    colour, dash = _colour(styles, "series", points=has_points), _dash(styles, "series")
    shapes = alt.Scale(domain=[style.label for style in styles], range=[style.shape for style in styles])
    picked = alt.selection_point(name="picked", fields=["series"], bind="legend", toggle="true")
    shown = alt.when(picked).then(alt.value(1)).otherwise(alt.value(DIMMED))
    y = alt.Y("y:Q", title=y_title(y_label), scale=y_scale, axis=y_axis)
    base = alt.Chart().encode(x=alt.X("x:Q", title=x_label, scale=x_scale, axis=x_axis))
    stroke: dict[str, Any] = {"strokeWidth": 2, "strokeJoin": "round", "aria": False}
    looks: dict[str, Any] = {"y": y, "color": colour, "strokeDash": dash, "opacity": shown}
    offsets = _side_by_side(rows, apart=not equal)
    # A line goes through the points of its series, so it moves aside with them.
    alone = f"datum.style == 'line' && indexof({json.dumps(list(offsets))}, datum.series) < 0"
    line = base.transform_filter(alone).mark_line(**stroke).encode(**looks)
    path = (
        base.transform_filter("datum.style == 'path'")
        .transform_window(place="row_number()")  # the order of the rows, where a line's would be that of x
        .mark_line(**stroke)
        .encode(order="place:Q", **looks)
    )
    points = []
    for label, offset in offsets.items():
        own = base.transform_filter(alt.FieldEqualPredicate(field="series", equal=label))
        look: dict[str, Any] = {"y": y, "color": colour, "opacity": shown}
        bar = own.transform_filter("isValid(datum.low)")
        at_points = own.transform_filter("datum.style == 'point'")
        shape = alt.Shape("series:N", scale=shapes)
        points += [
            own.transform_filter("datum.style == 'line'").mark_line(**stroke, xOffset=offset).encode(**looks),
            at_points.transform_filter("!isValid(datum.low)")
            .mark_point(filled=True, size=DOT, aria=False, xOffset=offset)
            .encode(shape=shape, **look),
            # A bar that is shorter than its dot would vanish in a filled one.
            at_points.transform_filter("isValid(datum.low)")
            .mark_point(filled=False, size=DOT, aria=False, xOffset=offset, strokeWidth=2, fill=alt.ExprRef("paper"))
            .encode(shape=shape, **look),
            bar.mark_rule(strokeWidth=2, aria=False, xOffset=offset).encode(
                y=alt.Y("low:Q", title=y_title(y_label)), y2="high:Q", color=colour, opacity=shown
            ),
        ]
    zero = alt.Chart(inline_data([{"zero": 0}])).mark_rule(aria=False, style="zero").encode(y=alt.Y("zero:Q"))
    layers = [*([zero] if low < 0 < high and not log_y and not equal else []), line.add_params(picked), path, *points]
    chart = _layered([*layers, *_point_hover(base, y, rows, equal=equal)], rows)
    # The page's script names the first row of the tooltip so, and writes 0 for the place that stands for it.
    zero = {"zero": places[0]} if zero_first else {}
    return chart.properties(**size, usermeta={"across": x_label, **zero})


def named_chart(rows: Rows, *, x_label: str, y_label: str) -> alt.LayerChart:
    """One point with its bar a line, named at the left.

    Args:
        rows: ``series`` (its name), ``y`` (its value), ``low`` and ``high`` where there is a bar.
        x_label: Title of the horizontal axis, that of the values.
        y_label: What the names are.

    Returns:
        The chart.
    """
    names = [row["series"] for row in rows]
    words = {name: wrapped(name, NAME, WORDS) for name in names}
    lines = sum(map(len, words.values()))
    values = [value for row in rows for value in (row["y"], row.get("low", row["y"]), row.get("high", row["y"]))]
    low, high = min(values), max(values)
    scale = alt.Scale(domain=[low, high], zero=False, nice=True)
    title = y_title(x_label, NARROW)
    x = alt.X("y:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, grid=True))
    axis = alt.Axis(title=None, labelExpr=f"{json.dumps(words)}[datum.value]", labelLimit=0, ticks=False, grid=False)
    base = alt.Chart().encode(y=alt.Y("series:N", sort=names, axis=axis))
    tooltip = [alt.Tooltip("series:N", title=y_label or "name"), alt.Tooltip("y:Q", title=x_label)]
    tooltip += [alt.Tooltip("low:Q"), alt.Tooltip("high:Q")] if any("low" in row for row in rows) else []
    bar = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, aria=False, style="effect-line")
    dot = base.mark_point(
        filled=False, size=DOT, opacity=1, strokeWidth=2, style="effect-line", fill=alt.ExprRef("paper")
    )
    zero = alt.Chart(inline_data([{"zero": 0}])).mark_rule(aria=False, style="zero").encode(x=alt.X("zero:Q"))
    bars = bar.encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", tooltip=tooltip)
    layers = [*([zero] if low < 0 < high else []), bars, dot.encode(x=x, tooltip=tooltip)]
    return _layered(layers, rows).properties(height=20 * lines + 12 * len(names))


def _point_hover(base: alt.Chart, y: alt.Y, rows: Rows, *, equal: bool) -> list[alt.Chart]:
    """What answers to the pointer: all series at the nearest place of a sweep, or the nearest point of a cloud."""
    places: dict[Any, dict[str, Any]] = {}
    sweep = not equal and 1.5 * len({row["x"] for row in rows}) <= len({(row["series"], row["x"]) for row in rows})
    for row in rows:
        key = row["x"] if sweep else (row["x"], row["y"])
        words = f"{row['y']:.4g}" + (f" ({row['low']:.4g} to {row['high']:.4g})" if "low" in row else "")
        there = places.setdefault(key, {"x": row["x"]} | ({} if sweep else {"y": row["y"]}))
        there[row["series"]] = f"{there[row['series']]}; {words}" if row["series"] in there else words
    at = [places[key] for key in sorted(places)]
    if sweep:
        return _hover_layers(base, None, at, "x")
    near = alt.selection_point(
        name="near", nearest=True, on="pointerover", clear="pointerout", fields=["x", "y"], empty=False
    )
    own = base.encode(y=y)
    ring = own.mark_point(filled=False, size=160, opacity=1, aria=False, style="hover").transform_filter(near)
    catch = own.mark_point(opacity=0, size=80, aria=False, tooltip=alt.TooltipContent("data"))
    return [
        ring.properties(name=f"{HOVER}-ring", data=inline_data(at)),
        catch.add_params(near).properties(name=f"{HOVER}-catch", data=inline_data(at)),
    ]


def _plane(x_ends: tuple[float, float], y_ends: tuple[float, float]) -> tuple[alt.Scale, alt.Scale, dict[str, float]]:
    """Scales on which a unit is as long on both axes, with some room around, and the size that this needs."""
    spans = [1.06 * (high - low) or 1.0 for low, high in (x_ends, y_ends)]
    unit = min(most / span for most, span in zip(PLANE, spans, strict=True))
    size = [max(SLIM, unit * span) for span in spans]
    middles = [(low + high) / 2 for low, high in (x_ends, y_ends)]
    x_scale, y_scale = (
        alt.Scale(domain=[middle - length / unit / 2, middle + length / unit / 2], zero=False, nice=False)
        for middle, length in zip(middles, size, strict=True)
    )
    return x_scale, y_scale, {"width": round(size[0], 1), "height": round(size[1], 1)}


def _side_by_side(rows: Rows, *, apart: bool) -> dict[str, float]:
    """Pixels by which the points of each series are moved, so that bars at one place do not hide each other."""
    points = [row for row in rows if row["style"] == "point"]
    names = list(dict.fromkeys(row["series"] for row in points))
    places = [row["x"] for row in points]
    step = min(7.0, 30 / len(names)) if apart and len(set(places)) < len(places) else 0.0
    return {name: round(step * (index - (len(names) - 1) / 2), 1) for index, name in enumerate(names)}


def _across(places: Sequence[float], *, log: bool, zero_first: bool = False) -> tuple[alt.Scale, alt.Axis]:
    """The horizontal scale with some room at the sides, and its axis."""
    low, high = places[0], places[-1]
    if not log:
        room = 0.03 * ((high - low) or abs(high) or 1.0)
        return (
            alt.Scale(domain=[low - room, high + room], zero=False, nice=False),
            alt.Axis(grid=False, tickCount=6, labelFlush=True),
        )
    room = 1.15 if high == low else (high / low) ** 0.04
    # The places of a sweep, where they are few, are the ticks that a reader looks for.
    ticks = _apart(places) if len(places) <= FEW_TICKS else log_ticks(low, high)
    label = SHORT
    if zero_first:
        ticks = [places[0], *(tick for tick in ticks if tick > places[0] * ROUNDED)]
        label = f"datum.value < {places[0] * ROUNDED:.6g} ? '0' : {SHORT}"
    axis = alt.Axis(values=ticks, labelExpr=label, grid=False, labelFlush=True, labelOverlap=True)
    return alt.Scale(type="log", domain=[low / room, high * room], nice=False), axis


def _apart(places: Sequence[float]) -> list[float]:
    """Ticks at places on a logarithmic axis, without those whose labels would lie on each other."""
    ticks: list[float] = []
    least = (places[-1] / places[0]) ** CLOSE
    for place in places:
        if not ticks or place / ticks[-1] > least:
            ticks.append(place if place == int(place) else float(f"{place:.3g}"))
    return ticks


def ladder_chart(
    rows: Rows, *, sizes: Sequence[int], size_name: str, unit: str, domain: Sequence[float]
) -> alt.LayerChart:
    """One effect against size, with its intervals and a line at 0.

    Args:
        rows: One per size: ``size``, ``effect``, ``low``, ``high``, ``text``, ``outcome``, ``sample``.
        sizes: All sizes of the ladder, in order.
        size_name: What a size is.
        unit: The unit of the effects, title of the vertical axis.
        domain: Ends of the vertical axis.

    Returns:
        The chart.
    """
    x = alt.X(
        "size:Q",
        title=size_name,
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 2**0.5, sizes[-1] * 2**0.5], nice=False),
        axis=alt.Axis(values=list(sizes), grid=False, format=","),
    )
    tooltip = [
        alt.Tooltip("size:Q", title=size_name, format="d"),
        alt.Tooltip("text:N", title="effect"),
        alt.Tooltip("outcome:N", title="outcome"),
        alt.Tooltip("sample:N", title="n"),
    ]
    y = alt.Y(
        "effect:Q",
        title=unit,
        scale=alt.Scale(domain=list(domain), nice=True),
        axis=alt.Axis(tickCount=5, grid=True),
    )
    base = alt.Chart().encode(x=x, y=y)
    # A bar lies above its dot and catches the pointer, so both answer.
    line = base.mark_line(strokeWidth=1, opacity=0.5, aria=False, style="effect-line")
    bars = base.mark_rule(strokeWidth=2, aria=False, style="effect-line").encode(
        y=alt.Y("low:Q"), y2="high:Q", tooltip=tooltip
    )
    dots = base.mark_point(
        filled=False, size=70, opacity=1, strokeWidth=2, style="effect-line", fill=alt.ExprRef("paper")
    ).encode(tooltip=tooltip)
    zero = alt.Chart(inline_data([{"zero": 0}])).mark_rule(aria=False, style="zero").encode(y=alt.Y("zero:Q"))
    return _layered([line, zero, dots, bars], rows).properties(height=200)
