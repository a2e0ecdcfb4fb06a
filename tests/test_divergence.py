"""Spikes and forecasts: on curves that were made to have them, and not to."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halflife.divergence import Forecast, find_spikes, forecast, half_ulp
from halflife.errors import UserError
from halflife.precision import round_to

STEPS = range(0, 10_000, 100)


def falling(seed: int, noise: float) -> list[float]:
    """A healthy loss: a power law, and the noise of a batch mean."""
    draws = random.Random(seed)
    return [2.0 + 2.0 / math.sqrt(1 + step / 100) + draws.gauss(0, noise) for step in STEPS]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02, 0.1])
def test_healthy_losses_have_no_spike(noise: float) -> None:
    """100 readings each, 300 runs: 30,000 chances of a false alarm."""
    alarms = sum(bool(find_spikes(STEPS, falling(seed, noise), height=0.02)) for seed in range(300))
    assert alarms <= 6  # 2 % of runs, where the noise is above ``height``; measured: 0, 0, 3, 5


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_a_jump_is_found_where_it_is(noise: float) -> None:
    for seed in range(50):
        losses = falling(seed, noise)
        losses[60] += 0.5
        losses[61] += 0.3
        (spike,) = find_spikes(STEPS, losses)
        assert (spike.seen, spike.ended, spike.diverged) == (6000, 6200, False)
        assert spike.began == STEPS[min(range(60), key=losses.__getitem__)]
        assert spike.height == losses[60] - min(losses[:60])


def test_a_slow_rise_that_stays_is_a_divergence() -> None:
    losses = [loss + 0.02 * max(0, index - 50) for index, loss in enumerate(falling(0, 0.003))]
    (spike,) = find_spikes(STEPS, losses)
    assert spike.diverged
    assert 4_800 <= spike.began <= 5_200
    assert 5_500 <= spike.seen <= 5_800  # 0.1 above the lowest, while the curve below still falls


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_number_is_a_divergence(bad: float) -> None:
    losses = falling(0, 0.003)
    (spike,) = find_spikes(STEPS, [*losses[:40], *[bad] * 60])
    assert (spike.seen, spike.diverged, spike.height) == (4000, True, math.inf)
    (at_once,) = find_spikes(STEPS, [bad] * 100)
    assert (at_once.began, at_once.seen, at_once.diverged) == (0, 0, True)
    back = find_spikes(STEPS, [*losses[:40], bad, *losses[41:]])
    assert [(spike.seen, spike.ended) for spike in back] == [(4000, 4100)]


def test_what_moved_first_is_named() -> None:
    losses = [loss + (0.5 if index >= 70 else 0) for index, loss in enumerate(falling(0, 0.003))]
    quantities = {
        "norm": [10.0 + index / 10 for index in range(100)],
        "score": [20 * 2 ** max(0.0, (index - 40) / 8) for index in range(100)],
        "gradient": [0.5 if index < 66 else 8.0 for index in range(100)],
        "early": [100.0 if 10 <= index < 20 else 1.0 for index in range(100)],
    }
    (spike,) = find_spikes(STEPS, losses, quantities)
    assert spike.first == "score"
    assert 4_800 <= spike.first_step <= 6_000  # twice what it was ten readings before
    (without,) = find_spikes(STEPS, losses, {name: quantities[name] for name in ("norm", "early")})
    assert (without.first, without.first_step) == ("", without.seen)
    (gradient,) = find_spikes(STEPS, losses, {name: quantities[name] for name in ("norm", "gradient")})
    assert (gradient.first, gradient.first_step) == ("gradient", 6_600)


@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=60),
    st.floats(0.5, 20),
    st.integers(0, 30),
)
def test_units_do_not_matter_and_the_past_is_not_rewritten(losses: list[float], stretch: float, cut: int) -> None:
    steps = list(range(len(losses)))
    found = find_spikes(steps, losses)
    other = find_spikes([stretch * step for step in steps], losses)
    assert [(spike.began * stretch, spike.seen * stretch) for spike in found] == [
        (spike.began, spike.seen) for spike in other
    ]
    seen = [spike.seen for spike in found]
    kept = losses[: max(1, len(losses) - cut)]
    assert [spike.seen for spike in find_spikes(steps[: len(kept)], kept)] == [
        step for step in seen if step < len(kept)
    ]
    assert all(spike.diverged == (spike.ended is None) and spike.height > 0.1 for spike in found)
    assert not any(spike.diverged for spike in found[:-1])
    doubled = find_spikes(steps, [2 * loss for loss in losses], height=0.2)
    assert [spike.seen for spike in doubled] == seen


@pytest.mark.parametrize("bits", [1, 2, 7, 10])
def test_half_an_ulp_is_the_largest_rounding_error(bits: int) -> None:
    for value in (1.0, 1.5, 300.0, 0.37, 1e-3):
        top = 2.0 ** math.floor(math.log2(value))
        x = torch.linspace(top, 2 * top, 100_001, dtype=torch.float64)
        largest = (round_to(x, bits) - x).abs().max().item()
        assert largest == pytest.approx(half_ulp(value, bits), rel=1e-3)
        assert half_ulp(-value, bits) == half_ulp(value, bits)
    assert half_ulp(0.0, bits) == 0.0


def growing(doubling: float, noise: float, seed: int = 0) -> list[float]:
    draws = random.Random(seed)
    return [16.0 * 2 ** (step / doubling + draws.gauss(0, noise)) for step in STEPS[:30]]


@pytest.mark.parametrize("bits", [2, 3, 7])
@pytest.mark.parametrize("doubling", [200.0, 1000.0])
def test_a_forecast_is_where_the_curve_goes(bits: int, doubling: float) -> None:
    """The step at which half an ulp of 16 * 2^(step / doubling) is above 8 nats."""
    crossing = doubling * (3 + 1 + bits + 1 - 4)
    for seed in range(20):
        seen = forecast(STEPS[:30], growing(doubling, 0.05, seed), bits)
        if crossing <= STEPS[29]:
            assert seen.error > 8 or seen.crossing == pytest.approx(crossing, rel=0.1)
        else:
            assert seen.crossing == pytest.approx(crossing, rel=0.25)
            assert seen.error <= 8
            assert seen.earliest <= seen.crossing <= seen.latest
        assert seen.doubling == pytest.approx(doubling, rel=0.25)


def test_the_interval_covers_its_share() -> None:
    covered = 0
    for seed in range(300):
        seen = forecast(STEPS[:30], growing(1000.0, 0.1, seed), 7)
        covered += seen.earliest <= 8_000.0 <= seen.latest
    assert covered / 300 > 0.85  # of 90 %; the middle of the readings is not exact either


@pytest.mark.parametrize("value", [0.5, 3.0, 16.0, 17.0, 63.9, 64.0, 1000.0, 1e9])
@pytest.mark.parametrize("limit", [8.0, 5.0, 0.25])
def test_bits_needed_are_the_fewest(value: float, limit: float) -> None:
    needed = forecast(range(5), [value] * 5, 7, limit=limit).bits_needed
    assert half_ulp(value, needed) <= limit
    assert needed == 1 or half_ulp(value, needed - 1) > limit


def test_levels() -> None:
    def level(values: list[float], bits: int = 2) -> Forecast:
        return forecast(STEPS[: len(values)], values, bits)

    assert level([33.0] * 10).level == "amber"  # half an ulp of 33 at 2 bits is 4 nats
    assert level([15.0] * 10).level == "green"
    assert level([200.0] * 10).level == "amber"  # large, and steady
    assert level([200.0 * 1.2**k for k in range(10)]).level == "red"
    assert level([200.0 * 1.2**k for k in range(10)], bits=9).level == "green"
    steady = level([20.0] * 10)
    assert (steady.doubling, steady.crossing, steady.latest) == (math.inf, math.inf, math.inf)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: find_spikes([1, 2], [1.0]), "losses has 1 readings at 2 steps: give one for each"),
        (lambda: find_spikes([1], [1.0], {"g": []}), "g has 0 readings at 1 steps"),
        (lambda: find_spikes([2, 1], [1.0, 2.0]), "step 1 follows step 2, expected steps in order: sort the readings"),
        (lambda: find_spikes([1], [1.0], height=0), "height must be"),
        (lambda: find_spikes([1], [1.0], window=1), r"window must be an integer >= 2 \(readings\), got 1"),
        (lambda: forecast(range(4), [1.0] * 4, 7), "4 readings were given, expected at least 5"),
        (lambda: forecast(range(5), [1.0] * 4 + [0.0], 7), "the reading at step 4 is 0.0, expected a positive number"),
        (lambda: forecast(range(5), [1.0] * 5, 0), "bits must be an integer >= 1"),
        (lambda: forecast(range(5), [1.0] * 5, 7, limit=0), "limit must be"),
        (lambda: forecast(range(5), [1.0] * 5, 7, window=4), "window must be an integer >= 5"),
        (lambda: half_ulp(math.inf, 7), "value must be a finite number, got inf"),
    ],
)
def test_wrong_input_is_one_sentence(call: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()  # type: ignore[operator]
