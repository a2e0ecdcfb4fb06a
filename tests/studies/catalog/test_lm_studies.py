"""Decision rules of the language-model studies on made-up numbers whose answer is known, and what their presets hold."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.rules.registry import schedule_from
from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.language.ablations import SMALL, sgd_arms
from halflife.studies.catalog.language.effective_lr import BetweenSeeds
from halflife.studies.catalog.language.quantities import BLOCKS
from halflife.studies.evidence.claims import Preset
from halflife.studies.evidence.quantities import NotMeasuredError
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding
from halflife.studies.specs import TextBranch, TextReplay, TextRun
from halflife.studies.specs.base import RunSpec

Array = NDArray[np.float64]
NAMES = ("lm-schedules", "lm-generalization", "lm-effective-lr", "lm-ablations")
NUM_SEEDS, NUM_BLOCKS, SIZE, BASE = 5, 32, 32, 2.0
TIGHT, LOOSE = 1e-4, 0.05


def number_of(text: str) -> int:
    return zlib.crc32(text.encode())


class MadeUp:
    """Results of a laptop preset. Losses are ``losses["key"]``, ``["key@step"]``, ``["key:metric"]``, else `BASE`.

    Seeds and blocks shift all arms alike, and in every arm seeds and blocks vary by ``jitter`` on their own.
    """

    def __init__(self, study: str, losses: Mapping[str, float] | None = None, jitter: float = TIGHT) -> None:
        preset = get_study(study).presets["laptop"]
        self.main_size = preset.main_size
        self.arms = [{"key": arm.key, "size": arm.size} for arm in preset.arms]
        self.built = {arm.key: arm.build(0) for arm in preset.arms}
        self.losses, self.jitter = dict(losses or {}), jitter

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key]

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def level(self, key: str, metric: str, step: int | None) -> float:
        names = [f"{key}@{step}"] if step is not None else []
        for name in (*names, f"{key}:{metric}", key):
            if name in self.losses:
                return self.losses[name]
        return BASE

    def array(self, key: str, metric: str, step: int | None) -> Array:
        shared = np.random.default_rng(1)
        seeds_S, blocks_N = shared.normal(0, 0.02, (NUM_SEEDS, 1)), shared.normal(0, 0.3, NUM_BLOCKS)
        own = np.random.default_rng(number_of(f"{key}/{metric}/{step}"))
        noise_SN = own.normal(0, self.jitter, (NUM_SEEDS, 1)) + own.normal(0, self.jitter, (NUM_SEEDS, NUM_BLOCKS))
        return np.asarray(self.level(key, metric, step) + seeds_S + blocks_N + noise_SN, dtype=np.float64)

    def read(self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None) -> Array:
        array_SN = self.array(key, name.removesuffix("_blocks"), step)
        return array_SN if name.endswith("_blocks") else np.asarray(array_SN.mean(axis=1))


def study_of(key: str) -> str:
    """Which of the studies has a claim: the keys are different in all of them."""
    (name,) = (name for name in NAMES for claim in get_study(name).claims if claim.key == key)
    return name


def decide(key: str, made: object) -> Finding:
    (claim,) = (claim for claim in get_study(study_of(key)).claims if claim.key == key)
    finding = claim.decide(cast("Results", made), SIZE)
    assert finding.effect is None or finding.effect.low <= finding.effect.estimate <= finding.effect.high
    return finding


END = {"constant-moderate-x1": 2.05}  # what decay costs at the end of the run at a constant rate
LATE = {"decayed-moderate-x1@800": 2.03, "decayed-moderate-x1": 1.98}  # 800: 40 % of 2000 steps
UNCLEAR = {"decayed-moderate-x1@800": 2.0, "decayed-moderate-x1": 1.5}
TINY = "tiny-lr-constant-moderate-100"
FIRST, LAST = "tiny-lr-decayed-moderate-20", "tiny-lr-decayed-moderate-80"
MIDWAY = "tiny-lr-decayed-moderate-40"
EMA, MEAN = "constant-moderate-x1:ema-0.99/val/loss", "constant-moderate-x1:mean/val/loss"

SCHEDULES, ABLATIONS = "lm-schedules", "lm-ablations"

CASES: list[tuple[str, str, dict[str, float], float, str, float]] = [
    # The best arms are elsewhere in the grid than the main rate, and differ by 0.02.
    ("best lower", "best", {"decayed-none-x2": 1.99, "decayed-large-x4": 1.97}, TIGHT, "reproduced", -0.02),
    ("best lower, best rate at the upper edge", "best", {"decayed-none-x4": 1.99, "decayed-large-x4": 1.97}, TIGHT,
     "not tested", -0.02),
    ("best lower, best rate at the lower edge", "best", {"decayed-none-x1": 1.99, "decayed-large-x1": 1.97}, TIGHT,
     "not tested", -0.02),
    ("best equal", "best", {"decayed-none-x2": 1.97, "decayed-large-x4": 1.97}, TIGHT, "not reproduced", 0),
    ("best higher", "best", {"decayed-none-x2": 1.9}, TIGHT, "not reproduced", 0.1),
    ("best unclear", "best", {"decayed-none-x2": 1.5, "decayed-large-x4": 1.49}, LOOSE, "undecided", -0.01),
    ("gain below the smallest that counts", "same-rate-moderate", {"decayed-moderate-x1": 1.9985}, TIGHT,
     "reproduced", -0.0015),
    ("same rate, a loss", "same-rate-moderate", {"decayed-moderate-x1": 2.01}, TIGHT, "not reproduced", 0.01),
    ("same rate, another arm gains", "same-rate-moderate", {"decayed-large-x1": 1.9}, TIGHT, "not reproduced", 0),
    ("higher", "higher-loss-moderate", END, TIGHT, "reproduced", 0.05),
    ("higher turned round", "higher-loss-moderate", {"constant-none-x1": 2.05}, TIGHT, "not reproduced", -0.05),
    ("higher unclear", "higher-loss-moderate", {"constant-moderate-x1": 2.03}, LOOSE, "undecided", 0.03),
    ("shrinks", "branch-removes-moderate", {**END, TINY: 2.02}, TIGHT, "reproduced", 0.03),
    ("shrinks beyond 0", "branch-removes-moderate", {**END, TINY: 1.98}, TIGHT, "reproduced", 0.07),
    ("grows", "branch-removes-moderate", {**END, TINY: 2.09}, TIGHT, "not reproduced", -0.04),
    ("no gap to shrink", "branch-removes-moderate", {TINY: 1.9}, TIGHT, "not tested", 0.1),
    ("branch lower", "better-point-moderate", {**END, TINY: 1.99}, TIGHT, "reproduced", -0.01),
    ("branch higher", "better-point-moderate", {**END, TINY: 2.01}, TIGHT, "not reproduced", 0.01),
    ("only an earlier branch lower", "better-point-moderate", {TINY: 2.01, TINY[:-3] + "20": 1.9}, TIGHT,
     "not reproduced", 0.01),
    ("cooldown lower", "cooldown-moderate", {"cooldown-constant-moderate-100": 1.9}, TIGHT, "reproduced", -0.1),
    ("crosses", "crossing-moderate", LATE, TIGHT, "reproduced", -0.02),
    ("lower throughout", "crossing-moderate", {**LATE, "decayed-moderate-x1@800": 1.9}, TIGHT, "not reproduced", -0.02),
    ("higher throughout", "crossing-moderate", {**LATE, "decayed-moderate-x1": 2.01}, TIGHT, "not reproduced", 0.01),
    ("lower at the end, midway unclear", "crossing-moderate", UNCLEAR, LOOSE, "undecided", -0.5),
    ("branches coincide", "early-branch-moderate", {**LATE, MIDWAY: 2.005}, TIGHT, "reproduced", 0.005),
    ("branches coincide, as the runs nearly do", "early-branch-moderate", {"decayed-moderate-x1@800": 2.009}, TIGHT,
     "not tested", 0),
    ("branches differ", "early-branch-moderate", {**LATE, MIDWAY: 2.02}, TIGHT, "not reproduced", 0.02),
    ("branches coincide as the runs do", "early-branch-moderate", {"decayed-moderate-x1@800": 1.99}, TIGHT,
     "not reproduced", 0),
    ("branches unclear", "early-branch-moderate", {"decayed-moderate-x1@800": 2.5, MIDWAY: 2.01}, LOOSE, "undecided", 0.01),
    ("gains late", "late-gain-moderate", {FIRST: 2.01, LAST: 1.99}, TIGHT, "reproduced", -0.02),
    ("gains early", "late-gain-moderate", {FIRST: 1.98, LAST: 1.99}, TIGHT, "not reproduced", 0.01),
    ("never gains", "late-gain-moderate", {FIRST: 2.03, LAST: 2.01}, TIGHT, "not reproduced", -0.02),
    ("gains harmless", "gains-moderate", {"gains-kept-none": 2.02, "gains-decayed-moderate": 2.003}, TIGHT,
     "reproduced", 0.003),
    ("gains harmless, and decay costs", "gains-moderate", {"gains-kept-none": 1.98}, TIGHT,
     "reproduced", 0),
    ("gains harmless as decay is idle", "gains-moderate", {"gains-kept-none": 2.004}, TIGHT,
     "not tested", 0),
    ("gains matter", "gains-moderate", {"gains-decayed-moderate": 1.99}, TIGHT, "not reproduced", -0.01),
    ("gains unclear", "gains-moderate", {"gains-decayed-moderate": 2.003}, LOOSE, "undecided", 0.003),
    ("gains harm", "gains-large", {"gains-decayed-large": 2.03}, TIGHT, "reproduced", 0.03),
    ("gains help", "gains-large", {"gains-decayed-large": 1.97}, TIGHT, "not reproduced", -0.03),
    ("L2 helps at one rate", "l2-inside", {"l2-inside-large": 1.98, "l2-outside-large": 1.8}, TIGHT, "not tested", -0.02),
    ("L2 does not, at one rate", "l2-inside", {"l2-outside-large": 1.8}, TIGHT, "not tested", 0),
    ("L2 as good", "l2-outside-as-good", {"l2-outside-small": 1.97, "adam-decoupled-large": 1.972}, TIGHT,
     "reproduced", -0.002),
    ("L2 as good where decay is idle", "l2-outside-as-good", {"l2-outside-small": 1.997, "adam-decoupled-large": 1.997}, TIGHT,
     "not tested", 0),
    ("L2 worse", "l2-outside-as-good", {"l2-outside-small": 1.99, "adam-decoupled-large": 1.97}, TIGHT, "not reproduced", 0.02),
    ("L2 better", "l2-outside-as-good", {"l2-outside-small": 1.96, "adam-decoupled-large": 1.97}, TIGHT,
     "not reproduced", -0.01),
    ("SGD at two rates", "sgd", {"sgd-large-lr2": 1.95, "sgd-none-lr1": 1.96}, TIGHT,
     "not tested", -0.01),
    ("EMA shrinks", "ema-shrinks-moderate", {**END, EMA: 2.02}, TIGHT, "reproduced", 0.03),
    ("EMA does not", "ema-shrinks-moderate", {**END, EMA: 2.06, MEAN: 2.0}, TIGHT, "not reproduced", -0.01),
    ("mean shrinks", "mean-shrinks-moderate", {**END, EMA: 2.06, MEAN: 2.0}, TIGHT, "reproduced", 0.05),
    ("EMA less than the branch", "ema-below-branch-moderate", {**END, EMA: 2.02, TINY: 2.01}, TIGHT, "reproduced", 0.01),
    ("EMA more than the branch", "ema-below-branch-moderate", {**END, EMA: 2.0, TINY: 2.01}, TIGHT, "not reproduced", -0.01),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key", "losses", "jitter", "outcome", "effect"), CASES, ids=[case[0] for case in CASES]
)
def test_a_rule_decides_what_it_should(
    name: str,
    key: str,
    losses: dict[str, float],
    jitter: float,
    outcome: str,
    effect: float,
) -> None:
    finding = decide(key, MadeUp(study_of(key), losses, jitter))
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=4 * jitter)


@pytest.mark.parametrize(
    ("losses", "outcome", "effect"),
    [
        ({"sgd-large-lr1": 1.95, "sgd-none-lr2": 1.96}, "reproduced", -0.01),
        ({"sgd-large-lr2": 1.95, "sgd-none-lr2": 1.9}, "not reproduced", 0.05),
        ({"sgd-large-lr2": 1.95, "sgd-none-lr4": 1.96}, "not tested", -0.01),  # at an edge
    ],
)
def test_sgd_decides_with_three_rates(losses: dict[str, float], outcome: str, effect: float) -> None:
    made = MadeUp(ABLATIONS, losses)
    wider = sgd_arms(dataclasses.replace(SMALL, sgd_rates=(1.0, 2.0, 4.0)))
    made.arms = [{"key": arm.key, "size": arm.size} for arm in wider]
    made.built = {arm.key: arm.build(0) for arm in wider}
    finding = decide("sgd", made)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=4 * TIGHT)


def test_an_undecided_best_rate_is_told() -> None:
    one_seed_off = MadeUp(SCHEDULES, {"decayed-none-x2": 1.99})
    assert "edge" not in decide("best", one_seed_off).reason
    upper = decide("best", MadeUp(SCHEDULES, {"decayed-none-x4": 1.99})).reason
    assert upper.endswith(
        "without decay the best learning rate on the other seeds is at an edge of its grid (0.192) for some seed"
    )
    made = MadeUp(ABLATIONS)
    made.arms = [
        arm for arm in made.arms if not (str(arm["key"]).startswith("sgd-") and str(arm["key"]).endswith("lr3"))
    ]
    two = decide("sgd", made).reason
    assert two.endswith("the grid of the learning rate without decay is 1, 2, and a best value needs 3")


def test_the_paper_preset_is_decided_where_it_has_three_rates() -> None:
    """One rate at context 256, three at 1024."""
    made = MadeUp(SCHEDULES, {"long-decayed-none-x2": 1.99, "long-decayed-large-x2": 1.97, "decayed-large-x1": 1.5})
    arms = [arm for arm in get_study(SCHEDULES).presets["paper"].arms if "decayed-" in arm.key]
    made.arms = [{"key": arm.key, "size": SIZE} for arm in arms]
    made.built = {arm.key: arm.build(0) for arm in arms}
    finding = decide("best", made)
    assert finding.outcome == "reproduced", finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(-0.02, abs=4 * TIGHT)


# ---- validation loss as a function of training loss


class OneCurve(MadeUp):
    """val = 0.3 + slope * train + extra[lam], while every seed shifts its training losses by a sample of its own."""

    def __init__(self, slope: float, extra: Mapping[str, float] | None = None, jitter: float = TIGHT) -> None:
        super().__init__("lm-generalization", jitter=jitter)
        self.slope, self.extra = slope, dict(extra or {})

    def train(self, key: str) -> float:
        return 2.0 + 0.1 * (number_of(key) % 1000) / 1000

    def read(self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None) -> Array:
        if name != "train/loss":
            return super().read(key, name, size, epoch=epoch, step=step)
        return self.train(key) + np.random.default_rng(2).normal(0, 0.05, NUM_SEEDS)

    def level(self, key: str, metric: str, step: int | None) -> float:
        extra = sum(value for part, value in self.extra.items() if part in key)
        return 0.3 + self.slope * self.train(key) + extra


same_curve = "same-curve-large"


@pytest.mark.parametrize(
    ("key", "made", "outcome", "effect"),
    [
        ("slope", OneCurve(1.0), "reproduced", 1.0),
        ("slope", OneCurve(0.8), "not reproduced", 0.8),
        ("slope", OneCurve(1.0, jitter=0.02), "undecided", 1.0),
        (same_curve, OneCurve(0.8), "reproduced", 0.0),
        (same_curve, OneCurve(1.0, {"large": 0.02}), "not reproduced", 0.02),
        (same_curve, OneCurve(1.0, {"gpt-decayed-large": 0.02, "gpt-constant-large": 0.02}), "not reproduced", 0.02),
        (same_curve, OneCurve(1.0, {"moderate": 0.02}), "reproduced", 0.0),
        (same_curve, OneCurve(1.0, jitter=0.02), "undecided", 0.0),
    ],
)  # fmt: skip
def test_one_curve_for_all(key: str, made: OneCurve, outcome: str, effect: float) -> None:
    finding = decide(key, made)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    # A lam that is off does not tilt the line, which has an offset per lam.
    loose = 0.35 if made.jitter > TIGHT else 0.003 if key == "slope" else 0.001
    assert finding.effect.estimate == pytest.approx(effect, abs=loose)


def test_a_lam_that_also_lowers_the_training_loss_keeps_its_offset() -> None:
    """One slope for all runs would take most of the offset for a slope, as the lam's runs lie to the left of the others."""

    class Left(OneCurve):
        def train(self, key: str) -> float:
            return 2.0 + 0.02 * (number_of(key) % 1000) / 1000 - 0.06 * ("large" in key)

    made = Left(1.0, {"large": 0.02})
    finding = decide(same_curve, made)
    assert finding.outcome == "not reproduced"
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(0.02, abs=0.001)
    keys = [str(arm["key"]) for arm in made.arms if not str(arm["key"]).startswith("gpt-")]
    train_K = np.array([made.train(key) for key in keys])
    val_K = np.array([made.level(key, "val/loss", None) for key in keys])
    residual_K = val_K - np.polyfit(train_K, val_K, 1)[0] * train_K
    parts = [np.mean([r for r, key in zip(residual_K, keys, strict=True) if lam in key]) for lam in ("large", "none")]
    assert parts[0] - parts[1] < 0.01


