"""``attach`` in states that a user's loop can reach: rules of one's own, cut-off steps, resets, odd gradients."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from halflife.errors import UserError
from halflife.expressions import spell
from halflife.optim import evaluate
from halflife.optim.attaching import attach
from halflife.rules import (
    Cautious,
    Constant,
    MovingAverage,
    NormTarget,
    Rule,
    Scheduled,
    Stable,
    StepInfo,
    Toward,
)
from halflife.schedules import until


def one_weight() -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    return weight


# ---- rules of one's own


class AsTensor(Rule):
    """Answers with the tensors that it is given, one per step."""

    def __init__(self, *answers: Tensor) -> None:
        self.answers = answers

    def fraction(self, info: StepInfo) -> Tensor:
        return self.answers[info.step]


@pytest.mark.parametrize("r", [1.5, -0.5, float("nan")])
def test_a_tensor_on_the_cpu_is_checked_before_the_weights_are_touched(r: float) -> None:
    weight = one_weight()
    optimizer = SGD([weight], lr=0.1, weight_decay=1.0)
    attach(optimizer, AsTensor(torch.tensor(0.25), torch.tensor(r)))
    optimizer.step()
    with pytest.raises(UserError, match="asks to remove the fraction"):
        optimizer.step()
    assert weight.tolist() == [0.75] * 3


@pytest.mark.parametrize("r", [1.5, -0.5, float("nan"), float("inf")])
def test_an_answer_that_is_checked_late_does_not_touch_the_weights_either(
    r: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "reading_waits", lambda tensor: True)  # as on an accelerator
    weight = one_weight()
    optimizer = SGD([weight], lr=0.1, weight_decay=1.0)
    attach(optimizer, AsTensor(*(torch.tensor(value) for value in (0.25, r, 0.25))))
    optimizer.step()
    optimizer.step()
    with pytest.raises(UserError, match="asks to remove the fraction"):
        optimizer.step()
    assert weight.tolist() == [0.75] * 3


class Plain(Rule):
    """No dataclass."""

    def __init__(self, share: float) -> None:
        self.share = share

    def fraction(self, info: StepInfo) -> float:
        return self.share


@dataclass(frozen=True)
class Table(Rule):
    shares: dict[int, float]

    def fraction(self, info: StepInfo) -> float:
        return self.shares[info.group]


def test_a_run_under_a_plain_class_resumes() -> None:
    """Its default repr has its address in memory, which no two processes share."""
    first, second = (SGD([one_weight()], lr=0.1, weight_decay=1.0) for _ in range(2))
    attach(first, Plain(0.25))
    first.step()
    handle = attach(second, Plain(0.25))
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["param_groups"][0]["halflife_step"] == 1
    handle.detach()
    other = SGD([one_weight()], lr=0.1, weight_decay=1.0)
    attach(other, Plain(0.5))
    with pytest.raises(UserError, match=r"made under the law Plain\(share=0.25\), but attached is Plain\(share=0.5\)"):
        other.load_state_dict(first.state_dict())


def test_a_rule_may_hold_a_mapping() -> None:
    assert spell(Table({0: 0.5, 1: 0.25})) == "Table({0: 0.5, 1: 0.25})"


# ---- steps that do not end


@pytest.mark.parametrize("rule", [Constant(0.25), Cautious(Constant(0.25))], ids=repr)
def test_a_closure_that_fails_leaves_the_users_values(rule: Rule) -> None:
    """Such as one that runs out of memory: a copy of the optimizer would keep what stood for this step only."""
    optimizer = AdamW([one_weight()], lr=0.1, weight_decay=0.5)
    attach(optimizer, rule)

    def fails() -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        optimizer.step(fails)
    assert copy.deepcopy(optimizer).param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("where", ["closure", "refusal"])
def test_a_step_that_fails_keeps_no_locals_of_its_callers(where: str) -> None:
    """After running out of memory, the activations that those hold must be gone before the next try."""
    optimizer = AdamW([one_weight()], lr=0.1, weight_decay=0.5)
    attach(optimizer, Constant(0.25))

    class Activations:
        pass

    def fails() -> float:
        raise MemoryError

    def train() -> None:
        activations = Activations()
        found.append(weakref.ref(activations))
        optimizer.step(fails if where == "closure" else None)

    found: list[weakref.ref[Activations]] = []
    if where == "refusal":
        optimizer.param_groups[0]["lr"] = float("nan")
    gc.disable()
    try:
        with pytest.raises((MemoryError, UserError)) as raised:
            train()
        del raised
        assert found[0]() is None
    finally:
        gc.enable()


# ---- resets


@pytest.mark.parametrize("reference", ["init", MovingAverage(0.5)], ids=repr)
def test_a_reference_survives_that_the_state_is_emptied(reference: Any) -> None:
    """Resetting Adam's moments in the middle of a run must not cost later checkpoints the reference."""

    def started(weight: torch.nn.Parameter) -> Optimizer:
        optimizer = AdamW([weight], lr=0.1, weight_decay=1.0)
        attach(optimizer, Toward(Constant(0.25), reference))
        return optimizer

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = started(weight)
    for step in range(4):
        if step == 2:
            optimizer.state.clear()
        weight.grad = torch.full((3,), 1.0)
        optimizer.step()
    resumed = torch.nn.Parameter(weight.detach().clone())
    other = started(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((weight, optimizer), (resumed, other)):
        each.grad = torch.full((3,), 1.0)
        its.step()
    assert torch.equal(weight, resumed)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_says_that_its_schedule_starts_anew(duplicate: Callable[[Optimizer], Optimizer]) -> None:
    """A run that is resumed from a pickled optimizer would repeat its early decay, silently."""
    early = Scheduled(Constant(0.25), until(1))
    optimizer = AdamW([one_weight()], lr=0.1, weight_decay=0.5)
    handle = attach(optimizer, early)
    optimizer.step()
    twin, other = duplicate(optimizer), duplicate(optimizer)
    with pytest.warns(UserWarning, match="a copy of one under a rule, so that step of Scheduled.* start anew"):
        attach(twin, early)
    twin.load_state_dict(optimizer.state_dict())  # as the warning says
    for group in twin.param_groups:
        group["params"][0].grad = torch.zeros(3)
    twin.step()
    assert twin.state_dict()["param_groups"][0]["halflife_step"] == 2
    attach(other, Constant(0.25))  # nothing is lost: no warning, which would be an error here
    handle.detach()
    attach(optimizer, early)  # no copy, but the same optimizer


def test_a_norm_for_a_rule_that_is_detached() -> None:
    handle = attach(AdamW([one_weight()], lr=0.1, weight_decay=1.0), Stable(0.5))
    handle.detach()
    with pytest.raises(UserError, match="has been detached"):
        handle.hand_over_norm(1.0)


# ---- odd gradients


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_cautious_decay_with_sparse_gradients(momentum: float) -> None:
    """Row 0 moves towards zero, row 1 away from it, row 2 has no gradient; then the gradient is dense once."""
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = SGD([weight], lr=0.5, momentum=momentum, weight_decay=1.0)
    attach(optimizer, Cautious(Constant(0.25)))
    rows, values = torch.tensor([[0, 1]]), torch.tensor([[0.1, 0.1], [-0.1, -0.1]], dtype=torch.float64)
    weight.grad = torch.sparse_coo_tensor(rows, values, (3, 2), check_invariants=True)
    optimizer.step()
    assert weight[:, 0].tolist() == pytest.approx([0.75 - 0.05, 1.0 + 0.05, 0.75])
    if momentum == 0.0:
        weight.grad = torch.zeros(3, 2, dtype=torch.float64)
        optimizer.step()
        assert weight[:, 0].tolist() == pytest.approx([0.75 * 0.7, 0.75 * 1.05, 0.75 * 0.75])


def test_cautious_decay_follows_weights_that_move() -> None:
    """``model.to(device)`` after a step: the copies of the weights are made anew there."""
    weight = one_weight()
    optimizer = RMSprop([weight], lr=0.1, weight_decay=1.0)
    handle = attach(optimizer, Cautious(Constant(0.25)))
    optimizer.step()
    copies = handle._attachments[0]._evaluator.actions[0][1]._copies  # type: ignore[attr-defined]  # of MaskedShrink
    copies[weight] = torch.empty(3, device="meta")  # stands for where the weights were
    optimizer.step()
    assert weight.tolist() == [0.75**2] * 3


@pytest.mark.parametrize("rule", [Stable(0.5), NormTarget()], ids=repr)
def test_an_optimizer_without_parameters_steps(rule: Rule) -> None:
    """As on a process that holds no part of the model."""
    optimizer = AdamW([{"params": []}], lr=0.1, weight_decay=1.0)
    handle = attach(optimizer, rule)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert handle.fractions() == [0.0]


# ---- work on a device


def test_all_tensors_on_a_device_are_pulled_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.nn.Parameter(torch.ones(3, device="meta")) for _ in range(5)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = SGD(weights, lr=0.1, weight_decay=1.0)
    calls: list[int] = []
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda mine, theirs, share: calls.append(len(mine)))
    attach(optimizer, Toward(Constant(0.25), MovingAverage(0.5)))
    optimizer.step()
    assert calls == [5, 5], "the weights before the step, the average after it"
