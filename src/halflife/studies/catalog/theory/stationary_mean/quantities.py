"""The decision rules of the study `stationary-mean`, one function a claim, each for a group of arms.

Everything is a logarithm of a ratio per seed with Student's interval over seeds; distances are root mean squares over the
training inputs. A claim about several arms holds if it holds in each.

Shapes: S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.theory.stationary_mean.theory import path_of, rms, stationary_spec
from halflife.studies.evidence.decisions import EQUAL_CONFIDENCE, Finding, Outcome, above, all_of, below, within
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval

__all__ = [
    "CLOSED",
    "DIFFER",
    "LINES",
    "NETS",
    "NOISY_NETS",
    "SPARSE",
    "as_written",
    "form_explains",
    "jacobian_fits_better",
    "prefactor_is",
    "same_at_both_batches",
    "weights_stand_for_outputs",
]

LINES = ("line-0.2", "line-0.1", "line-0.05", "square")  # one parameter or two: any R fits with its own c
SPARSE = ("sparse", "sparse-batch", "sparse-square")
CLOSED = (*LINES, *SPARSE)
NETS = ("net-squared", "net-flips", "net-logistic")
NOISY_NETS = ("net-squared", "net-flips")
DIFFER = ("sparse-square",)  # the only one of SPARSE where the two R differ

EXPLAINS = 0.5  # of the distance without a regularizer
CONJECTURED, CONJECTURED_FACTOR = 1.0, 1.5
THEORY, THEORY_FACTOR, THEORY_FACTOR_NETS = 0.25, 1.2, 1.5
BATCH_FACTOR = 1.25
STANDS = 0.5
MOVED = 0.5  # of the distance without a regularizer, between the halves of the time: more is not stationary
LARGEST_GRADIENT = 1e-5  # at a minimum


def _measured(results: Results, keys: Sequence[str], size: int) -> bool:
    sizes = {(arm["key"], arm["size"]) for arm in results.arms}
    return all((key, size) in sizes for key in keys)


_ELSEWHERE = Finding(
    "inconclusive", None, "models with closed forms have no size: they are run beside the nets of the main one"
)


def _problem(results: Results, key: str, size: int) -> str:
    """Why an arm cannot decide (empty: it can)."""
    moved_S = results.last(key, "drift", size) / path_of(results, key, size).distance(0.0)
    if moved_S.mean() > MOVED:
        return f"{key} is not stationary (its mean moves by {moved_S.mean():.2f} of the distance between the halves)"
    gradient = results.last(key, "gradient", size).max()
    return f"minima of {key} were not found (gradient {gradient:.1e})" if gradient > LARGEST_GRADIENT else ""


def _text(ratio: Interval) -> str:
    shown = ratio.exp()
    return f"{shown.estimate:.3f} [{shown.low:.3f}, {shown.high:.3f}]"


def _log(values_S: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    return seed_interval(np.log(np.maximum(values_S, 1e-12)), confidence)


def _decided(
    results: Results,
    size: int,
    keys: Sequence[str],
    measure: Callable[[str], tuple[Outcome, Interval, str]],
    what: str,
    worst: Callable[[Interval], float],
) -> Finding:
    """A claim of several arms: each arm's outcome, log ratio and words; the effect is the arm where it holds least."""
    if not _measured(results, keys, size):
        return _ELSEWHERE
    outcomes, ratios, words = [], [], []
    for key in keys:
        outcome, ratio, said = measure(key)
        problem = _problem(results, key, size)
        outcomes.append("inconclusive" if problem else outcome)
        ratios.append(ratio)
        words.append(f"{key} {said}" + (f", {problem}" if problem else ""))
    return Finding(all_of(*outcomes), max(ratios, key=worst).exp(), f"{what}: {'; '.join(words)}")


def _lowest(results: Results, key: str, size: int) -> str:
    """How far the lowest minimum from any start is, where it was sought."""
    searched = stationary_spec(results, key, size).searched
    if not searched:
        return ""
    path = path_of(results, key, size)
    flat_SX = results.last_array(key, "lowest/jacobian/train", size)
    lowest_SCN = flat_SX.reshape(len(flat_SX), len(searched), -1)
    words = []
    for number, c in enumerate(searched):
        ratio_S = rms(lowest_SCN[:, number] - path.mean_SN) / path.distance(0.0)
        nearest_S = path.distance(c) / path.distance(0.0)
        words.append(f"{np.median(ratio_S):.3f} at c = {c:g}, where the nearest is at {np.median(nearest_S):.3f}")
    return f"; the lowest minimum from any start is at {' and '.join(words)}, medians"


