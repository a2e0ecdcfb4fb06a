"""``attach`` in a step: parity with torch, both apply, the scalar oracles, and each trap with its test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim import apply, refusals
from halflife.optim.attaching import attach, handle_of
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    Independent,
    Normalized,
    PerGroup,
    Scheduled,
    Toward,
)
from halflife.schedules import until
from halflife.selfcheck.bad_inputs import BAD_INPUTS, BadInput, answer, groups_of, toy
from halflife.selfcheck.optimizers import Variant
from halflife.selfcheck.rules import FormulaCase
from tests import needs_muon
from tests.oracles.cases import FORMULAS, OPTIMIZERS, own_pass_only
from tests.oracles.scalar import LAM, Problem, adam_update, scalar_run, sgd_update

IMPLEMENTATIONS: tuple[dict[str, Any], ...] = ({"foreach": False}, {"foreach": True}, {"fused": True})
by_name: Callable[[Any], str] = lambda case: case.name  # noqa: E731  # a short name for pytest's ids


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], rtol: float = 1e-12) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * 1e-2)


# ---- parity with torch's own decay


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("mechanism", ["native", "own"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_equals_adamw_bit_for_bit(
    implementation: dict[str, Any], mechanism: str, closure: bool, dtype: torch.dtype
) -> None:
    """A fused kernel multiplies w - lr * lam * w in its own order, so that the own pass may differ by rounding."""
    results = []
    for attached in (False, True):
        problem = Problem(dtype=dtype)
        optimizer = torch.optim.AdamW(problem.groups, lr=0.1, **implementation)
        if not attached:
            problem.run(optimizer, closure=closure)
        elif mechanism == "native":
            attach(optimizer, Decoupled(LAM))
            problem.run(optimizer, closure=closure)
        else:
            with own_pass_only():
                attach(optimizer, Decoupled(LAM))
                problem.run(optimizer, closure=closure)
        results.append(problem.values())
    if mechanism == "own" and implementation.get("fused"):
        assert_close(results[0], results[1], rtol=1e-6 if dtype is torch.float32 else 1e-14)
    else:
        assert_equal(*results)


@pytest.mark.parametrize("name", [pytest.param("Muon", marks=needs_muon), "Adafactor"])
def test_equals_muon_and_adafactor_bit_for_bit(name: str) -> None:
    make = getattr(torch.optim, name)
    results = []
    for attached in (False, True):
        problem = Problem()
        optimizer = make(problem.groups, lr=0.1)
        if attached:
            attach(optimizer, Decoupled())
        problem.run(optimizer)
        results.append(problem.values())
    assert_equal(*results)


@given(lr=st.floats(min_value=1e-12, max_value=10.0), lam=st.floats(min_value=1e-12, max_value=10.0))
def test_the_value_written_gives_the_product_back(lr: float, lam: float) -> None:
    """Why native parity holds to the last bit, although ``lr * lam / lr`` may differ from ``lam``."""
    assert lr * apply.native_value(lr * lam, lr) == lr * lam
    assert apply.native_value(0.0, lr) == apply.native_value(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda groups, lam: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=lam),
        lambda groups, lam: torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=True, weight_decay=lam),
        lambda groups, lam: torch.optim.SGD(groups, lr=0.1, maximize=True, weight_decay=lam),
        lambda groups, lam: torch.optim.Adam(groups, lr=0.1, weight_decay=lam),
        lambda groups, lam: torch.optim.Adam(groups, lr=0.1, maximize=True, weight_decay=lam),
        lambda groups, lam: torch.optim.RMSprop(groups, lr=0.1, weight_decay=lam),
    ],
)
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_l2_equals_torch(make: Callable[[Any, float], Optimizer], closure: bool) -> None:
    """Also at lr == 0, where the statistics of torch's optimizers take the penalty in."""
    results = []
    for attached in (False, True):
        problem = Problem()
        optimizer = make(problem.groups, LAM)
        if attached:
            attach(optimizer, L2(LAM))
        problem.run(optimizer, closure=closure)
        results.append(problem.values())
    assert_equal(*results)


def test_l2_replaces_a_decoupled_decay_and_follows_its_schedule() -> None:
    problem, expected = Problem(), Problem()
    optimizer = torch.optim.AdamW(problem.groups, lr=0.1)
    attach(optimizer, L2(LAM, until(4)))
    problem.run(optimizer)
    oracle = torch.optim.Adam(expected.groups, lr=0.1)
    expected.run(oracle, steps=range(4))
    for group in oracle.param_groups:
        group["weight_decay"] = 0.0
    expected.run(oracle, steps=range(4, len(expected.factors)))
    assert_equal(problem.values(), expected.values())


