"""The decision rules of the study of nets without normalization.

Errors are test errors in points; an arm's *average* is the moving average of its weights just before the learning rate drops,
its *end* the weights long after. A product is lr * lam, the fraction of the weights that a step removes.

Shapes: A arms, S seeds, N test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.transformer.quantities import NAMES
from halflife.studies.catalog.images.common import image_run, points
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above,
    above_zero,
    all_of,
    below,
    best_of,
    equal_at_stake,
    exceeds,
    lowered,
)
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "AVERAGE",
    "EQUAL_MARGIN",
    "MIXED",
    "NUM_PRODUCTS",
    "PLAIN",
    "RATES",
    "SAME_LAM",
    "SMALLEST_EFFECT",
    "TWIN",
    "error_is_of_the_product",
    "falls_with_rate_and_decay",
    "key_of",
    "keys_of",
    "prediction_errors",
    "product_beats_effective_rate",
    "ranks_errors",
    "small_rate_needs_normalization",
    "tuned_decay_helps",
]

PLAIN, TWIN = "plain", "normalized"
RATES = ("large", "small")
NUM_PRODUCTS = 4  # arms 1 to 4 of a rate, in rising order; arm 0 is without decay
SAME_LAM = {"large": 3, "small": 1}
"""The arms of the two rates whose lam is the same."""
MIXED = (3, 4)
"""The products with a time scale 1 / (lr lam) of at most half of the phase before the drop."""
AVERAGE = "ema-0.99/"

RANKS = 0.5  # rank correlation: settings are the same in all seeds, so that one by chance repeats itself in each
SMALLEST_EFFECT = 0.5  # points, as in the stabilization studies
EQUAL_MARGIN = (
    1.0  # points: a third of what errors along the grid of products differ by (the paper's figure 4 and ours)
)

Errors = NDArray[np.float64]


def key_of(net: str, rate: str, index: int) -> str:
    """The arm of a net, a rate by name and a product by its index."""
    return f"{net}-{rate}-{index}"


def keys_of(*, decay: bool | None = None) -> list[str]:
    """The arms of the net without normalization: with decay, without, or all."""
    indices = [index for index in range(NUM_PRODUCTS + 1) if decay is None or decay == (index > 0)]
    return [key_of(PLAIN, rate, index) for rate in RATES for index in indices]


def _at_end(results: Results, key: str, size: int) -> Errors:
    """Wrong or right at the end, per seed and example, in points (0 or 100)."""
    return 100 * results.last_array(key, "test/wrong", size)


def _average(results: Results, key: str, size: int) -> Errors:
    """The same of the average at the drop."""
    drop = image_run(results, key, size).drop_epoch
    return 100 * results.per_example(key, f"{AVERAGE}test/wrong", drop, size)


def tuned_decay_helps(results: Results, size: int) -> Finding:
    """The best of all arms with decay against the best without, rates and lam chosen on the other seeds."""
    sides = [
        100 * best_of(results, keys_of(decay=decay), "test/error", size, array="test/wrong") for decay in (True, False)
    ]
    effect = crossed_interval(sides[0] - sides[1])
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"best against best, decay changes the final test error of the net without normalization by {points(effect)}, from"
        f" {sides[1].mean():.1f} %",
    )


def small_rate_needs_normalization(results: Results, size: int) -> Finding:
    """What decay changes at the small rate: without normalization minus with; the lam is that of a good large rate."""
    changes = {
        (net, rate): _at_end(results, key_of(net, rate, SAME_LAM[rate]), size)
        - _at_end(results, key_of(net, rate, 0), size)
        for net in (PLAIN, TWIN)
        for rate in RATES
    }
    effect = crossed_interval(changes[PLAIN, "small"] - changes[TWIN, "small"])
    small, twin = (points(crossed_interval(changes[net, "small"])) for net in (PLAIN, TWIN))
    large, large_twin = (points(crossed_interval(changes[net, "large"])) for net in (PLAIN, TWIN))
    return Finding(
        above_zero(effect),
        effect,
        f"at the small rate decay changes the final test error by {small} without normalization and by {twin} with: the first"
        f" minus the second is {points(effect)}; at the large rate, same lam, by {large} and {large_twin}",
    )


def error_is_of_the_product(results: Results, size: int) -> Finding:
    """The error of the average at equal lr * lam: large rate minus small, mean over the products that have mixed."""
    wrong = {
        (rate, index): _average(results, key_of(PLAIN, rate, index), size)
        for rate in RATES
        for index in {*MIXED, SAME_LAM[rate]}
    }
    difference_SN = np.mean([wrong["large", index] - wrong["small", index] for index in MIXED], axis=0)
    same_lam = crossed_interval(wrong["large", SAME_LAM["large"]] - wrong["small", SAME_LAM["small"]])
    effect = crossed_interval(difference_SN, confidence=EQUAL_CONFIDENCE)
    one_by_one = ", ".join(
        f"{points(crossed_interval(wrong['large', index] - wrong['small', index]))} at lr lam"
        f" {_product(image_run(results, key_of(PLAIN, 'large', index), size)):.2g}"
        for index in MIXED
    )
    return Finding(
        equal_at_stake(effect, EQUAL_MARGIN, at_stake=exceeds(same_lam, EQUAL_MARGIN)),
        effect,
        f"at equal lr lam the error of the average at the large rate minus that at the small one is {points(effect)} (90 %;"
        f" {one_by_one}); at equal lam it is {points(same_lam)}",
    )


def _product(spec: ImageRun) -> float:
    return spec.lr * spec.lam


def _log_products(results: Results, keys: Iterable[str], size: int, num_seeds: int) -> NDArray[np.float64]:
    logs_A = np.array([np.log(_product(image_run(results, key, size))) for key in keys])
    return np.repeat(logs_A[:, None], num_seeds, axis=1)


def _at_drop(results: Results, key: str, metric: str, size: int) -> NDArray[np.float64]:
    return results.per_seed(key, metric, image_run(results, key, size).drop_epoch, size)


def prediction_errors(x_AS: NDArray[np.float64], y_AS: NDArray[np.float64]) -> NDArray[np.float64]:
    """How well a parabola in x, fitted to the other seeds, predicts the arms of each seed.

    Args:
        x_AS: A variable, one value an arm and seed, S >= 2.
        y_AS: What it is to predict.

    Returns:
        Root mean squared error over arms, (S,).

    Examples:
        >>> x = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])
        >>> prediction_errors(x, 3 * x**2 - x + 2).round(9).tolist()
        [0.0, 0.0]
    """
    errors = []
    for seed in range(x_AS.shape[1]):
        others = np.delete(np.arange(x_AS.shape[1]), seed)
        middle, scale = x_AS[:, others].mean(), max(float(x_AS[:, others].std()), 1e-12)
        powers_AS3 = np.stack([((x_AS - middle) / scale) ** power for power in range(3)], axis=-1)
        # Least squares of the smallest norm, where x has fewer than three places.
        solution_3 = np.linalg.lstsq(powers_AS3[:, others].reshape(-1, 3), y_AS[:, others].ravel(), rcond=None)[0]
        left_A = y_AS[:, seed] - powers_AS3[:, seed] @ solution_3
        errors.append(float(np.sqrt((left_A**2).mean())))
    return np.array(errors)


def product_beats_effective_rate(results: Results, size: int) -> Finding:
    """How well the error of the average is predicted by lr / ||w||^2, against lr * lam; curvature beside them."""
    keys = keys_of(decay=True)
    error_AS = 100 * np.array([_at_drop(results, key, f"{AVERAGE}test/error", size) for key in keys])

    def logs(metric: str) -> NDArray[np.float64]:
        # A trace of the Hessian is not bound to be positive; one that is not predicts as the smallest that is.
        values_AS = np.array([_at_drop(results, key, metric, size) for key in keys])
        logs_AS: NDArray[np.float64] = np.log(np.maximum(values_AS, min(values_AS[values_AS > 0], default=1.0)))
        return logs_AS

    found = {
        "lr lam": prediction_errors(_log_products(results, keys, size, error_AS.shape[1]), error_AS),
        "lr / ||w||^2": prediction_errors(logs("effective_lr"), error_AS),
        NAMES["hessian_trace"]: prediction_errors(logs(f"{AVERAGE}hessian_trace"), error_AS),
        NAMES["jacobian_norm"]: prediction_errors(logs(f"{AVERAGE}jacobian_norm"), error_AS),
    }
    effect = seed_interval(found["lr / ||w||^2"] - found["lr lam"])
    words = ", ".join(f"{name} {errors_S.mean():.2f}" for name, errors_S in found.items())
    return Finding(
        above_zero(effect),
        effect,
        f"a parabola in one variable predicts the error of the average, in a seed that it was not fitted to, with an error of"
        f" {words} points (root mean square); errors of the {len(keys)} settings have a standard deviation of"
        f" {error_AS.mean(axis=1).std():.2f} points; lr / ||w||^2 minus lr lam is {points(effect)}",
    )


def ranks_errors(results: Results, size: int, *, metric: str, where: str) -> Finding:
    """Whether a measure of curvature orders the settings as their test errors do.

    Args:
        results: What the store holds.
        size: The size.
        metric: ``"hessian_trace"`` or ``"jacobian_norm"``.
        where: ``"average"``, or ``"end"`` for the weights at the end.

    Returns:
        The finding.
    """
    keys = keys_of()
    read: Callable[[str, str], NDArray[np.float64]] = (
        (lambda key, name: _at_drop(results, key, f"{AVERAGE}{name}", size))
        if where == "average"
        else (lambda key, name: results.last(key, name, size))
    )
    curvature_AS = np.array([read(key, metric) for key in keys])
    error_AS = np.array([read(key, "test/error") for key in keys])
    effect = seed_interval(
        [rank_correlation(x_A, y_A) for x_A, y_A in zip(curvature_AS.T, error_AS.T, strict=True)],
    )
    return Finding(
        above(effect, RANKS),
        effect,
        f"over the {len(keys)} settings the rank correlation of {NAMES[metric]} and test error of the"
        f" {'average' if where == 'average' else 'weights at the end'} is {effect.estimate:+.2f} [{effect.low:+.2f},"
        f" {effect.high:+.2f}]",
    )


def falls_with_rate_and_decay(results: Results, size: int, *, metric: str) -> Finding:
    """The exponents of a measure of curvature of the average in lr and lam: metric ~ lr^a lam^b, for each seed.

    Args:
        results: What the store holds.
        size: The size.
        metric: ``"hessian_trace"`` or ``"jacobian_norm"``.

    Returns:
        The finding.
    """
    keys = keys_of(decay=True)
    values_AS = np.array([_at_drop(results, key, f"{AVERAGE}{metric}", size) for key in keys])
    if values_AS.min() <= 0:
        return Finding("inconclusive", None, f"{NAMES[metric]}: not above 0 everywhere, so that it has no exponents")
    specs = [image_run(results, key, size) for key in keys]
    design_A3 = np.array([[1.0, np.log(spec.lr), np.log(spec.lam)] for spec in specs])
    solution_3S = np.linalg.lstsq(design_A3, np.log(values_AS), rcond=None)[0]
    rate, decay, apart = (seed_interval(values_S) for values_S in (*solution_3S[1:], solution_3S[1] - solution_3S[2]))
    left_AS = np.log(values_AS) - design_A3 @ solution_3S
    explained = 1 - float(left_AS.var() / (np.log(values_AS) - np.log(values_AS).mean(axis=0)).var())

    def words(interval: Interval) -> str:
        return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"

    return Finding(
        all_of(below(rate), below(decay)),
        decay,
        f"{NAMES[metric]} of the average goes as lr^a lam^b with a = {words(rate)} and b = {words(decay)}; a - b, which is 0"
        f" for what depends on lr lam alone, is {words(apart)}; this explains {100 * explained:.0f} % of the variance of its"
        " logarithm",
    )
