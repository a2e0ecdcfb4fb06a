"""What the study `eta-lambda` measures, of settings on a grid of lr and lam.

A weight forgets in tau = 1 / (lr lam) steps. A setting has *forgotten* its start where its run is several tau long; only
there can a result depend on the product alone. Settings of equal product stand on one *diagonal* of the grid.

Shapes: C cells, L diagonals (cells of equal lr * lam), S seeds, N test examples, Q columns of a design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run, num_steps, wrong
from halflife.studies.evidence.choice import Side
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.optimum import Optimum, find_optimum
from halflife.studies.evidence.quantities import Chosen, Measure, NotMeasuredError, Quantity, Reading, Terms, mean_of
from halflife.studies.evidence.results import Results

__all__ = [
    "FORGOTTEN",
    "KINDS",
    "LATE",
    "GridCell",
    "Spread",
    "best_product",
    "by_product",
    "cells_of",
    "diagonals",
    "error_at",
    "exponent_of_rate",
    "forgotten",
    "left_by_both",
    "no_optimum",
    "products",
    "rank_with_product",
    "rises",
    "share_of_product",
    "tau_in_epochs",
    "unforgotten",
    "values_of",
]

FORGOTTEN = 3.0  # run length over tau from which on a start counts as forgotten: exp(-3) = 5 % of it are left
LATE = 0.25  # the last part of the epochs, over which the training loss is taken

Numbers = NDArray[np.float64]


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
        """The product lr * lam, equal to the last bit for all settings of a diagonal."""
        return float(f"{self.lr * self.lam:.9g}")

    @property
    def lifetimes(self) -> float:
        """Run length over tau."""
        return self.product * self.num_steps


def cells_of(results: Results, size: int) -> list[GridCell]:
    """The grid, one cell an arm, learning rates and lams rising."""
    cells = []
    for key in (arm["key"] for arm in results.arms if arm["size"] == size):
        spec = image_run(results, key, size)
        cells.append(
            GridCell(
                key=key,
                lr=spec.lr,
                lam=spec.lam,
                num_steps=num_steps(results, key, size),
                num_epochs=spec.num_epochs,
                average=f"ema-{spec.ema[0]:g}/",
            )
        )
    return sorted(cells, key=lambda cell: (cell.lr, cell.lam))


def forgotten(cells: Sequence[GridCell]) -> list[GridCell]:
    """The settings whose runs are at least `FORGOTTEN` tau long."""
    return [cell for cell in cells if cell.lifetimes >= FORGOTTEN - 1e-9]


def unforgotten(cells: Sequence[GridCell]) -> list[GridCell]:
    """The settings whose runs are shorter than tau, those without decay among them."""
    return [cell for cell in cells if cell.lifetimes < 1]


def diagonals(cells: Sequence[GridCell]) -> dict[float, list[GridCell]]:
    """The settings by their product, which rises."""
    products = sorted({cell.product for cell in cells})
    return {product: [cell for cell in cells if cell.product == product] for product in products}


def shared(cells: Sequence[GridCell]) -> dict[float, list[GridCell]]:
    """The diagonals that have at least two settings: one alone says nothing of what else matters."""
    return {product: found for product, found in diagonals(cells).items() if len(found) > 1}


def by_product(cells: Sequence[GridCell]) -> dict[float, list[GridCell]]:
    """The diagonals whose settings have forgotten their start; three at least, for a shape."""
    found = diagonals(forgotten(cells))
    if len(found) < 3:
        raise NotMeasuredError(too_few(f"have runs of {FORGOTTEN:g} tau or more"))
    return found


def products(results: Results, size: int) -> list[float]:
    """The values of lr * lam whose settings have forgotten their start, three at least."""
    return list(by_product(cells_of(results, size)))


def too_few(what: str) -> str:
    """Why nothing is measured on a grid without what is to be compared."""
    return f"too few settings of the grid {what}, so that nothing can be fitted"


@dataclass(frozen=True)
class LateLoss(Measure):
    """The median of an arm's training loss over the last epochs: a single epoch may hold a spike."""

    arm: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        start = (1 - LATE) * image_run(results, self.arm, size).num_epochs
        curves = results.series(self.arm, "train/running_loss", size)
        return np.array([np.median(losses[epochs > start]) for epochs, losses in curves])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is measured of a cell.

    Args:
        name: In words.
        of: One number a seed, shape (S,).
        log: Whether it ranges over so much that its logarithm is compared.
    """

    name: str
    of: Callable[[GridCell], Measure]
    log: bool = False


KINDS: Mapping[str, Kind] = {
    "error": Kind(name="test error of the average", of=lambda c: 100 * Reading(c.key, f"{c.average}test/error")),
    "loss": Kind(name="training loss", of=lambda c: LateLoss(c.key)),
    "noise": Kind(name="noise scale", of=lambda c: Reading(c.key, "noise_scale")),
    "jacobian": Kind(
        name="Jacobian norm of the average", of=lambda c: Reading(c.key, f"{c.average}jacobian_norm"), log=True
    ),
}
"""The four of the paper's figures 3 and 4."""


