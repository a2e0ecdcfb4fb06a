"""The quantities of the study `eta-lambda`, settings on a grid of lr and lam, and its decision rules, one a kind of claim.

A weight forgets in tau = 1 / (lr lam) steps. A setting has *forgotten* its start where its run is several tau long; only
there can a result depend on the product alone. Settings of equal product stand on one *diagonal* of the grid.

Shapes: C cells, L diagonals (cells of equal lr * lam), S seeds, N test examples, Q columns of a design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above,
    above_zero,
    all_of,
    below,
    leave_one_out,
    within,
)
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.optimum import Optimum, find_optimum
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "FORGOTTEN",
    "LATE",
    "QUANTITIES",
    "GridCell",
    "Quantity",
    "best_epochs",
    "best_product",
    "cells_of",
    "collapses",
    "diagonals",
    "falls_with_rate",
    "forgotten",
    "monotone",
    "shared",
    "shares_explained",
    "u_shaped",
    "unforgotten",
    "unforgotten_spread",
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
        """The product lr * lam, equal to the last bit for all settings of a diagonal."""
        return float(f"{self.lr * self.lam:.9g}")

    @property
    def lifetimes(self) -> float:
        """Run length over tau."""
        return self.product * self.num_steps


def cells_of(results: Results, size: int) -> list[GridCell]:
    """The grid, learning rates and lams rising.

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


RANK_BOUND = 0.8  # of a rank correlation: "monotonically" at a glance; 1 would be without exception
EXPLAINED = 0.9  # of what lr and lam explain together, so much must their product explain
SMALLEST_EXPLAINED = 0.5  # of the variance over settings: with less there is nothing to share
BEST_EPOCHS = (2.0, 6.0)  # tau at the optimum, in epochs, as read from the paper's two grids


def _text(interval: Interval, unit: str = "", digits: int = 2) -> str:
    estimate, low, high = (f"{value:.{digits}f}" for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate} [{low}, {high}]{unit}"


def _none(why: str) -> Finding:
    return Finding("inconclusive", None, why)


def _too_few(what: str) -> Finding:
    return _none(f"too few settings of the grid {what}, so that nothing can be fitted")


# ---- the U of the test error


def u_shaped(results: Results, size: int) -> Finding:
    """Whether the test error is lowest inside: higher at the smallest and at the largest product."""
    found = diagonals(forgotten(cells_of(results, size)))
    if len(found) < 3:
        return _too_few(f"have runs of {FORGOTTEN:g} tau or more")
    products, wrong_LSN = list(found), wrong_on(results, found, size)
    inner_LSN = wrong_LSN[1:-1]
    chosen_S = leave_one_out(inner_LSN.mean(axis=2))
    best_SN = inner_LSN[chosen_S, np.arange(len(chosen_S))]
    left, right = (crossed_interval(wrong_LSN[end] - best_SN) for end in (0, -1))
    weaker = min(left, right, key=lambda interval: interval.low)
    names = ", ".join(f"{products[1 + place]:g}" for place in sorted(set(chosen_S.tolist())))
    return Finding(
        all_of(above_zero(left), above_zero(right)),
        weaker,
        f"of the products from {products[0]:g} to {products[-1]:g} the lowest inside is {names}; the smallest one gives"
        f" {_text(left, ' points')} more, the largest one {_text(right, ' points')} more",
    )


def best_product(results: Results, size: int) -> Optimum | None:
    """Where the test error is lowest, as a product lr * lam (``None``: there are fewer than three diagonals)."""
    found = diagonals(forgotten(cells_of(results, size)))
    if len(found) < 3:
        return None
    optimum = find_optimum(list(found), wrong_on(results, found, size), "the test error")
    for theirs, ours in (("lowest loss of ", "lowest place of "), ("at lam ", "at lr * lam = "), ("lams", "products")):
        optimum = replace(optimum, problem=optimum.problem.replace(theirs, ours))  # it is written for sweeps over lam
    return optimum


