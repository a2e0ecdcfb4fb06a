"""The minimum of a regularized objective, found without SGD.

Shapes: D parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halflife.studies.lab.stationary.problem import Problem

__all__ = ["Minimum", "minimize"]

MAX_ITERATIONS = 2000
HISTORY = 30
GRADIENT_TOLERANCE = 1e-8  # largest entry: outputs then stand to many more digits than a simulated mean


@dataclass(frozen=True)
class Minimum:
    """Where an objective was found to be stationary.

    Args:
        w_D: The weights.
        value: The objective there.
        gradient: The largest entry of its gradient, by size.
    """

    w_D: Tensor
    value: float
    gradient: float


def minimize(problem: Problem, start_D: Tensor, regularizer: str, weight: float) -> Minimum:
    """L-BFGS with a strong Wolfe search from a start.

    Args:
        problem: The problem.
        start_D: The start.
        regularizer: ``"jacobian"`` or ``"hessian"``.
        weight: Of the regularizer.

    Returns:
        The stationary point that it ends at.
    """
    w_1D = start_D.detach().clone().unsqueeze(0).requires_grad_()
    search = torch.optim.LBFGS(
        [w_1D],
        max_iter=MAX_ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value = problem.objective(w_1D, regularizer, weight).sum()
        (w_1D.grad,) = torch.autograd.grad(value, [w_1D])
        return value

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]  # torch has no annotations for it
        value = closure().item()
    assert w_1D.grad is not None
    return Minimum(w_1D.detach()[0], value, w_1D.grad.abs().max().item())
