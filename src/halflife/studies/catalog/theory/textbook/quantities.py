"""The decision rules of the study `textbook`, one function a claim. The bounds are constants on top; the claims quote them.

Ratios are compared in logarithms, over seeds; one seed is several nets or data sets. The classifiers in the plane have no
size: along the ladder of widths there is nothing to say about them.

Shapes: S seeds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    Outcome,
    above,
    all_of,
    below,
    lowered,
    within,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval
from halflife.studies.specs.textbook import ReluRegressionRun, SeparableRun

__all__ = [
    "RANDOM_LAMS",
    "RATES",
    "bound_holds",
    "decay_tends_to_the_margin",
    "large_rate_is_flat",
    "minimum_is_reached",
    "norm_and_loss",
    "outlier_needs_decay",
    "random_direction",
    "rate_is_logarithmic",
    "ratio_is_lower",
    "ratio_of",
    "theory_holds",
]

SMALL, MIDDLE, LARGE, NOISY, DECAYED = "relu-small", "relu-middle", "relu-large", "relu-noise", "relu-decay"
RATES = (SMALL, MIDDLE, LARGE)
PLANTED, RANDOM = "planted", "random"
RANDOM_LAMS = (0.1, 0.01, 0.001, 0.0001)
OUTLIER_LAMS = (0.0, 0.01, 0.1)

FITS = 0.05  # root mean square error at the points over the spread of their values: what counts as fitted
SMALLEST_SHARE = 0.1  # a reduction by less than this share is none
RATE_MARGIN = 0.25  # of the exponent of log time
THEORY_MARGIN = 0.02  # relative, of angle and norm against their asymptote
SLOPE_MARGIN = 0.05  # of the norm's slope and of the loss's exponent
EARLY = 100  # steps
REACHED = 1e-6  # relative distance to the regularized minimum
SMALLEST_GAIN = 0.5  # points of test error
DECADES = 2  # rates are fitted over this many last decades of steps
MIN_TIME = 4.0  # and from this time lr t / n on

P = ParamSpec("P")


def random_key(lam: float) -> str:
    """The arm of random points with this decay."""
    return f"{RANDOM}-{lam:g}" if lam else RANDOM


def outlier_key(lam: float) -> str:
    """The arm of points with an outlier with this decay."""
    return f"outlier-{lam:g}"


def _at_main_size(
    measure: Callable[Concatenate[Results, int, P], Finding],
) -> Callable[Concatenate[Results, int, P], Finding]:
    def measured(results: Results, size: int, /, *args: P.args, **kwargs: P.kwargs) -> Finding:
        if size != results.main_size:
            return Finding("inconclusive", None, "a classifier in the plane has no size: it is run beside the main one")
        return measure(results, size, *args, **kwargs)

    functools.update_wrapper(measured, measure)
    return measured


def relu_spec(results: Results, key: str, size: int) -> ReluRegressionRun:
    """The spec of a net's arm."""
    spec = results.spec(key, size)
    assert isinstance(spec, ReluRegressionRun)
    return spec


def separable_spec(results: Results, key: str) -> SeparableRun:
    """The spec of a classifier's arm."""
    spec = results.spec(key, results.main_size)
    assert isinstance(spec, SeparableRun)
    return spec


def words(interval: Interval, digits: int = 3) -> str:
    """An interval as text."""
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def ratio_of(results: Results, key: str, other: str, metric: str, size: int) -> Interval:
    """The logarithm of one arm's last reading over another's."""
    return seed_interval(np.log(results.last(key, metric, size) / results.last(other, metric, size)))


def _misfit(results: Results, key: str, size: int) -> Interval:
    return seed_interval(results.last(key, "train/rmse", size) / results.last(key, "train/spread", size))


