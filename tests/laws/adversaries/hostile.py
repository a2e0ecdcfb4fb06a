"""Optimizers that keep other ways to the real weights, and that fight against being copied."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from tests.laws.adversaries.parts import LAM, LR, Entry, Made, Plain, groups, net

__all__ = ["ENTRIES"]


class Views(Plain):
    """Decays through flat views that were taken when it was made."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.views = [p.detach().view(-1) for g in self.param_groups for p in g["params"] if p.ndim > 1]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for view in self.views:
            view.mul_(1 - LR * LAM)
        super().step()


class Arrays(Plain):
    """Decays through numpy arrays over the weights' own memory."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.arrays = [p.detach().numpy() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for array in self.arrays:
            np.multiply(array, 1 - LR * LAM, out=array)
        super().step()


class Runs(Plain):
    """A generator that was begun holds the weights; a step asks it for the next value."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.run = self.loop([p for g in self.param_groups for p in g["params"]])
        next(self.run)

    def loop(self, params: list[Tensor]) -> Iterator[None]:
        while True:
            yield
            for p in params:
                p.mul_(1 - LR * LAM)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        next(self.run)
        super().step()


class Decayer:
    """Not an optimizer: something that shrinks the weights of a model."""

    def __init__(self, model: nn.Module, amount: float) -> None:
        self.model, self.amount = model, amount

    @torch.no_grad()
    def shrink(self) -> None:
        for p in self.model.parameters():
            if p.ndim > 1:
                p.mul_(1 - self.amount)


class BoundMethod(Plain):
    """A bound method of another object, which holds the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), weight_decay=0.0)
        self.before = Decayer(model, LR * LAM).shrink

    def step(self, closure: Any = None) -> Any:
        self.before()
        super().step()


def shrink_all(params: list[Tensor], amount: float) -> None:
    with torch.no_grad():
        for p in params:
            p.mul_(1 - amount)


class Partial(Plain):
    """A partial over the list of weights."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.before = partial(shrink_all, list(self.param_groups[0]["params"][:2]), amount=LR * LAM)

    def step(self, closure: Any = None) -> Any:
        self.before()
        super().step()


class CountsOnClass(Plain):
    """Every second call, by a count on the class, which every instance shares."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        type(self).calls += 1
        super().step()

    def decays(self, p: Tensor, index: int) -> bool:
        return self.calls % 2 == 0


class AddsGroup(Plain):
    """The last two parameters come into a group of their own at the first step, and decay less there."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params[:-2])
        self.late = params[-2:]

    def step(self, closure: Any = None) -> Any:
        if self.late:
            self.add_param_group({"params": self.late, "weight_decay": LAM / 2})
            self.late = []
        super().step()


class CopiesToItself(Plain):
    """A copy of it is itself."""

    def __copy__(self) -> CopiesToItself:
        return self

    def __deepcopy__(self, memo: Any) -> CopiesToItself:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no pickles")


class Forgets(Plain):
    """Its state leaves out what it decays by."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.strength = LAM

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "strength": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.strength = 0.0

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.strength


class Sealed(Plain):
    """No attribute may be set once it is made."""

    sealed = False

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.sealed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.sealed:
            raise AttributeError(f"{name} is sealed")
        super().__setattr__(name, value)


class GroupsOfModel(Optimizer):
    """Groups are made anew from the model whenever they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = nn.Module()
        super().__init__(model.parameters(), {"lr": LR})
        self.model = model

    @property
    def param_groups(self) -> Any:
        return [
            {"params": [p for p in self.model.parameters() if (p.ndim > 1) is matrix], "lr": LR, "weight_decay": amount}
            for matrix, amount in ((True, LAM), (False, 0.0))
        ]

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        pass

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


class Single(Plain):
    """There is one instance, whatever is made."""

    only: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.only is None or args or kwargs:
            cls.only = super().__new__(cls)
        return cls.only


