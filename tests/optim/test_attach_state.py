"""What ``attach`` keeps in checkpoints and copies: exact resume, refused resume, and nothing left behind."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.attaching import Handle, attach, handle_of
from halflife.rules import (
    Constant,
    Corrected,
    Decoupled,
    Independent,
    NormTarget,
    Penalty,
    Rule,
    Scheduled,
    Sphere,
    Stable,
)
from halflife.schedules import until
from halflife.selfcheck.optimizers import Variant
from halflife.selfcheck.rules import FormulaCase
from tests.oracles.cases import FORMULAS, OPTIMIZERS
from tests.oracles.scalar import LAM, Problem

HALF = 4  # of the 8 steps of a Problem; the schedules of the table change before and after it

by_name: Callable[[Any], str] = lambda case: case.name  # noqa: E731  # a short name for pytest's ids


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file and torch's safe loader, as a user does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def copy_weights(source: Problem, target: Problem) -> None:
    with torch.no_grad():
        for one, other in zip(source.everything, target.everything, strict=True):
            other.copy_(one)


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def adamw(problem: Problem) -> Optimizer:
    return torch.optim.AdamW(problem.groups, lr=0.1)


def started(rule: Rule | Penalty, make: Callable[[Problem], Optimizer] = adamw, **numbers: Any) -> dict[str, Any]:
    """The state dict of an attached optimizer after half of the steps."""
    problem = Problem()
    optimizer = make(problem)
    attach(optimizer, rule, **numbers)
    problem.run(optimizer, steps=range(HALF))
    return saved_and_loaded(optimizer.state_dict())


# ---- exact resume


@pytest.mark.parametrize("rule", FORMULAS, ids=by_name)
@pytest.mark.parametrize("optimizer", [case for case in OPTIMIZERS if case.name != "Muon"], ids=by_name)
@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
def test_resume_is_exact(rule: FormulaCase, optimizer: Variant, order: str) -> None:
    """In float32: torch itself casts NAdam's mu_product to the type of the weight when it loads."""
    own = rule.own

    def attached(made: Optimizer) -> Handle:
        return attach(made, rule.rule, **rule.numbers)  # type: ignore[arg-type]  # floats only

    whole = Problem(own=own, dtype=torch.float32)
    made = optimizer.make(whole.groups)
    attached(made)
    whole.run(made)

    first, second = Problem(own=own, dtype=torch.float32), Problem(own=own, dtype=torch.float32)
    made = optimizer.make(first.groups)
    attached(made)
    first.run(made, steps=range(HALF))
    state = saved_and_loaded(made.state_dict())
    copy_weights(first, second)
    for group in second.groups:
        del group["initial_lr"]  # the peak must come from the checkpoint
    resumed = optimizer.make(second.groups)
    if order == "attach, load":
        attached(resumed)
        resumed.load_state_dict(state)
    else:
        resumed.load_state_dict(state)
        attached(resumed)
    second.run(resumed, steps=range(HALF, len(second.factors)))
    assert_equal(second.values(), whole.values())


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_resume_through_distributed_checkpoints(flat: bool) -> None:
    """They drop top-level keys, flatten groups to parameter names, and step fresh optimizers at lr 0."""
    rule = Scheduled(Independent(LAM), until(HALF + 1))

    class Model(torch.nn.Module):
        def __init__(self, problem: Problem) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(problem.used)

    def made() -> tuple[Problem, Model, Optimizer]:
        problem = Problem()
        groups = [{**group, "params": [weight]} for group, weight in zip(problem.groups, problem.used, strict=True)]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        attach(optimizer, rule)
        return problem, Model(problem), optimizer

    whole, _, optimizer = made()
    whole.run(optimizer)
    first, model, optimizer = made()
    first.run(optimizer, steps=range(HALF))
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    second, other, resumed = made()
    copy_weights(first, second)
    set_optimizer_state_dict(other, resumed, state, options=options)
    second.run(resumed, steps=range(HALF, len(second.factors)))
    assert_equal(second.values(), whole.values())


