"""The grid of learning rates and lam that the study `eta-lambda` reads: its cells, what they share, and their quantities.

A weight forgets in tau = 1 / (lr lam) steps. A cell has *forgotten* where it began when its run is several tau long; only there
can anything depend on the product alone. Cells of equal product stand on one *diagonal* of the grid.

Shapes: C cells, L diagonals, S seeds, N test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.results import Results
from halflife.studies.specs.images import ImageRun

__all__ = [
    "FORGOTTEN",
    "LATE",
    "QUANTITIES",
    "GridCell",
    "Quantity",
    "cells_of",
    "diagonals",
    "forgotten",
    "shared",
    "unforgotten",
    "values_of",
    "wrong_on",
]

FORGOTTEN = 3.0  # run length over tau from which on a start counts as forgotten: exp(-3) = 5 % of it are left
LATE = 0.25  # the last part of the epochs, over which the training loss is taken


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One place of the grid.

    Args:
        key: Its arm.
        lr: Its learning rate.
        lam: Its lam.
        num_steps: Steps of its run.
        num_epochs: Epochs of its run.
        average: The prefix of its average's readings.
    """

    key: str
    lr: float
    lam: float
    num_steps: int
    num_epochs: int
    average: str

    @property
    def product(self) -> float:
        """The product lr * lam, equal to the last bit on a diagonal."""
        return float(f"{self.lr * self.lam:.9g}")

    @property
    def lifetimes(self) -> float:
        """Run length over tau."""
        return self.product * self.num_steps


def cells_of(results: Results, size: int) -> list[GridCell]:
    """The grid, learning rates and lams rising.

    Args:
        results: What the store holds.
        size: The size.

    Returns:
        One cell an arm.
    """
    cells = []
    for key in (arm["key"] for arm in results.arms if arm["size"] == size):
        spec = results.spec(key, size)
        assert isinstance(spec, ImageRun)
        steps_S = results.series_by_step(key, "train/running_loss", size)[0][0]
        cells.append(
            GridCell(
                key=key,
                lr=spec.lr,
                lam=spec.lam,
                num_steps=int(steps_S[-1]),
                num_epochs=spec.num_epochs,
                average=f"ema-{spec.ema[0]:g}/",
            )
        )
    return sorted(cells, key=lambda cell: (cell.lr, cell.lam))


def forgotten(cells: Sequence[GridCell]) -> list[GridCell]:
    """The cells whose runs are at least `FORGOTTEN` tau long."""
    return [cell for cell in cells if cell.lifetimes >= FORGOTTEN - 1e-9]


def unforgotten(cells: Sequence[GridCell]) -> list[GridCell]:
    """The cells whose runs are shorter than tau, those without decay among them."""
    return [cell for cell in cells if cell.lifetimes < 1]


def diagonals(cells: Sequence[GridCell]) -> dict[float, list[GridCell]]:
    """Cells by their product, which rises."""
    products = sorted({cell.product for cell in cells})
    return {product: [cell for cell in cells if cell.product == product] for product in products}


def shared(cells: Sequence[GridCell]) -> dict[float, list[GridCell]]:
    """The diagonals that have at least two cells: one alone says nothing of what else matters."""
    return {product: found for product, found in diagonals(cells).items() if len(found) > 1}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is measured of a cell.

    Args:
        name: In words.
        unit: As in `halflife.studies.evidence.claims.Claim`.
        of: One number a seed, shape (S,).
        log: Whether it ranges over so much that its logarithm is compared.
    """

    name: str
    unit: str
    of: Callable[[Results, GridCell, int], NDArray[np.float64]]
    log: bool = False


def _error(results: Results, cell: GridCell, size: int) -> NDArray[np.float64]:
    return 100 * results.last(cell.key, f"{cell.average}test/error", size)


def _late_loss(results: Results, cell: GridCell, size: int) -> NDArray[np.float64]:
    """The median over the last epochs: a single epoch may hold a spike."""
    start = (1 - LATE) * cell.num_epochs
    curves = results.series(cell.key, "train/running_loss", size)
    return np.array([np.median(losses[epochs > start]) for epochs, losses in curves])


def _noise(results: Results, cell: GridCell, size: int) -> NDArray[np.float64]:
    return results.last(cell.key, "noise_scale", size)


def _jacobian(results: Results, cell: GridCell, size: int) -> NDArray[np.float64]:
    return results.last(cell.key, f"{cell.average}jacobian_norm", size)


QUANTITIES: Mapping[str, Quantity] = {
    "error": Quantity(name="test error of the average", unit="points", of=_error),
    "loss": Quantity(name="training loss", unit="nats", of=_late_loss),
    "noise": Quantity(name="noise scale", unit="", of=_noise),
    "jacobian": Quantity(name="Jacobian norm of the average", unit="", of=_jacobian, log=True),
}
"""The four of the paper's figures 3 and 4."""


def values_of(
    results: Results, cells: Sequence[GridCell], quantity: str, size: int, *, compared: bool = True
) -> NDArray[np.float64]:
    """A quantity of each cell and seed.

    Args:
        results: What the store holds.
        cells: The cells.
        quantity: A key of `QUANTITIES`.
        size: The size.
        compared: As the rules compare it, that is its logarithm where `Quantity.log` says so.

    Returns:
        Shape (C, S).
    """
    chosen = QUANTITIES[quantity]
    found_CS = np.array([chosen.of(results, cell, size) for cell in cells])
    return np.log(found_CS) if compared and chosen.log else found_CS


def wrong_on(results: Results, found: Mapping[float, Sequence[GridCell]], size: int) -> NDArray[np.float64]:
    """The average's test errors by example, in points, each a mean over the cells of a diagonal.

    Args:
        results: What the store holds.
        found: The diagonals.
        size: The size.

    Returns:
        Shape (L, S, N), values from 0 to 100.
    """
    return np.array(
        [
            100 * np.mean([results.last_array(c.key, f"{c.average}test/wrong", size) for c in cells], axis=0)
            for cells in found.values()
        ]
    )
