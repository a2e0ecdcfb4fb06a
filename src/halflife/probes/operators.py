"""The Hessian and the Gauss-Newton matrix as products, by curvlinops.

curvlinops is imported when the first product is wanted: it is an extra, and probes of gradients do without it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from halflife.errors import UserError
from halflife.probes.checks import check_whole
from halflife.probes.problem import Problem

__all__ = ["Matrix", "Product", "matrix_product", "random_vectors", "require_curvlinops", "seeded"]

Matrix = Literal["hessian", "gauss-newton"]
Product = Callable[[Tensor], Tensor]

# Vectors that go through the Gauss-Newton matrix together. They share the forward pass, and the activations'
# derivatives are held for all of them: larger blocks cost memory and no longer save time.
BLOCK = 8


def require_curvlinops() -> Any:
    """Import curvlinops, which the probes of curvature need.

    Returns:
        The module.

    Raises:
        UserError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # linear_operator, which it imports, uses torch.jit.script, which torch deprecates; and so does torch
            # itself when a process first differentiates forwards, which is what this dual number is for.
            warnings.simplefilter("ignore")
            module = importlib.import_module("curvlinops")
            with forward_ad.dual_level():
                forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]
            return module
    except ImportError as error:
        raise UserError(
            f"Probes of curvature need curvlinops, and importing it failed ({error}); install it with "
            "pip install 'torch-halflife[curvature]'."
        ) from error


class _Data:
    """The batches of a problem: curvlinops passes over them many times."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.problem.data()


def _hessian_of_batch(problem: Problem, x: Tensor, y: Tensor, v: list[Tensor]) -> list[Tensor]:
    """Products of a batch's Hessian with the columns of v, given and returned per weight tensor (..., V).

    By reverse mode twice, on one graph for all columns. curvlinops' own products differentiate the backward pass
    forwards, which in torch 2.13 is silently wrong for BatchNorm on batch statistics, LayerNorm and InstanceNorm
    (its derivative takes saved statistics for constants) and not implemented for GroupNorm.

    Args:
        problem: Model and loss.
        x: A batch.
        y: Its targets.
        v: Vectors, one part for each weight tensor.

    Returns:
        The products, in the form of v.
    """
    weights = tuple(p.requires_grad_() for p in problem.detached())
    loss = problem.loss(problem.outputs(weights, x), y)
    slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
    # Slopes that do not depend on the weights (of a last bias under a linear loss) have no derivative to ask for.
    curved = [index for index, slope in enumerate(slopes) if slope.requires_grad]
    products = [torch.zeros_like(part) for part in v]
    for column in range(v[0].shape[-1]) if curved else ():
        parts = torch.autograd.grad(
            [slopes[index] for index in curved],
            weights,
            [v[index][..., column] for index in curved],
            retain_graph=True,
            allow_unused=True,
        )
        for product, part in zip(products, parts, strict=True):
            if part is not None:
                product[..., column] = part
    return products


def _operator(problem: Problem, matrix: Matrix) -> Any:
    curvlinops = require_curvlinops()

    class Hessian(curvlinops.HessianLinearOperator):  # type: ignore[misc, name-defined]
        def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:
            return _hessian_of_batch(problem, X, y, M)

    kinds = {"hessian": Hessian, "gauss-newton": curvlinops.GGNLinearOperator}
    if matrix not in kinds:
        raise UserError(f"matrix is {matrix!r}; expected 'hessian' or 'gauss-newton'.")
    return kinds[matrix](
        problem.model,
        problem.loss,
        list(problem.parameters),
        _Data(problem),
        check_deterministic=False,  # the problem was checked when it was made, with sentences
        num_data=problem.num_examples,
    )


def matrix_product(problem: Problem, matrix: Matrix) -> Product:
    """Products with the Hessian or the Gauss-Newton matrix of the mean loss at the weights.

    H = d^2 L / dw^2, and G = (1/N) sum_i J_i^T (d^2 loss_i / dh_i^2) J_i with J_i = dh(x_i) / dw: what is left of H
    where the outputs are linear in the weights.

    Args:
        problem: The mean loss.
        matrix: Which.

    Returns:
        From vectors v_PV to products of the same shape. To be called inside ``problem.measuring()``.
    """
    operator = _operator(problem, matrix)

    def product(v_PV: Tensor) -> Tensor:
        if matrix == "hessian":
            whole: Tensor = operator @ v_PV
            return whole
        try:
            return torch.cat([operator @ block for block in torch.split(v_PV, BLOCK, dim=1)], dim=1)
        except NotImplementedError as error:
            raise UserError(
                f"The Gauss-Newton matrix needs forward-mode derivatives and a part of the model has none ({error}); "
                "write that part in elementary operations."
            ) from error

    return product


def seeded(seed: int) -> torch.Generator:
    """A generator of a probe's own, on the CPU: the same numbers on every device, and the global ones are left alone."""
    return torch.Generator().manual_seed(check_whole("seed", seed))


def random_vectors(
    problem: Problem, count: int, seed: int, distribution: Literal["rademacher", "normal"] = "rademacher"
) -> Tensor:
    """Random vectors, drawn on the CPU by a generator of their own: the same on every device.

    Args:
        problem: Gives their length, device and dtype.
        count: How many.
        seed: Of the generator.
        distribution: ``"rademacher"`` (-1 or 1) or ``"normal"``.

    Returns:
        v_PV.
    """
    generator = seeded(seed)
    shape = (count, problem.num_parameters)
    if distribution == "normal":
        v_VP = torch.randn(shape, generator=generator, dtype=problem.dtype)
    else:
        v_VP = torch.randint(0, 2, shape, generator=generator).to(problem.dtype).mul_(2).sub_(1)
    return v_VP.T.contiguous().to(problem.device)
