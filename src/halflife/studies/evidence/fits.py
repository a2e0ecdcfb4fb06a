"""Lines fitted to what several seeds measured, with intervals over seeds.

Every fit is made for each seed by itself, and the interval is Student's over the seeds' results: readings along one run
depend on each other, seeds do not. With few groups this is valid even where the groups' spreads differ (Ibragimov and
Müller 2010, "t-Statistic Based Correlation and Heterogeneity Robust Inference", JBES 28(4)).

Shapes: S seeds, P points of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halflife.errors import UserError
from halflife.studies.evidence.stats import CONFIDENCE, Interval, seed_interval, t_quantile

__all__ = ["GroupedLine", "fit_lines", "rank_correlation", "ranks"]


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


def ranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank.

    Args:
        values_N: Numbers.

    Returns:
        As many ranks.

    Examples:
        >>> ranks(np.array([5.0, 1.0, 5.0]))
        array([2.5, 1. , 2.5])
    """
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return shared


def rank_correlation(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> float:
    """Spearman's rank correlation.

    Args:
        x_N: Numbers.
        y_N: As many.

    Returns:
        Between -1 and 1; 0 if one of them is the same everywhere.

    Examples:
        >>> rank_correlation(np.array([1.0, 2.0, 30.0]), np.array([0.1, 0.2, 0.3]))
        1.0
    """
    one, other = (found - found.mean() for found in (ranks(x_N), ranks(y_N)))
    norm = float(np.sqrt((one @ one) * (other @ other)))
    return round(float(one @ other) / norm, 12) if norm > 0 else 0.0
