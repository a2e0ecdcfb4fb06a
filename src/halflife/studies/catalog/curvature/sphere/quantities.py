"""What the study of the sphere reads from its store, and the rules that decide on its claims.

Shapes: R learning rates in rising order, S seeds, N test examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run, points
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    Outcome,
    above,
    all_of,
    below,
    exceeds,
    leave_one_out,
    lowered,
    within,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, Interval, crossed_interval, seed_interval

__all__ = [
    "NUM_DRAWN",
    "average_jacobian_falls",
    "branch_key",
    "branch_keys",
    "drawn_key",
    "drawn_keys",
    "fine_tuned_rises",
    "only_the_ratio_counts",
    "optimum_inside",
    "plateau_of",
    "plateau_rises",
    "rate_key",
    "rate_keys",
    "scaled_key",
]

SMALLEST_EFFECT = 0.5  # points of test error, as in the stabilization studies
PLATEAU_MARGIN = 0.05  # of a training loss, in parts
NUM_DRAWN = 3
"""Learning rates of the paper's curves: that of the lowest error, and two above; ours are found by their training losses."""


def rate_key(rate: int) -> str:
    """The arm of a learning rate whose curves are not shown, by its index among these."""
    return f"lr-{rate}"


def drawn_key(drawn: int) -> str:
    """The arm of a learning rate whose curves are shown, by its index among these."""
    return f"lr-drawn-{drawn}"


def scaled_key(drawn: int) -> str:
    """The arm with twice the radius and four times a learning rate whose curves are shown."""
    return f"scaled-drawn-{drawn}"


def branch_key(drawn: int, place: int) -> str:
    """The arm that is fine-tuned from the weights of a shown one, by the index of the epoch among those kept."""
    return f"fine-tuned-drawn-{drawn}-{place}"


def _keys(results: Results, size: int, start: str) -> list[str]:
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith(start)]


def rate_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid, learning rates rising."""
    return sorted(_keys(results, size, "lr-"), key=lambda key: image_run(results, key, size).lr)


def drawn_keys(results: Results, size: int) -> list[str]:
    """The arms of the learning rates whose curves are shown, rising."""
    return _keys(results, size, "lr-drawn-")


def branch_keys(results: Results, key: str, size: int) -> list[str]:
    """The arms that are fine-tuned from an arm's weights, in the order of their epochs."""
    return _keys(results, size, key.replace("lr-", "fine-tuned-") + "-")


def _plain(interval: Interval) -> str:
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _listed(values_RS: NDArray[np.float64]) -> str:
    return " / ".join(f"{value:.3g}" for value in values_RS.mean(axis=1))


def _rates(results: Results, keys: list[str], size: int) -> list[float]:
    return [image_run(results, key, size).lr for key in keys]


def _rates_text(results: Results, keys: list[str], size: int) -> str:
    return " / ".join(f"{lr:g}" for lr in _rates(results, keys, size))


def _wrong(results: Results, key: str, size: int) -> NDArray[np.float64]:
    """Wrong or right after fine-tuning per seed and test example, in points."""
    return 100 * results.per_example(key, "test/wrong", image_run(results, key, size).num_epochs, size)


def optimum_inside(results: Results, size: int) -> Finding:
    """Claim u-shape."""
    keys = rate_keys(results, size)
    wrong_RSN = np.array([_wrong(results, key, size) for key in keys])
    chosen_S = 1 + leave_one_out(wrong_RSN[1:-1].mean(axis=2))
    inside_SN = np.array([wrong_RSN[rate, seed] for seed, rate in enumerate(chosen_S)])
    low, high = (crossed_interval(inside_SN - wrong_RSN[end]) for end in (0, -1))
    rates = _rates(results, keys, size)
    found = sorted({rates[rate] for rate in chosen_S})
    return Finding(
        all_of(lowered(low, SMALLEST_EFFECT), lowered(high, SMALLEST_EFFECT)),
        max(low, high, key=lambda effect: effect.estimate),
        f"the test error after fine-tuning is {_listed(wrong_RSN.mean(axis=2))} % at the learning rates"
        f" {_rates_text(results, keys, size)}; the best inside, chosen on the other seeds"
        f" ({', '.join(f'{lr:g}' for lr in found)}), changes it by {points(low)} against the smallest and {points(high)}"
        " against the largest",
    )


def plateau_of(results: Results, key: str, size: int) -> NDArray[np.float64]:
    """The mean training loss of an epoch over the second half of the large-rate phase.

    Returns:
        Shape (S,).
    """
    drop = image_run(results, key, size).drop_epoch
    return np.array(
        [
            losses[(epochs > drop / 2) & (epochs <= drop)].mean()
            for epochs, losses in results.series(key, "train/running_loss", size)
        ]
    )


