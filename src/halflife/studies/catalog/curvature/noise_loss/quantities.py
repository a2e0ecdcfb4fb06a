"""The decision rules of the study `noise-loss`, and the readings that they share with its figures.

Noise is the trace of the covariance of the examples' gradients, E ||g_i - g||^2 over the probed images; ||J||^2 the mean of the
squared Frobenius norms of their Jacobians; L their mean loss. Each seed has a slope of its own, intervals are over seeds.

Shapes: S seeds, P readings of one run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.decisions import EQUAL_CONFIDENCE, Finding, Outcome, above, below, within
from halflife.studies.evidence.fits import fit_lines
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval

__all__ = ["DECAY", "EARLY", "INTERPOLATING", "NONE", "Noise", "bound_holds", "constant", "noise_of", "slope_is"]

NONE, DECAY = "none", "decay"
EARLY = (0.3, 1.5)  # nats: most images are not fitted yet
INTERPOLATING = (0.0, 0.05)  # nats: practically all are
SLOPE_MARGIN = 0.3
MIN_POINTS, MIN_SPAN = 4, 2.0  # readings within a range of the loss, and its largest over its smallest there
CONSTANT = 1 / 3  # of its value early: a constant that falls below is none


@dataclass(frozen=True)
class Noise:
    """The readings of one run.

    Args:
        epoch_P: When.
        loss_P: L.
        noise_P: The trace of the covariance.
        jacobian_sq_P: ||J||^2.
    """

    epoch_P: NDArray[np.float64]
    loss_P: NDArray[np.float64]
    noise_P: NDArray[np.float64]
    jacobian_sq_P: NDArray[np.float64]

    @property
    def per_loss_P(self) -> NDArray[np.float64]:
        """Noise over ||J||^2 L: what the proposition bounds from both sides."""
        found: NDArray[np.float64] = self.noise_P / (self.jacobian_sq_P * self.loss_P)
        return found

    def within(self, low: float, high: float) -> NDArray[np.bool_]:
        """Which readings have a loss in a range."""
        return (self.loss_P > low) & (self.loss_P < high)


def noise_of(results: Results, key: str, size: int) -> list[Noise]:
    """The readings of an arm, one `Noise` a seed."""
    names = ("probe_loss", "gradient_noise_trace", "jacobian_norm")
    loss, noise, jacobian = (results.series(key, name, size) for name in names)
    return [
        Noise(epoch_P, loss_P, noise_P, jacobian_P**2)
        for (epoch_P, loss_P), (_, noise_P), (_, jacobian_P) in zip(loss, noise, jacobian, strict=True)
    ]


def _too_few(runs: list[Noise], loss_range: tuple[float, float]) -> str:
    for run in runs:
        losses = run.loss_P[run.within(*loss_range)]
        if len(losses) < MIN_POINTS or losses.max() < MIN_SPAN * losses.min():
            return (
                f"{len(losses)} readings of a seed have a loss between {loss_range[0]:g} and {loss_range[1]:g}, expected at"
                f" least {MIN_POINTS} that span a factor of {MIN_SPAN:g}"
            )
    return ""


def _slope(runs: list[Noise], loss_range: tuple[float, float], per_jacobian: bool) -> Interval:
    x, y = [], []
    for run in runs:
        inside = run.within(*loss_range)
        noise_P = run.noise_P / run.jacobian_sq_P if per_jacobian else run.noise_P
        x.append(np.log(run.loss_P[inside]))
        y.append(np.log(noise_P[inside]))
    return fit_lines(x, y, confidence=EQUAL_CONFIDENCE).slope


def slope_is(
    results: Results, size: int, *, loss_range: tuple[float, float], value: float, per_jacobian: bool
) -> Finding:
    """The slope of log noise in log loss without decay, over a range of the loss."""
    runs = noise_of(results, NONE, size)
    problem = _too_few(runs, loss_range)
    if problem:
        return Finding("inconclusive", None, problem)
    slopes = {each: _slope(runs, loss_range, each) for each in (False, True)}
    words = [
        f"{slope.estimate:.2f} [{slope.low:.2f}, {slope.high:.2f}] of the noise{' over ||J||^2' if each else ''}"
        for each, slope in slopes.items()
    ]
    growth = seed_interval([_range_of(run.jacobian_sq_P[run.within(*loss_range)]) for run in runs])
    decay = noise_of(results, DECAY, size)
    beside = ""
    if not _too_few(decay, loss_range):
        slope = _slope(decay, loss_range, per_jacobian)
        beside = f"; with decay {slope.estimate:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
    return Finding(
        within(slopes[per_jacobian], SLOPE_MARGIN, around=value),
        slopes[per_jacobian],
        f"for losses between {loss_range[0]:g} and {loss_range[1]:g} the slope is {' and '.join(words)}; ||J||^2 itself"
        f" changes by a factor of {growth.estimate:.1f} there{beside}",
    )


def _range_of(values_P: NDArray[np.float64]) -> float:
    return float(values_P.max() / values_P.min())


def bound_holds(results: Results, size: int) -> Finding:
    """At every reading the noise is below ||J||^2 L, and so below M^2 L with M the largest Jacobian norm of an example."""
    largest_S = np.max(
        [[run.per_loss_P.max() for run in noise_of(results, key, size)] for key in (NONE, DECAY)], axis=0
    )
    ratio = seed_interval(np.log(largest_S))
    shown = ratio.exp()
    # ||J||^2 is a mean over examples and M^2 the largest of them: a ratio above 1 would not contradict the bound.
    outcome: Outcome = "reproduced" if below(ratio) == "reproduced" else "inconclusive"
    return Finding(
        outcome,
        shown,
        f"the largest noise over ||J||^2 L of any reading is {shown.estimate:.3f} [{shown.low:.3f}, {shown.high:.3f}]",
    )


def constant(results: Results, size: int, *, key: str, stays: bool) -> Finding:
    """Whether noise / (||J||^2 L) in the last quarter of a run is still what it was early, without decay."""
    early, late = noise_of(results, NONE, size), noise_of(results, key, size)
    problem = _too_few(early, EARLY)
    if problem:
        return Finding("inconclusive", None, problem)
    before_S = [np.log(run.per_loss_P[run.within(*EARLY)]).mean() for run in early]
    last = [run.epoch_P > 0.75 * run.epoch_P.max() for run in late]
    after_S = [np.log(run.per_loss_P[inside]).mean() for run, inside in zip(late, last, strict=True)]
    losses_S = [run.loss_P[inside].mean() for run, inside in zip(late, last, strict=True)]
    ratio = seed_interval(np.subtract(after_S, before_S))
    bound = float(np.log(CONSTANT))
    shown = ratio.exp()
    return Finding(
        above(ratio, bound) if stays else below(ratio, bound),
        shown,
        f"noise over ||J||^2 L is {np.exp(np.mean(before_S)):.4f} at losses between {EARLY[0]:g} and {EARLY[1]:g} without"
        f" decay and {np.exp(np.mean(after_S)):.4f} in the last quarter of the run, where the loss is"
        f" {np.mean(losses_S):.4f}: a ratio of {shown.estimate:.3f} [{shown.low:.3f}, {shown.high:.3f}]",
    )