def ratio_is_lower(results: Results, size: int, *, key: str, other: str, metric: str, name: str) -> Finding:
    """Whether a quantity is lower in one arm than in another, both fitting the points."""
    misfits = [_misfit(results, arm, size) for arm in (key, other)]
    ratio = ratio_of(results, key, other, metric, size)
    fit = all(misfit.high < FITS for misfit in misfits)
    outcome: Outcome = lowered(ratio, -float(np.log1p(-SMALLEST_SHARE))) if fit else "inconclusive"
    means = [results.last(arm, metric, size).mean() for arm in (key, other)]
    return Finding(
        outcome,
        ratio.exp(),
        f"{name} is {means[0]:.3g} against {means[1]:.3g}, a ratio of {words(ratio.exp())}; the errors at the points are"
        f" {100 * misfits[0].estimate:.2f} and {100 * misfits[1].estimate:.2f} % of the spread of their values"
        + ("" if fit else f", not surely below {FITS:.0%}: the points are not fitted, so nothing is compared"),
    )


def large_rate_is_flat(results: Results, size: int) -> Finding:
    """Top eigenvalue against 2 / lr of the large rate, of what the large and what the small rate find."""
    lr = relu_spec(results, LARGE, size).lr
    large, small = (seed_interval(np.log(results.last(key, "top_eigenvalue", size) * lr / 2)) for key in (LARGE, SMALL))
    return Finding(
        all_of(below(large), above(small)),
        large.exp(),
        f"lr / 2 times the top eigenvalue, lr the large rate {lr:g}: {words(large.exp())} of what the large rate finds and"
        f" {words(small.exp())} of what the small one does",
    )


def bound_holds(results: Results, size: int) -> Finding:
    """The bound of smoothness over the top eigenvalue, at each rate."""
    ratios = [
        seed_interval(np.log(results.last(key, "smoothness_bound", size) / results.last(key, "top_eigenvalue", size)))
        for key in RATES
    ]
    rates = [relu_spec(results, key, size).lr for key in RATES]
    said = [f"lr {lr:g}: {words(ratio.exp())}" for lr, ratio in zip(rates, ratios, strict=True)]
    worst = max(ratios, key=lambda ratio: ratio.high)
    return Finding(all_of(*map(below, ratios)), worst.exp(), f"bound over top eigenvalue: {'; '.join(said)}")


def _late(results: Results, key: str) -> list[int]:
    """The steps over which rates are fitted."""
    spec = separable_spec(results, key)
    first = max(spec.last_step / 10**DECADES, MIN_TIME * spec.num_points / spec.lr)
    return [step for step in spec.read_steps if step >= first]


def _slopes(results: Results, key: str, metric: str, *, log_y: bool, log_time: bool) -> NDArray[np.float64]:
    """Per seed the slope of a reading (or its logarithm) against log t, or against log log (lr t / n)."""
    spec, steps = separable_spec(results, key), _late(results, key)
    x = np.log(steps)
    if log_time:
        x = np.log(np.log(spec.lr / spec.num_points * np.array(steps)))
    y_TS = np.array([results.at_step(key, metric, step, results.main_size) for step in steps])
    slopes: NDArray[np.float64] = np.polyfit(x, np.log(y_TS) if log_y else y_TS, 1)[0]
    return slopes


@_at_main_size
def rate_is_logarithmic(results: Results, size: int, *, key: str) -> Finding:
    """The exponent p of angle ~ (log time)^-p."""
    slopes_S = -_slopes(results, key, "angle", log_y=True, log_time=True)
    exponent = seed_interval(slopes_S, EQUAL_CONFIDENCE)
    steps = _late(results, key)
    first, last = (results.at_step(key, "angle", step, size).mean() for step in (steps[0], steps[-1]))
    return Finding(
        within(exponent, RATE_MARGIN, around=1.0),
        exponent,
        f"from step {steps[0]:,} to {steps[-1]:,} the angle falls from {first:.4f} to {last:.4f}, as log(lr t / n)^-p with"
        f" p = {words(exponent)} (90 %)",
    )


@_at_main_size
def norm_and_loss(results: Results, size: int) -> Finding:
    """The slope of norm times margin against log t, and the exponent of the loss."""
    norm = seed_interval(_slopes(results, PLANTED, "norm", log_y=False, log_time=False), EQUAL_CONFIDENCE)
    loss = seed_interval(-_slopes(results, PLANTED, "train/loss", log_y=True, log_time=False), EQUAL_CONFIDENCE)
    steps = _late(results, PLANTED)
    return Finding(
        all_of(within(norm, SLOPE_MARGIN, around=1.0), within(loss, SLOPE_MARGIN, around=1.0)),
        norm,
        f"from step {steps[0]:,} to {steps[-1]:,} the norm times the margin grows by {words(norm)} per unit of log t, and the"
        f" loss falls as t^-p with p = {words(loss)} (90 %)",
    )


