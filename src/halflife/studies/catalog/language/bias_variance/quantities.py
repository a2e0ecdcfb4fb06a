"""Bias and variance of the study `bias-variance`, in least squares and in language models, and its decision rules.

Least squares. Risks are compared in logarithms, over seeds; one seed is thousands of replicas. The problems have one size,
so these claims are decided at the main size only.

Language models. At a step t of a run at a constant learning rate, with the run's validation loss L(t), the loss B(t) at the
end of its tiny-lr branch from t, and the best loss R that any run of the study reaches,

    variance(t) = L(t) - B(t)      what the noise of the large rate adds to the loss now
    bias(t)     = B(t) - R         how far the run still has to go

so that L(t) = R + bias(t) + variance(t) for every lam. R is the loss after the cooldown from the last step with the lam that
is best on the other seeds; it cancels in every comparison of two lams. A branch of finite length keeps the noise of those
directions in which the loss is so flat that they do not settle within it, and so counts it as bias. The runs and their
branches are those of `lm-schedules`, with the same keys, and are trained once for both.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.bias_variance.theory import expected, paper_bound, stationary_risk
from halflife.studies.catalog.language.quantities import BLOCKS, EARLY_MARGIN, nats, shares_of, step_of
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import Arm
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above,
    above_zero,
    all_of,
    below,
    best_of,
    equal_at_stake,
    within,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval
from halflife.studies.specs.least_squares import LeastSquaresRun

__all__ = [
    "LINE_RATES",
    "RECOVERED",
    "SPREAD_RATES",
    "Split",
    "SyntheticScale",
    "average_removes_the_floor",
    "averaging_recovers",
    "bias_coincides_early",
    "bias_is_lower",
    "bound_holds",
    "bound_is_loose",
    "decay_is_a_bias",
    "floor_is_exact",
    "is_shared",
    "over_blocks",
    "ranking_flips",
    "spread_is_exact",
    "synthetic_arms",
    "variance_grows",
]

SPECTRUM = (1.0, 0.631, 0.3981, 0.2512, 0.1585, 0.1, 0.0631, 0.0398, 0.0251, 0.0158, 0.01)  # 10^(-i / 5)
LINE_RATES = (0.5, 0.2, 0.1, 0.05, 0.02)
SPREAD_RATES = (0.4, 0.2, 0.05)
FLIP = ("sampled-0.2", "sampled-0.05")  # the larger and the smaller rate
DECAYED, PLAIN, DECAY = "line-0.1-decay", "line-0.1", 0.1

FLOOR_MARGIN = 0.02  # relative, of a simulated risk against its expectation
SPREAD_MARGIN = 0.03
LOOSE, LOOSE_MARGIN = 4.0, 0.2  # the bound over the floor as lr -> 0, and what counts as that
AVERAGE_FACTOR = 5.0  # averaging divides the floor by more than this, or it does not remove it
EARLY = 20  # the early comparison is after 1 / 20 of the steps before the drop


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
    return tuple(Arm(key=key, label=label, size=size, spec=_spec(fields, 0)) for key, label, fields in kinds)


def _spec(fields: dict[str, Any], seed: int) -> LeastSquaresRun:
    return LeastSquaresRun(seed=seed, **fields)


P = ParamSpec("P")


def _at_main_size(
    measure: Callable[Concatenate[Results, int, P], Finding],
) -> Callable[Concatenate[Results, int, P], Finding]:
    def measured(results: Results, size: int, /, *args: P.args, **kwargs: P.kwargs) -> Finding:
        if size != results.main_size:
            return Finding(
                "inconclusive", None, "least squares has no model and so no size: it is run beside the main one"
            )
        return measure(results, size, *args, **kwargs)

    functools.update_wrapper(measured, measure)
    return measured


def synthetic_spec(results: Results, key: str) -> LeastSquaresRun:
    """The spec of an arm of least squares."""
    spec = results.spec(key, results.main_size)
    assert isinstance(spec, LeastSquaresRun)
    return spec


def _log_ratio(
    results: Results, key: str, metric: str, step: int, reference: float, confidence: float = EQUAL_CONFIDENCE
) -> Interval:
    """The logarithm of a simulated reading over a number."""
    return seed_interval(np.log(results.at_step(key, metric, step, results.main_size) / reference), confidence)


def _percent(ratio: Interval) -> str:
    low, mid, high = (100 * np.expm1(value) for value in (ratio.low, ratio.estimate, ratio.high))
    return f"{mid:+.2f} [{low:+.2f}, {high:+.2f}] %"


def _as_percent(ratio: Interval) -> Interval:
    """From a logarithm of a ratio to the deviation of the ratio from 1 in per cent."""
    estimate, low, high = (100 * float(np.expm1(value)) for value in (ratio.estimate, ratio.low, ratio.high))
    return Interval(estimate, low, high, ratio.num_seeds, None, ratio.confidence)


def _worst(ratios: Sequence[Interval]) -> Interval:
    """The interval that reaches farthest from 0."""
    return max(ratios, key=lambda ratio: max(abs(ratio.low), abs(ratio.high)))


def _z_score(results: Results, key: str, metric: str, step: int, theory: float) -> float:
    """Simulation minus theory over the standard error of all replicas of all seeds."""
    size = results.main_size
    values_S, errors_S = (results.at_step(key, name, step, size) for name in (metric, f"{metric}_se"))
    return float((values_S.mean() - theory) / (np.sqrt((errors_S**2).sum()) / len(errors_S)))


@_at_main_size
def floor_is_exact(results: Results, size: int) -> Finding:
    """Claim a."""
    ratios, words = [], []
    for lr in LINE_RATES:
        key = f"line-{lr:g}"
        spec = synthetic_spec(results, key)
        assert spec.drop_step is not None
        floor = stationary_risk(spec)
        ratios.append(_log_ratio(results, key, "tail/risk", spec.drop_step, floor))
        z = _z_score(results, key, "tail/risk", spec.drop_step, floor)
        words.append(f"lr {lr:g}: {floor:.5f}, deviation {_percent(ratios[-1])}, z = {z:+.1f}")
    outcome = all_of(*(within(ratio, float(np.log1p(FLOOR_MARGIN))) for ratio in ratios))
    return Finding(
        outcome,
        _as_percent(_worst(ratios)),
        f"floor by the formula, and the simulation's deviation: {'; '.join(words)}",
    )


def _bound_ratios(results: Results, key: str) -> list[tuple[int, Interval]]:
    """At each reading before the drop the logarithm of the risk over the paper's bound."""
    spec = synthetic_spec(results, key)
    assert spec.drop_step is not None
    steps = [step for step in expected(spec) if step <= spec.drop_step]
    return [(step, _log_ratio(results, key, "risk", step, paper_bound(spec, step), confidence=0.95)) for step in steps]


