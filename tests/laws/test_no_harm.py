"""A probe leaves the weights as they are, however a step reaches them, and the user's terminal and process too."""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.dlpack import from_dlpack

import halflife
from tests.laws.adversaries.parts import LAM, LR, Plain, net

FACTOR = 1 - LR * LAM
THE_MODEL: nn.Module = nn.Linear(3, 2)


class OverAGlobal(Plain):
    """Steps the model that a global names."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for p in THE_MODEL.parameters():
                p.mul_(FACTOR)


class Kept(Plain):
    """Keeps the memory of its weights in some form, and shrinks what is there."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.kept = [self.keep(p) for group in self.param_groups for p in group["params"]]

    def keep(self, p: Tensor) -> Any:
        return p

    def shrink(self, each: Any) -> None:
        each.mul_(FACTOR)

    def step(self, closure: Any = None) -> Any:
        for each in self.kept:
            self.shrink(each)


def by_address(address: int, count: int) -> Any:
    array = (ctypes.c_float * count).from_address(address)
    for index in range(count):
        array[index] *= FACTOR
    return None


def times(array: Any) -> None:
    array *= FACTOR


class InATensor(Kept):
    def keep(self, p: Tensor) -> Any:
        return torch.tensor([p.data_ptr(), p.numel()])

    def shrink(self, each: Any) -> None:
        by_address(*each.tolist())


class InAnArray(Kept):
    def keep(self, p: Tensor) -> Any:
        return np.array([p.data_ptr(), p.numel()])

    def shrink(self, each: Any) -> None:
        by_address(*each.tolist())


class InATuple(Kept):
    def keep(self, p: Tensor) -> Any:
        return p.data_ptr(), p.numel()

    def shrink(self, each: Any) -> None:
        by_address(*each)


class Views(Kept):
    def keep(self, p: Tensor) -> Any:
        return p.detach().numpy()

    def shrink(self, each: Any) -> None:
        each *= np.float32(FACTOR)


class Capsules(Kept):
    def keep(self, p: Tensor) -> Any:
        return from_dlpack(p.detach())


class Storages(Kept):
    def keep(self, p: Tensor) -> Any:
        return p.untyped_storage()

    def shrink(self, each: Any) -> None:
        torch.empty(0).set_(each).mul_(FACTOR)


class Arrays(Kept):
    def keep(self, p: Tensor) -> Any:
        return (ctypes.c_float * p.numel()).from_address(p.data_ptr())

    def shrink(self, each: Any) -> None:
        for index in range(len(each)):
            each[index] *= FACTOR


class Pointers(Kept):
    def keep(self, p: Tensor) -> Any:
        return ctypes.cast(p.data_ptr(), ctypes.POINTER(ctypes.c_float * p.numel()))

    def shrink(self, each: Any) -> None:
        for index in range(len(each.contents)):
            each.contents[index] *= FACTOR


class Memory(Kept):
    def keep(self, p: Tensor) -> Any:
        array: Any = p.detach().numpy()
        return memoryview(array)

    def shrink(self, each: Any) -> None:
        np.asarray(each)[...] *= np.float32(FACTOR)


class Objects(Kept):
    def keep(self, p: Tensor) -> Any:
        made = np.empty(1, dtype=object)
        made[0] = p.detach().numpy()
        return made

    def shrink(self, each: Any) -> None:
        each[0][...] *= np.float32(FACTOR)


WAYS: list[type[Plain]] = [
    OverAGlobal,
    InATensor,
    InAnArray,
    InATuple,
    Views,
    Capsules,
    Storages,
    Arrays,
    Pointers,
    Memory,
    Objects,
]


@pytest.mark.parametrize("in_place", [False, True], ids=["copies", "in-place"])
@pytest.mark.parametrize("kind", WAYS, ids=lambda kind: kind.__name__)
def test_weights_that_a_step_reaches_past_the_optimizer(
    kind: type[Plain], in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    monkeypatch.setitem(globals(), "THE_MODEL", model)
    optimizer = kind(model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    before = [p.detach().clone() for p in model.parameters()]
    table = halflife.explain(model, optimizer, in_place=in_place)
    assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))
    if in_place:
        assert [row["r"] for row in table.rows] == pytest.approx([LR * LAM] * 6, rel=1e-4)
    else:
        assert {row["decays"] for row in table.rows} == {None}
        assert "no copy can follow; pass in_place=True" in str(table)


def test_memory_of_its_own_is_no_memory_of_weights() -> None:
    class Owns(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.own = [memoryview(bytearray(8)), (ctypes.c_float * 3)(), np.zeros(4), torch.zeros(3).untyped_storage()]
            self.seeds = [2**40 + 1, np.arange(2**40, 2**40 + 5), torch.tensor([2**41])]

    model = net()
    assert {row["r"] for row in halflife.explain(model, Owns(model.parameters())).rows} == {LR * LAM}


@pytest.mark.parametrize("number", [3, 14])
@pytest.mark.parametrize("own", [False, True], ids=["torch", "own"])
def test_large_optimizers_between_backward_and_step(number: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.laws.live.SIZE", 100)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(number)])
    model(torch.ones(2, 8)).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    optimizer: Optimizer = Plain(model.parameters()) if own else AdamW(model.parameters(), lr=LR, weight_decay=LAM)
    assert {row["r"] for row in halflife.explain(model, optimizer).rows} == {LR * LAM}
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    class Loud(Plain):
        def step(self, closure: Any = None) -> Any:
            print("a step")
            print("a step", file=sys.stderr)
            logging.getLogger("loud").warning("a step")
            return super().step(closure)

    model = net()
    optimizer = Loud(model.parameters())
    for in_place in (False, True):
        assert {row["decays"] for row in halflife.explain(model, optimizer, in_place=in_place).rows} == {True}
    assert capfd.readouterr() == ("", "")
    assert not caplog.records or len(sys._current_frames()) > 1  # another test left a thread: its log is not lost
    caplog.clear()
    optimizer.step()
    assert capfd.readouterr().out == "a step\n"
    assert len(caplog.records) == 1


def test_a_step_that_ends_the_process_ends_the_probe() -> None:
    class Ends(Plain):
        def step(self, closure: Any = None) -> Any:
            sys.exit(3)

    model = net()
    table = halflife.explain(model, Ends(model.parameters()))
    assert {row["decays"] for row in table.rows} == {None}
    assert "SystemExit: 3" in str(table)