@_at_main_size
def theory_holds(results: Results, size: int) -> Finding:
    """Angle and norm at the end over those of the asymptote."""
    ratios = [
        seed_interval(
            np.log(results.last(PLANTED, name, size) / results.last(PLANTED, f"theory/{name}", size)), EQUAL_CONFIDENCE
        )
        for name in ("angle", "norm")
    ]
    return Finding(
        all_of(*(within(ratio, float(np.log1p(THEORY_MARGIN))) for ratio in ratios)),
        ratios[0].exp(),
        f"at the end the angle is {words(ratios[0].exp(), 4)} times and the norm {words(ratios[1].exp(), 4)} times that of the"
        " asymptote (90 %)",
    )


@_at_main_size
def random_direction(results: Results, size: int) -> Finding:
    """The angle at the end over that after a hundred steps."""
    early_S = results.at_step(RANDOM, "angle", EARLY, size)
    late_S = results.last(RANDOM, "angle", size)
    ratio = seed_interval(np.log(late_S / early_S))
    return Finding(
        lowered(ratio, -float(np.log1p(-SMALLEST_SHARE))),
        ratio.exp(),
        f"the angle to the hard-margin direction is {early_S.mean():.4f} after {EARLY} steps and {late_S.mean():.4f} after"
        f" {separable_spec(results, RANDOM).last_step:,}, a ratio of {words(ratio.exp())}",
    )


@_at_main_size
def minimum_is_reached(results: Results, size: int) -> Finding:
    """The largest distance to the regularized minimum of any lam, data set and seed."""
    smallest = np.finfo(float).eps  # a distance of 0 has no logarithm
    distances = [
        np.maximum(results.last(random_key(lam), "regularized/distance", size), smallest) for lam in RANDOM_LAMS
    ]
    logs = [seed_interval(np.log(distance_S)) for distance_S in distances]
    farthest = max(distances, key=lambda distance_S: float(distance_S.max()))
    said = [f"lam {lam:g}: {log.exp().estimate:.1e}" for lam, log in zip(RANDOM_LAMS, logs, strict=True)]
    return Finding(
        all_of(*(below(log, float(np.log(REACHED))) for log in logs)),
        seed_interval(np.log10(farthest)),
        f"largest relative distance to the minimum of any data set: {', '.join(said)}",
    )


@_at_main_size
def decay_tends_to_the_margin(results: Results, size: int) -> Finding:
    """The angle at the end from each lam to the next smaller."""
    angles = [results.last(random_key(lam), "angle", size) for lam in RANDOM_LAMS]
    steps = [seed_interval(np.log(after / before)) for before, after in itertools.pairwise(angles)]
    effect = seed_interval(np.log(angles[-1] / angles[0]))
    said = [f"{angle_S.mean():.4f} (lam {lam:g})" for lam, angle_S in zip(RANDOM_LAMS, angles, strict=True)]
    return Finding(
        all_of(*map(below, steps)),
        effect.exp(),
        f"the angle to the hard-margin direction is {', '.join(said)}; from the largest to the smallest lam a ratio of"
        f" {words(effect.exp())}",
    )


@_at_main_size
def outlier_needs_decay(results: Results, size: int, *, lam: float) -> Finding:
    """Test error with decay minus that without, one point being an outlier."""
    errors = [100 * results.last(outlier_key(value), "test/error", size) for value in (lam, 0.0)]
    effect = seed_interval(errors[0] - errors[1])
    angles = [results.last(outlier_key(value), "angle", size).mean() for value in (lam, 0.0)]
    return Finding(
        lowered(effect, SMALLEST_GAIN),
        effect,
        f"with lam {lam:g} the test error is {errors[0].mean():.2f} % and the angle to the hard-margin direction"
        f" {angles[0]:.3f}, without {errors[1].mean():.2f} % and {angles[1]:.3f}; the error changes by {words(effect, 2)}"
        " points",
    )
