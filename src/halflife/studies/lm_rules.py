"""The decision rules of `lm-schedules`, and the words and differences that the language-model studies share.

Losses are in nats per token. A difference is paired by seed and by block of validation tokens, and both count as samples.
The bounds are constants on top, and the claims quote them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halflife.specs.branches import TextBranch
from halflife.stats import Interval, crossed_interval
from halflife.studies.base import Finding, Outcome
from halflife.studies.decide import (
    EQUAL_CONFIDENCE,
    above_zero,
    all_of,
    below,
    best_of,
    paired_blocks,
    within,
)
from halflife.studies.lm_settings import key_of
from halflife.studies.results import Results

__all__ = [
    "BLOCKS",
    "EARLY_MARGIN",
    "MIDWAY",
    "SMALLEST_EFFECT",
    "best_against_best",
    "branch_is_lower",
    "branches_coincide",
    "crosses",
    "gains_late",
    "gap_shrinks",
    "higher_at_constant",
    "lower",
    "lower_at_same_lr",
    "nats",
    "shares_of",
    "starting_with",
    "step_of",
]

BLOCKS = "val/loss_blocks"
SMALLEST_EFFECT = 0.002  # nats: a tenth of the paper's effect
EARLY_MARGIN = 0.01  # nats: branches that end closer than half of the paper's effect nearly coincide
MIDWAY = 40  # per cent of a decayed run


def nats(interval: Interval) -> str:
    """A difference of losses in words."""
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] nats"


def starting_with(results: Results, prefix: str, size: int) -> list[str]:
    """The keys at a size that start so, in the sheet's order: presets differ in how many rates they run."""
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith(prefix)]


def shares_of(results: Results, branch: str, kind: str, size: int) -> list[int]:
    """The per cents of a run at which there are branches of a kind, in order."""
    prefix = f"{branch}-{kind}-none-"
    return sorted(int(key.removeprefix(prefix)) for key in starting_with(results, prefix, size))


def step_of(results: Results, kind: str, share: int, size: int) -> int:
    """The step of a run at which the branches of a share start."""
    spec = results.spec(f"tiny-lr-{kind}-none-{share}", size)
    assert isinstance(spec, TextBranch)
    return spec.at


def lower(difference: Interval) -> Outcome:
    """Whether a loss is lowered: no, if an improvement of `SMALLEST_EFFECT` is excluded."""
    if difference.high < 0:
        return "reproduced"
    return "not reproduced" if difference.low > -SMALLEST_EFFECT else "inconclusive"


def _blocks(results: Results, key: str, size: int, step: int | None = None) -> NDArray[np.float64]:
    """Losses per seed and block, (S, N)."""
    return results.last_array(key, BLOCKS, size) if step is None else results.array_at_step(key, BLOCKS, step, size)


def best_against_best(results: Results, size: int) -> Finding:
    """The best lam > 0 and rate against the best rate without decay, each chosen on the other seeds."""
    sides = []
    for lams in (("moderate", "large"), ("none",)):
        keys = [key for lam in lams for key in starting_with(results, f"decayed-{lam}-", size)]
        sides.append(best_of(results, keys, "val/loss", size, array=BLOCKS))
    effect = crossed_interval(sides[0] - sides[1], example_name="blocks")
    return Finding(
        lower(effect),
        effect,
        f"with a decayed rate the best run with decay ends at {sides[0].mean():.4f}, the best without at"
        f" {sides[1].mean():.4f}, lam and rates chosen on the other seeds: {nats(effect)}",
    )


def lower_at_same_lr(results: Results, size: int, *, lam: str) -> Finding:
    """The final loss of decayed runs at the main rate, with and without decay."""
    effect = paired_blocks(results, key_of("decayed", lam), key_of("decayed", "none"), size)
    return Finding(
        lower(effect), effect, f"at the main rate, decayed, {lam} decay changes the final loss by {nats(effect)}"
    )


