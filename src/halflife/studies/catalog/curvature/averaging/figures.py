"""The figures of the averaging study, in the layout of the paper's figures 5 and 14, and the paper's numbers beside ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.averaging.quantities import (
    AVERAGE,
    ENSEMBLE,
    FINE_TUNED,
    RAW,
    SLOW,
    AtEnd,
    fine_tuned_key,
    late_losses,
    late_values,
    prefix_of,
    total_variation,
    value,
)
from halflife.studies.catalog.curvature.common import rate_keys, rate_of
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import PointsPanel, Published
from halflife.studies.evidence.optimum import PAIRED_NOTE
from halflife.studies.evidence.quantities import Measure, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, along

__all__ = ["PANELS", "PUBLISHED"]

Lines = dict[str, list[tuple[float, Measure]]]


def _by_rate(results: Results, size: int) -> dict[str, str]:
    """The arms of the grid by what the legend calls them."""
    return {f"lr {rate_of(results, key, size):g}": key for key in rate_keys(results, size)}


def curves(results: Results, size: int, *, of: str, metric: str) -> dict[str, tuple[str, str]]:
    """A reading of the weights or of their average along each run."""
    return {
        name: (key, f"{prefix_of(results, key, size, of)}{metric}") for name, key in _by_rate(results, size).items()
    }


def fine_tuned_lines(results: Results, size: int, *, metric: str, factor: float) -> Lines:
    """A reading of what is fine-tuned from each run, at the epochs that it keeps."""
    return {
        name: [
            (epoch, factor * Reading(fine_tuned_key(key, place), metric))
            for place, epoch in enumerate(image_run(results, key, size).keep_at)
        ]
        for name, key in _by_rate(results, size).items()
    }


def norm_lines(results: Results, size: int) -> Lines:
    """The norms at the end against the learning rate."""
    keys, names = rate_keys(results, size), {"fine-tuned": FINE_TUNED, "SGD": RAW, "average": AVERAGE}
    return {
        name: [(rate_of(results, key, size), AtEnd(weights, "weight_norm", (key,))) for key in keys]
        for name, weights in names.items()
    }


def ensemble_lines(results: Results, size: int) -> Lines:
    """The test error of the average and of the ensemble at the end, against lr * lam; the slow arm first."""
    specs = {key: image_run(results, key, size) for key in (SLOW, *rate_keys(results, size))}
    return {
        name: [(spec.lr * spec.lam, 100 * AtEnd(weights, "test/error", (key,))) for key, spec in specs.items()]
        for name, weights in {"average": AVERAGE, "ensemble": ENSEMBLE, "SGD": RAW}.items()
    }


AT_ITS_EPOCH = (
    "Each point stands at the epoch of the noisy run that fine-tuning starts from, with a tiny learning rate and without"
    f" decay. {PAIRED_NOTE}"
)
OF_AVERAGE = f"Of the moving average of the weights, BatchNorm statistics computed anew. {PAIRED_NOTE}"


def _panel(of: str, metric: str, y_label: str, title: str, figure: str, factor: float = 1.0) -> PointsPanel:
    if of == AVERAGE:
        rows = along(functools.partial(curves, of=of, metric=metric), factor=factor, bars="paired")
    else:
        rows = against(functools.partial(fine_tuned_lines, metric=metric, factor=factor))
    return PointsPanel(
        slug=f"{metric.replace('/', '-').replace('_', '-')}-{of.removesuffix(' weights')}",
        title=title,
        x_label="epoch",
        y_label=y_label,
        rows=rows,
        source_figure=figure,
        note=OF_AVERAGE if of == AVERAGE else AT_ITS_EPOCH,
    )


PANELS = (
    PointsPanel(
        slug="train-loss",
        title="Training loss of the noisy runs",
        x_label="epoch",
        y_label="training cross-entropy",
        rows=along(functools.partial(curves, of=RAW, metric="train/running_loss")),
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
        rows=against(norm_lines),
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
        rows=against(ensemble_lines, apart=1),
        log_x=True,
        source_figure="tables 2 and 3",
        note="The points apart on the left belong to a run whose decay has a timescale 1 / (lr lam) as long as the run."
        f" {PAIRED_NOTE}",
    ),
)


def _at_end(results: Results, of: str, metric: str) -> NDArray[np.float64]:
    """A reading at the end at each learning rate, (R, S)."""
    size = results.main_size
    return np.array([value(results, size, key, of, metric) for key in rate_keys(results, size)])


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
    return _text(results, 100 * _at_end(results, of, "test/error"), ".1f")


def norm_text(results: Results) -> str:
    """The norms at the smallest and the largest learning rate."""
    words = []
    for name, weights in (("SGD", RAW), ("average", AVERAGE), ("fine-tuned", FINE_TUNED)):
        means_R = _at_end(results, weights, "weight_norm").mean(axis=1)
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

FIRST_VERSION = "figure 3 of the first version"
_ROWS: tuple[tuple[str, str, str, Literal["text", "fig-read", "notebook"], Callable[[Results], str]], ...] = (
    ("training loss on the plateau", "from 0.5 to 1.6 (lr 0.05 to 0.25)", "figure 5", "fig-read", loss_text),
    ("test error of the average", f"9, 10, 11.5, 14.5, 18 % ({PAPER_RATES})", "figure 5", "fig-read",
     functools.partial(error_text, of=AVERAGE)),
    ("test error after fine-tuning (lam 0.015)", "10.5, 11.6, 14.8 % (lr 0.1, 0.15, 0.2)", FIRST_VERSION, "notebook",
     functools.partial(error_text, of=FINE_TUNED)),
    ("||J|| of the average", "from 150 down to 110 (lr 0.05 to 0.25)", "figure 5", "fig-read",
     functools.partial(late_text, of=AVERAGE, metric="jacobian_norm")),
    ("||J|| after fine-tuning", "from 200 up to 900 (lr 0.05 to 0.25)", "figure 5", "fig-read",
     functools.partial(late_text, of=FINE_TUNED, metric="jacobian_norm")),
    ("Tr(H) of the average", "1000 to 1700, in no order (lr 0.05 to 0.2)", "figure 14", "fig-read",
     functools.partial(late_text, of=AVERAGE, metric="hessian_trace")),
    ("Tr(H) after fine-tuning", "from 160 up to 1600 (lr 0.05 to 0.2)", "figure 14", "fig-read",
     functools.partial(late_text, of=FINE_TUNED, metric="hessian_trace")),
    ("Tr(H) after fine-tuning (lam 0.015)", "140, 300, 750 (lr 0.1, 0.15, 0.2)", FIRST_VERSION, "notebook",
     functools.partial(late_text, of=FINE_TUNED, metric="hessian_trace")),
    ("norms", "SGD 10.3 to 11; average 9.3 to 10.2; fine-tuned 11.5 to 11.7", "figure 5", "fig-read", norm_text),
    ("test error of ensemble / average, and total variation", "13 / 13 %, 0.13 (lr 0.15, lam 0.01)", "tables 2 and 3",
     "text", functools.partial(ensemble_text, slow=False)),
    ("the same where decay is slow", "13 / 19 %, 0.10 (lr 0.025, lam 0.001)", "tables 2 and 3", "text",
     functools.partial(ensemble_text, slow=True)),
)  # fmt: skip
PUBLISHED = tuple(
    Published(quantity=quantity, published=published, where=where, how=how, ours=ours)
    for quantity, published, where, how, ours in _ROWS
)