def form_explains(results: Results, size: int, *, keys: tuple[str, ...]) -> Finding:
    """With c from the other seeds the objective predicts the mean better than no regularizer."""

    def measure(key: str) -> tuple[Outcome, Interval, str]:
        path = path_of(results, key, size)
        ratio = _log(path.distance(path.fit_of_others()) / path.distance(0.0))
        held = path_of(results, key, size, inputs="held-out")
        elsewhere = _log(held.distance(path.fit_of_others()) / held.distance(0.0))
        se = rms(results.last_array(key, "se/train", size)) / path.distance(0.0)
        said = (
            f"{_text(ratio)} (on held-out inputs {_text(elsewhere)}; the mean's own error is {se.mean():.3f}"
            f"{_lowest(results, key, size)})"
        )
        return below(ratio, float(np.log(EXPLAINS)), given=not path.at_edge()), ratio, said

    what = "distance of the mean with c from the other seeds, over that without a regularizer"
    return _decided(results, size, keys, measure, what, lambda ratio: ratio.estimate)


def prefactor_is(results: Results, size: int, *, keys: tuple[str, ...], value: float, factor: float) -> Finding:
    """The fitted c of ||J||^2 is a value within a factor."""

    def measure(key: str) -> tuple[Outcome, Interval, str]:
        path = path_of(results, key, size)
        ratio = _log(path.fit() / value, EQUAL_CONFIDENCE)
        fit = _log(path.fit(), EQUAL_CONFIDENCE)
        edge = path.at_edge()
        squares_S, scale_S = (results.last(key, name, size) for name in ("noise_sq", "noise_scale"))
        other = _log(path.fit() * squares_S / scale_S**2).exp().estimate
        said = f"{_text(fit)} ({other:.3f} if sigma is the mean of |l'|{', at an edge of the grid' if edge else ''})"
        return within(ratio, float(np.log(factor)), given=not edge), ratio, said

    return _decided(results, size, keys, measure, "fitted c", lambda ratio: max(abs(ratio.low), abs(ratio.high)))


def as_written(results: Results, size: int, *, keys: tuple[str, ...]) -> Finding:
    """With c = 1 the objective predicts the mean better than no regularizer."""

    def measure(key: str) -> tuple[Outcome, Interval, str]:
        path = path_of(results, key, size)
        ratio = _log(path.distance(CONJECTURED) / path.distance(0.0))
        return below(ratio), ratio, _text(ratio)

    what = "distance of the mean with c = 1 over that without a regularizer"
    return _decided(results, size, keys, measure, what, lambda ratio: ratio.estimate)


def jacobian_fits_better(results: Results, size: int, *, keys: tuple[str, ...]) -> Finding:
    """With c fitted for each, the trace of the Hessian leaves a larger distance than ||J||^2."""

    def measure(key: str) -> tuple[Outcome, Interval, str]:
        paths = [path_of(results, key, size, name) for name in ("hessian", "jacobian")]
        trace_S, jacobian_S = (path.distance(path.fit()) for path in paths)
        ratio = _log(trace_S / jacobian_S)
        fits = [_log(path.fit()).exp().estimate for path in paths]
        said = f"{_text(ratio)} (c {fits[0]:.3f} for the trace, {fits[1]:.3f} for ||J||^2)"
        return above(ratio, given=not any(path.at_edge() for path in paths)), ratio, said

    what = "distance with the trace of the Hessian over that with ||J||^2"
    return _decided(results, size, keys, measure, what, lambda ratio: -ratio.estimate)


def same_at_both_batches(results: Results, size: int) -> Finding:
    """The prefactor is proportional to 1 / B."""
    keys = ("sparse", "sparse-batch")
    if not _measured(results, keys, size):
        return _ELSEWHERE
    paths = [path_of(results, key, size) for key in keys]
    ratio = _log(paths[1].fit() / paths[0].fit(), EQUAL_CONFIDENCE)
    problems = [said for key in keys if (said := _problem(results, key, size))]
    given = not problems and not any(path.at_edge() for path in paths)
    fits = [_log(path.fit()).exp().estimate for path in paths]
    return Finding(
        within(ratio, float(np.log(BATCH_FACTOR)), given=given),
        ratio.exp(),
        f"B times the fitted prefactor is {fits[0]:.3f} at B = 1 and {fits[1]:.3f} at B = 4, a ratio of {_text(ratio)}"
        + "".join(f"; {said}" for said in problems),
    )


def weights_stand_for_outputs(results: Results, size: int, *, keys: tuple[str, ...]) -> Finding:
    """The outputs of the mean weights lie near the mean of the outputs."""

    def measure(key: str) -> tuple[Outcome, Interval, str]:
        path = path_of(results, key, size)
        ratio = _log(rms(path.weights_SN - path.mean_SN) / path.distance(0.0))
        return below(ratio, float(np.log(STANDS))), ratio, _text(ratio)

    what = "distance of the mean weights' outputs from the mean outputs, over the effect that is to be seen"
    return _decided(results, size, keys, measure, what, lambda ratio: ratio.estimate)
