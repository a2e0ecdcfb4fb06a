"""What the study `eta-lambda` draws, in the layout of the paper's figures 3, 4 and 10, and the paper's numbers beside ours."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from halflife.studies.catalog.images.eta_lambda.quantities import (
    FORGOTTEN,
    KINDS,
    GridCell,
    best_product,
    cells_of,
    diagonals,
    no_optimum,
    tau_in_epochs,
)
from halflife.studies.evidence.claims import HeatPanel, Panel, PointRow, PointsPanel, Published
from halflife.studies.evidence.quantities import Quantity, mean_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import Lines, Values, against, grid
from halflife.studies.evidence.stats import CONFIDENCE

__all__ = ["PANELS", "PUBLISHED"]


def over_grid(results: Results, size: int, *, kind: str) -> list[tuple[float, float, Values]]:
    """A quantity at each learning rate and lam."""
    return [(cell.lr, cell.lam, KINDS[kind].of(cell)) for cell in cells_of(results, size)]


def decayed(results: Results, size: int) -> list[GridCell]:
    """The cells with decay."""
    return [cell for cell in cells_of(results, size) if cell.lam > 0]


def points_by_rate(results: Results, size: int, *, kind: str) -> Lines:
    """A quantity against lr * lam, a colour a learning rate."""
    lines: dict[str, list[tuple[float, Values]]] = {}
    for cell in decayed(results, size):
        lines.setdefault(f"lr {cell.lr:g}", []).append((cell.product, KINDS[kind].of(cell)))
    return lines


def product_rows(results: Results, *, kind: str) -> list[PointRow]:
    """A quantity against lr * lam: a point a cell, coloured by lr, and a line through the means at equal product."""
    points = against(functools.partial(points_by_rate, kind=kind), bars="range", line=False)(results)
    means = means_by_product(results, kind)
    return points + [PointRow("mean at equal product", product, mean, style="line") for product, mean in means]


def mean_over(results: Results, cells: Sequence[GridCell], kind: str) -> float:
    """The mean of a quantity over cells and seeds."""
    return float(mean_of([KINDS[kind].of(cell) for cell in cells])(results, results.main_size).mean())


def means_by_product(results: Results, kind: str) -> list[tuple[float, float]]:
    """The products above 0, rising, each with the mean of a quantity over its cells and seeds."""
    found = diagonals(decayed(results, results.main_size))
    return [(product, mean_over(results, cells, kind)) for product, cells in found.items()]


def by_rate(results: Results, size: int, *, kind: str) -> Lines:
    """A quantity against lr, a line a lam."""
    lines: dict[str, list[tuple[float, Values]]] = {}
    for cell in sorted(cells_of(results, size), key=lambda cell: (cell.lam, cell.lr)):
        lines.setdefault(f"lam {cell.lam:g}", []).append((cell.lr, KINDS[kind].of(cell)))
    return lines


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
            slug=f"grid-{kind}",
            title=f"{title} over the grid",
            x_label="learning rate",
            y_label="lam",
            value_label=label,
            cells=grid(functools.partial(over_grid, kind=kind)),
            log_value=log,
            source_figure="figures 3 and 10",
            note="Means over seeds at the end of the runs.",
        )
        for kind, (title, label, log) in _LABELS.items()
    ),
    *(
        PointsPanel(
            slug=f"product-{kind}",
            title=f"{title} against lr * lam",
            x_label="lr * lam",
            y_label=label,
            rows=functools.partial(product_rows, kind=kind),
            log_x=True,
            log_y=log,
            source_figure="figures 4 and 10",
            note=SPREAD_NOTE,
        )
        for kind, (title, label, log) in _LABELS.items()
    ),
    PointsPanel(
        slug="jacobian-by-rate",
        title="Jacobian norm of the average against the learning rate",
        x_label="learning rate",
        y_label="norm of the Jacobian",
        rows=against(functools.partial(by_rate, kind="jacobian"), bars="none"),
        log_x=True,
        log_y=True,
        source_figure="figure 3",
        note="Lines join the means over seeds at one lam.",
    ),
)


def ends_text(results: Results, *, kind: str) -> str:
    """The quantity at the smallest and the largest product above 0."""
    (low, first), *_, (high, last) = means_by_product(results, kind)
    return f"{first:.3g} at {low:g}, {last:.3g} at {high:g}"


def product_text(results: Results) -> str:
    """Our best product."""
    if problem := no_optimum(results, results.main_size):
        return f"none: {problem}"
    found = best_product(results, results.main_size).lam()
    return f"{found.estimate:.2g} [{found.low:.2g}, {found.high:.2g}]"


def epochs_text(results: Results) -> str:
    """Our best tau in epochs."""
    if problem := no_optimum(results, results.main_size):
        return f"none: {problem}"
    tau = Quantity(name="tau", values=tau_in_epochs, log=True).interval(results, results.main_size, CONFIDENCE)
    epochs = cells_of(results, results.main_size)[0].num_epochs
    return f"{tau.estimate:.1f} [{tau.low:.1f}, {tau.high:.1f}] of {epochs}"


def lowest_text(results: Results) -> str:
    """Our lowest mean error at equal product, and that at the largest product."""
    means = means_by_product(results, "error")
    (best, lowest), (last, largest) = min(means, key=lambda one: one[1]), means[-1]
    return f"{lowest:.1f} % at {best:g}, {largest:.1f} % at {last:g}"


PUBLISHED = tuple(
    Published(
        quantity=quantity,
        published=number,
        where=where,
        how="text" if where.startswith("section") else "fig-read",
        ours=ours,
    )
    for quantity, number, where, ours in (
        ("product lr * lam of the lowest test error (Tiny-ImageNet)", "5e-4 to 7e-4", "figure 4", product_text),
        (
            "the same, as its text has it (the largest product of its grid, where its figure shows an error of 92 %)",
            "0.005",
            "section 2, on figure 4",
            product_text,
        ),
        ("the same (CIFAR-10)", "4e-4 to 1.2e-3, broad", "figure 10", product_text),
        (
            "that product as tau in epochs of the run",
            "1.8 to 2.6 of 200 (Tiny-ImageNet), 2.1 to 6.4 of 100 (CIFAR-10)",
            "figures 4 and 10, steps of a batch of 128",
            epochs_text,
        ),
        (
            "lowest test error, and that at the largest product",
            "40 %, 92 % (Tiny-ImageNet); 9 %, 42 % (CIFAR-10)",
            "figures 4 and 10",
            lowest_text,
        ),
        (
            "Jacobian norm of the average at the smallest and the largest product",
            "2e4, 5e2 (Tiny-ImageNet); 2e3, 1.1e2 (CIFAR-10)",
            "figures 4 and 10",
            functools.partial(ends_text, kind="jacobian"),
        ),
        (
            "noise scale at the smallest and the largest product",
            "0 below 3e-5, 0.4 at 2e-4, near 1 above 2e-3",
            "figure 4",
            functools.partial(ends_text, kind="noise"),
        ),
    )
)
