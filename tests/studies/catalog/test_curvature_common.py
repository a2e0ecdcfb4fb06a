"""Exponents in the learning rate against a fit of numpy's, and premises about signs."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from halflife.studies.catalog.curvature.common import at_each, exponents, keys_starting, positive, rate_keys
from halflife.studies.evidence.quantities import NotMeasuredError, Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.specs.images import ImageRun

RATES = {"lr-1": 0.3, "lr-0": 0.05, "lr-2": 0.8}


class MadeUp:
    arms = [{"key": key, "size": size} for size in (4, 8) for key in (*RATES, "slow")]  # noqa: RUF012

    def spec(self, key: str, size: int) -> ImageRun:
        return ImageRun(lr=RATES[key], lam=0.01, num_epochs=2)


RESULTS = cast("Results", MadeUp())


def test_arms_of_a_grid_are_in_the_order_of_their_rates() -> None:
    assert rate_keys(RESULTS, 8) == ["lr-0", "lr-1", "lr-2"]
    assert keys_starting(RESULTS, 4, "slow") == ["slow"]
    made = at_each(RESULTS, 8, keys=rate_keys, make=lambda key: Quantity(name=f"of {key}", values=Reading(key, "loss")))
    assert [one.name for one in made] == ["of lr-0, at lr 0.05", "of lr-1, at lr 0.3", "of lr-2, at lr 0.8"]


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    rng = np.random.default_rng(0)
    values_RPS = np.exp(rng.normal(size=(3, 4, 5)))
    keys = rate_keys(RESULTS, 8)
    means_RS = np.log(values_RPS).mean(axis=1)
    expected = [np.polyfit(np.log([RATES[key] for key in keys]), means_RS[:, seed], 1)[0] for seed in range(5)]
    assert exponents(RESULTS, 8, keys, values_RPS) == pytest.approx(expected, abs=1e-12)
    assert exponents(RESULTS, 8, keys, np.exp(means_RS)) == pytest.approx(expected, abs=1e-12)
    values_RPS[1, 2, 3] = 0.0
    with pytest.raises(NotMeasuredError, match="a value is not above 0, so that there is no exponent"):
        exponents(RESULTS, 8, keys, values_RPS)


def test_a_premise_about_a_sign_says_the_lowest_value() -> None:
    premise = positive("the trace", lambda *_: np.array([1.0, 2.0]), lambda *_: np.array([3.0, -0.25]))
    assert premise.words == "the trace is above 0 in every run"
    assert premise.problem(RESULTS, 8) == "its lowest value is -0.25, so that it has no logarithm"
    assert not positive("it", lambda *_: np.array([1e-9])).problem(RESULTS, 8)