def test_what_a_checkpoint_holds() -> None:
    rule = Scheduled(Independent(LAM), until(3))
    problem = Problem()
    optimizer = torch.optim.SGD(problem.groups, lr=0.1, momentum=0.9)
    attach(optimizer, rule)
    fresh = optimizer.state_dict()["param_groups"][0]
    assert (fresh["halflife_step"], fresh["halflife_peak_lr"]) == (0, 0.0)
    problem.run(optimizer, steps=range(2))
    group = saved_and_loaded(optimizer.state_dict())["param_groups"][1]
    assert group["halflife_law"] == "Scheduled(Independent(lam=0.3), until(3))"
    assert group["halflife_step"] == 2
    assert group["halflife_peak_lr"] == 0.03
    assert group["initial_weight_decay"] == LAM
    assert group["weight_decay"] == LAM
    # Nothing that changes at each step stands in the groups: torch.compile would guard it.
    assert optimizer.param_groups[1]["halflife_step"] == -1


def test_a_checkpoint_serves_an_optimizer_without_halflife() -> None:
    state = started(Decoupled(LAM))
    problem = Problem()
    optimizer = adamw(problem)
    optimizer.load_state_dict(state)
    problem.run(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [LAM, LAM, 0.0]


def test_loading_replaces_groups_and_the_hooks_follow() -> None:
    problem = Problem()
    optimizer = adamw(problem)
    handle = attach(optimizer, Constant(0.1))
    before = optimizer.param_groups[0]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0] is not before
    problem.run(optimizer, steps=range(1))
    assert handle.fractions() == [0.1, 0.1, 0.0]
    handle.detach()
    assert not any(key.startswith(("halflife", "initial_weight")) for group in optimizer.param_groups for key in group)


def test_a_decay_left_by_an_exception_is_not_loaded_over() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
    attach(optimizer, Constant(0.25))
    state = optimizer.state_dict()
    state["param_groups"][0]["weight_decay"] = 0.75

    def broken() -> float:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(broken)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == 0.75
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.75


# ---- another law


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
def test_another_law_is_refused(order: str) -> None:
    state = started(Independent(LAM), peak_lr=0.5)
    problem = Problem()
    optimizer = adamw(problem)
    message = (
        r"made under the law Independent\(lam=0\.3\), but attached is Constant\(lam=0\.1\); attach the same.*"
        r"or pass attach\(\.\.\., allow_other_law=True\)"
    )
    if order == "attach, load":
        attach(optimizer, Constant(0.1))
        before = copy.deepcopy(optimizer.param_groups)
        with pytest.raises(UserError, match=message):
            optimizer.load_state_dict(state)
        assert not optimizer.state
        assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in before]
        problem.run(optimizer)  # the attached rule goes on
    else:
        optimizer.load_state_dict(state)
        with pytest.raises(UserError, match=message):
            attach(optimizer, Constant(0.1))
        assert handle_of(optimizer) is None
        attach(optimizer, Independent(LAM))  # a second try with the right one still finds steps and peak
        group = optimizer.state_dict()["param_groups"][0]
        assert (group["halflife_step"], group["halflife_peak_lr"]) == (HALF, 0.5)


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
def test_another_law_is_allowed_on_request(order: str) -> None:
    state = started(Scheduled(Constant(0.1), until(2)))
    problem = Problem()
    optimizer = adamw(problem)
    rule = Scheduled(Constant(0.2), until(HALF + 1))
    if order == "attach, load":
        handle = attach(optimizer, rule, allow_other_law=True)
        optimizer.load_state_dict(state)
    else:
        optimizer.load_state_dict(state)
        handle = attach(optimizer, rule, allow_other_law=True)
    problem.run(optimizer, steps=range(4, 5))
    assert handle.fractions() == [0.2, 0.2, 0.0]  # at step 4 of the checkpoint's count
    problem.run(optimizer, steps=range(5, 6))
    assert handle.fractions() == [0.0, 0.0, 0.0]


