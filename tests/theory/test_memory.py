"""Identities of decay, under random schedules."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import UserError
from halflife.schedules import cosine, linear
from halflife.theory import ema_weights, remaining_decay
from halflife.units import kept

STEPS = st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 0.9), st.floats(-10.0, 10.0)), min_size=1, max_size=60)


@given(steps=STEPS, start=st.floats(-10.0, 10.0))
def test_a_run_is_an_average_of_its_updates(steps: list[tuple[float, float, float]], start: float) -> None:
    """Against the run itself: learning rate, coefficient and update change at every step."""
    weight = start
    for lr, lam, update in steps:
        weight = (1 - lr * lam) * weight - lr * update
    share, weights = ema_weights(lr * lam for lr, lam, _ in steps)
    size = abs(start) + sum(abs(lr * update) for lr, _, update in steps)
    average = math.fsum(c * -update / lam for c, (_, lam, update) in zip(weights, steps, strict=True))
    assert share * start + average == pytest.approx(weight, abs=1e-12 * max(size, 1.0))
    assert share + math.fsum(weights) == pytest.approx(1.0, abs=1e-12)


@given(fractions=st.lists(st.floats(0.0, 0.99), max_size=40))
def test_remaining_decay_is_what_the_rest_of_the_run_removes(fractions: list[float]) -> None:
    left = remaining_decay(fractions)
    assert len(left) == len(fractions) + 1
    assert left[-1] == 0.0
    product = Fraction(1)
    for at in range(len(fractions), -1, -1):
        assert math.exp(-left[at]) == pytest.approx(float(product), rel=1e-12)
        if at:
            product *= 1 - Fraction(fractions[at - 1])
    assert ema_weights(fractions)[0] == pytest.approx(float(product), rel=1e-12)


def test_a_tiny_fraction_keeps_its_digits() -> None:
    assert remaining_decay([1e-18] * 1000)[0] == pytest.approx(1e-15, rel=1e-12)
    assert remaining_decay([1e-12] * 3)[0] == pytest.approx(-math.log(kept(1e-12, 3)), rel=1e-3)


def test_budgets_of_published_schedules() -> None:
    """Golatkar et al. decay lr by 0.97 an epoch: at fixed lam 0.97^t of the budget is left after t epochs."""
    left = remaining_decay([1e-9 * 0.97**t for t in range(2_000)])
    for epoch, share in ((50, 0.22), (75, 0.10), (100, 0.048)):
        assert left[epoch] / left[0] == pytest.approx(share, abs=0.005)
    for shape, ratio in ((cosine(1.0, 0.0, 5_000), 0.75), (linear(1.0, 0.0, 5_000), 2 / 3)):  # AdamC over AdamW
        plain, corrected = (remaining_decay([1e-6 * shape(t) ** power for t in range(5_000)])[0] for power in (1, 2))
        assert corrected / plain == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("function", [remaining_decay, ema_weights])
def test_errors_say_what_was_expected(function: object) -> None:
    with pytest.raises(UserError, match=r"a fraction r must satisfy 0 <= r < 1, got 1.0"):
        function([0.1, 1.0])  # type: ignore[operator]
