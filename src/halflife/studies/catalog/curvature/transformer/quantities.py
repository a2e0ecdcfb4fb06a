"""What the study of curvature in transformers measures, on a short text that is read many times.

Losses are in nats per token, without dropout and smoothing. A run holds its learning rate; its branch goes on at a tiny one
without decay. Effects of curvature are ratios, so that their intervals are of logarithms.

Shapes: A candidates, S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.choice import Side
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.quantities import Chosen, Measure, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.text import TextRun

__all__ = [
    "LAMS",
    "NAMES",
    "RATES",
    "WHERE",
    "BestStop",
    "branch_of",
    "change_after",
    "end",
    "fall_contrast",
    "gap_after",
    "key_of",
    "measured",
    "ranks_losses",
]

RATES = ("large", "small")
LAMS = ("none", "mid", "strong")
NAMES = {"hessian_trace": "Hessian trace", "jacobian_norm": "Jacobian norm"}
WHERE = {"branch": "after the branch", "average": "of the average (EMA 0.99)"}
BLOCKS = "val/loss_blocks"


def key_of(rate: str, lam: str) -> str:
    """The arm of runs at a learning rate and a lam, both by name."""
    return f"{rate}-{lam}"


def branch_of(rate: str, lam: str) -> str:
    """The arm of the branches of these runs."""
    return f"{key_of(rate, lam)}-branch"


def end(spec: RunSpec) -> int:
    """The length of a run."""
    assert isinstance(spec, TextRun)
    return spec.num_steps


def half(spec: RunSpec) -> int:
    """The middle of a run."""
    return end(spec) // 2


def change_after(rate: str) -> Measure:
    """Validation loss after the branch with strong decay minus without, (S, N)."""
    return Reading(branch_of(rate, "strong"), BLOCKS) - Reading(branch_of(rate, "none"), BLOCKS)


def gap_after(lam: str) -> Measure:
    """Validation minus training loss after the branch from the large rate, (S,)."""
    key = branch_of("large", lam)
    return Reading(key, "val/loss") - Reading(key, "train/loss")


def measured(metric: str, where: str, rate: str, lam: str) -> Reading:
    """A probe of the mean of the process, of the branch's end or of the run's average, (S,)."""
    if where == "branch":
        return Reading(branch_of(rate, lam), metric)
    return Reading(key_of(rate, lam), f"ema-0.99/{metric}")


def fall_contrast(results: Results, size: int) -> NDArray[np.float64]:
    """Fall of the log training loss over the second half at the large rate, without decay minus twice that with, (S,)."""
    none_S, strong_S = (
        np.log(Reading(key_of("large", lam), "train/loss", step=half)(results, size))
        - np.log(Reading(key_of("large", lam), "train/loss", step=end)(results, size))
        for lam in ("none", "strong")
    )
    return np.asarray(none_S - 2 * strong_S)


@dataclass(frozen=True)
class BestStop(Chosen):
    """The lowest validation loss at any evaluation of runs with some lams, at any rate, or after their branches.

    Rate, lam and step are chosen as arms are by `Best`: on other seeds than they are measured on.

    Args:
        lams: The names of the lams.
    """

    lams: Sequence[str]

    def side(self, results: Results, size: int) -> Side:
        """A row a candidate, (A, S)."""
        rows: list[NDArray[np.float64]] = []
        for rate in RATES:
            for lam in self.lams:
                along_SE = [losses for _, losses in results.series_by_step(key_of(rate, lam), "val/loss", size)]
                rows += [*np.array(along_SE).T, results.read(branch_of(rate, lam), "val/loss", size)]
        return Side(values=np.array(rows))


def ranks_losses(results: Results, size: int, *, metric: str) -> NDArray[np.float64]:
    """Spearman's correlation of a probe and the validation loss after the branch over the settings, (S,)."""
    keys = [branch_of(rate, lam) for rate in RATES for lam in LAMS]
    curvature_AS, losses_AS = (
        np.array([results.read(key, name, size) for key in keys]) for name in (metric, "val/loss")
    )
    return np.array([rank_correlation(x_A, y_A) for x_A, y_A in zip(curvature_AS.T, losses_AS.T, strict=True)])