def _exponent(
    results: Results, keys: list[str], values_RS: NDArray[np.float64], size: int, confidence: float = CONFIDENCE
) -> Interval:
    """The p of (quantity ~ lr^p), fitted in each seed."""
    log_lr = np.log(_rates(results, keys, size))
    weights = (log_lr - log_lr.mean()) / ((log_lr - log_lr.mean()) ** 2).sum()
    return seed_interval(weights @ np.log(values_RS), confidence)


def plateau_rises(results: Results, size: int) -> Finding:
    """Claim plateau."""
    keys = drawn_keys(results, size)
    losses_RS = np.array([plateau_of(results, key, size) for key in keys])
    effect = _exponent(results, keys, losses_RS, size)
    return Finding(
        above(effect),
        effect,
        f"the training loss before the drop is {_listed(losses_RS)} at the learning rates"
        f" {_rates_text(results, keys, size)}: lr^p with p = {_plain(effect)}",
    )


def average_jacobian_falls(results: Results, size: int) -> Finding:
    """Claim average-jacobian: as the average is, and scaled to the sphere."""
    keys = drawn_keys(results, size)
    norms, jacobians = [], []
    for key in keys:
        spec = image_run(results, key, size)
        prefix = f"ema-{spec.ema[0]:g}/"
        jacobians.append(results.per_seed(key, f"{prefix}jacobian_norm", spec.drop_epoch, size))
        norms.append(results.per_seed(key, f"{prefix}weight_norm", spec.drop_epoch, size) / spec.sphere)
    raw_RS, shrunk_RS = np.array(jacobians), np.array(norms)
    raw, scaled = (_exponent(results, keys, values_RS, size) for values_RS in (raw_RS, raw_RS * shrunk_RS))
    return Finding(
        all_of(below(raw), below(scaled)),
        scaled,
        f"||J|| of the average before the drop is {_listed(raw_RS)} at the learning rates {_rates_text(results, keys, size)},"
        f" lr^p with p = {_plain(raw)}; its norm is {_listed(shrunk_RS)} of the radius, and scaled to the sphere its ||J|| is"
        f" {_listed(raw_RS * shrunk_RS)}, p = {_plain(scaled)}",
    )


def fine_tuned_rises(results: Results, size: int, *, metric: str, name: str) -> Finding:
    """Claims fine-tuned-jacobian and fine-tuned-trace.

    Args:
        results: What the store holds.
        size: The size.
        metric: The reading.
        name: What it is, for the sentence.

    Returns:
        The finding.
    """
    keys = drawn_keys(results, size)
    end = [image_run(results, key, size).num_epochs for key in keys]
    values_RS, losses_RS = (
        np.array([results.per_seed(key, what, epoch, size) for key, epoch in zip(keys, end, strict=True)])
        for what in (metric, "train/loss")
    )
    if values_RS.min() <= 0:
        return Finding("inconclusive", None, f"{name} after fine-tuning is not above 0 in every run: no exponent")
    effect = _exponent(results, keys, values_RS, size)
    return Finding(
        above(effect),
        effect,
        f"{name} after fine-tuning is {_listed(values_RS)} after the learning rates {_rates_text(results, keys, size)}: lr^p"
        f" with p = {_plain(effect)}; the training losses there are {_listed(losses_RS)}",
    )


def only_the_ratio_counts(results: Results, size: int) -> Finding:
    """Claim radius."""
    outcomes: list[Outcome] = []
    effects, words = [], []
    for key in _keys(results, size, "scaled-"):
        spec = image_run(results, key, size)
        same = key.replace("scaled-", "lr-")
        base = image_run(results, same, size)
        error = crossed_interval(_wrong(results, key, size) - _wrong(results, same, size), confidence=EQUAL_CONFIDENCE)
        loss = _log_plateau(results, key, same, size)
        # What else could be: that the learning rate alone counts. Then the nearest arm is another one.
        nearest = min(rate_keys(results, size), key=lambda arm: abs(np.log(image_run(results, arm, size).lr / spec.lr)))
        stake = _log_plateau(results, nearest, same, size)
        equal = all_of(within(error, SMALLEST_EFFECT), within(loss, float(np.log1p(PLATEAU_MARGIN))))
        at_stake = exceeds(stake, float(np.log1p(PLATEAU_MARGIN)))
        outcomes.append("inconclusive" if equal == "reproduced" and not at_stake else equal)
        effects.append(error)
        ratio, other = loss.exp(), stake.exp()
        words.append(
            f"radius {spec.sphere:g} with lr {spec.lr:g} against radius {base.sphere:g} with lr {base.lr:g}: test error"
            f" {points(error)}, training loss before the drop {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times"
            f" (with lr {image_run(results, nearest, size).lr:g} at radius {base.sphere:g} {other.estimate:.2f} times)"
        )
    return Finding(all_of(*outcomes), max(effects, key=lambda e: abs(e.estimate)), "; ".join(words))


def _log_plateau(results: Results, key: str, reference: str, size: int) -> Interval:
    return seed_interval(
        np.log(plateau_of(results, key, size) / plateau_of(results, reference, size)), confidence=EQUAL_CONFIDENCE
    )
