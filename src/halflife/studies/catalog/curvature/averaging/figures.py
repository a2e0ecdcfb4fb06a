"""The figures of the averaging study, in the layout of the paper's figures 5 and 14, and the paper's numbers beside ours."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.averaging.quantities import (
    AVERAGE,
    ENSEMBLE,
    FINE_TUNED,
    RAW,
    SLOW,
    along_runs,
    late_losses,
    late_values,
    prefix_of,
    total_variation,
    value,
)
from halflife.studies.catalog.curvature.common import rate_keys, rate_of
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import PointRow, PointsPanel, Published
from halflife.studies.evidence.optimum import PAIRED_NOTE, paired_rows
from halflife.studies.evidence.results import Results

__all__ = ["PANELS", "PUBLISHED"]


def _at_end(results: Results, keys: list[str], weights: str, metric: str) -> NDArray[np.float64]:
    """A reading at the end of each of some arms, (R, S)."""
    return np.array([value(results, results.main_size, key, weights, metric) for key in keys])


def loss_rows(results: Results) -> list[PointRow]:
    """The training loss of the noisy runs, mean over seeds."""
    rows, size = [], results.main_size
    for key in rate_keys(results, size):
        series = results.series(key, "train/running_loss", size)
        means_E = np.mean([losses for _, losses in series], axis=0)
        rows += [
            PointRow(series=f"lr {rate_of(results, key, size):g}", x=x, y=y, style="line")
            for x, y in zip(series[0][0].tolist(), means_E.tolist(), strict=True)
        ]
    return rows


def along_rows(results: Results, *, of: str, metric: str, factor: float = 1.0) -> list[PointRow]:
    """A quantity of the average along the runs, or of what is fine-tuned from the epochs that they keep."""
    size, rows = results.main_size, []
    keys = rate_keys(results, size)
    tuned_RPS = along_runs(results, metric, size) if of == FINE_TUNED else None
    for rate, key in enumerate(keys):
        if tuned_RPS is not None:
            epochs, values_ES = [float(epoch) for epoch in image_run(results, key, size).keep_at], tuned_RPS[rate]
        else:
            series = results.series(key, f"{prefix_of(results, key, size, of)}{metric}", size)
            epochs, values_ES = series[0][0].tolist(), np.array([values for _, values in series]).T
        rows += paired_rows(f"lr {rate_of(results, key, size):g}", epochs, factor * values_ES)
    return rows


def norm_rows(results: Results) -> list[PointRow]:
    """The norms at the end against the learning rate."""
    keys = rate_keys(results, results.main_size)
    lrs = [rate_of(results, key, results.main_size) for key in keys]
    names = {"fine-tuned": FINE_TUNED, "SGD": RAW, "average": AVERAGE}
    return [
        row
        for name, weights in names.items()
        for row in paired_rows(name, lrs, _at_end(results, keys, weights, "weight_norm"))
    ]


def ensemble_rows(results: Results) -> list[PointRow]:
    """The test error of the average and of the ensemble at the end, against lr * lam; the slow arm apart on the left."""
    keys = [SLOW, *rate_keys(results, results.main_size)]
    products = [spec.lr * spec.lam for spec in (image_run(results, key, results.main_size) for key in keys)]
    names = {"average": AVERAGE, "ensemble": ENSEMBLE, "SGD": RAW}
    return [
        row
        for name, weights in names.items()
        for row in paired_rows(name, products, 100 * _at_end(results, keys, weights, "test/error"), apart=1)
    ]


AT_ITS_EPOCH = (
    "Each point stands at the epoch of the noisy run that fine-tuning starts from, with a tiny learning rate and without"
    f" decay. {PAIRED_NOTE}"
)
OF_AVERAGE = f"Of the moving average of the weights, BatchNorm statistics computed anew. {PAIRED_NOTE}"


def _panel(of: str, metric: str, y_label: str, title: str, figure: str, factor: float = 1.0) -> PointsPanel:
    return PointsPanel(
        slug=f"{metric.replace('/', '-').replace('_', '-')}-{of.removesuffix(' weights')}",
        title=title,
        x_label="epoch",
        y_label=y_label,
        rows=functools.partial(along_rows, of=of, metric=metric, factor=factor),
        source_figure=figure,
        note=OF_AVERAGE if of == AVERAGE else AT_ITS_EPOCH,
    )


PANELS = (
    PointsPanel(
        slug="train-loss",
        title="Training loss of the noisy runs",
        x_label="epoch",
        y_label="training cross-entropy",
        rows=loss_rows,
        log_y=True,
        source_figure="figure 5",
        note="Mean over seeds of an epoch's mean loss.",
    ),
    _panel(AVERAGE, "test/error", "test error (%)", "Test error of the average", "figure 5", 100),
    _panel(FINE_TUNED, "test/error", "test error (%)", "Test error after fine-tuning", "figure 5", 100),
    _panel(AVERAGE, "jacobian_norm", "||J||", "Jacobian norm of the average", "figures 5 and 14"),
    _panel(FINE_TUNED, "jacobian_norm", "||J||", "Jacobian norm after fine-tuning", "figures 5 and 14"),
    PointsPanel(
        slug="norms",
        title="Norms at the end",
        x_label="learning rate",
        y_label="norm of the weights",
        rows=norm_rows,
        log_x=True,
        source_figure="figure 5",
        note=PAIRED_NOTE,
    ),
    _panel(AVERAGE, "hessian_trace", "Tr(H)", "Trace of the Hessian of the average", "figure 14"),
    _panel(FINE_TUNED, "hessian_trace", "Tr(H)", "Trace of the Hessian after fine-tuning", "figure 14"),
    PointsPanel(
        slug="ensemble",
        title="Ensemble of snapshots and average",
        x_label="lr * lam",
        y_label="test error at the end (%)",
        rows=ensemble_rows,
        log_x=True,
        source_figure="tables 2 and 3",
        note="The points apart on the left belong to a run whose decay has a timescale 1 / (lr lam) as long as the run."
        f" {PAIRED_NOTE}",
    ),
)


def _text(results: Results, values_RS: NDArray[np.float64], form: str) -> str:
    """Means over seeds, with the learning rates that they belong to."""
    size = results.main_size
    lrs = ", ".join(f"{rate_of(results, key, size):g}" for key in rate_keys(results, size))
    return f"{', '.join(f'{mean:{form}}' for mean in values_RS.mean(axis=1))} (lr {lrs})"


def late_text(results: Results, *, of: str, metric: str) -> str:
    """A quantity at the learning rates, geometric mean over the late epochs as in the rules, mean over seeds."""
    values_RPS = late_values(results, results.main_size, weights=of, metric=metric)
    positive = (values_RPS > 0).all()
    return _text(results, np.exp(np.log(values_RPS).mean(axis=1)), ".3g") if positive else "not above 0 in every run"


def error_text(results: Results, *, of: str) -> str:
    """The test errors at the end."""
    errors_RS = _at_end(results, rate_keys(results, results.main_size), of, "test/error")
    return _text(results, 100 * errors_RS, ".1f")


def norm_text(results: Results) -> str:
    """The norms at the smallest and the largest learning rate."""
    keys, words = rate_keys(results, results.main_size), []
    for name, weights in (("SGD", RAW), ("average", AVERAGE), ("fine-tuned", FINE_TUNED)):
        means_R = _at_end(results, keys, weights, "weight_norm").mean(axis=1)
        words.append(f"{name} {means_R.min():.2f} to {means_R.max():.2f}")
    return "; ".join(words)


def loss_text(results: Results) -> str:
    """The training loss in the last quarter, against the learning rate."""
    return _text(results, late_losses(results, results.main_size), ".2f")


def ensemble_text(results: Results, *, slow: bool) -> str:
    """Test errors of ensemble and average, and how far they are apart, where decay is slow or at the largest learning rate."""
    size = results.main_size
    key = SLOW if slow else rate_keys(results, size)[-1]
    spec = image_run(results, key, size)
    errors = [100 * value(results, size, key, of, "test/error").mean() for of in (ENSEMBLE, AVERAGE)]
    apart = total_variation(results, size, key=key).mean()
    return f"{errors[0]:.1f} / {errors[1]:.1f} %, {apart:.3f} (lr {spec.lr:g}, lam {spec.lam:g})"


PAPER_RATES = "lr 0.05, 0.1, 0.15, 0.2, 0.25"

PUBLISHED = (
    Published(
        quantity="training loss on the plateau",
        published="from 0.5 to 1.6 (lr 0.05 to 0.25)",
        where="figure 5",
        how="fig-read",
        ours=loss_text,
    ),
    Published(
        quantity="test error of the average",
        published=f"9, 10, 11.5, 14.5, 18 % ({PAPER_RATES})",
        where="figure 5",
        how="fig-read",
        ours=functools.partial(error_text, of=AVERAGE),
    ),
    Published(
        quantity="test error after fine-tuning (lam 0.015)",
        published="10.5, 11.6, 14.8 % (lr 0.1, 0.15, 0.2)",
        where="figure 3 of the first version",
        how="notebook",
        ours=functools.partial(error_text, of=FINE_TUNED),
    ),
    Published(
        quantity="||J|| of the average",
        published="from 150 down to 110 (lr 0.05 to 0.25)",
        where="figure 5",
        how="fig-read",
        ours=functools.partial(late_text, of=AVERAGE, metric="jacobian_norm"),
    ),
    Published(
        quantity="||J|| after fine-tuning",
        published="from 200 up to 900 (lr 0.05 to 0.25)",
        where="figure 5",
        how="fig-read",
        ours=functools.partial(late_text, of=FINE_TUNED, metric="jacobian_norm"),
    ),
    Published(
        quantity="Tr(H) of the average",
        published="1000 to 1700, in no order (lr 0.05 to 0.2)",
        where="figure 14",
        how="fig-read",
        ours=functools.partial(late_text, of=AVERAGE, metric="hessian_trace"),
    ),
    Published(
        quantity="Tr(H) after fine-tuning",
        published="from 160 up to 1600 (lr 0.05 to 0.2)",
        where="figure 14",
        how="fig-read",
        ours=functools.partial(late_text, of=FINE_TUNED, metric="hessian_trace"),
    ),
    Published(
        quantity="Tr(H) after fine-tuning (lam 0.015)",
        published="140, 300, 750 (lr 0.1, 0.15, 0.2)",
        where="figure 3 of the first version",
        how="notebook",
        ours=functools.partial(late_text, of=FINE_TUNED, metric="hessian_trace"),
    ),
    Published(
        quantity="norms",
        published="SGD 10.3 to 11; average 9.3 to 10.2; fine-tuned 11.5 to 11.7",
        where="figure 5",
        how="fig-read",
        ours=norm_text,
    ),
    Published(
        quantity="test error of ensemble / average, and total variation",
        published="13 / 13 %, 0.13 (lr 0.15, lam 0.01)",
        where="tables 2 and 3",
        how="text",
        ours=functools.partial(ensemble_text, slow=False),
    ),
    Published(
        quantity="the same where decay is slow",
        published="13 / 19 %, 0.10 (lr 0.025, lam 0.001)",
        where="tables 2 and 3",
        how="text",
        ours=functools.partial(ensemble_text, slow=True),
    ),
)