def values_of(results: Results, size: int, cells: Sequence[GridCell], kind: str) -> Numbers:
    """A quantity of each cell and seed as it is compared, that is its logarithm where `Kind.log` says so, (C, S)."""
    found_CS = np.array([KINDS[kind].of(cell)(results, size) for cell in cells])
    return np.log(found_CS) if KINDS[kind].log else found_CS


# ---- the U of the test error


def error_at(cells: Sequence[GridCell]) -> Terms:
    """The average's test errors by example in points, mean over the cells of a diagonal, (S, N)."""
    return mean_of([wrong(cell.key, average=cell.average) for cell in cells])


@dataclass(frozen=True)
class Lowest(Chosen):
    """The lowest of several measures."""

    measures: tuple[Measure, ...]

    def side(self, results: Results, size: int) -> Side:
        """All of them."""
        return Side(values=np.array([measure(results, size) for measure in self.measures]))


def rises(results: Results, size: int) -> list[Quantity]:
    """How much higher the test error is at the smallest and at the largest product than inside."""
    found = by_product(cells_of(results, size))
    errors = [error_at(cells) for cells in found.values()]
    return [
        Quantity(
            name=f"test error of the average at lr * lam = {list(found)[end]:g} - at the lowest place between both ends",
            values=errors[end] - Lowest(tuple(errors[1:-1])),
            unit="points",
        )
        for end in (0, -1)
    ]


def best_product(results: Results, size: int) -> Optimum:
    """Where the test error is lowest, as a product lr * lam."""
    found = by_product(cells_of(results, size))
    wrong_LSN = np.array([error_at(cells)(results, size) for cells in found.values()])
    return find_optimum(list(found), wrong_LSN, "the test error", place="lr * lam", value="value")


def no_optimum(results: Results, size: int) -> str:
    """Why the lowest place is no estimate, in words (empty: it is one)."""
    try:
        return best_product(results, size).problem
    except NotMeasuredError as error:
        return str(error)


def tau_in_epochs(results: Results, size: int) -> Numbers:
    """Tau = 1 / (lr lam) where the test error is lowest, in epochs, (S, N); pseudo-values, as `Optimum` has them."""
    optimum = best_product(results, size)
    if optimum.problem:
        raise NotMeasuredError(optimum.problem)
    cell = cells_of(results, size)[0]
    return np.exp(-optimum.log_lam_SN) * cell.num_epochs / cell.num_steps


# ---- monotone in the product, and the direction at fixed lam


def rank_with_product(results: Results, size: int, *, kind: str) -> Numbers:
    """Per seed the rank correlation of a quantity with lr * lam, over the settings that have forgotten their start."""
    cells = [cell for group in by_product(cells_of(results, size)).values() for cell in group]
    products_C = np.array([cell.product for cell in cells])
    values_CS = values_of(results, size, cells, kind)
    return np.array([rank_correlation(products_C, values_C) for values_C in values_CS.T])


