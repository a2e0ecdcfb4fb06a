"""Stable against AdamS and SGDS written from the paper, with Adam's whole second moment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from halflife.errors import UserError
from halflife.optim import evaluate
from halflife.optim.attaching import Handle, attach
from halflife.optim.floor import floors_of
from halflife.optim.second_moment import SecondMoment
from halflife.rules import (
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    Independent,
    Normalized,
    PerGroup,
    Scheduled,
    Stable,
    StepInfo,
)
from halflife.schedules import restarts, tied_to_lr
from halflife.units import batch_scaled
from tests import needs_muon
from tests.oracles.scalar import Problem, adam_update

LAM = 0.05
SHAPES = ((5, 4), (7,), (3, 3))
LRS = (0.01, 0.02, 0.03, 0.01, 0.0, 0.005, 0.02)
FORMS: tuple[dict[str, Any], ...] = ({"foreach": False}, {"foreach": True}, {"fused": True})


def weights(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES
    ]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of different sizes, so that the mean over elements is not the mean over tensors."""
    generator = torch.Generator().manual_seed(100 + step)
    return [
        (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale * (1 + step)).to(dtype)
        for shape, scale in zip(SHAPES, (0.1, 1.0, 0.02), strict=True)
    ]


def train(optimizer: Optimizer, params: list[torch.nn.Parameter], steps: range = range(len(LRS))) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = LRS[step]
        for parameter, gradient in zip(params, gradients(step, params[0].dtype), strict=True):
            parameter.grad = gradient
        optimizer.step()


class AdamS:
    """Xie et al. 2023, Algorithm 3, element by element: decay by ``lr * lam / sqrt(mean of all v)``, then Adam."""

    def __init__(self, params: list[Tensor], lam: float, *, betas: list[tuple[float, float]], decaying: int) -> None:
        self.params = [parameter.detach().clone().double() for parameter in params]
        self.lam, self.betas, self.decaying = lam, betas, decaying
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = [0] * len(params)
        self.fractions: list[float] = []

    def step(self, lr: float, grads: list[Tensor | None]) -> None:
        present = [i for i, gradient in enumerate(grads) if gradient is not None]
        for i in present:
            gradient = grads[i]
            assert gradient is not None
            (beta1, beta2), gradient = self.betas[i], gradient.double()
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * gradient
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * gradient * gradient
            self.t[i] += 1
        hats = {i: self.v[i] / (1 - self.betas[i][1] ** self.t[i]) for i in present}
        mean = torch.cat([hats[i].flatten() for i in present]).mean()
        r = float(lr * self.lam / mean.sqrt())
        self.fractions.append(r)
        for i in present:
            if i < self.decaying:
                self.params[i] *= 1 - r
            m_hat = self.m[i] / (1 - self.betas[i][0] ** self.t[i])
            self.params[i] -= lr * m_hat / (hats[i].sqrt() + 1e-8)


def compare(params: list[torch.nn.Parameter], reference: AdamS, rtol: float = 1e-10) -> None:
    for parameter, expected in zip(params, reference.params, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=rtol, atol=rtol * 1e-2)