def test_one_curve_says_nothing_where_decay_changes_nothing() -> None:
    class Idle(OneCurve):
        def train(self, key: str) -> float:
            return super().train(key.replace("large", "none"))

    finding = decide("same-curve-large", Idle(1.0))
    assert finding.outcome == "not tested"
    assert finding.reason.startswith("what is at stake does not hold: validation loss with large decay - without")
    assert decide("same-curve-large", Idle(1.0, {"large": 0.02})).outcome == "not reproduced"


def test_pooling_seeds_without_their_offset_would_be_wrong() -> None:
    """The offsets that `OneCurve` has make the pooled slope far from the true one, which the rule finds."""
    made = OneCurve(1.0)
    keys = [arm["key"] for arm in made.arms if not str(arm["key"]).startswith("gpt-")]
    train_KS = np.array([made.read(str(key), "train/loss", SIZE) for key in keys])
    val_KS = np.array([made.read(str(key), BLOCKS, SIZE).mean(axis=1) for key in keys])
    pooled = np.polyfit(train_KS.ravel(), val_KS.ravel(), 1)[0]
    found = decide("slope", made).effect
    assert found is not None
    assert abs(pooled - 1) > 0.2 > 100 * abs(found.estimate - 1)


def test_training_loss_falls_where_it_does() -> None:
    def outcome(**losses: float) -> str:
        made = MadeUp("lm-generalization", {key.replace("_", "-"): loss for key, loss in losses.items()})
        return decide("training-loss", made).outcome

    assert outcome(decayed_none_x2=1.99, decayed_large_x2=1.98) == "reproduced"
    assert outcome(decayed_none_x2=1.99, decayed_large_x2=1.99) == "not reproduced"
    assert outcome(decayed_none_x4=1.99, decayed_large_x2=1.98) == "not tested"