def higher_at_constant(results: Results, size: int, *, lam: str) -> Finding:
    """The last loss of runs at a constant rate."""
    effect = paired_blocks(results, key_of("constant", lam), key_of("constant", "none"), size)
    return Finding(
        above_zero(effect), effect, f"at a constant rate {lam} decay changes the last loss by {nats(effect)}"
    )


def gap_shrinks(results: Results, size: int, *, lam: str, branch: str = "tiny-lr") -> Finding:
    """What decay costs before and after a branch at the end of the run at a constant rate."""
    before_SN = _blocks(results, key_of("constant", lam), size) - _blocks(results, key_of("constant", "none"), size)
    after_SN = _blocks(results, f"{branch}-constant-{lam}-100", size) - _blocks(
        results, f"{branch}-constant-none-100", size
    )
    before, after, effect = (
        crossed_interval(d_SN, example_name="blocks") for d_SN in (before_SN, after_SN, before_SN - after_SN)
    )
    return Finding(
        above_zero(effect, given=before.low > 0),
        effect,
        f"at the end of the run at a constant rate {lam} decay costs {nats(before)}, after the {branch} branch"
        f" {nats(after)}: the first minus the second is {nats(effect)}",
    )


def branch_is_lower(results: Results, size: int, *, lam: str, branch: str, kind: str = "constant") -> Finding:
    """The losses at the end of the branches from the last point of a run."""
    share = shares_of(results, branch, kind, size)[-1]
    effect = paired_blocks(results, f"{branch}-{kind}-{lam}-{share}", f"{branch}-{kind}-none-{share}", size)
    return Finding(
        below(effect),
        effect,
        f"after a {branch} branch from {share} % of the {kind} run {lam} decay has changed the loss by {nats(effect)}",
    )


def crosses(results: Results, size: int, *, lam: str) -> Finding:
    """Higher midway, lower at the end of the decayed run."""
    step = step_of(results, "decayed", MIDWAY, size)
    keys = key_of("decayed", lam), key_of("decayed", "none")
    midway, end = paired_blocks(results, *keys, size, step=step), paired_blocks(results, *keys, size)
    return Finding(
        all_of(above_zero(midway), below(end)),
        end,
        f"{lam} decay changes the loss by {nats(midway)} at step {step} of the decayed run and by {nats(end)} at its end",
    )


def branches_coincide(results: Results, size: int, *, lam: str) -> Finding:
    """Midway in the decayed run the losses differ, and those after a tiny-lr branch do not."""
    step = step_of(results, "decayed", MIDWAY, size)
    before = paired_blocks(results, key_of("decayed", lam), key_of("decayed", "none"), size, step=step)
    keys = f"tiny-lr-decayed-{lam}-{MIDWAY}", f"tiny-lr-decayed-none-{MIDWAY}"
    after = paired_blocks(results, *keys, size, confidence=EQUAL_CONFIDENCE)
    return Finding(
        all_of(above_zero(before), within(after, EARLY_MARGIN)),
        after,
        f"at step {step} of the decayed run {lam} decay changes the loss by {nats(before)}, after a tiny-lr branch from"
        f" there by {nats(after)} (90 %)",
    )


def gains_late(results: Results, size: int, *, lam: str) -> Finding:
    """What decay gains after a tiny-lr branch, from the last point of the decayed run against the first."""
    shares = shares_of(results, "tiny-lr", "decayed", size)
    first_SN, last_SN = (
        _blocks(results, f"tiny-lr-decayed-{lam}-{share}", size)
        - _blocks(results, f"tiny-lr-decayed-none-{share}", size)
        for share in (shares[0], shares[-1])
    )
    first, last, effect = (
        crossed_interval(d_SN, example_name="blocks") for d_SN in (first_SN, last_SN, last_SN - first_SN)
    )
    return Finding(
        all_of(below(last), below(effect)),
        effect,
        f"after a tiny-lr branch {lam} decay has changed the loss by {nats(first)} from {shares[0]} % of the decayed run and"
        f" by {nats(last)} from {shares[-1]} %: the second minus the first is {nats(effect)}",
    )
