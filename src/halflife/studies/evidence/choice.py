"""The best of several arms against the best of others, with an interval for the whole procedure, the choice included.

The quantity is a contrast of minima (or maxima). With mu_ja the mean of arm a of side j over all seeds and examples,

    theta = sum over sides j of weight_j * (min over a of mu_ja)

An arm that is chosen and scored on the same numbers looks better than it is, the more so the more arms there are. So each cell
of seed s and half h of the examples is scored with the arm that is best on all *other* seeds and the *other* half (`chosen`).
Where arms are equal, and where one is clearly best, the mean of that has no bias; between these the choice is wrong at times,
and each side's value is too high by what this loses. The choices of two seeds are made on almost the same others, so that the
scores depend on each other and spread too little: the interval is wider by what a simulation of the whole procedure asks for.

Shapes: A arms, S seeds, N examples, J sides, H halves, T draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.stats import CONFIDENCE, Interval, crossed_interval, seed_interval

__all__ = ["Side", "best_interval", "chosen", "chosen_arms", "contrast_interval", "leave_one_out"]

DRAWS = 2_000
FEWEST_DRAWS = 500
UNLUCKY = 0.2  # how often a variance over seeds is underestimated by more than the simulation allows for
CELLS = 1_500_000  # of simulated scores, which bounds the time to some 50 ms
STEP = 0.01  # widening is rounded up to a multiple of this, so that another generator's last digits change little


@dataclass(frozen=True, kw_only=True)
class Side:
    """Arms of which the best one counts; a single arm is a side of one.

    Args:
        values: One row an arm: (A, S), one value a seed, or (A, S, N).
        weight: What the side's value is multiplied by in the contrast.
        scores: What the arm is chosen by, (A, S) or (A, S, N) (``None``: the values). With scores apart the quantity is the
            mean value of the arm whose mean score is best.
        lowest: Whether the best score is the lowest.
    """

    values: NDArray[Any]
    weight: float = 1.0
    scores: NDArray[Any] | None = None
    lowest: bool = True


def best_interval(
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    confidence: float = CONFIDENCE,
    lowest: bool = True,
    example_name: str = "examples",
) -> Interval:
    """The best of some arms minus the best of others: `contrast_interval` of two sides.

    Args:
        first: (A, S) or (A, S, N); one arm is (1, S) or (1, S, N).
        second: Likewise, of the same seeds and examples.
        confidence: Nominal coverage.
        lowest: Whether the best value is the lowest.
        example_name: What the examples are.

    Returns:
        The interval.

    Examples:
        >>> rates = np.array([[1.0, 1.1, 1.2, 1.1], [3.0, 3.1, 3.2, 3.0]])
        >>> found = best_interval(rates, np.array([[2.0, 2.2, 2.2, 2.1]]))
        >>> round(found.estimate, 3), found.high < 0
        (-1.025, True)
    """
    sides = [Side(values=first, lowest=lowest), Side(values=second, weight=-1.0, lowest=lowest)]
    return contrast_interval(sides, confidence=confidence, example_name=example_name)


def contrast_interval(
    sides: Sequence[Side], *, confidence: float = CONFIDENCE, example_name: str = "examples"
) -> Interval:
    """The interval of a weighted sum of sides, each of which is the best of its arms.

    estimate +- c * t * sqrt(V), with estimate, V and t those of `crossed_interval` (of `seed_interval` for one value a seed) of
    the weighted sum of `chosen`, and c >= 1 from a simulation of the whole procedure: normal values with the variances that
    the contenders show (arm by seed, arm by example, the rest, and what all arms of the contrast share). It is what brings the
    coverage to the nominal one in the worst of three cases: equal contenders, the gaps that were observed, and equal contenders
    with more variance over seeds, as far as few seeds leave it open. Contenders are the arms that some choice takes, and the
    best of all. The generator is fixed by the data's shape, so that the same numbers give the same interval.

    Args:
        sides: The sides, at least one, all of the same seeds and examples.
        confidence: Nominal coverage.
        example_name: What the examples are.

    Returns:
        The interval. With one arm on each side there is nothing to choose, and it is that of the paired contrast.

    Raises:
        UserError: There are no sides, their shapes differ, or there are fewer than two seeds or examples.
    """
    _check(sides)
    contrast: NDArray[np.float64] = functools.reduce(np.add, (side.weight * chosen(side) for side in sides))
    plain = (
        seed_interval(contrast, confidence)
        if contrast.ndim == 1
        else crossed_interval(contrast, confidence=confidence, example_name=example_name)
    )
    if all(len(side.values) == 1 for side in sides) or plain.high == plain.low:
        return plain
    factor = _widening(sides, confidence)
    low, high = (plain.estimate + factor * (end - plain.estimate) for end in (plain.low, plain.high))
    assert plain.standard_error is not None
    return replace(plain, low=low, high=high, standard_error=factor * plain.standard_error)


def chosen(side: Side) -> NDArray[np.float64]:
    """What the best arm of a side reaches: for each seed with arms chosen on others, and on the other half of the examples.

    Args:
        side: The side.

    Returns:
        (S,) or (S, N). Its mean is the estimate.

    Examples:
        >>> chosen(Side(values=np.array([[0.0, 3.0, 3.0], [2.0, 2.0, 2.0]])))
        array([2., 3., 3.])
    """
    values_ASN, scores_ASH = _prepared(side)
    if len(values_ASN) == 1:
        return np.asarray(side.values[0], dtype=np.float64)
    parts = np.array_split(values_ASN, scores_ASH.shape[2], axis=2)
    found_SN = np.concatenate(
        [
            part_ASN[arms_S, np.arange(len(arms_S))]
            for part_ASN, arms_S in zip(parts, _choices(scores_ASH).T, strict=True)
        ],
        axis=1,
    )
    return found_SN[:, 0] if side.values.ndim == 2 else found_SN


def chosen_arms(side: Side) -> list[int]:
    """The arms that are chosen for some seed and half of the examples, by their place, in rising order."""
    return [int(arm) for arm in np.unique(_choices(_prepared(side)[1]))]


def leave_one_out(scores_AS: NDArray[Any], *, lowest: bool = True) -> NDArray[np.int64]:
    """For each seed the arm that is best on the mean of the other seeds; of equals the first.

    It says which arms a choice takes, for the premise that they are not at the edge of a grid. An interval that counts the
    choice is `contrast_interval`.

    Args:
        scores_AS: One score per arm and seed, shape (A, S), S >= 2.
        lowest: Whether the best score is the lowest one.

    Returns:
        An arm's index per seed, shape (S,).

    Raises:
        UserError: There are fewer than two seeds or no arms.

    Examples:
        >>> leave_one_out(np.array([[0.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
        array([1, 0, 0])
    """
    scores = np.asarray(scores_AS, dtype=np.float64)
    num_arms, num_seeds = scores.shape
    if num_seeds < 2 or not num_arms:
        raise UserError(
            f"a choice on the other seeds got {num_arms} arms with {num_seeds} seeds, expected at least 1 with 2: run with"
            " --seeds 2 or more"
        )
    # The mean over seeds with one left out, not the total minus one: equal arms must stay equal to the last bit.
    others = np.stack([np.delete(scores, seed, axis=1).mean(axis=1) for seed in range(num_seeds)], axis=1)
    chosen: NDArray[np.int64] = np.argmin(others if lowest else -others, axis=0)
    return chosen


def _check(sides: Sequence[Side]) -> None:
    shapes = sorted({side.values.shape[1:] for side in sides})
    if len(shapes) != 1 or len(shapes[0]) not in {1, 2} or any(not len(side.values) for side in sides):
        got = " and ".join(str(side.values.shape) for side in sides) or "no sides"
        raise UserError(
            f"a choice between arms got {got}, expected arms of shape (A, S) or (A, S, N) with one S and N on all sides, and at"
            " least one arm each: read every arm at the same seeds and examples"
        )
    if shapes[0][0] < 2:
        raise UserError(
            f"a choice on other seeds got {shapes[0][0]} seed, expected at least 2: run with --seeds 2 or more"
        )
    for numbers in (found for side in sides for found in (side.values, side.scores) if found is not None):
        if not np.isfinite(numbers).all():
            raise UserError(
                "a choice between arms got a value that is not finite, expected numbers: a reading is damaged, or a run"
                " diverged and its arm is to be left out"
            )


def _prepared(side: Side) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values as (A, S, N), N = 1 for one a seed, and the scores that choose for each half of the examples, lowest best."""
    values = np.asarray(side.values, dtype=np.float64)
    scores = values if side.scores is None else np.asarray(side.scores, dtype=np.float64)
    if scores.shape[:2] != values.shape[:2]:
        raise UserError(
            f"a choice between arms got scores of shape {scores.shape} for values of shape {values.shape}, expected the same"
            " arms and seeds: read both of the same runs"
        )
    scores = scores if side.lowest else -scores
    if values.ndim == 2:
        values = values[:, :, None]
    if scores.ndim == 2:
        scores = scores[:, :, None]
    if scores.shape == values.shape and values.shape[2] > 1:
        halves = [part.mean(axis=2) for part in np.array_split(scores, 2, axis=2)]
        return values, np.stack(halves[::-1], axis=2)  # the other half chooses
    return values, scores.mean(axis=2, keepdims=True)


def _choices(scores_ASH: NDArray[np.float64]) -> NDArray[np.int64]:
    """The best arm for each seed and half, (S, H)."""
    return np.stack([leave_one_out(scores_AS) for scores_AS in np.moveaxis(scores_ASH, 2, 0)], axis=1)


# ---- the simulation behind the widening


@dataclass(frozen=True, kw_only=True)
class _Variances:
    """Components of variance: of a seed, of an example, and of one example in one seed beyond both."""

    seed: float
    example: float
    rest: float

    @staticmethod
    def of(values_ASN: NDArray[np.float64], degrees: int) -> _Variances:
        """From mean squares of what is left of each arm's mean; ``degrees`` are those of the arms."""
        num_seeds, num_examples = values_ASN.shape[1:]
        left_ASN = values_ASN - values_ASN.mean(axis=(1, 2), keepdims=True)
        rows_AS, columns_AN = left_ASN.mean(axis=2), left_ASN.mean(axis=1)
        seed = float((rows_AS**2).sum()) / (degrees * (num_seeds - 1))
        if num_examples == 1:
            return _Variances(seed=seed, example=0.0, rest=0.0)
        left_ASN -= rows_AS[:, :, None]
        left_ASN -= columns_AN[:, None, :]
        rest = float((left_ASN**2).sum()) / (degrees * (num_seeds - 1) * (num_examples - 1))
        example = float((columns_AN**2).sum()) / (degrees * (num_examples - 1))
        return _Variances(
            seed=max(seed - rest / num_examples, 0.0), example=max(example - rest / num_seeds, 0.0), rest=rest
        )

    def less_by_examples(self, part: float) -> _Variances:
        """The same with so much of what examples do: as good as more by seeds, since only ratios matter."""
        return _Variances(seed=self.seed, example=part * self.example, rest=part * self.rest)

    def minus(self, parts: Sequence[tuple[float, _Variances]]) -> _Variances:
        """Without a weighted sum of others, none below 0."""
        return _Variances(
            seed=max(self.seed - sum(weight * part.seed for weight, part in parts), 0.0),
            example=max(self.example - sum(weight * part.example for weight, part in parts), 0.0),
            rest=max(self.rest - sum(weight * part.rest for weight, part in parts), 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class _Contenders:
    """A side without the arms that no choice takes: distances from the best arm, and how arms differ beyond them."""

    weight: float
    own_scores: bool  # the values themselves
    sign: np.float32  # of a value within its score; all else is drawn alike, so that highest and lowest are mirrors
    mean_SN: NDArray[np.float64]
    gaps_K: NDArray[np.float64]
    score_gaps_K: NDArray[np.float64]
    values: _Variances
    scores: _Variances

    @staticmethod
    def of(side: Side) -> _Contenders:
        values_ASN, scores_ASH = _prepared(side)
        means_A, value_means_A = scores_ASH.mean(axis=(1, 2)), values_ASN.mean(axis=(1, 2))
        best = int(means_A.argmin())
        scores = np.asarray(side.values if side.scores is None else side.scores, dtype=np.float64)
        kept = sorted({best, *chosen_arms(side)})
        scores_KSN = scores[kept] if scores.ndim == 3 else scores[kept][:, :, None]
        values_KSN = values_ASN[kept]
        degrees = max(len(kept) - 1, 1)
        return _Contenders(
            weight=side.weight,
            own_scores=side.scores is None,
            sign=np.float32(1 if side.lowest else -1),
            mean_SN=values_KSN.mean(axis=0),
            gaps_K=(value_means_A - value_means_A[best])[kept],
            score_gaps_K=(means_A - means_A[best])[kept],
            values=_Variances.of(values_KSN - values_KSN.mean(axis=0), degrees),
            scores=_Variances.of(scores_KSN - scores_KSN.mean(axis=0), degrees),
        )


@dataclass(frozen=True, kw_only=True)
class _Procedure:
    """The procedure of `contrast_interval` on normal values, for T draws at once."""

    num_draws: int
    num_halves: int
    num_examples: int
    num_seeds: int
    rng: np.random.Generator

    def normals(self, num_rows: int) -> list[NDArray[np.float32]]:
        """Standard normal numbers for seeds, halves and both, each of shape (T, H or 1, K, S or 1)."""
        halves, seeds = self.num_halves, self.num_seeds
        shapes = [(1, num_rows, seeds), (halves, num_rows, 1), (halves, num_rows, seeds)]
        return [self.rng.standard_normal((self.num_draws, *shape), dtype=np.float32) for shape in shapes]

    def noise(self, variances: _Variances, normals: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Means over the examples of a half, (T, H, K, S)."""
        share = self.num_halves / self.num_examples
        scales = np.sqrt(
            np.array([variances.seed, share * variances.example, share * variances.rest], dtype=np.float32)
        )
        return np.asarray(sum(scale * z for scale, z in zip(scales, normals, strict=True)), dtype=np.float32)

    def chosen(
        self, values_THKS: NDArray[np.float32], scores_THKS: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """What the chosen arms reach, (T, H, S), and how concentrated the choice is: 1 on one arm, 1 / K on K alike, (T,)."""
        others_THKS = scores_THKS.sum(axis=3, keepdims=True) - scores_THKS
        arms_THS = others_THKS[:, ::-1].argmin(axis=2)
        scored_THS = np.take_along_axis(values_THKS, arms_THS[:, :, None], axis=2)[:, :, 0]
        draws, halves, num_arms, num_seeds = values_THKS.shape
        first_arm = num_arms * np.arange(draws * halves).reshape(draws, halves, 1)
        counts = np.bincount((first_arm + arms_THS).ravel(), minlength=draws * halves * num_arms)
        shares_THK = counts.reshape(draws, halves, num_arms) / num_seeds
        return scored_THS, (shares_THK**2).sum(axis=2).mean(axis=1)


def _widening(sides: Sequence[Side], confidence: float) -> float:
    """The factor c of `contrast_interval`."""
    from scipy.special import gammaincinv, stdtrit  # here as in `t_quantile`

    found = [_Contenders.of(side) for side in sides]
    num_seeds, num_examples = found[0].mean_SN.shape
    num_halves = max(_prepared(side)[1].shape[2] for side in sides)
    num_arms = sum(len(f.gaps_K) for f in found)
    draws = CELLS // (num_halves * num_seeds * (num_arms + num_seeds))
    procedure = _Procedure(
        num_draws=min(max(draws, FEWEST_DRAWS), DRAWS),
        num_halves=num_halves,
        num_examples=num_examples,
        num_seeds=num_seeds,
        rng=np.random.default_rng([num_seeds, num_examples, *(len(side.values) for side in sides)]),
    )
    # What all arms of the contrast share: the variances of its mean over contenders, without what contenders leave there.
    mean_SN = np.sum([f.weight * f.mean_SN for f in found], axis=0)
    mixed = [(f.weight**2 / len(f.gaps_K), f.values) for f in found if len(f.gaps_K) > 1]
    shared = _Variances.of(mean_SN[None], 1).minus(mixed)
    shared_normals = procedure.normals(1)
    several = [(f, procedure.normals(len(f.gaps_K))) for f in found if len(f.gaps_K) > 1]
    needed = []
    cases = [(0.0, 1.0), (1.0, 1.0)]
    if num_examples > 1:
        cases.append((0.0, float(2 * gammaincinv((num_seeds - 1) / 2, UNLUCKY) / (num_seeds - 1))))
    for gaps, part in cases:
        common = shared.less_by_examples(part)
        contrast_THS = found[0].sign * procedure.noise(common, shared_normals)[:, :, 0]
        example_T = np.full(len(contrast_THS), common.example)
        for f, normals in several:
            values = f.values.less_by_examples(part)
            noise_THKS = procedure.noise(values, normals)
            values_THKS = f.sign * noise_THKS + np.float32(gaps) * f.gaps_K.astype(np.float32)[:, None]
            if not f.own_scores:
                noise_THKS = procedure.noise(f.scores.less_by_examples(part), normals)
            scores_THKS = noise_THKS + np.float32(gaps) * f.score_gaps_K.astype(np.float32)[:, None]
            scored_THS, concentration_T = procedure.chosen(values_THKS, scores_THKS)
            contrast_THS += np.float32(f.weight) * scored_THS
            example_T += f.weight**2 * values.example * concentration_T
        rows_TS = contrast_THS.mean(axis=1, dtype=np.float64)
        seed_T = np.maximum(rows_TS.var(axis=1, ddof=1) / num_seeds, np.finfo(np.float64).tiny)
        variance_T = seed_T + example_T / num_examples
        degrees_T = (num_seeds - 1) * (variance_T / seed_T) ** 2
        half_T = stdtrit(degrees_T, 0.5 + confidence / 2) * np.sqrt(variance_T)
        needed.append(float(np.quantile(np.abs(rows_TS.mean(axis=1)) / half_T, confidence)))
    return max(1.0, math.ceil(max(needed) / STEP) * STEP)
