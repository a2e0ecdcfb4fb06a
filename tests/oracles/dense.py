"""Dense curvature and covariance matrices of small models, which the probes are compared with.

Written with plain reverse-mode autograd, row by row.

Shapes: P weights, N examples, B of a batch, K outputs of an example.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from halflife.probes import Problem

__all__ = ["dense_covariance", "dense_gauss_newton", "dense_hessian"]


def _flat_grad(output: Tensor, parameters: tuple[Tensor, ...], *, create_graph: bool = False) -> Tensor:
    grads = torch.autograd.grad(
        output, parameters, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.reshape(-1) for g in grads])


def _weights(problem: Problem) -> tuple[Tensor, ...]:
    return tuple(p.requires_grad_() for p in problem.detached())


def _batches(problem: Problem) -> Iterator[tuple[Tensor, Tensor, float]]:
    for x, y in problem.data():
        yield x, y, len(x) / problem.num_examples


def _zeros(problem: Problem) -> Tensor:
    return torch.zeros(problem.num_parameters, problem.num_parameters, dtype=problem.dtype, device=problem.device)


def dense_hessian(problem: Problem) -> Tensor:
    """The Hessian of the mean loss, d^2 L / dw^2.

    Args:
        problem: Model, loss and data.

    Returns:
        h_PP, symmetric up to rounding.
    """
    with problem.measuring():
        weights, total = _weights(problem), _zeros(problem)
        for x, y, share in _batches(problem):
            gradient = _flat_grad(problem.loss(problem.outputs(weights, x), y), weights, create_graph=True)
            # A loss whose gradient does not depend on the weights has no second derivative to ask for.
            if gradient.requires_grad:
                total += share * torch.stack([_flat_grad(entry, weights) for entry in gradient]).detach()
        return total


def _jacobian(h: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([_flat_grad(entry, weights) for entry in h.flatten()])


def dense_gauss_newton(problem: Problem) -> Tensor:
    """The Gauss-Newton matrix, sum over batches of J^T (d^2 loss / dh^2) J, J the Jacobian of all outputs of a batch.

    Args:
        problem: Model, loss and data.

    Returns:
        g_PP.
    """
    with problem.measuring():
        weights, total = _weights(problem), _zeros(problem)
        for x, y, share in _batches(problem):
            h = problem.outputs(weights, x)
            free = h.detach().requires_grad_()
            slope = torch.autograd.grad(problem.loss(free, y), free, create_graph=True)[0].flatten()
            rows = [torch.autograd.grad(entry, free, retain_graph=True)[0].flatten() for entry in slope]
            jacobian = _jacobian(h, weights)
            total += share * (jacobian.T @ torch.stack(rows) @ jacobian)
        return total


def dense_covariance(problem: Problem, decoupled: bool = False) -> Tensor:
    """The covariance of the gradients of single examples, with or without the decoupling approximation.

    Args:
        problem: Model, loss and data; BatchNorm, if any, with ``batch_norm="eval"``.
        decoupled: As in `halflife.probes.gradient_noise`.

    Returns:
        sigma_PP: centered; with ``decoupled`` (s^2 / N) sum_i J_i^T J_i.
    """
    problem.refuse_batch_statistics("The covariance of gradients")
    with problem.measuring():
        weights = _weights(problem)
        gradients, jacobians, squares = [], [], []
        for x, y, _ in _batches(problem):
            for i in range(len(x)):
                h = problem.outputs(weights, x[i : i + 1])
                gradients.append(_flat_grad(problem.loss(h, y[i : i + 1]), weights))
                if decoupled:
                    free = h.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(problem.loss(free, y[i : i + 1]), free)
                    squares.append(slope.square().mean())
                    jacobians.append(_jacobian(h, weights))
        if decoupled:
            j_RP = torch.cat(jacobians)
            return torch.stack(squares).mean() * (j_RP.T @ j_RP) / len(squares)
        g_NP = torch.stack(gradients)
        centered = g_NP - g_NP.mean(0)
        return centered.T @ centered / len(g_NP)