def groups_of(params: list[torch.nn.Parameter], betas: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """The last tensor does not decay, but its second moment counts."""
    decays = (0.1, 0.1, 0.0)
    return [
        {"params": [parameter], "weight_decay": decay, "betas": beta}
        for parameter, decay, beta in zip(params, decays, betas, strict=True)
    ]


ALIKE = [(0.9, 0.999)] * 3
UNLIKE = [(0.9, 0.99), (0.8, 0.999), (0.9, 0.9)]


@pytest.mark.parametrize("form", FORMS, ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("betas", [ALIKE, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize(("kind", "dtype"), [(AdamW, torch.float64), (Adam, torch.float64), (AdamW, torch.float32)])
def test_equals_adams(
    kind: Callable[..., Optimizer], dtype: torch.dtype, betas: list[tuple[float, float]], form: dict[str, Any]
) -> None:
    params = weights(dtype)
    reference = AdamS([*params], LAM, betas=betas, decaying=2)
    optimizer = kind(groups_of(params, betas), lr=0.1, **form)
    handle = attach(optimizer, Stable(LAM))
    for step in range(len(LRS)):
        train(optimizer, params, range(step, step + 1))
        reference.step(LRS[step], [*gradients(step, dtype)])
        r = reference.fractions[-1]
        assert handle.fractions() == pytest.approx([r, r, 0.0], rel=1e-6 if dtype == torch.float32 else 1e-12)
    assert len(set(reference.fractions)) == len(LRS)
    compare(params, reference, 1e-10 if dtype == torch.float64 else 1e-4)


def test_gradients_that_come_and_go_have_a_count_of_their_own() -> None:
    params = weights()
    reference = AdamS([*params], LAM, betas=UNLIKE, decaying=2)
    optimizer = AdamW(groups_of(params, UNLIKE), lr=0.1)
    handle = attach(optimizer, Stable(LAM))
    absent = {0: (1,), 1: (), 2: (0, 2), 3: (1, 2), 5: (2,)}
    for step, lr in enumerate(LRS):
        grads: list[Tensor | None] = [
            None if i in absent.get(step, ()) else gradient for i, gradient in enumerate(gradients(step))
        ]
        reference.step(lr, grads)
        for group, parameter, gradient in zip(optimizer.param_groups, params, grads, strict=True):
            group["lr"], parameter.grad = lr, gradient
        optimizer.step()
        assert handle.fractions()[0] == pytest.approx(reference.fractions[-1], rel=1e-12)
    compare(params, reference)


@pytest.mark.parametrize("form", FORMS, ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("at", [1, 4])
def test_attached_in_the_middle_of_a_run_it_goes_on_as_if_from_the_start(at: int, form: dict[str, Any]) -> None:
    """Seeded from Adam's own ``exp_avg_sq`` and ``step``; only the decay before differs, so that there is none."""
    results = []
    for late in (False, True):
        params = weights()
        optimizer = AdamW(groups_of(params, UNLIKE), lr=0.1, **form)
        handle = None if late else attach(optimizer, Stable(0.0))
        for group in optimizer.param_groups[:2]:
            group["weight_decay"] = 0.0 if late else 0.1
        train(optimizer, params, range(at))
        for group in optimizer.param_groups[:2]:
            group["weight_decay"] = 0.1
        if handle is not None:
            state = optimizer.state_dict()
            handle.detach()
            for group in state["param_groups"]:
                group["halflife_law"] = "Stable(lam=0.05, floor=0.1, beta2=None)"
            optimizer.load_state_dict(state)
        handle = attach(optimizer, Stable(LAM))
        train(optimizer, params, range(at, len(LRS)))
        results.append((params, handle.fractions()))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-13)
    assert results[0][1][0] > 0


# ---- SGDS


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov", "factor"),
    [(0.0, 0.0, False, 1.0), (0.0, 0.5, False, 1.0), (0.5, 0.25, False, 1.5), (0.9, 0.0, True, 10.0)],
    ids=["plain", "ignored dampening", "dampening", "nesterov"],
)
@pytest.mark.parametrize("form", FORMS, ids=["loop", "foreach", "fused"])
def test_equals_sgds(form: dict[str, Any], momentum: float, dampening: float, nesterov: bool, factor: float) -> None:
    """Without momentum torch ignores the dampening; the published code scales by it all the same."""
    params = weights()
    settings: dict[str, Any] = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    expected = [parameter.detach().clone() for parameter in params]
    buffers: list[Tensor] = []
    for step, lr in enumerate(LRS):
        for i, gradient in enumerate(gradients(step)):
            if step == 0:
                buffers.append(gradient)
            else:
                buffers[i] = momentum * buffers[i] + (1 - dampening if momentum else 1.0) * gradient
            update = gradient + momentum * buffers[i] if nesterov else buffers[i]
            expected[i] = (1 - lr * LAM * factor) * expected[i] - lr * update
    optimizer = SGD(params, lr=0.1, weight_decay=0.1, **settings, **form)
    handle = attach(optimizer, Stable(LAM))
    train(optimizer, params)
    assert handle.fractions() == pytest.approx([LRS[-1] * LAM * factor])
    for parameter, value in zip(params, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-11, atol=1e-13)


def test_the_momentum_is_read_at_every_step() -> None:
    """As torch does: schedulers such as OneCycleLR change it."""
    (weight, *_) = weights()
    optimizer = SGD([weight], lr=0.1, momentum=0.5, weight_decay=1.0)
    handle = attach(optimizer, Stable())
    weight.grad = torch.zeros_like(weight)
    for momentum, factor in ((0.5, 2.0), (0.75, 4.0), (0.0, 1.0)):
        optimizer.param_groups[0]["momentum"] = momentum
        optimizer.step()
        assert handle.fractions() == pytest.approx([0.1 * factor])


# ---- any optimizer, with a given beta2


@pytest.mark.parametrize("kind", [RMSprop, NAdam, SGD])
def test_a_given_beta2_makes_it_adams_on_any_optimizer(kind: Callable[..., Optimizer]) -> None:
    params = weights()
    optimizer = kind(params, lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, Stable(LAM, beta2=0.9))
    reference = AdamS([*params], LAM, betas=[(0.9, 0.9)] * 3, decaying=3)
    for step, lr in enumerate(LRS):
        train(optimizer, params, range(step, step + 1))
        reference.step(lr, [*gradients(step)])
        assert handle.fractions() == pytest.approx([reference.fractions[-1]], rel=1e-12)


# ---- the floor


def info(moment: float, lr: float = 0.01) -> StepInfo:
    return StepInfo(lr=lr, lam=math.nan, second_moment=moment)


def test_the_floor_at_its_boundary() -> None:
    """``max(sqrt(v), floor * lam)``: both sides, and exactly at it."""
    rule = Stable(2.0, floor=0.25)  # sqrt(v) counts as at least 0.5, so that r <= lr / floor
    assert rule.fraction(info(0.25)) == 0.04
    assert rule.fraction(info(math.nextafter(0.25, 1.0))) == pytest.approx(0.04, rel=1e-15)
    assert rule.fraction(info(math.nextafter(0.25, 0.0))) == 0.04
    assert rule.fraction(info(1.0)) == 0.02
    assert rule.fraction(info(0.0)) == 0.04 == 0.01 / 0.25
    assert Stable(2.0).fraction(info(0.0)) == pytest.approx(0.1)
    assert Stable(0.0, floor=0.0).fraction(info(0.0)) == 0.0
    assert Stable(1.0, floor=0.0).fraction(info(0.0)) == math.inf
    tensor = rule.fraction(StepInfo(lr=0.01, second_moment=torch.tensor(0.0)))
    assert float(tensor) == pytest.approx(0.04)


@given(
    lam=st.floats(min_value=1e-8, max_value=100.0),
    lr=st.floats(min_value=1e-8, max_value=0.05),
    moment=st.floats(min_value=0.0, max_value=1e6),
)
def test_the_default_floor_keeps_r_below_ten_lr(lam: float, lr: float, moment: float) -> None:
    """No stronger than AdamW with a weight decay of 10."""
    r = float(Stable(lam).fraction(info(moment, lr)))
    assert 0.0 <= r <= 10 * lr * (1 + 1e-12)
    if math.sqrt(moment) >= 0.1 * lam > 0:
        assert r == pytest.approx(lr * lam / math.sqrt(moment))


def steps_with(
    rule: Any, size: float, *, lr: float = 6e-4, own: float = 0.5, count: int = 3
) -> tuple[Handle, Optimizer]:
    """Take steps with gradients of one size, as clipping makes them."""
    first, second = weights()[:2]
    more = own if rule.explicit_lam is not None or isinstance(rule, PerGroup) else 2 * own
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "weight_decay": more}]
    optimizer = AdamW(groups, lr=lr, weight_decay=own, betas=(0.9, 0.5))
    handle = attach(optimizer, rule)
    for _ in range(count):
        for weight in (first, second):
            weight.grad = torch.full_like(weight, size)
        optimizer.step()
    return handle, optimizer


@pytest.mark.parametrize("lam", [0.1, 1.0, 1e9])
def test_where_the_floor_decides_it_is_said_once_with_the_lam_that_would_be_meant(lam: float) -> None:
    """All three remove lr / floor; the lam that is named removes what `Decoupled` does."""
    with pytest.warns(UserWarning, match=r"the floor of Stable\(lam=.*\) decides in parameter group 0") as caught:
        handle, optimizer = steps_with(Stable(lam), 1e-3)
    assert handle.fractions() == pytest.approx([6e-3, 6e-3])
    assert len(caught) == 1
    assert caught[0].filename == __file__, "it points at the call of step"
    text = str(caught[0].message)
    for number in ("0.001, below floor * lam", f"lam = {0.1 * lam:.2g}, so", "every lam above 0.01 removes r = 0.006"):
        assert number in text
    floors = floors_of(optimizer)
    assert set(floors) == {0, 1}
    assert (floors[1].r, floors[1].rms) == pytest.approx((6e-3, 1e-3))
    assert ("Decoupled" in text) is (lam < 10), "beyond, the floor would cap what Decoupled removes, too"
    if lam < 10:
        assert f"lam = {lam * 1e-3:.2g} removes lr * {lam:.2g} = {6e-4 * lam:.2g} here" in text
        meant, other = steps_with(Stable(floors[0].lam_meant), 1e-3)
        assert meant.fractions()[0] == pytest.approx(6e-4 * lam)
        assert floors_of(other) == {}
    handle.detach()
    assert floors_of(optimizer) == {}


def test_each_group_is_looked_at_by_the_lam_and_the_schedule_that_hold_in_it() -> None:
    """Own values of 0.5 and 1: at a root mean square of 0.075 the floor decides in the second group alone."""
    with pytest.warns(UserWarning, match=r"in parameter group 1, .* below floor \* lam = 0.1, .* r = 0.006 per step"):
        _, optimizer = steps_with(Stable(), 0.075)
    assert {group: floor.lam for group, floor in floors_of(optimizer).items()} == {1: 1.0}
    with pytest.warns(UserWarning, match=r"in parameter group 1, .* lam above 0.75 removes r = 0.003 per step"):
        steps_with(Scheduled(Stable(), lambda step: 0.5), 0.075)
    with pytest.warns(UserWarning, match=r"in parameter group 0, .* r = 0.006 per step"):
        _, optimizer = steps_with(PerGroup([Stable(1.0), Decoupled(0.1)]), 0.075)
    assert set(floors_of(optimizer)) == {0}


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        pytest.param(Stable(1.0, floor=0.25), 0.25, id="exactly at the floor"),
        pytest.param(Stable(1.0), 0.0, id="no gradient yet"),
        pytest.param(Stable(0.0), 1e-9, id="no decay"),
        pytest.param(Stable(1e-3, floor=0.0), 1e-3, id="no floor"),
    ],
)
def test_nothing_is_said_where_lam_decides(rule: Stable, size: float) -> None:
    _, optimizer = steps_with(rule, size)
    assert floors_of(optimizer) == {}


