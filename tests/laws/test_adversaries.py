"""`explain` and `assert_decay` on optimizers that would deceive a careless look: told right, or not probed."""

from __future__ import annotations

import fnmatch
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import halflife
from halflife.audit import expectations
from halflife.audit.explanation import Explanation
from halflife.errors import UserError
from tests.laws.adversaries import TABLE
from tests.laws.adversaries.parts import LAM, LR, Entry
from tests.laws.adversaries.snapshot import difference, snapshot
from tests.laws.adversaries.truth import Truth, optimizers_of, truths
from tests.laws.adversaries.verdict import RIGHT, UNKNOWN, near, verdict

BY_NAME = {entry.name: entry for entry in TABLE}
# Those that have a near relative among the others.
SLOW = {
    *("from-an-object", "from-defaults", "from-the-lr", "nested-settings", "slotted", "grows", "a-fraction"),
    *("by-shape", "by-last", "by-identity", "by-step-in-group", "lookahead-of-sgd", "sharp-of-sgd", "a-dict-of-two"),
    *("delegating", "running-lion-like", "float16", "float64", "lr-tiny-l2", "lr-none-falling", "tensor-decay"),
    *("toward-a-mean", "soft", "clipped", "sphere", "by-norm", "by-chance", "whole", "negative", "falls"),
    *("from-a-tensor", "by-weak-reference", "by-names-of-the-group", "by-optim", "by-call", "inner-of-another-rate"),
    *("inner-made-late", "scheduled", "replaced-by-nothing", "lr-0-for-ever", "lam-tiny", "shared-tensor-lr"),
    *("frozen-and-filled", "running-sgd", "keeps-a-thread", "partial"),
    *("single", "sealed", "zeroes-gradients", "own-gradients", "engine", "masters-inside", "frozen-without"),
}
CANNOT_BE_PUT_BACK = {"a-running-generator", "in-a-thread"}  # a generator goes on, a pool starts its thread
OTHER_RATES = {"lr-tiny", "lr-tiny-l2", "lam-tiny", "chained", "twice"}  # r is not LR * lam where the decay is lam


@dataclass(frozen=True)
class Asked:
    """What is told of an entry, and what was changed by asking."""

    model: nn.Module
    optimizers: list[Optimizer]
    table: Explanation
    rows: dict[str, dict[str, Any]]
    changed: str


@functools.cache
def asked(name: str, in_place: bool = False) -> Asked:
    model, _ = made = BY_NAME[name].make()
    optimizers = optimizers_of(made)
    before = snapshot(model, *optimizers)
    dtype = torch.get_default_dtype()
    try:
        table = halflife.explain(model, optimizers, in_place=in_place)
        changed = difference(before, snapshot(model, *optimizers))
    finally:
        torch.set_default_dtype(dtype)
    return Asked(model, optimizers, table, {row["parameter"]: row for row in table.rows}, changed)


@functools.cache
def truth_of(name: str) -> dict[str, Truth]:
    return truths(BY_NAME[name])


def verdicts(entry: Entry) -> dict[str, str]:
    return {name: verdict(asked(entry.name).rows[name], truth) for name, truth in truth_of(entry.name).items()}


def case(entry: Entry) -> Any:
    return pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name in SLOW else [])


each = pytest.mark.parametrize("entry", [case(entry) for entry in TABLE])
each_that_steps = pytest.mark.parametrize("entry", [case(entry) for entry in TABLE if not entry.raises])


def test_the_table_is_large_and_its_names_differ() -> None:
    assert len(BY_NAME) == len(TABLE) >= 40


@each_that_steps
def test_told_right_or_not_probed(entry: Entry) -> None:
    wrong = {name: found for name, found in verdicts(entry).items() if found not in {RIGHT, UNKNOWN}}
    assert not wrong, f"{entry.note}: {wrong}"


@each_that_steps
def test_what_must_be_told_is_told(entry: Entry) -> None:
    unknown = [name for name, found in verdicts(entry).items() if found == UNKNOWN]
    missing = [name for name in unknown if any(fnmatch.fnmatchcase(name, pattern) for pattern in entry.must)]
    assert not missing, {name: asked(entry.name).rows[name]["why"] for name in missing}


