"""The decision rules of the study of curvature in transformers that read a short text many times.

Losses are in nats per token, without dropout and smoothing. A run holds its learning rate; its branch goes on at a tiny one
without decay. Effects of curvature are ratios, so that their intervals are of logarithms.

Shapes: A arms, S seeds, E evaluations along a run, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import BLOCKS, nats
from halflife.studies.evidence.decisions import (
    Finding,
    Outcome,
    above,
    above_zero,
    all_of,
    below,
    leave_one_out,
    lowered,
    paired_blocks,
)
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval
from halflife.studies.specs.text import TextRun

__all__ = [
    "LAMS",
    "PLATEAU_LEVEL",
    "RATES",
    "SMALLEST_EFFECT",
    "beats_early_stopping",
    "branch_of",
    "generalizes_better",
    "key_of",
    "less_at_small_rate",
    "loss_plateaus",
    "lowered_by_decay",
    "lowered_by_rate",
    "ranks_losses",
]

RATES = ("large", "small")
LAMS = ("none", "mid", "strong")

RANKS = 0.8  # rank correlation of six settings, which are the same in all seeds: one by chance repeats itself in each
SMALLEST_EFFECT = 0.01  # nats, as in the dropout study, whose text is read several times too
PLATEAU_LEVEL = 2.0  # times the loss of the same run without decay, as in the stabilization studies


def key_of(rate: str, lam: str) -> str:
    """The arm of runs at a learning rate and a lam, both by name."""
    return f"{rate}-{lam}"


def branch_of(rate: str, lam: str) -> str:
    """The arm of the branches of these runs."""
    return f"{key_of(rate, lam)}-branch"


def num_steps(results: Results, size: int) -> int:
    """The length of the runs."""
    spec = results.spec(key_of("large", "none"), size)
    assert isinstance(spec, TextRun)
    return spec.num_steps


def _times(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def loss_plateaus(results: Results, size: int) -> Finding:
    """With the large rate, how the training loss falls in the second half of the runs, with strong decay and without."""
    end = num_steps(results, size)
    levels = {
        (lam, step): np.log(results.at_step(key_of("large", lam), "train/loss", step, size))
        for lam in ("none", "strong")
        for step in (end // 2, end)
    }
    falls = {lam: levels[lam, end // 2] - levels[lam, end] for lam in ("none", "strong")}
    contrast = seed_interval(falls["none"] - 2 * falls["strong"])
    level = seed_interval(levels["strong", end] - levels["none", end]).exp()
    outcome: Outcome = "inconclusive"
    if contrast.low > 0 and level.low > PLATEAU_LEVEL:
        outcome = "reproduced"
    elif contrast.high < 0 or level.high < PLATEAU_LEVEL:
        outcome = "not reproduced"
    parts = {lam: 100 * (1 - float(np.exp(-fall.mean()))) for lam, fall in falls.items()}
    ends = {lam: float(np.exp(levels[lam, end]).mean()) for lam in falls}
    return Finding(
        outcome,
        level,
        f"with the large rate the training loss falls by {parts['none']:.0f} % in the second half of the runs without decay"
        f" and by {parts['strong']:.0f} % with the strong one (in logarithms, the first minus twice the second is"
        f" {contrast.estimate:+.3f} [{contrast.low:+.3f}, {contrast.high:+.3f}]); it ends at {ends['none']:.2f} and"
        f" {ends['strong']:.2f} nats, a ratio of {_times(level)}",
    )


def _blocks(results: Results, rate: str, lam: str, size: int) -> NDArray[np.float64]:
    """The validation loss after the branch, by seed and block, (S, N)."""
    return results.last_array(branch_of(rate, lam), BLOCKS, size)


def _gap(results: Results, rate: str, lam: str, size: int) -> NDArray[np.float64]:
    """Validation loss minus training loss after the branch, (S,)."""
    key = branch_of(rate, lam)
    return results.last(key, "val/loss", size) - results.last(key, "train/loss", size)


def generalizes_better(results: Results, size: int) -> Finding:
    """With the large rate, validation loss and generalization gap after the branch, strong decay against none."""
    effect = paired_blocks(results, branch_of("large", "strong"), branch_of("large", "none"), size)
    gaps = [_gap(results, "large", lam, size) for lam in ("strong", "none")]
    gap = seed_interval(gaps[0] - gaps[1])
    return Finding(
        all_of(lowered(effect, SMALLEST_EFFECT), below(gap)),
        effect,
        f"after the branch from the large rate, strong decay changes the validation loss by {nats(effect)} and the gap to the"
        f" training loss, which is {gaps[1].mean():.2f} nats without, by {nats(gap)}",
    )


def _candidates(results: Results, lams: Sequence[str], size: int) -> NDArray[np.float64]:
    """The validation losses of every evaluation along runs with these lams, and after their branches, (A E, S)."""
    rows = []
    for rate in RATES:
        for lam in lams:
            losses_SE = np.array([values for _, values in results.series_by_step(key_of(rate, lam), "val/loss", size)])
            rows += [*losses_SE.T, results.last(branch_of(rate, lam), "val/loss", size)]
    return np.array(rows)


def beats_early_stopping(results: Results, size: int) -> Finding:
    """The lowest validation loss at any evaluation, any rate: with decay against without."""
    sides = []
    for lams in (LAMS[1:], LAMS[:1]):
        losses_AS = _candidates(results, lams, size)
        sides.append(losses_AS[leave_one_out(losses_AS), np.arange(losses_AS.shape[1])])
    effect = seed_interval(sides[0] - sides[1])
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"stopped where it is best, the validation loss is {sides[0].mean():.3f} nats with decay and {sides[1].mean():.3f}"
        f" without, a change of {nats(effect)}",
    )


def less_at_small_rate(results: Results, size: int) -> Finding:
    """What strong decay changes at the small rate, against half of what it changes at the large one."""
    large_SN, small_SN = (
        _blocks(results, rate, "strong", size) - _blocks(results, rate, "none", size) for rate in RATES
    )
    large, small, contrast = (
        crossed_interval(d_SN, example_name="blocks") for d_SN in (large_SN, small_SN, small_SN - large_SN / 2)
    )
    return Finding(
        above_zero(contrast, given=large.high < 0),
        contrast,
        f"after the branches strong decay changes the validation loss by {nats(small)} at the small rate and by"
        f" {nats(large)} at the large one; the first minus half of the second is {nats(contrast)}",
    )


WHERE = {"branch": "after the branch", "average": "of the average (EMA 0.99)"}


def _measured(results: Results, metric: str, where: str, rate: str, lam: str, size: int) -> NDArray[np.float64]:
    """A probe of the mean of the process: of the branch's end, or of the run's average; one value a seed."""
    if where == "branch":
        return results.last(branch_of(rate, lam), metric, size)
    return results.last(key_of(rate, lam), f"ema-0.99/{metric}", size)


NAMES = {"hessian_trace": "Hessian trace", "jacobian_norm": "Jacobian norm"}


def lowered_by_decay(results: Results, size: int, *, metric: str, where: str) -> Finding:
    """With the large rate, a measure of curvature with strong decay over that without.

    Args:
        results: What the store holds.
        size: The size.
        metric: ``"hessian_trace"`` or ``"jacobian_norm"``.
        where: ``"branch"`` or ``"average"``.

    Returns:
        The finding.
    """
    pair = [_measured(results, metric, where, "large", lam, size) for lam in ("strong", "none")]
    return _ratio(pair, f"{WHERE[where]}, large rate: {NAMES[metric]} with strong decay and without")


def lowered_by_rate(results: Results, size: int, *, metric: str, where: str) -> Finding:
    """With strong decay, a measure of curvature at the large rate over that at the small one.

    Args:
        results: What the store holds.
        size: The size.
        metric: As for `lowered_by_decay`.
        where: As for `lowered_by_decay`.

    Returns:
        The finding.
    """
    pair = [_measured(results, metric, where, rate, "strong", size) for rate in RATES]
    return _ratio(pair, f"{WHERE[where]}, strong decay: {NAMES[metric]} at the large rate and at the small one")


def _ratio(pair: Sequence[NDArray[np.float64]], words: str) -> Finding:
    if min(values.min() for values in pair) <= 0:
        # A trace may be negative where the loss is not convex; a ratio would then say nothing.
        return Finding("inconclusive", None, f"{words}: not above 0 in every seed, so that there is no ratio")
    log_ratio = seed_interval(np.log(pair[0] / pair[1]))
    ratio = log_ratio.exp()
    means = [float(values.mean()) for values in pair]
    return Finding(below(log_ratio), ratio, f"{words} {means[0]:.3g} and {means[1]:.3g}, a ratio of {_times(ratio)}")


def ranks_losses(results: Results, size: int, *, metric: str) -> Finding:
    """Whether a measure of curvature after the branch orders the arms as their validation losses do.

    Args:
        results: What the store holds.
        size: The size.
        metric: ``"hessian_trace"`` or ``"jacobian_norm"``.

    Returns:
        The finding.
    """
    keys = [branch_of(rate, lam) for rate in RATES for lam in LAMS]
    curvature_AS = np.array([results.last(key, metric, size) for key in keys])
    losses_AS = np.array([results.last(key, "val/loss", size) for key in keys])
    effect = seed_interval(
        [rank_correlation(x_A, y_A) for x_A, y_A in zip(curvature_AS.T, losses_AS.T, strict=True)],
    )
    return Finding(
        above(effect, RANKS),
        effect,
        f"over the {len(keys)} settings the rank correlation of {NAMES[metric]} and validation loss after the branch is"
        f" {effect.estimate:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]",
    )
