"""The decision rules of the study `bad-minima`, one function a claim, and the gaps that they and the figures use.

The gap of a setting is the test error from the bad start minus that from a fresh one, in points, paired by seed and test
example. The bounds are constants on top; the claims (`halflife.studies.catalog.images.bad_minima.study`) quote them.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run, points
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above,
    above_zero,
    all_of,
    below,
    equal_at_stake,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "decay_is_enough",
    "falls_with_the_product",
    "gap_closes",
    "gap_of",
    "is_bad",
    "key_of",
    "product_is_enough",
    "rate_is_enough",
]

RESNET, MLP = "resnet", "mlp"
BAD, FRESH = "bad", "fresh"
SMALL_NONE, SMALL_DECAY, SMALL_MATCHED = "small-none", "small-decay", "small-matched"
LARGE_NONE, LARGE_DECAY = "large-none", "large-decay"
SETTINGS = (SMALL_NONE, SMALL_DECAY, SMALL_MATCHED, LARGE_NONE, LARGE_DECAY)

GRID_RATES = (0.01, 0.03, 0.1)
GRID_PRODUCTS = (0.0, 1e-4, 3e-4, 1e-3)
MIDDLE = GRID_PRODUCTS[2]

GAP = 1.0  # points of test error: a start that raises the error by less is not bad
FITTED = 0.01  # training error: below, the labels count as fitted
KEPT = 0.5  # a gap that shrinks to less than this share has shrunk

Wrong = NDArray[np.float64]


def key_of(model: str, start: str, setting: str) -> str:
    """The arm of a model, a start and a setting."""
    return f"{model}-{start}-{setting}"


def grid_setting(lr: float, product: float) -> str:
    """The name of a setting of the grid."""
    return f"{lr:g}-{product:g}"


def parent_key(model: str) -> str:
    """The arm that is trained on random labels."""
    return f"{model}-random"


def gap_of(results: Results, model: str, setting: str, size: int) -> Wrong:
    """Wrong from the bad start minus wrong from a fresh one, in points per seed and test example, (S, N)."""
    wrong = [results.last_array(key_of(model, start, setting), "test/wrong", size) for start in (BAD, FRESH)]
    return 100 * (wrong[0] - wrong[1])


def setting_spec(results: Results, model: str, setting: str, size: int) -> ImageRun:
    """The spec of a setting's run from a fresh start."""
    return image_run(results, key_of(model, FRESH, setting), size)


def _said(results: Results, model: str, setting: str, size: int, confidence: float = CONFIDENCE) -> str:
    spec = setting_spec(results, model, setting, size)
    gap = crossed_interval(gap_of(results, model, setting, size), confidence=confidence)
    errors = [100 * results.last(key_of(model, start, setting), "test/error", size).mean() for start in (BAD, FRESH)]
    return (
        f"{points(gap)} with lr {spec.lr:g} and lam {spec.lam:.3g} ({errors[0]:.2f} % from the bad start, {errors[1]:.2f} %"
        " from a fresh one)"
    )


def _elsewhere(results: Results, model: str, size: int) -> Finding | None:
    """What is said of the MLP along the ladder of the ResNet's widths."""
    if model == MLP and size != results.main_size:
        return Finding("inconclusive", None, "the MLP has one width: it is run beside the main size")
    return None


def _plain(model: str) -> str:
    """The setting with the small rate and without decay."""
    return SMALL_NONE if model == RESNET else grid_setting(GRID_RATES[0], 0.0)


def _full(model: str) -> str:
    """The setting with the large rate and decay."""
    return LARGE_DECAY if model == RESNET else grid_setting(GRID_RATES[-1], GRID_PRODUCTS[-1])


def is_bad(results: Results, size: int, *, model: str) -> Finding:
    """The gap in test error at the small rate without decay, if random and true labels were both fitted."""
    if (elsewhere := _elsewhere(results, model, size)) is not None:
        return elsewhere
    setting = _plain(model)
    effect = crossed_interval(gap_of(results, model, setting, size))
    random, true = (
        seed_interval(results.last(key, "train/error", size))
        for key in (parent_key(model), key_of(model, BAD, setting))
    )
    fitted = random.high < FITTED and true.high < FITTED
    return Finding(
        above(effect, GAP, given=fitted),
        effect,
        f"the gap is {_said(results, model, setting, size)}; the training error is {100 * random.estimate:.2f} % on the random"
        f" labels and then {100 * true.estimate:.2f} % on the true ones"
        + ("" if fitted else f", not surely below {FITTED:.0%}: no global minimum was reached"),
    )


