"""Fits against independent oracles: regression with dummy variables, scipy, known truths, coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from halflife.errors import UserError
from halflife.studies.evidence.fits import fit_lines


def made_up_groups(rng: np.random.Generator, sizes: tuple[int, ...], noise: float = 0.1) -> tuple[list[Any], list[Any]]:
    """Seeds whose x and y are shifted alike, on a line of slope 0.7."""
    x, y = [], []
    for size in sizes:
        shift = rng.normal(0, 5)
        places = rng.uniform(0, 2, size)
        x.append(places + shift)
        y.append(0.7 * places - 3 * shift + noise * rng.standard_normal(size))
    return x, y


def test_a_line_with_offsets_is_the_regression_with_dummy_variables() -> None:
    x, y = made_up_groups(np.random.default_rng(2), (5, 8, 3))
    found = fit_lines(x, y)
    # The oracle: one column a seed, one for x; classical errors from the inverse of the normal matrix.
    groups = np.repeat(np.arange(3), [5, 8, 3])
    design = np.column_stack([*(groups == g for g in range(3)), np.concatenate(x)]).astype(float)
    target = np.concatenate(y)
    solution, rss, *_ = np.linalg.lstsq(design, target, rcond=None)
    degrees = len(target) - 4
    sd = math.sqrt(rss[0] / degrees)
    error = sd * math.sqrt(np.linalg.inv(design.T @ design)[-1, -1])
    half = scipy_stats.t.ppf(0.975, degrees) * error
    pooled = found.pooled_slope
    assert (pooled.estimate, pooled.low, pooled.high) == pytest.approx(
        (solution[-1], solution[-1] - half, solution[-1] + half)
    )
    assert found.residual_sd == pytest.approx(sd)
    assert found.offsets_S == pytest.approx(solution[:3])
    assert np.concatenate(found.residuals) == pytest.approx(target - design @ solution)
    own = [scipy_stats.linregress(a, b).slope for a, b in zip(x, y, strict=True)]
    assert found.slopes_S == pytest.approx(own)
    oracle = scipy_stats.ttest_1samp(own, 0).confidence_interval(0.95)
    assert (found.slope.low, found.slope.high) == pytest.approx((oracle.low, oracle.high))
    # Without offsets the shifts between the seeds would tilt the line to about -3.
    assert np.polyfit(np.concatenate(x), target, 1)[0] < -2


def test_the_slope_over_seeds_covers_the_truth_where_the_pooled_one_does_not() -> None:
    """Readings along a run depend on each other: a run that wanders keeps a slope of its own."""
    rng = np.random.default_rng(11)
    trials, hits, pooled_hits = 400, 0, 0
    places = np.linspace(0, 1, 20)
    for _ in range(trials):
        x = [places] * 4
        y = [0.7 * places + 0.1 * rng.standard_normal(20).cumsum() for _ in range(4)]
        found = fit_lines(x, y)
        hits += found.slope.low <= 0.7 <= found.slope.high
        pooled_hits += found.pooled_slope.low <= 0.7 <= found.pooled_slope.high
    chance = 3.5 * math.sqrt(0.95 * 0.05 / trials)
    assert abs(hits / trials - 0.95) < chance
    assert pooled_hits / trials < 0.9


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[1.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], "two or more points at different x"),
        ([[1.0], [0.0]], [[0.0], [1.0]], r"x of shape \(1,\)"),
        ([[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0, 2.0], [0.0, 1.0]], r"y of shape \(3,\)"),
        ([[1.0, 2.0]], [[0.0, 1.0]], "got 1 seed, expected at least 2"),
        ([[1.0, math.nan], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], "x that is not finite"),
    ],
)
def test_lines_refuse_what_has_no_slope(x: Any, y: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit_lines(x, y)
