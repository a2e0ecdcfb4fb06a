"""Traces of matrices that are known by products only, with a standard error.

Shapes: P weights, M random vectors. Every estimator takes products with few vectors; Rademacher vectors throughout.
The products come from curvlinops; its own estimators return the estimate alone, and the standard errors need the parts
it is made of, so the three are written out here. The tests compare them with curvlinops' on the same vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from halflife.errors import UserError
from halflife.probes.estimate import Estimate
from halflife.probes.operators import Matrix, Product, matrix_product, random_vectors
from halflife.probes.problem import Problem

__all__ = ["gauss_newton_trace", "hessian_trace", "hutch_plus_plus", "hutchinson", "xtrace"]

Method = Literal["xtrace", "hutch++", "hutchinson"]


def _mean_and_error(samples_M: Tensor) -> tuple[float, float]:
    """The mean of samples and its standard error."""
    return float(samples_M.mean()), float(samples_M.std() / math.sqrt(len(samples_M)))


def hutchinson(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """Hutchinson's (Girard's) estimator: the mean of w^T A w.

    The standard error is that of a mean of M independent samples. For Rademacher vectors the variance of a sample is
    2 sum_{i != j} A_ij^2.

    Source: Girard 1989; Hutchinson 1989.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors, one product each.

    Returns:
        The estimate and its standard error.
    """
    return _mean_and_error((w_PM * product(w_PM)).sum(0).double())


def hutch_plus_plus(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """Hutch++: exact on the range of A times a third of the vectors, Hutchinson on what is left.

    tr A = tr Q^T A Q + tr (I - QQ^T) A (I - QQ^T). Given Q the samples of the second term are independent, and the
    standard error is that of their mean.

    Source: Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649, algorithm 1.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors, an even number; 3 M / 2 products.

    Returns:
        The estimate and its standard error.
    """
    s_PM, g_PM = w_PM.chunk(2, dim=1)
    q_PM = torch.linalg.qr(product(s_PM))[0]
    inside = (q_PM * product(q_PM)).sum()
    rest_PM = g_PM - q_PM @ (q_PM.T @ g_PM)
    mean, error = _mean_and_error((rest_PM * product(rest_PM)).sum(0).double())
    return float(inside) + mean, error


def xtrace(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """XTrace: every vector in turn is the sample, all others span the space in which the trace is exact.

    The estimate is the mean of M estimates t_i, where t_i is Hutch++ with the range of A times all vectors but the
    i-th, and the i-th as the only sample. All come from one QR decomposition. The standard error is
    sqrt(sum_i (t_i - t)^2 / (M (M - 1))), the authors' own: it treats the t_i as independent, which they are nearly
    (``docs/probes.md`` says how nearly, as measured).

    Source: Epperly, Tropp and Webber 2024, arXiv 2301.07825, sections 2.3 and 4.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors; 2 M products.

    Returns:
        The estimate and its standard error; exact where the range of A is smaller than M.
    """
    y_PM = product(w_PM)
    q_PM, r_MM = torch.linalg.qr(y_PM)
    z_PM = product(q_PM)
    # What is left is small: in double precision.
    r_MM = _double(r_MM)
    if not bool(torch.isfinite(r_MM).all()):
        return math.nan, math.nan
    h_MM, w_MM, t_MM = _double(q_PM.T @ z_PM), _double(q_PM.T @ w_PM), _double(z_PM.T @ w_PM)
    u_MM, sigma_M, _ = torch.linalg.svd(r_MM)
    kept = sigma_M > len(sigma_M) * torch.finfo(w_PM.dtype).eps * sigma_M.max()
    if not bool(kept.all()):
        # A maps M random vectors to fewer dimensions: that is its whole range, and the trace is exact there.
        u_MR = u_MM[:, kept]
        return float((u_MR * (h_MM @ u_MR)).sum()), 0.0
    # s_i: the unit vector with span(Q minus Q s_i) = the range of A times all vectors but the i-th.
    s_MM = torch.linalg.inv(r_MM).T
    s_MM = s_MM / s_MM.norm(dim=0)
    # x_i = (I - s_i s_i^T) Q^T w_i: the part of w_i in that range.
    x_MM = w_MM - s_MM * (s_MM * w_MM).sum(0)
    # (w - Qx)^T A (w - Qx), with A w = Q R e_i.
    r_dot = (w_MM * r_MM).sum(0) - (x_MM * r_MM).sum(0) - (t_MM * x_MM).sum(0) + (x_MM * (h_MM @ x_MM)).sum(0)
    inside = h_MM.trace() - (s_MM * (h_MM @ s_MM)).sum(0)
    return _mean_and_error(inside + r_dot)


def _double(t: Tensor) -> Tensor:
    return t.cpu().double()


# What each method needs: how many random vectors per product, of which multiple, at least how many.
METHODS: dict[str, tuple[Callable[[Product, Tensor], tuple[float, float]], int, int, int]] = {
    "xtrace": (xtrace, 2, 1, 6),
    "hutch++": (hutch_plus_plus, 3, 2, 6),
    "hutchinson": (hutchinson, 1, 1, 2),
}


def _trace(problem: Problem, matrix: Matrix, num_products: int, method: Method, seed: int) -> Estimate:
    if method not in METHODS:
        raise UserError(f"method is {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    estimator, multiple, vectors, least = METHODS[method]
    if num_products < least or num_products % multiple:
        raise UserError(
            f"num_products is {num_products}; {method} needs at least {least}"
            + (f", and a multiple of {multiple}." if multiple > 1 else ".")
        )
    with problem.measuring():
        product = matrix_product(problem, matrix)
        if problem.num_parameters <= num_products:
            identity = torch.eye(problem.num_parameters, dtype=problem.dtype, device=problem.device)
            return Estimate(float(product(identity).trace()), 0.0, problem.num_parameters)
        w_PM = random_vectors(problem, num_products // multiple * vectors, seed)
        value, error = estimator(product, w_PM)
    return Estimate(value, error, num_products)


def hessian_trace(problem: Problem, *, num_products: int = 24, method: Method = "xtrace", seed: int = 0) -> Estimate:
    """The trace of the Hessian of the mean loss, tr d^2 L / dw^2: the sum of its eigenvalues, negative ones included.

    Args:
        problem: Model, loss and data.
        num_products: Hessian-vector products to spend, about two gradients each. Where there are no more weights than
            that, the trace is exact.
        method: ``"xtrace"`` (the smallest error as a rule; an even number of products), ``"hutch++"`` (a multiple of
            three) or ``"hutchinson"``.
        seed: Of the random vectors.

    Returns:
        The estimate, its standard error, and the products spent.

    Raises:
        UserError: If the method or the number of products does not fit, curvlinops is missing, or memory runs out.
    """
    return _trace(problem, "hessian", num_products, method, seed)


def gauss_newton_trace(
    problem: Problem, *, num_products: int = 24, method: Method = "xtrace", seed: int = 0
) -> Estimate:
    """The trace of the Gauss-Newton matrix, (1/N) sum_i tr J_i^T (d^2 loss_i / dh_i^2) J_i, which is never negative.

    Args:
        problem: Model, loss and data.
        num_products: As in `hessian_trace`.
        method: As in `hessian_trace`.
        seed: Of the random vectors.

    Returns:
        The estimate, its standard error, and the products spent.

    Raises:
        UserError: As in `hessian_trace`.
    """
    return _trace(problem, "gauss-newton", num_products, method, seed)
