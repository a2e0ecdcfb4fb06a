"""How far a verdict reaches: which model, which data, how many seeds."""

from __future__ import annotations

from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.fields import size_name

__all__ = ["scale_of"]


def scale_of(results: StudyResults) -> str:
    """Which model, which data, how many seeds.

    Returns:
        Such as ``"width 8, 80 epochs, 5,000 images; decided at width 8 with 5 seeds"``.
    """
    description = results.study.presets[results.preset_name].description
    seeds = len(results.seeds(results.main_size))
    return (
        f"{description}; decided at {size_name(results)} {results.main_size} with {seeds}"
        f" seed{'s' if seeds != 1 else ''}"
    )
