"""The facts about optimizer classes: each is held against the class itself, and no class needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import optim
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.factory import identify
from halflife.optim import known
from halflife.optim.actions.directions import direction_of
from halflife.optim.attaching import attach
from halflife.optim.known import KNOWN, Facts, facts_of, family_of
from halflife.rules import Cautious, Decoupled, Stable
from tests import HAS_MUON, needs_muon

Make = Callable[..., Optimizer]

DECOUPLED = {"decoupled_weight_decay": True}
MADE: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (optim.Adam, {}),
    (optim.Adam, DECOUPLED),
    (optim.AdamW, {}),
    (optim.NAdam, {}),
    (optim.NAdam, DECOUPLED),
    (optim.RAdam, {}),
    (optim.RAdam, DECOUPLED),
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    *([(optim.Muon, {})] if HAS_MUON else []),
    (optim.Adafactor, {}),
    (optim.RMSprop, {}),
    (optim.Adamax, {}),
    (optim.Adadelta, {}),
]


def label(value: Any) -> str | None:
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(("kind", "settings"), MADE, ids=label)
def test_native_is_what_the_experiment_finds(kind: Make, settings: dict[str, Any]) -> None:
    """`identify` writes another weight_decay into the group and looks whether the next step removes that."""
    law = identify(lambda params, lr, weight_decay: kind(params, lr=lr, weight_decay=weight_decay, **settings))
    group = kind([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, **settings).param_groups[0]
    said = facts_of(type(kind([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1))).native(group)
    acts_at_once = law.pathway == "decoupled" or law.equivalent_to == "decoupled"
    assert said is (acts_at_once and law.native)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("kind", "settings"), [case for case in MADE if facts_of(case[0]).memory], ids=label)
def test_the_sign_of_the_coming_update_is_the_sign_of_the_update(
    kind: Make, settings: dict[str, Any], maximize: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(50, dtype=torch.float64, generator=generator))
    optimizer = kind([weight], lr=0.01, weight_decay=0.0, maximize=maximize, **settings)
    for _ in range(8):
        weight.grad = torch.randn(50, dtype=torch.float64, generator=generator)
        before = weight.detach().clone()
        direction = direction_of(optimizer, optimizer.param_groups[0], weight)
        assert direction is not None
        memory = torch.zeros_like(before) if direction.memory is None else direction.memory.clone()
        expected = torch.sign(memory + direction.gain * weight.grad)
        optimizer.step()
        assert torch.equal(torch.sign(before - weight.detach()), expected)


@pytest.mark.parametrize(("kind", "settings"), [case for case in MADE if family_of(case[0]).adaptive], ids=label)
def test_an_adaptive_class_keeps_the_mean_that_is_said(kind: Make, settings: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.01, betas=(0.9, 0.75), **settings)
    for gradient in (2.0, 3.0):
        weight.grad = torch.full((3,), gradient)
        optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq"], torch.full((3,), 0.25 * (0.75 * 4.0 + 9.0)))


class Sub(optim.AdamW):
    """May do anything with its numbers."""


class Stranger(optim.Adadelta):
    """Of a library that is not installed."""


def test_facts_of_the_first_kind_are_not_inherited_and_those_of_the_second_are() -> None:
    assert facts_of(Sub) == Facts() != facts_of(optim.AdamW)
    assert family_of(Sub).adaptive


@needs_muon
def test_a_subclass_of_muon_is_a_muon_for_stable() -> None:
    class Inside(optim.Muon):
        """A Muon all the same."""

    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UserError, match="Stable cannot be attached to Inside: the size of its steps does not depend"):
        attach(Inside([weight], lr=0.1, weight_decay=0.1), Stable(0.1))


def test_one_entry_under_a_dotted_name_is_all_that_a_new_class_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts_of(Stranger) == family_of(Stranger) == Facts()
    monkeypatch.setitem(KNOWN, f"{__name__}.Stranger", Facts(native=known.always, not_stable="it has no steps"))
    assert facts_of(Stranger).native({})
    assert family_of(Stranger).not_stable
    weight = torch.nn.Parameter(torch.ones(2))
    seen = []

    class Probe(Stranger):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["weight_decay"])

    monkeypatch.setitem(KNOWN, f"{__name__}.{Probe.__qualname__}", Facts(native=known.always))
    optimizer = Probe([weight], lr=0.5, weight_decay=1.0)
    attach(optimizer, Decoupled(0.25))
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert seen == [0.25], "the optimizer itself is to decay"
    with pytest.raises(UserError, match="Stable cannot be attached to Stranger: it has no steps; use Decoupled"):
        attach(Stranger([weight], lr=0.1, weight_decay=0.1), Stable(0.1, beta2=0.9))


def test_a_class_without_an_entry_is_served() -> None:
    weight = torch.nn.Parameter(torch.full((2,), 2.0))
    optimizer = optim.Adadelta([weight], lr=0.5, weight_decay=0.1)
    assert direction_of(optimizer, optimizer.param_groups[0], weight) is None
    attach(optimizer, Cautious(Decoupled(0.5)))
    weight.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1.5))