# ---- replays


class Replayed(MadeUp):
    """Curves of training losses: a replay is off its parent by ``off[match]`` at one step; seeds by 0.02 and more."""

    def __init__(
        self, off: Mapping[str, float], diverged: Mapping[str, int] | None = None, seeds: float = 0.02
    ) -> None:
        super().__init__("lm-effective-lr", {f"{match}-strong": BASE + value for match, value in off.items()})
        self.off, self.diverged, self.seeds_apart = dict(off), dict(diverged or {}), seeds

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[Array, Array]]:
        match = key.removesuffix("-strong")
        at = self.diverged.get(match)
        steps = np.arange(100.0, 2001.0, 100.0)
        if metric == "diverged_at":
            return [(np.array([at or 2000.0]), np.array([at or -1.0])) for _ in range(NUM_SEEDS)]
        curves = []
        for seed in range(NUM_SEEDS):
            wiggle = np.random.default_rng(number_of(f"{match}/{seed}")).uniform(0.9, 1.1)
            losses = 2 + 300 / steps + self.seeds_apart * seed
            # Once, and with the other sign: the largest difference in size is meant. The first tenth does not count.
            losses[steps == 1500] -= self.off.get(match, 0.0) * wiggle
            losses[steps <= 200] += 9 * number_of(match) % 7
            kept = steps < at if at is not None else steps > 0
            curves.append((steps[kept], losses[kept]))
        return curves


