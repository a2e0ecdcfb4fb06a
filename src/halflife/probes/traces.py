"""The traces of the Hessian and of the Gauss-Newton matrix.

Shapes: P weights, M random vectors, B of a batch, K outputs of an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from halflife.errors import UserError
from halflife.probes.checks import check_whole
from halflife.probes.estimators import Estimate, hutch_plus_plus, hutchinson, mean_and_error, xtrace
from halflife.probes.examples import jacobian_parts
from halflife.probes.operators import (
    BLOCK,
    Matrix,
    Product,
    forward_mode,
    loss_curvature,
    matrix_product,
    random_vectors,
)
from halflife.probes.problem import Problem, check_problem

__all__ = ["gauss_newton_trace", "hessian_trace"]

Method = Literal["xtrace", "hutch++", "hutchinson"]

# By method: the estimator, products per so many vectors, and the least number of products.
METHODS: dict[str, tuple[Callable[[Product, Tensor], tuple[float, float]], int, int, int]] = {
    "xtrace": (xtrace, 2, 1, 6),
    "hutch++": (hutch_plus_plus, 3, 2, 6),
    "hutchinson": (hutchinson, 1, 1, 2),
}


def _refuse_number(num_products: int, method: str, multiple: int, least: int) -> None:
    if check_whole("num_products", num_products, least, f" for {method}") % multiple:
        raise UserError(f"num_products is {num_products}; {method} needs a multiple of {multiple}.")


def _trace(problem: Problem, matrix: Matrix, num_products: int, method: str, seed: int) -> Estimate:
    estimator, multiple, vectors, least = METHODS[method]
    _refuse_number(num_products, method, multiple, least)
    with problem.measuring():
        product = matrix_product(problem, matrix)
        if problem.num_parameters <= num_products:
            identity = torch.eye(problem.num_parameters, dtype=problem.dtype, device=problem.device)
            return Estimate(float(product(identity).trace()), 0.0, problem.num_parameters)
        w_PM = random_vectors(problem, num_products // multiple * vectors, seed)
        return Estimate(*estimator(product, w_PM), num_products)


def _exact_gauss_newton(problem: Problem) -> Estimate:
    """(1/N) sum_i tr J_i^T L_i J_i, L_i the second derivative of an example's loss by its outputs."""
    weights = problem.detached()
    total, num_outputs = 0.0, 0
    for x, y, j_BKP in jacobian_parts(problem):
        with torch.no_grad():
            h = problem.outputs(weights, x)

        def loss_of(h_i: Tensor, y_i: Tensor) -> Tensor:
            value: Tensor = problem.loss(h_i.unsqueeze(0), y_i.unsqueeze(0))
            return value

        num_outputs = j_BKP.shape[1]
        curvature_BKK = vmap(jacrev(jacrev(loss_of)))(h, y).reshape(len(x), num_outputs, num_outputs)
        total += float((curvature_BKK * (j_BKP @ j_BKP.mT)).sum(dim=(1, 2)).cpu().double().sum())
    return Estimate(total / problem.num_examples, 0.0, num_outputs)


def _gauss_newton_quadratic(problem: Problem, w_PM: Tensor) -> Tensor:
    """The numbers w^T G w, from derivatives of the outputs along w alone: half the cost of a product G w."""
    weights = problem.detached()
    total_M = torch.zeros(w_PM.shape[1], dtype=problem.dtype, device=problem.device)
    for x, y in problem.data():

        def along(*w: Tensor, x: Tensor = x) -> Tensor:
            slope: Tensor = jvp(lambda *at: problem.outputs(at, x), weights, w)[1]
            return slope

        with torch.no_grad():
            h = problem.outputs(weights, x)
        values = []
        for block_PV in torch.split(w_PM, BLOCK, dim=1):
            parts = torch.split(block_PV.T, list(problem.sizes), dim=1)
            w = [part.reshape(-1, *p.shape) for part, p in zip(parts, weights, strict=True)]
            with forward_mode():
                dh_V = vmap(along)(*w)
                curved_V = vmap(lambda dh, h=h, y=y: loss_curvature(problem, h, y, dh))(dh_V)
            values.append((dh_V * curved_V).flatten(1).sum(1))
        total_M += torch.cat(values) * (len(x) / problem.num_examples)
    return total_M


