"""What the study `eta-lambda` draws, in the layout of the paper's figures 3, 4 and 10, and the paper's numbers beside ours."""

from __future__ import annotations

import functools

import numpy as np

from halflife.studies.catalog.images.eta_lambda.quantities import (
    FORGOTTEN,
    best_product,
    cells_of,
    diagonals,
    values_of,
)
from halflife.studies.evidence.claims import Cell, HeatPanel, Panel, PointRow, PointsPanel, Published
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval

__all__ = ["PANELS", "PUBLISHED"]


def grid_cells(results: Results, *, quantity: str) -> list[Cell]:
    """A quantity over the grid, the mean over seeds.

    Args:
        results: What the store holds.
        quantity: A key of `QUANTITIES`.

    Returns:
        The cells.
    """
    cells = cells_of(results, results.main_size)
    means_C = values_of(results, cells, quantity, results.main_size, compared=False).mean(axis=1)
    return [Cell(c.lr, c.lam, float(value)) for c, value in zip(cells, means_C, strict=True)]


def product_rows(results: Results, *, quantity: str) -> list[PointRow]:
    """A quantity against lr * lam: a point a cell, coloured by lr, and a line through the means at equal product.

    Args:
        results: What the store holds.
        quantity: A key of `QUANTITIES`.

    Returns:
        The points.
    """
    size, rows = results.main_size, []
    decayed = [cell for cell in cells_of(results, size) if cell.lam > 0]
    for cell in decayed:
        (values_S,) = values_of(results, [cell], quantity, size, compared=False)
        mean, low, high = (float(f(values_S)) for f in (np.mean, np.min, np.max))
        rows.append(PointRow(series=f"lr {cell.lr:g}", x=cell.product, y=mean, low=low, high=high))
    for product, cells in diagonals(decayed).items():
        mean = float(values_of(results, cells, quantity, size, compared=False).mean())
        rows.append(PointRow(series="mean at equal product", x=product, y=mean, style="line"))
    return rows


def rate_rows(results: Results, *, quantity: str) -> list[PointRow]:
    """A quantity against lr, a line a lam.

    Args:
        results: What the store holds.
        quantity: A key of `QUANTITIES`.

    Returns:
        The points.
    """
    cells = sorted(cells_of(results, results.main_size), key=lambda cell: (cell.lam, cell.lr))
    means_C = values_of(results, cells, quantity, results.main_size, compared=False).mean(axis=1)
    return [
        PointRow(series=f"lam {cell.lam:g}", x=cell.lr, y=float(value), style=style)
        for style in ("line", "point")
        for cell, value in zip(cells, means_C, strict=True)
    ]


SPREAD_NOTE = (
    "A point is the mean over seeds of one cell of the grid, bars reach from the lowest to the highest seed. Only where the run"
    f" is {FORGOTTEN:g} / (lr * lam) steps or longer can the product alone matter."
)
_LABELS = {
    "error": ("Test error of the average", "test error (%)", True),
    "loss": ("Training loss", "training cross-entropy", True),
    "noise": ("Noise scale of the weights at the end", "mean norm of d loss / d logits", False),
    "jacobian": ("Jacobian norm of the average", "norm of the Jacobian", True),
}

PANELS: tuple[HeatPanel | PointsPanel | Panel, ...] = (
    *(
        HeatPanel(
            slug=f"grid-{quantity}",
            title=f"{title} over the grid",
            x_label="learning rate",
            y_label="lam",
            value_label=label,
            cells=functools.partial(grid_cells, quantity=quantity),
            log_value=log,
            source_figure="figures 3 and 10",
            note="Means over seeds at the end of the runs.",
        )
        for quantity, (title, label, log) in _LABELS.items()
    ),
    *(
        PointsPanel(
            slug=f"product-{quantity}",
            title=f"{title} against lr * lam",
            x_label="lr * lam",
            y_label=label,
            rows=functools.partial(product_rows, quantity=quantity),
            log_x=True,
            log_y=log,
            source_figure="figures 4 and 10",
            note=SPREAD_NOTE,
        )
        for quantity, (title, label, log) in _LABELS.items()
    ),
    PointsPanel(
        slug="jacobian-by-rate",
        title="Jacobian norm of the average against the learning rate",
        x_label="learning rate",
        y_label="norm of the Jacobian",
        rows=functools.partial(rate_rows, quantity="jacobian"),
        log_x=True,
        log_y=True,
        source_figure="figure 3",
        note="Lines join the means over seeds at one lam.",
    ),
)


