"""The spelling of rules and schedules: what is printed is read back, and what was printed before is still known."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import halflife
from halflife import rules, schedules
from halflife.errors import UserError
from halflife.expressions import LONGEST, build, spell
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    MovingAverage,
    Normalized,
    NormTarget,
    Part,
    PerGroup,
    Rule,
    Scheduled,
    Sphere,
    Stable,
    StepInfo,
    Toward,
    rule_from,
)
from halflife.rules.registry import (
    SCHEDULES,
    check_decay_text,
    law_name,
    law_names,
    part_classes,
    same_law,
    schedule_from,
)
from halflife.schedules import after, cosine, join, piecewise, product, restarts, tied_to_lr, until, warmup

# ---- the lists

BASES = {"Rule", "Applier", "Penalty", "LamRule", "Part", "StepInfo", "MovingAverage", "rule_from"}


def test_every_class_is_exported() -> None:
    assert set(part_classes()) == set(rules.__all__) - BASES
    assert set(part_classes()) <= set(halflife.__all__)
    assert set(SCHEDULES) == set(schedules.__all__) - {"Schedule"}
    for name, made in part_classes().items():
        assert getattr(halflife, name) is made


class OwnRule(Rule):
    def fraction(self, info: StepInfo) -> float:
        return 0.1


def test_the_names_of_laws() -> None:
    assert set(law_names()) >= {
        *("decoupled", "independent", "constant", "corrected", "half-life", "normalized", "stable"),
        *("norm-target", "sphere", "scheduled", "per-group", "cautious", "toward", "l2"),
    }
    assert len(law_names()) == len(part_classes())
    assert law_name(HalfLife(steps=1)) == law_name(HalfLife) == "half-life"
    assert law_name(OwnRule()) == "own-rule"
    assert "OwnRule" not in part_classes()


# ---- spelling


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decoupled(0.1), "Decoupled(lam=0.1)"),
        (Decoupled(), "Decoupled()"),
        (HalfLife(epochs=2), "HalfLife(epochs=2.0)"),
        (HalfLife(steps=math.inf), "HalfLife(steps=inf)"),
        (Stable(0.1, floor=0.0), "Stable(lam=0.1, floor=0.0)"),
        (Sphere(per="tensor"), "Sphere(per='tensor')"),
        (Cautious(Stable(0.1)), "Cautious(Stable(lam=0.1))"),
        (Toward(Decoupled(0.1), MovingAverage(0.9)), "Toward(Decoupled(lam=0.1), reference=MovingAverage(0.9))"),
        (PerGroup([L2(0.1), Constant(0.1)]), "PerGroup([L2(lam=0.1), Constant(lam=0.1)])"),
        (L2(1e-3, until(5), into="first"), "L2(lam=0.001, schedule=until(5), into='first')"),
        (Scheduled(Decoupled(0.1), tied_to_lr()), "Scheduled(Decoupled(lam=0.1), tied_to_lr())"),
        (join((warmup(2), until(3)), (2,)), "join([warmup(2), until(3)], [2])"),
        (restarts(5, 2), "restarts(5, factor=2.0)"),
    ],
    ids=repr,
)
def test_the_spelling(value: Any, text: str) -> None:
    assert repr(value) == str(value) == spell(value) == text


LAMS = st.none() | st.floats(0.0, 1e6, allow_subnormal=True)
SHARES = st.none() | st.floats(0.0, 1.0, exclude_max=True)
STEPS = st.integers(1, 10**9)
MULTIPLIERS = st.floats(0.0, 1e6)
SHAPES = st.one_of(
    st.builds(schedules.constant, MULTIPLIERS),
    st.builds(schedules.linear, MULTIPLIERS, MULTIPLIERS, STEPS),
    st.builds(cosine, MULTIPLIERS, MULTIPLIERS, STEPS),
    st.builds(schedules.exponential, st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), STEPS),
    st.builds(until, STEPS),
    st.builds(after, STEPS),
    st.builds(warmup, STEPS),
    st.builds(restarts, STEPS, st.floats(1.0, 4.0), MULTIPLIERS, MULTIPLIERS),
    st.lists(STEPS, unique=True, max_size=3).flatmap(
        lambda steps: st.builds(
            piecewise, st.lists(MULTIPLIERS, min_size=len(steps) + 1, max_size=len(steps) + 1), st.just(sorted(steps))
        )
    ),
    st.builds(schedules.warmup_stable_decay, STEPS, STEPS, STEPS, MULTIPLIERS),
)
TIMED = st.recursive(
    SHAPES,
    lambda inner: st.one_of(
        st.builds(product, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one, two, at: join((one, two), (at,)), inner, inner, STEPS),
    ),
    max_leaves=4,
)
PLAIN = st.one_of(
    st.builds(Decoupled, LAMS),
    st.builds(Independent, SHARES),
    st.builds(Constant, SHARES),
    st.builds(Corrected, LAMS),
    st.builds(Stable, LAMS, floor=st.floats(0.0, 10.0), beta2=SHARES),
    st.builds(Normalized, LAMS, steps=st.floats(1.0, 1e9) | STEPS, factor=st.none() | st.floats(1.0, 4.0)),
    st.builds(lambda h: HalfLife(steps=h), st.floats(0.1, math.inf)),
    st.builds(lambda h: HalfLife(epochs=h), st.floats(0.1, 1e6)),
    st.builds(lambda h: HalfLife(tokens=h), st.floats(0.1, 1e12)),
)
LENGTHS = st.none() | st.floats(1e-6, 1e6)
NORMS = st.builds(NormTarget, LENGTHS) | st.builds(Sphere, LENGTHS, per=st.just("tensor"))
PENALTIES = st.builds(L2, LAMS, st.none() | TIMED, into=st.sampled_from(["both", "first", "second"]))
SCHEDULED_RULES = st.recursive(
    PLAIN, lambda inner: st.builds(Scheduled, inner, TIMED | st.builds(tied_to_lr, st.floats(0.0, 9.0))), max_leaves=3
)
INSIDE = SCHEDULED_RULES | st.builds(PerGroup, st.lists(SCHEDULED_RULES, min_size=1, max_size=3))
REFERENCES = st.just("init") | st.builds(MovingAverage, st.floats(0.0, 1.0, exclude_max=True))


def acting_on(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(Cautious, inner) | st.builds(Toward, inner, REFERENCES)


MEMBERS = st.one_of(
    SCHEDULED_RULES,
    NORMS,
    acting_on(SCHEDULED_RULES),
    PENALTIES,
    st.builds(Scheduled, acting_on(SCHEDULED_RULES) | PENALTIES, TIMED),
)
PARTS = st.one_of(
    MEMBERS,
    acting_on(INSIDE),
    st.builds(Sphere, LENGTHS),
    st.builds(PerGroup, st.lists(MEMBERS, min_size=1, max_size=3)),
    st.builds(Scheduled, acting_on(INSIDE), TIMED),
)


@settings(max_examples=300)
@given(PARTS)
def test_what_is_printed_is_read_back(part: Part) -> None:
    assert rule_from(repr(part)) == part
    assert repr(rule_from(repr(part))) == repr(part)
    assert same_law(repr(part), part)


@given(TIMED)
def test_a_schedule_is_read_back(schedule: Any) -> None:
    assert schedule_from(repr(schedule)) == schedule


def test_copies_are_equal() -> None:
    for part in (HalfLife(steps=3), Toward(Stable(0.1), MovingAverage(0.5)), PerGroup([L2(0.1, until(3))])):
        assert copy.deepcopy(part) == pickle.loads(pickle.dumps(part)) == part


def test_tensors_print_a_digest_that_cannot_be_read_back() -> None:
    text = repr(Toward(Decoupled(0.1), [torch.ones(2)]))
    assert text == "Toward(Decoupled(lam=0.1), reference=Tensors('92b5b12cb1c7ace4'))"
    with pytest.raises(
        UserError, match="has references that are tensors, which print as a digest and cannot be read back"
    ):
        rule_from(text)


def test_a_reference_without_values_is_refused() -> None:
    for reference in ([torch.ones(2), torch.ones(2, device="meta")], {"w": torch.ones(2, device="meta")}):
        with pytest.raises(UserError, match=r"the reference (1|'w') of Toward is on the meta device and has no values"):
            Toward(Decoupled(0.1), reference)


def doubled(step: int) -> float:
    return 2.0


def test_a_function_is_spelled_by_its_name_and_not_read_back() -> None:
    text = repr(Scheduled(Decoupled(0.1), doubled))
    assert text == f"Scheduled(Decoupled(lam=0.1), {__name__}.doubled)"
    with pytest.raises(UserError, match="holds something else than calls and plain values"):
        rule_from(text)


@dataclass(frozen=True)
class Shared(Rule):
    """A user's own rule, whose generated repr would hold an address in memory."""

    inner: Rule
    how: Callable[[int], float]

    def fraction(self, info: StepInfo) -> float:
        return 0.1


