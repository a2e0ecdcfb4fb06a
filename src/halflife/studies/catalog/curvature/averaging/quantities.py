"""The quantities of the averaging study and its decision rules, one function a claim.

Each rule takes the results and a size. The bounds are constants, and the claims of the study quote them. "Points" are
percentage points of test error; an exponent is the p of quantity ~ lr^p over the learning rates of the grid at one lam.

Shapes: R learning rates in rising order, P kept epochs, S seeds, N test examples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above,
    above_zero,
    all_of,
    below,
    lowered,
    within,
)
from halflife.studies.evidence.fits import fit_lines, ranks
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, Interval, crossed_interval, seed_interval

__all__ = [
    "AVERAGE",
    "FINE_TUNED",
    "SLOW",
    "as_good",
    "average_of",
    "ensemble_gap",
    "ensemble_gap_unmixed",
    "ensemble_is_average",
    "fine_tuned_along",
    "fine_tuned_key",
    "fine_tuned_wrong",
    "late_values",
    "lowers_error",
    "mirrors_error",
    "mirrors_within_runs",
    "norms_are_ordered",
    "plateau_rises",
    "ranked_by_lr",
    "rate_key",
    "rate_keys",
    "variation",
    "wrong",
]

AVERAGE, FINE_TUNED = "average", "fine-tuned weights"
SLOW = "slow"
"""The arm whose decay has a timescale as long as the run."""


def rate_key(rate: int) -> str:
    """The arm of a learning rate, by its index in the grid."""
    return f"lr-{rate}"


def fine_tuned_key(rate: int, place: int) -> str:
    """The arm that is fine-tuned from a learning rate's weights, by the index of the epoch among those kept."""
    return f"fine-tuned-{rate}-{place}"


