"""Lines, power laws and minima fitted to what several seeds measured, with intervals over seeds.

Every fit is made for each seed by itself, and the interval is Student's over the seeds' results: readings along one run
depend on each other, seeds do not. With few groups this is valid even where the groups' spreads differ (Ibragimov and
Müller 2010, "t-Statistic Based Correlation and Heterogeneity Robust Inference", JBES 28(4)).

Shapes: S seeds, A places on an axis (arms of a sweep), P points of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halflife.errors import UserError
from halflife.stats import CONFIDENCE, Interval, seed_interval, t_quantile

__all__ = ["GroupedLine", "Optima", "PowerLaw", "fit_lines", "fit_optima", "fit_power_law"]


@dataclass(frozen=True, kw_only=True)
class GroupedLine:
    """A line y = a_s + b x with an offset a_s of each seed.

    Args:
        slope: Mean of the seeds' own slopes, with Student's interval over seeds. The one to decide on.
        pooled_slope: Least squares with a slope in common, with the classical interval. It takes residuals as independent,
            which those along one run are not.
        residual_sd: Standard deviation of what is left around the common slope, sqrt(RSS / (points - S - 1)).
        slopes_S: Each seed's own slope.
        offsets_S: Each seed's a_s at the common slope.
        residuals: What is left at the common slope, one array a seed, in the order of its points. Their mean over the points
            of one arm says whether that arm lies off the line of all.
    """

    slope: Interval
    pooled_slope: Interval
    residual_sd: float
    slopes_S: NDArray[np.float64]
    offsets_S: NDArray[np.float64]
    residuals: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A power law y = c_s x^p with a factor c_s of each seed.

    Args:
        exponent: Mean of the seeds' own p, with Student's interval over seeds.
        exponents_S: Each seed's p.
        factors_S: Each seed's c at its own p.
    """

    exponent: Interval
    exponents_S: NDArray[np.float64]
    factors_S: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Optima:
    """Where a sweep is lowest, for each seed.

    Args:
        x_S: The place, inside the grid or at its edge.
        y_S: The parabola's value there; at an edge what was measured.
        at_edge_S: Whether the lowest lies at an edge of the grid, so that the true one may lie outside it.
        interval: Of the geometric mean of the places (``None``: fewer than two seeds).
    """

    x_S: NDArray[np.float64]
    y_S: NDArray[np.float64]
    at_edge_S: NDArray[np.bool_]
    interval: Interval | None

    @property
    def inside(self) -> bool:
        """Whether every seed has its lowest inside the grid; a place at an edge is a bound, and no estimate."""
        return not self.at_edge_S.any()


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"a fit got {name} that is not finite, expected numbers: a reading is damaged, run again")
    return array


def fit_lines(x: Sequence[ArrayLike], y: Sequence[ArrayLike], *, confidence: float = CONFIDENCE) -> GroupedLine:
    """A line through the points of several seeds, each with an offset of its own.

    Without the offsets a difference between seeds in x and y alike (each evaluates on other windows, say) tilts the line.

    Args:
        x: One array of shape (P,) a seed; P >= 2 may differ.
        y: The same.
        confidence: Nominal coverage.

    Returns:
        The line.

    Raises:
        UserError: Fewer than two seeds, arrays of different length, or x that is the same everywhere in a seed.

    Examples:
        >>> line = fit_lines([[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [5, 6.2, 7]])
        >>> round(line.slope.estimate, 3), line.slopes_S.round(3).tolist(), line.offsets_S.round(3).tolist()
        (1.0, [1.0, 1.0], [0.0, 5.067])
    """
    groups = [(_checked(a, "x"), _checked(b, "y")) for a, b in zip(x, y, strict=True)]
    for a, b in groups:
        if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or np.ptp(a) == 0:
            raise UserError(
                f"a line through a seed's points got x of shape {a.shape} and y of shape {b.shape}, expected two or more"
                " points at different x: measure at more places"
            )
    centred = [(a - a.mean(), b - b.mean()) for a, b in groups]
    slopes_S = np.array([float(a @ b) / float(a @ a) for a, b in centred])
    across = seed_interval(slopes_S, confidence)
    spread = sum(float(a @ a) for a, _ in centred)
    common = sum(float(a @ b) for a, b in centred) / spread
    residuals = tuple(b - common * a for a, b in centred)
    degrees = sum(len(a) for a, _ in groups) - len(groups) - 1
    residual_sd = math.sqrt(sum(float(r @ r) for r in residuals) / degrees)
    half = t_quantile(confidence, degrees) * residual_sd / math.sqrt(spread)
    return GroupedLine(
        slope=across,
        pooled_slope=Interval(common, common - half, common + half, len(groups), None, confidence),
        residual_sd=residual_sd,
        slopes_S=slopes_S,
        offsets_S=np.array([b.mean() - common * a.mean() for a, b in groups]),
        residuals=residuals,
    )


