"""The decision rules of `lm-generalization`: validation loss as a function of training loss, with an offset per seed.

The windows of the training split on which a run is evaluated are those that it has read, another sample for every seed: a
seed shifts all its training losses by the difficulty of its sample. So both losses are taken relative to their mean over
the runs of the same seed and model. Shapes: K arms, S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import BLOCKS, SMALLEST_EFFECT, nats, no_best_rate, starting_with
from halflife.studies.catalog.language.settings import LAMS
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.decisions import EQUAL_CONFIDENCE, Finding, all_of, best_of, lowered, within
from halflife.studies.evidence.fits import fit_lines
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval

__all__ = [
    "GAP_MARGIN",
    "SLOPE_MARGIN",
    "gaps",
    "largest_gap",
    "one_curve",
    "same_at_equal_loss",
    "slope_is_one",
    "training_loss_falls",
]

GAP_MARGIN = 0.005  # nats: a quarter of the margin of the paper's figure 19
SLOPE_MARGIN = 0.1
MODELS = ("", "gpt-")
"""What the keys of one model start with."""


@dataclass(frozen=True)
class Cloud:
    """The runs of one model, both losses relative to the seed's mean.

    Args:
        keys: The arms.
        train_KS: Training losses.
        val_KSN: Validation losses by block.
        offset_S: The mean training and validation loss of each seed, (2, S).
    """

    keys: list[str]
    train_KS: NDArray[np.float64]
    val_KSN: NDArray[np.float64]
    offset_S: NDArray[np.float64]

    def rows(self, lam: str) -> list[int]:
        """The runs of a lam."""
        return [index for index, key in enumerate(self.keys) if f"-{lam}-" in key]

    @cached_property
    def residual_sd(self) -> float:
        """What is left about one line for all runs, with an offset per seed."""
        return fit_lines(list(self.train_KS.T), list(self.val_KSN.mean(axis=2).T)).residual_sd

    @cached_property
    def train_in_lam_KS(self) -> NDArray[np.float64]:
        """Training losses relative to the mean over the runs of the same lam and seed."""
        centred_KS = self.train_KS.copy()
        for lam in LAMS:
            centred_KS[self.rows(lam)] -= self.train_KS[self.rows(lam)].mean(axis=0)
        return centred_KS

    @cached_property
    def slope_SN(self) -> NDArray[np.float64]:
        """The slope of validation on training loss by seed and block, from runs with the same lam.

        An offset per seed and lam, so that what a lam adds does not tilt the line. Least squares is linear in the validation
        loss: the mean over blocks is the slope of the mean loss.
        """
        x_KS = self.train_in_lam_KS
        slope_SN: NDArray[np.float64] = np.einsum("ks,ksn->sn", x_KS, self.val_KSN) / (x_KS**2).sum(axis=0)[:, None]
        return slope_SN

    def of_lam(self, lam: str, slope: float | None = None) -> NDArray[np.float64]:
        """What the runs of a lam have above the line of those without decay, (S, N).

        Args:
            lam: The lam.
            slope: The line's (``None``: that of each seed and block).

        Returns:
            The differences.
        """
        train_S, val_SN = (
            values[self.rows(lam)].mean(axis=0) - values[self.rows("none")].mean(axis=0)
            for values in (self.train_KS, self.val_KSN)
        )
        above: NDArray[np.float64] = val_SN - (self.slope_SN if slope is None else slope) * train_S[:, None]
        return above


def clouds(results: Results, size: int) -> dict[str, Cloud]:
    """The runs of each model of the preset."""
    found = {}
    for model in MODELS:
        keys = [key for kind in ("decayed", "constant") for key in starting_with(results, f"{model}{kind}-", size)]
        if not keys:
            continue
        train_KS = np.array([results.last(key, "train/loss", size) for key in keys])
        val_KSN = np.array([results.last_array(key, BLOCKS, size) for key in keys])
        offset_S = np.array([train_KS.mean(axis=0), val_KSN.mean(axis=(0, 2))])
        found[model] = Cloud(keys, train_KS - offset_S[0], val_KSN - val_KSN.mean(axis=0), offset_S)
    return found


def _name(model: str) -> str:
    return "the second model (GPT)" if model else "the main model"


def same_at_equal_loss(results: Results, size: int, *, lam: str) -> Finding:
    """What a lam has above the line of no decay, in each model."""
    outcomes, words, effects = [], [], []
    for model, cloud in clouds(results, size).items():
        own, raw = (
            crossed_interval(cloud.of_lam(lam, slope), confidence=EQUAL_CONFIDENCE, example_name="blocks")
            for slope in (None, 1.0)
        )
        effects.append(own)
        outcomes.append(within(own, GAP_MARGIN))
        words.append(
            f"in {_name(model)} the runs of {len(cloud.keys)} arms lie about one line with a standard deviation of"
            f" {cloud.residual_sd:.4f} nats, over training losses that range by {np.ptp(cloud.train_KS):.3f}, and {lam}"
            f" decay is off no decay by {nats(own)} at the slope within a lam ({cloud.slope_SN.mean():.3f}), by {nats(raw)}"
            " at slope 1"
        )
    return Finding(all_of(*outcomes), max(effects, key=lambda e: abs(e.estimate)), f"{'; '.join(words)} (90 %)")


def slope_is_one(results: Results, size: int) -> Finding:
    """The slope among runs with the same lam, in each model."""
    outcomes, words, effects = [], [], []
    for model, cloud in clouds(results, size).items():
        effects.append(seed_interval(cloud.slope_SN.mean(axis=1), EQUAL_CONFIDENCE))
        outcomes.append(within(effects[-1], SLOPE_MARGIN, around=1.0))
        low, high = effects[-1].low, effects[-1].high
        words.append(f"{effects[-1].estimate:.3f} [{low:.3f}, {high:.3f}] in {_name(model)}")
    effect = max(effects, key=lambda e: abs(e.estimate - 1))
    return Finding(all_of(*outcomes), effect, f"the slope of validation on training loss is {', '.join(words)} (90 %)")


def training_loss_falls(results: Results, size: int) -> Finding:
    """The final training loss of decayed runs of the main model, best against best."""
    with_decay, without = (
        [key for lam in lams for key in starting_with(results, f"decayed-{lam}-", size)]
        for lams in (LAMS[1:], LAMS[:1])
    )
    sides = [best_of(results, keys, "train/loss", size) for keys in (with_decay, without)]
    effect = seed_interval(sides[0] - sides[1])
    problem = no_best_rate(results, without, size, "train/loss")
    return Finding(
        "inconclusive" if problem else lowered(effect, SMALLEST_EFFECT),
        effect,
        f"the best decayed run with decay ends at a training loss of {sides[0].mean():.4f}, the best without at"
        f" {sides[1].mean():.4f}, lam and rates chosen on the other seeds: {nats(effect)}{problem and f'; {problem}'}",
    )


def one_curve(results: Results) -> list[PointRow]:
    """Validation against training loss, one point a run, the seed's offset replaced by the mean over seeds."""
    rows = []
    for model, cloud in clouds(results, results.main_size).items():
        train_KS = cloud.train_KS + cloud.offset_S[0].mean()
        val_KS = cloud.val_KSN.mean(axis=2) + cloud.offset_S[1].mean()
        for lam in LAMS:
            inside = cloud.rows(lam)
            pairs = zip(train_KS[inside].flat, val_KS[inside].flat, strict=True)
            name = {"none": "no decay"}.get(lam, f"{lam} decay") + (", GPT" if model else "")
            rows += [PointRow(series=name, x=float(x), y=float(y)) for x, y in pairs]
    return rows


def gaps(results: Results) -> dict[str, Interval]:
    """By model and lam what the runs have above the line of those without decay, with 95 % intervals."""
    return {
        f"{model}{lam}": crossed_interval(cloud.of_lam(lam), example_name="blocks")
        for model, cloud in clouds(results, results.main_size).items()
        for lam in LAMS[1:]
    }


def largest_gap(results: Results) -> str:
    """The largest of `gaps` in size, as text."""
    return nats(max(gaps(results).values(), key=lambda gap: abs(gap.estimate)))