def rate_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid, learning rates rising."""
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith("lr-")]


def average_of(results: Results, key: str, size: int) -> str:
    """The prefix of the average's readings.

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

    Returns:
        In points, shape (S, N).
    """
    return wrong(results, key, average_of(results, key, size), size) - wrong(results, key, "ensemble/", size)


def variation(results: Results, key: str, size: int) -> NDArray[np.float64]:
    """Total variation between the predictions of the ensemble and of the average, mean over the test set.

    Returns:
        In [0, 1], shape (S,).
    """
    return results.last(key, f"ensemble/{average_of(results, key, size)}total_variation", size)


SMALLEST_EFFECT = 0.5  # points, as in the stabilization studies
WORSE_MARGIN = 0.5  # points by which "at least as good" may be worse
PLATEAU_EXPONENT = 0.5  # as in the stabilization studies: the loss falls by less than sqrt(2) while the epochs double
NO_RANKING = 0.25  # exponent: over a factor of 4 in lr the quantity changes by less than sqrt(2)
MIRROR = 0.5  # correlation
ENSEMBLE_MARGIN = 1.0  # points; the paper's tables have two digits
ENSEMBLE_VARIATION = 0.15  # the largest of the paper's table
METRICS = {"jacobian_norm": "||J||", "hessian_trace": "Tr(H)"}
RISING = "at the learning rates in rising order"


def _interval(interval: Interval, sign: str = "+") -> str:
    return f"{interval.estimate:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def _listed(values_RS: NDArray[np.float64], form: str = ".3g") -> str:
    return ", ".join(f"{value:{form}}" for value in values_RS.mean(axis=1))


def _exponent(results: Results, values_RS: NDArray[np.float64], size: int, confidence: float = CONFIDENCE) -> Interval:
    """The p of quantity ~ lr^p, fitted for each seed by itself, with its interval over seeds."""
    log_lr_R = np.log([image_run(results, key, size).lr for key in rate_keys(results, size)])
    log_SR = np.log(values_RS).T
    return fit_lines([log_lr_R] * len(log_SR), list(log_SR), confidence=confidence).slope


def lowers_error(results: Results, size: int, *, by: str) -> Finding:
    """Claims a: the test error at the largest learning rate, and that of one of the two means.

    Args:
        results: What the store holds.
        size: The size.
        by: `AVERAGE` or `FINE_TUNED`.

    Returns:
        The finding.
    """
    rate = len(rate_keys(results, size)) - 1
    key = rate_key(rate)
    raw_SN = wrong(results, key, "", size)
    if by == AVERAGE:
        mean_SN = wrong(results, key, average_of(results, key, size), size)
    else:
        mean_SN = fine_tuned_wrong(results, rate, size)
    effect = crossed_interval(mean_SN - raw_SN)
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"at the largest learning rate the weights end with {raw_SN.mean():.1f} % test error; that of the {by} differs by"
        f" {_interval(effect)} points",
    )


def as_good(results: Results, size: int) -> Finding:
    """Claim b: the average against the fine-tuned weights at the end, mean over the learning rates."""
    pairs = [
        (wrong(results, key, average_of(results, key, size), size), fine_tuned_wrong(results, rate, size))
        for rate, key in enumerate(rate_keys(results, size))
    ]
    effect = crossed_interval(np.mean([one_SN - other_SN for one_SN, other_SN in pairs], axis=0))
    each = ", ".join(f"{one_SN.mean():.1f} and {other_SN.mean():.1f} %" for one_SN, other_SN in pairs)
    return Finding(
        below(effect, WORSE_MARGIN),
        effect,
        f"the test errors of the average and of the fine-tuned weights are {each} {RISING}; the mean difference is"
        f" {_interval(effect)} points",
    )


def plateau_rises(results: Results, size: int) -> Finding:
    """Claim c: the level of the training loss in the last quarter, and how fast it still falls."""
    levels, falls = [], []
    for key in rate_keys(results, size):
        end = image_run(results, key, size).num_epochs
        series = results.series(key, "train/running_loss", size)
        levels.append([losses[epochs > 0.75 * end].mean() for epochs, losses in series])
        halves = [(np.log(epochs[epochs >= end / 2]), -np.log(losses[epochs >= end / 2])) for epochs, losses in series]
        falls.append(fit_lines([x for x, _ in halves], [y for _, y in halves]).slope)
    levels_RS = np.array(levels)
    effect = _exponent(results, levels_RS, size)
    return Finding(
        all_of(above_zero(effect), *(below(fall, PLATEAU_EXPONENT) for fall in falls)),
        effect,
        f"the training loss of the last quarter is {_listed(levels_RS)} {RISING}, an exponent of {_interval(effect)}; over"
        f" the second half it falls as epochs^-p with p = {', '.join(map(_interval, falls))}",
    )


def ranked_by_lr(
    results: Results, size: int, *, of: str, metric: str, expect: Literal["falls", "rises", "neither"]
) -> Finding:
    """Claims d to g: the exponent of a quantity in the learning rate.

    Args:
        results: What the store holds.
        size: The size.
        of: `AVERAGE` or `FINE_TUNED`.
        metric: The reading.
        expect: What the claim says.

    Returns:
        The finding.
    """
    values_RPS = late_values(results, of, metric, size)
    if not (values_RPS > 0).all():
        return Finding("inconclusive", None, f"{METRICS[metric]} of the {of} is not above 0 in every run: no exponent")
    values_RS = np.exp(np.log(values_RPS).mean(axis=1))  # the geometric mean over the late epochs
    effect = _exponent(results, values_RS, size, EQUAL_CONFIDENCE if expect == "neither" else CONFIDENCE)
    decided = {"falls": below(effect), "rises": above_zero(effect), "neither": within(effect, NO_RANKING)}
    return Finding(
        decided[expect],
        effect,
        f"{METRICS[metric]} of the {of} is {_listed(values_RS)} {RISING}, an exponent of {_interval(effect)}"
        f" ({effect.confidence:.0%})",
    )


def _standardized(values_RPS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each run's values less their mean, over their standard deviation; 0 where they are all the same."""
    away_RPS = values_RPS - values_RPS.mean(axis=1, keepdims=True)
    spread_R1S = values_RPS.std(axis=1, keepdims=True)
    scaled_RPS: NDArray[np.float64] = np.divide(away_RPS, spread_R1S, out=np.zeros_like(away_RPS), where=spread_R1S > 0)
    return scaled_RPS


