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


class Reference(Optimizer):
    """Pulls weights towards a share of a reference, which is kept in one place or another and may follow them."""

    def __init__(self, params: Any, lr: float, weight_decay: float, how: dict[str, Any]) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.how = {"share": 1.0, "follows": 0.0, "spares": 0.0, "momentum": 0.0, "in_gradient": False, **how}
        self.all = [parameter for group in self.param_groups for parameter in group["params"]]
        firsts = [parameter.detach().clone() for parameter in self.all]
        self.by_place, self.by_parameter = firsts, dict(zip(self.all, firsts, strict=True))
        self.flat = torch.cat([first.flatten() for first in firsts])

    def reference(self, parameter: torch.Tensor) -> Any:
        place = next(index for index, each in enumerate(self.all) if each is parameter)
        if self.how["kept"] == "list":
            return self.by_place[place]
        if self.how["kept"] == "dict":
            return self.by_parameter[parameter]
        if self.how["kept"] == "flat":
            before = sum(each.numel() for each in self.all[:place])
            return self.flat[before : before + parameter.numel()].view_as(parameter)
        return self.state[parameter].setdefault("first", parameter.detach().clone())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        how = self.how
        for group in self.param_groups:
            for parameter in group["params"]:
                reference, state = self.reference(parameter), self.state[parameter]
                away = (parameter - how["share"] * reference) * (parameter.norm() > how["spares"])
                pull, gradient = group["weight_decay"] * away, parameter.grad
                gradient = gradient + pull * float(how["in_gradient"])
                parameter.sub_(group["lr"] * pull * float(not how["in_gradient"]))
                state["mean"] = how["momentum"] * state.get("mean", 0.0) + gradient
                parameter.sub_(state["mean"], alpha=group["lr"])
                reference.lerp_(parameter, how["follows"])


REFERENCES = [
    {"kept": "list"},
    {"kept": "dict", "in_gradient": True},
    {"kept": "flat", "momentum": 0.9},
    {"kept": "flat", "momentum": 0.9, "in_gradient": True},
    {"kept": "state", "follows": 0.01},
    {"kept": "list", "follows": 0.1, "in_gradient": True, "momentum": 0.9},
    {"kept": "list", "share": 0.5},
    {"kept": "state", "share": 0.7, "in_gradient": True, "momentum": 0.9},
]


@pytest.mark.parametrize("how", REFERENCES, ids=lambda how: "-".join(f"{key}-{value}" for key, value in how.items()))
def test_a_reference_is_seen_wherever_it_is_kept(how: dict[str, Any]) -> None:
    law = identify(lambda params, lr, weight_decay: Reference(params, lr, weight_decay, how))
    assert (law.pathway, law.name, law.equivalent_to) == ("other", None, None), law
    if how.get("share", 1.0) != 1.0:
        says = "it depends on the weights that a run begins with: from those themselves it takes"
        assert law.notes[0] == f"{says} {1.0 - how['share']:.3g} times as much"


def test_a_reference_that_is_the_weights_as_each_step_leaves_them_pulls_nowhere() -> None:
    how = {"kept": "dict", "follows": 1.0}
    law = identify(lambda params, lr, weight_decay: Reference(params, lr, weight_decay, how))
    assert (law.pathway, law.fraction) == ("none", 0.0)


def test_a_size_at_which_alone_weights_decay_is_looked_for() -> None:
    """Those of a usual size are spared, so that a usual weight shows no effect."""
    how = {"kept": "list", "share": 0.0, "spares": 30.0}
    law = identify(lambda params, lr, weight_decay: Reference(params, lr, weight_decay, how))
    assert law.pathway == "other"
    assert law.notes[0] == "it acts on weights of some sizes only: on those 10 times as large as usual ones"


class Estimating(Optimizer):
    """Decays by what it has learnt of a run: of the sizes of weights, or of the products of weights and gradients."""

    def __init__(self, params: Any, lr: float, weight_decay: float, *, of_gradients: bool) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.of_gradients = of_gradients

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                size = gradient.norm() * parameter.norm() if self.of_gradients else parameter.norm()
                state["seen"] = 0.9 * state.get("seen", 0.0) + 0.1 * size
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"] / (1.0 + state["seen"]))
                parameter.sub_(gradient, alpha=group["lr"])


@pytest.mark.parametrize("of_gradients", [False, True], ids=["sizes", "products"])
def test_what_depends_on_the_run_is_no_pull_to_the_first_weights(of_gradients: bool) -> None:
    law = identify(lambda params, lr, weight_decay: Estimating(params, lr, weight_decay, of_gradients=of_gradients))
    assert law.pathway == "other"
    assert law.notes[0].startswith(
        "it depends on the gradients: 10" if of_gradients else "it depends on the size of the weights: 10"
    )
