"""Intervals against independent oracles: formulas by hand, brute-force resampling, and coverage on known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from halflife.errors import UserError
from halflife.studies.evidence.stats import (
    Interval,
    crossed_interval,
    pair_values,
    seed_interval,
    seeds_to_decide,
    split_confidence,
    t_quantile,
    what_would_decide,
)


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


def test_the_ends_follow_from_standard_error_and_degrees() -> None:
    rng = np.random.default_rng(3)
    for found in (seed_interval(rng.normal(size=4)), crossed_interval(rng.normal(size=(4, 20)))):
        assert found.standard_error is not None
        assert found.degrees is not None
        half = scipy_stats.t.ppf(0.975, found.degrees) * found.standard_error
        assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.983])
def test_an_interval_at_another_confidence_is_the_one_computed_there(confidence: float) -> None:
    values_SN = np.random.default_rng(4).normal(1, 0.2, (5, 30))
    found, expected = crossed_interval(values_SN).at(confidence), crossed_interval(values_SN, confidence=confidence)
    assert (found.low, found.high, found.confidence) == pytest.approx((expected.low, expected.high, confidence))
    log = seed_interval(values_SN[:, 0]).exp().at(confidence)
    assert (log.low, log.high) == pytest.approx(
        tuple(np.exp([(i := seed_interval(values_SN[:, 0], confidence)).low, i.high]))
    )
    constant = crossed_interval(np.ones((3, 4))).at(confidence)
    assert (constant.low, constant.high) == (1, 1)


def test_an_interval_of_unknown_origin_has_no_other_confidence() -> None:
    with pytest.raises(UserError, match=r"without a standard error was asked for another confidence, expected one of"):
        Interval(0.0, -1.0, 1.0, 3).at(0.9)
    assert Interval(0.0, -1.0, 1.0, 3).p_value() is None


def test_a_p_value_is_that_of_students_test() -> None:
    values = [3.1, 2.7, 4.0, 3.3]
    for bound in (0.0, 3.0, 3.1):
        oracle = scipy_stats.ttest_1samp(values, bound).pvalue
        assert seed_interval(values).p_value(bound) == pytest.approx(oracle)
        # The same of a geometric mean, tested against the exponential of the bound.
        assert seed_interval(values).exp().p_value(math.exp(bound)) == pytest.approx(oracle)
    agreed = np.stack([np.array([1.0, -1.0, 2.0, -1.5])] * 3)  # degrees of freedom without end
    found = crossed_interval(agreed)
    assert found.standard_error is not None
    assert found.p_value() == pytest.approx(2 * scipy_stats.norm.sf(found.estimate / found.standard_error), rel=1e-6)
    nothing = crossed_interval(np.ones((3, 4)))
    assert (nothing.p_value(1.0), nothing.p_value(0.0)) == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(3, 1), (5, 1), (3, 40), (6, 40)])
def test_the_seeds_that_would_decide_are_those_of_a_loop_over_larger_samples(shape: tuple[int, int]) -> None:
    """An oracle that makes data: seeds whose means have the same spread, of any number."""
    rng = np.random.default_rng([11, *shape])
    values_SN = rng.normal(0, 1, (shape[0], 1)) + rng.normal(0, 0.3, (1, shape[1]))
    values_SN += 0.4 - values_SN.mean()
    found = seed_interval(values_SN[:, 0]) if shape[1] == 1 else crossed_interval(values_SN)
    assert found.low < 0 < found.high
    expected = None
    seeds_part = values_SN.mean(axis=1).var(ddof=1)
    examples_part = 0.0 if shape[1] == 1 else values_SN.mean(axis=0).var(ddof=1) / shape[1]
    for count in range(shape[0], 1001):
        variance = seeds_part / count + examples_part  # rows and columns add up, so nothing is left beyond
        degrees = (count - 1) * (variance / (seeds_part / count)) ** 2
        if scipy_stats.t.ppf(0.975, degrees) * math.sqrt(variance) < abs(values_SN.mean()):
            expected = count
            break
    assert expected is not None
    assert seeds_to_decide(found, lambda i: i.low > 0 or i.high < 0) == expected
    assert what_would_decide(found, lambda i: i.low > 0 or i.high < 0).startswith(f"{expected} seeds would decide")


def test_where_examples_are_too_few_no_number_of_seeds_decides() -> None:
    rng = np.random.default_rng(12)
    values_SN = rng.normal(0, 0.01, (4, 1)) + np.array([-1.0, 1.0] * 8) + 0.1
    found = crossed_interval(values_SN, example_name="blocks")
    assert seeds_to_decide(found, lambda i: i.low > 0) is None
    assert what_would_decide(found, lambda i: i.low > 0) == (
        "no number of seeds would decide, as 16 blocks are too few for that"
    )
    assert what_would_decide(Interval(0.0, -1.0, 1.0, 3), lambda i: i.low > 0) == ""
    assert seeds_to_decide(Interval(0.0, -1.0, 1.0, 3), lambda i: i.low > 0) is None


def test_the_values_of_pairs_are_the_jackknifes() -> None:
    rng = np.random.default_rng(13)
    points_S = rng.normal(size=(5, 3))
    apart_SS = np.linalg.norm(points_S[:, None] - points_S, axis=2)

    def mean_over_pairs(seeds: list[int]) -> float:
        return float(np.mean([apart_SS[i, j] for i in seeds for j in seeds if i < j]))

    whole = mean_over_pairs(list(range(5)))
    expected = [5 * whole - 4 * mean_over_pairs([s for s in range(5) if s != seed]) for seed in range(5)]
    assert pair_values(apart_SS) == pytest.approx(np.array(expected))
    assert pair_values(apart_SS).mean() == pytest.approx(whole)
    np.fill_diagonal(apart_SS, np.nan)
    assert pair_values(apart_SS) == pytest.approx(np.array(expected))


def test_pairs_of_too_few_seeds_or_of_two_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"got 2 seeds, expected at least 3: run with --seeds 3 or more"):
        pair_values(np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"shape \(3, 3\) that are not symmetric, expected one value per pair"):
        pair_values(np.arange(9.0).reshape(3, 3))


def test_a_mean_over_pairs_covers_the_truth_where_its_rows_do_not() -> None:
    """Log distances between points in 50 dimensions whose spread differs from seed to seed."""
    rng = np.random.default_rng(14)

    def distances(num_seeds: int) -> np.ndarray:
        points = rng.normal(size=(num_seeds, 50)) * np.exp(rng.normal(0, 0.3, (num_seeds, 1)))
        squares = np.square(points).sum(axis=1)
        apart = squares[:, None] + squares - 2 * points @ points.T
        return np.asarray(np.log(np.sqrt(np.where(np.eye(num_seeds, dtype=bool), 1.0, apart))))

    many_SS = distances(800)
    truth = many_SS.sum() / (800 * 799)
    trials, hits, naive_hits = 250, 0, 0
    for _ in range(trials):
        log_SS = distances(5)
        right, naive = seed_interval(pair_values(log_SS)), seed_interval(log_SS.sum(axis=1) / 4)
        hits += right.low <= truth <= right.high
        naive_hits += naive.low <= truth <= naive.high
    chance = 3.5 * math.sqrt(0.95 * 0.05 / trials)
    assert hits / trials > 0.94 - chance
    assert naive_hits / trials < 0.85


def _first_look_errs(rng: np.random.Generator, confidence: float, looks: tuple[int, ...]) -> bool:
    values = rng.normal(size=max(looks))
    intervals = [seed_interval(values[:count], confidence) for count in looks]
    return any(i.low > 0 or i.high < 0 for i in intervals)


def test_looks_after_each_seed_err_more_often_than_the_confidence_says() -> None:
    trials, looks = 1000, (3, 4, 5)
    rng = np.random.default_rng(15)
    rates = [
        np.mean([_first_look_errs(rng, confidence, looks) for _ in range(trials)])
        for confidence in (0.95, split_confidence(0.95, len(looks)))
    ]
    assert rates[0] == pytest.approx(0.099, abs=3.5 * math.sqrt(0.099 * 0.901 / trials))
    assert rates[1] < 0.05


def test_one_of_several_parts_on_the_other_side_errs_as_often_as_one_would() -> None:
    """k parts at their bound, each interval on the other side by chance alone."""
    rng, trials, parts = np.random.default_rng(16), 800, 4
    wrong = {0.95: 0, split_confidence(0.95, parts): 0}
    for _ in range(trials):
        values_PS = rng.normal(size=(parts, 5))
        for confidence in wrong:
            wrong[confidence] += any(seed_interval(row, confidence).high < 0 for row in values_PS)
    plain, split = (count / trials for count in wrong.values())
    assert plain > 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / trials)
    assert split < 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / trials)