follow, closer, end, fails = "follows-global", "closer-per-tensor", "end-global", "squared-fails"
OFF = {"none": 0.02, "global": 0.005, "per-tensor": 0.002, "global-squared": 0.1}
LN96 = float(np.log(96))


@pytest.mark.parametrize(
    ("key", "made", "outcome", "effect"),
    [
        (follow, Replayed(OFF), "reproduced", 0.25),
        (follow, Replayed({**OFF, "global": 0.015}), "not reproduced", 0.75),  # closer than seeds, not than half of none
        (follow, Replayed(OFF, seeds=0.001), "not reproduced", 0.25),  # far closer than none, not closer than seeds
        (follow, Replayed({**OFF, "global": 0.01}), "undecided", 0.5),
        (follow, Replayed(OFF, {"global": 700}), "not reproduced", LN96 / 0.02),
        (closer, Replayed(OFF), "reproduced", 0.4),
        (closer, Replayed({**OFF, "per-tensor": 0.01}), "not reproduced", 2.0),
        (closer, Replayed({**OFF, "per-tensor": 0.005}), "undecided", 1.0),
        (end, Replayed({**OFF, "global": 0.003}), "reproduced", 0.003),
        (end, Replayed({**OFF, "global": 0.011}), "not reproduced", 0.011),
        (end, Replayed({**OFF, "none": 0.003, "global": 0.003}), "not tested", 0.003),  # decay changes nothing anyway
        (end, Replayed(OFF, {"global": 700}), "not reproduced", LN96 - BASE),
        (fails, Replayed(OFF), "reproduced", 5.0),
        (fails, Replayed(OFF, {"global-squared": 300}), "reproduced", LN96 / 0.02),
        (fails, Replayed({**OFF, "global-squared": 1e7}), "reproduced", LN96 / 0.02),  # blown up without a NaN
        (fails, Replayed({**OFF, "global-squared": 0.01}), "not reproduced", 0.5),
    ],
)  # fmt: skip
def test_a_replay_is_as_close_as_it_is(key: str, made: Replayed, outcome: str, effect: float) -> None:
    finding = decide(f"{key}-strong", made)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, rel=0.15)


