"""A ``weight_decay`` is the lam of a rule only if its unit is the same, whatever is around the rule."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from halflife.errors import UserError
from halflife.groups import param_groups
from halflife.optim.attaching import attach
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    Independent,
    Normalized,
    PerGroup,
    Rule,
    Scheduled,
    Stable,
    Toward,
)
from halflife.rules.base import LamRule, StepInfo
from halflife.schedules import until
from tests import HAS_MUON


def weights(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in shapes or [(2, 2)]]


OTHER = [Independent(), Constant(), Normalized(steps=100)]
AROUND: list[Any] = [
    lambda rule: rule,
    lambda rule: Scheduled(rule, until(9)),
    Cautious,
    Toward,
    lambda rule: Scheduled(Cautious(rule), until(9)),
    lambda rule: PerGroup([rule]),
    lambda rule: Cautious(PerGroup([Scheduled(rule, until(9))])),
]
MADE: list[Any] = [
    lambda: AdamW(weights(), lr=1e-3, weight_decay=0.1),
    lambda: AdamW(weights(), lr=torch.tensor(1e-3), weight_decay=0.1),
    lambda: SGD(weights(), lr=1e-3, momentum=0.9, weight_decay=0.1),
    lambda: Adam(weights(), lr=1e-3, weight_decay=0.1),
    *([lambda: torch.optim.Muon(weights(), lr=1e-3, weight_decay=0.1)] if HAS_MUON else []),
    lambda: AdamW(param_groups(torch.nn.Linear(2, 2, bias=False), policy="matrices", weight_decay=0.1), lr=1e-3),
    lambda: type("Own", (SGD,), {})(weights(), lr=1e-3, weight_decay=0.1),
]


@pytest.mark.parametrize("rule", OTHER, ids=repr)
@pytest.mark.parametrize("around", range(len(AROUND)))
def test_no_way_around(rule: Any, around: int) -> None:
    for make in MADE:
        for select in (None, "all"):
            with pytest.raises(UserError, match=f"{type(rule).__name__} needs a lam: the weight_decay = 0.1 of "):
                attach(make(), AROUND[around](rule), select=select)


def test_a_group_that_joins_later() -> None:
    first, second = weights((2,), (2,))
    optimizer = AdamW([{"params": [first], "weight_decay": 0.0}], lr=1e-3)
    attach(optimizer, PerGroup([Decoupled(0.1)]), select="all").detach()
    optimizer = AdamW([{"params": [first], "weight_decay": 0.1}, {"params": [second], "weight_decay": 0.0}], lr=1e-3)
    attach(optimizer, PerGroup([Decoupled(), Independent()]))  # the second group does not decay
    optimizer.add_param_group({"params": weights((3,)), "weight_decay": 0.1})
    second.grad = torch.zeros(2)
    with pytest.raises(UserError, match="PerGroup"):
        optimizer.step()


def test_the_unit_that_a_setting_chooses() -> None:
    """optimi's ``decouple_lr`` and AdaBelief's ``fixed_decay``: the number is a fraction."""
    for setting, told in (
        ("decouple_lr", r"with decouple_lr it is the fraction at the peak lr\); 0.0001 of Fixed at peak lr 0.001 is"),
        ("fixed_decay", r"with fixed_decay it is the fraction itself\); 0.0001 of Fixed at peak lr 0.001 is"),
    ):
        optimizer: Any = type("Fixed", (SGD,), {})([{"params": weights(), setting: True}], lr=1e-3, weight_decay=1e-4)
        with pytest.raises(UserError, match=rf"Decoupled needs a lam: .*{told} Decoupled\(lam=0.1\)"):
            attach(optimizer, Cautious(Decoupled()))
        with pytest.raises(UserError, match=r"Corrected needs a lam: .*is Corrected\(lam=0.1\)"):
            attach(optimizer, Corrected())
        with pytest.raises(UserError, match=r"L2 needs a lam: .*, and no lam of L2 removes the same; give L2 a lam"):
            attach(optimizer, PerGroup([L2()]))
        handle = attach(optimizer, Decoupled(0.1))
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(2, 2)
        optimizer.step()
        assert handle.fractions() == [pytest.approx(1e-4)]


@dataclass(frozen=True, repr=False)
class Doubled(LamRule):
    """A rule of the user's own, whose unit nobody knows."""

    def fraction(self, info: StepInfo) -> float:
        return 2.0 * self.lam_of(info)


@dataclass(frozen=True, repr=False)
class Declared(Doubled):
    """The same, with the unit declared."""

    inherits: ClassVar[bool] = True


class Reading(Rule):
    """Reads the groups' values itself."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"lam"})

    def fraction(self, info: StepInfo) -> float:
        return info.lam * info.lr


class Hiding(Rule):
    """Reads them through a rule that it does not show."""

    def __init__(self) -> None:
        self.hidden = Constant()

    @property
    def needs(self) -> frozenset[str]:
        return self.hidden.needs

    def fraction(self, info: StepInfo) -> Any:
        return self.hidden.fraction(info)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            Doubled(),
            r"Doubled takes the weight_decay = 0.1 of AdamW .*: r = 0.2 per step .*, a half-life of 3 steps; give",
        ),
        (Scheduled(Doubled(), until(9)), "Doubled takes the weight_decay = 0.1 of AdamW as its lam"),
        (Cautious(Reading()), r"Reading takes .*: r = 0.0001 per step at lr = 0.001, a half-life of 6,931 steps; give"),
        (
            Hiding(),
            r"Hiding takes .*: r = 0.1 per step .*, a half-life of 7 steps; .* write inherits = True in the class",
        ),
    ],
)
def test_an_own_rule_is_told_with_its_half_life(rule: Any, told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        attach(AdamW(weights(), lr=1e-3, weight_decay=0.1), rule)


class Silent(Reading):
    """Reads the groups' values and does not say so."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()


def test_an_own_rule_that_reads_without_saying_so() -> None:
    optimizer = AdamW(weights(), lr=1e-3, weight_decay=0.1)
    attach(optimizer, Scheduled(Silent(), until(9)))
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(2, 2)
    with pytest.raises(
        UserError, match=r"r = nan of the weights in parameter group 0 .*: a rule is told only the .* name, here none"
    ):
        optimizer.step()


def test_an_own_rule_that_says_its_unit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(AdamW(weights(), lr=1e-3, weight_decay=0.1), Declared())
        attach(AdamW(weights(), lr=1e-3, weight_decay=0.1), Doubled(0.01))
        attach(AdamW(weights(), lr=1e-3, weight_decay=0.1), Stable(1e-4))
