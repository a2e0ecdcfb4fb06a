"""What is skipped, and by what: things of the real parameters that a careless copy does not have."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import halflife
from tests.laws.adversaries.parts import LAM, Entry, Made, Plain, embedded, groups, net, settle

__all__ = ["ENTRIES"]


class ById(Plain):
    """The ids of what is kept are collected by the constructor."""

    def __init__(self, params: Any, kept: Any) -> None:
        super().__init__(params)
        self.kept = frozenset(map(id, kept))

    def decays(self, p: Tensor, index: int) -> bool:
        return id(p) not in self.kept


class ByWeakSet(Plain):
    def __init__(self, params: Any, kept: Any) -> None:
        super().__init__(params)
        self.kept = [weakref.ref(p) for p in kept]

    def decays(self, p: Tensor, index: int) -> bool:
        return not any(reference() is p for reference in self.kept)


class ByPointer(Plain):
    """The address of the storage decides."""

    def __init__(self, params: Any, kept: Any) -> None:
        super().__init__(params)
        self.kept = {p.data_ptr() for p in kept}

    def decays(self, p: Tensor, index: int) -> bool:
        return p.data_ptr() not in self.kept


class ByPlace(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return index % 3 == 1


class ByName(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters())
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}

    def decays(self, p: Tensor, index: int) -> bool:
        return self.names[p].endswith("weight")


class ByGroupNames(Plain):
    """Names stand in the group, in the order of its parameters."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                if p.grad is not None:
                    p.mul_(1.0 - group["lr"] * group["weight_decay"] * (not name.startswith("1.")))
                    p.sub_(p.grad, alpha=group["lr"])