def exponent_of_rate(results: Results, size: int, *, kind: str) -> Numbers:
    """Per seed the p of a quantity ~ lr^p at fixed lam: one exponent for all lams, a factor for each."""
    cells = forgotten(cells_of(results, size))
    rows = [[i for i, cell in enumerate(cells) if cell.lam == lam] for lam in sorted({cell.lam for cell in cells})]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise NotMeasuredError(too_few("share a lam and have forgotten where they began"))
    logs_CS = np.log([KINDS[kind].of(cell)(results, size) for cell in cells])
    log_rates_C = np.log([cell.lr for cell in cells])
    x = np.concatenate([log_rates_C[row] - log_rates_C[row].mean() for row in rows])
    y_S = np.concatenate([logs_CS[row] for row in rows])
    return np.asarray(x @ y_S / (x @ x))  # x adds to 0 within each lam, so that its level drops out


# ---- the product alone


def designs(found: Mapping[float, Sequence[GridCell]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One value for each product; and beside these the other direction, v = ln(lr / lam), as v, v^2 and v ln(lr lam)."""
    cells = [cell for group in found.values() for cell in group]
    levels_CL = np.array([[float(cell.product == product) for product in found] for cell in cells])
    u_C = np.log([cell.product for cell in cells])
    v_C = np.log([cell.lr / cell.lam for cell in cells])
    u_C, v_C = u_C - u_C.mean(), v_C - v_C.mean()
    return levels_CL, np.column_stack([levels_CL, v_C, v_C**2, u_C * v_C])


def explained(design_CQ: NDArray[np.float64], values_CS: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each seed the share of its variance over settings that a fit to the other seeds' mean predicts."""
    centred_CS = values_CS - values_CS.mean(axis=0)
    shares = []
    for seed in range(values_CS.shape[1]):
        others_C = np.delete(centred_CS, seed, axis=1).mean(axis=1)
        coefficients = np.linalg.lstsq(design_CQ, others_C, rcond=None)[0]
        rest_C = centred_CS[:, seed] - design_CQ @ coefficients
        shares.append(1 - float(rest_C @ rest_C) / float(centred_CS[:, seed] @ centred_CS[:, seed]))
    return np.array(shares)


def shares_explained(results: Results, size: int, kind: str) -> tuple[Numbers, Numbers]:
    """What the product, and what lr and lam together explain of the variance of a quantity over settings, (S,) each."""
    # Both are fitted to the mean of the other seeds and scored on the one that is left out, so that a column more is no gain
    # by itself. A level of its own for each product is any function of it, smooth or not. Diagonals of one cell are left out:
    # a level fits them whatever they are.
    found = shared(forgotten(cells_of(results, size)))
    if len(found) < 2:
        raise NotMeasuredError(too_few("share their product and have forgotten where they began"))
    values_CS = values_of(results, size, [cell for group in found.values() for cell in group], kind)
    product_CL, both_CQ = designs(found)
    return explained(product_CL, values_CS), explained(both_CQ, values_CS)


def share_of_product(results: Results, size: int, *, kind: str) -> Numbers:
    """What the product explains over what lr and lam together explain, (S,)."""
    product_S, both_S = shares_explained(results, size, kind)
    return product_S / both_S


def left_by_both(results: Results, size: int, *, kind: str) -> Numbers:
    """The share of the variance over settings that lr and lam together leave unexplained, (S,)."""
    return 1 - shares_explained(results, size, kind)[1]


@dataclass(frozen=True)
class Spread(Measure):
    """Standard deviation over settings of equal product.

    Args:
        kind: Of what, a key of `KINDS`.
        among: Which settings: `forgotten` or `unforgotten`.
    """

    kind: str
    among: Callable[[Sequence[GridCell]], Sequence[GridCell]]

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        found = shared(self.among(cells_of(results, size)))
        if not found:
            raise NotMeasuredError(too_few("share their product on either side"))
        groups = [values_of(results, size, cells, self.kind) for cells in found.values()]
        squares_S = sum(((values_CS - values_CS.mean(axis=0)) ** 2).sum(axis=0) for values_CS in groups)
        return np.asarray(np.sqrt(squares_S / sum(len(values_CS) - 1 for values_CS in groups)), dtype=np.float64)
