"""What the studies of image classifiers share: what they read of an arm, points of figures, the fields of CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.panels import PointRow
from halflife.studies.evidence.quantities import Measure, Quantity, Reading, Terms
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE
from halflife.studies.specs.images import ImageBranch, ImageRun

__all__ = [
    "CIFAR_10",
    "CIFAR_10_NEEDS",
    "RESNET_18",
    "end",
    "image_run",
    "in_points",
    "level",
    "num_steps",
    "point",
    "wrong",
]

CIFAR_10 = {"data": "cifar10", "downsample": 1}
CIFAR_10_NEEDS = "CIFAR-10's binary version (--data DIR) and a GPU"
RESNET_18 = {**CIFAR_10, "blocks": (2, 2, 2, 2)}

Epoch = int | Callable[[Any], int]


def image_run(results: Results, key: str, size: int) -> ImageRun:
    """The spec of an arm that is no branch."""
    spec = results.spec(key, size)
    assert isinstance(spec, ImageRun)
    return spec


def num_steps(results: Results, key: str, size: int) -> int:
    """The steps of a run."""
    return int(results.series_by_step(key, "train/running_loss", size)[0][0][-1])


def end(spec: ImageRun | ImageBranch) -> int:
    """The last epoch of a run, or of a branch."""
    return (spec.then if isinstance(spec, ImageBranch) else spec).num_epochs


def wrong(arm: str, epoch: Epoch = end, *, average: str = "") -> Terms:
    """Which test examples an arm gets wrong, in points: 0 or 100 a seed and example, so that the mean is the test error in %.

    Args:
        arm: The arm's key.
        epoch: The epoch, or what gives it from the arm's spec.
        average: The prefix of an average's readings, such as ``"ema-0.999/"``.

    Returns:
        The measure.
    """
    return 100 * Reading(arm, f"{average}test/wrong", epoch)


def in_points(name: str, values: Callable[[Results, int], NDArray[np.float64]]) -> Quantity:
    """A test error, or a difference of test errors, in points."""
    return Quantity(name=name, values=values, unit="points")


def level(arm: str, name: str, epoch: Epoch = end) -> Reading:
    """A reading with one value a seed; the arguments are those of `wrong`."""
    return Reading(arm, name, epoch)


def point(results: Results, series: str, x: float, values: Measure, *, log: bool = False) -> PointRow:
    """A point of a figure with its 95 % interval, over seeds and, of an array, test examples; a choice of arms counts."""
    found = Quantity(name=series, values=values, log=log).interval(results, results.main_size, CONFIDENCE)
    return PointRow(series, x, found.estimate, found.low, found.high)