def test_the_floor_lets_go_when_gradients_grow() -> None:
    with pytest.warns(UserWarning, match="the floor of Stable"):
        handle, optimizer = steps_with(Stable(1.0), 1e-3, count=1)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.0)
        group["params"][0].grad.fill_(1.0)
    optimizer.step()
    assert floors_of(optimizer) == {}
    assert handle.fractions()[0] == pytest.approx(6e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "rule", [Stable(LAM), Stable(0.0), Cautious(Stable(LAM)), PerGroup([Decoupled(0.1), Stable(LAM)])]
)
def test_bad_gradients_are_named_and_leave_no_trace(rule: Any, bad: float) -> None:
    """One number of one tensor; the run goes on as if the step had not been."""
    results = []
    for disturbed in (False, True):
        params = weights()
        optimizer = AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, weight_decay=0.1)
        handle = attach(optimizer, rule)
        train(optimizer, params, range(2))
        if disturbed:
            for parameter, gradient in zip(params, gradients(2), strict=True):
                parameter.grad = gradient
            assert params[1].grad is not None
            params[1].grad[3] = bad
            before = [parameter.detach().clone() for parameter in params]
            with pytest.raises(
                UserError, match=r"Stable\(.*got gradients that are infinite or NaN; expected finite ones: skip"
            ):
                optimizer.step()
            assert all(map(torch.equal, params, before))
        train(optimizer, params, range(2, 4))
        results.append((handle.fractions(), [parameter.detach() for parameter in params]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_without_a_floor_vanishing_gradients_are_refused_at_r_1() -> None:
    """Where the published code flips the signs of the weights."""
    (weight, *_) = weights()
    before = weight.detach().clone()
    optimizer = AdamW([weight], lr=0.5, weight_decay=0.1)
    attach(optimizer, Stable(1.0, floor=0.0))
    weight.grad = torch.full_like(weight, 0.5)
    with pytest.raises(UserError, match=r"remove the fraction r = (1\.0|0\.99999|1\.00000)\d* of the weights"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)
    weight.grad = torch.full_like(weight, 8.0)
    optimizer.step()


@needs_muon
def test_each_optimizer_meets_the_rules_of_its_own_groups() -> None:
    """Muon cannot have Stable, and need not: the group that has it belongs to the AdamW beside it."""
    rules = PerGroup([Decoupled(0.5), Stable(LAM)])
    alone, together = weights(), weights()
    single = AdamW(alone[1:2], lr=0.01, weight_decay=0.1)
    attach(single, Stable(LAM))
    muon = torch.optim.Muon(together[:1], lr=0.01, weight_decay=0.1)
    adamw = AdamW(together[1:2], lr=0.01, weight_decay=0.1)
    handle = attach([muon, adamw], rules)
    for step in range(4):
        for params in (alone, together):
            for parameter, gradient in zip(params, gradients(step), strict=True):
                parameter.grad = gradient
        for optimizer in (single, muon, adamw):
            optimizer.step()
    assert torch.equal(alone[1], together[1])
    assert handle.fractions()[0] == pytest.approx(0.005)
    with pytest.raises(UserError, match="Stable cannot be attached to Muon"):
        attach([AdamW(weights()[:1], weight_decay=0.1), torch.optim.Muon(weights()[:1], lr=0.1)], rules)


# ---- norms handed over


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
@pytest.mark.parametrize("as_number", [False, True])
def test_a_norm_that_was_handed_over_is_the_measured_one(max_norm: float | None, as_number: bool) -> None:
    """After real clipping; a bound that does not bind included."""
    results = []
    for hand_over in (False, True):
        params = weights()
        optimizer = AdamW(params, lr=0.1, weight_decay=0.1)
        handle = attach(optimizer, Stable(LAM))
        fractions = []
        for step, lr in enumerate(LRS):
            optimizer.param_groups[0]["lr"] = lr
            for parameter, gradient in zip(params, gradients(step), strict=True):
                parameter.grad = gradient
            bound = math.inf if max_norm is None else max_norm
            norm = torch.nn.utils.clip_grad_norm_(params, bound)
            if hand_over and step != 2:  # at one step it measures by itself
                handle.hand_over_norm(norm.item() if as_number else norm, max_norm=max_norm)
            optimizer.step()
            fractions += handle.fractions()
        results.append((fractions, params))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-9)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_norm_serves_one_step_only() -> None:
    (weight, *_) = weights()
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.1, betas=(0.9, 0.0))  # remembers the last gradient only
    handle = attach(optimizer, Stable(LAM))
    weight.grad = torch.full_like(weight, 2.0)
    handle.hand_over_norm(4.0 * math.sqrt(weight.numel()))  # a lie, so that it shows
    optimizer.step()
    assert handle.fractions() == pytest.approx([0.1 * LAM / 4.0])
    optimizer.step()
    assert handle.fractions() == pytest.approx([0.1 * LAM / 2.0])


