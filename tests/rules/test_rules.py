"""The rules as functions of plain numbers: formula, range, description, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import UserError
from halflife.numbers import check_fraction
from halflife.rules import (
    L2,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    Normalized,
    PerGroup,
    Rule,
    Scheduled,
    Stable,
    StepInfo,
)
from halflife.schedules import constant, until
from halflife.selfcheck.rules import FormulaCase
from tests.oracles.cases import FORMULAS


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.name)
@given(
    peak=st.floats(min_value=1e-6, max_value=0.3),
    share=st.floats(min_value=1e-6, max_value=1.0),
    own=st.floats(min_value=1e-6, max_value=0.4),
    step=st.integers(min_value=0, max_value=20),
    group=st.integers(min_value=0, max_value=1),
)
def test_a_rule_answers_its_formula(
    case: FormulaCase, peak: float, share: float, own: float, step: int, group: int
) -> None:
    lr = peak * share
    info = StepInfo(lr=lr, lam=own, step=step, peak_lr=peak, group=group, **case.numbers)
    r = case.rule.fraction(info)
    assert r == pytest.approx(case.formula(lr, peak, own, step, group), rel=1e-12, abs=1e-300)
    assert 0.0 <= r < 1.0


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.name)
def test_a_rule_reads_only_what_it_says(case: FormulaCase) -> None:
    """A number that is not in ``needs`` may be unknown (NaN, or any step) without changing the answer."""
    full = {"lam": 0.2, "peak_lr": 0.5, "step": 2, "steps_per_epoch": 4.5, "tokens_per_step": 10.0}
    needed = {name: value for name, value in full.items() if name in case.rule.needs}
    assert case.rule.needs <= full.keys()
    given_all = case.rule.fraction(StepInfo(lr=0.1, **full))  # type: ignore[arg-type]  # the names are its fields
    given_needed = case.rule.fraction(StepInfo(lr=0.1, **needed))  # type: ignore[arg-type]  # the names are its fields
    assert given_all == given_needed
    if not isinstance(case.rule, PerGroup):
        for name in needed.keys() - {"step"}:
            without = {key: value for key, value in needed.items() if key != name}
            with pytest.raises(UserError):  # from the rule, or from the check of the NaN that it answers
                check_fraction(case.rule.fraction(StepInfo(lr=0.1, **without)))  # type: ignore[arg-type]  # the names are its fields


def test_every_rule_has_a_spelling_of_its_own() -> None:
    texts = [repr(case.rule) for case in FORMULAS]
    assert len(set(texts)) == len(texts)


def halve(step: int) -> float:
    return 0.5


def test_a_schedule_of_the_user_is_known_by_its_name() -> None:
    rule = Scheduled(Decoupled(0.1), halve)
    assert rule.fraction(StepInfo(lr=0.1)) == pytest.approx(0.005)
    assert repr(rule) == f"Scheduled(Decoupled(lam=0.1), {__name__}.halve)"


def test_equal_numbers_make_equal_spellings() -> None:
    assert repr(Decoupled(1)) == repr(Decoupled(1.0)) == "Decoupled(lam=1.0)"
    assert repr(HalfLife(steps=5)) == "HalfLife(steps=5.0)"


def test_l2_answers_a_coefficient() -> None:
    info = StepInfo(lr=0.1, lam=0.3, step=4)
    assert L2(0.2).coefficient(info) == 0.2
    assert L2().coefficient(info) == 0.3
    assert L2(0.2, until(4)).coefficient(info) == 0.0
    assert L2(schedule=constant(0.5)).coefficient(info) == 0.15
    assert L2().needs == {"lam"}
    assert L2(0.1, until(4)).needs == {"step"}
    assert not isinstance(L2(0.1), Rule)


LAM_RULES: list[Callable[[float], object]] = [Decoupled, Independent, Constant, Corrected, L2]


@pytest.mark.parametrize("make", LAM_RULES)
@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf])
def test_a_bad_lam_is_refused(make: Callable[[float], object], lam: float) -> None:
    with pytest.raises(UserError, match=f"lam must be a finite number >= 0, got {lam}"):
        make(lam)


@pytest.mark.parametrize("make", [Independent, Constant])
def test_a_lam_that_is_a_fraction_stays_below_one(make: Callable[[float], object]) -> None:
    make(math.nextafter(1.0, 0.0))
    with pytest.raises(UserError, match=r"is a fraction of the weight per step and must be < 1, got 1\.0"):
        make(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfLife(epochs=-1), "the half-life in epochs must be > 0"),
        (lambda: HalfLife(tokens=math.nan), "the half-life in tokens must be > 0, got nan"),
        (lambda: HalfLife(steps=0.001), "erases the weight in one step"),
        (HalfLife, r"exactly one of steps=, epochs= and tokens=, got none"),
        (lambda: HalfLife(1000), r"HalfLife got 1000 without a unit: write HalfLife\(steps=\.\.\.\), \(epochs="),  # type: ignore[call-arg]  # on purpose
        (lambda: HalfLife(10, 20), "HalfLife got 10, 20 without a unit"),  # type: ignore[call-arg]  # on purpose
        (lambda: HalfLife(steps=True), "the half-life in steps must be a number, got True"),
        (lambda: Decoupled(True), "lam must be a number, got True"),
        (lambda: Decoupled(10**400), "lam must be a number below 1.8e308, got a larger integer"),
        (lambda: Normalized(0.1, steps=True), "steps must be a number, got True"),
        (lambda: Normalized(0.1, steps=5, factor="2"), "factor must be a number, got '2'"),  # type: ignore[arg-type]  # on purpose
        (lambda: Stable(0.1, beta2=False), "beta2 must be a number, got False"),
        (lambda: until(True), "step must be a number, got True"),
        (lambda: HalfLife(steps=1, tokens=2), r"exactly one of .* got steps, tokens"),
        (lambda: Scheduled(Decoupled(0.1), 0.5), r"expected a schedule, got 0\.5"),  # type: ignore[arg-type]  # on purpose
        (lambda: L2(0.1, 0.5), r"expected a schedule, got 0\.5"),  # type: ignore[arg-type]  # on purpose
        (lambda: PerGroup([]), "one rule per parameter group, got none"),
        (lambda: PerGroup([Decoupled(0.1), 0.2]), r"PerGroup wraps a rule such as .*got 0\.2"),  # type: ignore[list-item]  # on purpose
        (
            lambda: PerGroup([Decoupled(0.1)]).fraction(StepInfo(lr=0.1, group=1)),
            "PerGroup has 1 rules, but parameter group 1 decays too",
        ),
    ],
)  # fmt: skip
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
