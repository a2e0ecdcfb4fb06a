"""What the study `textbook` measures beyond sums and ratios of readings. One seed is several nets or data sets.

Shapes: S seeds, T steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.quantities import Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.specs.textbook import ReluRegressionRun, SeparableRun

__all__ = [
    "DECADES",
    "OUTLIER_LAMS",
    "PLANTED",
    "RANDOM",
    "RANDOM_LAMS",
    "RATES",
    "misfit",
    "outlier_key",
    "random_key",
    "ratio",
    "relu_spec",
    "separable_spec",
    "slope",
    "stability",
]

SMALL, MIDDLE, LARGE, NOISY, DECAYED = "relu-small", "relu-middle", "relu-large", "relu-noise", "relu-decay"
RATES = (SMALL, MIDDLE, LARGE)
PLANTED, RANDOM = "planted", "random"
RANDOM_LAMS = (0.1, 0.01, 0.001, 0.0001)
OUTLIER_LAMS = (0.0, 0.01, 0.1)

DECADES = 2  # rates are fitted over this many last decades of steps
MIN_TIME = 4.0  # and from this time lr t / n on

Values = Callable[[Results, int], NDArray[np.float64]]


def random_key(lam: float) -> str:
    """The arm of random points with this decay."""
    return f"{RANDOM}-{lam:g}" if lam else RANDOM


def outlier_key(lam: float) -> str:
    """The arm of points with an outlier with this decay."""
    return f"outlier-{lam:g}"


def relu_spec(results: Results, key: str, size: int) -> ReluRegressionRun:
    """The spec of a net's arm."""
    return cast("ReluRegressionRun", results.spec(key, size))


def separable_spec(results: Results, key: str, size: int) -> SeparableRun:
    """The spec of a classifier's arm."""
    return cast("SeparableRun", results.spec(key, size))


def ratio(name: str, arm: str, other: str, metric: str) -> Quantity:
    """A reading at the end of one arm over that of another."""
    return Quantity(name=name, values=Reading(arm, metric) / Reading(other, metric), unit="x", log=True)


def misfit(arm: str, words: str) -> Quantity:
    """The error at the points that are to be fitted."""
    values = Reading(arm, "train/rmse") / Reading(arm, "train/spread")
    return Quantity(
        name=f"root mean square error at the points over the spread of their values, {words}", values=values
    )


def stability(arm: str) -> Values:
    """The top eigenvalue of an arm over 2 / lr, with the lr of the large rate whatever the arm's own, shape (S,)."""
    return functools.partial(_stability, arm=arm)


def _stability(results: Results, size: int, *, arm: str) -> NDArray[np.float64]:
    return results.read(arm, "top_eigenvalue", size) * relu_spec(results, LARGE, size).lr / 2


def late_steps(spec: SeparableRun) -> list[int]:
    """The steps over which rates are fitted: the last decades, from a time lr t / n on at which log t is well above 0."""
    first = max(spec.last_step / 10**DECADES, MIN_TIME * spec.num_points / spec.lr)
    return [step for step in spec.read_steps if step >= first]


def slope(arm: str, metric: str, *, log: bool, sign: float = 1.0, log_time: bool = False) -> Values:
    """The slope of a reading over the last decades of steps, one a seed, shape (S,).

    Args:
        arm: The arm.
        metric: The reading.
        log: Whether its logarithm is taken.
        sign: -1 for the exponent of what falls.
        log_time: Against log log (lr t / n) instead of log t.

    Returns:
        A function of the results and a size.
    """
    return functools.partial(_slope, arm=arm, metric=metric, log=log, sign=sign, log_time=log_time)


def _slope(
    results: Results, size: int, *, arm: str, metric: str, log: bool, sign: float, log_time: bool
) -> NDArray[np.float64]:
    spec = separable_spec(results, arm, size)
    steps_T = np.array(late_steps(spec))
    x_T = np.log(np.log(spec.lr / spec.num_points * steps_T)) if log_time else np.log(steps_T)
    y_TS = np.array([results.read(arm, metric, size, step=step) for step in steps_T.tolist()])
    return sign * np.asarray(np.polyfit(x_T, np.log(y_TS) if log else y_TS, 1)[0])