class ByHand:
    """Norms handed over at some steps, as one number per tensor in plain Python: a norm is split by size."""

    def __init__(self) -> None:
        self.sums: dict[Tensor, float] = {}
        self.steps: dict[Tensor, int] = {}

    def fraction(self, lr: float, params: list[Tensor], total: float | None, beta: float = 0.999) -> float:
        present = [parameter for parameter in params if parameter.grad is not None]
        size = sum(parameter.numel() for parameter in present)
        mean = 0.0
        for parameter in present:
            assert parameter.grad is not None
            square = parameter.grad.square().sum().item() if total is None else total**2 * parameter.numel() / size
            self.sums[parameter] = beta * self.sums.get(parameter, 0.0) + (1 - beta) * square
            self.steps[parameter] = self.steps.get(parameter, 0) + 1
            mean += self.sums[parameter] / (1 - beta ** self.steps[parameter]) / size
        return lr * LAM / math.sqrt(mean)


@pytest.mark.parametrize("handed", [range(20), (0, 1, 2, 9, 10), (3, 4, 5, 6, 7, 8, 12, 19)], ids=str)
@pytest.mark.parametrize("event", ["none", "a gradient goes", "beta2 changes", "a parameter comes"])
def test_norms_handed_over_at_some_steps(handed: tuple[int, ...], event: str) -> None:
    """Plain numbers stand for all tensors while norms are handed over; what tells tensors apart ends that."""
    params = weights()
    optimizer = AdamW(params[:2], lr=0.01, weight_decay=0.1)
    handle = attach(optimizer, Stable(LAM, floor=0.0))
    oracle, beta = ByHand(), 0.999
    for step in range(20):
        used: list[Tensor] = list(params[:2])
        if event == "beta2 changes" and step == 6:
            beta = 0.9
            optimizer.param_groups[0]["betas"] = (0.9, beta)
        if event == "a parameter comes" and step >= 6:
            used = list(params)
            if step == 6:
                optimizer.add_param_group({"params": params[2:]})
        for parameter, gradient in zip(params, gradients(step % 7), strict=True):
            parameter.grad = gradient
        if event == "a gradient goes" and step in {5, 6, 11}:
            params[1].grad = None
        total = None
        if step in handed:
            squares = [parameter.grad.square().sum().item() for parameter in used if parameter.grad is not None]
            total = math.sqrt(sum(squares))
            handle.hand_over_norm(total)
        expected = oracle.fraction(0.01, used, total, beta)
        optimizer.step()
        assert handle.fractions()[0] == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize("saves", [1, 4, 9])
