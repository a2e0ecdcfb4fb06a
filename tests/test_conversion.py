"""Conversions against formulas written out here, against the rules, and against torch's own optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import convert, rules, units
from halflife.conversion import _UNDEFINED, LAWS
from halflife.errors import UserError
from halflife.rules import Rule, StepInfo
from halflife.rules.registry import law_name, law_names
from halflife.schedules import cosine, linear, warmup
from halflife.selfcheck import rules as table_of_rules

NUMBERS: dict[str, Any] = {"peak_lr": 6e-4, "momentum": 0.9, "dampening": 0.2, "total_steps": 5000}
ADAM: dict[str, Any] = {**NUMBERS, "momentum": None, "grad_rms": 0.003}

# The fraction at the peak for the value 0.04 (4000 for the time scales), worked out by hand.
FRACTIONS: dict[str, Callable[[float, dict[str, Any]], float]] = {
    "decoupled": lambda lam, n: n["peak_lr"] * lam,
    "independent": lambda lam, n: lam,
    "constant": lambda lam, n: lam,
    "corrected": lambda lam, n: n["peak_lr"] ** 2 / n["peak_lr"] * lam,
    "normalized": lambda lam, n: lam / n["total_steps"] ** 0.5,
    "stable": lambda lam, n: n["peak_lr"] * lam / n["grad_rms"],
    "half-life": lambda lam, n: 1 - 0.5 ** (1 / lam),
    "timescale": lambda lam, n: 1 / lam,
}
PAIRS = [(one, other) for one in FRACTIONS for other in FRACTIONS]


def value_for(law: str, r: float, numbers: dict[str, Any]) -> float:
    """The value of a law whose fraction at the peak is r, by bisection of the formula above."""
    low, high = 1e-12, 1e12
    rising = FRACTIONS[law](2.0, numbers) < FRACTIONS[law](3.0, numbers)
    for _ in range(200):
        middle = math.sqrt(low * high)
        if (FRACTIONS[law](middle, numbers) < r) == rising:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def test_every_law_is_covered() -> None:
    here, in_the_table_of_rules = (
        {*FRACTIONS, "l2"},
        {law_name(row.rule) for row in table_of_rules.RULES if hasattr(row, "rule")},
    )
    assert here <= set(LAWS) <= here | in_the_table_of_rules  # a new law has its formula there
    assert set(law_names()) == set(LAWS) - {"timescale"} | {law for law in _UNDEFINED if law != "l2-preconditioned"}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_fraction_at_the_peak_stays(source: str, target: str) -> None:
    r = 3e-4
    lam = value_for(source, r, ADAM)
    converted = convert(lam, from_=source, to=target, **ADAM)
    assert converted == pytest.approx(value_for(target, r, ADAM), rel=1e-9)


@given(
    st.sampled_from(LAWS),
    st.sampled_from(LAWS),
    st.sampled_from(LAWS),
    st.floats(1e-12, 0.5),
    st.floats(1e-6, 10.0),
    st.floats(0.0, 0.999),
    st.integers(1, 10**7),
)
def test_round_trip_and_transitivity(
    one: str, two: str, three: str, r: float, peak_lr: float, momentum: float, total_steps: int
) -> None:
    numbers: dict[str, Any] = {"peak_lr": peak_lr, "momentum": momentum, "total_steps": total_steps}
    lam = convert(r, from_="constant", to=one, **numbers)
    there = convert(lam, from_=one, to=two, **numbers)
    assert convert(there, from_=two, to=one, **numbers) == pytest.approx(lam, rel=1e-11)
    by_way_of_two = convert(there, from_=two, to=three, **numbers)
    assert by_way_of_two == pytest.approx(convert(lam, from_=one, to=three, **numbers), rel=1e-11)


@given(st.floats(1e-9, 10.0), st.floats(1e-9, 0.09))
def test_agrees_with_units(lam: float, lr: float) -> None:
    r = units.fraction(lam, lr)
    assert convert(lam, from_="decoupled", to="constant", peak_lr=lr) == pytest.approx(r, rel=1e-15)
    assert convert(lam, from_="decoupled", to="half-life", peak_lr=lr) == pytest.approx(units.half_life(r), rel=1e-15)
    assert convert(lam, from_="decoupled", to="timescale", peak_lr=lr) == pytest.approx(units.timescale(r), rel=1e-15)


RULES: dict[str, Callable[[float], Rule]] = {
    "decoupled": rules.Decoupled,
    "independent": rules.Independent,
    "constant": rules.Constant,
    "corrected": rules.Corrected,
    "normalized": lambda lam: rules.Normalized(lam, steps=300),
    "half-life": lambda lam: rules.HalfLife(steps=lam),
}
SCHEDULES = [cosine(1.0, 0.0, 300), linear(1.0, 0.1, 250), warmup(300)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("source", "target"), [(one, other) for one in RULES for other in RULES if one != other])
def test_with_a_schedule_the_sum_over_the_run_stays(source: str, target: str, schedule: Callable[[int], float]) -> None:
    peak_lr = 0.02

    def total(law: str, lam: float) -> float:
        infos = [StepInfo(lr=peak_lr * schedule(t), peak_lr=peak_lr, step=t) for t in range(300)]
        return math.fsum(float(RULES[law](lam).fraction(info)) for info in infos)

    lam = convert(1e-3, from_="independent", to=source, peak_lr=peak_lr, total_steps=300)
    converted = convert(lam, from_=source, to=target, peak_lr=peak_lr, total_steps=300, schedule=schedule)
    assert total(target, converted) == pytest.approx(total(source, lam), rel=1e-9)


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.5), (0.9, 0.0), (0.9, 0.5)])
def test_l2_shrinks_like_torch_in_the_long_run(momentum: float, dampening: float) -> None:
    # Without gradients a weight shrinks by a constant factor per step once the momentum has filled up.
    lr, lam = 0.01, 1e-3
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr, momentum=momentum, dampening=dampening, weight_decay=lam)
    norms = []
    for _ in range(400):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        norms.append(weight.item())
    r = 1.0 - (norms[-1] / norms[199]) ** (1 / 200)
    numbers: dict[str, Any] = {"peak_lr": lr, "momentum": momentum, "dampening": dampening}
    assert convert(lam, from_="l2", to="constant", **numbers) == pytest.approx(r, rel=2e-3)
    assert convert(lam, from_="stable", to="constant", **numbers) == pytest.approx(r, rel=2e-3)
    decoupled = convert(lam, from_="l2", to="decoupled", **numbers)
    assert decoupled == pytest.approx(r / lr, rel=2e-3)


def test_known_values() -> None:
    assert convert(0.1, from_="decoupled", to="independent", peak_lr=6e-4) == pytest.approx(6e-5, rel=1e-15)
    # Loshchilov and Hutter: 0.025 at batch 128, 50000 points, 100 epochs is 1.26e-4 per step.
    steps = 50_000 / 128 * 100
    assert convert(0.025, from_="normalized", to="independent", total_steps=steps) == pytest.approx(1.265e-4, rel=1e-3)
    # SWD: lam 5e-4 at sqrt(v) = 1e-3 is an AdamW of 0.5.
    assert convert(5e-4, from_="stable", to="decoupled", peak_lr=1e-3, grad_rms=1e-3) == pytest.approx(0.5)
    for rms in (1e-200, 1e200):  # their squares are no floats
        assert convert(rms, from_="stable", to="decoupled", peak_lr=1e-3, grad_rms=rms) == pytest.approx(1.0)
    # Laws that follow lr in the same power need no schedule's length.
    assert convert(0.5, from_="stable", to="decoupled", peak_lr=0.5, momentum=0.0, schedule=cosine(1, 0, 5)) == 0.5
    assert convert(0.0, from_="decoupled", to="half-life", peak_lr=1e-3) == math.inf
    assert convert(math.inf, from_="half-life", to="decoupled", peak_lr=1e-3) == 0.0
    assert convert(0.3, from_="decoupled", to="decoupled", peak_lr=1e-3) == 0.3


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lam": 0.1, "from_": "adamw", "to": "decoupled"}, r"unknown law 'adamw'; expected one of decoupled, independent"),
    ({"lam": 0.1, "from_": "decoupled", "to": "weight_decay"}, r"unknown law 'weight_decay'"),
    ({"lam": 0.1, "from_": "decoupled", "to": "constant"}, r"needs peak_lr=, the largest learning rate of the run"),
    ({"lam": 0.1, "from_": "l2", "to": "decoupled", "peak_lr": 0.1}, r"needs momentum=, that of SGD, 0 without"),
    ({"lam": 0.1, "from_": "l2-preconditioned", "to": "decoupled", "peak_lr": 0.1}, r"coordinate by coordinate"),
    ({"lam": 0.1, "from_": "decoupled", "to": "stable", "peak_lr": 0.1}, r"depends on the gradients: give grad_rms="),
    ({"lam": 0.1, "from_": "stable", "to": "decoupled", "peak_lr": 0.1, "grad_rms": 1, "momentum": 0.9}, r"not both"),
    ({"lam": 0.1, "from_": "decoupled", "to": "sphere", "peak_lr": 0.1}, r"'sphere' cannot be converted: it projects"),
    ({"lam": 0.1, "from_": "decoupled", "to": "norm-target", "peak_lr": 0.1}, r"it has no coefficient"),
    ({"lam": 0.1, "from_": "cautious", "to": "decoupled", "peak_lr": 0.1}, r"convert the lam of the rule inside it"),
    ({"lam": 0.1, "from_": "scheduled", "to": "decoupled"}, r"changes with the step"),
    ({"lam": 0.1, "from_": "toward", "to": "decoupled"}, r"the distance to a reference"),
    ({"lam": 0.1, "from_": "per-group", "to": "decoupled"}, r"each parameter group has a rule of its own"),
    ({"lam": True, "from_": "constant", "to": "decoupled"}, r"lam must be a number, got True"),
    ({"lam": 0.1, "from_": "normalized", "to": "constant"}, r"needs total_steps="),
    ({"lam": 0.1, "from_": "normalized", "to": "constant", "total_steps": 0.5}, r"total_steps must be >= 1, got 0\.5"),
    ({"lam": 0.1, "from_": "decoupled", "to": "constant", "peak_lr": 0.0}, r"peak_lr must be > 0, got 0\.0"),
    ({"lam": 0.1, "from_": "decoupled", "to": "constant", "peak_lr": math.nan}, r"peak_lr must be a finite number"),
    (
        {"lam": 0.1, "from_": "l2", "to": "constant", "peak_lr": 1, "momentum": 1.0},
        r"momentum must be below 1, got 1\.0",
    ),
    (
        {"lam": 0.1, "from_": "l2", "to": "constant", "peak_lr": 1, "momentum": -0.1},
        r"momentum must be a finite number",
    ),
    (
        {"lam": -0.1, "from_": "constant", "to": "decoupled", "peak_lr": 0.1},
        r"lam must be a finite number >= 0, got -0\.1",
    ),
    ({"lam": math.nan, "from_": "constant", "to": "timescale"}, r"lam must be a finite number >= 0, got nan"),
    ({"lam": 20.0, "from_": "decoupled", "to": "constant", "peak_lr": 0.1}, r"0 <= r < 1, got 2\.0"),
    ({"lam": 0.0, "from_": "half-life", "to": "constant"}, r"a half-life must be > 0"),
    (
        {"lam": 0.1, "from_": "constant", "to": "independent", "schedule": cosine(1, 0, 10)},
        r"needs total_steps=, the number of steps that the schedule is for",
    ),
    (
        {"lam": 0.1, "from_": "constant", "to": "independent", "schedule": lambda t: 0.0, "total_steps": 3},
        r"the sum of the schedule over the run must be > 0",
    ),
    (
        {"lam": 0.1, "from_": "constant", "to": "independent", "schedule": lambda t: -1.0, "total_steps": 3},
        r"the schedule must be a finite number >= 0, got -1\.0",
    ),
    (
        {"lam": 0.1, "from_": "constant", "to": "independent", "schedule": lambda t: 1.0, "total_steps": 1e9},
        r"1000000000 steps are too many",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_cannot_be_converted_is_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(**arguments)


@settings(max_examples=30)
@given(st.sampled_from([law for law in LAWS if law not in {"half-life", "timescale"}]), st.floats(0.0, 1e-3))
def test_coefficients_are_linear(law: str, lam: float) -> None:
    one = convert(lam, from_=law, to="constant", **NUMBERS)
    assert convert(2 * lam, from_=law, to="constant", **NUMBERS) == pytest.approx(2 * one, rel=1e-14)
