"""The points that the study of the sphere draws, and its numbers beside the paper's.

Shapes: R learning rates in rising order, S seeds.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import rate_keys, rate_of
from halflife.studies.catalog.curvature.sphere.quantities import (
    branch_keys,
    drawn_keys,
    end_values,
    of_average,
    plateau_of,
)
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import AnyPanel, Panel, PointRow, PointsPanel, Published
from halflife.studies.evidence.optimum import PAIRED_NOTE, paired_rows
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval
from halflife.studies.specs.images import ImageBranch

__all__ = ["PANELS", "PUBLISHED"]

FINE_TUNED, AVERAGE = "fine-tuned", "average"
LOGARITHMIC = ("jacobian_norm",)


def error_rows(results: Results) -> list[PointRow]:
    """Test error after fine-tuning against the large learning rate."""
    size, keys = results.main_size, rate_keys(results, results.main_size)
    errors_RS = 100 * end_values(results, size, keys, "test/error")
    return paired_rows("after fine-tuning", [rate_of(results, key, size) for key in keys], errors_RS)


def _probe(results: Results, key: str, metric: str, of: str) -> NDArray[np.float64]:
    """A probe after fine-tuning, or of the average at the end of the first phase, (S,)."""
    size = results.main_size
    return results.read(key, metric, size) if of == FINE_TUNED else of_average(results, key, metric, size)


def against_rate(results: Results, *, metric: str) -> list[PointRow]:
    """A probe of the fine-tuned weights, and ||J|| of the average before the drop, against the large learning rate."""
    rows = []
    # The trace of an average at the largest rates has both signs and spans orders of magnitude: no axis shows it.
    for series in (FINE_TUNED,) if metric == "hessian_trace" else (FINE_TUNED, AVERAGE):
        for key in rate_keys(results, results.main_size):
            lr, values_S = rate_of(results, key, results.main_size), _probe(results, key, metric, series)
            # A trace of unfitted weights may be negative; ||J|| is not.
            interval = seed_interval(np.log(values_S)).exp() if metric in LOGARITHMIC else seed_interval(values_S)
            rows.append(PointRow(series=series, x=lr, y=interval.estimate, style="line"))
            rows.append(PointRow(series=series, x=lr, y=interval.estimate, low=interval.low, high=interval.high))
    return rows


def along_the_run(results: Results, *, metric: str, of: str) -> list[PointRow]:
    """A probe at several epochs of the large-rate phase, of the average there or of what is fine-tuned from there."""
    size, rows = results.main_size, []
    for key in drawn_keys(results, size):
        spec = image_run(results, key, size)
        found: list[tuple[int, NDArray[np.float64]]] = []
        for branch_key in branch_keys(results, key, size):
            branch = results.spec(branch_key, size)
            assert isinstance(branch, ImageBranch)
            if of == FINE_TUNED:
                found.append((branch.at, results.read(branch_key, metric, size)))
            else:
                found.append((branch.at, of_average(results, key, metric, size, branch.at)))
        found.append((spec.drop_epoch, _probe(results, key, metric, of)))
        for epoch, values_S in found:
            # Means and ranges over seeds, so that a logarithmic axis never meets an interval below 0.
            low, mid, high = values_S.min(), values_S.mean(), values_S.max()
            rows.append(PointRow(series=f"lr {spec.lr:g}", x=epoch, y=mid, style="line"))
            rows.append(PointRow(series=f"lr {spec.lr:g}", x=epoch, y=mid, low=low, high=high))
    return rows


def errors_beside(results: Results) -> str:
    """Test errors after fine-tuning, learning rates rising."""
    size, keys = results.main_size, rate_keys(results, results.main_size)
    errors_R = 100 * end_values(results, size, keys, "test/error").mean(axis=1)
    return ", ".join(f"{rate_of(results, key, size):g}: {error:.2f}" for key, error in zip(keys, errors_R, strict=True))


def plateaus_beside(results: Results) -> str:
    """Training losses before the drop, at the learning rates whose curves are shown."""
    keys = drawn_keys(results, results.main_size)
    return " / ".join(f"{plateau_of(results, key, results.main_size).mean():.2f}" for key in keys)


def traces_beside(results: Results) -> str:
    """Traces of the Hessian after fine-tuning, at the learning rates whose curves are shown."""
    keys = drawn_keys(results, results.main_size)
    traces_R = end_values(results, results.main_size, keys, "hessian_trace").mean(axis=1)
    return " / ".join(f"{trace:.2g}" for trace in traces_R)


_DRAWN = tuple(f"lr-drawn-{rank}" for rank in range(3))  # that of the lowest error and two above, as the paper draws
_ALONG = "Means and ranges over seeds."
_BARS = "bars are 95 % intervals over seeds."
_TRACE, _JACOBIAN = "trace of the Hessian", "||J||"


def _along(slug: str, title: str, y_label: str, metric: str, of: str) -> PointsPanel:
    return PointsPanel(
        slug=slug,
        title=title,
        x_label="epoch of the large-rate phase",
        y_label=y_label,
        rows=functools.partial(along_the_run, metric=metric, of=of),
        log_y=metric in LOGARITHMIC,
        source_figure="figure 15",
        note=_ALONG,
    )


PANELS: tuple[AnyPanel, ...] = (
    PointsPanel(
        slug="error",
        title="Test error after fine-tuning against the large learning rate",
        x_label="learning rate of the first phase",
        y_label="test error (%)",
        rows=error_rows,
        log_x=True,
        source_figure="figure 15",
        note=PAIRED_NOTE,
    ),
    Panel(
        metric="train/running_loss",
        title="Training loss",
        y_label="training cross-entropy",
        log=True,
        source_figure="figure 15",
        arms=_DRAWN,
    ),
    _along("trace-fine-tuned", "Trace of the Hessian of fine-tuned weights", _TRACE, "hessian_trace", FINE_TUNED),
    _along("jacobian-average", "Jacobian norm of the average", _JACOBIAN, "jacobian_norm", AVERAGE),
    _along("jacobian-fine-tuned", "Jacobian norm of fine-tuned weights", _JACOBIAN, "jacobian_norm", FINE_TUNED),
    Panel(metric="test/error", title="Test error", y_label="test error (%)", factor=100, arms=_DRAWN),
    *(
        PointsPanel(
            slug=slug,
            title=title,
            x_label="learning rate of the first phase",
            y_label=y_label,
            rows=functools.partial(against_rate, metric=metric),
            log_x=True,
            log_y=metric in LOGARITHMIC,
            note=note,
        )
        for slug, title, y_label, metric, note in (
            (
                "jacobian",
                "Jacobian norm against the large learning rate",
                _JACOBIAN,
                "jacobian_norm",
                f"The average at the end of the first phase, not scaled to the sphere; {_BARS}",
            ),
            (
                "trace",
                "Trace of the Hessian after fine-tuning against the large learning rate",
                _TRACE,
                "hessian_trace",
                _BARS.capitalize(),
            ),
        )
    ),
)

PUBLISHED = (
    Published(
        quantity="test error after fine-tuning (%) by the large learning rate, on CIFAR-10; ours on fewer and other images",
        published="1e-4: 13.95, 2.5e-4: 12.65, 5e-4: 11.87, 7.5e-4: 10.90, 1e-3: 10.48, 2e-3: 11.13, 3e-3: 12.80, 4e-3: 14.42,"
        " 5e-3: 15.85",
        where="figure 15",
        how="notebook",
        ours=errors_beside,
    ),
    Published(
        quantity="training loss of the large-rate phase at the learning rate of the lowest error, 3 and 5 times that; ours at"
        " 1, 2 and 4 times",
        published="0.55 / 1.1 / 1.5",
        where="figure 15, lr 1e-3 / 3e-3 / 5e-3",
        how="fig-read",
        ours=plateaus_beside,
    ),
    Published(
        quantity="trace of the Hessian after fine-tuning, the same learning rates",
        published="5e4 / 14e4 / 27e4",
        where="figure 15, lr 1e-3 / 3e-3 / 5e-3",
        how="fig-read",
        ours=traces_beside,
    ),
)