# ---- every rule on every optimizer


@pytest.mark.parametrize("rule", FORMULAS, ids=by_name)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=by_name)
def test_shrinks_by_the_oracle(rule: FormulaCase, optimizer: Variant) -> None:
    """With zero gradients nothing but decay moves a weight: its value is the product of 1 - r."""
    problem = Problem(own=rule.own)
    start = problem.values()
    made = optimizer.make(problem.groups)
    handle = attach(made, rule.rule, **rule.numbers)  # type: ignore[arg-type]  # floats only
    assert apply.applies_natively(made, made.param_groups[0]) is optimizer.native
    kept = [1.0, 1.0, 1.0]
    for step, factor in enumerate(problem.factors):
        problem.set_lr(made, step)
        for parameter in problem.used:
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        expected = []
        for group, peak in enumerate(problem.peaks):
            active = factor > 0 and problem.own[group] > 0
            expected.append(rule.formula(peak * factor, peak, problem.own[group], step, group) if active else 0.0)
            kept[group] *= 1.0 - expected[group]
        assert handle.fractions() == pytest.approx(expected, rel=1e-12)
    assert_close(problem.values()[:3], [value * share for value, share in zip(start, kept, strict=False)])
    assert_equal(problem.values()[3:], start[3:])


@pytest.mark.parametrize("rule", FORMULAS, ids=by_name)
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize(
    ("optimizer", "update"),
    [
        (lambda groups: torch.optim.SGD(groups, lr=0.1), sgd_update(0.0)),
        (lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), sgd_update(0.9)),
        (lambda groups: torch.optim.Adam(groups, lr=0.1), adam_update),
        (lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=False), adam_update),
        (lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=True), adam_update),
        (lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True), adam_update),
    ],
    ids=["sgd", "sgd-momentum", "adam", "adamw-loop", "adamw-foreach", "adamw-fused"],
)
def test_equals_scalar_oracle(
    rule: FormulaCase,
    closure: bool,
    optimizer: Callable[[Any], Optimizer],
    update: Callable[[float, float, int, dict[str, float]], float],
) -> None:
    """Training with gradients, one number at a time: decay stands between the gradient and the update."""
    problem = Problem(own=rule.own)
    expected = scalar_run(problem, problem.values(), rule.formula, update)
    made = optimizer(problem.groups)
    attach(made, rule.rule, **rule.numbers)  # type: ignore[arg-type]  # floats only
    problem.run(made, closure=closure)
    assert_close(problem.values(), expected)


@pytest.mark.parametrize("rule", FORMULAS, ids=by_name)
@pytest.mark.parametrize(
    "optimizer", [case for case in OPTIMIZERS if case.native and not case.case.rereads], ids=by_name
)
def test_mechanisms_agree(rule: FormulaCase, optimizer: Variant) -> None:
    """Not for Adafactor: its step size depends on the weight, which the own pass would shrink first."""
    results = []
    for own_pass in (False, True):
        problem = Problem(own=rule.own)
        made = optimizer.make(problem.groups)
        attach(made, rule.rule, **rule.numbers)  # type: ignore[arg-type]  # floats only
        if own_pass:
            with own_pass_only():
                problem.run(made)
        else:
            problem.run(made)
        results.append(problem.values())
    # Muon computes its update in bfloat16; a last bit of the momentum may round differently there.
    assert_close(results[0], results[1], rtol=1e-12 if optimizer.name != "Muon" else 1e-2)


def test_a_subclass_takes_the_own_pass() -> None:
    class Mine(torch.optim.AdamW):
        """May do anything with its weight_decay."""

    weight, optimizer = toy(Mine, lr=0.1, weight_decay=0.5)
    assert not apply.applies_natively(optimizer, optimizer.param_groups[0])
    attach(optimizer, Decoupled())
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("setting", "native"),
    [
        ({}, True),
        ({"momentum": 0.1}, False),
        ({"momentum": 0.1, "nesterov": True}, False),
        ({"dampening": 0.5}, True),
    ],
)
def test_sgd_is_native_only_without_momentum(setting: dict[str, Any], native: bool) -> None:
    _, optimizer = toy(lr=0.1, **setting)
    assert apply.applies_natively(optimizer, optimizer.param_groups[0]) is native


