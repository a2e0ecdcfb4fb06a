"""Resuming under every rule: in a new process, through torch.distributed.checkpoint, and where it must not go quietly."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.expressions import spell
from halflife.optim.attaching import attach, handle_of
from halflife.rules import Constant, Decoupled, NormTarget, Rule, Stable, Toward
from tests import FLOOR_BINDS, ROOT
from tests.optim.test_precision import assert_follows_adam
from tests.oracles.every_rule import (
    BY_NAME,
    CASES,
    HALF,
    STEPS,
    Case,
    Net,
    assert_same,
    groups_of,
    name_of,
    reference,
    set_lr,
    train,
    weights,
)

by_rule = pytest.mark.parametrize("case", CASES, ids=name_of)


def started(case: Case, *, steps: int = HALF, plain: bool = False) -> tuple[Net, Optimizer]:
    model = Net()
    optimizer = case.optimizer(groups_of(model))
    if not plain:
        case.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer


def law_of(case: Case) -> str:
    return spell(case.rule())


# ---- a new process


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every rule in the middle of a run, and what a new process made of them."""
    folder = tmp_path_factory.mktemp("resume")
    for case in CASES:
        model = Net()
        optimizer = case.optimizer(groups_of(model))
        case.attach(optimizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", FLOOR_BINDS, UserWarning)
            train(model, optimizer, range(HALF), late=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"{case.name}.saved")
    command = [sys.executable, "-W", "error", "-m", "tests.optim.resume_worker", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@by_rule
@pytest.mark.parametrize("ending", ["first", "later"], ids=["attach, load", "load, attach"])
def test_a_new_process_goes_on_to_the_same_bits(case: Case, ending: str, resumed: Path) -> None:
    """One parameter has had no gradient when the checkpoint is made."""
    model = Net()
    optimizer = case.optimizer(groups_of(model))
    case.attach(optimizer)
    train(model, optimizer, late=True)
    state = torch.load(resumed / f"{case.name}.{ending}", weights_only=True)
    assert_same(list(state["model"].values()), list(model.state_dict().values()))
    expected = optimizer.state_dict()
    for ours, theirs in zip(state["optimizer"]["param_groups"], expected["param_groups"], strict=True):
        assert {**ours, "initial_lr": 0} == {**theirs, "initial_lr": 0}
    for index, kept in expected["state"].items():
        assert kept.keys() == state["optimizer"]["state"][index].keys()
        assert all(
            torch.equal(torch.as_tensor(kept[k]), torch.as_tensor(state["optimizer"]["state"][index][k])) for k in kept
        )


@by_rule
def test_a_run_that_has_started_goes_back_to_a_checkpoint(case: Case) -> None:
    """Everything that the rule has kept so far must give way to what the checkpoint has."""
    model, optimizer = started(case)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(HALF, STEPS))
    other = Net(seed=99)
    busy = case.optimizer(groups_of(other))
    case.attach(busy)
    train(other, busy, range(3))
    other.load_state_dict(saved[0])
    busy.load_state_dict(saved[1])
    train(other, busy, range(HALF, STEPS))
    assert_same(weights(other), weights(model))


# ---- torch.distributed.checkpoint, without a process group


# Each rule in one of the two forms; in the other one it is slow.
IN_FORM = [
    pytest.param(case, flat, id=f"{form}-{case.name}", marks=[] if (index + flat) % 2 else [pytest.mark.slow])
    for flat, form in ((False, "nested"), (True, "flat"))
    for index, case in enumerate(CASES)
]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # as no_dist says
@pytest.mark.parametrize(("case", "flat"), IN_FORM)
def test_through_distributed_checkpoint_files(case: Case, flat: bool, tmp_path: Path) -> None:
    """It drops top-level keys of a state dict, keys by parameter name, and steps fresh optimizers at lr 0."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def state_of(model: Net, optimizer: Optimizer) -> dict[str, Any]:
        found = get_optimizer_state_dict(model, optimizer, options=options)
        return {"model": get_model_state_dict(model), "optimizer": found}

    whole, _ = started(case, steps=STEPS)
    model, optimizer = started(case)
    save(state_of(model, optimizer), checkpoint_id=tmp_path, no_dist=True)

    other = Net(seed=99)
    fresh = case.optimizer(groups_of(other))
    case.attach(fresh)
    state = state_of(other, fresh)
    load(state, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, state["model"])
    set_optimizer_state_dict(other, fresh, state["optimizer"], options=options)
    train(other, fresh, range(HALF, STEPS))
    assert_same(weights(other), weights(whole))


# ---- another law


def neighbours() -> list[tuple[Case, Case]]:
    """Each rule with the next one on the same optimizer."""
    same = [[case for case in CASES if case.sgd is sgd] for sgd in (False, True)]
    return [pair for cases in same for pair in zip(cases, cases[1:] + cases[:1], strict=True)]


@pytest.mark.parametrize(("case", "other"), neighbours(), ids=name_of)
@pytest.mark.parametrize("attach_first", [True, False], ids=["attach, load", "load, attach"])
def test_another_law_is_refused_with_both_shown(case: Case, other: Case, attach_first: bool) -> None:
    state = started(case)[1].state_dict()
    optimizer = other.optimizer(groups_of(Net()))
    saved, attached = law_of(case), law_of(other)
    assert saved != attached
    message = f"the law {re.escape(saved)}, but attached is {re.escape(attached)};.*allow_other_law=True"
    if attach_first:
        handle = other.attach(optimizer)
        with pytest.raises(UserError, match=message):
            optimizer.load_state_dict(state)
        assert handle_of(optimizer) is handle
        assert not optimizer.state
    else:
        optimizer.load_state_dict(state)
        with pytest.raises(UserError, match=message):
            other.attach(optimizer)
        assert handle_of(optimizer) is None
    if not attach_first:
        case.attach(optimizer)  # and the right one goes on
        assert optimizer.state_dict()["param_groups"][0]["halflife_step"] == HALF


def test_other_reference_tensors_are_another_law() -> None:
    state = started(BY_NAME["toward-a-checkpoint"])[1].state_dict()
    optimizer = torch.optim.AdamW(groups_of(Net()))
    attach(optimizer, Toward(Decoupled(3.0), reference(scale=1.0001)))
    digests = r"Tensors\('[0-9a-f]{16}'\)"
    with pytest.raises(UserError, match=f"reference={digests}.*, but attached is .*reference={digests}"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("case", [case for case in CASES if not case.sgd], ids=name_of)
@pytest.mark.parametrize("attach_first", [True, False], ids=["attach, load", "load, attach"])
def test_every_law_may_be_left_for_another_on_request(case: Case, attach_first: bool) -> None:
    """The steps go on; what the new rule needs and the old one did not keep starts from the weights as they are."""
    model, saved = started(case)

    def go_on(rule: Rule | Toward) -> tuple[Net, Optimizer]:
        other = Net()
        optimizer = BY_NAME["decoupled"].optimizer(groups_of(other))
        if attach_first:
            attach(optimizer, rule, allow_other_law=True)
        optimizer.load_state_dict(saved.state_dict())
        if not attach_first:
            attach(optimizer, rule, allow_other_law=True)
        other.load_state_dict(model.state_dict())
        return other, optimizer

    other, optimizer = go_on(Stable(0.05))
    train(other, optimizer, range(HALF, STEPS))
    assert_follows_adam(optimizer)
    group = optimizer.state_dict()["param_groups"][0]
    assert group["halflife_step"] == STEPS

    other, optimizer = go_on(NormTarget())
    norms = [p.detach().norm().item() for p in optimizer.param_groups[0]["params"]]
    train(other, optimizer, range(HALF, HALF + 1))
    if case.name not in {"norm-target-first", "sphere-first"}:  # which kept the same thing
        assert [p.detach().norm().item() for p in optimizer.param_groups[0]["params"]] == pytest.approx(norms, rel=1e-5)

    other, optimizer = go_on(Constant(0.1))
    train(other, optimizer, range(HALF, HALF + 1))
    assert "halflife_memory" not in optimizer.state_dict()["param_groups"][0], "nobody keeps it up to date any more"


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach, load", "load, attach"])
def test_another_beta2_is_left_for_that_of_the_optimizer(attach_first: bool) -> None:
    """The mean of a law with another beta2 is not the optimizer's own second moment, which is there."""
    model, saved = started(Case(BY_NAME["stable-with-a-given-beta2"].row))
    other = Net()
    optimizer = BY_NAME["decoupled"].optimizer(groups_of(other))
    if attach_first:
        attach(optimizer, Stable(0.05), allow_other_law=True)
    optimizer.load_state_dict(saved.state_dict())
    if not attach_first:
        attach(optimizer, Stable(0.05), allow_other_law=True)
    other.load_state_dict(model.state_dict())
    train(other, optimizer, range(HALF, STEPS))
    assert_follows_adam(optimizer)


def test_an_average_does_not_start_from_the_first_weights_of_another_law() -> None:
    """Both are kept in the optimizer's state; they are not the same thing."""
    model, saved = started(BY_NAME["toward-init"])
    other = Net()
    other.load_state_dict(model.state_dict())
    optimizer = BY_NAME["toward-an-average"].optimizer(groups_of(other))
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    BY_NAME["toward-an-average"].attach(optimizer, allow_other_law=True)
    set_lr(optimizer, HALF)
    before = other.position.detach().clone()
    other.position.grad = torch.zeros_like(before)
    optimizer.state[other.position]["exp_avg"].zero_()  # so that only the pull could move it
    optimizer.step()
    assert torch.equal(other.position.detach(), before), "the average is the weight itself at first"


# ---- checkpoints without halflife


@by_rule
def test_a_plain_checkpoint_warns_where_something_is_lost(case: Case) -> None:
    plain = started(case, plain=True)[1].state_dict()
    model, optimizer = started(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(plain)
    texts = [str(each.message) for each in caught]
    if case.lost is None:
        assert texts == []
    else:
        assert texts == [
            f"the loaded checkpoint was saved without halflife, so that {case.lost} of {law_of(case)} start anew"
        ]
    train(model, optimizer, range(HALF, STEPS))
    if case.name == "stable":
        assert_follows_adam(optimizer)


def test_a_checkpoint_from_before_numbers_per_parameter_were_kept() -> None:
    """The second moment is then read from Adam, as in a plain checkpoint."""
    model, optimizer = started(BY_NAME["stable"])
    old = copy.deepcopy(optimizer.state_dict())  # loading would share its tensors
    for group in old["param_groups"]:
        del group["halflife_memory"]
    other = Net()
    other.load_state_dict(model.state_dict())
    fresh = torch.optim.AdamW(groups_of(other), betas=(0.9, 0.95))
    BY_NAME["stable"].attach(fresh)
    fresh.load_state_dict(old)
    train(other, fresh, range(HALF, STEPS))
    assert_follows_adam(fresh)
    train(model, optimizer, range(HALF, STEPS))
    for ours, theirs in zip(weights(other), weights(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_attached_in_the_middle_of_a_run_stable_knows_what_adam_knows() -> None:
    model, optimizer = started(BY_NAME["stable"], plain=True)
    BY_NAME["stable"].attach(optimizer)
    train(model, optimizer, range(HALF, STEPS))
    assert_follows_adam(optimizer)
