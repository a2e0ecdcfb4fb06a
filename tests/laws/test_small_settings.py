"""Learning rates, weight decays and parameters that are too small to show a decay by themselves."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import halflife
from halflife.audit import expectations
from halflife.errors import UserError
from halflife.laws import Law, identify, laws_of
from halflife.laws.slots import kinds_in
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
    PerGroup,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import linear
from tests.laws.test_identify import of

Settings = dict[str, Any]


class Lion(Optimizer):
    """Sign of the averaged gradient, decoupled decay; written here so that the law is known."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def decay(self, parameter: Tensor, group: Settings) -> None:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])

    def speed(self, group: Settings) -> float:
        return float(group["lr"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                self.decay(parameter, group)
                parameter.sub_((0.9 * mean + 0.1 * parameter.grad).sign(), alpha=self.speed(group))
                mean.mul_(0.99).add_(parameter.grad, alpha=0.01)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape, dtype=dtype))


def summary(law: Law) -> tuple[Any, ...]:
    c = None if law.coefficient is None else round(law.coefficient, 5)
    return law.pathway, law.name, law.lr_exponent, law.peak_lr_exponent, c, law.position, law.native, law.by_shape


DECOUPLED: tuple[Any, ...] = ("decoupled", "decoupled", 1.0, 0.0, 1.0, "before", True, {})
PRECONDITIONED: tuple[Any, ...] = ("l2-preconditioned", "l2", None, None, None, None, True, {})


def l2(coefficient: float, name: str = "l2") -> tuple[Any, ...]:
    return "l2", name, 1.0, 0.0, coefficient, None, True, {}


LAWS: list[tuple[type[Optimizer], Settings, tuple[Any, ...], float | None]] = [
    (torch.optim.SGD, {}, l2(1.0, "decoupled"), 1.0),
    (torch.optim.SGD, {"momentum": 0.9}, l2(1.0), 10.0),
    (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, l2(1.8), 5.0),
    (torch.optim.AdamW, {}, DECOUPLED, 1.0),
    (Lion, {}, DECOUPLED, 1.0),
    (torch.optim.Adam, {}, PRECONDITIONED, None),
    (torch.optim.NAdam, {}, PRECONDITIONED, None),
    (torch.optim.RAdam, {}, PRECONDITIONED, None),
    (torch.optim.Adamax, {}, PRECONDITIONED, None),
    (torch.optim.RMSprop, {}, PRECONDITIONED, None),
    (torch.optim.Adagrad, {}, PRECONDITIONED, None),
    (torch.optim.Adadelta, {}, PRECONDITIONED, None),
]
IDS = ["-".join([kind.__name__, *how]) for kind, how, *_ in LAWS]
FAST = {"SGD-momentum", "AdamW", "Adam", "Adadelta"}  # one of each law, and the one whose steps are the smallest
EACH_LAW = [
    pytest.param(*law, id=name, marks=[] if name in FAST else [pytest.mark.slow])
    for name, law in zip(IDS, LAWS, strict=True)
]


# ---- small learning rates and weight decays


@pytest.mark.parametrize(("kind", "how", "expected", "share"), EACH_LAW)
def test_the_law_does_not_depend_on_how_small_the_settings_are(
    kind: Any, how: Settings, expected: tuple[Any, ...], share: float | None
) -> None:
    settings = [(1e-3, 0.1), (1e-5, 1e-3), (1e-7, 0.1), (1e-12, 0.1), (1e-17, 0.1), (0.1, 1e-15), (1e-9, 1e-9)]
    for number, (lr, lam) in enumerate(settings):
        dtype = (torch.float32, torch.float64)[number % 2]
        (law,) = laws_of(kind([weight(5, 4, dtype=dtype)], lr=lr, weight_decay=lam, **how))
        assert summary(law) == expected, (lr, lam, law)
        assert law.fraction == (None if share is None else pytest.approx(share * lr * lam, rel=1e-5))


# The fraction, where the rule is not asked for one that is known otherwise.
RULES: list[Any] = [
    Decoupled(0.3),
    Decoupled(1e-14),
    Decoupled(),
    Independent(1e-3),
    Constant(1e-4),
    Constant(1e-16),
    Corrected(0.3),
    HalfLife(steps=1000),
    HalfLife(steps=1e16),
    Normalized(0.05, steps=100),
    Scheduled(Decoupled(0.3), linear(1.0, 0.5, 40)),
    PerGroup([Decoupled(0.3), Constant(1e-4)]),
    Cautious(Decoupled(0.3)),
    L2(0.3),
    Stable(5e-4),
    Toward(Decoupled(0.3)),
    Sphere(),
    NormTarget(3.0),
]