def gap_closes(results: Results, size: int, *, model: str) -> Finding:
    """The gap with the large rate and decay, where there was one without."""
    if (elsewhere := _elsewhere(results, model, size)) is not None:
        return elsewhere
    effect = crossed_interval(gap_of(results, model, _full(model), size), confidence=EQUAL_CONFIDENCE)
    before = crossed_interval(gap_of(results, model, _plain(model), size))
    return Finding(
        equal_at_stake(effect, GAP, at_stake=before.low > GAP),
        effect,
        f"the gap is {_said(results, model, _full(model), size, EQUAL_CONFIDENCE)} (90 %), and"
        f" {_said(results, model, _plain(model), size)}",
    )


def _shrinks(results: Results, setting: str, size: int) -> Finding:
    """Whether the ResNet's gap lies between minus and plus half of that at the small rate without decay."""
    before_SN, gap_SN = (gap_of(results, RESNET, name, size) for name in (SMALL_NONE, setting))
    given = crossed_interval(before_SN).low > 0
    over = crossed_interval(gap_SN - KEPT * before_SN)
    under = crossed_interval(gap_SN + KEPT * before_SN)
    return Finding(
        all_of(below(over, given=given), above_zero(under, given=given)),
        over,
        f"the gap is {_said(results, RESNET, setting, size)}, and {_said(results, RESNET, SMALL_NONE, size)}; the first minus"
        f" half of the second is {points(over)}",
    )


def rate_is_enough(results: Results, size: int) -> Finding:
    """The large rate without decay."""
    return _shrinks(results, LARGE_NONE, size)


def decay_is_enough(results: Results, size: int, *, matched: bool) -> Finding:
    """The small rate with the lam of the large one, or with its lr * lam."""
    return _shrinks(results, SMALL_MATCHED if matched else SMALL_DECAY, size)


def falls_with_the_product(results: Results, size: int) -> Finding:
    """The slope of the MLP's gap against log10(lr * lam), over all settings of the grid with decay."""
    if (elsewhere := _elsewhere(results, MLP, size)) is not None:
        return elsewhere
    places = list(itertools.product(GRID_RATES, GRID_PRODUCTS[1:]))
    x = np.log10([product for _, product in places])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    gaps = [gap_of(results, MLP, grid_setting(*place), size) for place in places]
    effect = crossed_interval(np.sum([w * gap_SN for w, gap_SN in zip(weights, gaps, strict=True)], axis=0))
    means = [
        f"{product:g}: "
        + " / ".join(f"{gap_of(results, MLP, grid_setting(lr, product), size).mean():+.2f}" for lr in GRID_RATES)
        for product in GRID_PRODUCTS
    ]
    return Finding(
        below(effect),
        effect,
        f"the gap changes by {points(effect)} for each factor of 10 in lr * lam; gaps at lr"
        f" {' / '.join(f'{lr:g}' for lr in GRID_RATES)} by lr * lam: {'; '.join(means)}",
    )


def product_is_enough(results: Results, size: int) -> Finding:
    """The MLP's gap at the smallest minus that at the largest rate, at the middle product."""
    if (elsewhere := _elsewhere(results, MLP, size)) is not None:
        return elsewhere
    names = [grid_setting(lr, MIDDLE) for lr in (GRID_RATES[0], GRID_RATES[-1])]
    gaps = [gap_of(results, MLP, name, size) for name in names]
    effect = crossed_interval(gaps[0] - gaps[1], confidence=EQUAL_CONFIDENCE)
    before = crossed_interval(gap_of(results, MLP, _plain(MLP), size))
    return Finding(
        equal_at_stake(effect, GAP, at_stake=before.low > GAP),
        effect,
        f"the gap is {_said(results, MLP, names[0], size)} and {_said(results, MLP, names[1], size)}, a difference of"
        f" {points(effect)} (90 %)",
    )
