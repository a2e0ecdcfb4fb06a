"""Bias and variance of the study `bias-variance`, in least squares and in language models.

Least squares. Risks are compared in logarithms, over seeds; one seed is thousands of replicas. The problems have no model and
so no size: they are run beside the main one.

Language models. At a step t of a run at a constant learning rate, with the run's validation loss L(t), the loss B(t) at the
end of its tiny-lr branch from t, and the best loss R that any run of the study reaches,

    variance(t) = L(t) - B(t)      what the noise of the large rate adds to the loss now
    bias(t)     = B(t) - R         how far the run still has to go

so that L(t) = R + bias(t) + variance(t) for every lam. R is the loss after the cooldown from the last step with the lam that
is best on other seeds; it cancels in every comparison of two lams. A branch of finite length keeps the noise of those
directions in which the loss is so flat that they do not settle within it, and so counts it as bias. The runs and their
branches are those of `lm-schedules`, with the same keys, and are trained once for both.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from halflife.studies.catalog.language.bias_variance.theory import expected, paper_bound
from halflife.studies.catalog.language.quantities import BLOCKS, at_share, loss
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.choice import Side
from halflife.studies.evidence.claims import Arm
from halflife.studies.evidence.quantities import Best, Chosen, Measure, Numbers, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.specs.least_squares import LeastSquaresRun

__all__ = [
    "DECAY",
    "DECAYED",
    "FLIP",
    "LINE_RATES",
    "PLAIN",
    "SPREAD_RATES",
    "FromSpec",
    "LateMean",
    "OverBound",
    "SyntheticScale",
    "after_branch",
    "at_drop",
    "at_end",
    "averaging_gain",
    "best_decay",
    "bias",
    "expected_at_drop",
    "expected_late",
    "is_shared",
    "synthetic_arms",
    "synthetic_spec",
    "variance",
]

SPECTRUM = (1.0, 0.631, 0.3981, 0.2512, 0.1585, 0.1, 0.0631, 0.0398, 0.0251, 0.0158, 0.01)  # 10^(-i / 5)
LINE_RATES = (0.5, 0.2, 0.1, 0.05, 0.02)
SPREAD_RATES = (0.4, 0.2, 0.05)
FLIP = ("sampled-0.2", "sampled-0.05")  # the larger and the smaller rate
DECAYED, PLAIN, DECAY = "line-0.1-decay", "line-0.1", 0.1


@dataclass(frozen=True)
class SyntheticScale:
    """How large the simulations are.

    Args:
        steps: Before the drop; half as many follow.
        line_replicas: Of one-dimensional problems.
        spread_replicas: Of those with a spectrum.
    """

    steps: int = 2000
    line_replicas: int = 4000
    spread_replicas: int = 1000


def synthetic_arms(size: int, scale: SyntheticScale) -> tuple[Arm, ...]:
    """The arms of the least-squares part.

    Args:
        size: The size that they are counted to, the study's main one.
        scale: How large the simulations are.

    Returns:
        One-dimensional problems at each rate, one with decay, and a spectrum with either noise.
    """
    common: dict[str, Any] = {
        "drop_step": scale.steps,
        "num_steps": scale.steps * 3 // 2,
        "average_from": scale.steps // 2 + 1,
        "tail": scale.steps // 2,
        "ema": (0.99,),
        "eval_every": max(scale.steps // 40, 1),
        "lr_after_drop": 0.005,
    }
    line = {**common, "distance": 10.0, "optimum": 10.0, "num_replicas": scale.line_replicas}
    spread = {
        **common, "distance": 20.0, "optimum": 20.0, "num_replicas": scale.spread_replicas, "eigenvalues": SPECTRUM,
    }  # fmt: skip
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (f"line-{lr:g}", f"one dimension, lr {lr:g}", {**line, "lr": lr}) for lr in LINE_RATES
    ]
    kinds.append((DECAYED, f"one dimension, lr 0.1, lam {DECAY:g}", {**line, "lr": 0.1, "lam": DECAY}))
    for noise in ("sampled", "additive"):
        kinds += [
            (f"{noise}-{lr:g}", f"spectrum, {noise} noise, lr {lr:g}", {**spread, "lr": lr, "noise": noise})
            for lr in SPREAD_RATES
        ]
    return tuple(Arm(key=key, label=label, size=size, spec=LeastSquaresRun(**fields)) for key, label, fields in kinds)


# ---- least squares


def synthetic_spec(results: Results, key: str, size: int) -> LeastSquaresRun:
    """The spec of an arm of least squares."""
    spec = results.spec(key, size)
    assert isinstance(spec, LeastSquaresRun)
    return spec


def at_drop(spec: LeastSquaresRun) -> int:
    """The last step before the rate drops."""
    assert spec.drop_step is not None
    return spec.drop_step


def at_end(spec: LeastSquaresRun) -> int:
    """The last step."""
    return spec.num_steps


def expected_at_drop(spec: LeastSquaresRun, *, name: str) -> float:
    """The exact expectation of a reading before the drop."""
    return expected(spec)[at_drop(spec)][name]


def _late(spec: LeastSquaresRun) -> list[int]:
    return [step for step in expected(spec) if at_drop(spec) // 2 < step <= at_drop(spec)]


def expected_late(spec: LeastSquaresRun, *, name: str) -> float:
    """The exact expectation of what `LateMean` reads."""
    return float(np.mean([expected(spec)[step][name] for step in _late(spec)]))


@dataclass(frozen=True)
class FromSpec(Measure):
    """A number that follows from an arm's spec, the same for every seed."""

    arm: str
    of: Callable[[LeastSquaresRun], float]

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        return np.full(len(results.seeds(size)), self.of(synthetic_spec(results, self.arm, size)))


