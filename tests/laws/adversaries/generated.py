"""Optimizers that are put together from parts: where decay is read, where it acts, what is left out, what is around it."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.laws.adversaries.parts import LAM, LR, Made, fill

__all__ = ["ACTS", "AROUND", "LEFT_OUT", "MOMENTUM", "SHAPES", "SOURCES", "Parts", "build"]

MOMENTUM = 0.5
GLOBAL: dict[str, float] = {"wd": LAM}
Group = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What one optimizer is made of; the names are those of the tables below."""

    source: str = "group"
    acts: str = "before"
    left_out: str = "nothing"
    around: str = "nothing"
    dtype: torch.dtype = torch.float32
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (3,))
    amounts: tuple[float, ...] = (LAM,)  # of each group
    frozen: int = -1  # the parameter that does not train
    frozen_has_zeros: bool = False
    gradients: bool = True  # whether there are gradients when it is asked
    without_gradient: bool = False  # whether it decays what has none
    scale: float = 1.0  # of the learning rate; 0: a warm-up begins
    calls: int = 0  # steps that were taken before


class Base(Optimizer):
    """What all have: a step over groups, and how a parameter is found again."""

    always = False

    def __init__(self, model: nn.Module, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)
        self.setup(model)

    def setup(self, model: nn.Module) -> None:
        self.calls = 0

    def every(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def lam(self, group: Group, p: Tensor, place: int) -> float:
        return float(group["weight_decay"])

    def skips(self, p: Tensor, place: int) -> bool:
        return False

    def update(self, group: Group, p: Tensor, lam: float) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        place = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None or self.always:
                    self.update(group, p, 0.0 if self.skips(p, place) else self.lam(group, p, place))
                place += 1


# --- where the decay is read from


class FromGroup:
    pass


class FromFirst:
    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(self.param_groups[0]["weight_decay"])


class FromAttribute:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        self.strength = types.SimpleNamespace(amount=self.param_groups[-1]["weight_decay"])
        for group in self.param_groups:
            group["weight_decay"] = 0.0

    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(self.strength.amount)


class FromGlobal:
    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return GLOBAL["wd"]


class FromList:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        self.amounts = [group["weight_decay"] for group in self.param_groups for _ in group["params"]]

    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(self.amounts[place])


class FromState:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["lam"] = group["weight_decay"]

    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(self.state[p]["lam"])


class FromParameter:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        for group in self.param_groups:
            for p in group["params"]:
                p.strength = group["weight_decay"]

    def lam(self: Any, group: Group, p: Any, place: int) -> float:
        return float(p.strength)


class FromOtherKey:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        for group in self.param_groups:
            group["reg"] = group.pop("weight_decay")

    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(group["reg"])


class FromDefaults:
    def lam(self: Any, group: Group, p: Tensor, place: int) -> float:
        return float(self.defaults["weight_decay"])


SOURCES: dict[str, type] = {
    "group": FromGroup,
    "first group": FromFirst,
    "attribute": FromAttribute,
    "global": FromGlobal,
    "list": FromList,
    "state": FromState,
    "parameter": FromParameter,
    "other key": FromOtherKey,
    "defaults": FromDefaults,
}


# --- where it acts


def gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


class Before:
    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        p.mul_(1 - group["lr"] * lam).sub_(gradient(p), alpha=group["lr"])


class After:
    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        p.sub_(gradient(p), alpha=group["lr"]).mul_(1 - group["lr"] * lam)


class InGradient:
    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        p.sub_(gradient(p).add(p, alpha=lam), alpha=group["lr"])


class InMomentum:
    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        mean = self.state[p].setdefault("mean", torch.zeros_like(p))
        mean.mul_(MOMENTUM).add_(gradient(p)).add_(p, alpha=lam)
        p.sub_(mean, alpha=group["lr"])


class BesideMomentum:
    """Momentum for the gradient, and none for the decay."""

    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        mean = self.state[p].setdefault("mean", torch.zeros_like(p)).mul_(MOMENTUM).add_(gradient(p))
        p.mul_(1 - group["lr"] * lam).sub_(mean, alpha=group["lr"])


class OnMaster:
    """The weights are rounded from masters of more bits, which are made with the optimizer."""

    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        wide = {p: torch.promote_types(p.dtype, torch.float32) for p in self.every()}
        self.masters = {p: p.detach().to(dtype, copy=True) for p, dtype in wide.items()}

    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        master = self.masters[p]
        master.mul_(1 - group["lr"] * lam).sub_(gradient(p).to(master.dtype), alpha=group["lr"])
        p.copy_(master)


class NewStorage:
    def update(self: Any, group: Group, p: Tensor, lam: float) -> None:
        p.data = p.data * (1 - group["lr"] * lam) - group["lr"] * gradient(p)


ACTS: dict[str, type] = {
    "before": Before,
    "after": After,
    "gradient": InGradient,
    "momentum": InMomentum,
    "beside momentum": BesideMomentum,
    "master": OnMaster,
    "new storage": NewStorage,
}


# --- what is left out


def half(params: list[Tensor]) -> list[Tensor]:
    return params[::2]


class Nothing:
    pass


class ById:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        self.kept = set(map(id, half(self.every())))

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return id(p) in self.kept


class ByName:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        self.names = {p: name for name, p in model.named_parameters()}

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return bool(self.names[p].endswith("1"))


class ByPlace:
    def skips(self: Any, p: Tensor, place: int) -> bool:
        return place % 2 == 1


class ByNdim:
    def skips(self: Any, p: Tensor, place: int) -> bool:
        return p.ndim <= 1


class BySize:
    def skips(self: Any, p: Tensor, place: int) -> bool:
        return 10 <= p.numel() < 60_000


class ByAttribute:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        kept: Any
        for kept in half(self.every()):
            kept.no_decay = True

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return hasattr(p, "no_decay")


class ByState:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        for index, p in enumerate(self.every()):
            self.state[p]["decays"] = index > 0

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return not self.state[p]["decays"]


class ByCall:
    def skips(self: Any, p: Tensor, place: int) -> bool:
        return bool(self.calls % 2)


class ByReference:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        self.kept = [weakref.ref(p) for p in half(self.every())]

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return any(kept() is p for kept in self.kept)


class ByFunction:
    def setup(self: Any, model: nn.Module) -> None:
        super().setup(model)  # type: ignore[misc]
        kept = self.every()[0]
        self.rule: Callable[[Tensor], bool] = lambda p: p is kept

    def skips(self: Any, p: Tensor, place: int) -> bool:
        return bool(self.rule(p))


class ByRequiresGrad:
    def skips(self: Any, p: Tensor, place: int) -> bool:
        return not p.requires_grad


LEFT_OUT: dict[str, type] = {
    "nothing": Nothing,
    "by id": ById,
    "by name": ByName,
    "by place": ByPlace,
    "by ndim": ByNdim,
    "by size": BySize,
    "by attribute": ByAttribute,
    "by state": ByState,
    "by call": ByCall,
    "by reference": ByReference,
    "by function": ByFunction,
    "by requires_grad": ByRequiresGrad,
}


# --- what is around it


class Third(Optimizer):
    """Steps the inner one at every third call."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner, self.turn = inner, 0

    def step(self, closure: Any = None) -> Any:
        self.turn += 1
        if self.turn % 3 == 0:
            self.inner.step()


class Shares(Optimizer):
    """Has the groups and the state of the inner one."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.param_groups, self.state = inner.param_groups, inner.state
        self.optimizers = [inner]

    def step(self, closure: Any = None) -> Any:
        for one in self.optimizers:
            one.step()


class Lookahead(Shares):
    """Slow weights, to which the fast ones return at every second call."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner)
        self.turn = 0
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        self.turn += 1
        if self.turn % 2 == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for p, one in zip(group["params"], slow, strict=True):
                    one.lerp_(p, 0.5)
                    p.copy_(one)


def third(optimizer: Optimizer) -> Optimizer:
    return Third(optimizer)


def shares(optimizer: Optimizer) -> Optimizer:
    return Shares(optimizer)


def lookahead(optimizer: Optimizer) -> Optimizer:
    return Lookahead(optimizer)


def shrink(optimizer: Optimizer, *_: Any) -> None:
    """A decay of LAM by itself, of all that has two dimensions or more and a gradient."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    p.mul_(1 - group["lr"] * LAM)


def replaced(optimizer: Optimizer) -> Optimizer:
    own = optimizer.step

    def step(self: Optimizer, closure: Any = None) -> Any:
        result = own(closure)
        shrink(self)
        return result

    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
    return optimizer


def hooked(optimizer: Optimizer) -> Optimizer:
    optimizer.register_step_post_hook(shrink)
    return optimizer


AROUND: dict[str, Callable[[Optimizer], Optimizer]] = {
    "nothing": lambda optimizer: optimizer,
    "every third call": third,
    "shared groups": shares,
    "lookahead": lookahead,
    "replaced step": replaced,
    "hook": hooked,
}

SHAPES = ((), (1,), (3,), (4, 3), (2, 3, 2, 2), (0,), (300, 40), (70_000,))


class Weights(nn.Module):
    """Parameters of given shapes: ``w0``, ``w1``, ..."""

    def __init__(self, parts: Parts, dtype: torch.dtype) -> None:
        super().__init__()
        for index, shape in enumerate(parts.shapes):
            weight = torch.empty(shape, dtype=dtype)
            fill(weight, index)
            self.register_parameter(f"w{index}", nn.Parameter(weight))


def build(parts: Parts, *, dtype: torch.dtype | None = None, peak: bool = False) -> Made:
    """A model and its optimizer.

    With ``dtype`` another one than that of the parts; with ``peak`` at the learning rate that a warm-up ends with.
    """
    model = Weights(parts, dtype or parts.dtype)
    params = list(model.parameters())
    if 0 <= parts.frozen < len(params):
        params[parts.frozen].requires_grad_(False)
        if parts.frozen_has_zeros:
            params[parts.frozen].grad = torch.zeros_like(params[parts.frozen])
    groups: list[Group] = [
        {"params": params[index :: len(parts.amounts)], "weight_decay": amount}
        for index, amount in enumerate(parts.amounts)
    ]
    bases = (LEFT_OUT[parts.left_out], SOURCES[parts.source], ACTS[parts.acts], Base)
    built = type("Built", bases, {"always": parts.without_gradient})
    lr = LR * (parts.scale or 1.0)
    full = [group for group in groups if group["params"]]
    optimizer = AROUND[parts.around](built(model, full, lr=lr, weight_decay=parts.amounts[0]))
    if not peak:
        generator = torch.Generator().manual_seed(5)
        for _ in range(parts.calls):
            for p in params:
                if p.requires_grad:
                    p.grad = (torch.randint(-2, 3, p.shape, generator=generator) / 64).to(p.dtype)
            optimizer.step()
        for index, p in enumerate(params):
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.125 * index) if parts.gradients else None
        if parts.scale == 0.0 and any("lr" in group for group in optimizer.param_groups):
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    return model, optimizer
