"""The decision rules of `lm-schedules`, and the words and differences that the language-model studies share.

Losses are in nats per token. A difference is paired by seed and by block of validation tokens, and both count as samples.
The bounds are constants on top, and the claims quote them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.settings import LAMS, LONG, key_of
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    all_of,
    below,
    best_keys,
    best_of,
    equal_at_stake,
    lowered,
    paired_blocks,
)
from halflife.studies.evidence.optimum import text_spec
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval
from halflife.studies.specs.branches import TextBranch

__all__ = [
    "BLOCKS",
    "EARLY_MARGIN",
    "LOWER",
    "MIDWAY",
    "MIN_RATES",
    "NEEDS_GRID",
    "SMALLEST_EFFECT",
    "best_against_best",
    "branch_is_lower",
    "branches_coincide",
    "crosses",
    "gains_late",
    "gap_shrinks",
    "higher_at_constant",
    "lower_at_same_lr",
    "nats",
    "no_best_rate",
    "shares_of",
    "starting_with",
    "step_of",
    "words_of_stake",
]

BLOCKS = "val/loss_blocks"
SMALLEST_EFFECT = 0.002  # nats: a tenth of the paper's effect on text that is read once (3.30 against 3.28)
EARLY_MARGIN = 0.01  # nats: branches that end closer than half of the paper's effect nearly coincide
MIN_RATES = 3  # a best rate is one when a lower and a higher one are worse
MIDWAY = 40  # per cent of a decayed run


LOWER = (
    f"lies below 0, else not reproduced if it excludes an improvement of {SMALLEST_EFFECT:g} nats, else inconclusive"
)
NEEDS_GRID = (
    f"Inconclusive if the side without decay has fewer than {MIN_RATES} learning rates, or takes one at an edge of its grid:"
    " another rate might do without decay what decay does."
)
"""Words of rules."""


def nats(interval: Interval) -> str:
    """A difference of losses in words."""
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] nats"


def starting_with(results: Results, prefix: str, size: int) -> list[str]:
    """The keys at a size that start so, in the manifest's order: presets differ in how many rates they run."""
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


def no_best_rate(results: Results, keys: Sequence[str], size: int, metric: str = "val/loss") -> str:
    """Why arms that differ in their learning rate alone do not show which is best.

    Args:
        results: What the store holds.
        keys: The arms.
        size: The size.
        metric: What the best rate is chosen by.

    Returns:
        The reason in words; empty where for every seed the rate that is best on the other seeds has a lower and a higher
        one beside it.
    """
    rates = {key: text_spec(results, key, size).lr for key in keys}
    if len(set(rates.values())) < MIN_RATES:
        tried = ", ".join(f"{rate:g}" for rate in sorted(set(rates.values())))
        return f"without decay only the learning rates {tried} were run, and a best one needs {MIN_RATES}"
    taken = [rates[key] for key in best_keys(results, keys, metric, size)]
    at_edge = [rate for rate in taken if rate in {min(rates.values()), max(rates.values())}]
    if not at_edge:
        return ""
    which = " and ".join(f"{rate:g}" for rate in sorted(set(at_edge)))
    return f"without decay the best learning rate of {len(at_edge)} of {len(taken)} seeds is at an edge of its grid ({which})"


def words_of_stake(effect: Interval, margin: float, *, at_stake: bool) -> str:
    """The effect of decay beside the margin of an equality, and whether it is larger, in words that end a sentence."""
    words = f"; decay itself changes it by {nats(effect)} there"
    return (
        words
        if at_stake
        else f"{words}, not surely more than {margin:g}, so that being equal would say nothing of decay"
    )


def _blocks(results: Results, key: str, size: int, step: int | None = None) -> NDArray[np.float64]:
    """Losses per seed and block, (S, N)."""
    return results.last_array(key, BLOCKS, size) if step is None else results.array_at_step(key, BLOCKS, step, size)


def best_against_best(results: Results, size: int) -> Finding:
    """The best lam > 0 and rate against the best rate without decay, each chosen on the other seeds."""
    # A preset with runs of a longer context has its grid of rates there.
    prefix = LONG if starting_with(results, f"{LONG}decayed-", size) else ""
    without = starting_with(results, f"{prefix}decayed-none-", size)
    with_decay = [key for lam in LAMS[1:] for key in starting_with(results, f"{prefix}decayed-{lam}-", size)]
    sides = [best_of(results, keys, "val/loss", size, array=BLOCKS) for keys in (with_decay, without)]
    effect = crossed_interval(sides[0] - sides[1], example_name="blocks")
    problem = no_best_rate(results, without, size)
    return Finding(
        "inconclusive" if problem else lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with a decayed rate the best run with decay ends at {sides[0].mean():.4f}, the best without at"
        f" {sides[1].mean():.4f}, lam and rates chosen on the other seeds: {nats(effect)}{problem and f'; {problem}'}",
    )


def lower_at_same_lr(results: Results, size: int, *, lam: str) -> Finding:
    """The final loss of decayed runs at the main rate, with and without decay."""
    effect = paired_blocks(results, key_of("decayed", lam), key_of("decayed", "none"), size)
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"at the main rate, decayed, {lam} decay changes the final loss by {nats(effect)}",
    )


def higher_at_constant(results: Results, size: int, *, lam: str) -> Finding:
    """The last loss of runs at a constant rate."""
    effect = paired_blocks(results, key_of("constant", lam), key_of("constant", "none"), size)
    return Finding(
        above_zero(effect), effect, f"at a constant rate {lam} decay changes the last loss by {nats(effect)}"
    )


def gap_shrinks(results: Results, size: int, *, lam: str, branch: str = "tiny-lr") -> Finding:
    """How much decay raises the loss before and after a branch at the end of the run at a constant rate."""
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
        f"at the end of the run at a constant rate {lam} decay changes the loss by {nats(before)}, after the {branch}"
        f" branch by {nats(after)}: the first minus the second is {nats(effect)}",
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
    """Midway in the decayed run the losses differ by more than the margin, and those after a tiny-lr branch by less."""
    step = step_of(results, "decayed", MIDWAY, size)
    before = paired_blocks(results, key_of("decayed", lam), key_of("decayed", "none"), size, step=step)
    keys = f"tiny-lr-decayed-{lam}-{MIDWAY}", f"tiny-lr-decayed-none-{MIDWAY}"
    after = paired_blocks(results, *keys, size, confidence=EQUAL_CONFIDENCE)
    at_stake = before.low > EARLY_MARGIN
    return Finding(
        all_of(above_zero(before), equal_at_stake(after, EARLY_MARGIN, at_stake=at_stake)),
        after,
        f"after a tiny-lr branch from step {step} of the decayed run {lam} decay has changed the loss by {nats(after)} (90 %)"
        f"{words_of_stake(before, EARLY_MARGIN, at_stake=at_stake)}",
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
