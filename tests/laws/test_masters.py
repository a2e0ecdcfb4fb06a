"""Weights that each step puts in place from copies that the optimizer keeps: float32 masters, wherever these are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import halflife
from halflife.laws import identify, live
from tests.laws.adversaries.parts import LAM, LR, Plain, groups, net


def masters_of(group: dict[str, Any]) -> list[Tensor]:
    return [p.detach().clone().float() for p in group["params"]]


class Masters(Optimizer):
    """Steps float32 copies of the weights, made when it is, and writes these into the weights."""

    def __init__(self, params: Any, where: str) -> None:
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.where = where
        made = [masters_of(group) for group in self.param_groups]
        flat = [one for each in made for one in each]
        every = [p for group in self.param_groups for p in group["params"]]
        match where:
            case "a list":
                self.kept: Any = flat
            case "a list for each group":
                self.kept = made
            case "a dictionary for each group":
                self.kept = dict(enumerate(made))
            case "a dictionary by parameter":
                self.kept = dict(zip(every, flat, strict=True))
            case "pairs":
                self.kept = list(zip(every, flat, strict=True))
            case "the groups":
                for group, masters in zip(self.param_groups, made, strict=True):
                    group["masters"] = masters
            case "the state":
                for p, each in zip(every, flat, strict=True):
                    self.state[p]["master"] = each

    def of(self, number: int, place: int, p: Tensor) -> Tensor:
        match self.where:
            case "a list":
                before = sum(len(group["params"]) for group in self.param_groups[:number])
                found = self.kept[before + place]
            case "a list for each group" | "a dictionary for each group":
                found = self.kept[number][place]
            case "a dictionary by parameter":
                found = self.kept[p]
            case "pairs":
                found = next(each for other, each in self.kept if other is p)
            case "the groups":
                found = self.param_groups[number]["masters"][place]
            case _:
                found = self.state[p]["master"]
        assert isinstance(found, Tensor)
        return found

    def change(self, master: Tensor, group: dict[str, Any], gradient: Tensor) -> None:
        master.mul_(1 - group["lr"] * group["weight_decay"]).add_(gradient, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for number, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p.grad is not None:
                    master = self.of(number, place, p)
                    self.change(master, group, p.grad.float())
                    p.copy_(master)


class Momentum(Masters):
    """L2: the momentum remembers it."""

    def change(self, master: Tensor, group: dict[str, Any], gradient: Tensor) -> None:
        held = self.__dict__.setdefault("moments", {}).setdefault(master, torch.zeros_like(master))
        held.mul_(0.9).add_(gradient + group["weight_decay"] * master)
        master.add_(held, alpha=-group["lr"])


WHERE = (
    "a list",
    "a list for each group",
    "a dictionary for each group",
    "a dictionary by parameter",
    "pairs",
    "the groups",
    "the state",
)


def trained(model: nn.Module, optimizer: Optimizer, steps: int) -> Optimizer:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = (1e-2 * torch.randn(p.shape, generator=generator)).to(p.dtype)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "where", [pytest.param(each, marks=pytest.mark.slow if index % 3 == 1 else ()) for index, each in enumerate(WHERE)]
)
def test_the_law_of_weights_with_masters(where: str) -> None:
    narrow = WHERE.index(where) % 2 == 0
    model = net(torch.bfloat16 if narrow else torch.float32)
    params = groups(model, weight_decay=0.0)
    table = halflife.explain(model, trained(model, Masters(params, where), 3 if narrow else 0))
    for row in table.rows:
        decays = len(row["shape"]) > 1
        assert (row["decays"], row["law"]) == ((True, "decoupled") if decays else (False, "none"))
        if decays:
            assert (row["lam"], row["r"]) == (LAM, pytest.approx(LR * LAM))


@pytest.mark.parametrize(("where", "steps"), [("a list", 3), ("the groups", 0)])
def test_masters_of_large_weights(where: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins have a part of the weights, and the part of their masters."""
    monkeypatch.setattr(live, "SIZE", 64)
    monkeypatch.setattr(live, "TWIN", 100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 8)).bfloat16()
    optimizer = trained(model, Masters(groups(model, weight_decay=0.0), where), steps)
    halflife.assert_decay(model, optimizer, {"matrices": f"decoupled:{LAM}", "biases": "none"})


