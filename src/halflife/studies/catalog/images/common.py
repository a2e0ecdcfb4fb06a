"""What the studies of image classifiers share: what they read of an arm, and differences of errors in words."""

from __future__ import annotations

from collections.abc import Callable

from halflife.studies.evidence.quantities import Reading, Terms
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval
from halflife.studies.specs.images import ImageRun

__all__ = ["image_run", "level", "points", "wrong"]

Epoch = int | Callable[[ImageRun], int] | None


def image_run(results: Results, key: str, size: int) -> ImageRun:
    """The spec of an arm that is no branch."""
    spec = results.spec(key, size)
    assert isinstance(spec, ImageRun)
    return spec


def wrong(arm: str, epoch: Epoch = None, *, average: str = "") -> Terms:
    """Which test examples an arm gets wrong, in points: 0 or 100 a seed and example, so that the mean is the test error in %.

    Args:
        arm: The arm's key.
        epoch: The epoch, or what gives it from the arm's spec (``None``: the last one).
        average: The prefix of an average's readings, such as ``"ema-0.999/"``.

    Returns:
        The measure.
    """
    return 100 * Reading(arm, f"{average}test/wrong", epoch)


def level(arm: str, name: str, epoch: Epoch = None) -> Reading:
    """A reading with one value a seed; the arguments are those of `wrong`."""
    return Reading(arm, name, epoch)


def points(interval: Interval) -> str:
    """A difference of errors in words.

    Args:
        interval: In percentage points.

    Returns:
        Such as ``"-1.20 [-2.00, -0.40] points"``.
    """
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] points"
