"""The paper's numbers beside those of the averaging study."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.averaging.figures import norm_rows
from halflife.studies.catalog.curvature.averaging.readings import (
    AVERAGE,
    FINE_TUNED,
    SLOW,
    average_of,
    fine_tuned_along,
    late_values,
    rate_key,
    rate_keys,
    variation,
)
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.claims import Published
from halflife.studies.evidence.results import Results

__all__ = ["PUBLISHED"]


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
    """The norms at the smallest and the largest learning rate.

    Args:
        results: What the store holds.

    Returns:
        The numbers as text.
    """
    points = [row for row in norm_rows(results) if row.style == "point"]
    names = ("SGD", "average", "fine-tuned")
    heights = {name: [row.y for row in points if row.series == name] for name in names}
    return "; ".join(f"{name} {min(values):.2f} to {max(values):.2f}" for name, values in heights.items())


def loss_text(results: Results) -> str:
    """The level of the training loss in the last quarter.

    Args:
        results: What the store holds.

    Returns:
        The numbers as text.
    """
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