def test_the_distance_between_seeds_spreads_as_if_each_seed_were_left_out() -> None:
    """Against the jackknife as it is defined, on curves of four seeds that are unequally far apart."""

    class Apart(Replayed):
        levels = np.array([0.0, 0.01, 0.05, 0.2])

        def seeds(self, size: int) -> list[int]:
            return [0, 1, 2, 3]

        def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[Array, Array]]:
            steps = np.arange(100.0, 2001.0, 100.0)
            return [(steps, 2 + 300 / steps + level) for level in self.levels]

    found_S = np.log(BetweenSeeds("strong")(cast("Results", Apart(OFF)), SIZE))

    def mean_over_pairs(levels: Array) -> float:
        return float(np.mean([np.log(abs(a - b)) for a, b in itertools.combinations(levels, 2)]))

    whole = mean_over_pairs(Apart.levels)
    jackknife_S = [4 * whole - 3 * mean_over_pairs(np.delete(Apart.levels, seed)) for seed in range(4)]
    assert found_S == pytest.approx(np.array(jackknife_S), abs=1e-6)
    assert found_S.mean() == pytest.approx(whole, abs=1e-6)


def test_two_seeds_are_too_few_for_their_distance() -> None:
    class Two(Replayed):
        def seeds(self, size: int) -> list[int]:
            return [0, 1]

    with pytest.raises(NotMeasuredError, match="was found with 2 seeds, and its spread needs 3"):
        BetweenSeeds("strong")(cast("Results", Two(OFF)), SIZE)