def test_a_capturable_group_takes_the_own_pass() -> None:
    _, optimizer = toy(torch.optim.AdamW, lr=0.1)
    assert not apply.applies_natively(optimizer, {**optimizer.param_groups[0], "capturable": True})


def test_a_tiny_lr_takes_the_own_pass() -> None:
    """The value to write, r / lr, would overflow float32 in a fused kernel."""
    weight, optimizer = toy(torch.optim.AdamW, lr=1e-40, fused=True, weight_decay=0.1)
    handle = attach(optimizer, Constant(0.25))
    optimizer.step()
    assert weight[0, 0].item() == 0.75
    assert handle.fractions() == [0.25]


# ---- precision of the own pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_own_pass_does_not_round_the_factor(dtype: torch.dtype) -> None:
    """0.998 as a bfloat16 number is 1.0 or 0.996; the factor must act in float32 before the result is rounded."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.nn.Parameter(values.clone())
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Constant(0.002))
    optimizer.step()
    assert torch.equal(weight.detach(), (values.float() * torch.tensor(0.998)).to(dtype))


def test_own_pass_keeps_small_fractions_in_float64() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    other = torch.nn.Parameter(torch.ones(1, dtype=torch.float32))
    optimizer = torch.optim.SGD([weight, other], lr=1.0, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Constant(1e-12))
    weight.grad, other.grad = torch.zeros_like(weight), torch.zeros_like(other)
    optimizer.step()
    assert weight.item() == 1.0 - 1e-12
    assert other.item() == 1.0


def test_complex_weights_shrink() -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Constant(0.5))
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((2,), 0.5, dtype=torch.complex64))


# ---- traps of hooks


@pytest.mark.parametrize("rule", FORMULAS, ids=by_name)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=by_name)
def test_lr_zero_shrinks_nothing(rule: FormulaCase, optimizer: Variant) -> None:
    """Checkpoint libraries make such a step to create the optimizer's state."""
    problem = Problem()
    start = problem.values()
    made = optimizer.make(problem.groups)
    handle = attach(made, rule.rule, **rule.numbers)  # type: ignore[arg-type]  # floats only
    for group in made.param_groups:
        group["lr"] = 0.0
    problem.closure()
    made.step()
    assert_equal(problem.values(), start)
    assert handle.fractions() == [0.0, 0.0, 0.0]


def test_steps_at_lr_zero_count() -> None:
    """The optimizer counts them too, and a linear warm-up from 0 has one."""
    weight, optimizer = toy(momentum=0.9, lr=0.0, weight_decay=1.0)
    handle = attach(optimizer, Scheduled(Constant(0.5), until(2)))
    seen = []
    for lr in (0.0, 0.1, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        seen += handle.fractions()
    assert seen == [0.0, 0.5, 0.0]
    assert weight[0, 0].item() == 0.5


@pytest.mark.parametrize("mechanism", ["native", "own"])
def test_lr_as_a_tensor(mechanism: str) -> None:
    results = []
    for attached in (False, True):
        problem = Problem(dtype=torch.float32)
        optimizer = torch.optim.AdamW(problem.groups, lr=0.1, foreach=False)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.05)
        if attached:
            attach(optimizer, Decoupled(LAM))
        for _ in range(4):
            problem.closure()
            for group in optimizer.param_groups:
                group["lr"].mul_(0.9)  # in place, as torch's schedulers change it
            if attached and mechanism == "own":
                with own_pass_only():
                    optimizer.step()
            else:
                optimizer.step()
        results.append(problem.values())
    assert_close(results[0], results[1], rtol=1e-6)


def test_a_tensor_lr_does_not_move_the_peak() -> None:
    _, optimizer = toy(torch.optim.AdamW, lr=torch.tensor(0.5), weight_decay=0.1)
    handle = attach(optimizer, Independent(0.1))
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(0.25)
    optimizer.step()
    assert handle.fractions() == [0.05]


