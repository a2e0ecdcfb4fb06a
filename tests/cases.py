"""The cases that drive the tests of ``attach``: one table of rules with an oracle each, one of optimizers.

The oracles are written out in plain numbers and import nothing from halflife but the rule that they check. A new
rule or optimizer is one row here, and then meets every test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife import mechanisms
from halflife.rules import (
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    PerGroup,
    Rule,
    Scheduled,
)
from halflife.schedules import cosine, until

LAM = 0.3  # large, so that a wrong factor, order or step shows

# What the oracle of a rule is told: lr, peak lr, the group's own weight decay, steps taken, number of the group.
Oracle = Callable[[float, float, float, int, int], float]


@dataclass(frozen=True)
class RuleCase:
    """A rule and what it must answer."""

    name: str
    rule: Rule
    oracle: Oracle
    numbers: dict[str, float] = field(default_factory=dict)  # further arguments of attach


RULES = [
    RuleCase("decoupled", Decoupled(LAM), lambda lr, peak, own, t, group: lr * LAM),
    RuleCase("decoupled-own", Decoupled(), lambda lr, peak, own, t, group: lr * own),
    RuleCase("independent", Independent(LAM), lambda lr, peak, own, t, group: lr / peak * LAM),
    RuleCase("constant", Constant(LAM / 4), lambda lr, peak, own, t, group: LAM / 4),
    RuleCase("corrected", Corrected(LAM), lambda lr, peak, own, t, group: lr * lr / peak * LAM),
    RuleCase("corrected-own", Corrected(), lambda lr, peak, own, t, group: lr * lr / peak * own),
    RuleCase("half-life", HalfLife(steps=7), lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 7)),
    RuleCase(
        "half-life-epochs",
        HalfLife(epochs=2),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 9),
        {"steps_per_epoch": 4.5},
    ),
    RuleCase(
        "half-life-tokens",
        HalfLife(tokens=100),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 10),
        {"tokens_per_step": 10},
    ),
    RuleCase("until", Scheduled(Decoupled(LAM), until(3)), lambda lr, peak, own, t, group: lr * LAM * (t < 3)),
    RuleCase(
        "cosine",
        Scheduled(Independent(LAM), cosine(1.0, 0.2, 6)),
        lambda lr, peak, own, t, group: lr / peak * LAM * (0.2 + 0.4 * (1 + math.cos(math.pi * min(t, 6) / 6))),
    ),
    RuleCase(
        "per-group",
        PerGroup([Decoupled(LAM), Constant(0.05), Decoupled(9.0)]),
        lambda lr, peak, own, t, group: lr * LAM if group == 0 else 0.05,
    ),
]


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer, and which mechanism must carry the decay."""

    name: str
    make: Callable[[Any], Optimizer]
    native: bool
    matrices_only: bool = False


OPTIMIZERS = [
    OptimizerCase("adamw-loop", lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=False), True),
    OptimizerCase("adamw-foreach", lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=True), True),
    OptimizerCase("adamw-fused", lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True), True),
    OptimizerCase("adam", lambda groups: torch.optim.Adam(groups, lr=0.1), False),
    OptimizerCase("adam-fused", lambda groups: torch.optim.Adam(groups, lr=0.1, fused=True), False),
    OptimizerCase("adam-decoupled", lambda groups: torch.optim.Adam(groups, lr=0.1, decoupled_weight_decay=True), True),
    OptimizerCase("nadam", lambda groups: torch.optim.NAdam(groups, lr=0.1), False),
    OptimizerCase(
        "nadam-decoupled", lambda groups: torch.optim.NAdam(groups, lr=0.1, decoupled_weight_decay=True), True
    ),
    OptimizerCase(
        "radam-decoupled", lambda groups: torch.optim.RAdam(groups, lr=0.1, decoupled_weight_decay=True), True
    ),
    OptimizerCase("sgd", lambda groups: torch.optim.SGD(groups, lr=0.1), True),
    OptimizerCase("sgd-foreach", lambda groups: torch.optim.SGD(groups, lr=0.1, foreach=True), True),
    OptimizerCase("sgd-fused", lambda groups: torch.optim.SGD(groups, lr=0.1, fused=True), True),
    OptimizerCase("sgd-momentum", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), False),
    OptimizerCase("sgd-nesterov", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True), False),
    OptimizerCase("rmsprop", lambda groups: torch.optim.RMSprop(groups, lr=0.1), False),
    OptimizerCase("adagrad", lambda groups: torch.optim.Adagrad(groups, lr=0.1), False),
    OptimizerCase("adafactor", lambda groups: torch.optim.Adafactor(groups, lr=0.1), True),
    OptimizerCase("muon", lambda groups: torch.optim.Muon(groups, lr=0.1), True, matrices_only=True),
]