def test_a_rule_of_the_user_has_the_same_spelling_in_every_process() -> None:
    assert spell(Shared(Decoupled(0.1), doubled)) == f"Shared(Decoupled(lam=0.1), {__name__}.doubled)"


# ---- what was written before

# Texts of checkpoints of version 0.1.0, as its code printed them.
OLD: list[tuple[Part, str]] = [
    (Decoupled(0.1), "Decoupled(lam=0.1)"),
    (Decoupled(), "Decoupled(lam=None)"),
    (Independent(1e-4), "Independent(lam=0.0001)"),
    (HalfLife(steps=1000), "HalfLife(steps=1000.0, epochs=None, tokens=None)"),
    (HalfLife(epochs=2), "HalfLife(steps=None, epochs=2.0, tokens=None)"),
    (HalfLife(steps=float("inf")), "HalfLife(steps=inf, epochs=None, tokens=None)"),
    (Normalized(0.05, steps=100), "Normalized(lam=0.05, steps=100, factor=None)"),
    (Normalized(0.05, steps=100, factor=2), "Normalized(lam=0.05, steps=100, factor=2)"),
    (Stable(5e-4), "Stable(lam=0.0005, floor=0.1, beta2=None)"),
    (Stable(0.1, beta2=0.8), "Stable(lam=0.1, floor=0.1, beta2=0.8)"),
    (NormTarget(), "NormTarget(norm=None)"),
    (Sphere(4.0), "Sphere(radius=4.0, per=net)"),
    (Sphere(per="tensor"), "Sphere(radius=None, per=tensor)"),
    (Cautious(Stable(0.1)), "Cautious(inner=Stable(lam=0.1, floor=0.1, beta2=None))"),
    (Toward(Constant(0.1)), "Toward(inner=Constant(lam=0.1), reference=init)"),
    (Toward(Constant(0.1), MovingAverage(0.7)), "Toward(inner=Constant(lam=0.1), reference=MovingAverage(beta=0.7))"),
    (Toward(Decoupled(3.0), [torch.ones(2)]), "Toward(inner=Decoupled(lam=3.0), reference=Tensors(92b5b12cb1c7ace4))"),
    (L2(0.3), "L2(lam=0.3, schedule=None, into=both)"),
    (L2(0.3, until(6)), "L2(lam=0.3, schedule=until(step=6), into=both)"),
    (L2(0.3, into="first"), "L2(lam=0.3, schedule=None, into=first)"),
    (
        Scheduled(Independent(0.3), cosine(1.0, 0.2, 6)),
        "Scheduled(inner=Independent(lam=0.3), schedule=cosine(start=1.0, end=0.2, steps=6))",
    ),
    (
        Scheduled(Decoupled(0.1), join((warmup(5), piecewise((1, 0.5), (3,))), (20,))),
        "Scheduled(inner=Decoupled(lam=0.1), schedule=join(schedules=[warmup(steps=5), "
        "piecewise(values=[1.0, 0.5], boundaries=[3])], boundaries=[20]))",
    ),
    (Scheduled(Corrected(0.1), tied_to_lr(2)), "Scheduled(inner=Corrected(lam=0.1), schedule=tied_to_lr(power=2.0))"),
    (
        Scheduled(Decoupled(0.1), restarts(10, factor=2.0)),
        "Scheduled(inner=Decoupled(lam=0.1), schedule=restarts(steps=10, factor=2.0, start=1.0, end=0.0))",
    ),
    (
        PerGroup([Stable(0.1), Scheduled(Constant(0.05), after(6)), Decoupled(9.0)]),
        "PerGroup(rules=[Stable(lam=0.1, floor=0.1, beta2=None), "
        "Scheduled(inner=Constant(lam=0.05), schedule=after(step=6)), Decoupled(lam=9.0)])",
    ),
]