@pytest.mark.parametrize("entry", [entry for entry in TABLE if entry.raises], ids=str)
def test_where_the_step_raises_nothing_is_told(entry: Entry) -> None:
    assert {row["decays"] for row in asked(entry.name).rows.values()} == {None}


@each
def test_not_probed_has_a_reason(entry: Entry) -> None:
    for row in asked(entry.name).rows.values():
        if row["decays"] is None:
            assert len(row["why"].split()) >= 4, row["why"]


@each
def test_nothing_is_changed(entry: Entry) -> None:
    assert asked(entry.name).changed == ""


# ---- the real optimizer, stepped and put back

# Those that no copy can follow, and some that would show what is not put back. All others are slow.
IN_PLACE = {
    *("captured", "hook-before", "hook-after", "hook-off", "keeps-a-generator", "keeps-a-handle", "keeps-a-thread"),
    *("by-address", "raises", "raises-at-once", "draws", "masters-in-a-list", "inner-made-late", "adds-a-group"),
    *("flat", "new-storage", "arrays", "in-a-thread", "frozen-and-filled"),
}


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=[] if entry.name in IN_PLACE else [pytest.mark.slow], id=str(entry)) for entry in TABLE],
)
def test_in_place_is_told_right_and_put_back(entry: Entry) -> None:
    known = asked(entry.name, in_place=True)
    truth = {} if entry.raises else truth_of(entry.name)
    found = {name: verdict(known.rows[name], truth[name]) for name in truth}
    assert not {name: what for name, what in found.items() if what not in {RIGHT, UNKNOWN}}
    assert known.changed == ""
    if entry.raises:
        assert {row["decays"] for row in known.rows.values()} == {None}
    if entry.name not in CANNOT_BE_PUT_BACK:
        assert UNKNOWN not in found.values(), [row["why"] for row in known.rows.values()]


# ---- expectations; the explanation is the one that was made already


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Entry, dict[str, str]], bool]:
    def told(entry: Entry, expected: dict[str, str]) -> bool:
        known = asked(entry.name)
        monkeypatch.setattr(expectations, "explain", lambda *_, **__: known.table)
        try:
            halflife.assert_decay(known.model, known.optimizers, expected)
        except (AssertionError, UserError):  # a frozen parameter cannot be asserted
            return False
        return True

    return told


def names_that_train(entry: Entry) -> list[str]:
    """Those that expectations are about: a frozen one that has no gradient, and is not moved either, is none."""
    return [
        name
        for name, p in asked(entry.name).model.named_parameters()
        if p.requires_grad or (not entry.raises and truth_of(entry.name)[name].form != "still")
    ]


@each
def test_none_is_fulfilled_only_where_nothing_is_removed(entry: Entry, holds: Any) -> None:
    for name in names_that_train(entry):
        truth = Truth("moves") if entry.raises else truth_of(entry.name)[name]
        if truth.form not in {"still", "any", "elsewhere"}:
            assert not holds(entry, {name: "none"}), name


def decoupled_by(truth: Truth, lam: float) -> bool:
    """Whether a decoupled decay of ``lam``, be it at every n-th call, could be what is true; the learning rate is LR."""
    if truth.form in {"any", "still"}:
        return truth.form == "any"
    return truth.form == "shrinks" and near(truth.r[0], LR * lam, 2e-3)


@pytest.mark.parametrize(
    "entry", [case(entry) for entry in TABLE if entry.name not in OTHER_RATES and not entry.raises]
)
def test_decoupled_is_fulfilled_only_by_what_is(entry: Entry, holds: Any) -> None:
    for name in names_that_train(entry):
        for lam in entry.lams:
            if not decoupled_by(truth_of(entry.name)[name], lam):
                assert not holds(entry, {name: f"decoupled:{lam}"}), (name, lam)


def test_a_layer_in_two_optimizers_is_asserted_by_what_both_remove(holds: Any) -> None:
    entry = BY_NAME["twice"]
    assert holds(entry, {"1.*": f"decoupled:{LAM}"})
    for lam in (LAM, LAM / 2):
        assert not holds(entry, {"0.*": f"decoupled:{lam}"})


