"""What halflife has seen or attached is freed at once when the user lets it go, as without it: nothing holds a cycle."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import halflife
from halflife import rules, schedules

RULES: dict[str, Callable[[], Any]] = {
    "Decoupled": lambda: rules.Decoupled(0.1),
    "Independent": lambda: rules.Independent(0.1),
    "Constant": lambda: rules.Constant(0.001),
    "Corrected": lambda: rules.Corrected(0.1),
    "Normalized": lambda: rules.Normalized(0.1, 1000),
    "Stable": lambda: rules.Stable(0.1),
    "HalfLife": lambda: rules.HalfLife(steps=100),
    "NormTarget": lambda: rules.NormTarget(1.0),
    "Sphere": lambda: rules.Sphere(1.0),
    "Sphere of a tensor": lambda: rules.Sphere(1.0, per="tensor"),
    "Cautious": lambda: rules.Cautious(rules.Decoupled(0.1)),
    "Toward": lambda: rules.Toward(rules.Decoupled(0.1)),
    "MovingAverage": lambda: rules.Toward(rules.Decoupled(0.1), rules.MovingAverage(0.9)),
    "tensors": lambda: rules.Toward(rules.Decoupled(0.1), [torch.zeros(4, 3), torch.zeros(4)]),
    "L2": lambda: rules.L2(0.1),
    "Scheduled": lambda: rules.Scheduled(rules.Decoupled(0.1), schedules.until(2)),
    "PerGroup": lambda: rules.PerGroup([rules.Decoupled(0.1)]),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=1e-2, weight_decay=0.1, momentum=0.9),
}


class StepError(Exception):
    """Raised in the middle of a step."""


def backward(model: nn.Module) -> torch.Tensor:
    model.zero_grad()
    loss: torch.Tensor = model(torch.ones(2, 3)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def steps(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    for _ in range(3):
        backward(model)
        optimizer.step()


def closures(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    for _ in range(2):
        optimizer.step(lambda: backward(model).item())


def scheduled(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(2):
        backward(model)
        optimizer.step()
        scheduler.step()


def failed(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    def fail(*_: Any) -> None:
        raise StepError

    steps(model, optimizer, handle)
    with contextlib.suppress(StepError):
        optimizer.step(fail)  # type: ignore[arg-type]
    guard = optimizer.register_step_post_hook(fail)
    backward(model)
    with contextlib.suppress(StepError):
        optimizer.step()
    guard.remove()


def loaded(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    steps(model, optimizer, handle)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, handle)


def detached(model: nn.Module, optimizer: Optimizer, handle: Any) -> None:
    steps(model, optimizer, handle)
    handle.fractions()
    handle.detach()
    halflife.attach(optimizer, rules.Constant(0.001)).detach()


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    OPTIMIZERS["SGD"](
        nn.Linear(1, 1).parameters()
    )  # the first in a process lives on in the frames of torch's own imports
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def lives_on(*references: weakref.ref[Any]) -> list[bool]:
    return [each() is not None for each in references]


@pytest.mark.filterwarnings("ignore:the floor of Stable", "ignore:.*lr_scheduler.step")
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("use", [lambda *_: None, steps, closures, scheduled, failed, loaded, detached])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_parameters_and_the_optimizer(rule: str, optimizer: str, use: Callable[..., None], keep: bool) -> None:
    model = nn.Linear(3, 4)
    made = OPTIMIZERS[optimizer](model.parameters())
    handle = halflife.attach(made, RULES[rule]())
    use(model, made, handle)
    held = handle if keep else None
    handle = None  # type: ignore[assignment]
    references = [weakref.ref(each) for each in (*model.parameters(), made)]
    del model, made
    assert lives_on(*references) == [False] * 3
    del held


def explained(model: nn.Module, optimizer: Optimizer) -> None:
    str(halflife.explain(model, optimizer))


def asserted(model: nn.Module, optimizer: Optimizer) -> None:
    with pytest.raises(AssertionError, match="expected none"):
        halflife.assert_decay(model, optimizer, {"weight": "none"})


def in_place(model: nn.Module, optimizer: Optimizer) -> None:
    halflife.explain(model, optimizer, in_place=True)


def laws(model: nn.Module, optimizer: Optimizer) -> None:
    halflife.laws.live.laws_of(optimizer)


@pytest.mark.parametrize("look", [explained, asserted, in_place, laws])
@pytest.mark.parametrize("attached", [False, True])
def test_what_was_looked_at(look: Callable[[nn.Module, Optimizer], None], attached: bool) -> None:
    model = nn.Linear(3, 4)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    if attached:
        halflife.attach(optimizer, rules.HalfLife(steps=100))
    look(model, optimizer)
    references = [weakref.ref(each) for each in model.parameters()]
    del model, optimizer
    assert lives_on(*references) == [False, False]


def test_what_identify_has_made() -> None:
    seen: list[weakref.ref[Any]] = []

    def make(weights: Any, lr: float, weight_decay: float) -> Optimizer:
        made = list(weights)
        seen.extend(map(weakref.ref, made))
        return torch.optim.AdamW(made, lr=lr, weight_decay=weight_decay)

    halflife.identify(make)
    assert seen
    assert not any(lives_on(*seen))


def test_param_groups() -> None:
    model = nn.Linear(3, 4)
    halflife.param_groups(model, [("weight", 0.1), ("*", "matrices")], weight_decay=0.1)
    reference = weakref.ref(model.weight)
    del model
    assert reference() is None
