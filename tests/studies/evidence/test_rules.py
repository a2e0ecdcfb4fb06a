"""Rules as data: outcomes from intervals, words and digests from the same values, premises, several arms at once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.choice import Side, chosen, contrast_interval
from halflife.studies.evidence.claims import Arm, Claim, Preset, presets
from halflife.studies.evidence.quantities import Best, Each, Measure, NotMeasuredError, Quantity, Reading, mean_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise, Rule, can_be_measured
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval, seeds_to_decide
from halflife.studies.evidence.tests import (
    Test,
    above,
    below,
    differs,
    exceeds,
    lowered,
    within,
    within_factor,
)
from halflife.studies.specs import ImageRun, TextBranch, TextRun

SIZE = 8


class MadeUp:
    """Results with given values: by arm and name, shape (S,) or (S, N)."""

    def __init__(self, **values: Any) -> None:
        self.values = {name: np.asarray(found, dtype=np.float64) for name, found in values.items()}

    def seeds(self, size: int) -> list[int]:
        return list(range(len(next(iter(self.values.values())))))

    def spec(self, key: str, size: int) -> ImageRun:
        return ImageRun(lr=0.1, lam=0.01, num_epochs=7)

    def read(self, key: str, name: str, size: int, *, epoch: Any = None, step: Any = None) -> NDArray[np.float64]:
        assert size == SIZE
        place = "" if epoch is None and step is None else f"_{epoch if step is None else step}"
        return self.values[f"{key}_{name}{place}"]


def made_up(**values: Any) -> Results:
    return cast("Results", MadeUp(**values))


def quantity(name: str = "a_x", **fields: Any) -> Quantity:
    arm, reading = name.split("_")
    return Quantity(name=f"x of {arm}", values=Reading(arm, reading), **fields)


# ---- tests of intervals, against the words of their definitions by a scalar loop over a grid of ends

ENDS = [-2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0, 2.0]
INTERVALS = [(low, high) for low, high in itertools.product(ENDS, ENDS) if low < high]
DEFINITIONS: dict[str, tuple[Test, Callable[[float, float], tuple[bool, bool]]]] = {
    "above": (above(0.5), lambda low, high: (low > 0.5, high < 0.5)),
    "below": (below(0.5), lambda low, high: (high < 0.5, low > 0.5)),
    "within": (within(0.5, around=0.1), lambda low, high: (low > -0.4 and high < 0.6, low > 0.6 or high < -0.4)),
    "lowered": (lowered(0.5), lambda low, high: (high < 0, high >= 0 and low > -0.5)),
    "differs": (differs(0.5), lambda low, high: (low > 0 or high < 0, low <= 0 <= high and low > -0.5 and high < 0.5)),
    "exceeds": (exceeds(0.5), lambda low, high: (low > 0.5 or high < -0.5, low > -0.5 and high < 0.5)),
    "within_factor": (within_factor(2.0), lambda low, high: (low > 0.5 and high < 2, low > 2 or high < 0.5)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_test_is_its_definition(name: str) -> None:
    test, definition = DEFINITIONS[name]
    for low, high in INTERVALS:
        holds, fails = definition(low, high)
        expected = "holds" if holds else "fails" if fails else "open"
        assert test.outcome(Interval((low + high) / 2, low, high, 3)) == expected, (low, high)


@given(low=st.floats(-3, 3), width=st.floats(0.001, 3), name=st.sampled_from(sorted(DEFINITIONS)))
def test_a_wider_interval_never_decides_the_other_way(low: float, width: float, name: str) -> None:
    test = DEFINITIONS[name][0]
    narrow = test.outcome(Interval(low, low, low + width, 3))
    wide = test.outcome(Interval(low, low - 1, low + width + 1, 3))
    if {narrow, wide} == {"holds", "fails"}:
        # Only where "fails" asks that it does not hold: what is clearly off 0 can, vaguely, still be small.
        assert name in {"lowered", "differs"}
        assert narrow == "holds"


@pytest.mark.parametrize("test", [DEFINITIONS[name][0] for name in DEFINITIONS], ids=list(DEFINITIONS))
def test_bounds_are_where_the_outcome_changes(test: Test) -> None:
    assert test.bounds == tuple(sorted(set(test.bounds)))
    for bound in test.bounds:
        beside = {test.outcome(Interval(bound, bound + d - 1e-9, bound + d + 1e-9, 3)) for d in (-1e-6, 1e-6)}
        # 0 of "lowered" and "differs" is a bound of what holds, and inside it of what fails.
        assert len(beside) == 2 or 0.0 in test.bounds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: within(0.0), "the margin is 0.0, expected a number > 0"),
        (lambda: within(float("nan")), "the margin is nan, expected a number > 0"),
        (lambda: within_factor(1.0), "the factor is 1.0, expected a number > 1"),
        (
            lambda: within_factor(1.1, around=-1.0),
            "the value that a ratio is compared with is -1.0, expected a number > 0",
        ),
        (lambda: lowered(-0.5), "the smallest improvement is -0.5, expected a number > 0"),
        (lambda: differs(0.0), "the margin is 0.0"),
        (lambda: exceeds(0.0), "the margin is 0.0"),
        (lambda: Rule(parts=()), "a rule has 0 parts and shows number 0, expected at least one part"),
        (lambda: Rule(parts=((quantity(), above()),), effect=1), "a rule has 1 parts and shows number 1"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make()


# ---- quantities

SEEDS, EXAMPLES = 4, 30
A = np.random.default_rng(0).normal(2, 0.1, (SEEDS, EXAMPLES))
B = np.random.default_rng(1).normal(1, 0.1, (SEEDS, EXAMPLES))
C = np.random.default_rng(2).normal(5, 0.1, SEEDS)


def test_the_algebra_is_numpys() -> None:
    results = made_up(a_x=A, b_x=B, c_y=C, a_x_7=2 * A, a_x_3=3 * A)
    a, b, c = Reading("a", "x"), Reading("b", "x"), Reading("c", "y")
    cases: list[tuple[Measure, NDArray[np.float64]]] = [
        (a - b, A - B),
        (a + b - 0.5 * (a - b), A + B - 0.5 * (A - B)),
        (100 * a, 100 * A),
        (a * 3 - b, 3 * A - B),
        (a / b, A / B),
        ((a - b) / b, (A - B) / B),
        (mean_of([a, b, a]), (2 * A + B) / 3),
        (c, C),
        (Reading("a", "x", lambda spec: spec.num_epochs) - Reading("a", "x", step=3), 2 * A - 3 * A),
    ]
    for measure, expected in cases:
        np.testing.assert_allclose(measure(results, SIZE), expected, rtol=1e-12)


def test_a_quantity_has_the_interval_of_its_shape() -> None:
    results = made_up(a_x=A, c_y=C)
    assert quantity("a_x").interval(results, SIZE, 0.95) == crossed_interval(A)
    assert quantity("c_y").interval(results, SIZE, 0.9) == seed_interval(C, 0.9)
    logs = quantity("c_y", log=True).interval(results, SIZE, 0.9)
    expected = seed_interval(np.log(C), 0.9)
    assert (logs.low, logs.high) == (np.exp(expected.low), np.exp(expected.high))


def test_the_best_is_a_side_of_a_contrast() -> None:
    rng = np.random.default_rng(3)
    blocks = {f"{arm}_w": 5 + rng.normal(0, 0.1, (4, 6)) for arm in "abc"}
    losses = {f"{arm}_v": 5 + rng.normal(0, 0.1, 4) for arm in "abc"}
    results = made_up(**blocks, **losses)
    (a, b, c), (va, vb) = blocks.values(), (losses["a_v"], losses["b_v"])
    best = Best(("a", "b"), "w")
    np.testing.assert_array_equal(best(results, SIZE), chosen(Side(values=np.array([a, b]))))
    cases = [
        (
            Quantity(name="q", values=best - Reading("c", "w")),
            [Side(values=np.array([a, b])), Side(values=c[None], weight=-1)],
        ),
        (
            Quantity(name="q", values=0.5 * Best(lambda r, s: ("a", "b"), "w", lowest=False)),
            [Side(values=np.array([a, b]), weight=0.5, lowest=False)],
        ),
        (
            Quantity(name="q", values=best / Reading("c", "w"), log=True),
            [
                Side(values=np.log([a, b]), scores=np.array([a, b])),
                Side(values=np.log(c)[None], weight=-1),
            ],
        ),
        (
            Quantity(name="q", values=Best(("a", "b"), "w", by="v") - Reading("c", "w")),
            [Side(values=np.array([a, b]), scores=np.array([va, vb])), Side(values=c[None], weight=-1)],
        ),
    ]
    for found, sides in cases:
        expected = contrast_interval(sides, confidence=0.9)
        expected = expected.exp() if found.log else expected
        assert found.interval(results, SIZE, 0.9) == expected


@pytest.mark.parametrize(
    ("values", "fields", "error", "message"),
    [
        (np.ones((3, 4, 2)), {}, UserError, r"has values of shape \(3, 4, 2\), expected one row for each of 3 seeds"),
        (np.ones(5), {}, UserError, r"has values of shape \(5,\), expected one row for each of 3 seeds"),
        (np.float64(2.0), {}, UserError, r"has values of shape \(\), expected one row"),
        ([1.0, np.nan, 2.0], {}, UserError, "x of q has a value that is not finite"),
        ([1.0, np.inf, 2.0], {}, UserError, "x of q has a value that is not finite"),
        ([1.0, 0.0, 2.0], {"log": True}, NotMeasuredError, "x of q is not above 0 in every seed"),
    ],
)
def test_values_of_another_shape_or_none_are_refused(
    values: Any, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    bad = Quantity(name="x of q", values=lambda results, size: values, **fields)
    with pytest.raises(error, match=message):
        bad.interval(made_up(a_x=np.ones(3)), SIZE, 0.95)


def test_a_ratio_over_zero_is_not_measured() -> None:
    with pytest.raises(NotMeasuredError, match="the denominator of a ratio is 0 in some seed"):
        (Reading("a", "x") / Reading("b", "x"))(made_up(a_x=[1.0, 1.0], b_x=[1.0, 0.0]), SIZE)


@pytest.mark.parametrize("measure", [Reading("a", "x") - Reading("b", "x"), Reading("a", "x") / Reading("b", "x")])
@pytest.mark.parametrize("other", [np.ones((3, 5)), np.ones((2, 4)), np.ones(4)])
def test_operands_with_other_examples_or_seeds_are_refused(measure: Measure, other: NDArray[np.float64]) -> None:
    with pytest.raises(
        UserError, match=r"values of the shapes .*\(3, 4\).*, expected the same seeds and the same examples in"
    ):
        measure(made_up(a_x=np.ones((3, 4)), b_x=other), SIZE)


def test_a_number_per_seed_counts_for_each_example_even_where_there_are_as_many() -> None:
    examples, seeds = np.arange(9.0).reshape(3, 3), np.array([1.0, 10.0, 100.0])
    results = made_up(a_x=examples, b_x=seeds)
    np.testing.assert_array_equal((Reading("a", "x") - Reading("b", "x"))(results, SIZE), examples - seeds[:, None])
    np.testing.assert_array_equal((Reading("a", "x") / Reading("b", "x"))(results, SIZE), examples / seeds[:, None])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda results, size: np.ones(3) / 0.0, "q has a value that is not finite"),
        (
            lambda results, size: [1 / 0, 1.0, 1.0],
            r"q cannot be computed \(.*division by zero\): a reading is damaged, arms",
        ),
        (
            lambda results, size: np.array([[1.0], [1.0, 2.0], [1.0]]),
            r"q cannot be computed \(.*inhomogeneous.*\): a reading",
        ),
        (
            lambda results, size: np.linalg.inv(np.zeros((3, 3)))[0],
            r"q cannot be computed \(Singular matrix\): a reading is",
        ),
        (lambda results, size: np.array([1e300, -1e300, 1e299]), "q has no finite interval: a reading is damaged"),
    ],
)
def test_what_cannot_be_computed_is_one_sentence(values: Any, message: str) -> None:
    results = made_up(a_x=np.ones(3))
    with pytest.raises(UserError, match=message):
        Quantity(name="q", values=values).interval(results, SIZE, 0.95)


def test_a_premise_that_cannot_be_computed_is_one_sentence() -> None:
    def problem(results: Results, size: int) -> str:
        raise ZeroDivisionError("float division by zero")

    rule = Rule(parts=((quantity("a_x"), above(0)),), given=(Premise("it is so", problem),))
    with pytest.raises(UserError, match=r"whether it is so cannot be computed \(float division by zero\): a reading"):
        rule.decide(made_up(a_x=np.ones(3)), SIZE)


def test_a_choice_that_no_interval_would_count_is_refused() -> None:
    best, one = Best(("a", "b"), "x"), Reading("a", "x")
    results = made_up(a_x=[1.0, 2.0, 3.0], b_x=[1.5, 1.6, 1.7])
    for values in (best - 0.5 * one, -1.0 * best):
        with pytest.raises(UserError, match="logarithm of a sum or a difference with a best of several in it"):
            Quantity(name="q", values=values, log=True).interval(results, SIZE, 0.95)
    with pytest.raises(UserError, match=r"a ratio with a best of several in it, .* say log=True"):
        Quantity(name="q", values=best / one).interval(results, SIZE, 0.95)
    plain, percent = (
        Quantity(name="q", values=values, log=True).interval(results, SIZE, 0.95)
        for values in (best / one, 100 * best / one)
    )
    assert (percent.estimate, percent.low, percent.high) == pytest.approx(
        tuple(100 * end for end in (plain.estimate, plain.low, plain.high))
    )


def test_what_cannot_be_measured_is_a_premise_in_words() -> None:
    ratio = Reading("a", "x") / Reading("b", "x")
    rule = Rule(
        parts=((Quantity(name="q", values=ratio), above(0)),), given=(can_be_measured("b is not 0 in any seed", ratio),)
    )
    assert "Tested only where b is not 0 in any seed." in rule.words
    assert rule.decide(made_up(a_x=HIGH, b_x=HIGH), SIZE).outcome == "reproduced"
    finding = rule.decide(made_up(a_x=HIGH, b_x=[1.0, 0.0, 1.0]), SIZE)
    assert (finding.outcome, finding.reason) == ("not tested", "the denominator of a ratio is 0 in some seed")


# ---- rules

HIGH, LOW, WIDE = [1.0, 1.01, 1.02], [-1.0, -1.01, -1.02], [-1.0, 0.0, 1.6]
POSITIVE = Rule(parts=((quantity("a_x", unit="points"), above(0)),))
TWO = Rule(parts=((quantity("a_x"), above(0)), (quantity("b_x"), above(0))))
GIVEN = Rule(parts=((quantity("a_x"), above(0)),), given=((quantity("b_x"), above(0)),))
STAKE = Rule(parts=((quantity("a_x"), within(1.5)),), stake=((quantity("b_x"), exceeds(0.5)),))


@pytest.mark.parametrize(
    ("rule", "a", "b", "outcome"),
    [
        (POSITIVE, HIGH, LOW, "reproduced"),
        (POSITIVE, LOW, LOW, "not reproduced"),
        (POSITIVE, WIDE, LOW, "undecided"),
        (TWO, HIGH, HIGH, "reproduced"),
        (TWO, HIGH, WIDE, "undecided"),
        (TWO, WIDE, LOW, "not reproduced"),
        (GIVEN, HIGH, HIGH, "reproduced"),
        (GIVEN, HIGH, WIDE, "not tested"),
        (GIVEN, HIGH, LOW, "not tested"),
        (GIVEN, LOW, LOW, "not tested"),
        (GIVEN, LOW, HIGH, "not reproduced"),
        (STAKE, HIGH, HIGH, "reproduced"),
        (STAKE, HIGH, [0.0, 0.01, 0.02], "not tested"),
        (STAKE, [5.0, 5.01, 5.02], [0.0, 0.01, 0.02], "not reproduced"),
        (STAKE, WIDE, [0.0, 0.01, 0.02], "undecided"),
    ],
)  # fmt: skip
def test_a_rule_decides(rule: Rule, a: list[float], b: list[float], outcome: str) -> None:
    found = rule.decide(made_up(a_x=a, b_x=b), SIZE)
    assert found.outcome == outcome
    assert found.effect == quantity("a_x").interval(made_up(a_x=a), SIZE, rule.parts[0][1].confidence)
    shown = found.rows[0].outcome
    assert bool(found.reason) == (
        outcome in {"undecided", "not tested"} or (outcome == "not reproduced" and shown != "fails")
    )
    assert [row.role for row in found.rows] == ["part"] * len(rule.parts) + ["given"] * len(rule.given) + [
        "stake"
    ] * len(rule.stake)


def test_the_reason_says_what_is_in_the_way() -> None:
    undecided = POSITIVE.decide(made_up(a_x=WIDE), SIZE)
    assert undecided.effect is not None
    half = (undecided.effect.high - undecided.effect.low) / 2
    seeds = seeds_to_decide(undecided.effect, lambda i: above(0).outcome(i) != "open")
    assert undecided.reason == (
        f"x of a is known to +-{half:.3g} points; {seeds} seeds would decide if estimate and spread stayed"
    )
    untested = GIVEN.decide(made_up(a_x=HIGH, b_x=LOW), SIZE)
    assert untested.reason.startswith(
        "the premise does not hold: x of b must lie above 0, and its 95 % interval is [-1.0"
    )


def test_a_part_that_fails_unseen_is_named() -> None:
    found = TWO.decide(made_up(a_x=WIDE, b_x=LOW), SIZE)
    assert (found.outcome, found.effect) == ("not reproduced", found.rows[0].interval)
    assert found.reason.startswith("x of b must lie above 0, and its 97.5 % interval is [-1.0")


def test_each_of_several_must_hold_and_the_one_that_does_not_is_shown() -> None:
    each = Each(name="x of each arm", quantities=lambda results, size: [quantity("a_x"), quantity("b_x")], unit="nats")
    rule = Rule(parts=((each, above(0)),))
    found = rule.decide(made_up(a_x=HIGH, b_x=LOW), SIZE)
    assert (found.outcome, [row.outcome for row in found.rows]) == ("not reproduced", ["holds", "fails"])
    assert found.effect == found.rows[1].interval
    assert rule.decide(made_up(a_x=HIGH, b_x=HIGH), SIZE).outcome == "reproduced"
    none = Rule(parts=((Each(name="x of each arm", quantities=lambda results, size: []), above(0)),))
    assert none.decide(made_up(a_x=HIGH), SIZE).reason == "there is no x of each arm"


def test_one_of_several_parts_fails_only_beyond_chance() -> None:
    """Of k parts one lies on the other side by chance k times as often."""
    low = [-1.0, -0.2, -0.65]
    alone, both = quantity("a_x"), quantity("b_x")
    results = made_up(a_x=low, b_x=HIGH)
    strict = seed_interval(low, 0.975)
    at = 0.5 * (seed_interval(low, 0.95).high + seed_interval(low, 0.975).high)  # between the ends of the two intervals
    assert Rule(parts=((alone, above(at)),)).decide(results, SIZE).outcome == "not reproduced"
    found = Rule(parts=((alone, above(at)), (both, above(0)))).decide(results, SIZE)
    assert (found.outcome, found.rows[0].interval) == ("undecided", strict)
    beyond = Rule(parts=((alone, above(strict.high + 0.01)), (both, above(0)))).decide(results, SIZE)
    assert (beyond.outcome, beyond.rows[0].interval) == ("not reproduced", strict)
    each = Each(name="each", quantities=(alone, both, both))
    three = Rule(parts=((each, above(at)),)).decide(results, SIZE)
    assert three.rows[0].interval == seed_interval(low, 1 - 0.05 / 3)
    assert [row.interval and row.interval.confidence for row in three.rows[1:]] == [0.95, 0.95]


def test_what_cannot_be_measured_is_not_tested() -> None:
    def broken(results: Results, size: int) -> NDArray[np.float64]:
        raise NotMeasuredError("the grid has one rate")

    rule = Rule(parts=((quantity("a_x"), above(0)), (Quantity(name="best rate", values=broken), above(0))))
    found = rule.decide(made_up(a_x=LOW), SIZE)
    assert (found.outcome, found.reason) == ("not tested", "the grid has one rate")
    assert found.effect is not None
    assert found.rows[1].interval is None


def test_a_premise_of_another_kind_has_words_and_a_problem() -> None:
    premise = Premise("the best rate is not at an edge of the grid", lambda results, size: "it is at lr 3, an edge")
    rule = Rule(parts=((quantity("a_x"), above(0)),), given=(premise,))
    found = rule.decide(made_up(a_x=HIGH), SIZE)
    assert (found.outcome, found.reason) == ("not tested", "it is at lr 3, an edge")
    assert rule.words.endswith("Tested only where the best rate is not at an edge of the grid.")
    held = dataclasses.replace(rule, given=(dataclasses.replace(premise, problem=lambda results, size: ""),))
    assert held.decide(made_up(a_x=HIGH), SIZE).outcome == "reproduced"


def test_words_say_each_part_with_its_confidence_bound_and_unit() -> None:
    rule = Rule(
        parts=(
            (quantity("a_x", unit="points"), lowered(0.5)),
            (quantity("b_x", unit="x", log=True), within_factor(1.1)),
        ),
        given=((quantity("c_x", unit="nats"), above(0.01)),),
        stake=((quantity("d_x"), exceeds(2)),),
    )
    assert rule.words == (
        "Reproduced if (1) the 95 % interval of (x of a, in points) lies below 0; (2) the 90 % interval of (x of b) lies"
        " between 0.909 and 1.1 (a factor of 1.1); not reproduced if (1) does not, and lies above -0.5 or (2) lies wholly"
        " outside (with k parts in all, its interval at a confidence of 1 - (1 - c) / k instead of c); else undecided."
        " Tested only where the 95 % interval of (x of c, in nats) lies above 0.01. Reproduced only"
        " where something is at stake: the 95 % interval of (x of d) lies further than 2 from 0."
    )


def test_a_rule_that_nothing_refutes_says_so() -> None:
    bound = dataclasses.replace(below(1), words_if_fails="", fails=())
    rule = Rule(parts=((quantity("a_x"), bound),))
    assert rule.words == (
        "Reproduced if the 95 % interval of (x of a) lies below 1; no result refutes it; else undecided."
    )
    assert rule.decide(made_up(a_x=[5.0, 5.1, 5.2]), SIZE).outcome == "undecided"


def at_drop(spec: ImageRun) -> int:
    return spec.drop_epoch


CHANGED = [
    Rule(parts=((quantity("a_x"), above(0.1)),)),
    Rule(parts=((quantity("a_x"), below(0)),)),
    Rule(parts=((quantity("b_x"), above(0)),)),
    Rule(parts=((quantity("a_x", log=True), above(0)),)),
    Rule(parts=((quantity("a_x"), dataclasses.replace(above(0), confidence=0.9)),)),
    Rule(parts=((quantity("a_x"), above(0)),), given=((quantity("a_x"), above(0)),)),
    Rule(parts=((quantity("a_x"), above(0)),), stake=((quantity("a_x"), above(0)),)),
    Rule(parts=((Quantity(name="x of a", values=Reading("a", "x", at_drop)), above(0)),)),
    Rule(parts=((Quantity(name="x of a", values=2 * Reading("a", "x")), above(0)),)),
    Rule(parts=((Quantity(name="x of a", values=functools.partial(np.ones, shape=3)), above(0)),)),
    Rule(parts=((Quantity(name="x of a", values=functools.partial(np.ones, shape=4)), above(0)),)),
]


def test_a_digest_is_the_same_for_the_same_rule_and_another_for_any_other() -> None:
    rule = Rule(parts=((quantity("a_x"), above(0)),))
    again = Rule(parts=((quantity("a_x"), above(0)),))
    assert rule.digest == again.digest
    digests = [one.digest for one in (rule, *CHANGED)]
    assert len(set(digests)) == len(digests)
    claim = Claim(key="k", text="It is so.", rule=rule)
    assert claim.digest != dataclasses.replace(claim, text="It is not so.").digest
    assert (claim.effect_name, claim.unit) == ("x of a", "")


# ---- arms and presets as data


def test_a_seed_goes_to_the_run_and_to_its_parent() -> None:
    parent = TextRun(context=6, width=8, depth=1, lr=0.01, num_steps=4, batch_size=1, keep_at=(2,))
    branch = TextBranch(of=parent, at=2, branch="tiny-lr", num_steps=3)
    arm = Arm(key="branch", label="branch", size=8, spec=branch)
    built = arm.build(5)
    assert isinstance(built, TextBranch)
    assert (built.seed, built.of.seed) == (5, 5)
    assert built == TextBranch(of=dataclasses.replace(parent, seed=5), at=2, branch="tiny-lr", num_steps=3)


def test_presets_have_defaults() -> None:
    arms = tuple(
        Arm(key=f"a{size}", label="", size=size, spec=ImageRun(lr=0.1, lam=0.0, num_epochs=2)) for size in (4, 8)
    )
    made = presets(
        smoke=Preset(description="two epochs", budget="1 s", arms=arms[:1]),
        laptop=Preset(description="all", budget="1 min", arms=arms, main_size=8),
    )
    assert list(made) == ["smoke", "laptop"]
    smoke, laptop = made.values()
    assert (smoke.num_seeds, smoke.main_size, smoke.decides) == (2, 4, False)
    assert smoke.description == "two epochs: shows that everything works, not what is true"
    assert (laptop.num_seeds, laptop.main_size, laptop.num_ladder_seeds, laptop.decides) == (5, 8, 3, True)