class BySize(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return p.numel() >= 20


class ByShape(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return tuple(p.shape) == (3, 4)


class ByDtype(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return p.dtype == torch.float64


class ByAttribute(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return not getattr(p, "_no_weight_decay", False)


class ByOptim(Optimizer):
    """What a parameter says of itself goes before the group, as in the optimizers of state-space models."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.5, "weight_decay": LAM})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    own = {**group, **getattr(p, "_optim", {})}
                    p.mul_(1 - own["lr"] * own["weight_decay"]).sub_(p.grad, alpha=own["lr"])


class ByState(Plain):
    """A flag that the constructor writes; without it the step fails."""

    def __init__(self, matrices: Any, others: Any) -> None:
        super().__init__([*matrices, *others])
        for p in matrices:
            self.state[p]["decayed"] = True
        for p in others:
            self.state[p]["decayed"] = False

    def decays(self, p: Tensor, index: int) -> bool:
        return bool(self.state[p]["decayed"])


class ByRequiresGrad(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return not p.requires_grad


class ByZeroGradient(Plain):
    """Weights whose gradient is zero everywhere are left alone."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.any():
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


class ByRows(Plain):
    """Only rows with a gradient decay."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rows = (p.grad != 0).reshape(len(p), -1).any(1) if p.ndim else p.grad != 0
                    keep = 1 - group["lr"] * group["weight_decay"] * rows.to(p.dtype)
                    p.mul_(keep.reshape(-1, *[1] * (p.ndim - 1)) if p.ndim else keep).sub_(p.grad, alpha=group["lr"])


class ByIdentity(Plain):
    """One parameter, held as an attribute, is left out."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__(model.parameters())
        self.head = model[2]

    def decays(self, p: Tensor, index: int) -> bool:
        return p is not self.head.weight


class ByFunction(Plain):
    """A function over a parameter, stored as an attribute, decides."""

    def __init__(self, params: Any, chosen: Any) -> None:
        super().__init__(params)
        self.chosen = chosen

    def decays(self, p: Tensor, index: int) -> bool:
        return bool(self.chosen(p))


class ByValue(Plain):
    """Weights of a small norm are left alone."""

    def decays(self, p: Tensor, index: int) -> bool:
        return float(p.norm()) > 0.01


class ByLayout(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return p.is_contiguous()


class ByLast(Plain):
    """The last parameter of the first group."""

    def decays(self, p: Tensor, index: int) -> bool:
        return p is self.param_groups[0]["params"][-1]


class Special(nn.Parameter):
    """A kind of parameter of its own."""


class ByType(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return isinstance(p, Special)


class ByStride(Plain):
    """Every second call, by a counter on the optimizer."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure)

    def decays(self, p: Tensor, index: int) -> bool:
        return self.calls % 2 == 0


class ByStateStep(Plain):
    """Every third call, by a tensor in the state."""

    def decays(self, p: Tensor, index: int) -> bool:
        step = self.state[p].setdefault("step", torch.zeros((), dtype=torch.int64))
        step += 1
        return int(step) % 3 == 0


class ByGroupStep(Plain):
    """Every second call, by a count in the group."""

    def decays(self, p: Tensor, index: int) -> bool:
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        if p is group["params"][0]:
            group["calls"] = group.get("calls", 0) + 1
        return bool(group["calls"] % 2)


def of(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model.parameters())

    return make


def keeping(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model.parameters(), [p for p in model.parameters() if p.ndim < 2])

    return make


def by_group_names() -> Made:
    model = net()
    names, params = zip(*model.named_parameters(), strict=True)
    return model, ByGroupNames([{"params": list(params), "names": list(names)}])


def mixed() -> nn.Sequential:
    model = net()
    model[2].double()
    return model


def by_dtype() -> Made:
    model = mixed()
    return model, ByDtype(model.parameters())


def by_attribute() -> Made:
    model = net()
    parameters: dict[str, Any] = dict(model.named_parameters())
    parameters["0.weight"]._no_weight_decay = True
    parameters["1.bias"]._no_weight_decay = True
    return model, ByAttribute(model.parameters())


def by_optim() -> Made:
    model = net()
    weight: Any = model[0].weight
    weight._optim = {"weight_decay": 0.0, "lr": 0.25}
    return model, ByOptim(model.parameters())


def by_state() -> Made:
    model = net()
    matrices, others = (group["params"] for group in groups(model))
    return model, ByState(matrices, others)


def by_requires_grad() -> Made:
    model = net()
    model[0].requires_grad_(False)
    for p in model[0].parameters():
        p.grad = torch.zeros_like(p)
    return model, ByRequiresGrad(model.parameters())


def by_function() -> Made:
    model = net()
    bias = model[0].bias
    return model, ByFunction(model.parameters(), lambda p: p is not bias and p.ndim < 2)


def by_layout() -> Made:
    model = net()
    model[0].weight = nn.Parameter(torch.empty(6, 4).t())
    settle(model)
    return model, ByLayout(model.parameters())


def by_last() -> Made:
    model = net()
    return model, ByLast(groups(model))


def by_type() -> Made:
    model = net()
    model[2].weight = Special(torch.empty(3, 4))
    settle(model)
    return model, ByType(model.parameters())


def tied() -> Made:
    model = embedded()
    return model, ById(model.parameters(), [model["head"].weight])


class Declares(nn.Sequential):
    """A model that says which of its parameters are not to decay."""

    def no_weight_decay(self) -> set[str]:
        return {"0.weight"}


def declared() -> Made:
    model = Declares(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    settle(model)
    return model, torch.optim.AdamW(halflife.param_groups(model, weight_decay=LAM), lr=0.5)


class DeclaresKeywords(nn.Sequential):
    def no_weight_decay_keywords(self) -> set[str]:
        return {"2.w"}


def declared_keywords() -> Made:
    model = DeclaresKeywords(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    settle(model)
    return model, torch.optim.SGD(halflife.param_groups(model, weight_decay=LAM), lr=0.5)


def by_name() -> Made:
    model = net()
    return model, ByName(model)


def by_identity() -> Made:
    model = net()
    return model, ByIdentity(model)


def entry(name: str, make: Any, note: str, **others: Any) -> Entry:
    return Entry(name=name, kind="skipping", make=make, note=note, **others)


PAIRS = {"how": "pairs"}

ENTRIES = [
    entry("by-id", keeping(ById), "ids in a frozenset", must=("*",)),
    entry("by-weak-reference", keeping(ByWeakSet), "weak references in a list"),
    entry("by-address", keeping(ByPointer), "data_ptr() in a set"),
    entry("by-place", of(ByPlace), "every third parameter", must=("*",)),
    entry("by-name", by_name, "names from the model, by parameter", must=("*",)),
    entry("by-names-of-the-group", by_group_names, "a list of names beside the parameters", must=("*",)),
    entry("by-size", of(BySize), "numel() at least 20", must=("*",)),
    entry("by-shape", of(ByShape), "one exact shape", must=("*",)),
    entry("by-dtype", by_dtype, "float64 beside float32", must=("*",)),
    entry("by-attribute", by_attribute, "_no_weight_decay on the parameter", must=("*",)),
    entry("by-optim", by_optim, "_optim on the parameter, with an lr of its own", must=("*",)),
    entry("by-state-flag", by_state, "a flag in the state, KeyError without it", must=("*",)),
    entry("by-requires-grad", by_requires_grad, "what does not require a gradient decays", must=("*",)),
    entry("by-zero-gradient", of(ByZeroGradient), "no decay where the whole gradient is zero", **PAIRS),
    entry(
        "by-rows", of(ByRows), "only rows that have a gradient", hand={"*": LAM / 2}, why_hand="by row: see the code"
    ),
    entry("by-identity", by_identity, "one parameter, through a layer that is held", must=("*",)),
    entry("by-function", by_function, "a lambda over one parameter"),
    entry(
        "by-value", of(ByValue), "a norm above 0.01", hand={"*.bias": "any"}, why_hand="biases are 0, and would decay"
    ),
    entry("by-layout", by_layout, "contiguous ones"),
    entry("by-last", by_last, "the last parameter of the first group", must=("*",)),
    entry("by-type", by_type, "a subclass of nn.Parameter"),
    entry("by-call", of(ByStride), "every second call"),
    entry("by-step-in-state", of(ByStateStep), "every third call"),
    entry("by-step-in-group", of(ByGroupStep), "every second call"),
    entry("tied", tied, "an id that two names share; a parameter without dimensions", must=("*",)),
    entry("declared", declared, "no_weight_decay() of the model", must=("*",)),
    entry("declared-keywords", declared_keywords, "no_weight_decay_keywords() of the model", must=("*",)),
]