@_at_main_size
def bound_holds(results: Results, size: int, *, keys: tuple[str, ...]) -> Finding:
    """Claims b: at every reading of these arms before the drop."""
    all_ratios = {key: _bound_ratios(results, key) for key in keys}
    outcome = all_of(*(below(ratio) for ratios in all_ratios.values() for _, ratio in ratios))
    words, worst = [], []
    for key, ratios in all_ratios.items():
        step, ratio = max(ratios, key=lambda pair: pair[1].estimate)
        worst.append(ratio)
        words.append(f"{key} {ratio.exp().estimate:.3f} [{ratio.exp().low:.3f}, {ratio.exp().high:.3f}] at step {step}")
    return Finding(
        outcome,
        max(worst, key=lambda ratio: ratio.estimate).exp(),
        f"the largest risk over the bound of any reading: {', '.join(words)}",
    )


@_at_main_size
def bound_is_loose(results: Results, size: int) -> Finding:
    """Claim b-loose."""
    words, ratios = [], []
    for lr in LINE_RATES:
        spec = synthetic_spec(results, f"line-{lr:g}")
        assert spec.drop_step is not None
        noise = lr * spec.noise_std**2
        ratio = _log_ratio(results, f"line-{lr:g}", "tail/risk", spec.drop_step, noise).exp()
        ratios.append(
            Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low, ratio.num_seeds, None, ratio.confidence)
        )
        words.append(f"lr {lr:g}: {ratios[-1].estimate:.2f} (formula {2 * (2 - lr * spec.eigenvalues[0]):.2f})")
    return Finding(
        within(ratios[-1], LOOSE_MARGIN, around=LOOSE),
        ratios[-1],
        f"lr sigma^2 over the simulated floor: {'; '.join(words)}",
    )


def _log_contrast(results: Results, metric: str, step: int) -> Interval:
    """The logarithm of the risk at the larger rate over that at the smaller one."""
    values = [results.at_step(key, metric, step, results.main_size) for key in FLIP]
    return seed_interval(np.log(values[0] / values[1]))