def test_handed_norms_resume_exactly(saves: int) -> None:
    """Saving changes nothing, and what is loaded goes on to the same bits."""

    def run(steps: range, state: dict[str, Any] | None = None, *, save_at: int = -1) -> tuple[list[float], Any]:
        params = weights()
        optimizer = AdamW(params, lr=0.01, weight_decay=0.1)
        handle = attach(optimizer, Stable(LAM))
        if state is not None:
            optimizer.load_state_dict(state)
        fractions, saved = [], None
        for step in steps:
            for parameter, gradient in zip(params, gradients(step % 7), strict=True):
                parameter.grad = gradient
            if step % 6:
                handle.hand_over_norm(1.0 + step)
            optimizer.step()
            fractions += handle.fractions()
            if step + 1 == save_at:
                saved = copy.deepcopy(optimizer.state_dict())
        return fractions, saved

    whole, _ = run(range(15))
    again, state = run(range(15), save_at=saves)
    assert again == whole
    assert run(range(saves, 15), state)[0] == whole[saves:]


def test_a_checkpoint_with_steps_whose_gradients_came_as_one_norm_goes_on() -> None:
    """Older ones end with three numbers for all tensors: ``v_i = kept * v_i + added * size_i / sum(sizes)``."""
    params = weights()
    optimizer = AdamW(groups_of(params, ALIKE), lr=0.01)
    handle = attach(optimizer, Stable(LAM, floor=0.0))
    oracle = ByHand()
    for parameter in params:
        parameter.grad = torch.full_like(parameter, 0.5)
        oracle.sums[parameter] = 0.25 * 7.0 + 0.125 * parameter.numel() / sum(p.numel() for p in params)
        oracle.steps[parameter] = 5
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["halflife_memory"] = (7.0, 2.0, 0.25, 0.125, 3.0)
    optimizer.load_state_dict(state)
    assert [group["halflife_memory"] for group in optimizer.state_dict()["param_groups"]] == [
        (oracle.sums[parameter], 5.0) for parameter in params
    ]
    expected = oracle.fraction(0.01, [*params], None)
    optimizer.step()
    assert handle.fractions()[0] == pytest.approx(expected, rel=1e-12)


