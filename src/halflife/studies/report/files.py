"""The figures as SVG or PDF files, for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt
import vl_convert

from halflife.errors import StoreError
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.figure import Figure, static_chart
from halflife.studies.report.figures.ladder import ladder_figure
from halflife.studies.report.figures.panels import panel_figures
from halflife.studies.report.figures.theme import FILE_COLOURS, FILE_FONT, chart_config
from halflife.studies.report.figures.words import pinned

__all__ = ["render_figure", "render_files"]


def render_files(many: Sequence[StudyResults], fmt: Literal["svg", "pdf"]) -> dict[str, str | bytes]:
    """All figures of all manifests.

    Args:
        many: One per manifest.
        fmt: The format.

    Returns:
        File name, ``<study>-<preset>-<figure>.<fmt>``, to content.

    Raises:
        StoreError: A manifest has nothing to draw yet.
    """
    files: dict[str, str | bytes] = {}
    for results in many:
        name = f"{results.study.name}-{results.preset_name}"
        figures = panel_figures(results)
        if not figures:
            raise StoreError(
                f"{name} has {results.num_finished} of {results.num_planned} runs and no seed that is finished in every"
                f" arm, so there is nothing to draw: run `halflife study run {results.study.name}` to its end"
            )
        ladder = ladder_figure(results, results.verdicts())
        for figure in [*figures, *([ladder] if ladder else [])]:
            files[f"{name}-{figure.slug}.{fmt}"] = render_figure(figure, fmt)
    return files


def render_figure(figure: Figure, fmt: Literal["svg", "pdf"]) -> str | bytes:
    """One figure as a file.

    Returns:
        The file's content.
    """
    spec = static_chart(figure)
    spec["config"] = chart_config(FILE_COLOURS, FILE_FONT) | {"background": "white", "padding": 8}
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    content: str | bytes
    if fmt == "svg":
        content = pinned(vl_convert.vegalite_to_svg(spec, vl_version=version))
    else:
        content = vl_convert.vegalite_to_pdf(spec, vl_version=version)
    return content