@pytest.mark.parametrize("name", ["declared", "declared-keywords"])
def test_what_a_model_declares_is_no_surprise(name: str, holds: Any) -> None:
    entry = BY_NAME[name]
    assert "matrix-without-decay" not in [warning.code for warning in asked(name).table.warnings]
    assert holds(entry, {"2.weight" if name == "declared" else "0.weight": f"decoupled:{LAM}", "*": "none"})


# ---- the measure itself


def test_truth_is_the_same_when_it_is_measured_again() -> None:
    for entry in TABLE[::4]:
        if not entry.raises:
            assert str(truths(entry)) == str(truth_of(entry.name))  # as text: nan is not equal to itself


def test_truth_tells_the_forms_apart() -> None:
    """Against optimizers whose decay is written down: a fraction, one of every third call, none, and no fraction."""
    forms = {
        "from-the-last-group": ("shrinks", 1),
        "accumulating": ("shrinks", 3),
        "by-call": ("shrinks", 2),
        "undone": ("still", 1),
        "lookahead": ("moves", 1),
        "running-adamw": ("shrinks", 1),
    }
    for name, (form, every) in forms.items():
        truth = truth_of(name)["0.weight"]
        assert (truth.form, truth.every) == (form, every), name
        assert form != "shrinks" or near(truth.first, LR * LAM, 1e-4), name


def test_a_wrong_answer_is_noticed() -> None:
    """Each field of a right row, changed."""
    truth = truth_of("from-the-last-group")["0.weight"]
    right = {
        "why": "",
        "dtype": "float32",
        "decays": True,
        "law": "decoupled",
        "lam": LAM,
        "r": truth.first,
        "half_life": truth.half_life,
    }
    assert verdict(right, truth) == RIGHT
    for wrong in ({"decays": False}, {"r": 1.01 * truth.first}, {"half_life": 2 * truth.half_life}, {"decays": None}):
        assert verdict({**right, **wrong}, truth) not in {RIGHT, UNKNOWN}, wrong
    assert verdict(right, replace(truth, form="still")) != RIGHT
    assert verdict(right, replace(truth, form="other")) != RIGHT
    assert verdict(right, replace(truth, form="moves", r=(), half_life=1.0)) != RIGHT


def test_a_change_is_noticed() -> None:
    """Weights, state, gradients, random states and attributes are in the snapshot."""
    model, optimizer = BY_NAME["running-adamw"].make()
    assert isinstance(optimizer, Optimizer)
    weight: Any = model[0].weight  # type: ignore[index]

    def state() -> None:
        optimizer.state[weight]["step"] += 1

    def gradient() -> None:
        weight.grad[0, 0] += 1.0

    def bits() -> None:
        weight.data[0, 0] = torch.nextafter(weight.data[0, 0], torch.tensor(9.0))

    def attribute() -> None:
        weight.note = "seen"

    def setting() -> None:
        optimizer.param_groups[1]["lr"] = 0.25

    def draw() -> None:
        torch.rand(1)

    for change in (state, gradient, bits, attribute, setting, draw):
        before = snapshot(model, optimizer)
        assert difference(before, snapshot(model, optimizer)) == ""
        change()
        assert difference(before, snapshot(model, optimizer)) != "", change.__name__


@pytest.mark.parametrize(("slow", "right"), [(False, 442), pytest.param(True, 760, marks=[pytest.mark.slow])])
def test_most_are_told(slow: bool, right: int) -> None:
    """Of the parameters of all entries, or of those that are not slow: so many are told right."""
    table = [entry for entry in TABLE if not entry.raises and (slow or entry.name not in SLOW)]
    found = Counter(what for entry in table for what in verdicts(entry).values())
    unknown = [entry.name for entry in table if UNKNOWN in verdicts(entry).values()]
    print(f"\ntold right {found[RIGHT]} of {found.total()}, not probed {found[UNKNOWN]}, in {', '.join(unknown)}")
    assert found[RIGHT] >= right