def _ends(results: Results, quantity: str) -> str:
    """The quantity at the smallest and the largest product above 0."""
    size = results.main_size
    found = diagonals([cell for cell in cells_of(results, size) if cell.lam > 0])
    means = {p: float(values_of(results, cells, quantity, size, compared=False).mean()) for p, cells in found.items()}
    low, high = min(means), max(means)
    return f"{means[low]:.3g} at {low:g}, {means[high]:.3g} at {high:g}"


def product_text(results: Results) -> str:
    """Our best product."""
    optimum = best_product(results, results.main_size)
    if optimum is None or optimum.problem:
        return f"none: {'too few settings' if optimum is None else optimum.problem}"
    found = optimum.lam()
    return f"{found.estimate:.2g} [{found.low:.2g}, {found.high:.2g}]"


def epochs_text(results: Results) -> str:
    """Our best tau in epochs."""
    optimum = best_product(results, results.main_size)
    if optimum is None or optimum.problem:
        return f"none: {'too few settings' if optimum is None else optimum.problem}"
    cell = cells_of(results, results.main_size)[0]
    tau = crossed_interval(-optimum.log_lam_SN - np.log(cell.num_steps / cell.num_epochs)).exp()
    return f"{tau.estimate:.1f} [{tau.low:.1f}, {tau.high:.1f}] of {cell.num_epochs}"


def lowest_text(results: Results) -> str:
    """Our lowest mean error at equal product, and that at the largest product."""
    size = results.main_size
    found = diagonals([cell for cell in cells_of(results, size) if cell.lam > 0])
    means = {p: float(values_of(results, cells, "error", size).mean()) for p, cells in found.items()}
    best, last = min(means, key=means.__getitem__), max(means)
    return f"{means[best]:.1f} % at {best:g}, {means[last]:.1f} % at {last:g}"


PUBLISHED = (
    Published(
        quantity="product lr * lam of the lowest test error (Tiny-ImageNet)",
        published="5e-4 to 7e-4",
        where="figure 4",
        how="fig-read",
        ours=product_text,
    ),
    Published(
        quantity="the same, as its text has it (the largest product of its grid, where its figure shows an error of 92 %)",
        published="0.005",
        where="section 2, on figure 4",
        how="text",
        ours=product_text,
    ),
    Published(
        quantity="the same (CIFAR-10)",
        published="4e-4 to 1.2e-3, broad",
        where="figure 10",
        how="fig-read",
        ours=product_text,
    ),
    Published(
        quantity="that product as tau in epochs of the run",
        published="1.8 to 2.6 of 200 (Tiny-ImageNet), 2.1 to 6.4 of 100 (CIFAR-10)",
        where="figures 4 and 10, steps of a batch of 128",
        how="fig-read",
        ours=epochs_text,
    ),
    Published(
        quantity="lowest test error, and that at the largest product",
        published="40 %, 92 % (Tiny-ImageNet); 9 %, 42 % (CIFAR-10)",
        where="figures 4 and 10",
        how="fig-read",
        ours=lowest_text,
    ),
    Published(
        quantity="Jacobian norm of the average at the smallest and the largest product",
        published="2e4, 5e2 (Tiny-ImageNet); 2e3, 1.1e2 (CIFAR-10)",
        where="figures 4 and 10",
        how="fig-read",
        ours=functools.partial(_ends, quantity="jacobian"),
    ),
    Published(
        quantity="noise scale at the smallest and the largest product",
        published="0 below 3e-5, 0.4 at 2e-4, near 1 above 2e-3",
        where="figure 4",
        how="fig-read",
        ours=functools.partial(_ends, quantity="noise"),
    ),
)
