"""Where the examples of a stationary run, of one of disparate scales or on noise alone come from, for its header; no torch."""

from __future__ import annotations

import os

from halflife.studies.lab.images.sources import SHIPPED_SHA256, SHIPPED_TITLE, DataDescription
from halflife.studies.specs.noise_only import NoiseOnlyRun
from halflife.studies.specs.scales import ScalesRun
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["describe"]


def describe(
    spec: StationaryRun | ScalesRun | NoiseOnlyRun, data_folder: str | os.PathLike[str] | None = None
) -> DataDescription:
    """What a run's header says of its data.

    Args:
        spec: The run.
        data_folder: Not used: everything is shipped or drawn.

    Returns:
        The description; empty where examples are drawn.
    """
    if spec.data == "fashion-mnist-5k":
        return DataDescription(spec.data, SHIPPED_TITLE, SHIPPED_SHA256)
    return DataDescription("none", "none", "")