# Every second rule on one of the two; the others are slow.
RULES_ON = [
    pytest.param(
        rule, make, id=f"{rule!r}-{make.__name__}", marks=[] if index % 4 == 2 * number else [pytest.mark.slow]
    )
    for index, rule in enumerate(RULES)
    for number, make in enumerate((torch.optim.SGD, torch.optim.AdamW))
]


@pytest.mark.parametrize(("rule", "make"), RULES_ON)
def test_attached_rules_at_any_learning_rate(rule: Any, make: Any) -> None:
    """As at lr = 1e-3, and with the fraction that the rule then really removes."""
    how = {"momentum": 0.9} if make is torch.optim.SGD else {}
    found = []
    for lr, peak in [(1e-3, None), (1e-12, None), (1e-16, 1e-3)]:
        held = [weight(5, 4), weight(5)]
        optimizer = make([{"params": [each]} for each in held], lr=lr, weight_decay=0.1, **how)
        for group in optimizer.param_groups if peak is not None else ():
            group["initial_lr"] = peak
        handle = halflife.attach(optimizer, rule)
        laws = laws_of(optimizer)
        found.append([summary(law) for law in laws])
        for each in held:
            each.grad = torch.ones_like(each)
        optimizer.step()
        for law, r in zip(laws, handle.fractions(), strict=True):
            if law.fraction is not None and law.pathway in {"decoupled", "cautious"}:
                assert law.fraction == pytest.approx(r, rel=1e-5, abs=0.0), (lr, peak)
    assert found[0] == found[1] == found[2]
    assert all(pathway not in {"none", "not probed"} for pathway, *_ in found[0])