class Buffers(Masters):
    """Decays at every sixth call, on masters in one buffer, in NumPy's memory, or transposed."""

    def __init__(self, params: Any, where: str) -> None:
        super().__init__(params, where)
        self.calls = 0
        every = [p.detach().float() for group in self.param_groups for p in group["params"]]
        match where:
            case "a buffer" | "a buffer and views":
                self.kept = torch.cat([each.reshape(-1) for each in every])
                if where == "a buffer and views":
                    sizes = [each.numel() for each in every]
                    self.kept = [v.view(p.shape) for v, p in zip(self.kept.split(sizes), every, strict=True)]
            case "numpy":
                self.kept = [each.numpy().copy() for each in every]
            case "transposed":
                self.kept = [each.t().contiguous() for each in every]

    def of(self, number: int, place: int, p: Tensor) -> Tensor:
        found = self.kept
        match self.where:
            case "a buffer":
                start = sum(each.numel() for each in self.param_groups[number]["params"][:place])
                return torch.as_tensor(found[start : start + p.numel()]).view(p.shape)
            case "numpy":
                return torch.from_numpy(found[place])
            case "transposed":
                return torch.as_tensor(found[place].t())
            case "a buffer and views":
                return torch.as_tensor(found[place])
        return super().of(number, place, p)

    def change(self, master: Tensor, group: dict[str, Any], gradient: Tensor) -> None:
        decay = LR * LAM if self.calls % 6 == 5 else 0.0
        master.mul_(1 - decay).add_(gradient, alpha=-group["lr"])

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.calls += 1


@pytest.mark.parametrize("where", ["a list", "a buffer", "a buffer and views", "numpy", "transposed"])
@pytest.mark.parametrize("steps", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_late_decay_of_large_weights(where: str, steps: int) -> None:
    """The first of many calls do with a part of a weight what they do with the whole, or the whole is looked at."""
    torch.manual_seed(0)
    model = nn.Linear(300, 301, bias=False)
    optimizer = trained(model, Buffers(model.parameters(), where), steps)
    (row,) = halflife.explain(model, optimizer).rows
    if steps and where == "a buffer":  # whether it is a memory of gradients is not known
        assert row["decays"] is None
        return
    assert (row["decays"], row["r"], row["every"]) == (True, pytest.approx(LR * LAM, rel=1e-3), 6)


def test_a_penalty_within_masters() -> None:
    model = net()
    rows = halflife.explain(model, Momentum(model.parameters(), "a list")).rows
    assert {row["law"] for row in rows} == {"l2"}


def test_masters_of_a_factory() -> None:
    found = identify(with_settings)
    assert (found.equivalent_to or found.pathway, found.coefficient, found.notes) == ("decoupled", 1.0, ())


def with_settings(params: Any, lr: float, weight_decay: float) -> Optimizer:
    made = Masters(params, "a list")
    for group in made.param_groups:
        group.update(lr=lr, weight_decay=weight_decay)
    return made


class Slow(Plain):
    """Averages with slow weights at every third step: copies of the weights that are no masters."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        self.calls += 1
        if self.calls % 3 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)


class Anchored(Plain):
    """Decays towards the weights that it began with."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.first = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p, first in zip(group["params"], self.first, strict=True):
                p.lerp_(first, group["lr"] * group["weight_decay"]).add_(p.grad, alpha=-group["lr"])


@pytest.mark.parametrize("kind", [Slow, Anchored])
def test_other_copies_are_no_masters(kind: type[Plain]) -> None:
    model = net()
    rows = [row for row in halflife.explain(model, kind(model.parameters())).rows if len(row["shape"]) > 1]
    assert {row["law"] for row in rows} == {"other"}