def mirrors_error(results: Results, size: int) -> Finding:
    """Claim h: the rank correlation of trace and test error over learning rates and kept epochs, one per seed."""
    trace_RPS, error_RPS = (fine_tuned_along(results, name, size) for name in ("hessian_trace", "test/error"))
    num_seeds = trace_RPS.shape[2]
    # All points of a seed as if they were one run.
    ranks_1QS = [
        np.array([ranks(values_RPS[..., seed].ravel()) for seed in range(num_seeds)]).T[None]
        for values_RPS in (trace_RPS, error_RPS)
    ]
    effect = seed_interval((_standardized(ranks_1QS[0]) * _standardized(ranks_1QS[1])).mean(axis=(0, 1)))
    return Finding(
        above(effect, MIRROR),
        effect,
        f"over the {trace_RPS[..., 0].size} points of a seed the rank correlation of Tr(H) and test error is"
        f" {_interval(effect)}; from the runs' ends Tr(H) is {_listed(trace_RPS[:, -1])} and the error"
        f" {_listed(100 * error_RPS[:, -1], '.1f')} % {RISING}",
    )


def mirrors_within_runs(results: Results, size: int) -> Finding:
    """Claim h-along: the correlation within a run, mean over the learning rates, one per seed."""
    both = (fine_tuned_along(results, name, size) for name in ("hessian_trace", "test/error"))
    # Over its own spread as well, so that no run counts for more because its traces are larger.
    trace_RPS, error_RPS = (_standardized(values_RPS) for values_RPS in both)
    effect = seed_interval((trace_RPS * error_RPS).mean(axis=(0, 1)))
    return Finding(
        above(effect, MIRROR),
        effect,
        f"from one kept epoch to another of the same run Tr(H) and test error correlate with {_interval(effect)}",
    )


def norms_are_ordered(results: Results, size: int) -> Finding:
    """Claim i: at each learning rate; the effect is the ratio of the outer two at the largest one."""
    keys = rate_keys(results, size)
    outcomes, words = [], []
    for rate, key in enumerate(keys):
        last = len(image_run(results, key, size).keep_at) - 1
        average = results.last(key, f"{average_of(results, key, size)}weight_norm", size)
        raw = results.last(key, "weight_norm", size)
        fine_tuned = results.last(fine_tuned_key(rate, last), "weight_norm", size)
        outcomes += [above_zero(seed_interval(np.log(high / low))) for low, high in ((average, raw), (raw, fine_tuned))]
        words.append(f"{average.mean():.2f}, {raw.mean():.2f} and {fine_tuned.mean():.2f}")
    return Finding(
        all_of(*outcomes),
        seed_interval(np.log(fine_tuned / average)).exp(),
        f"the norms of the average, of the weights and of the fine-tuned weights are {'; '.join(words)} {RISING}",
    )


def ensemble_is_average(results: Results, size: int) -> Finding:
    """Claim j: at each learning rate; the effect is the largest gap."""
    keys = rate_keys(results, size)
    gaps = [crossed_interval(ensemble_gap(results, key, size), confidence=EQUAL_CONFIDENCE) for key in keys]
    apart = [seed_interval(variation(results, key, size)) for key in keys]
    return Finding(
        all_of(*(within(gap, ENSEMBLE_MARGIN) for gap in gaps), *(below(v, ENSEMBLE_VARIATION) for v in apart)),
        max(gaps, key=lambda gap: abs(gap.estimate)),
        f"the test error of the average minus that of the ensemble is {', '.join(map(_interval, gaps))} points (90%)"
        f" {RISING}, the total variation between their predictions {', '.join(_interval(v, '') for v in apart)}",
    )


def ensemble_gap_unmixed(results: Results, size: int) -> Finding:
    """Claim j-unmixed: the gap where the timescale of decay is as long as the run, against the mean gap of the grid."""
    mixed_SN = np.mean([ensemble_gap(results, key, size) for key in rate_keys(results, size)], axis=0)
    slow_SN = ensemble_gap(results, SLOW, size)
    slow, mixed, effect = (crossed_interval(gap_SN) for gap_SN in (slow_SN, mixed_SN, slow_SN - mixed_SN))
    return Finding(
        above_zero(effect),
        effect,
        f"the test error of the average minus that of the ensemble is {_interval(slow)} points where the timescale of decay"
        f" is as long as the run, and {_interval(mixed)} on average where it is shorter: {_interval(effect)} more; the total"
        f" variation is {variation(results, SLOW, size).mean():.2f} there",
    )