class InThread(Plain):
    """The step runs in a pool's thread."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.pool = ThreadPoolExecutor(1)

    def step(self, closure: Any = None) -> Any:
        self.pool.submit(super().step).result()


@dataclass
class Engine:
    """A holder of optimizers that is none."""

    parts: dict[str, list[Optimizer]] = field(default_factory=dict)

    def run(self) -> None:
        for part in self.parts.values():
            for one in part:
                one.step()


class OverEngine(Optimizer):
    """Steps an engine, which holds optimizers in lists of a dict."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__(model.parameters(), {"lr": 1.0, "weight_decay": 1.0})
        first = AdamW(model[0].parameters(), lr=LR, weight_decay=LAM)
        rest = SGD([*model[1].parameters(), *model[2].parameters()], lr=LR, weight_decay=LAM / 2)
        self.engine = Engine({"first": [first], "rest": [rest]})

    def step(self, closure: Any = None) -> Any:
        self.engine.run()


class ZeroesGradients(Plain):
    """Forgets the gradients after each step, and its first group's settings before."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        self.zero_grad(set_to_none=True)


class OwnGradients(Plain):
    """Gradients are views of one buffer, to which the optimizer holds on."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        every = [p for g in self.param_groups for p in g["params"]]
        self.buffer = torch.zeros(sum(p.numel() for p in every))
        offset = 0
        for p in every:
            p.grad = self.buffer[offset : offset + p.numel()].view_as(p)
            offset += p.numel()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        self.buffer.zero_()


class Shrinks(Plain):
    """Its decay falls by a half at each call: what is true now is not true later."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.now = 2 * LAM

    def step(self, closure: Any = None) -> Any:
        self.now /= 2
        super().step()

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.now


class Negative(Plain):
    """Weights grow."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return -LAM


class Whole(Plain):
    """All of a weight is removed at each call."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return 1 / LR


def shared_storage() -> Made:
    """Two parameters over one memory: what is removed from the one is removed from the other too."""
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False), "c": nn.Linear(4, 2)})
    rest = net()
    model["d"] = rest
    first: Any = model["a"]
    second: Any = model["b"]
    second.weight.data = first.weight.data
    with torch.no_grad():
        first.weight.copy_(torch.full((4, 4), 2.0))
        for p in model["c"].parameters():
            p.fill_(1.0)
    return model, Plain(model.parameters())


def of(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model.parameters())

    return make


def over_model(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model)

    return make


def single() -> Made:
    model = net()
    return model, Single(groups(model, weight_decay=0.0))


def forgets() -> Made:
    model = net()
    return model, Forgets(groups(model))


BOTH = 1 - (1 - LR * LAM) ** 2


def entry(name: str, make: Any, note: str, **others: Any) -> Entry:
    return Entry(name=name, kind="hostile", make=make, note=note, **others)


ENTRIES = [
    entry("views", of(Views), "flat views of the weights"),
    entry("arrays", of(Arrays), "numpy arrays over the weights' memory"),
    entry("a-running-generator", of(Runs), "a generator holds the weights"),
    entry("bound-method", over_model(BoundMethod), "a method of an object that holds the model"),
    entry("partial", of(Partial), "a partial over some weights"),
    entry("counts-on-the-class", of(CountsOnClass), "a count on the class"),
    entry(
        "adds-a-group",
        of(AddsGroup),
        "two parameters come in at the first step",
        hand={"2.*": "any"},
        why_hand="not in",
    ),
    entry("copies-to-itself", of(CopiesToItself), "deepcopy gives the real one"),
    entry("forgets", forgets, "its state says 0"),
    entry("sealed", of(Sealed), "no attribute can be set"),
    entry("groups-of-the-model", over_model(GroupsOfModel), "param_groups is a property"),
    entry("single", single, "a singleton"),
    entry("in-a-thread", of(InThread), "the step runs in a thread"),
    entry("engine", over_model(OverEngine), "optimizers in lists of a dict of a dataclass"),
    entry("zeroes-gradients", of(ZeroesGradients), "gradients are None after a step"),
    entry("own-gradients", of(OwnGradients), "gradients are views of a buffer"),
    entry("falls", of(Shrinks), "half the decay at each call", hand={"*": "other"}, why_hand="it falls"),
    entry("negative", of(Negative), "weights grow", hand={"*": -LR * LAM}, why_hand="no decay, and not still"),
    entry("whole", of(Whole), "nothing is left", hand={"*": 1.0}, why_hand="no fraction of 0"),
    entry("shared-memory", shared_storage, "two parameters over one memory", also=(LR * LAM,)),
]
