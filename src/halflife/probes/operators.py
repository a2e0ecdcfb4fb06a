"""The Hessian and the Gauss-Newton matrix as products, by automatic differentiation of torch alone.

Shapes: P weights, V vectors, B of a batch; what ends in three dots has the shape of a weight tensor.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap

from halflife.errors import UserError
from halflife.probes.checks import check_whole
from halflife.probes.problem import Problem

__all__ = ["Matrix", "Product", "forward_mode", "loss_curvature", "matrix_product", "random_vectors", "seeded"]

Matrix = Literal["hessian", "gauss-newton"]
Product = Callable[[Tensor], Tensor]

# Vectors that go through the Gauss-Newton matrix together. They share the forward pass, and the activations'
# derivatives are held for all of them: larger blocks cost memory and no longer save time.
BLOCK = 8


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Differentiate the outputs forwards, with no graph of reverse mode around.

    Yields:
        Nothing.

    Raises:
        UserError: A part of the model has no such derivative.
    """
    _load_forward_mode()
    try:
        with torch.no_grad():
            yield
    except NotImplementedError as error:
        raise UserError(
            f"The Gauss-Newton matrix needs forward-mode derivatives and a part of the model has none ({error}); "
            "write that part in elementary operations."
        ) from error


def loss_curvature(problem: Problem, h: Tensor, y: Tensor, direction: Tensor) -> Tensor:
    """The loss's second derivative by a batch's outputs h, times a direction: by reverse mode, which every loss has."""

    def loss(h: Tensor) -> Tensor:
        value: Tensor = problem.loss(h, y)
        return value

    found: Tensor = vjp(grad(loss), h)[1](direction)[0]
    return found


@cache
def _load_forward_mode() -> None:
    """Differentiate forwards once: the first time torch loads formulas by torch.jit.script, and warns of it itself."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]


def _hessian_of_batch(problem: Problem, x: Tensor, y: Tensor, v: list[Tensor]) -> list[Tensor]:
    """Products of a batch's Hessian with the columns of v, given and returned per weight tensor (..., V).

    By reverse mode twice, on one graph for all columns. To differentiate the backward pass forwards (jvp of jacrev)
    is silently wrong in torch 2.13 for BatchNorm on batch statistics, LayerNorm and InstanceNorm, whose derivative takes
    saved statistics for constants, and not implemented for GroupNorm.

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


def _gauss_newton_of_batch(problem: Problem, x: Tensor, y: Tensor, v: list[Tensor]) -> list[Tensor]:
    """Products of a batch's Gauss-Newton matrix with the columns of v, given and returned per weight tensor (..., V).

    Forwards to J v, by the loss's second derivative to L J v, backwards to J^T L J v.

    Args:
        problem: Model and loss.
        x: A batch.
        y: Its targets.
        v: Vectors, one part for each weight tensor.

    Returns:
        The products, in the form of v.
    """

    def outputs(*weights: Tensor) -> Tensor:
        return problem.outputs(weights, x)

    def product(*v: Tensor) -> tuple[Tensor, ...]:
        h, slope = cast("tuple[Tensor, Tensor]", jvp(outputs, weights, v))  # a third answer comes with has_aux alone
        parts: tuple[Tensor, ...] = vjp(outputs, *weights)[1](loss_curvature(problem, h, y, slope))
        return parts

    weights = problem.detached()
    blocks = zip(*(torch.split(part, BLOCK, dim=-1) for part in v), strict=True)
    with forward_mode():
        found = [vmap(product, in_dims=-1, out_dims=-1, randomness="same")(*block) for block in blocks]
    return [torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)]


_OF_BATCH = {"hessian": _hessian_of_batch, "gauss-newton": _gauss_newton_of_batch}


def matrix_product(problem: Problem, matrix: Matrix) -> Product:
    """Products with the Hessian or the Gauss-Newton matrix of the mean loss at the weights.

    H = d^2 L / dw^2, and G = (1/N) sum_i J_i^T (d^2 loss_i / dh_i^2) J_i with J_i = dh(x_i) / dw: what is left of H
    where the outputs are linear in the weights.

    Args:
        problem: The mean loss.
        matrix: Which.

    Returns:
        From vectors v_PV to products of the same shape. To be called inside ``problem.measuring()``.

    Raises:
        UserError: If the matrix is neither.
    """
    if matrix not in _OF_BATCH:
        raise UserError(f"matrix is {matrix!r}; expected 'hessian' or 'gauss-newton'.")

    def product(v_PV: Tensor) -> Tensor:
        count = v_PV.shape[1]
        split = zip(torch.split(v_PV, list(problem.sizes)), problem.parameters, strict=True)
        v = [part.reshape(*p.shape, count) for part, p in split]
        total = torch.zeros_like(v_PV)
        for x, y in problem.data():
            parts = [part.reshape(-1, count) for part in _OF_BATCH[matrix](problem, x, y, v)]
            total.add_(torch.cat(parts), alpha=len(x) / problem.num_examples)
        return total

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
