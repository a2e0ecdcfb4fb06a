"""The largest eigenvalues of the curvature, and how they stand to the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from halflife.errors import UserError
from halflife.numbers import check_non_negative
from halflife.probes.checks import check_whole
from halflife.probes.operators import Matrix, Product, matrix_product, seeded
from halflife.probes.problem import Problem, check_problem

__all__ = ["sharpness", "top_eigenvalues"]

# Relative residual of an eigenpair. The error of an eigenvalue goes with its square.
TOLERANCE = 1e-3
MAX_RESTARTS = 300
# Below so many weights the whole matrix costs no more products than Lanczos takes.
SMALL = 40


def _lanczos(product: Product, problem: Problem, count: int, seed: int) -> list[float]:
    try:
        import numpy as np
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
    except ImportError as error:
        raise UserError(
            f"The largest eigenvalues of more than {SMALL} weights need scipy, and importing it failed ({error}); install"
            " it with pip install 'torch-halflife[curvature]'."
        ) from error

    size = problem.num_parameters
    double = problem.dtype == torch.float64
    dtype: Any = np.float64 if double else np.float32

    def matvec(v: Any) -> Any:
        vector = torch.from_numpy(np.ascontiguousarray(v, dtype=dtype).reshape(size, 1))
        result = product(vector.to(problem.device, problem.dtype))
        if not bool(torch.isfinite(result).all()):
            raise _NotFiniteError
        return result[:, 0].to("cpu", torch.float64 if double else torch.float32).numpy()

    make: Callable[..., Any] = LinearOperator
    operator = make((size, size), matvec=matvec, dtype=dtype)
    start = torch.randn(size, generator=seeded(seed), dtype=torch.float64).numpy().astype(dtype)
    try:
        values = eigsh(
            operator, k=count, which="LA", v0=start, tol=TOLERANCE, maxiter=MAX_RESTARTS, return_eigenvectors=False
        )
    except ArpackError as error:
        # A matrix that is zero, or as good as zero beside rounding, leaves Lanczos no direction to start in.
        raise UserError(
            f"The largest eigenvalues could not be found ({error}); the curvature may be zero at these weights, or "
            f"count={count} too large for it."
        ) from error
    return sorted(map(float, values), reverse=True)


class _NotFiniteError(ArithmeticError):
    """A product is not finite."""


def top_eigenvalues(problem: Problem, *, count: int = 1, matrix: Matrix = "hessian", seed: int = 0) -> Tensor:
    """The largest eigenvalues (by value, not by size), by the implicitly restarted Lanczos method (ARPACK).

    Args:
        problem: Model, loss and data.
        count: How many.
        matrix: ``"hessian"`` or ``"gauss-newton"``.
        seed: Of the vector to start from.

    Returns:
        Eigenvalues in descending order, float64; ``nan`` where the curvature is not finite. They are accurate to
        about 1e-6 of the largest, or to rounding in the weights' precision.

    Raises:
        UserError: If there are not so many eigenvalues, they cannot be found, or scipy is missing.
    """
    check_problem(problem)
    size = problem.num_parameters
    if check_whole("count", count, 1) > size:
        raise UserError(f"count is {count}; expected at most the number of weights, {size}.")
    with problem.measuring():
        product = matrix_product(problem, matrix)
        if size <= max(SMALL, count + 1):
            dense = product(torch.eye(size, dtype=problem.dtype, device=problem.device)).cpu().double()
            if not bool(torch.isfinite(dense).all()):
                return torch.full((count,), torch.nan, dtype=torch.float64, device=problem.device)
            values = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:count].tolist()
        else:
            try:
                values = _lanczos(product, problem, count, seed)
            except _NotFiniteError:
                values = [float("nan")] * count
        dtype = torch.float32 if problem.device.type == "mps" else torch.float64
        return torch.tensor(values, dtype=dtype, device=problem.device)


def sharpness(problem: Problem, lr: float, *, seed: int = 0) -> float:
    """How near gradient descent is to the edge of stability: the largest eigenvalue of the Hessian over 2 / lr.

    Full-batch gradient descent on a quadratic diverges where it is above 1; training at a constant learning rate
    hovers about 1. With decoupled decay of lam add lr * lam / 2.

    Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
    arXiv 2103.00065.

    Args:
        problem: Model, loss and data.
        lr: The learning rate.
        seed: As in `top_eigenvalues`.

    Returns:
        largest eigenvalue * lr / 2.

    Raises:
        UserError: If the learning rate is negative or not finite, or as in `top_eigenvalues`.
    """
    lr = check_non_negative("lr", lr)
    return float(top_eigenvalues(problem, seed=seed)[0]) * lr / 2
