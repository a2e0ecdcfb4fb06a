"""Fits against independent oracles: regression with dummy variables, scipy, known truths, coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from halflife.errors import UserError
from halflife.fits import fit_lines, fit_optima, fit_power_law


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


def test_an_exponent_is_the_slope_in_logarithms_seed_by_seed() -> None:
    rng = np.random.default_rng(3)
    x = np.array([16.0, 32.0, 64.0, 256.0])
    y = 5 * x**-0.62 * np.exp(0.1 * rng.standard_normal((5, 4)))
    found = fit_power_law(x, y)
    own = [scipy_stats.linregress(np.log(x), np.log(row)) for row in y]
    assert found.exponents_S == pytest.approx([line.slope for line in own])
    assert found.factors_S == pytest.approx([math.exp(line.intercept) for line in own])
    oracle = scipy_stats.ttest_1samp([line.slope for line in own], 0).confidence_interval(0.9)
    narrow = fit_power_law(x, y, confidence=0.9).exponent
    assert (narrow.low, narrow.high) == pytest.approx((oracle.low, oracle.high))
    assert narrow.num_seeds == 5


def test_intervals_of_exponents_cover_the_truth() -> None:
    """Each seed has a factor and an exponent of its own around the true one, and noise."""
    rng = np.random.default_rng(23)
    x = np.array([1.0, 2.0, 4.0, 8.0])
    trials, hits = 500, 0
    for _ in range(trials):
        exponents = -1 + 0.1 * rng.standard_normal((3, 1))
        y = np.exp(rng.standard_normal((3, 1))) * x**exponents * np.exp(0.05 * rng.standard_normal((3, 4)))
        interval = fit_power_law(x, y).exponent
        hits += interval.low <= -1 <= interval.high
    assert abs(hits / trials - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1.0, 2.0], [[1.0, 0.0], [1.0, 2.0]], "a y of 0, expected numbers > 0"),
        ([0.0, 2.0], [[1.0, 1.0], [1.0, 2.0]], "an x of 0, expected numbers > 0"),
        ([2.0, 2.0], [[1.0, 1.0], [1.0, 2.0]], "two or more different places"),
        ([1.0, 2.0, 3.0], [[1.0, 1.0], [1.0, 2.0]], r"y of shape \(2, 2\)"),
        ([1.0, 2.0], [[1.0, 2.0]], "got 1 seed"),
        ([1.0, 2.0], [[1.0, math.inf], [1.0, 2.0]], "y that is not finite"),
    ],
)
def test_power_laws_refuse_what_has_no_exponent(x: Any, y: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit_power_law(x, y)


GRID = np.array([0.01, 0.03, 0.1, 0.3, 1.0])


def bowl(best: float, *, cubic: float = 0.0) -> NDArray[np.float64]:
    """A loss that is lowest, 2.0, at ``best``; with ``cubic`` no parabola."""
    distance = np.log(GRID / best)
    return np.asarray(2 + 0.05 * distance**2 + cubic * distance**3)


def test_an_optimum_is_the_vertex_of_each_seed() -> None:
    found = fit_optima(GRID, [bowl(0.07), bowl(0.2)])
    assert found.x_S == pytest.approx([0.07, 0.2])
    assert found.y_S == pytest.approx([2.0, 2.0])
    assert found.inside
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(math.sqrt(0.07 * 0.2))
    assert fit_optima(GRID, [bowl(0.07)]).interval is None


def test_a_window_around_the_lowest_place_follows_a_bowl_that_is_no_parabola() -> None:
    loss = bowl(0.1, cubic=0.01)
    everywhere, near = (fit_optima(GRID, [loss] * 2, around=around).x_S[0] for around in (None, 1))
    assert abs(math.log(near / 0.1)) < 0.5 * abs(math.log(everywhere / 0.1))
    # Three places: the parabola through them, by Lagrange's formula.
    l0, l1, l2 = np.log(GRID[1:4])
    y0, y1, y2 = loss[1:4]
    top = y0 * (l1**2 - l2**2) + y1 * (l2**2 - l0**2) + y2 * (l0**2 - l1**2)
    bottom = 2 * (y0 * (l1 - l2) + y1 * (l2 - l0) + y2 * (l0 - l1))
    assert near == pytest.approx(math.exp(top / bottom))


@pytest.mark.parametrize(
    ("loss", "place"),
    [
        (bowl(1e-4), 0.01),  # lowest at the first place
        (bowl(50.0), 1.0),  # lowest at the last
        (bowl(0.95), 1.0),  # the vertex is inside, but nothing was measured beyond the lowest
        (np.array([1.0, 5.0, 0.9, 5.0, 1.0]), 0.1),  # the lowest in the middle of a hill
        (np.array([3.0, 0.99, 1.0, 1.0, 1.0]) - np.array([0, 0, 0.0, 0.001, 0.02]), 1.0),
    ],
)
def test_an_optimum_that_is_none_is_flagged(loss: NDArray[np.float64], place: float) -> None:
    found = fit_optima(GRID, [loss, bowl(0.1)])
    assert found.at_edge_S.tolist() == [True, False]
    assert not found.inside
    assert found.x_S[0] == pytest.approx(place)
    assert found.y_S[0] == loss[list(GRID).index(place)]


def test_sweeps_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(UserError, match="three or more in rising order"):
        fit_optima(GRID[:2], [[1.0, 2.0]])
    with pytest.raises(UserError, match="three or more in rising order"):
        fit_optima(GRID[::-1], [bowl(0.1)])
    with pytest.raises(UserError, match="around is 0, expected an integer >= 1"):
        fit_optima(GRID, [bowl(0.1)], around=0)
