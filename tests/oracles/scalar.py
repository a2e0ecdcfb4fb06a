"""A small problem whose training a test can write out in plain numbers: rules and optimizers from the papers.

Nothing here comes from halflife but the numbers of the self check's problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, tensor
from torch.optim import Optimizer

from halflife.selfcheck.problem import LAM, PEAKS
from halflife.selfcheck.references import Formula

__all__ = ["LAM", "Problem", "Update", "adam_update", "scalar_run", "sgd_update"]

# lr, gradient, number of the step from 1, the optimizer's memory -> what is subtracted from the weight
Update = Callable[[float, float, int, dict[str, float]], float]


class Problem:
    """Three groups that hold every kind of parameter a rule must treat right, and a loss that couples them to data.

    Group 0: a matrix that decays, and a frozen one. Group 1: a matrix with another peak learning rate, and one that
    never gets a gradient. Group 2: a parameter without decay. The gradient of each used weight is
    ``curvature * (w - goal)``, so that decaying before the gradient, or after the update, gives other numbers.
    """

    peaks = PEAKS
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
        """All parameters, the used ones first."""
        return [*self.used, self.frozen, self.unused]

    def values(self) -> list[Tensor]:
        """Return copies of all parameters."""
        return [parameter.detach().clone() for parameter in self.everything]

    def closure(self) -> Tensor:
        """Compute the loss and the gradients."""
        for parameter in self.used:
            parameter.grad = None
        loss = torch.stack([(weight - self.goal).square().sum() for weight in self.used]).sum() * self.curvature / 2
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        return loss

    def set_lr(self, optimizer: Optimizer, step: int) -> None:
        """Set each group's learning rate for a step."""
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


def sgd_update(momentum: float) -> Update:
    """Return torch's SGD for one number."""

    def update(lr: float, gradient: float, step: int, state: dict[str, float]) -> float:
        state["buffer"] = gradient if step == 1 else momentum * state["buffer"] + gradient
        return lr * state["buffer"]

    return update


def adam_update(lr: float, gradient: float, step: int, state: dict[str, float]) -> float:
    """Return torch's Adam for one number, with its default betas and eps."""
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * gradient**2
    mean, square = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return lr * mean / (math.sqrt(square) + 1e-8)


def scalar_run(problem: Problem, start: list[Tensor], formula: Formula, update: Update) -> list[Tensor]:
    """Train every used weight of a problem as one number: gradient, then decay, then update.

    Args:
        problem: The problem, which is left as it is.
        start: Its weights before the first step.
        formula: The fraction.
        update: The optimizer.

    Returns:
        All weights after the last step.
    """
    results = []
    for group, values in enumerate(start[:3]):
        final = []
        for first in values.flatten().tolist():
            weight, state = first, dict[str, float]()
            for step, factor in enumerate(problem.factors):
                lr = problem.peaks[group] * factor
                gradient = problem.curvature * (weight - problem.goal)
                own = problem.own[group]
                r = formula(lr, problem.peaks[group], own, step, group) if lr > 0 and own != 0 else 0.0
                weight = (1.0 - r) * weight - update(lr, gradient, step + 1, state)
            final.append(weight)
        results.append(tensor(final, dtype=values.dtype).reshape(values.shape))
    return results + start[3:]
