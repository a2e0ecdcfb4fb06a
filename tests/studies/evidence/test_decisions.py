"""Outcomes from intervals, and best against best on made-up numbers whose answer is known."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.decisions import (
    Outcome,
    above,
    above_zero,
    all_of,
    below,
    best_keys,
    best_of,
    equal_at_stake,
    exceeds,
    leave_one_out,
    lowered,
    paired_blocks,
    within,
)
from halflife.studies.evidence.readings import stacked
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval

YES: Outcome = "reproduced"
NO: Outcome = "not reproduced"
OPEN: Outcome = "inconclusive"


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 3)


@pytest.mark.parametrize(
    ("low", "high", "up", "down", "equal"),
    [
        (0.1, 0.3, YES, NO, YES),
        (-0.3, -0.1, NO, YES, YES),
        (-0.1, 0.3, OPEN, OPEN, YES),
        (0.0, 0.3, OPEN, OPEN, YES),  # an end on the bound decides nothing
        (-0.3, 0.0, OPEN, OPEN, YES),
        (0.1, 0.9, YES, NO, OPEN),
        (0.6, 0.9, YES, NO, NO),
        (-0.9, -0.6, NO, YES, NO),
        (0.1, 0.5, YES, NO, OPEN),
        (-0.9, 0.9, OPEN, OPEN, OPEN),
    ],
)
def test_where_an_interval_lies_decides(low: float, high: float, up: Outcome, down: Outcome, equal: Outcome) -> None:
    interval = between(low, high)
    assert above_zero(interval) == above(interval) == up
    assert below(interval) == down
    assert within(interval, 0.5) == equal
    shifted = between(low + 1, high + 1)
    assert (above(shifted, 1), below(shifted, 1), within(shifted, 0.5, around=1)) == (up, down, equal)
    for rule in (above, below, above_zero):
        assert rule(interval, given=False) == OPEN
    assert within(interval, 0.5, given=False) == OPEN


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.9, -0.1, YES),
        (-0.01, -0.001, YES),  # however small
        (-0.4, 0.1, NO),
        (0.1, 0.4, NO),
        (-0.5, 0.1, OPEN),  # an end on the bound decides nothing
        (-0.6, 0.1, OPEN),
        (-0.6, 0.0, OPEN),
    ],
)
def test_an_improvement_that_counts_is_excluded_or_not(low: float, high: float, outcome: Outcome) -> None:
    assert lowered(between(low, high), 0.5) == outcome


def test_equality_is_worth_something_only_where_it_could_have_failed() -> None:
    near, far, wide = between(-0.1, 0.1), between(0.3, 0.4), between(-0.3, 0.3)
    assert [equal_at_stake(i, 0.2, at_stake=True) for i in (near, far, wide)] == [YES, NO, OPEN]
    assert [equal_at_stake(i, 0.2, at_stake=False) for i in (near, far, wide)] == [OPEN, NO, OPEN]
    assert [exceeds(i, 0.2) for i in (near, far, wide, between(-0.4, -0.3), between(0.2, 0.4))] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_equivalence_needs_a_margin() -> None:
    with pytest.raises(UserError, match="the margin is 0, expected a number > 0"):
        within(between(0, 1), 0)


@pytest.mark.parametrize(
    ("parts", "whole"), [((YES, YES), YES), ((YES, OPEN), OPEN), ((OPEN, NO), NO), ((YES, NO), NO), ((NO,), NO)]
)
def test_a_claim_of_parts(parts: tuple[Outcome, ...], whole: Outcome) -> None:
    assert all_of(*parts) == whole


def test_a_claim_of_no_parts_is_refused() -> None:
    with pytest.raises(UserError, match="no parts has no outcome"):
        all_of()


# ---- blocks of text


def test_blocks_of_text_are_pooled_and_examples_are_not() -> None:
    rng = np.random.default_rng(3)
    blocks = [rng.standard_normal(256) for _ in range(2)]
    for name in ("val/loss_blocks", "ema-0.99/val/loss_blocks"):
        found = stacked("arm", name, blocks)
        assert found.shape == (2, 64)
        assert found == pytest.approx(
            np.array([[block[4 * n : 4 * n + 4].mean() for n in range(64)] for block in blocks])
        )
    assert stacked("arm", "test/wrong", blocks).shape == (2, 256)
    assert (stacked("arm", "val/loss_blocks", [blocks[0][:50]]) == blocks[0][:50]).all()


def test_intervals_cover_only_once_neighbours_are_pooled() -> None:
    """Blocks that share a document with the next one, somewhat more strongly than measured, and seeds that hardly differ."""
    rng, trials = np.random.default_rng(5), 400
    covered = {256: 0, 64: 0}
    for _ in range(trials):
        innovations = rng.standard_normal(258)
        text_N = innovations[2:] + 0.45 * innovations[1:-1] + 0.1 * innovations[:-2]  # lag-1 autocorrelation 0.41
        differences_SN = text_N + 0.1 * rng.standard_normal((5, 256))
        for values_SN in (differences_SN, stacked("arm", "val/loss_blocks", list(differences_SN))):
            interval = crossed_interval(values_SN)
            covered[values_SN.shape[1]] += interval.low <= 0 <= interval.high
    assert covered[256] / trials < 0.88
    assert covered[64] / trials > 0.91


# ---- best against best


def test_the_choice_for_a_seed_does_not_know_its_score() -> None:
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((3, 5))
    chosen = leave_one_out(scores)
    for seed in range(5):
        others = [s for s in range(5) if s != seed]
        assert chosen[seed] == min(range(3), key=lambda arm: sum(scores[arm, s] for s in others))
        moved = scores.copy()
        moved[:, seed] += 100 * rng.standard_normal(3)
        assert leave_one_out(moved)[seed] == chosen[seed]
    assert (leave_one_out(-scores, lowest=False) == chosen).all()
    assert (leave_one_out(np.full((3, 5), 0.1)) == 0).all(), "of equals the first"


def test_best_of_equal_arms_is_not_better_than_one_of_them() -> None:
    """The naive minimum of ten arms that are all alike lies 1.5 standard deviations below their mean."""
    rng = np.random.default_rng(9)
    naive, honest = [], []
    for _ in range(400):
        scores = rng.standard_normal((10, 4))
        naive.append(scores.min(axis=0).mean())
        honest.append(scores[leave_one_out(scores), range(4)].mean())
    # 1600 draws of standard deviation 1, a little dependent: z = 4.
    assert abs(np.mean(honest)) < 4 * float(np.std(honest)) / 400**0.5
    assert np.mean(naive) < -1.4


def test_a_choice_needs_seeds_and_arms() -> None:
    with pytest.raises(UserError, match="got 2 arms with 1 seeds, expected at least 1 with 2"):
        leave_one_out(np.zeros((2, 1)))
    with pytest.raises(UserError, match="got 0 arms with 3 seeds"):
        leave_one_out(np.zeros((0, 3)))


class MadeUp:
    """Two arms whose losses per block are given."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.blocks: dict[tuple[str, int], NDArray[np.float64]] = {
            (key, step): level + rng.standard_normal((4, 30))
            for key, level in (("low", 2.0), ("high", 4.0))
            for step in (5, 9)
        }
        self.blocks["low", 9][2] += 20  # a seed in which the arm that is best elsewhere fails

    def array_at_step(self, key: str, name: str, step: int, size: int) -> NDArray[np.float64]:
        assert (name, size) == ("val/loss_blocks", 8)
        return self.blocks[key, step]

    def last_array(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        return self.array_at_step(key, name, 9, size)

    def at_step(self, key: str, metric: str, step: int, size: int) -> NDArray[np.float64]:
        assert metric == "val/loss"
        return np.asarray(self.blocks[key, step].mean(axis=1))

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        return self.at_step(key, metric, 9, size)


def test_best_of_takes_each_seed_from_the_arm_that_is_best_elsewhere() -> None:
    made_up = MadeUp()
    results = cast("Results", made_up)
    keys = ["high", "low"]
    assert best_keys(results, keys, "val/loss", 8, step=5) == ["low"] * 4
    # At step 9 the failing seed spoils "low" for all others, and is itself measured with "low".
    assert best_keys(results, keys, "val/loss", 8) == ["high", "high", "low", "high"]
    assert best_keys(results, keys, "val/loss", 8, lowest=False) == ["low", "low", "high", "low"]
    values = best_of(results, keys, "val/loss", 8)
    assert values == pytest.approx(
        [made_up.blocks[k, 9][s].mean() for s, k in enumerate(("high", "high", "low", "high"))]
    )
    blocks = best_of(results, keys, "val/loss", 8, array="val/loss_blocks")
    assert blocks.shape == (4, 30)
    assert blocks.mean(axis=1) == pytest.approx(values)
    early = best_of(results, keys, "val/loss", 8, array="val/loss_blocks", step=5)
    assert (early == made_up.blocks["low", 5]).all()


def test_arms_are_compared_block_by_block() -> None:
    made_up = MadeUp()
    found = paired_blocks(cast("Results", made_up), "low", "high", 8, step=5, confidence=0.9)
    oracle = crossed_interval(made_up.blocks["low", 5] - made_up.blocks["high", 5], confidence=0.9)
    assert (found.estimate, found.low, found.high) == (oracle.estimate, oracle.low, oracle.high)
    assert (found.num_seeds, found.num_examples, found.example_name) == (4, 30, "blocks")
    last = paired_blocks(cast("Results", made_up), "low", "high", 8)
    assert last.estimate == pytest.approx(found.estimate + 5, abs=0.5)
    assert last.high > found.high