# ---- steps that are not made


class Failing(AdamW):
    """Runs out of memory in the middle of the update when told to."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        if self.fails:
            raise MemoryError("torn")
        return super().step()


@pytest.mark.parametrize("handed", [False, True], ids=["measured", "handed over"])
@pytest.mark.parametrize("fault", ["lr", "r", "closure", "update", "update after a closure"])
def test_a_step_that_is_not_made_leaves_the_moment_as_it_was(fault: str, handed: bool) -> None:
    """The gradients of the refused step are far from the others, so that they would show for long."""
    results = []
    for disturbed in (False, True):
        params = weights()
        optimizer = Failing(params, lr=0.01, weight_decay=0.1, betas=(0.9, 0.5))
        handle = attach(optimizer, Stable(LAM, floor=0.0))
        for step in range(5):
            for parameter, gradient in zip(params, gradients(step), strict=True):
                parameter.grad = gradient
            if disturbed and step in {0, 3}:
                for parameter in params:
                    parameter.grad = torch.full_like(parameter, 1e-9 if fault == "r" else 1e3)
                if handed:
                    handle.hand_over_norm(1e-9 if fault == "r" else 1e3)
                optimizer.param_groups[0]["lr"] = {"lr": math.nan, "r": 1e6}.get(fault, 0.01)
                optimizer.fails = fault.startswith("update")

                def closure() -> float:
                    if fault == "closure":
                        raise MemoryError("torn")
                    return 0.0

                with pytest.raises((UserError, MemoryError), match=r"the lr of|remove the fraction|torn"):
                    optimizer.step(closure if "closure" in fault else None)
                optimizer.fails, optimizer.param_groups[0]["lr"] = False, 0.01
                for parameter, gradient in zip(params, gradients(step), strict=True):
                    parameter.grad = gradient
            if handed:
                handle.hand_over_norm(1.0 + step)
            optimizer.step()
            results.append((disturbed, handle.fractions()[0]))
    assert [r for disturbed, r in results if disturbed] == [r for disturbed, r in results if not disturbed]


# ---- an accelerator, where the mean stays a tensor


@pytest.fixture
def device_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the mean is a 0-dim tensor, and nothing reads it before the next step."""
    update = SecondMoment.update

    def on_device(self: SecondMoment, total_norm: Tensor | float | None) -> Tensor:
        return torch.as_tensor(update(self, total_norm), dtype=torch.float64)

    monkeypatch.setattr(SecondMoment, "update", on_device)
    monkeypatch.setattr(evaluate, "reading_waits", lambda tensor: True)


RULES = [
    Stable(LAM),
    Stable(LAM, floor=20.0),
    Scheduled(Stable(LAM), lambda step: 1.0 / (1 + step)),
    Cautious(Stable(LAM)),
]


