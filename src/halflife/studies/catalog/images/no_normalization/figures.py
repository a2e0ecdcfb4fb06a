"""Figures and published numbers of the study of nets without normalization."""

from __future__ import annotations

import functools

import numpy as np

from halflife.studies.catalog.images.common import image_run
from halflife.studies.catalog.images.no_normalization.quantities import (
    AVERAGE,
    NUM_PRODUCTS,
    PLAIN,
    RATES,
    SAME_LAM,
    TWIN,
    key_of,
    keys_of,
)
from halflife.studies.evidence.claims import Panel, PointRow, PointsPanel, Published
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = ["PANELS", "PUBLISHED"]


def _against_product(results: Results, metric: str, factor: float = 1.0, *, log: bool = False) -> list[PointRow]:
    """A reading of the average at the drop against lr lam, a line a rate; geometric means for a logarithmic axis."""
    size, rows = results.main_size, []
    for rate in RATES:
        points = []
        for index in range(1, NUM_PRODUCTS + 1):
            key = key_of(PLAIN, rate, index)
            spec = image_run(results, key, size)
            values_S = factor * results.per_seed(key, AVERAGE + metric, spec.drop_epoch, size)
            interval = seed_interval(np.log(values_S)).exp() if log else seed_interval(values_S)
            points.append((f"lr {spec.lr:g}", float(f"{spec.lr * spec.lam:.6g}"), interval))
        rows += [PointRow(name, x, i.estimate, style="line") for name, x, i in points]
        rows += [PointRow(name, x, i.estimate, i.low, i.high) for name, x, i in points]
    return rows


def _scatter(results: Results, metric: str) -> list[PointRow]:
    """The test error of the average against a measure of curvature, a colour a rate."""
    size, rows = results.main_size, []
    for key in keys_of():
        spec = image_run(results, key, size)
        place = float(results.per_seed(key, AVERAGE + metric, spec.drop_epoch, size).mean())
        error = seed_interval(100 * results.per_seed(key, f"{AVERAGE}test/error", spec.drop_epoch, size))
        name = f"lr {spec.lr:g}, {'with' if spec.lam else 'without'} decay"
        rows.append(PointRow(name, place, error.estimate, error.low, error.high))
    return rows


_BARS = "Means over seeds with 95 % intervals."
_CURVES = tuple(key_of(net, rate, index) for net in (PLAIN, TWIN) for rate in RATES for index in (0, SAME_LAM[rate]))

PANELS = (
    Panel(
        metric="train/running_loss",
        title="Training loss with and without decay and normalization",
        y_label="training cross-entropy",
        log=True,
        arms=_CURVES,
        source_figure="figures 11 and 12",
    ),
    Panel(
        metric="test/error",
        title="Test error with and without decay and normalization",
        y_label="test error (%)",
        factor=100,
        arms=_CURVES,
        source_figure="figures 11 and 12",
    ),
    PointsPanel(
        slug="error-product",
        title="Test error of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="test error (%)",
        rows=functools.partial(_against_product, metric="test/error", factor=100.0),
        log_x=True,
        source_figure="figure 4, there with BatchNorm",
        note=_BARS,
    ),
    PointsPanel(
        slug="jacobian-product",
        title="Jacobian norm of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="Jacobian norm",
        rows=functools.partial(_against_product, metric="jacobian_norm", log=True),
        log_x=True,
        log_y=True,
        source_figure="figure 4, there with BatchNorm",
        note=_BARS,
    ),
    PointsPanel(
        slug="hessian-product",
        title="Hessian trace of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="Hessian trace",
        rows=functools.partial(_against_product, metric="hessian_trace"),
        log_x=True,
        note=_BARS,
    ),
    PointsPanel(
        slug="error-hessian",
        title="Test error and Hessian trace of the average, without normalization",
        x_label="Hessian trace",
        y_label="test error (%)",
        rows=functools.partial(_scatter, metric="hessian_trace"),
        source_figure="figure 3 of the first version, there with BatchNorm",
        note=f"One point a setting. {_BARS}",
    ),
    PointsPanel(
        slug="error-jacobian",
        title="Test error and Jacobian norm of the average, without normalization",
        x_label="Jacobian norm",
        y_label="test error (%)",
        rows=functools.partial(_scatter, metric="jacobian_norm"),
        note=f"One point a setting. {_BARS}",
    ),
)


def _final_errors(results: Results, *, rate: str) -> str:
    """Final test errors with decay and without, as text."""
    words = []
    for index in (SAME_LAM[rate], 0):
        errors = seed_interval(100 * results.last(key_of(PLAIN, rate, index), "test/error", results.main_size))
        words.append(f"{errors.estimate:.1f} ± {errors.high - errors.estimate:.1f}")
    return " / ".join(words)


PUBLISHED = tuple(
    Published(
        quantity=f"final test error without normalization, {rate} rate, with decay / without (%)",
        published=numbers,
        where="figure 12 (VGG-16 on CIFAR-10)",
        how="fig-read",
        ours=functools.partial(_final_errors, rate=rate),
    )
    for rate, numbers in (("large", "16.0 / 19.8"), ("small", "31 / 24.2"))
)
