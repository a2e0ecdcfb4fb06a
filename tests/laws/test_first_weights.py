"""Decay towards the weights that a run begins with is not decay towards 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from halflife.laws import identify, laws_of
from tests.laws.test_identify import of

KEPT = (
    "it takes nothing from the weights that a run begins with: it decays towards them, or spares those that are large"
)


class Anchored(Optimizer):
    """Pulls weights back to where they were, as ``L2-SP`` does: when it was made, or at its first step."""

    def __init__(self, params: Any, lr: float, weight_decay: float, *, decoupled: bool, momentum: float, late: bool):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.decoupled, self.momentum = decoupled, momentum
        if not late:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["start"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                away = parameter - state.setdefault("start", parameter.detach().clone())
                if self.decoupled:
                    parameter.sub_(group["lr"] * group["weight_decay"] * away)
                else:
                    gradient = gradient + group["weight_decay"] * away
                state["mean"] = self.momentum * state.get("mean", 0.0) + gradient
                parameter.sub_(state["mean"], alpha=group["lr"])


@pytest.mark.parametrize("late", [False, True], ids=["made", "first-step"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decoupled", [False, True], ids=["in-gradient", "decoupled"])
def test_an_anchor_is_seen(decoupled: bool, momentum: float, late: bool) -> None:
    how: dict[str, Any] = {"decoupled": decoupled, "momentum": momentum, "late": late}
    law = identify(lambda params, lr, weight_decay: Anchored(params, lr, weight_decay, **how))
    assert (law.pathway, law.name, law.equivalent_to) == ("other", None, None)
    assert law.notes == (KEPT,)


def test_a_first_gradient_that_is_remembered_is_no_anchor() -> None:
    """It averages gradients from the first one on, without the decay, and adds L2 to what it averaged."""
    law = identify(of("pytorch_optimizer", "GrokFastAdamW", weight_decouple=False))
    assert law.pathway == "l2-preconditioned"


def test_an_anchor_of_an_optimizer_that_exists() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Anchored([weight], 1e-3, 0.1, decoupled=False, momentum=0.0, late=True)
    assert laws_of(optimizer)[0].notes[0] == KEPT
