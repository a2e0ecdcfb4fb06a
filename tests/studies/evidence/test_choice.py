"""The best of several arms against others: the procedure by brute force, and coverage on known truths.

Shapes: A arms, S seeds, N examples.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.choice import Side, best_interval, chosen, chosen_arms, contrast_interval
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval

Array = NDArray[np.float64]


def _arms(rng: np.random.Generator, means: Array, shape: tuple[int, int], example_sd: float = 0.28) -> Array:
    """Arms by seeds of unit variance, by examples whose mean varies by ``example_sd``, and a rest."""
    (num_seeds, num_examples), num_arms = shape, len(means)
    scale = math.sqrt(num_examples)
    return np.asarray(
        means[:, None, None]
        + rng.normal(0, 1, (num_arms, num_seeds, 1))
        + rng.normal(0, scale * example_sd, (num_arms, 1, num_examples))
        + rng.normal(0, scale * 0.3, (num_arms, num_seeds, num_examples))
    )


def _chosen_by_loops(values_ASN: Array) -> Array:
    """Every cell by itself: the best arm on all other seeds and on the other half of the examples."""
    _, num_seeds, num_examples = values_ASN.shape
    middle = (num_examples + 1) // 2
    found_SN = np.zeros((num_seeds, num_examples))
    for seed, example in itertools.product(range(num_seeds), range(num_examples)):
        there = range(middle, num_examples) if example < middle else range(middle)
        others = [s for s in range(num_seeds) if s != seed]
        means = [np.mean([[arm[s, n] for n in there] for s in others]) for arm in values_ASN]
        found_SN[seed, example] = values_ASN[means.index(min(means)), seed, example]
    return found_SN


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5, 9])
def test_the_chosen_values_are_those_of_a_loop_over_all_cells(num_seeds: int) -> None:
    values_ASN = _arms(np.random.default_rng(num_seeds), np.zeros(4), (num_seeds, 7))
    assert chosen(Side(values=values_ASN)) == pytest.approx(_chosen_by_loops(values_ASN))


@pytest.mark.parametrize("num_seeds", [2, 5, 9, 40])
def test_a_seed_never_chooses_for_itself(num_seeds: int) -> None:
    for seed in range(num_seeds):
        values_AS = np.zeros((2, num_seeds))
        values_AS[1, seed] = -1.0  # one seed's luck: it chooses arm 1 for all others
        assert chosen(Side(values=values_AS)) == pytest.approx(np.zeros(num_seeds))


def test_an_arm_that_diverges_in_some_seeds_is_not_the_best() -> None:
    """SGD at a rate at which three of five seeds diverge beside a good one: a choice on few seeds would take it by luck."""
    good_S, wild_S = np.array([1.796, 1.785, 1.787, 1.788, 1.791]), np.array([1.790, 2.462, 1.788, 2.477, 2.534])
    side = Side(values=np.array([good_S, wild_S]))
    assert chosen_arms(side) == [0]
    found = best_interval(np.full((1, 5), 1.76), side.values)
    assert found.estimate == pytest.approx(1.76 - good_S.mean())
    assert found.high < 0


def test_a_single_arm_against_another_is_the_paired_interval() -> None:
    rng = np.random.default_rng(2)
    one_SN, other_SN = rng.normal(size=(2, 5, 30))
    assert best_interval(one_SN[None], other_SN[None], example_name="blocks") == crossed_interval(
        one_SN - other_SN, example_name="blocks"
    )
    assert best_interval(one_SN[None, :, 0], other_SN[None, :, 0], confidence=0.9) == seed_interval(
        one_SN[:, 0] - other_SN[:, 0], 0.9
    )


@pytest.mark.parametrize("num_examples", [1, 40])
def test_a_clear_winner_has_the_winners_estimate_and_hardly_a_wider_interval(num_examples: int) -> None:
    rng = np.random.default_rng(4)
    values_ASN = _arms(rng, np.array([30.0, 0.0, 60.0]), (5, num_examples))
    other_ASN = _arms(rng, np.zeros(1), (5, num_examples))
    found = best_interval(values_ASN, other_ASN) if num_examples > 1 else _per_seed(values_ASN, other_ASN)
    difference_SN = values_ASN[1] - other_ASN[0]
    plain = crossed_interval(difference_SN) if num_examples > 1 else seed_interval(difference_SN[:, 0])
    assert found.estimate == pytest.approx(plain.estimate)
    assert 1 <= (found.high - found.low) / (plain.high - plain.low) < 1.15
    assert chosen_arms(Side(values=values_ASN)) == [1]


def _per_seed(first_ASN: Array, second_ASN: Array) -> Interval:
    return best_interval(first_ASN[:, :, 0], second_ASN[:, :, 0])


def test_the_highest_is_the_mirror_of_the_lowest() -> None:
    rng = np.random.default_rng(6)
    first_ASN, second_ASN = (_arms(rng, np.zeros(k), (4, 12)) for k in (3, 2))
    low, high = best_interval(first_ASN, second_ASN), best_interval(-first_ASN, -second_ASN, lowest=False)
    assert (high.estimate, high.low, high.high) == pytest.approx((-low.estimate, -low.high, -low.low))


def test_the_same_numbers_give_the_same_interval() -> None:
    first_ASN = _arms(np.random.default_rng(7), np.zeros(4), (3, 10))
    assert best_interval(first_ASN, first_ASN[:1] + 1) == best_interval(first_ASN.copy(), first_ASN[:1] + 1)


def test_what_arms_share_in_a_seed_and_example_drops_out() -> None:
    rng = np.random.default_rng(8)
    first_ASN, second_ASN = (_arms(rng, np.zeros(k), (4, 12)) for k in (3, 2))
    shared_SN = rng.normal(0, 100, (4, 12))
    plain, moved = best_interval(first_ASN, second_ASN), best_interval(first_ASN + shared_SN, second_ASN + shared_SN)
    # The choice is the same, as all arms of a side move alike; so is the contrast of the two sides.
    assert (moved.estimate, moved.low, moved.high) == pytest.approx((plain.estimate, plain.low, plain.high))


def test_a_choice_by_other_scores_takes_the_values_of_the_chosen_arm() -> None:
    """A coefficient that is chosen in one place and used in another."""
    scores_AS = np.array([[0.0, 0.1, 0.2], [5.0, 5.1, 5.2]])
    values_ASN = np.stack([np.full((3, 4), 7.0), np.full((3, 4), -7.0)])
    assert (chosen(Side(values=values_ASN, scores=scores_AS)) == 7).all()
    assert (chosen(Side(values=values_ASN, scores=scores_AS, lowest=False)) == -7).all()
    found = contrast_interval([Side(values=values_ASN, scores=scores_AS), Side(values=values_ASN[:1], weight=-0.5)])
    assert (found.low, found.estimate, found.high) == (3.5, 3.5, 3.5)


def test_equal_arms_are_no_noise() -> None:
    """Copies of one arm: there is nothing to choose, and the first is taken."""
    one_SN = np.random.default_rng(9).normal(size=(5, 20))
    found = best_interval(np.stack([one_SN] * 3), np.zeros((1, 5, 20)))
    plain = crossed_interval(one_SN)
    assert found.estimate == pytest.approx(plain.estimate)
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"got \(2, 3\) and \(2, 4\), expected arms of shape \(A, S\) or"),
        (np.zeros((0, 3)), np.zeros((2, 3)), r"got \(0, 3\) and \(2, 3\), expected arms"),
        (np.zeros(3), np.zeros(3), r"got \(3,\) and \(3,\), expected arms"),
        (np.zeros((2, 1)), np.zeros((2, 1)), r"got 1 seed, expected at least 2: run with --seeds 2 or more"),
        (np.zeros((1, 3, 1)), np.zeros((1, 3, 1)), r"got 1 of the examples, expected at least 2"),
    ],
)
def test_arms_that_do_not_fit_are_refused(first: Array, second: Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        best_interval(first, second)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_arms_that_are_not_finite_are_refused(bad: float) -> None:
    """The lowest of numbers with a NaN is NaN: a diverged arm would be the best."""
    values_AS = np.array([[1.0, 2.0, bad], [2.0, 3.0, 4.0]])
    message = "got a value that is not finite, expected numbers: a reading is damaged, or a run diverged"
    with pytest.raises(UserError, match=message):
        best_interval(values_AS, np.ones((1, 3)))
    with pytest.raises(UserError, match=message):
        contrast_interval([Side(values=np.ones((2, 3)), scores=values_AS)])


def test_scores_of_other_seeds_are_refused() -> None:
    with pytest.raises(UserError, match=r"scores of shape \(2, 4\) for values of shape \(2, 3\), expected the same"):
        chosen(Side(values=np.zeros((2, 3)), scores=np.zeros((2, 4))))
    with pytest.raises(UserError, match=r"got no sides, expected arms"):
        contrast_interval([])


def _coverage(means: tuple[Array, Array], shape: tuple[int, int], trials: int) -> tuple[float, float, float]:
    """How often the interval covers the truth, the same for one left out at a time, and the mean error of the estimate."""
    rng = np.random.default_rng([7, *shape, *map(len, means)])
    truth = means[0].min() - means[1].min()
    hits, old_hits, errors = 0, 0, []
    for _ in range(trials):
        first_ASN, second_ASN = (_arms(rng, side, shape) for side in means)
        found = best_interval(first_ASN, second_ASN)
        hits += found.low <= truth <= found.high
        errors.append(found.estimate - truth)
        old = crossed_interval(_one_left_out(first_ASN) - _one_left_out(second_ASN))
        old_hits += old.low <= truth <= old.high
    return hits / trials, old_hits / trials, float(np.mean(errors))


def _one_left_out(values_ASN: Array) -> Array:
    """Each seed with the arm that is best on all other seeds, over all examples."""
    scores_AS = values_ASN.mean(axis=2)
    arms = [int(np.delete(scores_AS, seed, axis=1).mean(axis=1).argmin()) for seed in range(scores_AS.shape[1])]
    return values_ASN[arms, np.arange(len(arms))]


def _means(kind: str, num_arms: int) -> Array:
    return np.array([0.0] + [0.0 if kind == "equal" else 12.0] * (num_arms - 1))


def test_two_equal_arms_against_one_cover_the_truth() -> None:
    trials = 40
    covered, _, error = _coverage((_means("equal", 2), _means("equal", 1)), (3, 8), trials)
    assert covered > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / trials)
    assert abs(error) < 3.5 * 1.2 / math.sqrt(trials)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 5, 8])
@pytest.mark.parametrize("arms", [(2, 1), (6, 3), (12, 5)])
@pytest.mark.parametrize("kind", ["equal", "winner"])
def test_the_best_against_the_best_covers_the_truth(num_seeds: int, arms: tuple[int, int], kind: str) -> None:
    trials = 400
    means = _means(kind, arms[0]), _means(kind, arms[1])
    covered, old, error = _coverage(means, (num_seeds, 32), trials)
    assert 0.93 - 3 * math.sqrt(0.93 * 0.07 / trials) < covered < 0.97 + 3 * math.sqrt(0.97 * 0.03 / trials)
    assert abs(error) < 4 / math.sqrt(num_seeds * trials) * 1.6
    if kind == "equal" and arms[0] > 2:
        assert old < 0.93, "leaving one seed out was no problem here, so this shows nothing"