def fit_power_law(x_A: ArrayLike, y_SA: ArrayLike, *, confidence: float = CONFIDENCE) -> PowerLaw:
    """The exponent p of y = c x^p, by least squares of log y on log x for each seed.

    Args:
        x_A: The places, all > 0, two or more of them different.
        y_SA: One value > 0 per seed and place, S >= 2.
        confidence: Nominal coverage.

    Returns:
        The power law.

    Raises:
        UserError: A value that is not above 0, other shapes, or fewer than two seeds.

    Examples:
        >>> law = fit_power_law([1, 2, 4], [[3, 1.5, 0.75], [5, 2.5, 1.25]])
        >>> round(law.exponent.estimate, 6), law.factors_S.round(6).tolist()
        (-1.0, [3.0, 5.0])
    """
    x, y_S = _sweep(x_A, y_SA)
    if not (y_S > 0).all():
        raise UserError(f"a power law got a y of {y_S.min():g}, expected numbers > 0: leave out what has no logarithm")
    line = np.array([np.polyfit(np.log(x), np.log(y), 1) for y in y_S])
    return PowerLaw(
        exponent=seed_interval(line[:, 0], confidence), exponents_S=line[:, 0], factors_S=np.exp(line[:, 1])
    )


def _sweep(x_A: ArrayLike, y_SA: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y_S = _checked(x_A, "x"), _checked(y_SA, "y")
    if x.ndim != 1 or y_S.ndim != 2 or y_S.shape[1] != len(x) or len(np.unique(x)) < 2:
        raise UserError(
            f"a fit over a sweep got x of shape {x.shape} and y of shape {y_S.shape}, expected (A,) with two or more"
            " different places and (S, A): measure at more places"
        )
    if not (x > 0).all():
        raise UserError(f"a fit against log x got an x of {x.min():g}, expected numbers > 0: leave it out")
    return x, y_S


def fit_optima(x_A: ArrayLike, y_SA: ArrayLike, *, around: int | None = None, confidence: float = CONFIDENCE) -> Optima:
    """Where a sweep is lowest: the vertex of a parabola in log x, for each seed.

    Args:
        x_A: The places of the sweep, all > 0, in rising order, three or more.
        y_SA: What was measured per seed and place (a loss).
        around: Fit only the lowest measured place and so many on each side of it (fewer at an edge), because far from the
            optimum a loss is no parabola (``None``: all places). At least 1.
        confidence: Nominal coverage.

    Returns:
        The optima. A seed is at an edge when its lowest measured place is the first or the last, or when the parabola has no
        minimum inside the grid; it then gets the place of the lowest measurement.

    Raises:
        UserError: Other shapes, fewer than three places, or places out of order.

    Examples:
        >>> found = fit_optima([1, 10, 100], [[2.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
        >>> found.x_S.round(6).tolist(), found.at_edge_S.tolist()
        ([10.0, 100.0], [False, True])
    """
    x, y_S = _sweep(x_A, y_SA)
    if len(x) < 3 or not (np.diff(x) > 0).all():
        raise UserError(
            f"a parabola got the places {x.tolist()}, expected three or more in rising order: sort the sweep"
        )
    if around is not None and around < 1:
        raise UserError(f"around is {around}, expected an integer >= 1: a parabola needs a point on each side")
    found = [_optimum(np.log(x), y, around) for y in y_S]
    places_S = np.array([place for place, _, _ in found])
    return Optima(
        x_S=np.exp(places_S),
        y_S=np.array([value for _, value, _ in found]),
        at_edge_S=np.array([edge for _, _, edge in found]),
        interval=seed_interval(places_S, confidence).exp() if len(places_S) > 1 else None,
    )


def _optimum(log_x: NDArray[Any], y: NDArray[Any], around: int | None) -> tuple[float, float, bool]:
    """Place, value and whether it lies at an edge."""
    lowest = int(np.argmin(y))
    measured = float(log_x[lowest]), float(y[lowest]), True
    if lowest in {0, len(y) - 1}:
        return measured
    part = slice(None) if around is None else slice(max(lowest - around, 0), lowest + around + 1)
    middle = log_x[lowest]  # for the accuracy of the fit
    curvature, slope, level = (float(c) for c in np.polyfit(log_x[part] - middle, y[part], 2))
    if curvature <= 0:
        return measured
    offset = -slope / (2 * curvature)
    place = float(middle + offset)
    if not log_x[0] < place < log_x[-1]:
        return measured
    return place, level - slope**2 / (4 * curvature), False
