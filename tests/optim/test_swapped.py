"""Parameters that are taken out of a group, as pruning and densification do, are freed under every rule."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from halflife.optim.attaching import attach
from halflife.optim.by_parameter import ByParameter
from halflife.rules import (
    L2,
    Cautious,
    Decoupled,
    MovingAverage,
    NormTarget,
    PerGroup,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import until

RULES: dict[str, Callable[[], Any]] = {
    "Decoupled": lambda: Decoupled(0.1),
    "Scheduled": lambda: Scheduled(Decoupled(0.1), until(3)),
    "PerGroup": lambda: PerGroup([Decoupled(0.1), Decoupled(0.2)]),
    "Stable": lambda: Stable(0.1, beta2=0.9),
    "NormTarget": NormTarget,
    "Sphere": lambda: Sphere(per="tensor"),
    "Sphere, whole net": Sphere,
    "Cautious": lambda: Cautious(Decoupled(0.1)),
    "Toward init": lambda: Toward(Decoupled(0.1), "init"),
    "Toward a given one": lambda: Toward(Decoupled(0.1), [torch.zeros(3, 3)] * 3),
    "Toward an average": lambda: Toward(Decoupled(0.1), MovingAverage(0.9)),
    "L2": lambda: L2(0.1),
    "L2 into the first moment": lambda: L2(0.1, into="first"),
}
KINDS: list[Callable[..., Optimizer]] = [SGD, RMSprop]


def parameter() -> nn.Parameter:
    made = nn.Parameter(torch.ones(3, 3))
    made.grad = torch.ones(3, 3)
    return made


def step(optimizer: Optimizer, times: int = 1) -> None:
    for _ in range(times):
        for group in optimizer.param_groups:
            for each in group["params"]:
                each.grad = torch.ones(3, 3) if each.requires_grad else None
        optimizer.step()


@pytest.fixture(scope="module")
def imported() -> None:
    """The first step of a process imports a part of torch, in a cycle of frames that holds the parameters."""
    for kind in (SGD, RMSprop, AdamW):
        step(kind([parameter()], lr=0.1))
    gc.collect()


@pytest.fixture
def no_collector(imported: None) -> Iterator[None]:
    """Nothing waits for the garbage collector: on a GPU memory runs out before it comes."""
    gc.disable()
    yield
    gc.enable()


CASES = [
    pytest.param(name, kind, id=f"{name}, {kind.__name__}")
    for name in RULES
    for kind in ([AdamW] if "moment" in name else KINDS)
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("change", ["swapped", "swapped after loading", "frozen", "removed", "emptied", "at rest"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_parameter_that_leaves_is_freed(name: str, kind: Callable[..., Optimizer], change: str) -> None:
    """``frozen``: what comes instead has no gradient; ``at rest``: no step is taken any more."""
    optimizer = kind([parameter(), parameter()], lr=0.1)
    optimizer.add_param_group({"params": [parameter()]})
    handle = attach(optimizer, RULES[name](), select="all")
    step(optimizer, 2)
    if change == "swapped after loading":
        optimizer.load_state_dict(optimizer.state_dict())
    groups = optimizer.param_groups
    gone = weakref.ref(groups[0]["params"][0])
    optimizer.state.pop(groups[0]["params"].pop(0), None)
    if change == "emptied":
        for group in groups:
            group["params"].clear()
        optimizer.state.clear()
    elif change not in {"removed", "at rest"}:
        groups[0]["params"].insert(0, parameter().requires_grad_(change != "frozen"))
    if change != "at rest":
        step(optimizer, 2)
        assert all(map(math.isfinite, handle.fractions()))
    assert gone() is None


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_that_is_added_in_place_begins_anew(name: str, kind: Callable[..., Optimizer]) -> None:
    """It is decayed as one that was there from the start of another run; those that stay do not notice."""
    swapped, other = kind([parameter(), parameter()], lr=0.1), kind([parameter()], lr=0.1)
    for optimizer in (swapped, other):
        optimizer.add_param_group({"params": []})
        attach(optimizer, RULES[name](), select="all")
    step(swapped, 2)
    swapped.state.pop(swapped.param_groups[0]["params"].pop(0), None)
    swapped.param_groups[0]["params"].append(parameter())
    step(swapped, 2)
    step(other, 2)
    if name not in {"Scheduled", "Stable", "Sphere, whole net"}:  # those know the step, or the whole net
        torch.testing.assert_close(swapped.param_groups[0]["params"][1], other.param_groups[0]["params"][0])
    step(other, 2)
    if name not in {"Stable", "Sphere, whole net"}:
        torch.testing.assert_close(swapped.param_groups[0]["params"][0], other.param_groups[0]["params"][0])


def test_values_by_parameter_are_told_apart_by_identity_and_go_with_it() -> None:
    one, same = parameter(), parameter()
    values: ByParameter[list[int]] = ByParameter()
    values[one], values[same] = [1], [2]
    values[one] = [3]  # the reference of the first entry must not take the second one along
    gc.collect()
    assert (values[one], values.get(same), len(values), one in values) == ([3], [2], 2, True)
    value = weakref.ref(held := parameter())
    values[same] = held  # type: ignore[assignment]
    del held, same
    assert value() is None, "the value goes with its parameter"
    values.pop(one)
    values.pop(one)
    assert values.get(one) is None
    kept: ByParameter[Any] = ByParameter()
    kept[one] = parameter()
    value = weakref.ref(kept[one])
    gc.disable()
    try:
        del kept
        assert value() is None, "no cycle keeps the values"
    finally:
        gc.enable()
