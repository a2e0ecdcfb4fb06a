"""Bias and variance of a language model's loss, for the study `bias-variance`: the split by branches, and its claims.

At a step t of a run at a constant learning rate, with the run's validation loss L(t), that at the end of its tiny-lr branch
from t, B(t), and the best that any run of the study reaches, R,

    variance(t) = L(t) - B(t)      what the noise of the large rate costs now
    bias(t)     = B(t) - R         how far the run still has to go

so that L(t) = R + bias(t) + variance(t) for every lam. R is the loss after the cooldown from the last step with the lam that
is best on the other seeds; it falls out of every comparison of two lams. A branch of finite length keeps the noise of the
directions in which the loss is so flat that they do not settle within it, and so counts it as bias.

The runs and their branches are those of `lm-schedules`, with the same keys, and are trained once for both.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import BLOCKS, EARLY_MARGIN, nats, shares_of, step_of
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import Finding
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval
from halflife.studies.evidence.tests import EQUAL_CONFIDENCE, above_zero, all_of, below, best_of, equal_at_stake

__all__ = [
    "RECOVERED",
    "Split",
    "averaging_recovers",
    "bias_coincides_early",
    "bias_is_lower",
    "is_shared",
    "over_blocks",
    "variance_grows",
]

RECOVERED = 0.5  # averaging must bring more than this share of what the branch brings

Blocks = NDArray[np.float64]


def is_shared(key: str) -> bool:
    """Whether an arm of `lm-schedules` is one of this study, too: constant runs at the main rate and their branches."""
    wanted = {key_of("constant", lam) for lam in LAMS} | {f"cooldown-constant-{lam}-100" for lam in LAMS}
    return key in wanted or key.startswith("tiny-lr-constant-")


@dataclass(frozen=True)
class Split:
    """The losses of one study at one size, block by block.

    Args:
        results: What the store holds.
        size: The size.
    """

    results: Results
    size: int

    @cached_property
    def shares(self) -> list[int]:
        """Where the branches start, in per cent of the run."""
        return shares_of(self.results, "tiny-lr", "constant", self.size)

    def step(self, share: int) -> int:
        """The step of the run at which they start."""
        return step_of(self.results, "constant", share, self.size)

    def loss(self, lam: str, share: int, average: str = "") -> Blocks:
        """The run's loss there, or that of one of its averages, (S, N)."""
        return self.results.array_at_step(key_of("constant", lam), f"{average}{BLOCKS}", self.step(share), self.size)

    def after(self, lam: str, share: int) -> Blocks:
        """The loss at the end of the branch from there, (S, N)."""
        return self.results.last_array(f"tiny-lr-constant-{lam}-{share}", BLOCKS, self.size)

    def variance(self, lam: str, share: int) -> Blocks:
        """What the branch takes off, (S, N)."""
        return self.loss(lam, share) - self.after(lam, share)

    @cached_property
    def reference(self) -> Blocks:
        """The best that any lam reaches by a cooldown, for each seed with the lam that is best on the others, (S, N)."""
        keys = [f"cooldown-constant-{lam}-100" for lam in LAMS]
        return best_of(self.results, keys, "val/loss", self.size, array=BLOCKS)

    def bias(self, lam: str, share: int) -> Blocks:
        """How far the end of the branch is from the reference, (S, N)."""
        return self.after(lam, share) - self.reference

    def best_decay(self, share: int) -> Blocks:
        """The loss after the branch with the lam > 0 that is best on the other seeds, (S, N)."""
        keys = [f"tiny-lr-constant-{lam}-{share}" for lam in LAMS[1:]]
        return best_of(self.results, keys, "val/loss", self.size, array=BLOCKS)


def over_blocks(values_SN: Blocks, confidence: float = 0.95) -> Interval:
    """The interval of a mean over seeds and blocks."""
    return crossed_interval(values_SN, confidence=confidence, example_name="blocks")


def variance_grows(results: Results, size: int) -> Finding:
    """At the last step, from each lam to the next."""
    split = Split(results, size)
    share = split.shares[-1]
    levels = [split.variance(lam, share) for lam in LAMS]
    steps = [over_blocks(after - before) for before, after in itertools.pairwise(levels)]
    effect = over_blocks(levels[-1] - levels[0])
    words = [f"{nats(over_blocks(level))} ({lam})" for lam, level in zip(LAMS, levels, strict=True)]
    return Finding(
        all_of(*(above_zero(step) for step in steps)),
        effect,
        f"at {share} % of the run the tiny-lr branch takes off {', '.join(words)}; with large decay {nats(effect)} more than"
        " without",
    )


def bias_is_lower(results: Results, size: int, *, branch: int) -> Finding:
    """At the branch of this index (0 the first, -1 the last), with the lam that is best there on the other seeds."""
    split = Split(results, size)
    share = split.shares[branch]
    effect = over_blocks(split.best_decay(share) - split.after("none", share))
    words = [f"{nats(over_blocks(split.bias(lam, share)))} ({lam})" for lam in LAMS]
    return Finding(
        below(effect),
        effect,
        f"at {share} % of the run the bias is {', '.join(words)}; that of the lam which is best on the other seeds minus that"
        f" without decay is {nats(effect)}",
    )


def bias_coincides_early(results: Results, size: int) -> Finding:
    """At the first step from which there are branches, where the runs themselves differ by more than the margin."""
    split = Split(results, size)
    share = split.shares[0]
    outcomes, differences, words = [], [], []
    for lam in LAMS[1:]:
        run = over_blocks(split.loss(lam, share) - split.loss("none", share))
        bias = over_blocks(split.after(lam, share) - split.after("none", share), EQUAL_CONFIDENCE)
        at_stake = run.low > EARLY_MARGIN
        outcomes.append(equal_at_stake(bias, EARLY_MARGIN, at_stake=at_stake))
        differences.append(bias)
        idle = "" if at_stake else f", not surely more than {EARLY_MARGIN:g}, so that nothing is at stake"
        words.append(f"{lam} decay changes the bias by {nats(bias)} (90 %), the loss of the run by {nats(run)}{idle}")
    return Finding(
        all_of(*outcomes),
        max(differences, key=lambda difference: max(abs(difference.low), abs(difference.high))),
        f"at {share} % of the run {'; '.join(words)}",
    )


def averaging_recovers(results: Results, size: int, *, average: str) -> Finding:
    """The part of the variance that an average of the weights takes off, at the last step."""
    split = Split(results, size)
    share = split.shares[-1]
    words = []
    for lam in LAMS:
        gain, variance = split.loss(lam, share) - split.loss(lam, share, average), split.variance(lam, share)
        share_of = (
            f", {gain.mean() / variance.mean():.0%} of what the branch does" if over_blocks(variance).low > 0 else ""
        )
        words.append(f"{nats(over_blocks(gain))}{share_of} ({lam})")
    effect = over_blocks(gain - RECOVERED * variance)
    return Finding(
        above_zero(effect, given=over_blocks(variance).low > 0),
        effect,
        f"at {share} % of the run the average takes off {'; '.join(words)}; with large decay that minus half of what the branch"
        f" takes off is {nats(effect)}",
    )