@pytest.mark.parametrize("lr", [1e-3, 1e-9, 1e-18])
@pytest.mark.parametrize("rule", [None, Decoupled(0.1), Decoupled()], ids=repr)
def test_assert_decay_holds_from_the_start_of_a_warm_up_to_the_end_of_a_cosine(
    rule: Any, lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(4, 5)
    optimizer = torch.optim.AdamW(halflife.param_groups(model, weight_decay=0.1), lr=lr)
    if rule is not None:
        halflife.attach(optimizer, rule)
    table = halflife.explain(model, optimizer)
    monkeypatch.setattr(expectations, "explain", lambda *_, **__: table)  # asked once is enough
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1", "*": "none"})
    assert not {warning.code for warning in table.warnings} & {
        "two-mechanisms",
        "not-probed",
        "coefficient",
        "ignored",
    }
    with pytest.raises(AssertionError, match=r"expected decoupled:0\.2"):
        halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.2"})


def test_every_group_is_probed_at_a_rate_of_its_own() -> None:
    rates = (1e-3, 1e-12, 0.0, 1e-7)
    optimizer = torch.optim.AdamW([{"params": [weight(3, 2)], "lr": lr} for lr in rates], lr=1e-3, weight_decay=0.1)
    for law, lr in zip(laws_of(optimizer), rates, strict=True):
        assert summary(law) == DECOUPLED
        assert law.fraction == pytest.approx((lr or 1e-3) * 0.1, rel=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == list(rates)


@pytest.mark.parametrize("lr", [0.0, 1e-10, 1e-3])
def test_learning_rates_that_are_tensors(lr: float) -> None:
    optimizer = torch.optim.AdamW([weight(3, 2)], lr=torch.tensor(1e-3), weight_decay=0.1, foreach=False)
    optimizer.param_groups[0].update(lr=torch.tensor(lr), initial_lr=torch.tensor(1e-3))
    (law,) = laws_of(optimizer)
    assert summary(law) == DECOUPLED
    assert law.fraction == pytest.approx((lr or 1e-3) * 0.1, rel=1e-6)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(lr)


def test_the_peak_of_a_scheduler_and_the_peak_of_a_constructor() -> None:
    """lr^2 / peak * lam far below the peak, by the formula of AdamC, which keeps its peak in an attribute."""
    groups = [{"params": [weight(3, 2)], "normalized": True}]
    optimizer = of("pytorch_optimizer", "AdamC")(groups, 1e-2, 0.1)
    optimizer.param_groups[0]["lr"] = 1e-8
    (law,) = laws_of(optimizer)
    assert (law.name, law.lr_exponent, law.peak_lr_exponent) == ("corrected", 2.0, -1.0)
    assert law.fraction == pytest.approx(1e-16 / 1e-2 * 0.1, rel=1e-4)


def test_a_law_of_another_kind_at_the_rate_of_now_is_seen() -> None:
    """lr * lam at the peak, but not below a floor: what holds now is not what the peak shows."""

    class Floored(Lion):
        def decay(self, parameter: Tensor, group: Settings) -> None:
            parameter.mul_(1.0 - max(group["lr"], 1e-6) * group["weight_decay"])

    optimizer = Floored([weight(3, 2)], lr=1e-3, weight_decay=0.1)
    assert summary(laws_of(optimizer)[0]) == DECOUPLED
    optimizer.param_groups[0].update(lr=1e-9, initial_lr=1e-3)
    (law,) = laws_of(optimizer)
    assert (law.pathway, law.fraction) == ("other", None)
    assert law.notes[0] == (
        "at lr = 1e-09 and weight_decay = 0.1, as they are now, r is 1e-07, but the law gives 1e-10 there "
        "(decoupled: r = lr * lam (native), found at lr = 0.001 and weight_decay = 0.1)"
    )


def test_a_law_of_another_kind_at_the_weight_decay_of_now_is_seen() -> None:
    class Thrifty(Lion):
        def decay(self, parameter: Tensor, group: Settings) -> None:
            if group["weight_decay"] > 1e-5:
                super().decay(parameter, group)

    (law,) = laws_of(Thrifty([weight(3, 2)], lr=1e-3, weight_decay=1e-6))
    assert law.pathway == "none"
    assert law.notes == ("a step leaves every bit of it as it is",)


def test_what_the_attached_rule_refuses_is_the_reason() -> None:
    """At the peak, which is still to come, the rule would remove more than the weight."""
    optimizer = torch.optim.SGD([weight(3, 2)], lr=1e-9, weight_decay=0.1)
    optimizer.param_groups[0]["initial_lr"] = 20.0
    halflife.attach(optimizer, Decoupled(0.1))
    (law,) = laws_of(optimizer)
    assert law.pathway == "not probed"
    assert "r = 2" in law.notes[0]


def test_what_rounding_hides_is_not_probed() -> None:
    """It follows no learning rate that could be raised, so nothing shows whether it decays."""

    class Fixed(Lion):
        def decay(self, parameter: Tensor, group: Settings) -> None:
            parameter.mul_(1.0 - 1e-18)

        def speed(self, group: Settings) -> float:
            return 1e-15

    model = nn.Linear(2, 3)
    optimizer = Fixed(model.parameters(), lr=1e-15, weight_decay=0.1)
    (law,) = laws_of(optimizer)
    assert law.pathway == "not probed"
    assert law.notes[0].startswith("a step at lr = 0.0011")
    assert law.notes[0].endswith("is lost in rounding; pass the optimizer at the peak of its learning rate")
    with pytest.raises(AssertionError, match="expected none, but 2 of 2 differ"):
        halflife.assert_decay(model, optimizer, {"*": "none"})


@pytest.mark.slow
def test_float32_alone_sees_small_rules_too() -> None:
    """8-bit states compute in float32, where a step of 1e-7 shows nothing."""
    make = of("torchao.optim", "AdamW8bit")
    for rule, name, r in [(Decoupled(1e-4), "decoupled", 1e-10), (HalfLife(steps=1e8), "half-life", 6.9e-9)]:
        optimizer = make([weight(64, 64)], 1e-6, 0.1)
        halflife.attach(optimizer, rule)
        (law,) = laws_of(optimizer)
        assert law.name == name, law
        assert law.fraction == pytest.approx(r, rel=0.02)


def adamw(lr: Any = None, lam: Any = None) -> Any:
    """Return what makes an AdamW and writes other settings into its group."""

    def make(params: Any, given_lr: float, given_lam: float) -> Optimizer:
        optimizer = torch.optim.AdamW(params, given_lr, weight_decay=given_lam)
        group = optimizer.param_groups[0]
        group["lr"] = group["lr"] if lr is None else lr(given_lr) if callable(lr) else lr
        group["weight_decay"] = group["weight_decay"] if lam is None else lam(given_lam) if callable(lam) else lam
        return optimizer

    return make


WHATEVER = ", whatever is given"
ODD: list[tuple[str, Any, str, str]] = [
    ("lr-tiny", adamw(lr=lambda lr: 1e-12 * lr), "decoupled", "1e-12 times the one given"),
    ("lr-tinier", adamw(lr=lambda lr: 1e-300 * lr), "decoupled", "1e-300 times the one given"),
    ("lr-denormal", adamw(lr=lambda lr: 1e-322 * lr), "not probed", "the one given, too small to be measured"),
    ("lr-huge", adamw(lr=lambda lr: 1e12 * lr), "decoupled", "1e+12 times the one given"),
    ("lr-fixed", adamw(lr=1e-3), "decoupled", "0.02 times the one given"),
    ("lr-fixed-tiny", adamw(lr=1e-12), "not probed", f"lr of its group is 1e-12{WHATEVER}, too small to be measured"),
    ("lr-zero", adamw(lr=0.0), "not probed", f"lr of its group is 0{WHATEVER}, with which nothing moves"),
    ("lr-negative", adamw(lr=lambda lr: -lr), "decoupled", "r is negative: the weights grow"),
    ("lr-nan", adamw(lr=float("nan")), "not probed", "lr of its group is nan; expected one finite number"),
    ("lr-inf", adamw(lr=float("inf")), "not probed", "lr of its group is inf; expected one finite number"),
    (
        "lr-none",
        adamw(lr=lambda lr: None),
        "not probed",
        "lr of group 0 is None, with which it cannot step; make it a float",
    ),
    ("lr-decimal", adamw(lr=Decimal), "not probed", "expected one finite number"),
    ("lr-numpy", adamw(lr=np.float32), "decoupled", ""),
    ("lam-tiny", adamw(lam=lambda lam: 1e-12 * lam), "decoupled", ""),
    ("lam-tinier", adamw(lam=lambda lam: 1e-300 * lam), "decoupled", ""),
    ("lam-denormal", adamw(lam=lambda lam: 1e-322 * lam), "not probed", "weight_decay of its group is 0.0"),
    ("lam-fixed", adamw(lam=0.1), "not probed", f"weight_decay of its group is 0.1{WHATEVER}; pass the one given on"),
    ("lam-zero", adamw(lam=0.0), "not probed", f"weight_decay of its group is 0.0{WHATEVER}; pass the one given on"),
    ("lam-negative", adamw(lam=lambda lam: -lam), "decoupled", "r is negative: the weights grow"),
    ("lam-nan", adamw(lam=float("nan")), "not probed", "weight_decay of its group is nan; expected one finite number"),
    ("lam-inf", adamw(lam=float("inf")), "not probed", "weight_decay of its group is inf; expected one finite number"),
    ("lam-decimal", adamw(lam=Decimal), "not probed", "with which it cannot step; make it a float (TypeError"),
    ("lam-text", adamw(lam=str), "not probed", "with which it cannot step; make it a float (TypeError"),
    ("lam-fraction", adamw(lam=Fraction), "decoupled", ""),
    ("lam-numpy", adamw(lam=np.float32), "decoupled", ""),
    ("lam-tensor", adamw(lam=lambda lam: torch.tensor(lam, dtype=torch.float32)), "decoupled", ""),
    ("lam-tensor-64", adamw(lam=lambda lam: torch.tensor([lam], dtype=torch.float64)), "decoupled", ""),
    ("lam-rounded", adamw(lam=lambda lam: int(50.0 * lam)), "other", "r is not linear in weight_decay"),
]


@pytest.mark.parametrize(("make", "pathway", "note"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
def test_functions_that_make_odd_settings(make: Any, pathway: str, note: str) -> None:
    law = identify(make)
    assert law.pathway == pathway, law
    assert not note or any(note in each for each in law.notes), law
    if pathway == "decoupled":
        assert (law.lr_exponent, law.peak_lr_exponent) == (1.0, 0.0)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize(("lr", "lam"), [(1e-300, 1e-6), (1e10, 1e-40), (1e-3, 1e-300), (-0.1, 0.1)])
def test_the_smallest_and_largest_settings(make: Any, lr: float, lam: float) -> None:
    optimizer = make([weight(5, 4, dtype=torch.float64)], lr=1e-3, weight_decay=lam)
    optimizer.param_groups[0]["lr"] = lr
    (law,) = laws_of(optimizer)
    assert summary(law) == (DECOUPLED if make is torch.optim.AdamW else l2(1.0, "decoupled")), law


def test_a_weight_decay_that_no_number_scales_is_not_probed() -> None:
    law = identify(lambda params, lr, weight_decay: torch.optim.AdamW(params, lr, weight_decay=weight_decay * 1e-321))
    assert law.pathway == "not probed"
    assert law.notes == (
        "weight_decay of its group is far below the one given, too small to be measured; pass that on",
    )
    (law,) = laws_of(torch.optim.AdamW([weight(5, 4)], 1e-3, weight_decay=5e-324))
    assert "none" not in law.pathway or "every bit" in law.notes[0]


# ---- parameters with few elements

SHAPES = [(), (1,), (1, 1), (2,), (3, 1), (5, 4)]


@pytest.mark.parametrize(("kind", "how", "expected", "share"), EACH_LAW)
def test_shapes_with_few_elements(kind: Any, how: Settings, expected: tuple[Any, ...], share: float | None) -> None:
    rates = itertools.cycle([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    mixes: list[list[tuple[int, ...]]] = [*([shape] for shape in SHAPES), SHAPES, [(), (5, 4)]]
    for number, (mix, lr) in enumerate(zip(mixes, rates, strict=False)):
        dtype = (torch.float32, torch.float64)[number % 2]
        held: Any = [weight(*shape, dtype=dtype) for shape in mix]
        if number == len(mixes) - 1:
            held = [{"params": [each]} for each in held]
        for law in laws_of(kind(held, lr=lr, weight_decay=0.1, **how)):
            assert summary(law) == expected, (mix, lr, law)
            assert law.fraction == (None if share is None else pytest.approx(share * lr * 0.1, rel=1e-5))


@pytest.mark.parametrize("rule", [None, Decoupled(0.1)], ids=repr)
def test_a_temperature_beside_a_layer(rule: Any) -> None:
    model = nn.Linear(4, 5)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    if rule is not None:
        halflife.attach(optimizer, rule)
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"})
    assert "two-mechanisms" not in {warning.code for warning in halflife.explain(model, optimizer).warnings}


class Masked(Lion):
    """Decays positive elements only."""

    def decay(self, parameter: Tensor, group: Settings) -> None:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * (parameter > 0))


class LeavesScalars(Lion):
    """Decides by the number of elements, as some optimizers do."""

    def decay(self, parameter: Tensor, group: Settings) -> None:
        if parameter.numel() > 1:
            super().decay(parameter, group)


def test_one_element_is_enough_to_tell_laws_apart() -> None:
    (law,) = laws_of(Masked([weight()], lr=1e-2, weight_decay=0.1))
    assert law.pathway == "other", law
    for shape, pathway in [((), "none"), ((1,), "none"), ((1, 1), "none"), ((2,), "decoupled"), ((3, 1), "decoupled")]:
        (law,) = laws_of(LeavesScalars([weight(*shape)], lr=1e-2, weight_decay=0.1))
        assert law.pathway == pathway, shape
    (law,) = laws_of(LeavesScalars([weight(5), weight(1)], lr=1e-2, weight_decay=0.1))
    assert {kind: each.pathway for kind, each in law.by_shape.items()} == {"vector": "decoupled", "vector 2": "none"}


def test_kinds_in_names_the_law_of_each_parameter() -> None:
    frozen, marked = weight(5).requires_grad_(False), weight(6, 6)
    marked.no_decay = True  # type: ignore[attr-defined]
    held = [weight(5), weight(9), weight(1), weight(5, 4), marked, frozen, weight(2, 2, 2, 2), weight(1), weight()]
    expected = ["vector", "vector 2", "vector 3", "matrix", "matrix 2", "", "convolution", "vector 3", "scalar"]
    assert kinds_in({"params": held}) == expected
    (law,) = laws_of(LeavesScalars(held, lr=1e-2, weight_decay=0.1))
    assert law.by_shape.keys() == set(expected) - {""}


# ---- settings that are not plain numbers


@pytest.mark.parametrize("lam", [np.float32(0.1), np.float64(0.1), torch.tensor(0.1), torch.tensor([0.1]), 1, True])
def test_weight_decays_that_are_no_floats(lam: Any) -> None:
    (law,) = laws_of(Lion([weight(3, 2)], lr=1e-3, weight_decay=lam))
    assert summary(law) == DECOUPLED
    assert law.fraction == pytest.approx(1e-3 * float(lam), rel=1e-6)


@pytest.mark.parametrize(("key", "value"), [("weight_decay", float("nan")), ("weight_decay", "0.1")])
def test_what_is_no_number_is_not_probed(key: str, value: Any) -> None:
    optimizer = Lion([weight(3, 2)], lr=1e-3, weight_decay=0.1)
    optimizer.param_groups[0][key] = value
    (law,) = laws_of(optimizer)
    assert law.pathway == "not probed"
    assert law.notes[0] == f"{key} of group 0 is {value!r}; expected one finite number"


def test_a_weight_decay_for_each_column() -> None:
    """It can be stepped, and no one number says what it does."""
    optimizer = Lion([weight(3, 2)], lr=1e-3, weight_decay=0.1)
    optimizer.param_groups[0]["weight_decay"] = torch.tensor([0.1, 0.3])
    assert laws_of(optimizer)[0].pathway in {"other", "not probed"}


class Relative(Lion):
    """Chooses its learning rate by itself where it is given none, as Adafactor does."""

    def decay(self, parameter: Tensor, group: Settings) -> None:
        parameter.mul_(1.0 - self.speed(group) * group["weight_decay"])

    def speed(self, group: Settings) -> float:
        return float(group.get("lr") or 1e-2)


class BySize(Relative):
    """Its steps are in proportion to the weights."""

    def decay(self, parameter: Tensor, group: Settings) -> None:
        size = float(parameter.norm()) / parameter.numel() ** 0.5
        parameter.mul_(1.0 - max(1e-3, size) * self.speed(group) * group["weight_decay"])


class WithoutRate(Relative):
    def __init__(self, params: Any, weight_decay: float) -> None:
        Optimizer.__init__(self, params, {"weight_decay": weight_decay})


NO_NUMBER: Any = None
NO_LR = "its parameter groups have no lr, which could tell how r changes in a run"


@pytest.mark.parametrize("make", [lambda p, lam: Relative(p, NO_NUMBER, lam), WithoutRate], ids=["None", "no-key"])
def test_without_a_learning_rate_the_fraction_is_told(make: Any) -> None:
    (law,) = laws_of(make([weight(3, 2)], 0.1))
    assert (law.pathway, law.native) == ("other", True)
    assert law.fraction == pytest.approx(1e-3)
    assert law.notes[0] == f"it shrinks the weights by r = 0.001 in its first steps; {NO_LR}"
    law = identify(lambda params, lr, weight_decay: make(params, weight_decay))
    assert law.notes[0] == f"it shrinks the weights by r = 0.0002 in its first steps; {NO_LR}"
    assert laws_of(make([weight(3, 2)], 0.0))[0].pathway == "none"
    assert summary(laws_of(Relative([weight(3, 2)], lr=1e-3, weight_decay=0.1))[0]) == DECOUPLED


@pytest.mark.parametrize(
    "make",
    [
        lambda params, lam: BySize(params, NO_NUMBER, lam),
        lambda params, lam: of("pytorch_optimizer", "AdaFactor")(params, NO_NUMBER, lam),
        lambda params, lam: of("transformers", "Adafactor")(params, NO_NUMBER, lam),
    ],
    ids=["own", "pytorch_optimizer", "transformers"],
)
def test_without_a_learning_rate_a_fraction_that_depends_on_the_weights_is_none(make: Any) -> None:
    law = identify(lambda params, lr, weight_decay: make(params, weight_decay))
    assert law.pathway in {"other", "not probed"}
    assert law.fraction is None
    assert not any("TypeError" in note for note in law.notes), law


def test_lazy_parameters_have_no_shape_yet() -> None:
    optimizer = torch.optim.AdamW(nn.LazyLinear(4).parameters(), lr=1e-3)
    with pytest.raises(UserError, match=r"a parameter of group 0 has no shape yet \(a lazy module\); run a batch"):
        laws_of(optimizer)
