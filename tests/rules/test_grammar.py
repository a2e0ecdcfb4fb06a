"""What may stand inside what: every pair of parts, and every pair inside every wrapper, against loops in plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from halflife import rules
from halflife.errors import UserError
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    Normalized,
    NormTarget,
    Part,
    Penalty,
    PerGroup,
    Rule,
    Scheduled,
    Sphere,
    Stable,
    StepInfo,
    Toward,
    grammar,
)
from halflife.schedules import product, tied_to_lr, until, warmup
from tests import ROOT

Amount = Callable[[int, float], float]  # step, learning rate -> a fraction or a coefficient
PEAK, REFERENCE, NUM_GROUPS = 0.5, 0.75, 3
RATES = (0.5, 0.25, 0.5, 0.125, 0.5)


@dataclass(frozen=True)
class Acts:
    """What is done to one weight, in plain numbers: how, and how much of it at a step."""

    how: str  # "shrink", "mask", "pull", "gradient" or "norm"
    amount: Amount

    def weight_after(self, w: float, u: float, step: int, lr: float) -> float:
        """The weight after a step of plain SGD that subtracts ``u`` (a gradient ``u / lr``)."""
        r = self.amount(step, lr)
        match self.how:
            case "shrink":
                return w - r * w - u
            case "mask":
                return w - (r * w if u * w >= 0 else 0.0) - u
            case "pull":
                return w - r * (w - REFERENCE) - u
            case "gradient":
                return w - lr * (u / lr + r * w)
        return math.copysign(r, w - u)


@dataclass(frozen=True)
class Term:
    """A part, its kind in the table, and what acts on each group."""

    part: Part
    column: str
    groups: tuple[Acts, ...]
    divided: bool = False  # whether a PerGroup is in it


def same(part: Part, column: str, how: str, amount: Amount) -> Term:
    return Term(part, column, (Acts(how, amount),) * NUM_GROUPS)


PLAIN = [
    same(Decoupled(0.5), "plain rule", "shrink", lambda t, lr: lr * 0.5),
    same(Independent(0.25), "plain rule", "shrink", lambda t, lr: lr / PEAK * 0.25),
    same(Constant(0.125), "plain rule", "shrink", lambda t, lr: 0.125),
    same(Corrected(0.5), "plain rule", "shrink", lambda t, lr: lr * lr / PEAK * 0.5),
    same(Normalized(0.5, steps=4), "plain rule", "shrink", lambda t, lr: lr / PEAK * 0.25),
    same(HalfLife(steps=1), "plain rule", "shrink", lambda t, lr: 0.5),
    same(Stable(0.25), "plain rule", "shrink", lambda t, lr: lr * 0.25 / 2.0),
]
OTHERS = [
    same(NormTarget(2.0), 'NormTarget, Sphere(per="tensor")', "norm", lambda t, lr: 2.0),
    same(Sphere(3.0, per="tensor"), 'NormTarget, Sphere(per="tensor")', "norm", lambda t, lr: 3.0),
    same(Sphere(3.0), "Sphere", "norm", lambda t, lr: 3.0),
    same(Cautious(Constant(0.25)), "Cautious", "mask", lambda t, lr: 0.25),
    same(Toward(Decoupled(0.25)), "Toward", "pull", lambda t, lr: lr * 0.25),
    same(L2(0.5), "L2", "gradient", lambda t, lr: 0.5),
    same(L2(0.5, until(2)), "L2", "gradient", lambda t, lr: 0.5 if t < 2 else 0.0),
]
MIXED = [PLAIN[0], PLAIN[2], PLAIN[5]]


def per_group(terms: list[Term]) -> Term:
    part = PerGroup([term.part for term in terms])
    return Term(part, "PerGroup", tuple(term.groups[i] for i, term in enumerate(terms)), divided=True)


SIMPLE = [*PLAIN, *OTHERS, per_group(MIXED)]

# Independent of halflife.rules.grammar: what each wrapper takes, by columns of the table in docs/library.md.
TAKES = {
    "Scheduled": {"plain rule", "Cautious", "Toward", "L2", "PerGroup"},
    "Cautious": {"plain rule", "PerGroup"},
    "Toward": {"plain rule", "PerGroup"},
    "PerGroup": {"plain rule", 'NormTarget, Sphere(per="tensor")', "Cautious", "Toward", "L2"},
}
HOW = {"Cautious": "mask", "Toward": "pull"}


def halve_at_two(step: int) -> float:
    return 0.5 if step == 2 else 1.0


def halved_at_two(amount: Amount) -> Amount:
    return lambda t, lr: amount(t, lr) * (0.5 if t == 2 else 1.0)


def make(wrapper: str, inner: Part) -> Part:
    match wrapper:
        case "Scheduled":
            return Scheduled(inner, halve_at_two)
        case "Cautious":
            return Cautious(inner)  # type: ignore[arg-type]  # refused where it is no rule
        case "Toward":
            return Toward(inner)  # type: ignore[arg-type]  # refused where it is no rule
    return PerGroup([Constant(0.25), inner, Decoupled(0.25)])


def wrapped(wrapper: str, term: Term) -> Term:
    """What a wrapper makes of a term, in plain numbers, where it is allowed."""
    part = make(wrapper, term.part)
    if wrapper == "PerGroup":
        return Term(part, "PerGroup", (PLAIN_QUARTER, term.groups[1], DECOUPLED_QUARTER), divided=True)
    if wrapper == "Scheduled":
        scheduled = tuple(replace(acts, amount=halved_at_two(acts.amount)) for acts in term.groups)
        return replace(term, part=part, groups=scheduled)
    return replace(
        term, part=part, column=wrapper, groups=tuple(replace(acts, how=HOW[wrapper]) for acts in term.groups)
    )


PLAIN_QUARTER = Acts("shrink", lambda t, lr: 0.25)
DECOUPLED_QUARTER = Acts("shrink", lambda t, lr: lr * 0.25)


def allowed(wrapper: str, term: Term) -> bool:
    """Whether the table allows it; PerGroup inside another wrapper is as good as each of its parts."""
    if term.column not in TAKES[wrapper]:
        return False
    hows = {acts.how for acts in term.groups}
    if wrapper == "Scheduled":
        return "norm" not in hows
    return not term.divided if wrapper == "PerGroup" else hows == {"shrink"}


def two_deep() -> list[Term]:
    return [wrapped(wrapper, term) for wrapper in TAKES for term in SIMPLE if allowed(wrapper, term)]


TERMS = [*SIMPLE, *two_deep()]
PAIRS = [(wrapper, term) for wrapper in TAKES for term in TERMS]


def known(**more: Any) -> dict[str, Any]:
    return {"peak_lr": PEAK, "lam": 9.0, "second_moment": 4.0, **more}


def weight_after(part: Part, w: float, u: float, step: int, lr: float, group: int) -> float:
    """What the optimizer side does with the part that acts on a group: it knows these four forms, and no more."""
    info = StepInfo(lr=lr, step=step, group=group, **known())
    if isinstance(part, Penalty):
        return w - lr * (u / lr + part.coefficient(info) * w)
    if isinstance(part, Cautious):
        r = float(part.inner.fraction(info))
        return w - (r * w if u * w >= 0 else 0.0) - u
    if isinstance(part, Toward):
        return w - float(part.inner.fraction(info)) * (w - REFERENCE) - u
    assert isinstance(part, Rule)
    if "weight_norm" in part.needs or "net_norm" in part.needs:
        moved = w - u
        r = float(part.fraction(replace(info, weight_norm=abs(moved))))
        return (1.0 - r) * moved
    return w - float(part.fraction(info)) * w - u


def points() -> Iterator[tuple[float, float, int, float]]:
    for step, lr in enumerate(RATES):
        for w in (1.5, -0.5):
            for u in (0.25, -0.125, 0.0):
                yield w, u, step, lr


@pytest.mark.parametrize(("wrapper", "term"), PAIRS, ids=[f"{wrapper}({term.part!r})" for wrapper, term in PAIRS])
def test_every_pair(wrapper: str, term: Term) -> None:
    if not allowed(wrapper, term):
        reasons = "|".join(re.escape(reason) for reason in grammar.REFUSED[wrapper].values())
        with pytest.raises(UserError, match=f"^{wrapper} cannot wrap .*: ({reasons})$"):
            make(wrapper, term.part)
        return
    whole = wrapped(wrapper, term)
    for group, acts in enumerate(whole.groups):
        part = whole.part.for_group(group)
        assert part.for_group(group) is part
        inside = list(part.parts())
        assert not any(isinstance(each, PerGroup) for each in inside)
        assert not any(isinstance(each, Scheduled) and not isinstance(each.inner, Rule) for each in inside)
        for w, u, step, lr in points():
            expected = acts.weight_after(w, u, step, lr)
            assert weight_after(part, w, u, step, lr, group) == pytest.approx(expected, rel=1e-14)


def test_both_kinds_are_many() -> None:
    verdicts = [allowed(wrapper, term) for wrapper, term in PAIRS]
    assert verdicts.count(True) > 60
    assert verdicts.count(False) > 60


ANY: Any = rules  # the types would refuse most of these too

REASONS: list[tuple[Callable[[], object], str]] = [
    (lambda: ANY.Scheduled(NormTarget(), until(2)), "a norm that is held is not an amount that can be scaled"),
    (lambda: ANY.Scheduled(Sphere(), until(2)), "a norm that is held is not an amount that can be scaled"),
    (lambda: ANY.Scheduled(ANY.PerGroup([NormTarget(), L2(1)]), until(2)), "wrap NormTarget.*is not an amount"),
    (lambda: ANY.Cautious(NormTarget()), "its fraction is not known before"),
    (lambda: ANY.Cautious(ANY.Toward(Decoupled(1))), "which of the two signs would count is not defined"),
    (lambda: ANY.Toward(ANY.Cautious(Decoupled(1))), "which of the two signs would count is not defined"),
    (
        lambda: ANY.Cautious(ANY.PerGroup([Decoupled(1), ANY.Toward(Decoupled(1))])),
        "which of the two signs would count",
    ),
    (lambda: ANY.Cautious(ANY.Scheduled(ANY.Toward(Decoupled(1)), until(2))), "which of the two signs would count"),
    (lambda: ANY.Cautious(L2(1)), "a penalty enters the gradient and removes no fraction"),
    (lambda: ANY.Toward(ANY.Scheduled(L2(1), until(2))), "a penalty enters the gradient and removes no fraction"),
    (lambda: ANY.Toward(ANY.Toward(Decoupled(1))), "one reference only"),
    (lambda: ANY.Cautious(ANY.Cautious(Decoupled(1))), "write one"),
    (lambda: ANY.PerGroup([ANY.PerGroup([Decoupled(1)])]), "write all rules into one list"),
    (lambda: ANY.PerGroup([ANY.Cautious(ANY.PerGroup([Decoupled(1)]))]), "write all rules into one list"),
    (lambda: ANY.PerGroup([ANY.Scheduled(ANY.PerGroup([L2(1)]), until(2))]), "write all rules into one list"),
    (lambda: ANY.PerGroup([Decoupled(1), Sphere(2.0)]), r'runs over all groups; use Sphere\(..., per="tensor"\)'),
    (lambda: ANY.Scheduled(L2(1), tied_to_lr()), "L2 takes a schedule of the step, got tied_to_lr"),
    (lambda: ANY.Scheduled(ANY.PerGroup([Decoupled(1), L2(1)]), tied_to_lr()), "L2 takes a schedule of the step"),
    (lambda: ANY.Scheduled(Decoupled, until(2)), r"Scheduled wraps a rule such as Decoupled\(0\.1\), got <class"),
    (lambda: ANY.PerGroup(["Decoupled(1)"]), "PerGroup wraps a rule such as"),
    (lambda: ANY.PerGroup(Decoupled(1)), "PerGroup needs a list of rules"),
    (
        lambda: ANY.Scheduled(ANY.Cautious(Decoupled(1)), until(2)).fraction(StepInfo(lr=0.1)),
        "has no fraction of its own",
    ),
    (lambda: ANY.PerGroup([L2(1)]).fraction(StepInfo(lr=0.1)), "has no fraction of its own"),
]


@pytest.mark.parametrize(("build", "message"), REASONS, ids=[str(i) for i in range(len(REASONS))])
def test_the_reasons(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


class OwnPenalty(Penalty):
    def coefficient(self, info: StepInfo) -> float:
        return 1.0

    def __repr__(self) -> str:
        return "OwnPenalty()"


def test_a_penalty_of_the_user_that_takes_no_schedule() -> None:
    with pytest.raises(UserError, match=r"OwnPenalty\(\) cannot be scheduled: it has no times\(schedule\)"):
        Scheduled(OwnPenalty(), until(2))


def test_what_acts_on_a_group() -> None:
    early = until(3)
    assert Decoupled(0.1).for_group(7) == Decoupled(0.1)
    assert Scheduled(Cautious(Decoupled(0.1)), early).for_group(0) == Cautious(Scheduled(Decoupled(0.1), early))
    per = PerGroup([Decoupled(0.1), Toward(Constant(0.2), "init"), L2(0.3, warmup(4))])
    acting = [Scheduled(per, early).for_group(group) for group in range(3)]
    assert acting == [
        Scheduled(Decoupled(0.1), early),
        Toward(Scheduled(Constant(0.2), early), "init"),
        L2(0.3, product((warmup(4), early))),
    ]
    twice = Scheduled(Scheduled(Cautious(Decoupled(0.1)), early), warmup(4)).for_group(0)
    assert twice == Cautious(Scheduled(Scheduled(Decoupled(0.1), early), warmup(4)))
    assert Cautious(PerGroup([Decoupled(0.1), Constant(0.2)])).for_group(1) == Cautious(Constant(0.2))


def test_the_number_of_groups_is_checked_anywhere_inside() -> None:
    per = PerGroup([Decoupled(0.1)] * 5)
    message = "^PerGroup has 5 rules and the optimizers have 2 groups: give one per group$"
    for part in (per, Cautious(per), Scheduled(Toward(per), until(1))):
        part.check_groups(5)
        with pytest.raises(UserError, match=message):
            part.check_groups(2)
    Scheduled(Decoupled(0.1), until(1)).check_groups(99)
    with pytest.raises(UserError, match="PerGroup has 5 rules, but parameter group 5 decays too"):
        Scheduled(per, until(1)).for_group(5)


def table_in(text: str) -> dict[str, dict[str, str]]:
    """The table of a page: wrapper -> what is inside -> cell."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("| | plain rule |"))
    head = [cell.strip().replace("`", "") for cell in lines[start].strip("|").split("|")]
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("| `"):
            break
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        rows[cells[0]] = dict(zip(head[1:], cells[1:], strict=True))
    return rows


@pytest.mark.parametrize("where", ["docs/library.md", "src/halflife/rules/grammar.py"])
def test_the_tables_say_what_is_allowed(where: str) -> None:
    said = table_in((ROOT / where).read_text())
    columns = {term.column for term in SIMPLE}
    assert said.keys() == TAKES.keys()
    for wrapper, cells in said.items():
        assert cells.keys() == columns
        assert {column for column, cell in cells.items() if cell in {"yes", "each rule"}} == TAKES[wrapper]
        assert set(cells.values()) <= {"yes", "no", "each rule"}
