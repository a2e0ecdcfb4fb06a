"""What the studies of image classifiers share: the spec of an arm, and differences of errors in words."""

from __future__ import annotations

from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval
from halflife.studies.specs.images import ImageRun

__all__ = ["image_run", "points"]


def image_run(results: Results, key: str, size: int) -> ImageRun:
    """The spec of an arm that is no branch."""
    spec = results.spec(key, size)
    assert isinstance(spec, ImageRun)
    return spec


def points(interval: Interval) -> str:
    """A difference of errors in words.

    Args:
        interval: In percentage points.

    Returns:
        Such as ``"-1.20 [-2.00, -0.40] points"``.
    """
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] points"