def test_other_values_of_the_groups_are_another_law() -> None:
    """A rule without lam takes the groups' values, which load_state_dict silently replaces."""
    state = started(Decoupled())
    problem = Problem(own=(0.2, 0.2))
    optimizer = adamw(problem)
    attach(optimizer, Decoupled())
    with pytest.raises(UserError, match=r"weight_decay \(as lam of parameter group 0\) 0\.3, but attached is 0\.2"):
        optimizer.load_state_dict(state)
    other = adamw(Problem(own=(0.2, 0.2)))
    handle = attach(other, Decoupled(), allow_other_law=True)
    other.load_state_dict(state)
    assert [group["weight_decay"] for group in other.param_groups] == [0.2, 0.2, 0.0]
    for group in other.param_groups:
        group["lr"] = 0.1
    other.step()
    assert handle.fractions() == pytest.approx([0.02, 0.02, 0.0])


def test_another_peak_is_another_law_where_it_matters() -> None:
    state = started(Corrected(LAM), peak_lr=0.5)
    optimizer = adamw(Problem())
    attach(optimizer, Corrected(LAM), peak_lr=1.0)
    with pytest.raises(UserError, match=r"made under the peak_lr 0\.5, but attached is 1\.0"):
        optimizer.load_state_dict(state)
    state = started(Decoupled(LAM), peak_lr=0.5)
    optimizer = adamw(Problem())
    attach(optimizer, Decoupled(LAM), peak_lr=1.0)
    optimizer.load_state_dict(state)


def test_a_plain_checkpoint_warns_where_something_is_lost() -> None:
    plain = adamw(Problem()).state_dict()
    problem = Problem()
    optimizer = adamw(problem)
    handle = attach(optimizer, Scheduled(Independent(LAM), until(1)))
    problem.run(optimizer, steps=range(2))
    with pytest.warns(
        UserWarning, match=r"saved without halflife, so that peak_lr and step of Scheduled\(.* start anew"
    ):
        optimizer.load_state_dict(plain)
    problem.run(optimizer, steps=range(1))
    assert handle.fractions() == pytest.approx([LAM / 2, LAM / 2, 0.0])
    optimizer = adamw(Problem())
    attach(optimizer, Decoupled(LAM))
    optimizer.load_state_dict(plain)  # this rule keeps nothing, so nothing is lost


# ---- copies


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["native", "own"])
def test_a_copy_is_unattached_and_keeps_what_the_user_set(
    duplicate: Callable[[Optimizer], Optimizer], momentum: float
) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.groups, lr=0.1, momentum=momentum, weight_decay=0.7)
    handle = attach(optimizer, Independent(0.1))
    problem.run(optimizer, steps=range(2))
    other = duplicate(optimizer)
    assert handle_of(other) is None
    assert not other._optimizer_step_pre_hooks
    assert [group["weight_decay"] for group in other.param_groups] == [LAM, LAM, 0.0]
    assert other.defaults["weight_decay"] == 0.7
    plain = other.state_dict()["param_groups"][0]
    assert plain["halflife_step"] == -1, "no step count, and hence no law that could be refused"
    attach(other, Constant(0.1)).detach()
    again = attach(other, Independent(0.1))
    for each in (optimizer, other):
        for group in each.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        each.step()
    assert again.fractions() == handle.fractions()
    for group, other_group in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert_equal(group["params"], other_group["params"])


