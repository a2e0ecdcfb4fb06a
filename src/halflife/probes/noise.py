"""The noise of SGD: the covariance of the gradients of single examples.

Shapes: N examples, P weights, K outputs of an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halflife.probes.examples import example_gradients, example_jacobians, gram_eigenvalues, row_blocks
from halflife.probes.gradients import mean_gradient, output_gradients
from halflife.probes.problem import Problem, check_problem

__all__ = ["GradientNoise", "gradient_noise"]


@dataclass(frozen=True)
class GradientNoise:
    """What the gradients g_i of single examples say about the noise of SGD.

    Args:
        second_moment: mean_i ||g_i||^2.
        mean_norm_sq: ||mean_i g_i||^2.
        trace: Of the matrix: second_moment - mean_norm_sq if centered, second_moment if not.
        eigenvalues: Of the matrix, those that are not zero, in descending order (float64, on the CPU).
    """

    second_moment: float
    mean_norm_sq: float
    trace: float
    eigenvalues: Tensor


def _decoupled(problem: Problem) -> GradientNoise:
    squares = [output_gradients(problem, x, y).double().square().sum() for x, y in problem.data()]
    with torch.no_grad():
        num_outputs = problem.outputs(problem.detached(), problem.some_x[:1]).numel()
    per_output = float(torch.stack(squares).sum()) / problem.num_examples / num_outputs
    jacobians = example_jacobians(problem)
    # (1 / N) sum_i J_i^T J_i is K times the mean over the N K rows.
    factor = (per_output * num_outputs) ** 0.5
    total = 0.0

    def blocks(first: int) -> Iterator[Tensor]:
        nonlocal total
        for block in row_blocks(problem, jacobians, num_outputs, first):
            scaled = block * factor
            if first == 0:
                total += float(scaled.square().sum(dim=1).cpu().double().sum())
            yield scaled

    num_rows = problem.num_examples * num_outputs
    eigenvalues = gram_eigenvalues(blocks, num_rows, problem.num_parameters)
    return GradientNoise(total / num_rows, 0.0, total / num_rows, eigenvalues)


def gradient_noise(problem: Problem, *, decoupled: bool = False, center: bool = True) -> GradientNoise:
    """The covariance of the gradients of single examples, Sigma = (1/N) sum_i (g_i - g)(g_i - g)^T, g their mean.

    The noise of a batch of B examples drawn evenly has the covariance Sigma / B. The spectrum comes from the Gram
    matrix of the gradients, so it is exact; its cost grows with N^2 P + N^3.

    With ``decoupled=True`` it is that of the paper's decoupling approximation, in which all residuals d loss_i / d h_i
    have the same size, no direction of their own, and no mean: (s^2 / N) sum_i J_i^T J_i with
    s^2 = mean_i ||d loss_i / d h_i||^2 / K. For one output it is the paper's sigma^2 (1/N) sum_i dh_i dh_i^T; dividing
    by K keeps the trace right where residuals and Jacobians are independent. The cost grows with N K in place of N.

    Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", section 2.3 and appendix C.6.

    Args:
        problem: Model, loss and data; BatchNorm, if any, with ``batch_norm="eval"``.
        decoupled: Whether to make the approximation; it is never centered, and its ``mean_norm_sq`` is 0.
        center: Whether to subtract the mean; without, the matrix is (1/N) sum_i g_i g_i^T.

    Returns:
        Moments and spectrum.

    Raises:
        UserError: If BatchNorm is on batch statistics, or memory runs out.
    """
    check_problem(problem)
    problem.refuse_batch_statistics("The noise of gradients")
    with problem.measuring():
        if decoupled:
            return _decoupled(problem)
        mean = mean_gradient(problem)
        gradients = example_gradients(problem)
        offset = mean if center else torch.zeros_like(mean)
        spread = 0.0

        def blocks(first: int) -> Iterator[Tensor]:
            nonlocal spread
            for block in row_blocks(problem, gradients, 1, first):
                rows = block - offset
                if first == 0:
                    spread += float(rows.square().sum(dim=1).cpu().double().sum())
                yield rows

        eigenvalues = gram_eigenvalues(blocks, problem.num_examples, problem.num_parameters)
        mean_norm_sq = float(mean.cpu().double().square().sum())
        trace = spread / problem.num_examples
        return GradientNoise(trace + mean_norm_sq if center else trace, mean_norm_sq, trace, eigenvalues)
