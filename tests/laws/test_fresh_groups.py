"""Optimizers whose ``param_groups`` are made anew at each access, so that what is written into them is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from halflife.laws import Law
from halflife.laws.live import laws_of, probe_of

LOST = "that is written into its groups does not reach it"


class Fresh:
    """Holds its settings itself, one dict per group, and makes groups from them for whoever asks, as fastai's does."""

    def __init__(self, params: Any, **settings: Any) -> None:
        self.lists, self.settings = [list(params)], [settings]
        self.state: Any = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        pairs = zip(self.lists, self.settings, strict=True)
        return [{"params": params, **settings} for params, settings in pairs]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for params, settings in zip(self.lists, self.settings, strict=True):
            for parameter in params:
                if parameter.grad is not None:
                    decay = settings.get("weight_decay", settings.get("wd", 0.0))
                    parameter.mul_(1.0 - settings["lr"] * decay).sub_(parameter.grad, alpha=settings["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in (each for params in self.lists for each in params):
            parameter.grad = None


class FreshOptimizer(Fresh, Optimizer):  # type: ignore[override]
    """The same, as an optimizer of torch."""

    def __init__(self, params: Any, **settings: Any) -> None:
        Fresh.__init__(self, params, **settings)
        self.defaults = dict(settings)


class Listed(torch.optim.AdamW):
    """Gives its own groups in a new list: what is written into them reaches it."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return list(found) if name == "param_groups" and "defaults" in vars(self) and self.ready else found

    ready = False


def weight() -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(3, 4))


@pytest.mark.parametrize("kind", [Fresh, FreshOptimizer], ids=["plain", "torch"])
@pytest.mark.parametrize("key", ["weight_decay", "wd"])
def test_what_was_seen_is_told_and_no_formula(kind: Any, key: str) -> None:
    held = weight()
    optimizer = kind([held], lr=0.1, **{key: 0.3})
    (probed,) = probe_of([optimizer])
    found, before = probed.found[id(held)], held.detach().clone()
    assert found.law.pathway == "other"
    assert found.law.lr_exponent is None
    assert not found.law.native
    assert key != "weight_decay" or any(LOST in note for note in found.law.notes)
    held.grad = torch.zeros_like(held)
    optimizer.step()
    assert found.law.fraction == pytest.approx((1.0 - held.detach() / before).mean().item(), rel=1e-6)


def test_without_decay_nothing_is_claimed_of_a_learning_rate() -> None:
    (law,) = laws_of(FreshOptimizer([weight()], lr=0.1, weight_decay=0.0))
    assert (law.pathway, law.fraction) == ("none", 0.0)


def test_own_groups_in_a_new_list_are_as_good_as_any() -> None:
    optimizer = Listed([weight()], lr=0.1, weight_decay=0.3)
    optimizer.ready = True
    assert optimizer.param_groups is not optimizer.param_groups
    (law,) = laws_of(optimizer)
    expected = Law(pathway="decoupled", lr_exponent=1.0, peak_lr_exponent=0.0, coefficient=1.0, native=True)
    assert law.describe() == expected.describe()
