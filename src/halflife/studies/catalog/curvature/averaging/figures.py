"""The figures of the averaging study, in the layout of the paper's figures 5 and 14, and the paper's numbers beside ours."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.averaging.quantities import (
    AVERAGE,
    FINE_TUNED,
    SLOW,
    average_of,
    fine_tuned_along,
    fine_tuned_key,
    late_values,
    rate_key,
    rate_keys,
    variation,
)
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import PointRow, PointsPanel, Published
from halflife.studies.evidence.optimum import PAIRED_NOTE, paired_rows
from halflife.studies.evidence.results import Results

__all__ = ["PANELS", "PUBLISHED", "norm_rows"]


def _name(results: Results, key: str) -> str:
    return f"lr {image_run(results, key, results.main_size).lr:g}"


def loss_rows(results: Results) -> list[PointRow]:
    """The training loss of the noisy runs, mean over seeds.

    Returns:
        Lines.
    """
    rows = []
    for key in rate_keys(results, results.main_size):
        series = results.series(key, "train/running_loss", results.main_size)
        means_E = np.mean([losses for _, losses in series], axis=0)
        rows += [
            PointRow(series=_name(results, key), x=x, y=y, style="line")
            for x, y in zip(series[0][0].tolist(), means_E.tolist(), strict=True)
        ]
    return rows


def average_rows(results: Results, *, metric: str, factor: float = 1.0) -> list[PointRow]:
    """A quantity of the average along the runs.

    Args:
        results: What the store holds.
        metric: The reading, without the average's prefix.
        factor: It is multiplied by this.

    Returns:
        Lines and points.
    """
    size, rows = results.main_size, []
    for key in rate_keys(results, size):
        series = results.series(key, f"{average_of(results, key, size)}{metric}", size)
        values_ES = factor * np.array([values for _, values in series]).T
        rows += paired_rows(_name(results, key), series[0][0].tolist(), values_ES)
    return rows


def fine_tuned_rows(results: Results, *, metric: str, factor: float = 1.0) -> list[PointRow]:
    """A quantity of the fine-tuned weights, at the epoch of the run that they start from.

    Args:
        results: What the store holds.
        metric: The reading.
        factor: It is multiplied by this.

    Returns:
        Lines and points.
    """
    size, rows = results.main_size, []
    values_RPS = factor * fine_tuned_along(results, metric, size)
    for key, values_PS in zip(rate_keys(results, size), values_RPS, strict=True):
        epochs = [float(epoch) for epoch in image_run(results, key, size).keep_at]
        rows += paired_rows(_name(results, key), epochs, values_PS)
    return rows


def norm_rows(results: Results) -> list[PointRow]:
    """The norms at the end against the learning rate.

    Returns:
        Lines and points of the fine-tuned weights, the weights and the average.
    """
    size, keys = results.main_size, rate_keys(results, results.main_size)
    lrs = [image_run(results, key, size).lr for key in keys]
    last = len(image_run(results, keys[0], size).keep_at) - 1
    arms = {
        "fine-tuned": [(fine_tuned_key(rate, last), "weight_norm") for rate in range(len(keys))],
        "SGD": [(key, "weight_norm") for key in keys],
        "average": [(key, f"{average_of(results, key, size)}weight_norm") for key in keys],
    }
    rows = []
    for name, read in arms.items():
        rows += paired_rows(name, lrs, np.array([results.last(key, metric, size) for key, metric in read]))
    return rows


def ensemble_rows(results: Results) -> list[PointRow]:
    """The test error of the average and of the ensemble at the end, against lr * lam.

    Returns:
        Lines and points, the slow arm apart on the left.
    """
    size = results.main_size
    keys = [SLOW, *rate_keys(results, size)]
    specs = [image_run(results, key, size) for key in keys]
    metrics = {
        "average": [f"{average_of(results, key, size)}test/error" for key in keys],
        "ensemble": ["ensemble/test/error"] * len(keys),
        "SGD": ["test/error"] * len(keys),
    }
    rows = []
    for name, read in metrics.items():
        errors_KS = 100 * np.array([results.last(key, m, size) for key, m in zip(keys, read, strict=True)])
        rows += paired_rows(name, [spec.lr * spec.lam for spec in specs], errors_KS, apart=1)
    return rows


AT_ITS_EPOCH = (
    "Each point stands at the epoch of the noisy run that fine-tuning starts from, with a tiny learning rate and"
)
AT_ITS_EPOCH += f" without decay. {PAIRED_NOTE}"
OF_AVERAGE = f"Of the moving average of the weights, BatchNorm statistics computed anew. {PAIRED_NOTE}"


def _panel(of: str, metric: str, y_label: str, title: str, figure: str, factor: float = 1.0) -> PointsPanel:
    average = of == "average"
    return PointsPanel(
        slug=f"{metric.replace('/', '-').replace('_', '-')}-{of}",
        title=title,
        x_label="epoch",
        y_label=y_label,
        rows=functools.partial(average_rows if average else fine_tuned_rows, metric=metric, factor=factor),
        source_figure=figure,
        note=OF_AVERAGE if average else AT_ITS_EPOCH,
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
    _panel("average", "test/error", "test error (%)", "Test error of the average", "figure 5", 100),
    _panel("fine-tuned", "test/error", "test error (%)", "Test error after fine-tuning", "figure 5", 100),
    _panel("average", "jacobian_norm", "||J||", "Jacobian norm of the average", "figures 5 and 14"),
    _panel("fine-tuned", "jacobian_norm", "||J||", "Jacobian norm after fine-tuning", "figures 5 and 14"),
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
    _panel("average", "hessian_trace", "Tr(H)", "Trace of the Hessian of the average", "figure 14"),
    _panel("fine-tuned", "hessian_trace", "Tr(H)", "Trace of the Hessian after fine-tuning", "figure 14"),
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
    lrs = ", ".join(
        f"{image_run(results, key, results.main_size).lr:g}" for key in rate_keys(results, results.main_size)
    )
    return f"{', '.join(f'{value:{form}}' for value in values_RS.mean(axis=1))} (lr {lrs})"


def late_text(results: Results, *, of: str, metric: str) -> str:
    """A quantity at the learning rates, mean over the late epochs and seeds.

    Args:
        results: What the store holds.
        of: `AVERAGE` or `FINE_TUNED`.
        metric: The reading.

    Returns:
        The numbers as text.
    """
    return _text(results, late_values(results, of, metric, results.main_size).mean(axis=1), ".3g")


def error_text(results: Results, *, of: str) -> str:
    """The test errors at the end.

    Args:
        results: What the store holds.
        of: `AVERAGE` or `FINE_TUNED`.

    Returns:
        The numbers as text.
    """
    size = results.main_size
    if of == AVERAGE:
        keys = rate_keys(results, size)
        values_RS = np.array([results.last(key, f"{average_of(results, key, size)}test/error", size) for key in keys])
    else:
        values_RS = fine_tuned_along(results, "test/error", size)[:, -1]
    return _text(results, 100 * values_RS, ".1f")


def norm_text(results: Results) -> str:
    """The norms at the smallest and the largest learning rate."""
    points = [row for row in norm_rows(results) if row.style == "point"]
    names = ("SGD", "average", "fine-tuned")
    heights = {name: [row.y for row in points if row.series == name] for name in names}
    return "; ".join(f"{name} {min(values):.2f} to {max(values):.2f}" for name, values in heights.items())


def loss_text(results: Results) -> str:
    """The training loss in the last quarter, against the learning rate."""
    levels = []
    for key in rate_keys(results, results.main_size):
        end = image_run(results, key, results.main_size).num_epochs
        series = results.series(key, "train/running_loss", results.main_size)
        levels.append([losses[epochs > 0.75 * end].mean() for epochs, losses in series])
    return _text(results, np.array(levels), ".2f")


def ensemble_text(results: Results, *, slow: bool) -> str:
    """Test errors of ensemble and average, and how far they are apart.

    Args:
        results: What the store holds.
        slow: Of the run whose decay is slow, else of the largest learning rate.

    Returns:
        The numbers as text.
    """
    size = results.main_size
    key = SLOW if slow else rate_key(len(rate_keys(results, size)) - 1)
    spec = image_run(results, key, size)
    names = ("ensemble/", average_of(results, key, size))
    errors = [100 * results.last(key, f"{name}test/error", size).mean() for name in names]
    return (
        f"{errors[0]:.1f} / {errors[1]:.1f} %, {variation(results, key, size).mean():.3f} (lr {spec.lr:g}, lam"
        f" {spec.lam:g})"
    )


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
