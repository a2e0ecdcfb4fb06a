"""The decision rules of `lm-ablations`: gains that decay, L2 in the loss, SGD, and averages of the weights.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.figures import three
from halflife.studies.catalog.language.quantities import (
    BLOCKS,
    SMALLEST_EFFECT,
    nats,
    no_best_rate,
    starting_with,
    words_of_stake,
)
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    best_of,
    equal_at_stake,
    exceeds,
    lowered,
    paired_blocks,
)
from halflife.studies.evidence.optimum import lam_of, text_spec
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval

__all__ = [
    "EQUAL_MARGIN",
    "averages_less_than_branch",
    "averages_shrink",
    "final_by_lam",
    "final_by_norm",
    "final_by_rate",
    "gains_harm",
    "gains_harmless",
    "gaps_by_lam",
    "l2_as_good",
    "l2_helps",
    "sgd_helps",
    "weights_and_average",
]

EQUAL_MARGIN = 0.005  # nats: a quarter of what decay changes in the paper
AVERAGES = {"ema": "ema-0.99/", "mean": "mean/"}


def _best(results: Results, keys: Sequence[str], size: int) -> NDArray[np.float64]:
    return best_of(results, keys, "val/loss", size, array=BLOCKS)


def _pair(results: Results, first: Sequence[str], second: Sequence[str], size: int, **options: float) -> Interval:
    """The best of some arms minus the best of others, each chosen on the other seeds."""
    difference_SN = _best(results, first, size) - _best(results, second, size)
    return crossed_interval(difference_SN, example_name="blocks", **options)


def gains_harmless(results: Results, size: int) -> Finding:
    """Decaying the gains of norms, too, at moderate decay."""
    keys = "gains-decayed-moderate", "gains-kept-moderate"
    effect = paired_blocks(results, *keys, size, confidence=EQUAL_CONFIDENCE)
    decay = paired_blocks(results, "gains-kept-moderate", "gains-kept-none", size)
    at_stake = exceeds(decay, EQUAL_MARGIN)
    return Finding(
        equal_at_stake(effect, EQUAL_MARGIN, at_stake=at_stake),
        effect,
        f"at moderate decay, decaying the gains of norms too changes the final loss by {nats(effect)} (90 %)"
        f"{words_of_stake(decay, EQUAL_MARGIN, at_stake=at_stake)}",
    )


def gains_harm(results: Results, size: int) -> Finding:
    """Decaying the gains of norms, too, at large decay."""
    effect = paired_blocks(results, "gains-decayed-large", "gains-kept-large", size)
    return Finding(
        above_zero(effect),
        effect,
        f"at large decay, decaying the gains of norms too changes the final loss by {nats(effect)}",
    )


def l2_helps(results: Results, size: int, *, where: str) -> Finding:
    """The better of two coefficients against none."""
    keys = starting_with(results, f"l2-{where}-", size)
    effect = _pair(results, keys, ["adam-none"], size)
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with Adam, L2 {where} the clip changes the final loss by {nats(effect)}, its coefficient chosen on the other seeds",
    )


def l2_as_good(results: Results, size: int, *, where: str) -> Finding:
    """The better of two coefficients against the better of two lams of decoupled decay."""
    decoupled = starting_with(results, "adam-decoupled-", size)
    effect = _pair(results, starting_with(results, f"l2-{where}-", size), decoupled, size, confidence=EQUAL_CONFIDENCE)
    decay = _pair(results, decoupled, ["adam-none"], size)
    at_stake = exceeds(decay, EQUAL_MARGIN)
    return Finding(
        equal_at_stake(effect, EQUAL_MARGIN, at_stake=at_stake),
        effect,
        f"with Adam, the final loss with L2 {where} the clip minus that with decoupled decay is {nats(effect)} (90 %),"
        f" coefficient and lam chosen on the other seeds{words_of_stake(decay, EQUAL_MARGIN, at_stake=at_stake)}",
    )


def sgd_helps(results: Results, size: int) -> Finding:
    """Best against best over rates and lams."""
    keys = [key for lam in ("moderate", "large") for key in starting_with(results, f"sgd-{lam}-", size)]
    without = starting_with(results, "sgd-none-", size)
    effect = _pair(results, keys, without, size)
    problem = no_best_rate(results, without, size)
    return Finding(
        "inconclusive" if problem else lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with SGD and momentum the best run with decay ends {nats(effect)} from the best without, lam and rates chosen on the"
        f" other seeds{problem and f'; {problem}'}",
    )


def _gap(results: Results, size: int, lam: str, average: str = "") -> NDArray[np.float64]:
    """How much decay raises the loss at the end of the run at a constant rate, of the weights or an average, (S, N)."""
    name = f"{average}{BLOCKS}"
    keys = key_of("constant", lam), key_of("constant", "none")
    first, second = (results.last_array(key, name, size) for key in keys)
    return first - second


def _branch_gap(results: Results, size: int, lam: str) -> NDArray[np.float64]:
    """The same at the end of the tiny-lr branches from there."""
    keys = f"tiny-lr-constant-{lam}-100", "tiny-lr-constant-none-100"
    first, second = (results.last_array(key, BLOCKS, size) for key in keys)
    return first - second


def _contrast(first_SN: NDArray[np.float64], second_SN: NDArray[np.float64]) -> tuple[Interval, Interval, Interval]:
    """Both and their difference."""
    one, two, both = (crossed_interval(d, example_name="blocks") for d in (first_SN, second_SN, first_SN - second_SN))
    return one, two, both


def averages_shrink(results: Results, size: int, *, lam: str, average: str) -> Finding:
    """How much decay raises the loss at a constant rate, of the weights and of their average."""
    before, after, effect = _contrast(_gap(results, size, lam), _gap(results, size, lam, AVERAGES[average]))
    return Finding(
        above_zero(effect, given=before.low > 0),
        effect,
        f"at a constant rate {lam} decay changes the loss by {nats(before)}, that of the averaged weights ({average}) by"
        f" {nats(after)}: the first minus the second is {nats(effect)}",
    )


def averages_less_than_branch(results: Results, size: int, *, lam: str, average: str) -> Finding:
    """How much decay raises the loss of the averaged weights, and that after a tiny-lr branch."""
    averaged, branch, effect = _contrast(_gap(results, size, lam, AVERAGES[average]), _branch_gap(results, size, lam))
    return Finding(
        above_zero(effect),
        effect,
        f"{lam} decay changes the loss of the averaged weights ({average}) by {nats(averaged)} and that after a tiny-lr branch"
        f" by {nats(branch)}: the first minus the second is {nats(effect)}",
    )


def _last(results: Results, key: str) -> Interval:
    return seed_interval(results.last(key, "val/loss", results.main_size))


def _point(series: str, x: float, loss: Interval, *, line: bool = True) -> PointRow:
    return PointRow(
        series=series, x=x, y=loss.estimate, low=loss.low, high=loss.high, style="line" if line else "point"
    )


def _lam(results: Results, key: str) -> float:
    return lam_of(text_spec(results, key, results.main_size))


def final_by_lam(results: Results) -> list[PointRow]:
    """Final losses against lam, gains kept and decayed."""
    rows = []
    for gains in ("kept", "decayed"):
        for lam in LAMS:
            key = f"gains-{gains if lam != 'none' else 'kept'}-{lam}"
            rows.append(_point(f"gains {gains}", _lam(results, key), _last(results, key)))
    return rows


def final_by_norm(results: Results) -> list[PointRow]:
    """Final losses against the norm that is left, for L2 inside and outside the clip and for decoupled decay."""
    size, rows = results.main_size, []
    families = {"decoupled": "adam-decoupled-", "L2 inside the clip": "l2-inside-", "L2 outside it": "l2-outside-"}
    for name, prefix in families.items():
        for key in ["adam-none", *starting_with(results, prefix, size)]:
            norm = float(results.last(key, "weight_norm", size).mean())
            rows.append(_point(name, norm, _last(results, key)))
    return rows


def final_by_rate(results: Results) -> list[PointRow]:
    """Final losses of SGD against its learning rate, a line a lam."""
    rows = []
    for lam in LAMS:
        for key in starting_with(results, f"sgd-{lam}-", results.main_size):
            spec = text_spec(results, key, results.main_size)
            rows.append(_point(f"lam {lam_of(spec):g}", spec.lr, _last(results, key)))
    return rows


def gaps_by_lam(results: Results) -> list[PointRow]:
    """How much decay raises the loss at a constant rate: of the weights, of their averages, after a tiny-lr branch."""
    size, rows = results.main_size, []
    for lam in LAMS[1:]:
        gaps = {
            "the run": _gap(results, size, lam),
            "EMA 0.99": _gap(results, size, lam, AVERAGES["ema"]),
            "mean of the second half": _gap(results, size, lam, AVERAGES["mean"]),
            "tiny-lr branch": _branch_gap(results, size, lam),
        }
        at = _lam(results, key_of("constant", lam))
        rows += [_point(name, at, crossed_interval(gap, example_name="blocks")) for name, gap in gaps.items()]
    return sorted(rows, key=lambda row: row.series)


def weights_and_average(results: Results) -> str:
    """The last loss at a constant rate with large decay, of the weights and of their moving average, as text."""
    key = [key_of("constant", "large")]
    return f"{three(results, key, 'val/loss')} / {three(results, key, 'ema-0.99/val/loss')}"
