"""The figures of a study, each of the kind that its panel asks for. One chart serves the page and the files."""

from __future__ import annotations

from halflife.studies.evidence.panels import AnyPanel, Panel, PointsPanel
from halflife.studies.evidence.verdicts import MIN_SEEDS, StudyResults
from halflife.studies.report.figures.curves import curves_figure, drawn_arms
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.heat import heat_figure
from halflife.studies.report.figures.points import points_figure

__all__ = ["panel_figure", "panel_figures", "why_not_drawn"]


def panel_figures(results: StudyResults) -> list[Figure]:
    """All panels of the study that can be drawn, at its main size.

    Returns:
        The figures in the study's order; none when no seed is finished in every arm.
    """
    return [panel_figure(results, panel) for panel in results.study.panels if not why_not_drawn(results, panel)]


def panel_figure(results: StudyResults, panel: AnyPanel) -> Figure:
    """The figure of one panel.

    Args:
        results: What the store holds of the study.
        panel: A panel that can be drawn.

    Returns:
        The figure.
    """
    if isinstance(panel, Panel):
        return curves_figure(results, panel)
    return points_figure(results, panel) if isinstance(panel, PointsPanel) else heat_figure(results, panel)


def why_not_drawn(results: StudyResults, panel: AnyPanel) -> str:
    """Why a panel has nothing to draw yet, as far as the plan says so. A reading that is missing is an error instead.

    Returns:
        The reason, or nothing.
    """
    seeds = len(results.seeds(results.main_size))
    if not isinstance(panel, Panel):
        if results.manifest.get("max_steps") is not None:
            return "runs were cut"
        if diverged := results.diverged_arms(results.main_size):
            return f"runs of {', '.join(diverged.values())} diverged"
        return "" if seeds >= MIN_SEEDS else f"{seeds} of {MIN_SEEDS} seeds are finished in every arm"
    if not seeds:
        return "no seed is finished in every arm"
    return "" if drawn_arms(results, panel) else "the preset has none of its arms, or runs of each diverged"
