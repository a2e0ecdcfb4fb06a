"""Intervals against independent oracles: formulas by hand, brute-force resampling, and coverage on known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from halflife.errors import UserError
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval, t_quantile


def test_an_interval_over_seeds_is_students() -> None:
    values = [3.1, 2.7, 4.0, 3.3]
    found = seed_interval(values)
    oracle = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.estimate == pytest.approx(np.mean(values))
    assert seed_interval(values, confidence=0.9).high < found.high


def test_the_exponential_of_an_interval_of_logarithms() -> None:
    found = Interval(0.0, -1.0, 1.0, 3, confidence=0.9).exp()
    assert (found.estimate, found.low, found.high) == pytest.approx((1.0, 1 / math.e, math.e))
    assert (found.num_seeds, found.confidence) == (3, 0.9)


def _crossed(rng: np.random.Generator, shape: tuple[int, int], spread: tuple[float, float, float]) -> np.ndarray:
    seeds, examples, rest = spread
    num_seeds, num_examples = shape
    return np.asarray(
        rng.normal(0, seeds, (num_seeds, 1)) + rng.normal(0, examples, (1, num_examples)) + rng.normal(0, rest, shape)
    )


def test_the_crossed_variance_is_what_resampling_tends_to() -> None:
    """The pigeonhole bootstrap with its known bias taken out, by brute force."""
    rng = np.random.default_rng(5)
    d_SN = _crossed(rng, (6, 50), (0.3, 0.5, 1.0))
    num_seeds, num_examples = d_SN.shape
    draws = np.array(
        [
            d_SN[np.ix_(rng.integers(0, num_seeds, num_seeds), rng.integers(0, num_examples, num_examples))].mean()
            for _ in range(20_000)
        ]
    )
    rows, columns = d_SN.mean(axis=1), d_SN.mean(axis=0)
    rest = d_SN - rows[:, None] - columns[None, :] + d_SN.mean()
    # What resampling shows: population variances of rows, columns and rest, each over its count.
    shown = rows.var() / num_seeds + columns.var() / num_examples + rest.var() / d_SN.size
    assert draws.var() == pytest.approx(shown, rel=0.05)
    # Without its bias: sample variances, and what is left counted once instead of three times.
    ms_rest = rest.var() * d_SN.size / ((num_seeds - 1) * (num_examples - 1))
    unbiased = rows.var(ddof=1) / num_seeds + columns.var(ddof=1) / num_examples - ms_rest / d_SN.size
    degrees = (num_seeds - 1) * (unbiased / (rows.var(ddof=1) / num_seeds)) ** 2
    found = crossed_interval(d_SN)
    half = scipy_stats.t.ppf(0.975, degrees) * math.sqrt(unbiased)
    assert (found.low, found.high) == pytest.approx((d_SN.mean() - half, d_SN.mean() + half))
    assert (found.num_seeds, found.num_examples) == d_SN.shape


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("spread", [(0.3, 0.1, 1.0), (0.0, 1.0, 1.0), (0.02, 0.2, 0.3)])
def test_crossed_intervals_cover_the_truth(num_seeds: int, spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(17)
    trials = 600
    hits = 0
    for _ in range(trials):
        found = crossed_interval(_crossed(rng, (num_seeds, 80), spread))
        hits += found.low <= 0 <= found.high
    # Never below the nominal 95 % by more than chance allows (z = 3.5), never uselessly wide.
    chance = 3.5 * math.sqrt(0.95 * 0.05 / trials)
    assert hits / trials > 0.95 - chance
    assert hits / trials < 0.995


def test_no_difference_at_all_gives_a_point() -> None:
    found = crossed_interval(np.zeros((3, 10)))
    assert (found.low, found.estimate, found.high) == (0, 0, 0)


def test_one_seed_gives_no_interval() -> None:
    message = r"got 1 seed, expected at least 2: run with --seeds 2 or more"
    with pytest.raises(UserError, match=message):
        seed_interval([1.0])
    with pytest.raises(UserError, match=message):
        crossed_interval(np.zeros((1, 10)))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_quantile_at_infinitely_many_degrees_is_the_normal_one(confidence: float) -> None:
    normal = scipy_stats.norm.ppf(0.5 + confidence / 2)
    assert t_quantile(confidence, math.inf) == pytest.approx(normal, rel=1e-12)
    assert t_quantile(confidence, 1e9) == pytest.approx(normal, rel=1e-6)
    assert t_quantile(confidence, 4) == pytest.approx(scipy_stats.t.ppf(0.5 + confidence / 2, 4), rel=1e-12)


def test_seeds_that_agree_in_their_means_leave_the_spread_of_examples() -> None:
    """Rows with one mean have no variance over seeds, so the degrees of freedom are infinite and the quantile normal."""
    row = np.array([1.0, -1.0, 2.0, -2.0])
    found = crossed_interval(np.stack([row, row, row]))
    half = scipy_stats.norm.ppf(0.975) * row.std(ddof=1) / math.sqrt(4)
    assert (found.low, found.estimate, found.high) == pytest.approx((-half, 0, half))


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [[0.0], [0.0], [0.0]], [[], []]])
def test_one_example_gives_no_interval_over_examples(values: list[list[float]]) -> None:
    count = len(values[0])
    with pytest.raises(
        UserError, match=rf"over seeds and blocks got {count} of the blocks, expected at least 2: evaluate on"
    ):
        crossed_interval(np.array(values), example_name="blocks")