def _split(problem: Problem, num_products: int, seed: int) -> Estimate:
    """The trace as tr G + tr (H - G): the first exactly, the second by Hutchinson's estimator."""
    _refuse_number(num_products, "split", 2, 4)
    problem.refuse_batch_statistics("The exact part of method 'split'")
    with problem.measuring():
        w_PM = random_vectors(problem, num_products // 2, seed)
        by_hessian_M = (w_PM * matrix_product(problem, "hessian")(w_PM)).sum(0)
        residual_M = by_hessian_M - _gauss_newton_quadratic(problem, w_PM)
        value, error = mean_and_error(residual_M.cpu().double())
        exact = _exact_gauss_newton(problem)
    return Estimate(exact.value + value, error, num_products)


def hessian_trace(
    problem: Problem,
    *,
    num_products: int = 24,
    method: Literal["xtrace", "hutch++", "hutchinson", "split"] = "xtrace",
    seed: int = 0,
) -> Estimate:
    """The trace of the Hessian of the mean loss, tr d^2 L / dw^2: the sum of its eigenvalues, negative ones included.

    In a net whose outputs are linear in every single weight (ReLU, no normalization but BatchNorm on running
    statistics) it equals the trace of the Gauss-Newton matrix, and `gauss_newton_trace` with ``method="exact"`` is the
    way to get it.

    Args:
        problem: Model, loss and data.
        num_products: Products with vectors to spend, about two gradients each. Where there are no more weights than
            that, the trace is exact.
        method: ``"xtrace"`` (the smallest error of those that go by products alone; an even number of products),
            ``"hutch++"`` (a multiple of three), ``"hutchinson"``, or ``"split"``: the Gauss-Newton part exactly and
            what is left by Hutchinson's estimator, each vector one product with either matrix. The exact part costs K
            backward passes per example for K outputs; for few outputs ``"split"`` has the smallest error.
        seed: Of the random vectors.

    Returns:
        The estimate, its standard error, and the products spent; ``nan`` where the curvature is not finite.

    Raises:
        UserError: If the method or the number of products does not fit, ``"split"`` is asked for under batch
            statistics, or memory runs out.
    """
    check_problem(problem)
    if method == "split":
        return _split(problem, num_products, seed)
    if method not in METHODS:
        raise UserError(f"method is {method!r}; expected one of {', '.join(map(repr, [*METHODS, 'split']))}.")
    return _trace(problem, "hessian", num_products, method, seed)


def gauss_newton_trace(
    problem: Problem,
    *,
    num_products: int = 24,
    method: Literal["xtrace", "hutch++", "hutchinson", "exact"] = "xtrace",
    seed: int = 0,
) -> Estimate:
    """The trace of the Gauss-Newton matrix, (1/N) sum_i tr J_i^T (d^2 loss_i / dh_i^2) J_i.

    Args:
        problem: Model, loss and data.
        num_products: As in `hessian_trace`.
        method: As in `hessian_trace`, or ``"exact"``: from the Jacobians of the examples, K backward passes each for
            K outputs. For ten outputs that costs less than 24 products.
        seed: Of the random vectors.

    Returns:
        The estimate, its standard error, and the products spent (per example, if exact).

    Raises:
        UserError: As in `hessian_trace`; ``"exact"`` under batch statistics.
    """
    check_problem(problem)
    if method == "exact":
        problem.refuse_batch_statistics("The exact trace of the Gauss-Newton matrix")
        with problem.measuring():
            return _exact_gauss_newton(problem)
    if method not in METHODS:
        raise UserError(f"method is {method!r}; expected one of {', '.join(map(repr, [*METHODS, 'exact']))}.")
    return _trace(problem, "gauss-newton", num_products, method, seed)
