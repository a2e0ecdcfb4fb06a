"""Rows rest on what a step does: to frozen weights, shared ones, at every n-th call, whatever the settings claim."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import halflife
from halflife.errors import UserError
from halflife.laws.law import Law
from halflife.laws.seen import Found, Probed, Seen


def layers(count: int = 2) -> nn.Sequential:
    """Linear layers, nothing in them 0."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return model


class Plain(Optimizer):
    """Decoupled decay, with parts to replace."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.calls = 0

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["weight_decay"])

    def acts(self, parameter: Tensor) -> bool:
        return parameter.grad is not None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.acts(parameter):
                    parameter.mul_(1 - group["lr"] * self.lam(group, parameter))
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class OfTheLast(Plain):
    """Takes the decay of its last group for all."""

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(self.param_groups[-1]["weight_decay"])


class WithoutGradient(Plain):
    def acts(self, parameter: Tensor) -> bool:
        return True


class EveryThird(Plain):
    def acts(self, parameter: Tensor) -> bool:
        return parameter.grad is not None and self.calls % 3 == 0


class OtherKey(Plain):
    """Its groups say ``wd``."""

    def __init__(self, params: Any, lr: float = 1e-2, wd: float = 0.1) -> None:
        Optimizer.__init__(self, params, {"lr": lr, "wd": wd})
        self.calls = 0

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["wd"])


def removed(model: nn.Module, optimizers: Sequence[Optimizer], steps: int = 1) -> dict[str, float]:
    """The oracle: what real steps take from each parameter; frozen ones keep the gradient that they have."""
    before = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad or parameter.grad is not None:
                parameter.grad = torch.zeros_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    kept = {name: parameter.detach().double().norm() for name, parameter in model.named_parameters()}
    return {name: 1 - (kept[name] / old.norm()).item() for name, old in before.items()}


def said(table: halflife.Explanation) -> dict[str, float]:
    """What a table says that the next step removes."""
    return {row["parameter"]: row["r"] or 0.0 for row in table.rows}


def codes(table: halflife.Explanation) -> set[str]:
    return {warning.code for warning in table.warnings}


def frozen_with_gradient(model: nn.Sequential) -> Optimizer:
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    return SGD(model.parameters(), lr=0.01, weight_decay=0.1)


def frozen_without(model: nn.Sequential) -> Optimizer:
    model[0].requires_grad_(False)
    return SGD(model.parameters(), lr=0.01, weight_decay=0.1)


def frozen_and_always(model: nn.Sequential) -> Optimizer:
    model[0].requires_grad_(False)
    return WithoutGradient(model.parameters())


def two_groups(kind: type[Plain]) -> Callable[[nn.Sequential], Optimizer]:
    def make(model: nn.Sequential) -> Optimizer:
        return kind([{"params": model[0].parameters(), "weight_decay": 0.0}, {"params": model[1].parameters()}])

    return make


MAKERS: dict[str, Callable[[nn.Sequential], Optimizer]] = {
    "frozen, with a gradient": frozen_with_gradient,
    "frozen, without": frozen_without,
    "frozen, decays always": frozen_and_always,
    "decay of the last group": two_groups(OfTheLast),
    "groups of their own": two_groups(Plain),
    "another key": lambda model: OtherKey(model.parameters()),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_r_is_what_the_next_step_removes(make: Callable[[nn.Sequential], Optimizer]) -> None:
    model = layers().double()
    optimizer = make(model)
    table = halflife.explain(model, optimizer)
    truth = removed(model, [optimizer])
    assert said(table) == pytest.approx(truth, rel=1e-6, abs=1e-12)
    assert {row["parameter"]: row["decays"] for row in table.rows} == {name: r > 1e-12 for name, r in truth.items()}


# ---- frozen


def test_a_frozen_parameter_with_a_gradient_is_updated() -> None:
    """torch asks for the gradient, not for requires_grad."""
    model = layers()
    optimizer = frozen_with_gradient(model)
    table = halflife.explain(model, optimizer)
    assert table.rows[0]["decays"] is True
    assert table.rows[0]["why"] == ("weight_decay is 0.1; frozen, but it has a gradient, so a step still updates it")
    warning = next(warning for warning in table.warnings if warning.code == "frozen-but-updated")
    assert warning.text.startswith(
        "2 frozen parameters still have gradients, so a step updates and decays them: 0.weight"
    )
    assert warning.parameters == ("0.weight", "0.bias")
    with pytest.raises(AssertionError, match=r"0\.weight: found decoupled:0\.1"):
        halflife.assert_decay(model, optimizer, {"0.weight": "none"})
    with pytest.raises(AssertionError, match="4 of 4 differ"):  # those that move are part of everything
        halflife.assert_decay(model, optimizer, {"*": "none"})
    optimizer.zero_grad(set_to_none=True)
    table = halflife.explain(model, optimizer)
    assert (table.rows[0]["decays"], table.rows[0]["why"]) == (False, "frozen")
    assert "frozen-but-updated" not in codes(table)


def test_what_decays_without_a_gradient_is_not_called_frozen() -> None:
    model = layers()
    optimizer = frozen_and_always(model)
    table = halflife.explain(model, optimizer)
    assert table.rows[0]["why"] == "weight_decay is 0.1; frozen, yet it decays although it has no gradient"
    assert table.rows[2]["notes"] == ["also where it has no gradient"]
    assert any(
        "frozen parameters decay although they have no gradient: 0.weight" in str(each) for each in table.warnings
    )
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1"})
    with pytest.raises(AssertionError, match="matrices: expected none, but 2 of 2 differ"):
        halflife.assert_decay(model, optimizer, {"matrices": "none"})


def test_frozen_parameters_can_be_asserted() -> None:
    model = nn.ModuleDict({"backbone": layers(), "head": nn.Linear(4, 2)})
    model["backbone"].requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    halflife.assert_decay(model, optimizer, {"backbone.*": "none", "*": "decoupled:0.1"})
    halflife.assert_decay(model, AdamW(model["head"].parameters(), lr=1e-3), {"backbone.*": "none"})
    with pytest.raises(AssertionError, match=r"backbone\.0\.weight: found none \(frozen\)"):
        halflife.assert_decay(model, optimizer, {"backbone.*": "decoupled:0.1"})
    with pytest.raises(AssertionError, match=r"matrices: expected none, but 1 of 1 differ\. head\.weight"):
        halflife.assert_decay(model, optimizer, {"matrices": "none"})
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(AssertionError, match=r"backbone\.0\.weight: found frozen; not probed"):
        halflife.assert_decay(model, optimizer, {"backbone.*": "none"})


# ---- settings that are not what acts


def test_decay_where_the_group_says_0() -> None:
    model = layers()
    optimizer = two_groups(OfTheLast)(model)
    table = halflife.explain(model, optimizer)
    warning = next(warning for warning in table.warnings if warning.code == "decay-without-setting")
    assert warning.text.startswith(
        "weight_decay is 0 in group 0 of optimizer 0 (OfTheLast), yet a step shrinks 0.weight, 0.bias, by r = 0.001: "
    )
    assert table.rows[0]["why"].startswith("weight_decay is 0, yet a step shrinks it")
    assert table.rows[0]["lam"] == pytest.approx(0.1)
    with pytest.raises(AssertionError, match=r"0\.weight: found decoupled:0\.1"):
        halflife.assert_decay(model, optimizer, {"0.*": "none"})
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"})


def test_decay_by_another_setting_than_the_groups() -> None:
    model = layers()
    optimizer = OfTheLast(
        [{"params": model[0].parameters(), "weight_decay": 0.3}, {"params": model[1].parameters(), "weight_decay": 0.1}]
    )
    table = halflife.explain(model, optimizer)
    warning = next(warning for warning in table.warnings if warning.code == "other-setting")
    assert warning.text.startswith(
        "weight_decay = 0.3 of group 0 of optimizer 0 (OfTheLast) is not what acts: 0.weight"
    )
    assert "by that of 0.1" in warning.text
    assert table.rows[0]["lam"] == pytest.approx(0.1)
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"})
    with pytest.raises(AssertionError, match=r"found decoupled:0\.1"):
        halflife.assert_decay(model, optimizer, {"0.*": "decoupled:0.3"})


def test_a_setting_of_another_name() -> None:
    model = layers()
    table = halflife.explain(model, OtherKey(model.parameters()))
    assert (table.rows[0]["why"], table.rows[0]["lam"]) == ("wd is 0.1", pytest.approx(0.1))
    assert codes(table) == {"decay-on-biases"}


# ---- several removals, fewer than one per call


def test_what_two_optimizers_remove_together() -> None:
    model = layers().double()
    optimizers = [
        AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
        AdamW(model[0].parameters(), lr=0.02, weight_decay=0.1),
    ]
    table = halflife.explain(model, optimizers)
    truth = removed(model, optimizers)
    assert said(table) == pytest.approx(truth, rel=1e-6)
    row = table.rows[0]
    assert row["half_life"] == pytest.approx(math.log(2) / -math.log1p(-truth["0.weight"]), rel=1e-6)
    assert row["notes"] == ["removed twice per iteration"]
    assert (row["also_in"], row["lam"]) == ([[1, 0]], None)
    assert row["why"] == "weight_decay is 0.1 (optimizer 0); weight_decay is 0.1 (optimizer 1)"
    for law in ("decoupled:0.1", "decoupled:0.2", "decoupled:0.3", "decoupled", "none", "l2"):
        with pytest.raises(AssertionError, match=r"removed twice per iteration by 2 optimizers, 0\.002998 together"):
            halflife.assert_decay(model, optimizers, {"0.*": law})
    halflife.assert_decay(model, optimizers, {"1.*": "decoupled:0.1"})


def test_a_parameter_twice_in_one_group() -> None:
    model = layers(1).double()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = SGD([*model.parameters(), model.get_parameter("0.weight")], lr=0.01, weight_decay=0.1)
    table = halflife.explain(model, optimizer)
    assert said(table) == pytest.approx(removed(model, [optimizer]), rel=1e-6)
    assert any(each.code == "in-two-groups" and each.parameters == ("0.weight",) for each in table.warnings)
    with pytest.raises(AssertionError, match=r"removed twice per iteration, 0\.001999 together"):
        halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1"})
    halflife.assert_decay(model, optimizer, {"biases": "decoupled:0.1"})


def test_one_of_two_holders_decays() -> None:
    model = layers(1)
    optimizers = [
        AdamW(model.parameters(), lr=0.01, weight_decay=0.0),
        SGD(model.parameters(), lr=0.01, weight_decay=0.1),
    ]
    halflife.assert_decay(model, optimizers, {"*": "decoupled:0.1"})
    assert halflife.explain(model, optimizers).rows[0]["optimizer"] == 1
    optimizers[0].register_step_pre_hook(lambda *_: None)  # now what it does is not known
    row = halflife.explain(model, optimizers).rows[0]
    assert (row["decays"], row["notes"]) == (True, ["another optimizer that holds it was not probed"])
    with pytest.raises(AssertionError, match="another optimizer that was not probed"):
        halflife.assert_decay(model, optimizers, {"*": "decoupled:0.1"})


def test_decay_at_every_third_call() -> None:
    model = layers().double()
    optimizer = EveryThird(model.parameters())
    table = halflife.explain(model, optimizer)
    row = table.rows[0]
    truth = removed(model, [optimizer], steps=3)["0.weight"]
    assert (row["every"], row["r"]) == (3, pytest.approx(truth, rel=1e-6))
    assert row["half_life"] == pytest.approx(3 * math.log(2) / -math.log1p(-truth), rel=1e-6)
    assert row["notes"] == ["at every 3rd call"]
    assert "at every 3rd call" in str(table)
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"})
    with pytest.raises(AssertionError, match=r"found decoupled:0\.1, at every 3rd call"):
        halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.2", "*": "decoupled"})


# ---- what the model declares


class Declares(nn.Sequential):
    def no_weight_decay(self) -> set[str]:
        return {"0.weight"}


def test_what_the_model_declares_is_no_matrix_without_decay() -> None:
    model = Declares(nn.Linear(4, 4), nn.Linear(4, 4))
    spared = AdamW(halflife.param_groups(model, weight_decay=0.1), lr=1e-3)
    assert codes(halflife.explain(model, spared)) == set()
    warning = halflife.explain(model, AdamW([model.get_parameter("0.weight")], lr=1e-3, weight_decay=0.1)).warnings[-1]
    assert (warning.code, warning.parameters) == ("decay-on-declared", ("0.weight",))
    assert "that the model itself declares not to decay: 0.weight (" in warning.text
    del Declares.no_weight_decay
    try:
        assert "matrix-without-decay" in codes(halflife.explain(model, spared))
    finally:
        Declares.no_weight_decay = lambda self: {"0.weight"}  # type: ignore[method-assign]


# ---- hooks


def test_hooks_are_stepped_in_place() -> None:
    """A decay in a hook is not seen on copies; in place it is, and everything is put back."""
    model = layers(1).double()
    optimizer = SGD(model.parameters(), lr=0.01)

    def shrink(optimizer: Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.mul_(0.99)

    optimizer.register_step_post_hook(shrink)
    table = halflife.explain(model, optimizer)
    assert [row["decays"] for row in table.rows] == [None, None]
    assert next(each for each in table.warnings if each.code == "hooks-not-probed").text.endswith("with in_place=True")
    with pytest.raises(AssertionError, match="found not probed"):
        halflife.assert_decay(model, optimizer, {"*": "none"})
    before = copy.deepcopy(model.state_dict())
    table = halflife.explain(model, optimizer, in_place=True)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert "hooks-not-probed" not in codes(table)
    assert said(table) == pytest.approx(removed(model, [optimizer]), rel=1e-6)
    with pytest.raises(AssertionError, match="differ"):
        halflife.assert_decay(model, optimizer, {"*": "none"}, in_place=True)


# ---- at the peak


def test_r_at_the_peak() -> None:
    model = layers(1)
    optimizer = AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 1000)
    table = halflife.explain(model, optimizer, steps_per_epoch=100)
    row, group = table.rows[0], table.groups[0]
    assert (row["lr"], row["r"], row["r_lr"]) == (pytest.approx(3e-7), pytest.approx(3e-8), pytest.approx(3e-7))
    assert (row["peak_lr"], row["r_peak"]) == (3e-4, pytest.approx(3e-5, rel=1e-5))
    assert (group["peak_lr"], group["r_peak"]) == (row["peak_lr"], row["r_peak"])
    assert row["half_life_peak"] == group["half_life_peak"] == pytest.approx(23104.56, rel=1e-4)
    text = str(table)
    assert "lam 0.1, lr 3e-07, r 3e-08 now, 3e-05 at the peak lr 0.0003\n" in text
    assert "steps now, 23,105 steps at the peak (231 epochs)" in text
    optimizer.param_groups[0]["lr"] = 0.0
    stopped = halflife.explain(model, optimizer)
    assert (stopped.rows[0]["r"], stopped.rows[0]["r_lr"]) == (pytest.approx(3e-5, rel=1e-5), 3e-4)
    assert "lam 0.1, lr 0, r 3e-05 at the peak lr 0.0003, half-life 23,105 steps" in str(stopped)
    constant = AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    assert "peak" not in str(halflife.explain(model, constant))


# ---- what is accepted


def gan() -> tuple[nn.Module, nn.Module, Optimizer, Optimizer]:
    one, other = layers(1), layers(1)
    return one, other, AdamW(one.parameters(), lr=1e-3, weight_decay=0.1), SGD(other.parameters(), lr=1e-2)


@pytest.mark.parametrize(
    ("models", "optimizers", "names"),
    [
        (lambda g, d: [g, d], lambda g, d: [g, d], ["0.0.weight", "1.0.weight"]),
        (lambda g, d: (g, d), lambda g, d: (each for each in (g, d)), ["0.0.weight", "1.0.weight"]),
        (lambda g, d: {"G": g, "D": d}, lambda g, d: {"G": g, "D": d}, ["G.0.weight", "D.0.weight"]),
        (lambda g, d: {"the.G": g, "D": d}, lambda g, d: {"G": g, "D": d}.values(), ["the_G.0.weight", "D.0.weight"]),
        (lambda g, d: nn.ModuleList([g, d]), lambda g, d: [[g], (d,)], ["0.0.weight", "1.0.weight"]),
        (lambda g, d: {"keys": g, "items": d}.values(), lambda g, d: iter([g, d]), ["0.0.weight", "1.0.weight"]),
        (lambda g, d: None, lambda g, d: {"G": g, "D": [d]}, ["optimizer 0, group 0, parameter 0"]),
    ],
    ids=["lists", "generator", "dicts", "values", "nested", "iterators", "no model"],
)
def test_several_models_and_optimizers(models: Any, optimizers: Any, names: list[str]) -> None:
    one, other, first, second = gan()
    table = halflife.explain(models(one, other), optimizers(first, second))
    assert [row["parameter"] for row in table.rows if len(row["shape"]) == 2][: len(names)] == names
    assert [row["optimizer"] for row in table.rows] == [0, 0, 1, 1]
    assert [row["decays"] for row in table.rows] == [True, True, False, False]
    assert [parameter for parameter, _ in one.named_parameters()] == ["0.weight", "0.bias"]  # nothing was renamed


def test_assertions_about_several_models() -> None:
    one, other, first, second = gan()
    models, optimizers = {"G": one, "D": other}, {"G": first, "D": second}
    halflife.assert_decay(models, optimizers, {"G.*": "decoupled:0.1", "D.*": "none"})
    halflife.assert_decay(None, optimizers.values(), {"optimizer 0*": "decoupled:0.1", "*": "none"})
    with pytest.raises(AssertionError, match=r"D\.\*: expected decoupled, but 2 of 2 differ\. D\.0\.weight"):
        halflife.assert_decay(models, optimizers, {"D.*": "decoupled"})
    with pytest.raises(UserError, match="without the model parameters have no kinds such as 'norms'; give the model"):
        halflife.assert_decay(None, first, {"norms": "none"})


class Wrapper:
    """No torch optimizer; what it needs to be one of halflife's: groups, and a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.inner = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Decay all, whatever the inner optimizer does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * 0.3)
        self.inner.step()