def best_epochs(results: Results, size: int) -> Finding:
    """Whether tau at the optimum is a few epochs, as in the paper."""
    optimum = best_product(results, size)
    if optimum is None:
        return _too_few(f"have runs of {FORGOTTEN:g} tau or more")
    if optimum.problem:
        return _none(optimum.problem)
    cell = cells_of(results, size)[0]
    log_steps = math.log(cell.num_steps / cell.num_epochs)
    log_epochs_SN = -optimum.log_lam_SN - log_steps  # tau in epochs is 1 / (product * steps an epoch)
    shown = crossed_interval(log_epochs_SN).exp()
    decided = crossed_interval(log_epochs_SN, confidence=EQUAL_CONFIDENCE)
    low, high = (math.log(end) for end in BEST_EPOCHS)
    product = optimum.lam()
    return Finding(
        within(decided, (high - low) / 2, around=(high + low) / 2),
        shown,
        f"the test error is lowest at lr * lam = {product.estimate:.2g} [{product.low:.2g}, {product.high:.2g}], that is tau ="
        f" {_text(shown, ' epochs', 1)}, of {cell.num_epochs} that the runs take",
    )


# ---- monotone in the product, and the direction at fixed lam


def monotone(results: Results, size: int, *, quantity: str, rising: bool) -> Finding:
    """Whether a quantity rises, or falls, with lr * lam over the settings that have forgotten their start."""
    cells = forgotten(cells_of(results, size))
    if len(diagonals(cells)) < 3:
        return _too_few(f"have runs of {FORGOTTEN:g} tau or more")
    products_C = np.array([cell.product for cell in cells])
    values_CS = values_of(results, cells, quantity, size)
    correlation = seed_interval([rank_correlation(products_C, values_C) for values_C in values_CS.T])
    outcome = above(correlation, RANK_BOUND) if rising else below(correlation, -RANK_BOUND)
    plain_CS = values_of(results, cells, quantity, size, compared=False)
    ends = [plain_CS[products_C == end].mean() for end in (products_C.min(), products_C.max())]
    return Finding(
        outcome,
        correlation,
        f"the {QUANTITIES[quantity].name} goes from {ends[0]:.3g} at lr * lam = {products_C.min():g} to {ends[1]:.3g} at"
        f" {products_C.max():g}; its rank correlation with the product over {len(cells)} settings is {_text(correlation)}",
    )


def falls_with_rate(results: Results, size: int, *, quantity: str) -> Finding:
    """Whether a quantity falls with lr at fixed lam: one exponent for all lams, a factor for each."""
    cells = forgotten(cells_of(results, size))
    rows = [[i for i, cell in enumerate(cells) if cell.lam == lam] for lam in sorted({cell.lam for cell in cells})]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return _too_few("share a lam and have forgotten where they began")
    values_CS = np.log(values_of(results, cells, quantity, size, compared=False))
    log_rates_C = np.log([cell.lr for cell in cells])
    x = np.concatenate([log_rates_C[row] - log_rates_C[row].mean() for row in rows])
    y_S = np.concatenate([values_CS[row] for row in rows])
    exponent = seed_interval(x @ y_S / (x @ x))  # x adds to 0 within each lam, so that its level drops out
    return Finding(
        below(exponent),
        exponent,
        f"at fixed lam the {QUANTITIES[quantity].name} goes as lr^p with p = {_text(exponent)}, over {len(rows)} lams",
    )


# ---- the product alone


