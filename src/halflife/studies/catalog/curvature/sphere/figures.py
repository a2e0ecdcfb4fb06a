"""The points that the study of the sphere draws, and its numbers beside the paper's.

Shapes: R learning rates in rising order, S seeds.
"""

from __future__ import annotations

import functools

import numpy as np

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
from halflife.studies.evidence.optimum import PAIRED_NOTE
from halflife.studies.evidence.quantities import Measure, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import Values, against, published_level
from halflife.studies.evidence.stats import seed_interval
from halflife.studies.specs.images import ImageBranch

__all__ = ["PANELS", "PUBLISHED"]

FINE_TUNED, AVERAGE = "fine-tuned", "average"
LOGARITHMIC = ("jacobian_norm",)


def error_lines(results: Results, size: int) -> dict[str, list[tuple[float, Measure]]]:
    """Test error after fine-tuning against the large learning rate."""
    keys = rate_keys(results, size)
    return {"after fine-tuning": [(rate_of(results, key, size), 100 * Reading(key, "test/error")) for key in keys]}


def probe(of: str, key: str, metric: str) -> Values:
    """A probe after fine-tuning, or of the average at the end of the first phase."""
    return Reading(key, metric) if of == FINE_TUNED else functools.partial(of_average, key=key, metric=metric)


def against_rate(results: Results, *, metric: str) -> list[PointRow]:
    """A probe of the fine-tuned weights, and ||J|| of the average before the drop, against the large learning rate."""
    rows, size = [], results.main_size
    # The trace of an average at the largest rates has both signs and spans orders of magnitude: no axis shows it.
    for series in (FINE_TUNED,) if metric == "hessian_trace" else (FINE_TUNED, AVERAGE):
        for key in rate_keys(results, size):
            lr, values_S = rate_of(results, key, size), probe(series, key, metric)(results, size)
            # A trace of unfitted weights may be negative; ||J|| is not.
            interval = seed_interval(np.log(values_S)).exp() if metric in LOGARITHMIC else seed_interval(values_S)
            rows.append(PointRow(series=series, x=lr, y=interval.estimate, style="line"))
            rows.append(PointRow(series=series, x=lr, y=interval.estimate, low=interval.low, high=interval.high))
    return rows


def lines_along(results: Results, size: int, *, metric: str, of: str) -> dict[str, list[tuple[float, Values]]]:
    """A probe at several epochs of the large-rate phase, of the average there or of what is fine-tuned from there."""
    lines: dict[str, list[tuple[float, Values]]] = {}
    for key in drawn_keys(results, size):
        spec = image_run(results, key, size)
        line = lines[f"lr {spec.lr:g}"] = []
        for branch_key in branch_keys(results, key, size):
            branch = results.spec(branch_key, size)
            assert isinstance(branch, ImageBranch)
            average = functools.partial(of_average, key=key, metric=metric, epoch=branch.at)
            line.append((branch.at, Reading(branch_key, metric) if of == FINE_TUNED else average))
        line.append((spec.drop_epoch, probe(of, key, metric)))
    return lines


def errors_beside(results: Results) -> str:
    """Test errors after fine-tuning, learning rates rising."""
    size, keys = results.main_size, rate_keys(results, results.main_size)
    errors_R = 100 * end_values(results, size, keys, "test/error").mean(axis=1)
    return ", ".join(f"{rate_of(results, key, size):g}: {error:.2f}" for key, error in zip(keys, errors_R, strict=True))


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
        # Ranges, so that a logarithmic axis never meets an interval below 0.
        rows=against(functools.partial(lines_along, metric=metric, of=of), bars="range"),
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
        rows=against(error_lines),
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
        ours=published_level(*(functools.partial(plateau_of, key=key) for key in _DRAWN), form=".2f", interval=False),
    ),
    Published(
        quantity="trace of the Hessian after fine-tuning, the same learning rates",
        published="5e4 / 14e4 / 27e4",
        where="figure 15, lr 1e-3 / 3e-3 / 5e-3",
        how="fig-read",
        ours=published_level(*(Reading(key, "hessian_trace") for key in _DRAWN), form=".2g", interval=False),
    ),
)
