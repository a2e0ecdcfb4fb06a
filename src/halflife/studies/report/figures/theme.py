"""How figures look: colours of arms, and the configuration of a chart for the page and for a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halflife.studies.evidence.claims import Panel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.fields import flat_fields, without_decay

__all__ = ["FILE_COLOURS", "PAGE_COLOURS", "STROKE", "ArmStyle", "arm_styles", "chart_config", "series_styles"]

# Okabe and Ito's colours that keep a contrast of 3 with white and with the page's dark background.
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#b4548e", "#7a6a00", "#5a5fcf")
SOLID, DASHED = (1, 0), (6, 4)
DASHES = (SOLID, DASHED, (2, 3), (9, 3, 2, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond")
STROKE = "M-1.6,-0.17H1.6V0.17H-1.6Z"  # a short line, for the legend of a series that has no points

# The page's charts take their colours from its style sheet, so that dark mode and print need no script.
PAGE_COLOURS = {name: f"var(--{name})" for name in ("ink", "muted", "line", "accent", "paper")}
FILE_COLOURS = {"ink": "#1b1f24", "muted": "#57606a", "line": "#dfe3e8", "accent": "#0072b2", "paper": "#ffffff"}
PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"
FILE_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


@dataclass(frozen=True)
class ArmStyle:
    """One arm's line, the same in every panel of a study.

    Args:
        key: The arm.
        label: Its name in the legend, different for each arm.
        colour: Of line and band.
        dash: Lengths of strokes and gaps.
        shape: Of points, where points are drawn.
    """

    key: str
    label: str
    colour: str
    dash: tuple[int, ...]
    shape: str = SHAPES[0]


def arm_styles(results: StudyResults) -> list[ArmStyle]:
    """A colour per learning rate, solid with decay and dashed without; where that is not enough, a colour per arm.

    An arm looks the same in every panel. With more arms than colours, those that share a panel get different colours as
    far as these go, and differ in their dashes where they do not.

    Returns:
        One style per arm of the main size, in the manifest's order.
    """
    arms = [arm for arm in results.arms if arm["size"] == results.main_size]
    together = _drawn_together(results, [arm["key"] for arm in arms])
    fields = [flat_fields(results.spec(arm["key"], arm["size"]).to_json()) for arm in arms]
    rates = sorted({spec.get("lr", 0.0) for spec in fields}, reverse=True)
    looks = [
        (rates.index(spec.get("lr", 0.0)), 1 if without_decay(spec) else 0) for spec in fields
    ]  # fmt: skip
    if len(rates) > len(PALETTE) or any(looks[i] == looks[j] for i, j in together):
        looks = _told_apart(len(arms), together)
    labels = [arm["label"] for arm in arms]
    return [
        ArmStyle(
            key=arm["key"],
            label=arm["label"] if labels.count(arm["label"]) == 1 else f"{arm['label']} ({arm['key']})",
            colour=PALETTE[hue],
            dash=DASHES[dash],
        )
        for arm, (hue, dash) in zip(arms, looks, strict=True)
    ]


def _drawn_together(results: StudyResults, keys: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs of arms, by index, that share a panel."""
    place = {key: index for index, key in enumerate(keys)}
    panels = [panel for panel in results.study.panels if isinstance(panel, Panel)]
    groups = [range(len(keys)) if p.arms is None else [place[k] for k in p.arms if k in place] for p in panels]
    return {(i, j) for group in groups for i, j in itertools.permutations(group, 2)}


def _told_apart(num_arms: int, together: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Hue and dash per arm: of those that its neighbours leave, the one whose hue the fewest of them have."""
    every = [(hue, dash) for dash in range(len(DASHES)) for hue in range(len(PALETTE))]
    looks: list[tuple[int, int]] = []
    for arm in range(num_arms):
        near = [looks[other] for other in range(arm) if (arm, other) in together]
        hues = [hue for hue, _ in near]
        looks.append(min(every, key=lambda look: (near.count(look), hues.count(look[0]))))
    return looks


def series_styles(names: Sequence[str], *, own_shapes: bool = False) -> list[ArmStyle]:
    """Styles of series that are no arms, by their order: a colour each, and another shape and dash when these are used up.

    Args:
        names: The series, each once.
        own_shapes: Whether neighbours differ in their shape, too.

    Returns:
        One style per series.
    """
    turns = [divmod(index, len(PALETTE)) for index in range(len(names))]
    return [
        ArmStyle(
            key=name,
            label=name,
            colour=PALETTE[hue],
            dash=DASHES[turn % len(DASHES)],
            shape=SHAPES[(hue if own_shapes else turn) % len(SHAPES)],
        )
        for name, (turn, hue) in zip(names, turns, strict=True)
    ]


def chart_config(
    colours: Mapping[str, str], font: str, *, label_limit: int | Mapping[str, str] = 420
) -> dict[str, Any]:
    """Vega-Lite's configuration.

    Args:
        colours: Values for ink, muted, line, accent and paper.
        font: The font's family.
        label_limit: How wide a label of a legend may be, in pixels, or an expression that gives it.

    Returns:
        What a chart's ``config`` holds.
    """
    ink, muted, line, accent = (colours[name] for name in ("ink", "muted", "line", "accent"))
    return {
        "font": font,
        "background": None,
        "params": [{"name": "paper", "value": colours["paper"]}],  # what open dots are filled with
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "gridColor": line,
            "domainColor": muted,
            "tickColor": muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 10,
            "labelPadding": 4,
            "tickSize": 4,
        },
        "axisY": {"domain": False, "ticks": False},
        "legend": {
            "orient": "top",
            "direction": "horizontal",
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": label_limit,
            "titleColor": ink,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "symbolType": "stroke",
            "symbolSize": 500,
            "symbolStrokeWidth": 2.5,
            "symbolOpacity": 1,
            "columnPadding": 12,
            "rowPadding": 4,
            "offset": 22,
        },
        "title": {"color": ink, "anchor": "start", "fontSize": 14, "fontWeight": 600, "offset": 12},
        # Vega-Lite gives rules and text a black of its own unless a style names the colour.
        "style": {
            "drop": {"color": muted, "strokeDash": [2, 3]},
            "drop-note": {"color": muted, "fontSize": 11},
            "hover": {"color": muted},
            "zero": {"color": muted},
            "effect-line": {"color": accent},
            "box": {"stroke": colours["paper"], "strokeWidth": 1},
        },
    }