# ---- presets


def presets(*names: str) -> list[tuple[str, str, Preset]]:
    return [
        (study, name, preset)
        for study in NAMES
        for name, preset in get_study(study).presets.items()
        if not names or name in names
    ]


def runs_of(preset: Preset) -> dict[str, tuple[RunSpec, int]]:
    """By digest every run of a preset's first seed, and how many seeds it has."""
    return {
        spec.digest(): (spec, preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds)
        for arm, spec in ((arm, arm.build(0)) for arm in preset.arms)
    }


@pytest.mark.parametrize(("study", "name", "preset"), presets(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_run_that_another_starts_from_is_an_arm_itself(study: str, name: str, preset: Preset) -> None:
    runs = runs_of(preset)
    for spec, _ in runs.values():
        if isinstance(spec, TextBranch | TextReplay):
            assert spec.of.digest() in runs
        else:
            assert isinstance(spec, TextRun)
            # A grid of rates is worth its time only where the data suffice for one pass.
            targets = spec.batch_size * (1 if spec.model == "mlp" else spec.context)
            if spec.num_train_tokens is not None:
                assert (spec.num_steps + 10) * targets < spec.num_train_tokens
    assert len({(arm.key, arm.size) for arm in preset.arms}) == len(preset.arms)
    assert {arm.size for arm in preset.arms} >= {preset.main_size}


def seconds_of(spec: RunSpec) -> float:
    """Of one core: a step, and the evaluations of a run. As the laptop runs took at width 32, the rest on seed 1000."""
    base = spec.of if isinstance(spec, TextBranch | TextReplay) else cast("TextRun", spec)
    per_step = {("mlp", 16): 0.002, ("mlp", 32): 0.003, ("gpt", 16): 0.005, ("gpt", 32): 0.0066, ("gpt", 64): 0.016}
    one = {"mlp": 0.35, "gpt": 0.6}[base.model] * base.num_eval_tokens / 65_536 * base.width / 32
    evaluations = 1 + (len(base.keep_at) * (1 + len(base.ema) + 1) if isinstance(spec, TextRun) else 0)
    steps = spec.num_steps if isinstance(spec, TextBranch) else base.num_steps
    return (
        0.3
        + steps * per_step[base.model, base.width] * base.batch_size / (1024 if base.model == "mlp" else 64)
        + one * evaluations
    )


@pytest.mark.parametrize(
    ("study", "name", "preset"), presets("smoke", "laptop", "night"), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_preset_keeps_to_its_budget_on_two_cores(study: str, name: str, preset: Preset) -> None:
    seconds = sum(seconds_of(spec) * num for spec, num in runs_of(preset).values()) / 2
    assert seconds <= {"smoke": 60, "laptop": 600, "night": 5400}[name], f"{study} {name}: {seconds:.0f} s"


def test_generalization_and_ablations_ask_for_runs_of_the_schedules() -> None:
    for name in ("laptop", "night", "paper"):
        schedules = set(runs_of(get_study("lm-schedules").presets[name]))
        main = get_study("lm-generalization").presets[name]
        own = {arm.build(0).digest() for arm in main.arms if not arm.key.startswith("gpt-") and arm.size <= 768}
        assert own <= schedules
        ablation = get_study("lm-ablations").presets[name]
        shared = [
            arm for arm in ablation.arms if arm.key.startswith(("adam-none", "adam-dec", "constant-", "tiny-lr-"))
        ]
        assert {arm.build(0).digest() for arm in shared} <= schedules
        assert len(shared) == 9 * len({arm.size for arm in ablation.arms})


def paper_run(study: str, key: str) -> TextRun:
    (arm,) = [arm for arm in get_study(study).presets["paper"].arms if arm.key == key and arm.size == 768]
    return cast("TextRun", arm.build(0))


def test_the_paper_preset_is_the_papers() -> None:
    run = paper_run("lm-schedules", "decayed-moderate-x1")
    assert (run.width, run.depth, run.heads, run.context, run.vocab_size) == (768, 12, 12, 256, 50_304)
    assert (run.batch_size, run.num_steps, run.lr, run.clip, run.beta1, run.beta2) == (
        256,
        50_000,
        6e-4,
        1.0,
        0.9,
        0.95,
    )
    assert (run.tied, run.bias, run.norm, run.norm_gain, run.init, run.init_std) == (
        True,
        False,
        "layernorm",
        True,
        "gpt2",
        0.02,
    )
    assert (run.corpus, run.order, run.precision, run.compile) == ("openwebtext", "random-offsets", "bfloat16", True)
    assert run.dropout == 0
    assert run.decay == "Decoupled(lam=0.1)"
    assert run.decay_on == "nanogpt"
    lr = schedule_from(run.lr_schedule)
    assert [lr(0), lr(200), lr(400)] == [0, 0.5, 1]
    assert lr(50_000) == pytest.approx(0.1)
    assert lr(25_200) == pytest.approx(0.55)
    assert paper_run("lm-schedules", "decayed-large-x1").decay == "Decoupled(lam=0.3)"
    branches = [arm.build(0) for arm in get_study("lm-schedules").presets["paper"].arms if "tiny-lr-decayed" in arm.key]
    tiny = [spec for spec in branches if isinstance(spec, TextBranch)]
    assert {spec.at for spec in tiny} == {10_000, 20_000, 30_000, 40_000, 50_000}
    assert {spec.num_steps for spec in tiny} == {10_000}
    assert [spec.of.lr * spec.lr_factor for spec in tiny] == pytest.approx([1e-5] * 15)
    long = [paper_run("lm-schedules", f"long-decayed-none-x{x}") for x in ("1", "2", "3.33333")]
    assert [spec.lr for spec in long] == pytest.approx([3e-4, 6e-4, 1e-3])
    assert {spec.context for spec in long} == {1024}
    sgd = paper_run("lm-ablations", "sgd-moderate-lr0.3")
    assert (sgd.optimizer, sgd.momentum, sgd.decay) == ("sgd", 0.9, "L2(lam=1e-05)")
    # The published code adds 1e-6 ||w||^2, whose gradient is 2e-6 w.
    assert paper_run("lm-ablations", "l2-inside-small").loss_penalty == 2e-6
    assert paper_run("lm-effective-lr", "parent-strong").precision == "float32"
    large = [arm for arm in get_study("lm-generalization").presets["paper"].arms if arm.size == 1280]
    assert {(spec.depth, spec.heads) for spec in (cast("TextRun", arm.build(0)) for arm in large)} == {(36, 20)}


def test_the_four_are_registered() -> None:
    assert set(NAMES) <= set(STUDIES)


# ---- end to end


@pytest.mark.slow
def test_the_smoke_presets_run_and_report(tmp_path: Path) -> None:
    """All four, trained, decided and drawn; runs that two studies ask for are trained once."""
    store = tmp_path / "store"
    command = [sys.executable, "-W", "error", "-m", "halflife", "study"]
    done = subprocess.run(
        [*command, "run", *NAMES, "--preset", "smoke", "--store", str(store), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    asked = {
        (digest, seed)
        for name in NAMES
        for digest in runs_of(get_study(name).presets["smoke"])
        for seed in range(get_study(name).presets["smoke"].num_seeds)
    }
    assert len(list(store.glob("runs/*/run.json"))) == len(asked)
    told = subprocess.run(
        [*command, "verdicts", *NAMES, "--store", str(store), "--json"], capture_output=True, text=True, check=True
    )
    assert told.stdout.count('"not tested"') >= sum(len(get_study(name).claims) for name in NAMES)
    page = (store / "report.html").read_text(encoding="utf-8")
    assert all(get_study(name).title in page for name in NAMES)
