"""Rules and optimizers in plain numbers, written from the papers: nothing here comes from the rest of halflife.

Each formula answers the fraction of one group at one step, from what a reader of the paper would be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, tensor

from halflife.selfcheck.problem import Problem

__all__ = ["Formula", "Update", "adam_update", "scalar_run", "sgd_update", "wave"]

# lr, peak lr, the group's own weight decay, steps taken, number of the group -> fraction
Formula = Callable[[float, float, float, int, int], float]

# lr, gradient, number of the step from 1, the optimizer's memory -> what is subtracted from the weight
Update = Callable[[float, float, int, dict[str, float]], float]


def wave(share: float) -> float:
    """Return half a cosine from 1 to 0, as the schedule multiplier of the AdamW paper has it."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


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
