"""Hooks of parameters act in the backward pass: what they hide is "not probed", and what they step can be passed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import halflife
from halflife.audit.expectations import Expected
from halflife.errors import UserError


def block() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False))


class Idle(Optimizer):
    """Stands where a trainer wants an optimizer; others do the work."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def in_a_dict(model: Any) -> list[Optimizer]:
    by_name: dict[Tensor, Optimizer] = {p: AdamW([p], lr=0.1, weight_decay=0.02) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        by_name[parameter].step()
        by_name[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    return list(by_name.values())


def one_each(model: Any) -> list[Optimizer]:
    made: list[Optimizer] = []
    for parameter in model.parameters():
        made.append(AdamW([parameter], lr=0.1, weight_decay=0.02))
        parameter.register_post_accumulate_grad_hook(lambda _, own=made[-1]: own.step())
    return made


class Layerwise:
    """An object whose method is the hook."""

    def __init__(self, model: Any) -> None:
        self.workers = [AdamW([p], lr=0.1, weight_decay=0.02) for p in model.parameters()]
        for parameter, worker in zip(model.parameters(), self.workers, strict=True):
            worker.for_hook = self  # type: ignore[attr-defined]
            parameter.register_post_accumulate_grad_hook(self.work)

    def work(self, parameter: Tensor) -> None:
        for each in self.workers:
            if each.param_groups[0]["params"][0] is parameter:
                each.step()


def by_a_method(model: Any) -> list[Optimizer]:
    return list(Layerwise(model).workers)


STEPPED: list[Optimizer] = []


def step_all_of(parameter: Tensor) -> None:
    for each in STEPPED:
        if each.param_groups[0]["params"][0] is parameter:
            each.step()


def by_a_global(model: Any) -> list[Optimizer]:
    STEPPED[:] = [AdamW([p], lr=0.1, weight_decay=0.02) for p in model.parameters()]
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: step_all_of(p))  # noqa: PLW0108 - a function around it
    return list(STEPPED)


def on_the_model(model: Any) -> list[Optimizer]:
    model.workers = {p: AdamW([p], lr=0.1, weight_decay=0.02) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        model.workers[parameter].step()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    return list(model.workers.values())


def of_torch(model: Any) -> list[Optimizer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, when it is imported
        optim: Any = importlib.import_module("torch.distributed.optim")
    optim._apply_optimizer_in_backward(AdamW, model.parameters(), {"lr": 0.1, "weight_decay": 0.02})
    return list(optim._get_in_backward_optimizers(model))


WAYS = {
    "a dict": (
        in_a_dict,
        "step AdamW in the backward pass (update); pass these optimizers, as a list: list(by_name.values())",
    ),
    "one each": (one_each, "step AdamW in the backward pass (a lambda); pass these optimizers, as a list"),
    "a method": (by_a_method, "step AdamW in the backward pass (Layerwise.work); pass these optimizers, as a list"),
    "a global": (by_a_global, "step AdamW in the backward pass (a lambda); pass these optimizers, as a list: STEPPED"),
    "the model": (on_the_model, "step AdamW in the backward pass (update); pass these optimizers, as a list"),
    "torch's own": (
        of_torch,
        "pass these optimizers, as a list: torch.distributed.optim._get_in_backward_optimizers(model)",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_optimizers_that_hooks_step(way: str) -> None:
    register, sentence = WAYS[way]
    model = nn.Linear(3, 2, bias=False)
    acting = register(model)
    # An optimizer that has the weights and does nothing, or, as transformers', one that has not even these.
    stand_in = Idle(model.parameters() if way in {"a dict", "torch's own"} else [nn.Parameter(torch.ones(1))])
    table = halflife.explain(model, stand_in)
    assert (table.rows[0]["decays"], sentence in table.rows[0]["why"]) == (None, True)
    warned = {warning.code: warning for warning in table.warnings}
    assert set(warned) - {"not-in-model"} == {"not-probed"}
    assert (sentence in str(warned["not-probed"]), warned["not-probed"].parameters) == (True, ("weight",))
    assert not any(Expected.parse(law).holds_for(table.parameters[0]) for law in ("none", "decoupled"))

    # What they do, as the backward pass does it.
    before = model.weight.detach().clone()
    (0.0 * model(torch.ones(1, 3)).sum()).backward()
    assert torch.allclose(model.weight, before * (1 - 0.1 * 0.02), atol=1e-7)
    halflife.assert_decay(model, acting, {"*": "decoupled:0.02"})


def shrink(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.mul_(0.99)


def in_the_update(model: Any) -> list[Optimizer]:
    made = SGD(model.parameters(), lr=0.1, weight_decay=0.0)

    def update(parameter: Tensor) -> None:
        made.step()
        parameter.data *= 0.99

    model[0].weight.register_post_accumulate_grad_hook(update)
    return [made]


def beside_it(model: Any) -> list[Optimizer]:
    model[0].weight.register_post_accumulate_grad_hook(shrink)
    return [SGD(model.parameters(), lr=0.1, weight_decay=0.0)]


@pytest.mark.parametrize("way", [in_the_update, beside_it])
def test_decay_in_a_hook(way: Callable[[Any], list[Optimizer]]) -> None:
    model = block()
    optimizers = way(model)
    table = halflife.explain(model, optimizers)
    first, *others = table.rows
    assert first["decays"] is None
    assert "which no step shows; take them off to see what the optimizer does by itself" in first["why"]
    assert [row["decays"] for row in others] == [False, False]
    with pytest.raises(
        AssertionError, match=r"0\.weight: found not probed: hooks of the parameters act in the backward"
    ):
        halflife.assert_decay(model, optimizers, {"*": "none"})


def test_a_hook_that_changes_gradients_proves_no_none() -> None:
    model = block()
    model[0].weight.register_hook(lambda gradient: gradient + 0.1 * model[0].weight.detach())
    model[1].weight.register_hook(lambda gradient: 2.0 * gradient)
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "weight_decay": 0.3}]
    optimizer = SGD(groups, lr=0.1)
    weight, bias, decaying = halflife.explain(model, optimizer).rows
    assert (weight["decays"], bias["decays"], decaying["decays"]) == (None, False, True)
    assert "a hook may change its gradient in the backward pass (a lambda), as an L2 penalty would" in weight["why"]
    assert decaying["notes"] == ["a hook may change its gradient in the backward pass (a lambda), which was not probed"]
    with pytest.raises(AssertionError, match="a hook may change its gradient"):
        halflife.assert_decay(model, optimizer, {"0.*": "none"})
    halflife.assert_decay(model, optimizer, {"1.*": "l2:0.3"})


def test_hooks_that_only_watch_hide_nothing() -> None:
    model = block()
    norms: list[Tensor] = []
    logger = SimpleNamespace(seen=[])

    def watch(gradient: Tensor) -> None:
        logger.seen.append(gradient)

    watch.__module__ = "wandb.integration.torch"
    for parameter in model.parameters():
        for hook in (norms.append, watch):
            parameter.register_hook(hook)
    halflife.assert_decay(model, SGD(model.parameters(), lr=0.1), {"*": "none"})


def test_an_object_around_several_optimizers_is_told_where_they_are() -> None:
    around = SimpleNamespace(optim_map={"a": SGD(block().parameters(), lr=0.1)})
    with pytest.raises(
        UserError, match=r"got SimpleNamespace; pass the optimizers inside it \(\.optim_map\.values\(\)\)"
    ):
        halflife.explain(None, around)