@dataclass(frozen=True)
class LateMean(Measure):
    """A reading of an arm, the mean over the second half of the steps before the drop."""

    arm: str
    name: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        steps = _late(synthetic_spec(results, self.arm, size))
        found_S: Numbers = np.mean([results.read(self.arm, self.name, size, step=step) for step in steps], axis=0)
        return found_S


@dataclass(frozen=True)
class OverBound(Chosen):
    """The risk over the paper's bound at the reading before the drop where that is largest.

    The reading is chosen among all, as `Best` chooses among arms, so that the largest of many noisy numbers does not count as
    the largest expectation.
    """

    arm: str

    def side(self, results: Results, size: int) -> Side:
        """A row a reading."""
        spec = synthetic_spec(results, self.arm, size)
        steps = [step for step in expected(spec) if step <= at_drop(spec)]
        ratios = np.array([results.read(self.arm, "risk", size, step=step) / paper_bound(spec, step) for step in steps])
        return Side(values=ratios, lowest=False)


# ---- language models


def is_shared(key: str) -> bool:
    """Whether an arm of `lm-schedules` is one of this study, too: constant runs at the main rate and their branches."""
    wanted = {key_of("constant", lam) for lam in LAMS} | {f"cooldown-constant-{lam}-100" for lam in LAMS}
    return key in wanted or key.startswith("tiny-lr-constant-")


def _run(lam: str, share: int, average: str = "") -> Reading:
    return loss(key_of("constant", lam), average=average, step=functools.partial(at_share, share=share))


def after_branch(lam: str, share: int) -> Reading:
    """The loss at the end of the tiny-lr branch from a share (per cent) of the run, (S, N)."""
    return loss(f"tiny-lr-constant-{lam}-{share}")


def variance(lam: str, share: int) -> Measure:
    """How far the branch lowers the loss, (S, N)."""
    return _run(lam, share) - after_branch(lam, share)


def bias(lam: str, share: int) -> Measure:
    """How far the end of the branch is from the best that any lam reaches by a cooldown, (S, N)."""
    return after_branch(lam, share) - Best(tuple(f"cooldown-constant-{lam}-100" for lam in LAMS), BLOCKS)


def best_decay(share: int) -> Best:
    """The loss after the branch with the best lam > 0, (S, N)."""
    return Best(tuple(f"tiny-lr-constant-{lam}-{share}" for lam in LAMS[1:]), BLOCKS)


def averaging_gain(lam: str, share: int, average: str) -> Measure:
    """How far an average of the weights lowers the loss, (S, N)."""
    return _run(lam, share) - _run(lam, share, average)