@_at_main_size
def ranking_flips(results: Results, size: int) -> Finding:
    """Claim c."""
    spec = synthetic_spec(results, FLIP[0])
    assert spec.drop_step is not None
    steps = (spec.drop_step // EARLY, spec.drop_step, spec.num_steps)
    early, late, after = (_log_contrast(results, "risk", step) for step in steps)
    average = _log_contrast(results, "average/risk", spec.drop_step)
    outcome = all_of(below(early), above(late), below(after))
    words = [
        f"{name} {ratio.exp().estimate:.3f} [{ratio.exp().low:.3f}, {ratio.exp().high:.3f}]"
        for name, ratio in (
            (f"after {steps[0]} steps", early),
            ("before the drop", late),
            ("at the end", after),
            ("of the averages before the drop", average),
        )
    ]
    return Finding(outcome, after.exp(), f"risk with the larger over that with the smaller rate: {', '.join(words)}")


@_at_main_size
def average_removes_the_floor(results: Results, size: int) -> Finding:
    """Claim d."""
    factors, deviations, words = [], [], []
    for lr in LINE_RATES:
        key = f"line-{lr:g}"
        spec = synthetic_spec(results, key)
        assert spec.drop_step is not None
        theory = expected(spec)[spec.drop_step]
        tail_S, average_S = (results.at_step(key, name, spec.drop_step, size) for name in ("tail/risk", "average/risk"))
        factors.append(seed_interval(np.log(tail_S / average_S)))
        deviations.append(_log_ratio(results, key, "average/risk", spec.drop_step, theory["average/risk"]))
        factor = factors[-1].exp()
        words.append(
            f"lr {lr:g}: {factor.estimate:.1f} [{factor.low:.1f}, {factor.high:.1f}]"
            f" (theory {theory['tail/risk'] / theory['average/risk']:.1f})"
        )
    outcome = all_of(*(above(factor, float(np.log(AVERAGE_FACTOR))) for factor in factors))
    least = min(factors, key=lambda factor: factor.estimate).exp()
    return Finding(
        outcome,
        least,
        f"floor over risk of the average: {'; '.join(words)}; the average's risk deviates from theory by at most"
        f" {_percent(_worst(deviations))}",
    )


@_at_main_size
def spread_is_exact(results: Results, size: int) -> Finding:
    """Claim e."""
    ratios, words = [], []
    for noise in ("sampled", "additive"):
        for lr in SPREAD_RATES:
            key = f"{noise}-{lr:g}"
            spec = synthetic_spec(results, key)
            assert spec.drop_step is not None
            theory = expected(spec)[spec.drop_step]
            ratios.append(_log_ratio(results, key, "tail/risk", spec.drop_step, theory["tail/risk"]))
            share = theory["bias"] / theory["risk"]
            words.append(f"{key} {_percent(ratios[-1])} (bias {share:.1%} of the risk before the drop)")
    outcome = all_of(*(within(ratio, float(np.log1p(SPREAD_MARGIN))) for ratio in ratios))
    return Finding(
        outcome, _as_percent(_worst(ratios)), f"the simulation's deviation from the recursion: {', '.join(words)}"
    )


def _late_mean(results: Results, key: str, metric: str) -> tuple[NDArray[np.float64], float]:
    """A reading averaged over the second half of the steps before the drop, (S,), and its expectation."""
    spec = synthetic_spec(results, key)
    assert spec.drop_step is not None
    theory = expected(spec)
    steps = [step for step in theory if spec.drop_step // 2 < step <= spec.drop_step]
    found_S = np.mean([results.at_step(key, metric, step, results.main_size) for step in steps], axis=0)
    return found_S, float(np.mean([theory[step][metric] for step in steps]))


@_at_main_size
def decay_is_a_bias(results: Results, size: int) -> Finding:
    """Claim f."""
    bias_S, bias = _late_mean(results, DECAYED, "bias")
    variance_S, variance = _late_mean(results, DECAYED, "variance")
    plain_S, plain = _late_mean(results, PLAIN, "variance")
    parts = [
        seed_interval(np.log(found_S / theory), EQUAL_CONFIDENCE)
        for found_S, theory in ((bias_S, bias), (variance_S, variance))
    ]
    change = seed_interval(np.log(variance_S / plain_S))
    equal = [within(part, float(np.log1p(SPREAD_MARGIN))) for part in parts]
    outcome = all_of(*equal, below(change))
    return Finding(
        outcome,
        change.exp(),
        f"with lam {DECAY:g} the bias is {bias_S.mean():.4f} (theory {bias:.4f}, deviation {_percent(parts[0])}) and the"
        f" variance {variance_S.mean():.5f} (theory {variance:.5f}, deviation {_percent(parts[1])}), against"
        f" {plain_S.mean():.5f} without decay (theory {plain:.5f})",
    )


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
        """How far the branch lowers the loss, (S, N)."""
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
        f"at {share} % of the run the tiny-lr branch lowers the loss by {', '.join(words)}; with large decay by {nats(effect)}"
        " more than without",
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
        idle = (
            ""
            if at_stake
            else f", not surely more than {EARLY_MARGIN:g}, so that being equal would say nothing of decay"
        )
        words.append(f"{lam} decay changes the bias by {nats(bias)} (90 %), the loss of the run by {nats(run)}{idle}")
    return Finding(
        all_of(*outcomes),
        max(differences, key=lambda difference: max(abs(difference.low), abs(difference.high))),
        f"at {share} % of the run {'; '.join(words)}",
    )


def averaging_recovers(results: Results, size: int, *, average: str) -> Finding:
    """The part of the variance that an average of the weights removes, at the last step."""
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
        f"at {share} % of the run the average lowers the loss by {'; '.join(words)}; with large decay that minus half of what"
        f" the branch lowers it by is {nats(effect)}",
    )
