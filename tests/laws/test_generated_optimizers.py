"""`explain` on optimizers that are put together from parts: no confident wrong answer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

import halflife
from tests.laws.adversaries.generated import ACTS, AROUND, LEFT_OUT, MOMENTUM, SHAPES, SOURCES, Parts, build
from tests.laws.adversaries.parts import LAM
from tests.laws.adversaries.snapshot import difference, snapshot
from tests.laws.adversaries.truth import Truth, stepped
from tests.laws.adversaries.verdict import RIGHT, UNKNOWN, verdict

# Plain ones are drawn more often than each of the others: two difficulties at a time are enough to mislead.
AMOUNTS = [(LAM,), (LAM,), (LAM / 2,), (0.0,), (LAM, 0.0), (0.0, LAM), (LAM / 2, LAM, 0.0)]
parts = st.builds(
    Parts,
    source=st.one_of(st.just("group"), st.sampled_from(list(SOURCES))),
    acts=st.one_of(st.just("before"), st.sampled_from(list(ACTS))),
    left_out=st.one_of(st.just("nothing"), st.sampled_from(list(LEFT_OUT))),
    around=st.one_of(st.just("nothing"), st.sampled_from(list(AROUND))),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3).map(tuple),
    amounts=st.sampled_from(AMOUNTS),
    frozen=st.sampled_from([-1, -1, 0, 1]),
    frozen_has_zeros=st.booleans(),
    gradients=st.booleans(),
    without_gradient=st.sampled_from([False, False, False, True]),
    scale=st.sampled_from([1.0, 1.0, 1e-2, 1e-6, 0.0]),
    calls=st.sampled_from([0, 0, 4]),
)

TOLD = 0.95  # "not probed" everywhere would be no answer
LOST = 2.0**-9  # a bfloat16 weight does not show a smaller fraction: "none" is what its next step does


def truth_of(drawn: Parts) -> dict[str, Truth]:
    """Measured in float64, where the smallest learning rate shows too, without the steps that were taken before."""
    made = build(drawn, dtype=torch.float64, peak=True)
    if drawn.acts == "master":  # what is around it and writes into the weights alone shows at its first call only
        stepped(made, calls=drawn.calls)
    found = stepped(made, same=1e-12)
    if drawn.acts == "momentum" and drawn.around != "lookahead":
        # what a call removes, and what its momentum makes of that in the long run
        for name, truth in found.items():
            if truth.form == "moves" and math.isfinite(truth.first):
                found[name] = replace(truth, r=(truth.first, truth.first / (1 - MOMENTUM)))
    return found


def wrong_about(drawn: Parts, counted: Counter[str]) -> list[str]:
    """What is told of each parameter and is not true, and what was changed by asking."""
    model, optimizer = build(drawn)
    before = snapshot(model, optimizer)
    table = halflife.explain(model, optimizer)
    changed = difference(before, snapshot(model, optimizer))
    wrong = [f"changed: {changed}"] if changed else []
    rows = {row["parameter"]: row for row in table.rows}
    for name, truth in truth_of(drawn).items():
        found = verdict(rows[name], truth)
        lost = drawn.dtype == torch.bfloat16 and drawn.acts != "master" and truth.first < LOST
        if found not in {RIGHT, UNKNOWN} and not (lost and rows[name]["decays"] is False):
            wrong.append(f"{name}: {found}")
        # A copy must not call hooks of others: none of these can be told.
        counted["hook" if drawn.around == "hook" else UNKNOWN if found == UNKNOWN else "told"] += 1
    return wrong


# The smallest of those that were told wrong once.
ONCE_WRONG = {
    "a tiny lr, and a law that is not known": Parts(source="global", scale=1e-6),
    "a tiny lr, at every second call": Parts(left_out="by call", scale=1e-6),
    "a tiny lr, and masters": Parts(acts="master", scale=1e-6),
    "a tiny lr, and a second decay": Parts(around="replaced step", scale=1e-6),
    "a moving momentum of one element": Parts(acts="momentum", shapes=((), (1,)), calls=4),
    "a momentum beside the decay, one element": Parts(acts="beside momentum", shapes=((1,), (), (300, 40)), calls=4),
    "a moving momentum without decay": Parts(
        acts="momentum", around="every third call", amounts=(0.0,), scale=1e-6, calls=4
    ),
    "a moving momentum in bfloat16": Parts(acts="beside momentum", dtype=torch.bfloat16, amounts=(0.0,), calls=4),
    "masters that the weights are rounded from": Parts(
        acts="master", dtype=torch.bfloat16, shapes=((4, 3),), amounts=(0.0,), calls=4
    ),
    "a moving momentum, and one that is left out": Parts(
        acts="momentum", left_out="by function", shapes=((3,),), calls=4
    ),
    "slow weights without decay": Parts(around="lookahead", amounts=(0.0,)),
    "slow weights, and one that is left out": Parts(around="lookahead", left_out="by size"),
    "frozen, no gradient, at every second call": Parts(left_out="by call", frozen=0, without_gradient=True),
    "frozen, no gradient, at every third call": Parts(around="every third call", frozen=1, without_gradient=True),
    "an empty parameter has a place": Parts(left_out="by place", shapes=((0,), (4, 3))),
    "an empty parameter is in a list": Parts(source="list", shapes=((0,), (70_000,)), amounts=(LAM, 0.0)),
    "frozen, with a gradient of zeros": Parts(frozen=0, frozen_has_zeros=True),
    "a hook": Parts(around="hook"),
    "a tiny lr, masters without dimensions, at every third call": Parts(
        acts="master", around="every third call", shapes=((),), scale=1e-6
    ),
    "masters beside a large weight, at every sixth call": Parts(
        acts="master", left_out="by call", around="every third call", shapes=((70_000,),), amounts=(0.125,)
    ),
    "one number that is rounded from its master": Parts(
        acts="master", dtype=torch.bfloat16, shapes=((),), amounts=(0.125,), gradients=False, calls=4
    ),
    "a momentum, a small lr, and a step that shrinks the weights after it": Parts(
        acts="momentum", around="replaced step", shapes=((4, 3),), amounts=(0.0625,), gradients=False, scale=0.01
    ),
    "a tiny lr, masters, and what follows these": Parts(
        acts="master", around="replaced step", shapes=((4, 3),), amounts=(0.0,), scale=1e-6, calls=4
    ),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_once_wrong(name: str) -> None:
    assert not wrong_about(ONCE_WRONG[name], Counter())


def run(part: int, examples: int) -> Counter[str]:
    """Try so many optimizers, others in each part."""
    counted: Counter[str] = Counter()

    @seed(part)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(parts)
    def check(drawn: Parts) -> None:
        before = counted[UNKNOWN]
        wrong = wrong_about(drawn, counted)
        event("not probed" if counted[UNKNOWN] > before else "told")
        assert not wrong, "\n".join(wrong)

    check()
    return counted


# 100 in one test; 3,000 others in thirty, each well below the time that one test has on a busy machine.
PARTS = [
    (0, 100),
    *(pytest.param(part, 100, marks=[pytest.mark.slow]) for part in range(13, 43)),
]


@pytest.mark.parametrize(("part", "examples"), PARTS)
def test_optimizers_from_parts_are_told_right_or_not_probed(part: int, examples: int) -> None:
    counted = run(part, examples)
    total = counted["told"] + counted[UNKNOWN]
    share = counted["told"] / total
    print(f"\ntold {share:.0%} of {total} parameters, {counted['hook']} under hooks aside, of {examples} optimizers")
    assert share >= TOLD
