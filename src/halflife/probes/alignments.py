"""How alike curvature and gradient noise act on a random direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halflife.probes.checks import check_whole
from halflife.probes.estimators import Estimate
from halflife.probes.examples import example_gradients, row_blocks
from halflife.probes.gradients import mean_gradient
from halflife.probes.operators import matrix_product, random_vectors
from halflife.probes.problem import Problem, check_problem

__all__ = ["PAIRS", "alignment"]

# In the order of the paper's figure 13.
PAIRS = (
    ("hessian", "covariance"),
    ("gauss-newton", "covariance"),
    ("hessian", "gauss-newton"),
    ("residual", "covariance"),
    ("gauss-newton", "residual"),
    ("hessian", "residual"),
)
# A residual of at most so many roundings of the Hessian is rounding, and has no direction.
ROUNDINGS = 32


def _covariance_product(problem: Problem, v_PV: Tensor) -> Tensor:
    """(1/N) sum_i (g_i - g)(g_i - g)^T v, from one pass over the gradients of single examples."""
    mean = mean_gradient(problem)
    result = torch.zeros_like(v_PV)
    for block in row_blocks(problem, example_gradients(problem), 1):
        rows = block - mean
        result += rows.T @ (rows @ v_PV)
    return result / problem.num_examples


def alignment(problem: Problem, *, num_vectors: int = 20, seed: int = 0) -> dict[str, Estimate]:
    """Mean cosines between what two matrices do to a random vector, E_v cos(A v, B v), v standard normal.

    The matrices are the Hessian H, the Gauss-Newton matrix G, the residual E = H - G, and the covariance Sigma of the
    gradients of single examples (centered). A pair with a matrix that is zero up to rounding has the cosine ``nan``.

    Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", figure 13.

    Args:
        problem: Model, loss and data; BatchNorm, if any, with ``batch_norm="eval"``.
        num_vectors: Random vectors, at least 2; each takes one product with H, G and Sigma.
        seed: Of the vectors.

    Returns:
        By ``"hessian/covariance"``, ``"gauss-newton/covariance"``, ``"hessian/gauss-newton"``,
        ``"residual/covariance"``, ``"gauss-newton/residual"`` and ``"hessian/residual"``: the mean cosine, and its
        standard error over the vectors.

    Raises:
        UserError: If there are fewer than two vectors, BatchNorm is on batch statistics, or memory runs out.
    """
    check_problem(problem)
    num_vectors = check_whole("num_vectors", num_vectors, 2)
    problem.refuse_batch_statistics("The covariance of gradients")
    with problem.measuring():
        v_PV = random_vectors(problem, num_vectors, seed, "normal")
        products = {name: matrix_product(problem, name)(v_PV) for name in ("hessian", "gauss-newton")}
        residual = products["hessian"] - products["gauss-newton"]
        rounding = ROUNDINGS * torch.finfo(problem.dtype).eps
        nothing = residual.norm(dim=0) <= rounding * products["hessian"].norm(dim=0)
        products["residual"] = residual.masked_fill(nothing, 0.0)
        products["covariance"] = _covariance_product(problem, v_PV)
        found = {}
        for one, other in PAIRS:
            a_PV, b_PV = products[one], products[other]
            # A zero vector has no direction: 0 / 0 is nan here.
            cosines = ((a_PV * b_PV).sum(0) / (a_PV.norm(dim=0) * b_PV.norm(dim=0))).cpu().double()
            found[f"{one}/{other}"] = Estimate(
                float(cosines.mean()), float(cosines.std()) / math.sqrt(num_vectors), num_vectors
            )
    return found
