"""The units against exact arithmetic, and every refusal."""

from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import halflife
from halflife import units
from halflife.errors import UserError
from halflife.numbers import check_fraction

FRACTIONS = st.floats(min_value=1e-15, max_value=0.99)


def exact_half_life(r: float) -> float:
    """ln 2 / -ln(1 - r) with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(2).ln() / -(1 - Decimal(r)).ln())


@given(FRACTIONS)
def test_half_life_is_exact_also_for_tiny_fractions(r: float) -> None:
    assert units.half_life(r) == pytest.approx(exact_half_life(r), rel=4e-16 * 4)


@given(FRACTIONS)
def test_half_life_inverts(r: float) -> None:
    assert units.fraction_from_half_life(units.half_life(r)) == pytest.approx(r, rel=1e-14)


@given(FRACTIONS)
def test_timescale_inverts(r: float) -> None:
    assert units.fraction_from_timescale(units.timescale(r)) == pytest.approx(r, rel=1e-15)


@given(st.floats(min_value=0.02, max_value=1e18))
def test_a_half_life_gives_a_fraction(steps: float) -> None:
    assert 0.0 <= units.fraction_from_half_life(steps) < 1.0


@given(st.floats(min_value=0.0, max_value=1e9), st.floats(min_value=1e-3, max_value=1e9))
def test_counts_invert(count: float, per: float) -> None:
    assert units.epochs_to_steps(units.steps_to_epochs(count, per), per) == pytest.approx(count, rel=1e-15)
    assert units.tokens_to_steps(units.steps_to_tokens(count, per), per) == pytest.approx(count, rel=1e-15)


@given(FRACTIONS)
def test_half_is_kept_after_a_half_life(r: float) -> None:
    assert units.kept(r, units.half_life(r)) == pytest.approx(0.5, rel=1e-12)


def test_known_values() -> None:
    assert units.half_life(0.5) == 1.0
    assert units.half_life(0.75) == 0.5
    assert units.half_life(0.0) == math.inf
    assert units.timescale(0.0) == math.inf
    assert units.timescale(0.25) == 4.0
    assert units.fraction_from_half_life(math.inf) == 0.0
    assert units.fraction_from_timescale(math.inf) == 0.0
    assert units.kept(0.0, 10) == 1.0
    assert units.fraction(0.1, 0.0) == 0.0


@pytest.mark.parametrize("r", [-1e-9, 1.0, 1.5, math.nan, math.inf])
def test_a_fraction_outside_its_range_is_refused(r: float) -> None:
    for function in (units.half_life, units.timescale, check_fraction):
        with pytest.raises(UserError, match=r"must satisfy 0 <= r < 1, got"):
            function(r)
    with pytest.raises(UserError, match=r"0 <= r < 1"):
        units.kept(r, 1)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_coefficient_or_rate_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="lam must be a finite number >= 0"):
        units.fraction(value, 0.1)
    with pytest.raises(UserError, match="lr must be a finite number >= 0"):
        units.fraction(0.1, value)
    with pytest.raises(UserError, match="steps must be a finite number >= 0"):
        units.kept(0.1, value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_what_must_be_positive_is_checked(value: float) -> None:
    with pytest.raises(UserError, match="a half-life must be > 0"):
        units.fraction_from_half_life(value)
    for function, name in [
        (units.steps_to_epochs, "steps_per_epoch"),
        (units.epochs_to_steps, "steps_per_epoch"),
        (units.steps_to_tokens, "tokens_per_step"),
        (units.tokens_to_steps, "tokens_per_step"),
    ]:
        with pytest.raises(UserError, match=f"{name} must be > 0"):
            function(1.0, value)


@pytest.mark.parametrize(("batch", "reference", "name"), [(math.inf, 1, "batch"), (1, math.inf, "reference_batch")])
def test_batch_sizes_are_finite(batch: float, reference: float, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be a finite number > 0, got inf"):
        units.batch_scaled(0.1, batch, reference)


def test_the_boundaries() -> None:
    with pytest.raises(UserError, match="erases the weight in one step"):
        units.fraction_from_half_life(0.01)
    with pytest.raises(UserError, match=r"a time scale must be > 1 step, got 1\.0"):
        units.fraction_from_timescale(1.0)
    with pytest.raises(UserError, match="a time scale must be > 1 step, got nan"):
        units.fraction_from_timescale(math.nan)
    with pytest.raises(UserError, match=r"lam \* lr = 10\.0 \* 0\.1 = 1\.0 is not below 1"):
        units.fraction(10.0, 0.1)


@pytest.mark.parametrize("value", ["0.1", b"1", [0.1], None, True, False, torch.tensor(True)], ids=repr)
def test_what_is_no_number_is_refused(value: Any) -> None:
    named: Any = "" if value is None else value  # None is a setting of its own there
    message = f"must be a number, got ({re.escape(repr(value))}|{re.escape(repr(named))})$"
    for call in (
        lambda: halflife.Constant(named),
        lambda: units.half_life(value),
        lambda: units.fraction(lam=value, lr=1.0),
        lambda: units.fraction_from_timescale(value),
        lambda: halflife.HalfLife(steps=named),
        lambda: halflife.schedules.until(value),
        lambda: halflife.convert(value, from_="constant", to="half-life"),
    ):
        with pytest.raises(UserError, match=message):
            call()
