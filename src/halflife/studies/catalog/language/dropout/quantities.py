"""The decision rules of the dropout study: decay beside dropout and label smoothing, on repeated and on fresh text.

Losses are validation losses in nats per token, without dropout and smoothing. A *gain* is a loss without decay minus one
with. What is best is chosen for each seed on the other seeds.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import nats
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    all_of,
    best_of,
    equal_at_stake,
    lowered,
    paired_blocks,
)
from halflife.studies.evidence.optimum import Optimum, Sweep, lam_of, optimum_of, text_spec
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval

__all__ = [
    "DROPOUTS",
    "FRESH",
    "NUM_LAMS",
    "REPEATED",
    "SMALLEST_EFFECT",
    "decay_helps_beside_dropout",
    "decay_helps_beside_smoothing",
    "dropout_helps_beside_decay",
    "dropout_hurts_fresh",
    "fresh_gain_stays",
    "gains_overlap",
    "key_of",
    "keys_of",
    "smaller_lam_beside_dropout",
    "sweep_of",
]

REPEATED, FRESH = "repeated", "one-pass"
DROPOUTS = ("none", "low", "high")
NUM_LAMS = {REPEATED: 5, FRESH: 4}
"""Values of lam of each kind of run; the first is 0."""

LOSS, BLOCKS = "val/loss", "val/loss_blocks"
# Nats. On text that is read eight times decay gained 0.1 to 0.2 nats on seeds of 1000 and above, and a tenth of that counts,
# as a tenth of the paper's 0.02 does in `lm_rules` on text that is read once. On fresh text it is a margin of equality, for
# gains that must exceed it.
SMALLEST_EFFECT = 0.01


def key_of(run: str, dropout: str, lam: int, *, smoothed: bool = False) -> str:
    """The arm of a kind of run, a dropout by name and a lam by its index in the grid."""
    return f"{run}-{dropout}{'-smoothed' if smoothed else ''}-{lam}"


def keys_of(run: str, dropouts: Iterable[str], *, decay: bool | None = None, smoothed: bool = False) -> list[str]:
    """The arms with these dropouts.

    Args:
        run: The kind of run.
        dropouts: By name.
        decay: Only those with decay, or only those without (``None``: all).
        smoothed: Those with label smoothing instead of those without.

    Returns:
        The keys.
    """
    lams = [lam for lam in range(NUM_LAMS[run]) if decay is None or decay == (lam > 0)]
    return [key_of(run, dropout, lam, smoothed=smoothed) for dropout in dropouts for lam in lams]


def best(results: Results, keys: Sequence[str], size: int) -> NDArray[np.float64]:
    """The blocks of the best of some arms, (S, N)."""
    return best_of(results, keys, LOSS, size, array=BLOCKS)


def interval(values_SN: NDArray[np.float64], *, equal: bool = False) -> Interval:
    """The interval of a mean over seeds and blocks; of 90 % for a claim of equality."""
    if equal:
        return crossed_interval(values_SN, confidence=EQUAL_CONFIDENCE, example_name="blocks")
    return crossed_interval(values_SN, example_name="blocks")


def gain_of_decay(
    results: Results, run: str, dropouts: Sequence[str], size: int, *, smoothed: bool = False
) -> NDArray[np.float64]:
    """The best loss without decay minus the best with, over the same dropouts, (S, N)."""
    without, with_decay = (
        best(results, keys_of(run, dropouts, decay=decay, smoothed=smoothed), size) for decay in (False, True)
    )
    return without - with_decay


def decay_helps_beside_dropout(results: Results, size: int) -> Finding:
    """On repeated text, the best with decay against the best without, dropout chosen on both sides."""
    effect = interval(-gain_of_decay(results, REPEATED, DROPOUTS, size))
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with dropout tuned on both sides, decay changes the loss on repeated text by {nats(effect)}",
    )


def dropout_helps_beside_decay(results: Results, size: int) -> Finding:
    """On repeated text, the best with dropout against the best without, lam chosen on both sides."""
    sides = [best(results, keys_of(REPEATED, dropouts), size) for dropouts in (DROPOUTS[1:], DROPOUTS[:1])]
    effect = interval(sides[0] - sides[1])
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with lam tuned on both sides, dropout changes the loss on repeated text by {nats(effect)}",
    )


def gains_overlap(results: Results, size: int) -> Finding:
    """On repeated text, the gain of decay without dropout against that with dropout."""
    alone_SN, beside_SN = (gain_of_decay(results, REPEATED, part, size) for part in (DROPOUTS[:1], DROPOUTS[1:]))
    alone, beside, effect = interval(alone_SN), interval(beside_SN), interval(alone_SN - beside_SN)
    return Finding(
        above_zero(effect),
        effect,
        f"on repeated text decay gains {nats(alone)} without dropout and {nats(beside)} with the best dropout: the first minus"
        f" the second is {nats(effect)}",
    )


def sweep_of(results: Results, run: str, dropout: str, size: int, *, smoothed: bool = False) -> Sweep:
    """The arms with decay at a dropout.

    Args:
        results: What the store holds.
        run: The kind of run.
        dropout: By name.
        size: The size.
        smoothed: Those with label smoothing.

    Returns:
        The sweep; its place is the dropout, which may be 0.
    """
    keys = keys_of(run, [dropout], decay=True, smoothed=smoothed)
    specs = {key: text_spec(results, key, size) for key in keys}
    x = next(iter(specs.values())).dropout
    return Sweep(label=f"dropout {x:g}", x=x, keys={lam_of(spec): key for key, spec in specs.items()})


def smaller_lam_beside_dropout(results: Results, size: int) -> Finding:
    """On repeated text, the best lam without dropout over that with the high one."""
    optima: list[Optimum] = [
        optimum_of(results, sweep_of(results, REPEATED, dropout, size), size, BLOCKS)
        for dropout in (DROPOUTS[0], DROPOUTS[-1])
    ]
    problems = [optimum.problem for optimum in optima if optimum.problem]
    if problems:
        return Finding("inconclusive", None, "; ".join(problems))
    ratio = interval(optima[0].log_lam_SN - optima[1].log_lam_SN)
    shown, lams = ratio.exp(), [optimum.lam().estimate for optimum in optima]
    return Finding(
        above_zero(ratio),
        shown,
        f"on repeated text the best lam is {lams[0]:.3g} without dropout and {lams[1]:.3g} with the high one, a ratio of"
        f" {shown.estimate:.2f} [{shown.low:.2f}, {shown.high:.2f}]",
    )


def decay_helps_beside_smoothing(results: Results, size: int) -> Finding:
    """On repeated text without dropout, the gain of decay with label smoothing against half of that without."""
    plain_SN, smoothed_SN = (
        gain_of_decay(results, REPEATED, DROPOUTS[:1], size, smoothed=smoothed) for smoothed in (False, True)
    )
    plain, smoothed, effect = interval(plain_SN), interval(smoothed_SN), interval(smoothed_SN - plain_SN / 2)
    return Finding(
        above_zero(effect, given=plain.low > 0),
        effect,
        f"on repeated text decay gains {nats(plain)} without label smoothing and {nats(smoothed)} with: the second minus half"
        f" of the first is {nats(effect)}",
    )


def dropout_hurts_fresh(results: Results, size: int) -> Finding:
    """On a one-pass run, the low dropout against none at every lam."""
    costs = [
        paired_blocks(results, key_of(FRESH, DROPOUTS[1], lam), key_of(FRESH, DROPOUTS[0], lam), size)
        for lam in range(NUM_LAMS[FRESH])
    ]
    least = min(costs, key=lambda cost: cost.estimate)
    return Finding(
        all_of(*(above_zero(cost) for cost in costs)),
        least,
        "on a one-pass run the low dropout changes the loss by "
        + ", ".join(f"{nats(cost)} (lam {_lam(results, index, size)})" for index, cost in enumerate(costs)),
    )


def _lam(results: Results, index: int, size: int) -> str:
    return f"{lam_of(text_spec(results, key_of(FRESH, DROPOUTS[0], index), size)):g}"


def fresh_gain_stays(results: Results, size: int) -> Finding:
    """On a one-pass run, the gain of decay without dropout against that with the high one."""
    alone_SN, beside_SN = (gain_of_decay(results, FRESH, part, size) for part in (DROPOUTS[:1], DROPOUTS[-1:]))
    alone, beside, effect = interval(alone_SN), interval(beside_SN), interval(alone_SN - beside_SN, equal=True)
    at_stake = alone.low > SMALLEST_EFFECT
    return Finding(
        equal_at_stake(effect, SMALLEST_EFFECT, at_stake=at_stake),
        effect,
        f"on a one-pass run decay gains {nats(alone)} without dropout and {nats(beside)} with the high one: the first minus the"
        f" second is {nats(effect)} (90 %)"
        + (
            ""
            if at_stake
            else f"; the first is not surely more than {SMALLEST_EFFECT}, so that being equal would say nothing of decay"
        ),
    )