@pytest.mark.filterwarnings("ignore:the floor of Stable")
@pytest.mark.parametrize("rule", RULES, ids=["stable", "floor", "scheduled", "cautious"])
@pytest.mark.parametrize("form", FORMS, ids=["loop", "foreach", "fused"])
def test_the_tensor_path_equals_the_float_path(rule: Any, form: dict[str, Any], request: pytest.FixtureRequest) -> None:
    results = []
    for path in ("host", "device"):
        if path == "device":
            request.getfixturevalue("device_path")
        params = weights()
        optimizer = AdamW(groups_of(params, UNLIKE), lr=0.1, **form)
        handle = attach(optimizer, rule)
        fractions = []
        for step in range(len(LRS)):
            train(optimizer, params, range(step, step + 1))
            fractions += handle.fractions()
        results.append((params, fractions))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)
    for one, other in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


@pytest.mark.usefixtures("device_path")
def test_on_a_device_r_above_1_stops_the_run_at_the_next_step() -> None:
    """Until then the weights have made the step without decay."""
    (weight, *_) = weights()
    optimizer = AdamW([weight], lr=1.0, weight_decay=0.1)
    attach(optimizer, Stable(1.0, floor=0.0))
    weight.grad = torch.full_like(weight, 1e-3)
    before = weight.detach().clone()
    optimizer.step()
    moved = before - weight.detach()
    assert float((moved - 1.0).abs().max()) < 1e-4, "Adam's first step, of lr, and nothing else"
    after = weight.detach().clone()
    with pytest.raises(UserError, match=r"remove the fraction r = (1000\.0|999\.99|1000\.00)\d* of the weights"):
        optimizer.step()
    assert torch.equal(weight.detach(), after)


@pytest.mark.usefixtures("device_path")
def test_on_a_device_the_floor_is_spoken_of_a_step_later() -> None:
    handle, optimizer = steps_with(Stable(0.1), 1e-3, count=1)
    assert floors_of(optimizer) == {}
    for turn in range(2):
        with pytest.warns(UserWarning, match=r"lam = 0.0001 removes") if turn == 0 else nullcontext():
            optimizer.step()
    assert {group: floor.r for group, floor in floors_of(optimizer).items()} == pytest.approx({0: 6e-3, 1: 6e-3})
    assert handle.fractions() == pytest.approx([6e-3, 6e-3])


@pytest.mark.usefixtures("device_path")
def test_on_a_device_bad_gradients_are_named_a_step_later_and_do_not_enter_the_moment() -> None:
    (weight, *_) = weights()
    optimizer = SGD([weight], lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, Stable(LAM, beta2=0.5))
    for size in (1.0, math.nan):
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
    weight.data.fill_(1.0)
    weight.grad = torch.full_like(weight, 2.0)
    with pytest.raises(UserError, match="got gradients that are infinite or NaN"):
        optimizer.step()
    optimizer.step()
    expected = (0.5 * 0.5 * 1.0 + 0.5 * 4.0) / (1 - 0.5**2)  # of the first and the last gradient
    assert handle.fractions() == pytest.approx([0.1 * LAM / math.sqrt(expected)])


@pytest.mark.usefixtures("device_path")
def test_on_a_device_every_group_is_checked() -> None:
    """The group that asks for too much is not the last one."""
    first, second = weights()[:2]
    optimizer = AdamW([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 1e-6}], weight_decay=0.1)
    attach(optimizer, Stable(1.0, floor=0.0))
    for weight in (first, second):
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    with pytest.raises(UserError, match=r"in parameter group 0 at lr = 1\.0"):
        optimizer.step()


# ---- other types of gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_gradients_in_half_precision(dtype: torch.dtype) -> None:
    """A norm of 192000 is beyond float16."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    handle = attach(optimizer, Stable(3000.0, beta2=0.9))
    weight.grad = torch.full_like(weight, 3000.0)
    optimizer.step()
    assert handle.fractions() == pytest.approx([0.1], rel=3e-3 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("at", [0, 3])
def test_complex_weights_are_pairs_of_numbers(at: int) -> None:
    """Also when seeded from Adam's complex ``exp_avg_sq``."""
    found = []
    for is_complex in (False, True):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        weight = torch.nn.Parameter(torch.view_as_complex(values) if is_complex else values)
        optimizer = AdamW([weight], lr=0.1, weight_decay=0.1)
        handle = None
        for step in range(6):
            gradient = torch.randn(6, 2, generator=generator, dtype=torch.float64)
            weight.grad = torch.view_as_complex(gradient) if is_complex else gradient
            if step == at:
                handle = attach(optimizer, Stable(LAM))
            optimizer.step()
        assert handle is not None
        found.append(handle.fractions()[0])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_tensor_of_betas() -> None:
    """torch allows betas as tensors."""
    results = []
    for betas in ((0.9, 0.99), (torch.tensor(0.9), torch.tensor(0.99))):
        params = weights(torch.float32)
        optimizer = Adam(params, lr=0.1, betas=betas, weight_decay=0.1, foreach=False)
        handle = attach(optimizer, Stable(LAM))
        train(optimizer, params)
        results.append(handle.fractions()[0])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_copy_goes_on_from_the_optimizer_itself() -> None:
    params = weights()
    optimizer = AdamW(params, lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, Stable(LAM))
    train(optimizer, params, range(3))
    other = copy.deepcopy(optimizer)
    again = attach(other, Stable(LAM))
    copies = [parameter for group in other.param_groups for parameter in group["params"]]
    train(optimizer, params, range(3, 6))
    train(other, copies, range(3, 6))
    assert again.fractions() == pytest.approx(handle.fractions(), rel=1e-12)


