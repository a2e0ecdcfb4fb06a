"""The decision rules of the study `dataset-size`. The bounds are constants on top. "Points" are points of test error.

Shapes: A arms of one number of examples, S seeds, N test examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import points
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    all_of,
    below,
    equal_at_stake,
    leave_one_out,
    lowered,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "Subset",
    "error_lowered",
    "gap_shrinks",
    "gaps",
    "interpolates",
    "same_in_one_pass",
    "subsets",
]

NUM_SMALL = 2  # so many of the smallest numbers of examples are "small"
SMALLEST_EFFECT = 0.5  # points: an improvement below this would not make anybody tune lam
MARGIN = 1.0  # points that count as none: twice the gap of the paper's one pass (0.5)
INTERPOLATED = 1.0  # per cent of training error: below this the training set is as good as interpolated


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The runs on one number of distinct examples.

    Args:
        count: The number.
        passes: How often each is seen.
        none: The arm without decay.
        decayed: The arms with it, by lam, which rises.
        average: The prefix of the average's readings.
    """

    count: int
    passes: int
    none: str
    decayed: dict[float, str]
    average: str


def subsets(results: Results, size: int) -> list[Subset]:
    """The numbers of examples in rising order, each with its arms.

    Returns:
        One subset a number.
    """
    found: dict[int, dict[float, tuple[str, ImageRun]]] = {}
    for key in (arm["key"] for arm in results.arms if arm["size"] == size):
        spec = results.spec(key, size)
        assert isinstance(spec, ImageRun)
        assert spec.num_train is not None
        found.setdefault(spec.num_train, {})[spec.lam] = (key, spec)
    return [
        Subset(
            count=count,
            passes=found[count][0.0][1].num_epochs,
            none=found[count][0.0][0],
            decayed={lam: key for lam, (key, _) in sorted(found[count].items()) if lam > 0},
            average=f"ema-{found[count][0.0][1].ema[0]:g}/",
        )
        for count in sorted(found)
    ]


def chosen_lams(results: Results, size: int) -> list[float]:
    """For each seed the lam that is best on the other seeds where examples are few, the mean over those numbers.

    One lam for all numbers of examples, as in the paper's figure: chosen anew for each, a small enough lam would make no
    difference in one pass whatever decay does there.

    Returns:
        One lam a seed.
    """
    found = subsets(results, size)[:NUM_SMALL]
    lams = list(found[0].decayed)
    scores_AS = [
        np.mean([results.last(s.decayed[lam], f"{s.average}test/error", size) for s in found], axis=0) for lam in lams
    ]
    return [lams[index] for index in leave_one_out(np.array(scores_AS))]


def gap_of(results: Results, subset: Subset, size: int) -> NDArray[np.float64]:
    """What decay gains: error without minus error with the chosen lam, in points, (S, N)."""
    array = f"{subset.average}test/wrong"
    decayed = {lam: results.last_array(key, array, size) for lam, key in subset.decayed.items()}
    with_SN = np.stack([decayed[lam][seed] for seed, lam in enumerate(chosen_lams(results, size))])
    return np.asarray(100 * (results.last_array(subset.none, array, size) - with_SN), dtype=np.float64)


def gaps(results: Results, size: int) -> dict[int, NDArray[np.float64]]:
    """`gap_of` each number of examples."""
    return {subset.count: gap_of(results, subset, size) for subset in subsets(results, size)}


def _small_and_one_pass(results: Results, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64], str, str]:
    """The gap over the smallest numbers, that in one pass, and what they are in words."""
    found = subsets(results, size)
    assert found[-1].passes == 1, "the largest number of examples is the budget"
    small_SN = np.mean([gap_of(results, subset, size) for subset in found[:NUM_SMALL]], axis=0)
    names = " and ".join(f"{subset.count:,}" for subset in found[:NUM_SMALL])
    return small_SN, gap_of(results, found[-1], size), names, f"{found[-1].count:,}"


def error_lowered(results: Results, size: int) -> Finding:
    """Whether decay lowers the test error where few examples are seen many times."""
    small_SN, _, names, _ = _small_and_one_pass(results, size)
    effect = crossed_interval(-small_SN)
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with {names} examples the chosen lam changes the test error of the average by {points(effect)}",
    )


def interpolates(results: Results, size: int) -> Finding:
    """Whether few examples are interpolated without decay, and with it too."""
    outcomes, words, shown = [], [], []
    for subset in subsets(results, size)[:NUM_SMALL]:
        keys = list(subset.decayed.values())
        chosen = [subset.decayed[lam] for lam in chosen_lams(results, size)]
        errors = {key: 100 * results.last(key, f"{subset.average}train/error", size) for key in [subset.none, *keys]}
        with_decay = seed_interval([errors[key][seed] for seed, key in enumerate(chosen)])
        without = seed_interval(errors[subset.none])
        outcomes += [below(with_decay, INTERPOLATED), below(without, INTERPOLATED)]
        shown.append(with_decay)
        words.append(
            f"{with_decay.estimate:.2f} [{with_decay.low:.2f}, {with_decay.high:.2f}] % with the chosen lam and"
            f" {without.estimate:.2f} % without at {subset.count:,} examples"
        )
    return Finding(
        all_of(*outcomes),
        max(shown, key=lambda interval: interval.high),
        f"the training error of the average is {', '.join(words)}",
    )


def same_in_one_pass(results: Results, size: int) -> Finding:
    """Whether decay makes no difference any more where each example is seen once."""
    small_SN, one_SN, names, most = _small_and_one_pass(results, size)
    shown, decided = crossed_interval(-one_SN), crossed_interval(-one_SN, confidence=EQUAL_CONFIDENCE)
    small = crossed_interval(small_SN)
    return Finding(
        equal_at_stake(decided, MARGIN, at_stake=small.low > MARGIN),
        shown,
        f"in one pass over {most} examples the chosen lam changes the test error by {points(shown)} (90 %:"
        f" [{decided.low:+.2f}, {decided.high:+.2f}]), with {names} examples it gains {points(small)}",
    )


def gap_shrinks(results: Results, size: int) -> Finding:
    """Whether decay gains less in one pass than where few examples are seen many times."""
    small_SN, one_SN, names, most = _small_and_one_pass(results, size)
    effect = crossed_interval(small_SN - one_SN)
    return Finding(
        above_zero(effect),
        effect,
        f"the chosen lam gains {points(crossed_interval(small_SN))} with {names} examples and"
        f" {points(crossed_interval(one_SN))} in one pass over {most}: {points(effect)} less",
    )