def test_a_wrapper_that_can_be_stepped_is_taken_as_it_is() -> None:
    model = layers(1).double()
    wrapper = Wrapper(SGD(model.parameters(), lr=0.01))
    table = halflife.explain(model, wrapper)  # type: ignore[arg-type]
    assert table.groups[0]["optimizer_name"] == "Wrapper"
    for row in table.rows:
        if row["decays"]:
            assert row["why"].startswith("weight_decay is 0, yet a step shrinks it")
            assert row["lam"] is None
    truth = removed(model, [wrapper])  # type: ignore[list-item]
    for row in table.rows:  # right, or not probed
        assert row["decays"] is None or row["r"] == pytest.approx(truth[row["parameter"]], rel=1e-6)
    with pytest.raises(AssertionError, match="differ"):
        halflife.assert_decay(model, wrapper, {"*": "none"})  # type: ignore[arg-type]


class NoWrapper:
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (lambda m, o: m, lambda m, o: NoWrapper(o), r"got NoWrapper; pass the optimizer inside it \(\.optimizer\)"),
        (
            lambda m, o: m,
            lambda m, o: torch.optim.lr_scheduler.ConstantLR(o),
            r"got ConstantLR; pass the .*\(\.optimizer\)",
        ),
        (lambda m, o: m, lambda m, o: AdamW, "got the class AdamW; make an instance of it"),
        (lambda m, o: m, lambda m, o: [o, None], "expected a torch.optim.Optimizer, or a list of them, got NoneType"),
        (lambda m, o: m, lambda m, o: list(m.parameters()), "or a list of them, got Parameter"),
        (lambda m, o: m, lambda m, o: "adamw", "or a list of them, got str"),
        (lambda m, o: m, lambda m, o: [], "got no optimizer; give the one that trains the model"),
        (lambda m, o: m, lambda m, o: {"a": o, "b": o}, "got the same optimizer twice; give each once"),
        (
            lambda m, o: [m, o],
            lambda m, o: o,
            r"expected models, torch.nn.Module, got an object of type AdamW among them \(1\)",
        ),
        (lambda m, o: [m, nn.Linear], lambda m, o: o, "got the class Linear; make an instance of it among them"),
        (lambda m, o: {}, lambda m, o: o, "got no model; give one, or None if there is only the optimizer"),
        (
            lambda m, o: o,
            lambda m, o: m,
            "expected a model, a torch.nn.Module, a list or dict of them, or None, got an object",
        ),
        (lambda m, o: "gpt", lambda m, o: o, "or None, got an object of type str"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_neither_model_nor_optimizer(model: Any, optimizer: Any, message: str) -> None:
    m = nn.Linear(2, 2)
    o = AdamW(m.parameters())
    with pytest.raises(UserError, match=message) as caught:
        halflife.explain(model(m, o), optimizer(m, o))
    assert "\n" not in str(caught.value)


# ---- what is made of what probing finds, whatever it is


def found_as(law: Law, lam: float | None, seen: Seen) -> Callable[..., list[Probed]]:
    """A probe that finds the same of every parameter."""

    def probe_of(optimizers: Sequence[Optimizer], *, in_place: bool = False) -> list[Probed]:
        found = Found(law=law, lam=lam, seen=seen)
        return [
            Probed(
                laws=[law for _ in optimizer.param_groups],
                found={id(each): found for group in optimizer.param_groups for each in group["params"]},
            )
            for optimizer in optimizers
        ]

    return probe_of


def decoupled(r: float, every: int = 1) -> Law:
    numbers: dict[str, Any] = {"lr_exponent": 1.0, "peak_lr_exponent": 0.0, "coefficient": 1.0}
    return Law(pathway="decoupled", name="decoupled", fraction=r, every=every, **numbers)


@dataclass(frozen=True)
class Case:
    """What is found of all parameters of AdamW(lr=0.01, weight_decay=0.1), and what explain makes of it."""

    law: Law
    lam: float | None
    seen: Seen
    decays: bool | None
    why: str
    notes: tuple[str, ...] = ()
    half_life: float | None = None
    code: str | None = None
    holds: str | None = None


STEADY = math.log(2) / -math.log1p(-1e-3)
CASES = {
    "as it says": Case(
        decoupled(1e-3), 0.1, Seen(form="shrinks", r=1e-3), True, "weight_decay is 0.1", (), STEADY, None, "decoupled:0.1"
    ),
    "every 22nd call": Case(
        decoupled(1e-3, 22), 0.1, Seen(form="shrinks", r=1e-3, every=22), True, "weight_decay is 0.1",
        ("at every 22nd call",), 22 * STEADY, None, "decoupled:0.1",
    ),
    "another coefficient": Case(
        decoupled(2e-3), 0.2, Seen(form="shrinks", r=2e-3), True,
        "weight_decay is 0.1, yet a step removes what 0.2 would", (), None, "other-setting", "decoupled:0.2",
    ),
    "a coefficient that nobody knows": Case(
        decoupled(1e-3), None, Seen(form="shrinks", r=1e-3), True, "weight_decay is 0.1", (), STEADY, None, "decoupled"
    ),
    "no law": Case(
        Law(pathway="not probed", notes=("it draws",)), None, Seen(form="varied", reason="it draws at random"), True,
        "weight_decay is 0.1; it draws at random",
    ),
    "some elements": Case(
        Law(pathway="other", notes=("some elements only",)), None, Seen(form="masked"), True,
        "weight_decay is 0.1; some elements only",
    ),
    "only rows with a gradient": Case(
        decoupled(1e-3), 0.1, Seen(form="shrinks", r=1e-3, idle_rows=False), True, "weight_decay is 0.1",
        ("only rows with a gradient decay",), STEADY, None, "decoupled:0.1",
    ),
    "hidden by rounding": Case(
        decoupled(1e-3), 0.1, Seen(form="still"), True, "weight_decay is 0.1", (), STEADY, None, "decoupled:0.1"
    ),
    "none": Case(
        Law(pathway="none"), None, Seen(form="still"), False, "weight_decay is 0.1, but AdamW ignores it",
        code="ignored", holds="none",
    ),
    "not probed": Case(
        Law(pathway="not probed", notes=("a", "b")), 0.1, Seen(form="not probed", reason="a; pass in_place=True"), None,
        "not probed: a; pass in_place=True", code="not-probed",
    ),
    "a law that was not seen": Case(
        decoupled(1e-3), 0.1, Seen(form="not probed", reason="it cannot be copied"), None,
        "not probed: it cannot be copied", code="not-probed",
    ),
    "still, and no law": Case(
        Law(pathway="not probed", notes=("it is lost in rounding",)), None, Seen(form="still"), None,
        "not probed: it is lost in rounding", code="not-probed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_made_of_what_was_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.audit.rows.probe_of", found_as(case.law, case.lam, case.seen))
    model = layers(1)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    table = halflife.explain(model, optimizer)
    row = table.rows[0]
    assert (row["decays"], row["why"], tuple(row["notes"])) == (case.decays, case.why, case.notes)
    if case.half_life is not None:
        assert row["half_life"] == pytest.approx(case.half_life)
    assert codes(table) - {"decay-on-biases"} - {"nothing-decays"} == ({case.code} if case.code else set())
    for law in ("none", "decoupled", "decoupled:0.1", "decoupled:0.2", "l2", "constant"):
        holds = law in {case.holds, (case.holds or "").partition(":")[0]}
        with (
            contextlib.nullcontext()
            if holds
            else pytest.raises(AssertionError, match=r"2 of 2 differ\. 0\.weight: found ")
        ):
            halflife.assert_decay(model, optimizer, {"*": law})


class Squared(Plain):
    """Its coefficient is multiplied by the learning rate once more."""

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["lr"] * group["weight_decay"])


def test_a_law_without_a_name_has_not_that_of_its_pathway() -> None:
    model = layers(1)
    table = halflife.explain(model, Squared(model.parameters(), lr=0.05))
    assert [(row["law"], row["r"]) for row in table.rows] == [("other", pytest.approx(0.05**2 * 0.1))] * 2
    assert (table.groups[0]["law"], table.groups[0]["pathway"]) == ("other", "decoupled")


class Outside(torch.optim.SGD):
    """Its decay stands in an attribute, and acts with a coefficient of its own."""

    wd = 0.02

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 0.003 * self.wd)
        return super().step(closure)


