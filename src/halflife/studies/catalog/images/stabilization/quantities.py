"""The decision rules of the stabilization studies, one function a claim.

Each takes the results and a size, and returns what the data say there. The bounds are constants on top, and the claims
(`halflife.studies.catalog.images.stabilization.study`) quote them. "Points" are percentage points of test error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import points
from halflife.studies.evidence.decisions import EQUAL_CONFIDENCE, Finding, Outcome, above_zero, all_of, lowered, within
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "average_gains_early",
    "helps_at_large_lr",
    "loss_plateaus",
    "not_at_small_lr",
    "same_norm_other_error",
]

LARGE_DECAY, LARGE_NONE, SMALL_DECAY, SMALL_NONE = "large-decay", "large-none", "small-decay", "small-none"

SMALLEST_EFFECT = 0.5  # points of test error: an improvement below this would not make anybody tune lam
PLATEAU_EXPONENT = 0.5  # the loss falls by less than sqrt(2) while the epochs double
VANISHING_EXPONENT = 1.0  # the loss falls at least as 1 / epochs
PLATEAU_LEVEL = 2.0  # times the loss of the same run without decay
EQUAL_MARGIN = 0.10  # norms and losses within 10 % are "nearly the same"


def _epochs(results: Results, size: int) -> tuple[int, int]:
    """The last epoch before the drop and the last of all."""
    spec = results.spec(LARGE_DECAY, size)
    assert isinstance(spec, ImageRun)
    return spec.drop_epoch, spec.num_epochs


def _wrong(results: Results, key: str, size: int, epoch: int, average: str = "") -> NDArray[np.float64]:
    """Wrong or right per seed and test example, in points (0 or 100)."""
    return 100 * results.per_example(key, f"{average}test/wrong", epoch, size)


def helps_at_large_lr(results: Results, size: int) -> Finding:
    """Claim a."""
    _, end = _epochs(results, size)
    effect = crossed_interval(_wrong(results, LARGE_DECAY, size, end) - _wrong(results, LARGE_NONE, size, end))
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with the large learning rate decay changes the final test error by {points(effect)}",
    )


def not_at_small_lr(results: Results, size: int) -> Finding:
    """Claim b."""
    _, end = _epochs(results, size)
    large = _wrong(results, LARGE_DECAY, size, end) - _wrong(results, LARGE_NONE, size, end)
    small = _wrong(results, SMALL_DECAY, size, end) - _wrong(results, SMALL_NONE, size, end)
    large_effect, small_effect = crossed_interval(large), crossed_interval(small)
    contrast = crossed_interval(small - large / 2)
    outcome = above_zero(contrast, given=large_effect.high < 0)
    return Finding(
        outcome,
        contrast,
        f"with the small learning rate decay changes the final test error by {points(small_effect)}, with the large one"
        f" by {points(large_effect)}; the first minus half of the second is {points(contrast)}",
    )


def _falling_exponents(results: Results, key: str, size: int, drop: int) -> NDArray[np.float64]:
    """Per seed the p of loss ~ epochs^-p over the second half of the phase before the drop."""
    exponents = []
    for epochs, losses in results.series(key, "train/running_loss", size):
        inside = (epochs >= drop / 2) & (epochs <= drop)
        slope, _ = np.polyfit(np.log(epochs[inside]), np.log(losses[inside]), 1)
        exponents.append(-slope)
    return np.array(exponents)


def loss_plateaus(results: Results, size: int, *, keys: tuple[str, str] = (LARGE_DECAY, LARGE_NONE)) -> Finding:
    """Claim c.

    Args:
        results: What the store holds.
        size: The size.
        keys: The arms with decay and without, which drop their rate at the same epoch.

    Returns:
        The finding.
    """
    spec = results.spec(keys[0], size)
    assert isinstance(spec, ImageRun)
    drop = spec.drop_epoch
    with_decay, without = (seed_interval(_falling_exponents(results, key, size, drop)) for key in keys)
    levels = [results.per_seed(key, "train/loss", drop, size) for key in keys]
    log_ratio = seed_interval(np.log(levels[0] / levels[1]))
    level = log_ratio.exp()
    outcome: Outcome = "inconclusive"
    if with_decay.high < PLATEAU_EXPONENT and without.low > VANISHING_EXPONENT and level.low > PLATEAU_LEVEL:
        outcome = "reproduced"
    elif with_decay.low > PLATEAU_EXPONENT or without.high < VANISHING_EXPONENT or level.high < PLATEAU_LEVEL:
        outcome = "not reproduced"
    return Finding(
        outcome,
        level,
        f"before the drop the training loss falls as epochs^-p with p = {with_decay.estimate:.2f} [{with_decay.low:.2f},"
        f" {with_decay.high:.2f}] with decay and p = {without.estimate:.2f} [{without.low:.2f}, {without.high:.2f}]"
        f" without; it ends at {levels[0].mean():.3f} and {levels[1].mean():.3f}, a ratio of {level.estimate:.2f}"
        f" [{level.low:.2f}, {level.high:.2f}]",
    )


def same_norm_other_error(results: Results, size: int) -> Finding:
    """Claim d."""
    _, end = _epochs(results, size)
    margin = float(np.log1p(EQUAL_MARGIN))
    agreements, words = [], []
    for metric, word in (("weight_norm", "norm"), ("train/loss", "training loss")):
        pair = [results.per_seed(key, metric, end, size) for key in (SMALL_DECAY, LARGE_DECAY)]
        ratio = seed_interval(np.log(pair[0] / pair[1]), confidence=EQUAL_CONFIDENCE)
        agreements.append(within(ratio, margin))
        low, mid, high = np.exp([ratio.low, ratio.estimate, ratio.high])
        words.append(f"{word} {pair[0].mean():.3g} and {pair[1].mean():.3g} (ratio {mid:.2f} [{low:.2f}, {high:.2f}])")
    error = crossed_interval(_wrong(results, SMALL_DECAY, size, end) - _wrong(results, LARGE_DECAY, size, end))
    differs = error.low > 0 or error.high < 0
    outcome: Outcome = "inconclusive"
    if all_of(*agreements) == "reproduced" and differs:
        outcome = "reproduced"
    elif "not reproduced" in agreements or within(error, SMALLEST_EFFECT) == "reproduced":
        outcome = "not reproduced"
    return Finding(
        outcome,
        error,
        f"the small and the large learning rate with the same lam end with {', '.join(words)}; their test errors differ by"
        f" {points(error)}",
    )


def average_gains_early(results: Results, size: int, *, decay: float) -> Finding:
    """Claim e, for one averaging time."""
    drop, end = _epochs(results, size)
    before, after = (_wrong(results, LARGE_DECAY, size, epoch) for epoch in (drop, end))
    average = _wrong(results, LARGE_DECAY, size, drop, f"ema-{decay:g}/")
    drop_gain, average_gain = crossed_interval(before - after), crossed_interval(before - average)
    contrast = crossed_interval((before - average) - (before - after) / 2)
    outcome = above_zero(contrast, given=drop_gain.low > 0)
    return Finding(
        outcome,
        contrast,
        f"dropping the learning rate lowers the test error by {points(drop_gain)}, averaging (EMA {decay:g}) before the"
        f" drop by {points(average_gain)}; the second minus half of the first is {points(contrast)}",
    )
