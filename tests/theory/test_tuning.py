"""Rules for choosing lam, at the worked examples of the papers and at their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import UserError
from halflife.theory import (
    adamw,
    lam_for_rotation,
    lam_for_timescale,
    lion,
    lion_from_adamw,
    power_law_lam,
    power_law_timescale,
    scaled_lam,
)
from halflife.units import batch_scaled, fraction, timescale


def test_time_scales() -> None:
    assert timescale(fraction(lam_for_timescale(2_500, lr=6e-4), 6e-4)) == pytest.approx(2_500)
    # The usual 5e-4 at lr 0.1 and momentum 0.9 forgets in 2,000 steps; so do lr lam = 5e-4 without momentum.
    assert lam_for_timescale(2_000, lr=0.1, momentum=0.9) == pytest.approx(5e-4)
    assert 0.1 * lam_for_timescale(2_000, lr=0.1) == pytest.approx(5e-4)
    assert 0.5 * lam_for_timescale(5 * 45, lr=0.5) == pytest.approx(4.4e-3, rel=0.02)  # 1,437 digits, batch 32
    assert lam_for_timescale(math.inf, lr=0.1) == 0.0


def test_scaling() -> None:
    assert scaled_lam(0.1, data_factor=1_280_000 / 320_000) == pytest.approx(0.025)
    assert scaled_lam(0.1, lr_factor=1 / 4) == pytest.approx(0.4)
    assert scaled_lam(5e-4, batch_factor=8) == pytest.approx(4e-3) == batch_scaled(5e-4, 1024, 128)
    assert scaled_lam(0.1, batch_factor=4, lr_factor=2) == pytest.approx(0.2)
    assert scaled_lam(0.1, batch_factor=4, lr_factor=4) == pytest.approx(0.1)
    assert scaled_lam(0.28, batch_factor=2, data_factor=4, lr_factor=math.sqrt(2)) == pytest.approx(0.099, abs=5e-4)


@given(
    lam=st.floats(1e-4, 1.0),
    lr=st.floats(1e-5, 1.0),
    factors=st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0), st.floats(0.1, 10.0)),
)
def test_scaling_keeps_the_time_scale_in_epochs(lam: float, lr: float, factors: tuple[float, float, float]) -> None:
    batch, data, rate = factors
    scaled = scaled_lam(lam, batch_factor=batch, data_factor=data, lr_factor=rate)
    assert batch * 32 / (lr * rate * scaled * 1_000 * data) == pytest.approx(32 / (lr * lam * 1_000), rel=1e-9)


def test_the_power_law() -> None:
    for tpp, share in ((20, 0.224), (50, 0.138), (100, 0.096), (200, 0.066), (1000, 0.028)):
        assert power_law_timescale(tpp) == pytest.approx(share, abs=1e-3)
    gpt_2 = power_law_lam(6e-4, tokens=50_000 * 65_536, batch_tokens=65_536, num_parameters=124e6)
    assert gpt_2 == pytest.approx(0.17, abs=0.005)
    lam = power_law_lam(3e-3, tokens=20e6, batch_tokens=16_384, num_parameters=1e6)
    assert lam == pytest.approx(1.2, abs=0.05)
    assert timescale(fraction(lam, 3e-3)) / (20e6 / 16_384) == pytest.approx(power_law_timescale(20))


@given(rotation=st.floats(1e-5, 0.2), lr=st.floats(1e-4, 1.0), beta1=st.floats(0.0, 0.95))
def test_a_rotation_comes_back(rotation: float, lr: float, beta1: float) -> None:
    lam = lam_for_rotation(rotation, lr, beta1=beta1)
    assert adamw(lr, lam, 10, beta1=beta1).rotation == pytest.approx(rotation, rel=1e-6)


def test_rotation_of_a_language_model() -> None:
    at = adamw(3e-4, 0.1, 1)
    assert (at.rotation, at.norm) == pytest.approx((1.8e-3, 0.039), rel=0.02)
    assert lam_for_rotation(at.rotation, 3e-4) == pytest.approx(0.1)


def test_lion_keeps_the_product() -> None:
    lr, lam = lion_from_adamw(6e-4, 0.1, factor=3)
    assert (lr, lam) == pytest.approx((2e-4, 0.3))
    assert lion(lr, lam, 1).rotation == pytest.approx(lion(6e-4, 0.1, 1).rotation)
    lr, lam = lion_from_adamw(1e-3, 0.1)
    assert lion(lr, lam, 1).rotation / adamw(1e-3, 0.1, 1).rotation == pytest.approx(0.65, abs=0.005)


WRONG: list[tuple[Any, str]] = [
    (lambda: lam_for_timescale(0, lr=0.1), r"steps must be > 0, got 0.0"),
    (lambda: lam_for_timescale(10, lr=0.0), r"lr must be > 0, got 0.0"),
    (lambda: lam_for_timescale(10, lr=0.1, momentum=1.0), r"momentum must satisfy 0 <= momentum < 1, got 1.0"),
    (lambda: scaled_lam(-1.0), r"lam must be a finite number >= 0, got -1.0"),
    (lambda: scaled_lam(1.0, data_factor=0.0), r"data_factor must be > 0, got 0.0"),
    (lambda: power_law_timescale(-1), r"tokens_per_parameter must be > 0, got -1.0"),
    (
        lambda: power_law_lam(1e-3, tokens=100, batch_tokens=1000, num_parameters=10),
        r"batch_tokens is 1000 and tokens, those of the run, 100, expected a batch within the run",
    ),
    (lambda: lam_for_rotation(1.6, 0.1), r"rotation is 1.6, expected less than acos\(beta1\) = 0.451"),
    (lambda: lion_from_adamw(0.1, 0.1, factor=0.0), r"factor must be > 0, got 0.0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
