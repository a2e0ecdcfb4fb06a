"""Bars of paired points against intervals of differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halflife.studies.evidence.optimum import paired_rows
from halflife.studies.evidence.stats import seed_interval


def _half_widths(values_LS: np.ndarray) -> list[float]:
    rows = paired_rows("loss", list(range(1, 1 + len(values_LS))), values_LS)
    points = [row for row in rows if row.style == "point"]
    assert [point.y for point in points] == pytest.approx(values_LS.mean(axis=1))
    found = []
    for point in points:
        assert point.low is not None
        assert point.high is not None
        found.append((point.high - point.low) / 2)
    return found


def test_bars_of_two_places_are_the_interval_of_their_difference_over_sqrt_2() -> None:
    values_LS = np.random.default_rng(1).normal(0, 1, (1, 5)) * 10 + np.random.default_rng(2).normal(0, 1, (2, 5))
    difference = seed_interval(values_LS[0] - values_LS[1])
    expected = (difference.high - difference.low) / 2 / math.sqrt(2)
    assert _half_widths(values_LS) == pytest.approx([expected, expected])


@pytest.mark.parametrize("num_places", [3, 6])
def test_bars_have_the_spread_of_a_place_itself_whatever_the_number_of_places(num_places: int) -> None:
    """What seeds share drops out; of the rest, unit variance, the mean square of bars is that of Student's interval."""
    rng, num_seeds, trials = np.random.default_rng(3), 5, 300
    squares = []
    for _ in range(trials):
        values_LS = rng.normal(0, 10, (1, num_seeds)) + rng.normal(size=(num_places, num_seeds))
        squares += [(half / 2.776445 * math.sqrt(num_seeds)) ** 2 for half in _half_widths(values_LS)]
    # Each place's variance has 4 degrees of freedom; places of one trial are nearly independent.
    assert np.mean(squares) == pytest.approx(1, abs=3.5 * math.sqrt(2 / 4 / len(squares)) * 1.2)


def test_the_bar_of_a_single_place_is_its_interval_over_seeds() -> None:
    values_LS = np.array([[1.0, 2.0, 4.0]])
    expected = seed_interval(values_LS[0])
    assert _half_widths(values_LS) == pytest.approx([(expected.high - expected.low) / 2])