def _designs(found: Mapping[float, Sequence[GridCell]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One value for each product; and beside these the other direction, v = ln(lr / lam), as v, v^2 and v ln(lr lam)."""
    cells = [cell for group in found.values() for cell in group]
    levels_CL = np.array([[float(cell.product == product) for product in found] for cell in cells])
    u_C = np.log([cell.product for cell in cells])
    v_C = np.log([cell.lr / cell.lam for cell in cells])
    u_C, v_C = u_C - u_C.mean(), v_C - v_C.mean()
    return levels_CL, np.column_stack([levels_CL, v_C, v_C**2, u_C * v_C])


def _explained(design_CQ: NDArray[np.float64], values_CS: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each seed the share of its variance over settings that a fit to the other seeds' mean predicts."""
    centred_CS = values_CS - values_CS.mean(axis=0)
    shares = []
    for seed in range(values_CS.shape[1]):
        others_C = np.delete(centred_CS, seed, axis=1).mean(axis=1)
        coefficients = np.linalg.lstsq(design_CQ, others_C, rcond=None)[0]
        rest_C = centred_CS[:, seed] - design_CQ @ coefficients
        shares.append(1 - float(rest_C @ rest_C) / float(centred_CS[:, seed] @ centred_CS[:, seed]))
    return np.array(shares)


def shares_explained(
    results: Results, size: int, quantity: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What the product, and what lr and lam together explain of a quantity over the forgotten cells.

    Both are fitted to the mean of the other seeds and scored on the one that is left out, so that a column more is no gain
    by itself. A level of its own for each product is any function of it, smooth or not. Diagonals of one cell are left out:
    a level fits them whatever they are.

    Args:
        results: What the store holds.
        size: The size.
        quantity: A key of `QUANTITIES`.

    Returns:
        Two shares of the variance over settings per seed, shape (S,) each (``None``: fewer than two diagonals of two cells).
    """
    found = shared(forgotten(cells_of(results, size)))
    if len(found) < 2:
        return None
    values_CS = values_of(results, [cell for group in found.values() for cell in group], quantity, size)
    product_CL, both_CQ = _designs(found)
    return _explained(product_CL, values_CS), _explained(both_CQ, values_CS)


def collapses(results: Results, size: int, *, quantity: str) -> Finding:
    """Whether the product explains nearly all that lr and lam explain together."""
    shares = shares_explained(results, size, quantity)
    if shares is None:
        return _too_few("share their product and have forgotten where they began")
    product_S, both_S = shares
    both = seed_interval(both_S)
    part = seed_interval(product_S / both_S)
    return Finding(
        above(part, EXPLAINED, given=both.low > SMALLEST_EXPLAINED),
        part,
        f"of the variance of the {QUANTITIES[quantity].name} over the settings, in a seed that was not fitted, a level for each"
        f" product explains {_text(seed_interval(product_S))}, these and terms in lr / lam explain {_text(both)}",
    )


def _spread(
    results: Results, found: Mapping[float, Sequence[GridCell]], quantity: str, size: int
) -> NDArray[np.float64]:
    """Standard deviation over settings of equal product, per seed."""
    groups = [values_of(results, cells, quantity, size) for cells in found.values()]
    squares_S = sum(((values_CS - values_CS.mean(axis=0)) ** 2).sum(axis=0) for values_CS in groups)
    degrees = sum(len(values_CS) - 1 for values_CS in groups)
    return np.asarray(np.sqrt(squares_S / degrees), dtype=np.float64)


def unforgotten_spread(results: Results, size: int, *, quantity: str) -> Finding:
    """Whether settings of equal product differ more where the run is shorter than tau."""
    cells = cells_of(results, size)
    apart, together = shared(unforgotten(cells)), shared(forgotten(cells))
    if not apart or not together:
        return _too_few("share their product on either side")
    apart_S, together_S = (_spread(results, found, quantity, size) for found in (apart, together))
    difference = seed_interval(apart_S - together_S)
    unit = {"points": " points"}.get(QUANTITIES[quantity].unit, "")
    return Finding(
        above_zero(difference),
        difference,
        f"at equal product the {QUANTITIES[quantity].name} spreads by {apart_S.mean():.2f}{unit} where runs are shorter than"
        f" tau and by {together_S.mean():.2f}{unit} where they are {FORGOTTEN:g} tau or longer: {_text(difference, unit)}"
        " more",
    )
