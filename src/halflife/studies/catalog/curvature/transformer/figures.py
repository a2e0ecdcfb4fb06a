"""Figures of the study of curvature in transformers."""

from __future__ import annotations

import functools
from typing import Any

from halflife.studies.catalog.curvature.transformer.quantities import LAMS, NAMES, RATES, branch_of, key_of
from halflife.studies.evidence.claims import Panel, PointRow, PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = ["PANELS"]


def scatter_rows(results: Results, *, metric: str) -> list[PointRow]:
    """The validation loss against a measure of curvature after the branch, one point a setting, means over seeds."""
    size, rows = results.main_size, []
    labels = {arm["key"]: arm["label"] for arm in results.arms if arm["size"] == size}
    for rate in RATES:
        for lam in LAMS:
            loss = seed_interval(results.read(branch_of(rate, lam), "val/loss", size))
            place = float(results.read(branch_of(rate, lam), metric, size).mean())
            rows.append(PointRow(labels[key_of(rate, lam)], place, loss.estimate, loss.low, loss.high))
    return rows


def _scatter(metric: str, source_figure: str) -> PointsPanel:
    return PointsPanel(
        slug=f"scatter-{metric.partition('_')[0]}",
        title=f"Validation loss and {NAMES[metric]} after the branch",
        x_label=NAMES[metric],
        y_label="validation loss (nats)",
        rows=functools.partial(scatter_rows, metric=metric),
        source_figure=source_figure,
        note="One point a setting: means over seeds, bars are 95 % intervals over seeds.",
    )


_RUNS = tuple(key_of(rate, lam) for rate in RATES for lam in LAMS)
_BRANCHES = tuple(branch_of(rate, lam) for rate in RATES for lam in LAMS)


def _curve(metric: str, title: str, y_label: str, *, log: bool = False, **more: Any) -> Panel:
    return Panel(metric=metric, title=title, y_label=y_label, log=log, x="step", arms=_RUNS, **more)


PANELS = (
    _curve(
        "train/loss",
        "Training loss at a constant rate",
        "training loss (nats)",
        start=0.05,
        slug="curve-train",
        source_figure="figure 2b, there for image classifiers",
    ),
    _curve(
        "val/loss",
        "Validation loss at a constant rate",
        "validation loss (nats)",
        start=0.05,
        slug="curve-val",
        source_figure="figure 2a, there for image classifiers",
    ),
    _scatter("hessian_trace", ""),
    _scatter("jacobian_norm", "figures 3 and 4, there for image classifiers"),
    _curve("hessian_trace", "Hessian trace of the weights", "Hessian trace", slug="curve-hessian"),
    _curve(
        "ema-0.99/hessian_trace",
        "Hessian trace of the average (EMA 0.99)",
        "Hessian trace",
        slug="curve-hessian-average",
        source_figure="figure 14, there for image classifiers",
    ),
    _curve("jacobian_norm", "Jacobian norm of the weights", "Jacobian norm", slug="curve-jacobian", log=True),
    _curve(
        "ema-0.99/jacobian_norm",
        "Jacobian norm of the average (EMA 0.99)",
        "Jacobian norm",
        slug="curve-jacobian-average",
        log=True,
        source_figure="figure 5, there for image classifiers",
    ),
    _curve("weight_norm", "Norm of the weights", "norm of all weights", slug="curve-norm", source_figure="figure 2c"),
    Panel(
        metric="train/loss",
        title="Training loss in the branches",
        y_label="training loss (nats)",
        x="step",
        arms=_BRANCHES,
        slug="branch-train",
        note="Steps count from the end of the run.",
    ),
)