def test_the_initial_value_of_another_library_counts_and_stays() -> None:
    """timm's schedulers record the same key, and rewrite weight_decay."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.01)
    optimizer.param_groups[0]["initial_weight_decay"] = 0.5
    handle = attach(optimizer, Decoupled())
    optimizer.step()
    assert handle.fractions() == [0.05]
    left = copy.deepcopy(optimizer)  # carries all keys, and no rule
    handle.detach()
    attach(left, Decoupled()).detach()
    for each in (optimizer, left):
        group = each.param_groups[0]
        assert group["initial_weight_decay"] == 0.5
        assert not [key for key in group if key.startswith("halflife")]


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
@pytest.mark.parametrize(
    ("rule", "damage", "message"),
    [
        (NormTarget(), lambda values: values[:-1], "should hold 1 finite numbers >= 0, got 0 numbers"),
        (NormTarget(), lambda values: (*values, 1.0), "got 2 numbers"),
        (NormTarget(), lambda values: (math.nan, *values[1:]), "got nan among them"),
        (NormTarget(), lambda values: (math.inf, *values[1:]), "got inf among them"),
        (NormTarget(), lambda values: (-2.0, *values[1:]), "got -2.0 among them"),
        (Sphere(per="tensor"), lambda values: (math.nan, *values[1:]), "got nan among them"),
        (Stable(0.1), lambda values: values[:1], "should hold 2 finite numbers >= 0, got 1 numbers"),
        (Stable(0.1), lambda values: (*values[:1], math.nan), "got nan among them"),
        (Stable(0.1), lambda values: (-1.0, *values[1:]), "got -1.0 among them"),
    ],
)
def test_damaged_memory_is_refused(
    rule: Rule, damage: Callable[[tuple[float, ...]], tuple[float, ...]], message: str, order: str
) -> None:
    """It would start anew, or make weights infinite, silently."""

    def made() -> tuple[torch.nn.Parameter, Optimizer]:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        return weight, torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)

    _, first = made()
    attach(first, rule)
    first.step()
    state = saved_and_loaded(first.state_dict())
    group = state["param_groups"][0]
    group["halflife_memory"] = damage(group["halflife_memory"])
    weight, optimizer = made()
    before = copy.deepcopy(optimizer.param_groups[0])
    if order == "attach, load":
        handle = attach(optimizer, rule)
        with pytest.raises(UserError, match=f"halflife_memory of parameter group 0 .*{message}"):
            optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert not optimizer.state
        handle.detach()
        assert optimizer.param_groups[0].keys() == before.keys()
    else:
        optimizer.load_state_dict(state)
        with pytest.raises(UserError, match=f"halflife_memory of parameter group 0 .*{message}"):
            attach(optimizer, rule)
        assert handle_of(optimizer) is None
        del optimizer.param_groups[0]["halflife_memory"]  # as the sentence says
        attach(optimizer, rule)
        optimizer.step()
    assert torch.isfinite(weight.detach()).all()


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"halflife_step": "2"}, "the step must be a number, got '2'"),
        ({"halflife_step": 1.5}, "the step must be a whole number of steps >= 0, got 1.5"),
        ({"halflife_step": -2}, "the step must be a whole number of steps >= 0, got -2"),
        ({"halflife_step": None}, "the step must be a number, got None"),
        ({"halflife_law": 3}, "the law must be text, got 3"),
        ({"halflife_law": None}, "the law must be text, got None"),
        ({"halflife_peak_lr": "x"}, "the peak_lr must be a number, got 'x'"),
        ({"halflife_peak_lr": math.nan}, "the peak_lr must be a finite number >= 0, got nan"),
        ({"halflife_memory": 3}, "'int' object is not iterable"),
        ({"halflife_memory": [[]]}, "the memory must be a number, got "),
    ],
)
def test_what_a_checkpoint_keeps_has_types(damage: dict[str, Any], message: str, order: str) -> None:
    state = started(NormTarget())
    group = state["param_groups"][1]
    group |= damage
    optimizer = adamw(Problem())
    said = rf"the checkpoint is damaged, of parameter group 1 {re.escape(message)}.*: load another checkpoint"
    if order == "attach, load":
        attach(optimizer, NormTarget())
        with pytest.raises(UserError, match=said):
            optimizer.load_state_dict(state)
    else:
        optimizer.load_state_dict(state)
        with pytest.raises(UserError, match=said):
            attach(optimizer, NormTarget())
        assert handle_of(optimizer) is None


def test_a_handle_survives_a_round_trip_of_the_state(tmp_path: Path) -> None:
    """The step count goes on in the same process, too: loading an older state turns it back."""
    problem = Problem()
    optimizer = adamw(problem)
    handle = attach(optimizer, Scheduled(Constant(0.1), until(3)))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    problem.run(optimizer, steps=range(3))
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert handle.fractions() == [0.0, 0.0, 0.0]
    problem.run(optimizer, steps=range(2))
    assert handle.fractions() == [0.1, 0.1, 0.0]
