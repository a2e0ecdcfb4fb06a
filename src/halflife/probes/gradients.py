"""Quantities of the whole data's gradient, and of the loss by the outputs. They need one pass and no extra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halflife.errors import UserError
from halflife.numbers import as_number
from halflife.probes.problem import Problem, check_problem

__all__ = ["gradient_norm", "mean_gradient", "mean_loss", "noise_scale", "output_gradients"]


def mean_gradient(problem: Problem) -> Tensor:
    """The gradient of the mean loss. To be called inside ``problem.measuring()``.

    Args:
        problem: Model, loss and data.

    Returns:
        g_P, the weights' gradients one after the other, in the order of ``problem.parameters``.
    """
    parameters = tuple(p.requires_grad_() for p in problem.detached())
    total = torch.zeros(problem.num_parameters, dtype=problem.dtype, device=problem.device)
    for x, y in problem.data():
        loss = problem.loss(problem.outputs(parameters, x), y)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        total += torch.cat([g.reshape(-1) for g in grads]) * (len(x) / problem.num_examples)
    return total


def output_gradients(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each example's loss by its outputs. To be called inside ``problem.measuring()``.

    Args:
        problem: Model and loss.
        x: A batch.
        y: Its targets.

    Returns:
        d loss_i / d h_i, in the shape of the outputs h_B....
    """
    with torch.no_grad():
        h = problem.outputs(problem.detached(), x)
    h.requires_grad_()
    (grad,) = torch.autograd.grad(problem.loss(h, y), h)
    # The loss is a mean over the batch.
    return grad * len(x)


def mean_loss(problem: Problem) -> float:
    """The mean loss over the examples, L.

    Args:
        problem: Model, loss and data.

    Returns:
        L at the weights.

    Raises:
        UserError: If the model has other parameters than when the problem was made, or memory runs out.
    """
    check_problem(problem)
    with problem.measuring(), torch.no_grad():
        parts = [problem.loss(problem.outputs(problem.detached(), x), y) * len(x) for x, y in problem.data()]
        return float(torch.stack(parts).double().sum()) / problem.num_examples


def gradient_norm(problem: Problem, *, lam: float = 0.0) -> float:
    """The norm of the whole data's gradient, of the loss alone or with a decay term: ||dL/dw + lam w||.

    With ``lam`` of a decoupled decay under plain SGD it is zero at the stationary points of the regularized objective
    L + lam ||w||^2 / 2. The decay is taken to be of all weights of the problem.

    Args:
        problem: Model, loss and data.
        lam: The decay; 0 for the loss alone.

    Returns:
        The norm over all weights.

    Raises:
        UserError: If the decay is not finite, the model has other parameters than when the problem was made, or memory
            runs out.
    """
    check_problem(problem)
    lam = as_number("lam", lam)
    if not math.isfinite(lam):
        raise UserError(f"lam is {lam}; expected a finite decay, 0 for the loss alone.")
    with problem.measuring():
        gradient = mean_gradient(problem)
        if lam:
            gradient = gradient + lam * torch.cat([p.reshape(-1) for p in problem.detached()])
        return float(gradient.norm())


def noise_scale(problem: Problem) -> float:
    """The mean size of the residuals, mean_i ||d loss_i / d h_i||_2.

    For cross-entropy d loss_i / d h_i = softmax(h_i) - onehot(y_i): 0 for an example that is fitted, up to sqrt(2) for
    one that is confidently wrong. It is the sigma of the noise of SGD when all residuals are alike.

    Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", section 2.3 and figure 4.

    Args:
        problem: Model, loss and data.

    Returns:
        The mean over examples.

    Raises:
        UserError: If the model has other parameters than when the problem was made, or memory runs out.
    """
    check_problem(problem)
    with problem.measuring():
        total = 0.0
        for x, y in problem.data():
            total += float(output_gradients(problem, x, y).flatten(1).norm(dim=1).double().sum())
        return total / problem.num_examples
