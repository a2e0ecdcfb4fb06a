"""How figures look: colours of arms, and the configuration of a chart for the page and for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halflife.studies.results import Results

__all__ = ["FILE_COLOURS", "PAGE_COLOURS", "ArmStyle", "arm_styles", "chart_config"]

# Okabe and Ito's colours that keep a contrast of 3 with white and with the page's dark background.
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#b4548e", "#7a6a00", "#5a5fcf")
SOLID, DASHED = (1, 0), (6, 4)

# The page's charts take their colours from its style sheet, so that dark mode and print need no script.
PAGE_COLOURS = {"ink": "var(--ink)", "muted": "var(--muted)", "line": "var(--line)", "accent": "var(--accent)"}
FILE_COLOURS = {"ink": "#1b1f24", "muted": "#57606a", "line": "#dfe3e8", "accent": "#0072b2"}
PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"
FILE_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


@dataclass(frozen=True)
class ArmStyle:
    """One arm's line, the same in every panel of a study.

    Args:
        key: The arm.
        label: Its name in the legend, different for each arm.
        colour: Of line and band.
        dash: Lengths of stroke and gap.
    """

    key: str
    label: str
    colour: str
    dash: tuple[int, int]


def arm_styles(results: Results) -> list[ArmStyle]:
    """A colour per learning rate, solid with decay and dashed without; a colour per arm where that is not enough.

    Args:
        results: What the store holds of the study.

    Returns:
        One style per arm of the main size, in the sheet's order.
    """
    arms = [arm for arm in results.arms if arm["size"] == results.main_size]
    specs = [results.spec(arm["key"], arm["size"]).to_json() for arm in arms]
    rates = sorted({spec.get("lr", 0.0) for spec in specs}, reverse=True)
    hues = [rates.index(spec.get("lr", 0.0)) for spec in specs]
    dashes = [DASHED if spec.get("lam") == 0 else SOLID for spec in specs]
    if len(set(zip(hues, dashes, strict=True))) < len(arms) or len(rates) > len(PALETTE):
        hues = list(range(len(arms)))
    labels = [arm["label"] for arm in arms]
    return [
        ArmStyle(
            key=arm["key"],
            label=arm["label"] if labels.count(arm["label"]) == 1 else f"{arm['label']} ({arm['key']})",
            colour=PALETTE[hue % len(PALETTE)],
            dash=dash,
        )
        for arm, hue, dash in zip(arms, hues, dashes, strict=True)
    ]


def chart_config(colours: Mapping[str, str], font: str) -> dict[str, Any]:
    """Vega-Lite's configuration.

    Args:
        colours: Values for ink, muted, line and accent.
        font: The font's family.

    Returns:
        What a chart's ``config`` holds.
    """
    ink, muted, line, accent = (colours[name] for name in ("ink", "muted", "line", "accent"))
    return {
        "font": font,
        "background": None,
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
            "labelLimit": 220,
            "symbolType": "stroke",
            "symbolSize": 700,
            "symbolStrokeWidth": 2.5,
            "symbolOpacity": 1,
            "columnPadding": 18,
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
            "effect-dot": {"color": accent},
        },
    }
