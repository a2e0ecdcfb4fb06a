"""Schedules against formulas in plain numbers, at their boundaries, and every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halflife import schedules
from halflife.errors import UserError
from halflife.schedules import after, constant, cosine, exponential, join, linear, piecewise, until, warmup
from halflife.schedules.shapes import restart_at

VALUES = st.floats(min_value=0.0, max_value=10.0)
STEPS = st.integers(min_value=1, max_value=1000)


@given(VALUES, VALUES, STEPS, st.integers(min_value=0, max_value=2000))
def test_linear_and_cosine(start: float, end: float, steps: int, t: int) -> None:
    share = min(t, steps) / steps
    assert linear(start, end, steps)(t) == pytest.approx(start * (1 - share) + end * share, abs=1e-12)
    wave = math.cos(math.pi * share / 2) ** 2  # the half-angle form of (1 + cos) / 2
    assert cosine(start, end, steps)(t) == pytest.approx(start * wave + end * (1 - wave), abs=1e-12)
    for schedule in (linear(start, end, steps), cosine(start, end, steps)):
        assert min(start, end) - 1e-12 <= schedule(t) <= max(start, end) + 1e-12
        assert schedule(0) == pytest.approx(start, abs=1e-14)
        assert schedule(steps) == end


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(0.5), {0: 0.5, 10**9: 0.5}),
        (until(3), {0: 1.0, 2: 1.0, 3: 0.0}),
        (until(0), {0: 0.0}),
        (after(3), {0: 0.0, 2: 0.0, 3: 1.0}),
        (after(0), {0: 1.0}),
        (warmup(4), {0: 0.0, 1: 0.25, 4: 1.0, 5: 1.0}),
        (piecewise((1.0, 2.0, 0.0), (5, 7)), {0: 1.0, 4: 1.0, 5: 2.0, 6: 2.0, 7: 0.0}),
        (piecewise((3.0,), ()), {0: 3.0}),
        (join((warmup(2), until(3)), (10,)), {0: 0.0, 1: 0.5, 9: 1.0, 10: 1.0, 12: 1.0, 13: 0.0}),
    ],
)
def test_values_at_the_boundaries(schedule: Callable[[int], float], expected: dict[int, float]) -> None:
    assert {t: schedule(t) for t in expected} == expected


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), STEPS, st.integers(min_value=0, max_value=2000))
def test_exponential_multiplies_by_the_same_factor_at_each_step(start: float, end: float, steps: int, t: int) -> None:
    schedule = exponential(start, end, steps)
    log = math.log(start) + (math.log(end) - math.log(start)) * min(t, steps) / steps
    assert schedule(t) == pytest.approx(math.exp(log), rel=1e-9)
    assert schedule(0) == start
    assert schedule(steps) == end
    if t + 2 <= steps:
        assert schedule(t + 1) / schedule(t) == pytest.approx(schedule(t + 2) / schedule(t + 1), rel=1e-9)


def test_exponential_is_torchs_scheduler() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.97)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [0.1 * exponential(1.0, 0.97**200, 200)(t) for t in range(20)] == pytest.approx(found, rel=1e-9)


def test_exponential_of_extreme_numbers_stays_a_number() -> None:
    assert exponential(1e300, 1e-300, 4)(2) == pytest.approx(1.0)
    assert exponential(1e-300, 1e300, 4)(2) == pytest.approx(1.0)


def test_a_schedule_is_written_as_the_call_that_makes_it() -> None:
    early = join((warmup(2), cosine(1, 0.5, 7)), [10])
    expected = "join([warmup(2), cosine(1.0, 0.5, 7)], [10])"
    assert repr(early) == expected
    assert eval(expected, vars(schedules)) == early


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-1.0), "value must be a finite number >= 0"),
        (lambda: linear(math.nan, 1.0, 3), "start must be a finite number >= 0"),
        (lambda: linear(1.0, -1.0, 3), "end must be a finite number >= 0"),
        (lambda: cosine(1.0, math.inf, 3), "end must be a finite number >= 0"),
        (lambda: cosine(-1.0, 1.0, 3), "start must be a finite number >= 0"),
        (lambda: linear(1.0, 0.0, 0), "steps must be a whole number of steps >= 1, got 0"),
        (lambda: cosine(1.0, 0.0, 0), "steps must be a whole number of steps >= 1"),
        (lambda: exponential(1.0, 0.0, 3), "end must be > 0, got 0.0"),
        (lambda: exponential(math.inf, 1.0, 3), "start must be a finite number > 0"),
        (lambda: exponential(1.0, 0.5, 0), "steps must be a whole number of steps >= 1"),
        (lambda: warmup(0), "steps must be a whole number of steps >= 1"),
        (lambda: until(-1), "step must be a whole number of steps >= 0, got -1"),
        (lambda: after(1.5), "step must be a whole number of steps >= 0, got 1.5"),  # type: ignore[arg-type]  # on purpose
        (lambda: until(math.nan), "step must be a whole number"),  # type: ignore[arg-type]  # on purpose
        (lambda: until(math.inf), "step must be a whole number"),  # type: ignore[arg-type]  # on purpose
        (lambda: piecewise((1.0, 2.0), (5, 7)), "one value more than boundaries, got 2 values and 2"),
        (lambda: piecewise((1.0, -2.0), (5,)), "a value must be a finite number >= 0"),
        (lambda: piecewise((1.0, 2.0, 3.0), (5, 5)), r"boundaries must increase strictly, got \(5, 5\)"),
        (lambda: join((until(1),), (5,)), "one schedule more than boundaries, got 1 schedules and 1"),
        (lambda: join((1.0, until(1)), (5,)), r"expected a schedule, got 1\.0"),  # type: ignore[arg-type]  # on purpose
        (lambda: join((until, until(1)), (5,)), "expected a schedule, got <class"),  # type: ignore[arg-type]  # on purpose
    ],
)  # fmt: skip
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("steps", "factor", "step"), [(10, 1 + 1e-7, 10**30), (1, 1 + 1e-12, 10**7), (3, 1.001, 10**12)]
)
def test_restarts_by_the_million_take_no_time(steps: int, factor: float, step: int) -> None:
    since, length = restart_at(step, steps, factor)
    assert 0 <= since < length
    assert length == pytest.approx(
        steps + step * (factor - 1.0), rel=max(1e-6, factor - 1.0)
    )  # as a geometric sum says


def test_periods_that_are_jumped_over_end_where_counted_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [restart_at(step, 3, 1.01) for step in range(0, 90_000, 1_234)]
    monkeypatch.setattr("halflife.schedules.shapes.MANY", 5)
    assert [restart_at(step, 3, 1.01) for step in range(0, 90_000, 1_234)] == [pytest.approx(pair) for pair in counted]