class CallsTwice(torch.optim.SGD):
    """Evaluates its closure twice and uses the second gradient, as optimizers with a look ahead do."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
        return super().step(closure)


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.LBFGS(groups[0]["params"][:1], lr=0.1, max_iter=5),
        lambda groups: CallsTwice(groups[0]["params"][:1], lr=0.1),
    ],
    ids=["lbfgs", "calls twice"],
)
def test_weights_shrink_once_however_often_the_closure_is_called(make: Callable[[Any], Any]) -> None:
    results = []
    for attached in (False, True):
        problem = Problem()
        optimizer = make(problem.groups)
        calls: list[Tensor] = []
        if attached:
            attach(optimizer, Constant(0.25), select="all")

        def closure(problem: Problem = problem, calls: list[Tensor] = calls, by_hand: bool = not attached) -> float:
            loss = problem.closure().item()
            if by_hand and not calls:
                with torch.no_grad():
                    problem.used[0].mul_(0.75)
            calls.append(problem.used[0].detach().clone())
            return loss

        optimizer.step(closure)
        assert len(calls) >= 2
        results.append(problem.values())
    assert_equal(*results)


def test_a_step_that_calls_the_step_of_its_base_class_decays_and_counts_once() -> None:
    """torch runs the hooks in both, once the base class has been used by itself."""
    toy(lr=0.1)

    class Mine(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            if self.fails:
                raise RuntimeError("after the update")
            return loss

    weight, optimizer = toy(Mine, lr=0.1, weight_decay=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append(1))
    handle = attach(optimizer, Scheduled(Constant(0.5), until(3)))
    optimizer.step()
    assert len(calls) == 2, "the trap is there"
    assert weight[0, 0].item() == 0.5
    Mine.fails = True
    with pytest.raises(RuntimeError, match="after the update"):
        optimizer.step()
    assert weight[0, 0].item() == 0.25
    Mine.fails = False
    for expected in (0.5, 0.5, 0.0):  # a step that raised is not counted
        optimizer.step()
        assert handle.fractions() == [expected]
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_every_gradient_gets_its_penalty() -> None:
    results = []
    for attached in (False, True):
        problem = Problem()
        optimizer = CallsTwice(problem.groups, lr=0.1, momentum=0.9)
        if attached:
            attach(optimizer, L2(LAM))
        problem.run(optimizer, closure=True)
        results.append(problem.values())
    assert_equal(*results)


def test_the_closure_runs_with_gradients_and_returns_its_value() -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.groups, lr=0.1, momentum=0.9)
    attach(optimizer, Decoupled(LAM))
    with torch.no_grad():
        assert optimizer.step(closure=lambda: 1.5 if torch.is_grad_enabled() and problem.closure() > 0 else 0.0) == 1.5


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["native", "own"])
def test_the_users_values_stand_between_steps(momentum: float) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.groups, lr=0.1, momentum=momentum, weight_decay=0.7)
    handle = attach(optimizer, Constant(0.1))
    inside: list[tuple[list[float], float]] = []

    def record() -> None:
        values = [group["weight_decay"] for group in optimizer.param_groups]
        inside.append((values, optimizer.defaults["weight_decay"]))

    optimizer._optimizer_step_code = record  # type: ignore[method-assign]  # torch calls it after the update
    problem.run(optimizer, steps=range(1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [LAM, LAM, 0.0]
    assert optimizer.defaults["weight_decay"] == 0.7
    expected = [0.1 / 0.05, 0.1 / 0.015, 0.0] if momentum == 0 else [0.0, 0.0, 0.0]
    assert inside[0][0] == pytest.approx(expected)
    assert inside[0][1] == 0.7, "the defaults are what new groups get"
    assert handle.fractions() == [0.1, 0.1, 0.0]
    problem.set_lr(optimizer, 3)  # at lr 0 nothing is shrunk by anyone
    optimizer.step()
    assert inside[1] == ([0.0, 0.0, 0.0], 0.7)


def test_rewriting_weight_decay_neither_revives_nor_stops_a_group() -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.groups, lr=0.1)
    handle = attach(optimizer, Constant(0.1))
    for group, value in zip(optimizer.param_groups, (0.0, 5.0, 9.0), strict=True):
        group["weight_decay"] = value
    message = r"group 0 was changed from 0\.3 to 0\.0 after attach, and Constant\(lam=0\.1\) does not read it"
    with pytest.warns(UserWarning, match=message):
        problem.run(optimizer, steps=range(1))
    optimizer.param_groups[0]["weight_decay"] = 7.0
    problem.run(optimizer, steps=range(1))  # said once: a second warning would be an error here
    assert handle.fractions() == [0.1, 0.1, 0.0]
    optimizer.param_groups[0]["weight_decay"] = 0.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 5.0, 9.0]


def test_a_new_group_joins() -> None:
    first, optimizer = toy(lr=0.1, momentum=0.9, weight_decay=0.5)
    handle = attach(optimizer, Decoupled())
    optimizer.step()
    extra = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    for parameter in extra:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.add_param_group({"params": [extra[0]]})  # takes weight_decay from the defaults
    optimizer.add_param_group({"params": [extra[1]], "weight_decay": 0.2, "lr": 1.0})
    optimizer.add_param_group({"params": [extra[2]], "weight_decay": 0.0})
    assert handle.fractions() == [0.05, 0.0, 0.0, 0.0]
    optimizer.step()
    assert handle.fractions() == [0.05, 0.05, 0.2, 0.0]
    assert [parameter.item() for parameter in extra] == pytest.approx([0.95, 0.8, 1.0])  # once, not twice
    assert first[0, 0].item() == pytest.approx(0.95**2)


def test_a_new_group_is_checked() -> None:
    weight, optimizer = toy(lr=0.1, weight_decay=0.5)
    attach(optimizer, Decoupled(0.5))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.2})
    with pytest.raises(UserError, match=r"different weight_decay values 0\.2, 0\.5 of the groups"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


@needs_muon
def test_several_optimizers_are_one() -> None:
    matrix, vector = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.ones(2))
    muon: Any = torch.optim.Muon([matrix], lr=0.2, weight_decay=0.1)
    groups: list[dict[str, Any]] = [
        {"params": [vector]},
        {"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
    handle = attach([muon, adamw], Decoupled())
    assert handle.optimizers == (muon, adamw)
    assert handle_of(muon) is handle_of(adamw) is handle
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    muon.step()
    adamw.step()
    assert handle.fractions() == pytest.approx([0.02, 0.003, 0.0])
    assert torch.allclose(matrix, 0.98 * torch.eye(2))
    assert torch.allclose(vector, torch.full((2,), 0.997))
    handle.detach()
    assert handle_of(muon) is handle_of(adamw) is None


def test_select_all_serves_groups_at_zero_and_optimizers_without_the_setting() -> None:
    weight, optimizer = toy(torch.optim.Rprop, lr=0.1)
    handle = attach(optimizer, Constant(0.5), select="all")
    optimizer.step()
    assert weight[0, 0].item() == 0.5
    handle.detach()
    assert set(optimizer.param_groups[0]) == set(toy(torch.optim.Rprop, lr=0.1)[1].param_groups[0])
    weight, optimizer = toy(lr=0.1)
    attach(optimizer, Decoupled(1.0), select="all")
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(0.9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=by_name)
def test_detach_gives_everything_back(optimizer: Variant) -> None:
    problem, untouched = Problem(), Problem()
    made, plain = optimizer.make(problem.groups), optimizer.make(untouched.groups)
    handle = attach(made, Independent(0.1))
    problem.run(made, steps=range(2))
    handle.detach()
    handle.detach()  # a second time does nothing
    for group, other, peak in zip(made.param_groups, plain.param_groups, problem.peaks, strict=True):
        group["lr"] = peak
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in other.items() if key != "params"
        }
    assert made.defaults == plain.defaults
    assert not made._optimizer_step_pre_hooks
    assert not made._optimizer_step_post_hooks
    assert vars(made).keys() == vars(plain).keys()
    # From the same weights and a fresh state both now decay alike, by the optimizer's own law.
    with torch.no_grad():
        for parameter, other_parameter in zip(problem.everything, untouched.everything, strict=True):
            parameter.copy_(other_parameter)
    made.load_state_dict(copy.deepcopy(plain.state_dict()))
    problem.run(made)
    untouched.run(plain)
    assert_equal(problem.values(), untouched.values())


def test_attach_again_after_detach() -> None:
    weight, optimizer = toy(lr=0.1, weight_decay=0.5)
    attach(optimizer, Constant(0.1)).detach()
    optimizer.param_groups[0]["weight_decay"] = 0.25
    attach(optimizer, Decoupled())
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(1 - 0.025)


# ---- the peak learning rate


@pytest.mark.parametrize(
    ("argument", "keys", "peak"),
    [
        (None, {}, 0.1),
        (None, {"initial_lr": 0.2}, 0.2),
        (None, {"initial_lr": 0.2, "max_lr": 0.4}, 0.4),
        (0.8, {"initial_lr": 0.2, "max_lr": 0.4}, 0.8),
    ],
)
def test_where_the_peak_comes_from(argument: float | None, keys: dict[str, float], peak: float) -> None:
    _, optimizer = toy(lr=0.1, weight_decay=0.5)
    optimizer.param_groups[0].update(keys)
    handle = attach(optimizer, Independent(0.5), peak_lr=argument)
    optimizer.step()
    assert handle.fractions() == [pytest.approx(0.5 * 0.1 / peak)]
    assert optimizer.param_groups[0]["halflife_peak_lr"] == peak


def test_a_given_peak_counts_more_than_one_that_was_kept() -> None:
    _, optimizer = toy(lr=0.1, weight_decay=0.5)
    attach(optimizer, Independent(0.5))
    optimizer.step()
    other = copy.deepcopy(optimizer)
    handle = attach(other, Independent(0.5), peak_lr=0.4)
    other.step()
    assert other.param_groups[0]["halflife_peak_lr"] == 0.4
    assert handle.fractions() == [pytest.approx(0.125)]


def test_the_peak_is_looked_for_at_the_first_step_above_zero() -> None:
    _, optimizer = toy(lr=0.0, weight_decay=0.5)
    handle = attach(optimizer, Independent(0.5))
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert handle.fractions() == [0.5]


def test_torch_schedulers_stay_at_or_below_the_peak() -> None:
    """Their recursive formulas come back to the peak with a rounding error, which is no mistake of the user."""
    for make in (
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=60),
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9),
    ):
        _, optimizer = toy(lr=0.1, weight_decay=0.5)
        scheduler = make(optimizer)
        handle = attach(optimizer, Corrected(0.5))
        largest = 0.0
        for _ in range(59):
            optimizer.step()
            scheduler.step()
            largest = max(largest, *handle.fractions())
        assert largest == pytest.approx(0.05)


# ---- loss scaling


@pytest.mark.parametrize("mechanism", ["native", "own"])
def test_an_overflow_step_of_a_fused_optimizer_shrinks_and_counts_nothing(mechanism: str) -> None:
    """GradScaler calls fused optimizers on overflow too and lets the kernel skip; the hooks run all the same."""

    def train(fused: bool, *, overflow_at: int | None) -> list[Tensor]:
        problem = Problem(dtype=torch.float32)
        optimizer = torch.optim.AdamW(problem.groups, lr=0.05, fused=fused, foreach=False)
        handle = attach(optimizer, Scheduled(Constant(0.1), until(3)))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.ones(()))  # creates the scale
        for step in range(6):
            problem.closure()
            for parameter in problem.used:
                assert parameter.grad is not None
                parameter.grad.mul_(scaler.get_scale())
                if step == overflow_at:
                    parameter.grad.fill_(math.inf)
            scaler.step(optimizer)
            if step == overflow_at and fused:
                assert handle.fractions() == [0.0, 0.0, 0.0]
            scaler.update()
        return problem.values()

    expected = train(False, overflow_at=1)  # torch skips the whole step there, hooks included
    if mechanism == "native":
        assert_close(train(True, overflow_at=1), expected, rtol=1e-5)
    else:
        with own_pass_only():
            assert_close(train(True, overflow_at=1), expected, rtol=1e-5)
    with pytest.raises(AssertionError):  # the overflow matters: without it the result is another
        assert_close(train(True, overflow_at=None), expected, rtol=1e-5)


def test_l2_on_gradients_that_are_still_scaled() -> None:
    results = []
    for attached in (False, True):
        problem = Problem(dtype=torch.float32)
        optimizer = torch.optim.Adam(problem.groups, lr=0.05, fused=True)
        if attached:
            attach(optimizer, L2(LAM))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.ones(()))  # creates the scale
        for _ in range(4):
            problem.closure()
            for parameter in problem.used:
                assert parameter.grad is not None
                parameter.grad.mul_(scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        results.append(problem.values())
    assert_close(results[0], results[1], rtol=1e-5)


# ---- torch.compile


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("momentum", "more"), [(0.0, 1), (0.9, 0)], ids=["native", "own"])
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_a_compiled_step_is_not_compiled_again_and_again(momentum: float, more: int) -> None:
    """native: one more graph when the number first changes, none afterwards. The own pass costs none."""
    from torch._dynamo.testing import CompileCounter

    def train(*, attached: bool, compiled: bool) -> tuple[list[Tensor], int]:
        torch._dynamo.reset()
        problem = Problem(dtype=torch.float32)
        optimizer = torch.optim.SGD(problem.groups, lr=0.05, momentum=momentum, foreach=False)
        if attached:
            attach(optimizer, Scheduled(Independent(0.1), lambda step: 1.0 / (1 + step)))
        counter = CompileCounter()
        step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
        for _ in range(8):
            problem.closure()
            step()
        return problem.values(), counter.frame_count

    expected, _ = train(attached=True, compiled=False)
    _, bare = train(attached=False, compiled=True)
    values, graphs = train(attached=True, compiled=True)
    assert 0 < graphs <= bare + more
    assert_close(values, expected, rtol=1e-6)


# ---- refusals


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=by_name)
def test_refused(bad: BadInput) -> None:
    """Each with its sentence; a step that is refused touches nothing."""
    assert answer(bad) is None


@pytest.mark.parametrize(
    ("make", "rule", "same"),
    [
        (lambda groups: torch.optim.AdamW(groups, lr=1e-3), Independent(), "Independent(lam=0.0001)"),
        (lambda groups: torch.optim.AdamW(groups, lr=1e-3), Constant(), "Constant(lam=0.0001)"),
        (lambda groups: torch.optim.AdamW(groups, lr=1e-3), Normalized(steps=100), "Normalized(lam=0.001, steps=100"),
        (lambda groups: torch.optim.Adafactor(groups, lr=0.5), Independent(), "Independent(lam=0.05)"),
        (lambda groups: torch.optim.SGD(groups, lr=0.5), Constant(), "Constant(lam=0.05)"),
        (  # an L2 penalty, whose momentum makes it four times as strong
            lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.75),
            Scheduled(Independent(), until(9)),
            "0.1 of SGD at peak lr 0.5 is Independent(lam=0.2)",
        ),
        (
            lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.75, dampening=0.5),
            Cautious(Constant()),
            "Constant(lam=0.1)",
        ),
        (
            lambda groups: torch.optim.Adam(groups, lr=1e-3),
            Independent(),
            "the decay of Adam is not known to be lr * weight_decay, so no lam of Independent can be named for it",
        ),
        (lambda groups: torch.optim.SGD(groups, lr=0.0), Constant(), "give the rule a lam, which halflife.convert"),
        (lambda groups: torch.optim.SGD(groups, lr=20.0), Constant(), "give the rule a lam, which halflife.convert"),
        (
            lambda groups: torch.optim.AdamW(groups, lr=1e-3),
            PerGroup([Decoupled(), Independent(), Constant()]),
            "Independent needs a lam: the weight_decay = 0.1 of AdamW has another unit;",
        ),
    ],
)
def test_a_weight_decay_of_another_unit_is_no_lam(make: Callable[[Any], Optimizer], rule: Any, same: str) -> None:
    """The sentence says what the same decay is in the unit of the rule; attached so, it removes as much at the peak."""
    optimizer = make(groups_of(0.1, 0.1, 0.0))
    keys = [set(group) for group in optimizer.param_groups]
    with pytest.raises(UserError) as raised:
        attach(optimizer, rule)
    assert same in str(raised.value)
    assert [set(group) for group in optimizer.param_groups] == keys


def test_the_peak_in_that_sentence_is_the_one_that_the_rule_would_have() -> None:
    optimizer = torch.optim.AdamW(groups_of(0.1), lr=1e-3)
    optimizer.param_groups[0]["initial_lr"] = 1e-2
    with pytest.raises(UserError, match=r"0\.1 of AdamW at peak lr 0\.01 is Independent\(lam=0\.001\)"):
        attach(optimizer, Independent())
    with pytest.raises(UserError, match=r"0\.1 of AdamW at peak lr 0\.5 is Independent\(lam=0\.05\)"):
        attach(optimizer, Independent(), peak_lr=0.5)


@pytest.mark.parametrize(
    "rule",
    [Decoupled(), Corrected(), L2(), Cautious(Decoupled()), Scheduled(Corrected(), until(9)), Toward(Decoupled())],
)
def test_rules_in_the_unit_of_the_optimizer_take_its_value(rule: Any) -> None:
    _, optimizer = toy(torch.optim.AdamW, lr=0.5, weight_decay=0.1)
    handle = attach(optimizer, rule)
    optimizer.step()
    assert handle.fractions() == [0.0 if isinstance(rule, L2) else pytest.approx(0.05)]


@pytest.mark.parametrize("value", [None, "0.1", float("nan"), float("inf"), -0.1, [0.1], 1j, torch.ones(2)])
def test_a_weight_decay_that_is_no_number(value: Any) -> None:
    """In the second group: the first is left as it was, too. The same for a group that joins."""
    optimizer = torch.optim.SGD(groups_of(0.1, 0.1), lr=0.1)
    keys = [set(group) for group in optimizer.param_groups]
    optimizer.param_groups[1]["weight_decay"] = value
    message = r"the weight_decay of parameter group 1 is .*; expected a finite number >= 0, 0\.0 for no decay"
    with pytest.raises(UserError, match=message):
        attach(optimizer, Decoupled(0.1), select="all")
    assert [set(group) for group in optimizer.param_groups] == keys
    assert handle_of(optimizer) is None

    weight, joined = toy(lr=0.1, weight_decay=0.5)
    attach(joined, Decoupled())
    joined.add_param_group(groups_of(0.2)[0])
    joined.param_groups[1]["weight_decay"] = value
    with pytest.raises(UserError, match=message):
        joined.step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
    joined.param_groups[1]["weight_decay"] = 0.2
    joined.step()
    assert weight[0, 0].item() == pytest.approx(0.95)


def test_a_group_that_was_refused_can_be_mended() -> None:
    _, optimizer = toy(lr=0.1, weight_decay=0.5)
    handle = attach(optimizer, Decoupled(0.5))
    optimizer.add_param_group(groups_of(0.2)[0])
    with pytest.raises(UserError, match=r"different weight_decay values 0\.2, 0\.5"):
        optimizer.step()
    optimizer.param_groups[1]["weight_decay"] = 0.5
    optimizer.step()
    assert handle.fractions() == [0.05, 0.05]


def test_any_exception_in_attach_leaves_the_optimizer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that nobody foresaw."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(refusals, "check_some_decay", broken)
    optimizers = [torch.optim.SGD(groups_of(0.1), lr=0.1), torch.optim.AdamW(groups_of(0.1), lr=0.1)]
    keys = [set(optimizer.param_groups[0]) for optimizer in optimizers]
    with pytest.raises(ZeroDivisionError):
        attach(optimizers, Decoupled())
    assert [set(optimizer.param_groups[0]) for optimizer in optimizers] == keys
    assert [handle_of(optimizer) for optimizer in optimizers] == [None, None]


def test_a_refusal_leaves_the_optimizer_as_it_was() -> None:
    optimizer = torch.optim.SGD(groups_of(0.1, 0.3), lr=0.1)
    keys = [set(group) for group in optimizer.param_groups]
    with pytest.raises(UserError, match="different weight_decay"):
        attach(optimizer, Decoupled(0.1))
    assert [set(group) for group in optimizer.param_groups] == keys
    assert handle_of(optimizer) is None
    attach(optimizer, Decoupled())


def test_a_second_attach_is_refused() -> None:
    optimizer = toy(lr=0.1, weight_decay=0.5)[1]
    handle = attach(optimizer, Decoupled())
    with pytest.raises(UserError, match=r"already attached to this SGD.*call detach\(\) on the first handle"):
        attach(optimizer, Constant(0.1))
    assert handle_of(optimizer) is handle


def test_just_below_one_is_allowed() -> None:
    weight, optimizer = toy(torch.optim.AdamW, lr=1.0, weight_decay=1.0)
    attach(optimizer, Constant(math.nextafter(1.0, 0.0)))
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(0.0, abs=1e-7)


def test_a_rule_that_ignores_the_peak_allows_any_lr() -> None:
    """A hand-written warm-up sets no initial_lr; only rules that divide by the peak need one."""
    _, optimizer = toy(lr=0.01, weight_decay=0.5)
    handle = attach(optimizer, Decoupled())
    for lr in (0.01, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert handle.fractions() == [0.05]


def test_a_cuda_graph_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice:
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    refusals.check_not_capturing([OnDevice()])  # type: ignore[list-item]  # stands for a CUDA tensor
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    refusals.check_not_capturing([torch.ones(1)])
    refusals.check_not_capturing([])
    with pytest.raises(UserError, match=r"being captured in a CUDA graph.*frozen at this step's value"):
        refusals.check_not_capturing([OnDevice()])  # type: ignore[list-item]  # stands for a CUDA tensor


def test_a_lazy_module_gets_its_shape_later() -> None:
    def run(model: torch.nn.Module, *, first: bool) -> list[Tensor]:
        if first:
            model(torch.ones(2, 3))
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        handle = attach(optimizer, Decoupled())
        model(torch.ones(2, 3))
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.linspace(1.0, 2.0 + index, parameter.numel()).view_as(parameter))
        for _ in range(8):
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        assert handle.fractions() == pytest.approx([0.01])
        return [parameter.detach() for parameter in model.parameters()]

    assert_equal(run(torch.nn.LazyLinear(4), first=False), run(torch.nn.LazyLinear(4), first=True))