def test_a_weight_decay_of_0_is_not_asked_to_be_divided() -> None:
    model = nn.Linear(4, 4, bias=False)
    codes = [warning.code for warning in halflife.explain(model, Outside(model.parameters(), lr=0.1)).warnings]
    assert codes == ["decay-without-setting"]


class ByItself(torch.optim.SGD):
    """Shrinks its weights by what stands in an attribute, which no rule switches off."""

    own = 0.125

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * self.own)
        return super().step(closure)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "rule", [halflife.HalfLife(steps=4), halflife.Decoupled(lam=0.5)], ids=["half-life", "decoupled"]
)
def test_a_rule_and_a_decay_of_the_optimizer_are_told_together(rule: halflife.rules.Rule, in_place: bool) -> None:
    model = layers(1)
    optimizer = ByItself(model.parameters(), lr=0.25)
    halflife.attach(optimizer, rule, select="all")
    table = halflife.explain(model, optimizer, in_place=in_place)
    of_the_rule = 0.5**0.25 if isinstance(rule, halflife.HalfLife) else 1 - 0.25 * 0.5
    both = 1 - of_the_rule * (1 - 0.25 * 0.125)
    assert [row["r"] for row in table.rows] == pytest.approx([both] * len(table.rows), rel=1e-4)
    assert next(warning.code for warning in table.warnings) == "two-mechanisms"
    with pytest.raises(AssertionError, match="found other"):
        halflife.assert_decay(model, optimizer, {"*": "half-life:4" if of_the_rule < 0.85 else "decoupled:0.5"})
