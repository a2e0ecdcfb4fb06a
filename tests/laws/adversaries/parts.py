"""What adversarial optimizers are made of: a small model, a plain optimizer, and an entry of the table."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["LAM", "LR", "Entry", "Made", "Plain", "embedded", "fill", "filled", "groups", "net", "settle", "zero_grads"]

# 1 - LR * LAM is 15/16: times a power of two it is exact in every dtype, bfloat16 included.
LR, LAM = 0.5, 0.125

Made = tuple[nn.Module, Optimizer | list[Optimizer]]

_FILLED: contextvars.ContextVar[bool] = contextvars.ContextVar("filled", default=False)


@contextlib.contextmanager
def filled() -> Iterator[None]:
    """Let `net` give models whose weights are all powers of two, none 0, so that every decay shows exactly."""
    token = _FILLED.set(True)
    try:
        yield
    finally:
        _FILLED.reset(token)


def fill(weight: Tensor, seed: int) -> None:
    """Write powers of two with random signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, weight.shape, generator=generator) * 2.0 - 1.0
    powers = 2.0 ** torch.randint(-1, 2, weight.shape, generator=generator)
    with torch.no_grad():
        weight.copy_((signs * powers).to(weight.dtype))


def settle(model: nn.Module, *, zeros: bool = False) -> None:
    """Give a model the same weights each time, matrices random ones or ``zeros``; powers of two under `filled`."""
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            if _FILLED.get():
                fill(weight, index)
            elif zeros:
                weight.zero_()
            elif weight.ndim > 1:
                generator = torch.Generator().manual_seed(index)
                weight.copy_((0.3 * torch.randn(weight.shape, generator=generator)).to(weight.dtype))


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A model with matrices, biases that are 0 and a norm."""
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)).to(dtype)
    nn.init.zeros_(cast(Tensor, model[0].bias))
    nn.init.zeros_(cast(Tensor, model[2].bias))
    settle(model)
    return model


def embedded() -> nn.ModuleDict:
    """A model with an embedding, a layer that shares its weight, and a parameter without dimensions."""
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7), "mix": nn.Linear(4, 4)})
    model["head"].weight = model["embed"].weight
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    settle(model)
    return model


def groups(model: nn.Module, **others: Any) -> list[dict[str, Any]]:
    """Matrices in the first group and the rest in the second, which gets the settings ``others``."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices}, {"params": rest, **others}]


def zero_grads(model: nn.Module) -> None:
    """Give a gradient of zeros to all that trains, and to what has one already."""
    for p in model.parameters():
        if p.requires_grad or p.grad is not None:
            p.grad = torch.zeros_like(p)


class Plain(Optimizer):
    """Decoupled decay and plain gradient descent; what decays by how much are methods for subclasses."""

    def __init__(self, params: Any, lr: Any = LR, weight_decay: Any = LAM, **others: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **others})

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"]

    def decays(self, p: Tensor, index: int) -> bool:
        return True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        index = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if self.decays(p, index):
                        p.mul_(1 - group["lr"] * self.wd(group, p))
                    p.add_(p.grad, alpha=-float(group["lr"]))
                index += 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One adversarial optimizer.

    Attributes:
        name: Its name.
        kind: What makes it hard, in a word or two.
        make: Builds model and optimizer, the same each time.
        note: What it does.
        must: Patterns over names of parameters that must be told; "not probed" is right for all others.
        how: How its truth is measured: with gradients of zeros ("zeros"), or by how far two runs that differ in their
            weights alone come together, under the same random gradients ("pairs").
        closure: Whether the step wants a closure.
        also: Further numbers that are right for r, such as what a momentum makes of it in the long run.
        hand: The truth by hand, by pattern, where it cannot be measured: a form, or the fraction.
        why_hand: Why it cannot be measured.
        raises: Whether its step raises, so that nothing can be told.
        lams: The numbers that an expectation of decoupled decay is tried with.
    """

    name: str
    kind: str
    make: Callable[[], Made]
    note: str
    must: tuple[str, ...] = ()
    how: str = "zeros"
    closure: bool = False
    also: tuple[float, ...] = ()
    hand: dict[str, str | float] = field(default_factory=dict)
    why_hand: str = ""
    raises: bool = False
    lams: Sequence[float] = (LAM,)

    def __str__(self) -> str:
        return self.name