# ---- rules that are others in disguise

LRS_AND_PEAKS = {
    "peak": st.floats(min_value=1e-6, max_value=10.0),
    "share": st.floats(min_value=1e-6, max_value=1.0),
    "step": st.integers(min_value=0, max_value=500),
}


@given(**LRS_AND_PEAKS, lam=st.floats(min_value=0.0, max_value=0.99))
def test_tied_rules_are_the_named_ones(peak: float, share: float, step: int, lam: float) -> None:
    at = StepInfo(lr=peak * share, peak_lr=peak, step=step)
    tied = Scheduled(Constant(lam), tied_to_lr()).fraction(at)
    assert tied == pytest.approx(Independent(lam).fraction(at), rel=1e-14)
    tied = Scheduled(Decoupled(lam), tied_to_lr()).fraction(at)
    assert tied == pytest.approx(Corrected(lam).fraction(at), rel=1e-14, abs=1e-300)
    assert Scheduled(Decoupled(lam), tied_to_lr(0.0)).fraction(at) == Decoupled(lam).fraction(at)


@given(
    batch=st.integers(min_value=1, max_value=4096),
    per_epoch=st.integers(min_value=1, max_value=2000),
    epochs=st.integers(min_value=1, max_value=300),
    lam=st.floats(min_value=0.0, max_value=0.5),
)
def test_normalized_is_that_of_the_paper(batch: int, per_epoch: int, epochs: int, lam: float) -> None:
    """Appendix B.1: ``lam * sqrt(b / (B * T))``, b the batch, B the training points, T the epochs."""
    points = batch * per_epoch
    r = Normalized(lam, steps=per_epoch * epochs).fraction(StepInfo(lr=0.5, peak_lr=1.0))
    assert r == pytest.approx(0.5 * lam * math.sqrt(batch / (points * epochs)), rel=1e-12)


@given(lam=st.floats(min_value=0.0, max_value=10.0), batch=st.integers(1, 4096), reference=st.integers(1, 4096))
def test_batch_scaled_is_linear_in_the_batch(lam: float, batch: int, reference: int) -> None:
    assert batch_scaled(lam, batch, reference) == pytest.approx(lam * batch / reference, rel=1e-14)
    assert batch_scaled(batch_scaled(lam, batch, reference), reference, batch) == pytest.approx(lam, rel=1e-14)


@pytest.mark.parametrize(("first", "factor"), [(5, 1), (3, 2), (1, 3)])
def test_restarts_are_those_of_torch(first: int, factor: int) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = SGD([weight], lr=1.0)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=factor, eta_min=0.25)
    ours = restarts(first, factor, 1.0, 0.25)
    for step in range(60):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        scheduler.step()


def test_adamwr_as_a_whole() -> None:
    """Loshchilov and Hutter: cosine restarts of the learning rate, and the decay normalized anew for each period."""
    first, factor, lam, peak = 2, 2, 0.4, 0.1
    problem = Problem(own=(lam, lam))
    for group in problem.groups:
        group.update(lr=peak, initial_lr=peak)
    optimizer = AdamW(problem.groups, lr=peak)
    attach(optimizer, Normalized(lam, steps=first, factor=factor))
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=factor)
    numbers = [values.flatten().tolist() for values in problem.values()[:3]]
    states = [[dict[str, float]() for _ in values] for values in numbers]
    since, period = 0, first
    for step in range(20):
        multiplier = 0.5 + 0.5 * math.cos(math.pi * since / period)  # the paper's eta_t
        for index, values in enumerate(numbers):
            r = multiplier * lam * math.sqrt(1 / period) * (index < 2)
            for i, w in enumerate(values):
                gradient = problem.curvature * (w - problem.goal)
                values[i] = w - adam_update(peak * multiplier, gradient, step + 1, states[index][i]) - r * w
        since += 1
        if since == period:
            since, period = 0, period * factor
        problem.closure()
        optimizer.step()
        scheduler.step()
    assert period == 16
    for parameter, values in zip(problem.used, numbers, strict=True):
        assert parameter.detach().flatten().tolist() == pytest.approx(values, rel=1e-10)