class Problem:
    """Three groups that hold every kind of parameter a rule must treat right, and a loss that couples them to data.

    Group 0: a matrix that decays, and a frozen one. Group 1: a matrix with another peak learning rate, and one that
    never gets a gradient. Group 2: a parameter without decay. The gradient of each used weight is
    ``curvature * (w - goal)``, so that decaying before the gradient, or after the update, gives other numbers.
    """

    peaks = (0.1, 0.03, 0.05)
    curvature = 0.7
    goal = -0.4
    # Falls, rises, touches 0 (nothing may decay there) and never reaches the peak again.
    factors = (0.5, 1.0, 0.9, 0.0, 0.6, 0.3, 0.35, 0.1)

    def __init__(self, *, own: tuple[float, float] = (LAM, LAM), dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int, trainable: bool = True) -> torch.nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return torch.nn.Parameter(values.to(dtype), requires_grad=trainable)

        self.used = [parameter(2, 3), parameter(3, 2), parameter(1, 4)]
        self.frozen, self.unused = parameter(2, 2, trainable=False), parameter(2, 2)
        self.own = (*own, 0.0)
        self.groups: list[dict[str, Any]] = [
            {"params": [self.used[0], self.frozen], "weight_decay": own[0]},
            {"params": [self.used[1], self.unused], "weight_decay": own[1]},
            {"params": [self.used[2]], "weight_decay": 0.0},
        ]
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group.update(lr=peak, initial_lr=peak)

    @property
    def everything(self) -> list[torch.nn.Parameter]:
        return [*self.used, self.frozen, self.unused]

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.everything]

    def closure(self) -> Tensor:
        for parameter in self.used:
            parameter.grad = None
        loss = torch.stack([(weight - self.goal).square().sum() for weight in self.used]).sum() * self.curvature / 2
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        return loss

    def set_lr(self, optimizer: Optimizer, step: int) -> None:
        for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factors[step]

    def run(self, optimizer: Optimizer, *, closure: bool = False, steps: range | None = None) -> None:
        """Take the steps, with the gradient made before the step or inside a closure."""
        for step in steps or range(len(self.factors)):
            self.set_lr(optimizer, step)
            if closure:
                optimizer.step(lambda: self.closure().item())
            else:
                self.closure()
                optimizer.step()


@contextmanager
def own_pass_only() -> Iterator[None]:
    """Make every optimizer take the own pass."""
    with mock.patch.object(mechanisms, "applies_natively", return_value=False):
        yield


# ---- optimizers in plain numbers: the update of one scalar weight, after the decay


def sgd_update(momentum: float) -> Callable[[float, float, int, dict[str, float]], float]:
    """torch's SGD for one number."""

    def update(lr: float, gradient: float, step: int, state: dict[str, float]) -> float:
        state["buffer"] = gradient if step == 1 else momentum * state["buffer"] + gradient
        return lr * state["buffer"]

    return update


def adam_update(lr: float, gradient: float, step: int, state: dict[str, float]) -> float:
    """torch's Adam for one number, with its default betas and eps."""
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * gradient**2
    mean, square = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return lr * mean / (math.sqrt(square) + 1e-8)


def scalar_run(
    problem: Problem,
    start: list[Tensor],
    oracle: Oracle,
    update: Callable[[float, float, int, dict[str, float]], float],
) -> list[Tensor]:
    """Train every used weight as one number: gradient, then decay, then update."""
    results = []
    for group, values in enumerate(start[:3]):
        final = []
        for first in values.flatten().tolist():
            weight, state = first, dict[str, float]()
            for step, factor in enumerate(problem.factors):
                lr = problem.peaks[group] * factor
                gradient = problem.curvature * (weight - problem.goal)
                own = problem.own[group]
                r = oracle(lr, problem.peaks[group], own, step, group) if lr > 0 and own != 0 else 0.0
                weight = (1.0 - r) * weight - update(lr, gradient, step + 1, state)
            final.append(weight)
        results.append(torch.tensor(final, dtype=torch.float64).reshape(values.shape))
    return results + start[3:]
