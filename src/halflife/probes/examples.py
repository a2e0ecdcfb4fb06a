"""Gradients and Jacobians of single examples, in blocks of bounded memory.

Shapes: N examples, P weights, K outputs of an example, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from halflife.probes.problem import Problem

__all__ = [
    "example_gradients",
    "example_jacobians",
    "example_products",
    "gram_eigenvalues",
    "jacobian_parts",
    "row_blocks",
]

Group = list[tuple[Tensor, Tensor]]
RowsOf = Callable[[Tensor, Tensor], Tensor]

# Numbers in one block of rows: 400 MB in float32. What does not fit is computed again when it is needed.
MAX_STORED = 100_000_000
# Numbers in the derivatives that are computed at once.
MAX_AT_ONCE = 5_000_000
# Examples at once; more cost memory for activations and no longer save time.
MAX_EXAMPLES = 64
# Examples whose Jacobians are held together.
PART = 16


def _chunk(numbers_per_example: int) -> int:
    return max(1, min(MAX_EXAMPLES, MAX_AT_ONCE // max(1, numbers_per_example)))


def _flat(parts: tuple[Tensor, ...], leading: int) -> Tensor:
    """Derivatives by each weight tensor as one dimension, behind so many others."""
    return torch.cat([part.flatten(leading) if part.ndim > leading else part.unsqueeze(-1) for part in parts], dim=-1)


def example_gradients(problem: Problem) -> RowsOf:
    """The gradient of each example's loss, g_i = d loss_i / d w.

    Args:
        problem: Model and loss, BatchNorm not on batch statistics.

    Returns:
        From x_B..., y_B... to g_BP.
    """
    parameters = problem.detached()

    def loss_of(weights: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = problem.loss(problem.outputs(weights, x.unsqueeze(0)), y.unsqueeze(0))
        return value

    each = vmap(grad(loss_of), in_dims=(None, 0, 0), chunk_size=_chunk(problem.num_parameters))
    return lambda x, y: _flat(each(parameters, x, y), 1)


def example_jacobians(problem: Problem) -> RowsOf:
    """The Jacobian of each example's outputs, J_i = d h(x_i) / d w.

    Args:
        problem: Model, BatchNorm not on batch statistics.

    Returns:
        From x_B..., y_B... to J_BKP, the outputs of an example as one dimension.
    """
    parameters = problem.detached()

    def outputs_of(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return problem.outputs(weights, x.unsqueeze(0)).flatten()

    def rows(x: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            num_outputs = problem.outputs(parameters, x[:1]).numel()
        each = vmap(jacrev(outputs_of), in_dims=(None, 0), chunk_size=_chunk(problem.num_parameters * num_outputs))
        return _flat(each(parameters, x), 2)

    return rows


def jacobian_parts(problem: Problem) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The Jacobians of all examples, few at a time, for sums that need none of them twice.

    Args:
        problem: Model and data, BatchNorm not on batch statistics.

    Yields:
        x_B..., y_B... and J_BKP.
    """
    rows = example_jacobians(problem)
    for x, y in problem.data():
        for start in range(0, len(x), PART):
            yield x[start : start + PART], y[start : start + PART], rows(x[start : start + PART], y)


def example_products(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """Products of vectors with the Jacobian of each example, v_i^T J_i.

    Args:
        problem: Model, BatchNorm not on batch statistics.

    Returns:
        From x_B... and v_BK to squared norms ||v_i^T J_i||^2, one per example.
    """
    parameters = problem.detached()

    def squared(x: Tensor, v: Tensor) -> Tensor:
        def outputs_of(*weights: Tensor) -> Tensor:
            return problem.outputs(weights, x.unsqueeze(0)).flatten()

        pull = vjp(outputs_of, *parameters)[1]
        return torch.stack([part.square().sum() for part in pull(v)]).sum()

    each: RowsOf = vmap(squared, in_dims=(0, 0), chunk_size=_chunk(problem.num_parameters))
    return each


def _groups(problem: Problem, num_examples: int) -> Iterator[Group]:
    """The data in groups of at most so many examples; the pairs of a group need not have the same shape."""
    group: Group = []
    held = 0
    for x, y in problem.data():
        start = 0
        while start < len(x):
            taken = min(len(x) - start, num_examples - held)
            group.append((x[start : start + taken], y[start : start + taken]))
            start, held = start + taken, held + taken
            if held == num_examples:
                yield group
                group, held = [], 0
    if group:
        yield group


def row_blocks(problem: Problem, rows_of: RowsOf, rows_per_example: int, first: int = 0) -> Iterator[Tensor]:
    """The rows of all examples, in order, in blocks of at most `MAX_STORED` numbers.

    Args:
        problem: Gives the data.
        rows_of: What makes rows of a batch: (B, P) or (B, K, P).
        rows_per_example: K, or 1.
        first: Leave out so many blocks at the start, without computing them.

    Yields:
        a_RP.
    """
    size = problem.num_parameters
    capacity = max(1, MAX_STORED // (size * rows_per_example))
    for index, group in enumerate(_groups(problem, capacity)):
        if index >= first:
            yield torch.cat([rows_of(x, y).reshape(-1, size) for x, y in group])


def gram_eigenvalues(blocks: Callable[[int], Iterator[Tensor]], num_rows: int, size: int) -> Tensor:
    """The eigenvalues of (1 / num_rows) A^T A that are not zero, from the smaller of A^T A and A A^T.

    Args:
        blocks: Gives the rows a_RP of A in blocks, from a block on; called once if A is one block.
        num_rows: Rows of A.
        size: P.

    Returns:
        In descending order, in float64 on the CPU; ``nan`` if a row is not finite. What is below rounding in the rows'
        precision is left out.
    """
    small = min(num_rows, size)
    gram = torch.zeros(small, small, dtype=torch.float64)
    eps = 0.0
    start = 0
    for index, a_RP in enumerate(blocks(0)):
        eps = torch.finfo(a_RP.dtype).eps
        if size < num_rows:
            gram += (a_RP.T @ a_RP).cpu().double()
            continue
        stop = start + len(a_RP)
        gram[start:stop, start:stop] = (a_RP @ a_RP.T).cpu().double()
        if stop < num_rows:
            column = stop
            for b_RP in blocks(index + 1):
                part = (a_RP @ b_RP.T).cpu().double()
                gram[start:stop, column : column + len(b_RP)] = part
                gram[column : column + len(b_RP), start:stop] = part.T
                column += len(b_RP)
        start = stop
    gram /= num_rows
    if not bool(torch.isfinite(gram).all()):
        return torch.full((1,), torch.nan, dtype=torch.float64)
    values: Tensor = torch.linalg.eigvalsh(gram).flip(0)
    return values[values > small * eps * values[0].clamp_min(0)]
