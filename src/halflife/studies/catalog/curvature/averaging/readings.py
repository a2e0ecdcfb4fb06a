"""What the averaging study reads from its store: weights, averages and fine-tuned weights of the same runs.

Shapes: R learning rates in rising order, P kept epochs, S seeds, N test examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.results import Results

__all__ = [
    "AVERAGE",
    "FINE_TUNED",
    "SLOW",
    "average_of",
    "ensemble_gap",
    "fine_tuned_along",
    "fine_tuned_key",
    "fine_tuned_wrong",
    "late_values",
    "rate_key",
    "rate_keys",
    "variation",
    "wrong",
]

AVERAGE, FINE_TUNED = "average", "fine-tuned weights"
SLOW = "slow"
"""The arm whose decay has a timescale as long as the run."""


def rate_key(rate: int) -> str:
    """The arm of a learning rate by its place in the grid."""
    return f"lr-{rate}"


def fine_tuned_key(rate: int, place: int) -> str:
    """The arm that is fine-tuned from a learning rate's weights, by the place of the epoch among those kept."""
    return f"fine-tuned-{rate}-{place}"


def rate_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid, learning rates rising.

    Args:
        results: What the store holds.
        size: The size.

    Returns:
        The keys.
    """
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith("lr-")]


def average_of(results: Results, key: str, size: int) -> str:
    """The prefix of the average's readings.

    Args:
        results: What the store holds.
        key: The arm.
        size: The size.

    Returns:
        Such as ``"ema-0.99/"``.
    """
    return f"ema-{image_run(results, key, size).ema[0]:g}/"


def late_values(results: Results, of: str, metric: str, size: int) -> NDArray[np.float64]:
    """A quantity at the kept epochs in the second half of the run: the noisy phase as it has settled.

    Args:
        results: What the store holds.
        of: `AVERAGE`, or `FINE_TUNED`: those that start from these epochs.
        metric: The reading, without the average's prefix.
        size: The size.

    Returns:
        The values, shape (R, P, S).
    """
    values = []
    for rate, key in enumerate(rate_keys(results, size)):
        spec = image_run(results, key, size)
        late = [(place, epoch) for place, epoch in enumerate(spec.keep_at) if 2 * epoch >= spec.num_epochs]
        if of == FINE_TUNED:
            values.append([results.last(fine_tuned_key(rate, place), metric, size) for place, _ in late])
        else:
            name = f"{average_of(results, key, size)}{metric}"
            values.append([results.per_seed(key, name, epoch, size) for _, epoch in late])
    return np.array(values)


def fine_tuned_along(results: Results, metric: str, size: int) -> NDArray[np.float64]:
    """A quantity of the fine-tuned weights at every learning rate and kept epoch.

    Args:
        results: What the store holds.
        metric: The reading.
        size: The size.

    Returns:
        The values, shape (R, P, S).
    """
    return np.array(
        [
            [
                results.last(fine_tuned_key(rate, place), metric, size)
                for place in range(len(image_run(results, key, size).keep_at))
            ]
            for rate, key in enumerate(rate_keys(results, size))
        ]
    )


def wrong(results: Results, key: str, prefix: str, size: int) -> NDArray[np.float64]:
    """Which test examples are wrong at the run's end, in points (0 or 100).

    Args:
        results: What the store holds.
        key: The arm.
        prefix: ``""``, an average's or ``"ensemble/"``.
        size: The size.

    Returns:
        Shape (S, N).
    """
    return 100 * results.last_array(key, f"{prefix}test/wrong", size)


def fine_tuned_wrong(results: Results, rate: int, size: int) -> NDArray[np.float64]:
    """The same of the weights that are fine-tuned from the run's end.

    Args:
        results: What the store holds.
        rate: The place of the learning rate.
        size: The size.

    Returns:
        Shape (S, N).
    """
    last = len(image_run(results, rate_key(rate), size).keep_at) - 1
    return wrong(results, fine_tuned_key(rate, last), "", size)


def ensemble_gap(results: Results, key: str, size: int) -> NDArray[np.float64]:
    """Wrong by the average minus wrong by the ensemble of snapshots.

    Args:
        results: What the store holds.
        key: The arm.
        size: The size.

    Returns:
        In points, shape (S, N).
    """
    return wrong(results, key, average_of(results, key, size), size) - wrong(results, key, "ensemble/", size)


def variation(results: Results, key: str, size: int) -> NDArray[np.float64]:
    """Total variation between the predictions of the ensemble and of the average, mean over the test set.

    Args:
        results: What the store holds.
        key: The arm.
        size: The size.

    Returns:
        In [0, 1], shape (S,).
    """
    return results.last(key, f"ensemble/{average_of(results, key, size)}total_variation", size)