@pytest.mark.parametrize(("part", "text"), OLD, ids=[text for _, text in OLD])
def test_old_checkpoints_are_known(part: Part, text: str) -> None:
    assert same_law(text, part)
    for other, _ in OLD:
        assert same_law(text, other) == (other == part or repr(other) == repr(part))


def test_an_old_checkpoint_knows_a_function_by_its_name() -> None:
    rule = Scheduled(Decoupled(0.1), doubled)
    assert same_law(f"Scheduled(inner=Decoupled(lam=0.1), schedule={__name__}.doubled)", rule)
    assert not same_law(f"Scheduled(inner=Decoupled(lam=0.1), schedule={__name__}.halved)", rule)


# Texts of specs, with every way to write an argument.
SPECS = [
    ("Decoupled(0.1)", Decoupled(0.1)),
    ("Decoupled(lam=0.1)", Decoupled(0.1)),
    (" Cautious(inner=Stable(lam=0.1, floor=0.1, beta2=None)) ", Cautious(Stable(0.1))),
    ("HalfLife(steps=1000.0, epochs=None, tokens=None)", HalfLife(steps=1000)),
    ("HalfLife(steps=1e999)", HalfLife(steps=math.inf)),
    ("Toward(inner=Constant(lam=0.1), reference='init')", Toward(Constant(0.1))),
    ("L2(lam=0.3, schedule=until(step=6), into='both')", L2(0.3, until(6))),
    ("Scheduled(inner=Decoupled(lam=0.1), schedule=join(schedules=(warmup(steps=5), until(step=10)), boundaries=(20,)))",
     Scheduled(Decoupled(0.1), join((warmup(5), until(10)), (20,)))),
    ("PerGroup((Decoupled(1), L2(+2)))", PerGroup([Decoupled(1), L2(2)])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part"), SPECS, ids=[text for text, _ in SPECS])
def test_texts_of_specs_are_read(text: str, part: Part) -> None:
    assert rule_from(text) == part == check_decay_text(text)


# ---- hostile texts

BAD = [
    ("Decoupled(lam=1, lam=2)", "gives Decoupled the argument lam twice, expected it once"),
    ("Cautious(Stable(0.1, floor=1, floor=1))", "gives Stable the argument floor twice"),
    ("Decoupled(" + "-" * 5000 + "1)", "holds something else than calls|is no expression"),
    ("Decoupled(" + "(" * 5000 + "1" + ")" * 5000 + ")", "is no expression"),
    ("Decoupled(" + "[" * 150 + "]" * 150 + ")", "more than 40 calls and lists inside each other"),
    ("Cautious(" * 45 + "1" + ")" * 45, "more than 40 calls and lists inside each other"),
    ("Decoupled(" + "9" * 4000 + ")", "lam must be a number below 1.8e308, got a larger integer"),
    ("Decoupled(" + "9" * 5000 + ")", "is no expression"),
    ("Scheduled(Decoupled(1), until(" + "9" * 4000 + "))", "step must be a number below 1.8e308"),
    ("Decoupled(" + " " * LONGEST + "1)", f"has {LONGEST + 12} characters, expected at most {LONGEST}"),
    ("Decoupled(1" + "+1" * 3000 + ")", "holds something else than calls|is no expression"),
    ("Decopuled(0.1)", r"calls Decopuled, which is not known: did you mean Decoupled\?$"),
    ("Scheduled(Decoupled(1), untill(3))", r"calls untill, .*did you mean until\?$"),
    ("zzz(1)", "calls zzz, which is not known: expected one of Cautious, Constant, .*warmup_stable_decay$"),
    ("os.system('true')", "calls something that is no name"),
    ("Decoupled(*[1])", "unpacks arguments with a star"),
    ("Decoupled(**{})", "unpacks arguments with a star"),
    ("Decoupled(1j)", "holds something else"),
    ("Decoupled(b'1')", "holds something else"),
    ("Decoupled(-True)", "holds something else"),
    ("Decoupled(True)", "lam must be a number, got True"),
    ("Decoupled('1')", "lam must be a number, got '1'"),
    ("Decoupled(nan)", "holds something else"),
    ("Decoupled(lamda=1)", r"cannot be built: .*unexpected keyword argument 'lamda'"),
    ("HalfLife(5)", "HalfLife got 5 without a unit"),
    ("until(5)", "the decay is 'until\\(5\\)', expected one of Cautious"),
    ("Decoupled", "is no call: write it as"),
    ("", "is no expression: write it as"),
    ("Decoupled(1", "is no expression: write it as"),
    ("Decoupled(1\0)", "is no expression: write it as"),
    ("Decoupled(0.\uff11)", r"holds '\uff11' \(FULLWIDTH DIGIT ONE\): write names and numbers in ASCII"),
    ("\uff24ecoupled(0.1)", "holds '\uff24' .*: write names and numbers in ASCII"),
    ("Decoupled(l\u0430m=0.1)", r"CYRILLIC SMALL LETTER A"),
    ("Decoupled(1e999)", "lam must be a finite number >= 0, got inf"),
    ("Decoupled([" + "1," * 5000 + "])", r"lam must be a number, got \[1, 1, .* \.\.\. .*1\]$"),
    ("Toward(Decoupled('\\d'))", "lam must be a number"),
    (None, "the decay is None, expected text such as"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_text_is_one_sentence(text: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        rule_from(text)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


def test_a_schedule_is_a_function_of_the_step() -> None:
    with pytest.raises(UserError, match="expected a function of the step"):
        schedule_from("tied_to_lr(2)")
    with pytest.raises(UserError, match=r"calls Decoupled, which is not known: expected one of after"):
        schedule_from("Decoupled(1)")


@given(st.text(alphabet="DecoupledL2(),=-+*[]{}.'0123456789 inf\n\\", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(rule_from(text), Part)


def test_plain_values() -> None:
    assert build("dict(a=[1, (None, True)], b='x', c=inf, d=-2)", {"dict": dict}, "it") == {
        "a": [1, (None, True)],
        "b": "x",
        "c": math.inf,
        "d": -2,
    }


# ---- a decay that stands alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Decoupled()", r"the decay 'Decoupled\(\)' holds Decoupled\(\) without a lam, .*: give it a lam"),
        ("Cautious(Stable())", r"holds Stable\(\) without a lam"),
        ("Scheduled(L2(), until(3))", r"holds L2\(\) without a lam"),
        ("PerGroup([Decoupled(0.1), Normalized(steps=10)])", r"holds Normalized\(steps=10\) without a lam"),
        ("Decoupled(-1)", r"lam must be a finite number >= 0, got -1\.0"),
        ("Decopuled(0.1)", "did you mean Decoupled"),
    ],
)
def test_a_decay_that_needs_more_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_decay_text(text)


@pytest.mark.parametrize("text", ["HalfLife(steps=5)", "NormTarget()", "Sphere()", "Toward(Decoupled(0.1))", "L2(0.0)"])
def test_a_decay_that_says_all(text: str) -> None:
    assert check_decay_text(text) == rule_from(text)
