"""What the averaging study measures: on the weights of noisy runs, their moving average, and what is fine-tuned from them.

An exponent is the p of quantity ~ lr^p over the learning rates of the grid at one lam.

Shapes: R learning rates in rising order, P kept epochs, S seeds, N test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import exponents, rate_keys
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.fits import fit_lines, rank_correlation
from halflife.studies.evidence.quantities import Measure, Quantity
from halflife.studies.evidence.results import Results

__all__ = [
    "AVERAGE",
    "ENSEMBLE",
    "FINE_TUNED",
    "RAW",
    "SLOW",
    "AtEnd",
    "along_runs",
    "fall_of_loss",
    "fine_tuned_key",
    "largest_rate",
    "late_exponent",
    "late_losses",
    "late_values",
    "loss_exponent",
    "mirrors_over_all",
    "mirrors_within_runs",
    "prefix_of",
    "total_variation",
    "value",
]

RAW, AVERAGE, FINE_TUNED, ENSEMBLE = "weights", "average", "fine-tuned weights", "ensemble"
SLOW = "slow"
"""The arm whose decay has a timescale as long as the run."""


def fine_tuned_key(key: str, place: int) -> str:
    """The arm that is fine-tuned from a run's weights, by the index of the epoch among those kept."""
    return f"{key.replace('lr-', 'fine-tuned-')}-{place}"


def prefix_of(results: Results, key: str, size: int, weights: str) -> str:
    """What stands before the readings of the weights, their average, or the ensemble, ``"ema-0.99/"`` say."""
    average = f"ema-{image_run(results, key, size).ema[0]:g}/"
    return {RAW: "", AVERAGE: average, ENSEMBLE: "ensemble/"}[weights]


def value(results: Results, size: int, key: str, weights: str, metric: str, place: int = -1) -> NDArray[np.float64]:
    """A reading of an arm at one of its kept epochs (-1: its end), (S,) or (S, N)."""
    kept = image_run(results, key, size).keep_at
    if weights == FINE_TUNED:
        return results.read(fine_tuned_key(key, place % len(kept)), metric, size)
    name = f"{prefix_of(results, key, size, weights)}{metric}"
    return results.read(key, name, size, epoch=None if place == -1 else kept[place])


def largest_rate(results: Results, size: int) -> list[str]:
    """The arm of the largest learning rate."""
    return rate_keys(results, size)[-1:]


@dataclass(frozen=True)
class AtEnd(Measure):
    """A reading at the runs' end, or of what is fine-tuned from there; the mean over several arms.

    Args:
        weights: `RAW`, `AVERAGE`, `FINE_TUNED` or `ENSEMBLE`.
        metric: The reading, without the average's prefix.
        arms: The keys, or what gives them.
    """

    weights: str
    metric: str
    arms: Sequence[str] | Callable[[Results, int], Sequence[str]] = rate_keys

    def __call__(self, results: Results, size: int) -> NDArray[np.float64]:
        """Shape (S,) or (S, N)."""
        keys = self.arms(results, size) if callable(self.arms) else self.arms
        return np.asarray(np.mean([value(results, size, key, self.weights, self.metric) for key in keys], axis=0))


def late_values(results: Results, size: int, *, weights: str, metric: str) -> NDArray[np.float64]:
    """A reading at the kept epochs in the second half of the runs, the noisy phase as it has settled: (R, P, S)."""
    found = []
    for key in rate_keys(results, size):
        spec = image_run(results, key, size)
        late = [place for place, epoch in enumerate(spec.keep_at) if 2 * epoch >= spec.num_epochs]
        found.append([value(results, size, key, weights, metric, place) for place in late])
    return np.array(found)


def along_runs(results: Results, metric: str, size: int) -> NDArray[np.float64]:
    """A reading of the fine-tuned weights at every learning rate and kept epoch, (R, P, S)."""
    return np.array(
        [
            [
                value(results, size, key, FINE_TUNED, metric, p)
                for p in range(len(image_run(results, key, size).keep_at))
            ]
            for key in rate_keys(results, size)
        ]
    )


def late_exponent(results: Results, size: int, *, weights: str, metric: str) -> NDArray[np.float64]:
    """The exponent in the learning rate of a quantity's geometric mean over the late kept epochs, (S,)."""
    values_RPS = late_values(results, size, weights=weights, metric=metric)
    return exponents(results, size, rate_keys(results, size), values_RPS)


def late_losses(results: Results, size: int) -> NDArray[np.float64]:
    """The mean training loss of the last quarter, (R, S)."""
    return np.array(
        [
            [
                losses[epochs > 0.75 * image_run(results, key, size).num_epochs].mean()
                for epochs, losses in results.series(key, "train/running_loss", size)
            ]
            for key in rate_keys(results, size)
        ]
    )


def loss_exponent(results: Results, size: int) -> NDArray[np.float64]:
    """The exponent of the training loss in the learning rate, (S,)."""
    return exponents(results, size, rate_keys(results, size), late_losses(results, size))


def fall_of_loss(key: str) -> Quantity:
    """How fast the training loss of an arm still falls in the second half."""

    def falls(results: Results, size: int) -> NDArray[np.float64]:
        half = image_run(results, key, size).num_epochs / 2
        series = results.series(key, "train/running_loss", size)
        inside = [(np.log(epochs[epochs >= half]), -np.log(losses[epochs >= half])) for epochs, losses in series]
        return fit_lines([x for x, _ in inside], [y for _, y in inside]).slopes_S

    return Quantity(name="q of training loss ~ epochs^-q over the second half of the run", values=falls)


def mirrors_over_all(results: Results, size: int) -> NDArray[np.float64]:
    """Spearman's correlation of trace and test error over all learning rates and kept epochs, (S,)."""
    trace_RPS, error_RPS = (along_runs(results, name, size) for name in ("hessian_trace", "test/error"))
    seeds = range(trace_RPS.shape[-1])
    return np.array([rank_correlation(trace_RPS[..., s].ravel(), error_RPS[..., s].ravel()) for s in seeds])


def mirrors_within_runs(results: Results, size: int) -> NDArray[np.float64]:
    """Pearson's correlation over the kept epochs of a run (0 where one is constant), mean over learning rates, (S,)."""
    scaled = []
    for name in ("hessian_trace", "test/error"):
        values_RPS = along_runs(results, name, size)
        away_RPS = values_RPS - values_RPS.mean(axis=1, keepdims=True)
        spread_R1S = values_RPS.std(axis=1, keepdims=True)
        scaled.append(np.divide(away_RPS, spread_R1S, out=np.zeros_like(away_RPS), where=spread_R1S > 0))
    return np.asarray((scaled[0] * scaled[1]).mean(axis=(0, 1)))


def total_variation(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """Total variation between the predictions of the ensemble and of the average, mean over the test set: (S,), in [0, 1]."""
    average = prefix_of(results, key, size, AVERAGE)
    return results.read(key, f"ensemble/{average}total_variation", size)
