"""The figures of the study of curvature and noise, in the layout of the paper's figures 13 and 16 to 18, and its numbers."""

from __future__ import annotations

import functools

import numpy as np

from halflife.studies.catalog.curvature.alignment.quantities import (
    MODELS,
    PAIRS,
    cell_keys,
    noisy,
    reading,
    spectra_differ_by,
)
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import Cell, HeatPanel, PointRow, PointsPanel, Published
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import published_level

__all__ = ["PANELS", "PUBLISHED"]


def cosine_cells(results: Results, *, late: bool) -> list[Cell]:
    """Mean cosines of all pairs, one row an arm."""
    arms = {name: key for model in MODELS for name, key in ((model, model), (f"{model}, random labels", noisy(model)))}
    return [
        Cell(label, row, value, f"{value:.2f}")
        for row, arm in arms.items()
        for pair, label in PAIRS.items()
        for value in [float(reading(arm, pair, late=late)(results, results.main_size).mean())]
    ]


def spectrum_rows(results: Results) -> list[PointRow]:
    """Eigenvalues at the end against their rank, geometric means over seeds: two lines a cell of the grid."""
    rows = []
    for key in cell_keys(results, results.main_size):
        spec = image_run(results, key, results.main_size)
        for name in ("covariance", "decoupled"):
            spectrum_SL = results.read(key, f"spectrum/{name}", results.main_size)
            # Behind the last eigenvalue that is more than rounding there are zeros.
            means_L = np.exp(np.log(spectrum_SL[:, (spectrum_SL > 0).all(axis=0)]).mean(axis=0))
            rows += [
                PointRow(series=f"{name}, lr {spec.lr:g}, lam {spec.lam:g}", x=rank, y=value, style="line")
                for rank, value in enumerate(means_L.tolist(), start=1)
            ]
    return rows


def distance_cells(results: Results, *, shape: bool) -> list[Cell]:
    """How far the spectra are apart, mean over seeds (geometric of a factor): one cell for each learning rate and lam."""
    cells, size = [], results.main_size
    for key in cell_keys(results, size):
        spec, values_S = image_run(results, key, size), spectra_differ_by(results, size, key=key, shape=shape)
        value = float(np.exp(np.log(values_S).mean()) if shape else values_S.mean())
        cells.append(Cell(spec.lr, spec.lam, value, f"{value:.2f}"))
    return cells


def _cosines(late: bool) -> HeatPanel:
    when = "at the end" if late else "after the first epoch"
    return HeatPanel(
        slug=f"cosines-{'end' if late else 'start'}",
        title=f"Cosines {when}",
        x_label="pair",
        y_label="model",
        value_label="mean cosine",
        cells=functools.partial(cosine_cells, late=late),
        source_figure="" if late else "figure 13",
        note="Mean over random directions v of cos(A v, B v), and over seeds: H the Hessian, G its Gauss-Newton part,"
        " E = H - G, Sigma the covariance of the gradients of single examples. BatchNorm is in evaluation mode.",
    )


def _distance(shape: bool) -> HeatPanel:
    return HeatPanel(
        slug=f"spectra-{'shape' if shape else 'sum'}",
        title="Spectra with and without decoupling: " + ("mean factor" if shape else "relative distance"),
        x_label="learning rate",
        y_label="lam",
        value_label="mean factor" if shape else "sum |difference| / sum",
        cells=functools.partial(distance_cells, shape=shape),
        source_figure="figures 16 to 18",
        note="Of the largest eigenvalues at the end, sorted, "
        + ("the geometric mean of the ratios, each taken as at least 1." if shape else "mean over seeds."),
    )


PANELS = (
    _cosines(late=False),
    _cosines(late=True),
    PointsPanel(
        slug="spectra",
        title="Spectra of the noise with and without decoupling",
        x_label="rank of the eigenvalue",
        y_label="eigenvalue",
        rows=spectrum_rows,
        log_x=True,
        log_y=True,
        source_figure="figures 16 to 18",
        note="The covariance of the gradients of single examples at the end, and what the decoupling approximation makes of it:"
        " residuals of one size, without direction. Geometric means over seeds.",
    ),
    _distance(shape=False),
    _distance(shape=True),
)


PAPER = {
    "hessian-covariance": "0.84",
    "gauss-newton-covariance": "0.97",
    "hessian-gauss-newton": "0.86",
    "residual-covariance": "0.024",
    "gauss-newton-residual": "0.021",
    "hessian-residual": "0.51",
}

PUBLISHED = tuple(
    Published(
        quantity=f"{PAIRS[pair]}, scale-invariant ResNet after one epoch",
        published=number,
        where="figure 13",
        how="text",
        ours=published_level(reading(MODELS[0], pair), form=".3f"),
    )
    for pair, number in PAPER.items()
)
