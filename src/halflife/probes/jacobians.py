"""The size of the Jacobian of a model's outputs by its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halflife.probes.checks import check_whole
from halflife.probes.estimators import Estimate
from halflife.probes.examples import example_products, jacobian_parts
from halflife.probes.operators import seeded
from halflife.probes.problem import Problem, check_problem

__all__ = ["jacobian_norm"]


def _signs(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1)
    return signs.to(like.device, like.dtype)


def _exact(problem: Problem) -> Estimate:
    total, num_outputs = 0.0, 0
    for _, _, j_BKP in jacobian_parts(problem):
        num_outputs = j_BKP.shape[1]
        total += float(j_BKP.square().sum(dim=(1, 2)).cpu().double().sum())
    return Estimate(math.sqrt(total / problem.num_examples), 0.0, num_outputs)


def _per_example(problem: Problem, num_vectors: int, generator: torch.Generator) -> tuple[float, float]:
    """Mean square and its standard error, from vectors of each example's own."""
    products = example_products(problem)
    total = variance = 0.0
    for x, _ in problem.data():
        with torch.no_grad():
            h = problem.outputs(problem.detached(), x).flatten(1)
        draws = [products(x, _signs(h.shape, h, generator)) for _ in range(num_vectors)]
        squares_VB = torch.stack(draws).detach().cpu().double()
        total += float(squares_VB.mean(0).sum())
        # Vectors of different examples are independent, so the variances of the examples' means add up.
        variance += float(squares_VB.var(0).sum()) / num_vectors
    count = problem.num_examples
    return total / count, math.sqrt(variance) / count


def _whole_batches(problem: Problem, num_vectors: int, generator: torch.Generator) -> tuple[float, float]:
    """Mean square and its standard error, from vectors over the outputs of whole batches."""
    parameters = tuple(p.requires_grad_() for p in problem.detached())
    draws = torch.zeros(num_vectors, dtype=torch.float64)
    for x, _ in problem.data():
        h = problem.outputs(parameters, x)
        for index in range(num_vectors):
            grads = torch.autograd.grad(
                h,
                parameters,
                _signs(h.shape, h, generator),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            draws[index] += sum(float(g.square().sum()) for g in grads)
    draws /= problem.num_examples
    return float(draws.mean()), float(draws.std()) / math.sqrt(num_vectors)


def jacobian_norm(problem: Problem, *, num_vectors: int | None = None, seed: int = 0) -> Estimate:
    """The Frobenius norm of the Jacobian, ||J||_F = sqrt(mean_i ||d h(x_i) / d w||_F^2), over all outputs and weights.

    Exact: K backward passes per example, for K outputs. With ``num_vectors`` it is estimated from ||v^T J_i||^2 with
    random signs v_K, whose mean is ||J_i||_F^2; every example has vectors of its own. Where BatchNorm uses batch
    statistics an example has no Jacobian of its own; then v is over the outputs of the whole batch, which is as
    unbiased for the mean square and has a larger error. The norm is the root of the estimated mean square, its standard
    error by the delta method.

    Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", section 2.3.

    Args:
        problem: Model and data; the loss plays no part.
        num_vectors: Random vectors per example, at least 2; ``None`` for the exact norm.
        seed: Of the vectors.

    Returns:
        The norm; its standard error is 0 where it is exact.

    Raises:
        UserError: If there are fewer than two vectors, the exact norm is asked for under batch statistics, or memory
            runs out.
    """
    check_problem(problem)
    if num_vectors is None:
        problem.refuse_batch_statistics("The exact norm of the Jacobian")
        with problem.measuring():
            return _exact(problem)
    num_vectors = check_whole("num_vectors", num_vectors, 2, ", or None for the exact norm")
    generator = seeded(seed)
    with problem.measuring():
        draw = _whole_batches if problem.batch_norm == "batch" else _per_example
        mean, error = draw(problem, num_vectors, generator)
    norm = math.sqrt(mean)
    return Estimate(norm, error / (2 * norm) if norm else 0.0, num_vectors)
