"""A rule that no step calls says so, and weights that move for other reasons are no alarm."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

from halflife.optim.attaching import Handle, attach
from halflife.rules import HalfLife

TOLD = "the weights of .* have moved since attach, but no step of it has called the rule, so that HalfLife"


class TwoPhase(Optimizer):
    """Two methods of its own in place of ``step``."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"] - 0.1 * p.grad
        self.zero_grad()

    def step(self, closure: Any = None) -> Any:
        raise AssertionError("never called")


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (2,), ())]


def two_phases(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.first_step()
    optimizer.second_step()


def replaced(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
    """A step on the instance that does all by itself."""

    def step(closure: Any = None) -> None:
        with torch.no_grad():
            for p in params:
                p.data -= 0.1 * torch.ones_like(p)

    optimizer.step = step
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


READS: dict[str, Callable[[Optimizer, Handle], Any]] = {
    "fractions": lambda optimizer, handle: handle.fractions(),
    "state_dict": lambda optimizer, handle: optimizer.state_dict(),
    "detach": lambda optimizer, handle: handle.detach(),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("how", [two_phases, replaced])
def test_a_rule_that_is_never_called(how: Any, read: str) -> None:
    params = weights()
    optimizer: Any = TwoPhase(params) if how is two_phases else SGD(params, lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, HalfLife(steps=100))
    how(optimizer, params)
    with pytest.warns(UserWarning, match=TOLD):
        READS[read](optimizer, handle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        READS[read](optimizer, handle)


def test_it_is_said_when_the_optimizer_goes() -> None:
    params = weights()
    optimizer: Any = SGD(params, lr=0.1, weight_decay=0.1)
    attach(optimizer, HalfLife(steps=100))
    replaced(optimizer, params)
    with pytest.warns(UserWarning, match=TOLD):
        del optimizer


def test_weights_without_gradients_and_state_are_believed_at_the_second_look() -> None:
    params = weights()
    optimizer = SGD(params, lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, HalfLife(steps=100))
    replaced(optimizer, params)
    optimizer.zero_grad()
    assert handle.fractions() == [0.0]
    optimizer.step()
    with pytest.warns(UserWarning, match=TOLD):
        handle.fractions()


def happens(event: str, optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        if event == "load":
            for p in params:
                p.copy_(torch.full_like(p, 2.0))
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif event == "average":
            for p in params:
                p.data = p.data * 0.5
        elif event == "half":
            for p in params:
                p.data = p.data.half()
        elif event == "gradients":
            for p in params:
                p.grad = torch.ones_like(p)
        elif event == "step":
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            for p in params:
                p.mul_(0.5)


@pytest.mark.parametrize("read", READS)
def test_no_false_alarm(read: str) -> None:
    """One full collection for all events, because it takes long in a big process."""
    gone = []
    for event in ("nothing", "load", "average", "half", "gradients", "step"):
        params = weights()
        optimizer = AdamW(params, lr=0.1, weight_decay=0.1)
        handle = attach(optimizer, HalfLife(steps=100))
        happens(event, optimizer, params)
        READS[read](optimizer, handle)
        if event == "step":
            happens("average", optimizer, params)
            READS[read](optimizer, handle)
        gone.append(weakref.ref(optimizer))
        del optimizer, handle
    gc.collect()
    assert [each() for each in gone] == [None] * 6


def test_weights_that_cannot_be_read() -> None:
    params = [torch.nn.Parameter(torch.ones(2, device="meta")), torch.nn.Parameter(torch.ones(0))]
    optimizer = SGD(params, lr=0.1, weight_decay=0.1)
    handle = attach(optimizer, HalfLife(steps=100))
    assert handle.fractions() == [0.0]
