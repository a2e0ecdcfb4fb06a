"""Decay beside dropout and smoothing: each rule on made-up losses whose answer is known, and the presets."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.language.dropout import (
    DROPOUTS,
    FRESH,
    LAMS,
    LM_DROPOUT,
    NUM_LAMS,
    REPEATED,
    key_of,
    keys_of,
)
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.optimum import lam_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.text import TextRun
from tests.studies.catalog.made_up_losses import NUM_SEEDS, MadeUpLosses

LAPTOP = LM_DROPOUT.presets["laptop"]


@dataclasses.dataclass(frozen=True)
class World:
    """How decay and dropout act in a made-up world. Losses without either are 2.5 on repeated text and 2 on fresh.

    Args:
        gain: Of the best lam on repeated text, without dropout and smoothing.
        beside: The same with dropout.
        smoothed: The same with label smoothing.
        best: The best lam without dropout, and with the high one.
        dropout: What the low dropout gains on repeated text without decay.
        high: How much less the high one gains.
        fresh_cost: Of the low dropout on fresh text, for each lam.
        fresh_gain: Of the best lam on fresh text without dropout, and with the high one.
    """

    gain: float = 0.1
    beside: float = 0.04
    smoothed: float = 0.09
    best: tuple[float, float] = (1.2, 0.6)
    dropout: float = 0.04
    high: float = 0.06
    fresh_cost: tuple[float, ...] = (0.03, 0.03, 0.03, 0.03)
    fresh_gain: tuple[float, float] = (0.05, 0.05)

    def loss(self, key: str, spec: RunSpec) -> float:
        assert isinstance(spec, TextRun)
        lam, index = lam_of(spec), int(key[-1])
        if spec.order == "one-pass":
            gain = self.fresh_gain[spec.dropout > 0.15] if lam else 0.0
            cost = self.fresh_cost[index] * (2 if spec.dropout > 0.15 else 1) if spec.dropout else 0.0
            return 2 + cost - gain * self._part(lam, 0.25)
        gain = self.smoothed if spec.label_smoothing else self.beside if spec.dropout else self.gain
        best = self.best[1] if spec.dropout else self.best[0]
        by_dropout = self.dropout - (self.high if spec.dropout > 0.15 else 0.0) if spec.dropout else 0.0
        return 2.5 - by_dropout - gain * self._part(lam, best)

    @staticmethod
    def _part(lam: float, best: float) -> float:
        """1 at the best lam, less around it."""
        return 0.0 if lam == 0 else 1 - 0.05 * float(np.log(lam / best)) ** 2


def made_up(world: World, jitter: float = 1e-4) -> Results:
    return cast("Results", MadeUpLosses(LAPTOP.arms, world.loss, jitter))


def decide(key: str, results: Results) -> Finding:
    return next(claim for claim in LM_DROPOUT.claims if claim.key == key).decide(results, 32)


CASES: list[tuple[str, World, float, str, float]] = [
    ("decay", World(), 1e-4, "reproduced", -0.06),
    ("decay", World(gain=0.0, beside=-0.05), 1e-4, "not reproduced", 0.04),
    ("decay", World(gain=0.0, beside=0.005), 1e-4, "reproduced", -0.005),
    ("decay", World(gain=0.0, beside=0.005), 0.02, "undecided", -0.005),
    ("decay", World(high=-0.02), 1e-4, "not tested", -0.04),  # a still higher dropout might do what decay does
    ("dropout", World(gain=0.0, beside=0.0), 1e-4, "reproduced", -0.04),
    ("dropout", World(gain=0.1, beside=0.0), 1e-4, "not reproduced", 0.06),
    ("dropout", World(gain=0.1, beside=0.059), 0.02, "undecided", 0.0),
    ("overlap", World(), 1e-4, "reproduced", 0.06),
    ("overlap", World(gain=0.02), 1e-4, "not reproduced", -0.02),
    ("overlap", World(gain=0.04), 0.01, "undecided", 0.0),
    ("overlap", World(gain=-0.02, beside=-0.06), 1e-4, "not tested", 0.031),
    ("smaller-lam", World(), 1e-4, "reproduced", 2.0),
    ("smaller-lam", World(best=(0.6, 1.2)), 1e-4, "not reproduced", 0.5),
    ("smaller-lam", World(best=(0.8, 0.8)), 7e-4, "undecided", 1.0),
    ("smoothing", World(), 1e-4, "reproduced", 0.04),
    ("smoothing", World(smoothed=0.02), 1e-4, "not reproduced", -0.03),
    ("smoothing", World(smoothed=0.055), 1e-2, "undecided", 0.0),
    ("smoothing", World(gain=-0.1), 1e-4, "not tested", 0.13),
    ("one-pass-dropout", World(), 1e-4, "reproduced", 0.03),
    ("one-pass-dropout", World(fresh_cost=(0.03, 0.03, 0.03, -0.02)), 1e-4, "not reproduced", -0.02),
    ("one-pass-dropout", World(fresh_cost=(0.03, 0.03, 0.03, 0.0)), 1e-2, "undecided", 0.0),
    ("one-pass-gain", World(), 1e-4, "reproduced", 0.0),
    ("one-pass-gain", World(fresh_gain=(0.05, 0.02)), 1e-4, "not reproduced", 0.03),
    ("one-pass-gain", World(fresh_gain=(0.05, 0.04)), 5e-3, "undecided", 0.01),
    ("one-pass-gain", World(fresh_gain=(-0.05, -0.05)), 1e-4, "not tested", 0.0),
    ("one-pass-gain", World(fresh_gain=(0.008, 0.008)), 1e-4, "not tested", 0.0),  # less than the margin
    ("one-pass-gain", World(fresh_gain=(0.008, 0.03)), 1e-4, "not reproduced", -0.022),
]  # fmt: skip


@pytest.mark.parametrize(("key", "world", "jitter", "outcome", "effect"), CASES)
def test_a_claim_is_decided_as_its_rule_says(
    key: str, world: World, jitter: float, outcome: str, effect: float
) -> None:
    finding = decide(key, made_up(world, jitter))
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    # No arm has the best lam itself, so that a gain falls short by a few per cent.
    assert finding.effect.estimate == pytest.approx(effect, abs=0.004 + 2 * jitter, rel=0.05)
    assert finding.effect.num_seeds == NUM_SEEDS
    assert finding.effect.example_name == "blocks"


def test_a_best_lam_at_an_edge_is_left_open() -> None:
    finding = decide("smaller-lam", made_up(World(best=(20.0, 0.6))))
    assert (finding.outcome, finding.effect) == ("not tested", None)
    assert finding.reason == "the lowest loss of dropout 0 is at lam 5, an edge of its grid"


def test_best_against_best_has_no_bias_from_the_number_of_arms() -> None:
    """Nothing acts and every arm has noise: a choice on the same seeds would favour the side with more arms."""
    world = World(gain=0.0, beside=0.0, smoothed=0.0, dropout=0.0)
    finding = decide("decay", made_up(world, 0.02))
    assert finding.effect is not None
    assert finding.effect.low < 0 < finding.effect.high
    sides: list[NDArray[Any]] = []
    results = made_up(world, 0.02)
    for decay in (True, False):
        keys = keys_of(REPEATED, DROPOUTS, decay=decay)
        sides.append(np.min([results.read(key, "val/loss", 32) for key in keys], axis=0))
    assert float((sides[0] - sides[1]).mean()) < -0.01  # the naive choice of 12 arms against 3


# ---- figures


def test_figures_draw_each_sweep_and_a_point_without_decay() -> None:
    for panel, runs, level in zip(LM_DROPOUT.panels[:2], (4, 3), (2.5, 2.0), strict=True):
        assert isinstance(panel, PointsPanel)
        drawn = panel.rows(made_up(World()))
        assert len({row.series for row in drawn}) == runs
        plain = [row for row in drawn if row.series == "dropout 0" and row.style == "point"]
        assert plain[0].y == pytest.approx(level, abs=0.2)
        assert plain[0].y - min(row.y for row in plain) == pytest.approx(0.1 if runs == 4 else 0.05, abs=0.002)


# ---- presets


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_arms_differ_in_what_their_keys_say(name: str) -> None:
    preset = LM_DROPOUT.presets[name]
    always = {"decay", "dropout", "label_smoothing", "order", "num_train_tokens"}
    for size in {arm.size for arm in preset.arms}:
        specs = {arm.key: cast("TextRun", arm.build(0)) for arm in preset.arms if arm.size == size}
        assert len(specs) == 5 * 3 + 5 + 4 * 3
        first = specs[key_of(REPEATED, "none", 0)]
        for key, spec in specs.items():
            differing = {f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(first, f.name)}
            assert differing <= always
            assert (spec.order == "epochs") == key.startswith(REPEATED)
            assert (spec.label_smoothing == 0.1) == ("smoothed" in key)
            assert (lam_of(spec) == 0) == key.endswith("-0")
            if spec.order == "epochs":
                targets = spec.context if spec.model == "gpt" else 1
                assert (spec.num_train_tokens or 0) * 8 == spec.num_steps * spec.batch_size * targets
        for dropout, value in zip(DROPOUTS, (0.0, 0.1, 0.2), strict=True):
            assert specs[key_of(FRESH, dropout, 1)].dropout == value
    assert [lam > 0 for lam in LAMS[FRESH]] == [False, True, True, True]
    assert len(LAMS[REPEATED]) == NUM_LAMS[REPEATED]


def test_presets_keep_to_their_budgets() -> None:
    """The model of the time of the time-scale study."""

    def seconds(name: str) -> float:
        preset, total = LM_DROPOUT.presets[name], 0.0
        for arm in preset.arms:
            spec = cast("TextRun", arm.build(0))
            parameters = 96 * 8 + 48 * spec.width + 8 * spec.width**2 + spec.width + 96 * spec.width
            flop = 6 * parameters * spec.num_steps * spec.batch_size
            seeds = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
            total += seeds * (spec.num_steps * 1.05e-3 + flop / 3.3e10 + 0.2 * 5)
        return total

    assert seconds("laptop") / 2 < 600
    assert seconds("night") / 2 < 5_400
    assert len({arm.size for arm in LM_DROPOUT.presets["night"].arms}) == 3
    for preset in LM_DROPOUT.presets.values():
        specs = [arm.build(seed) for arm in preset.arms for seed in range(2)]
        assert len({spec.digest() for spec in specs}) == len(specs)
    assert LAPTOP.num_seeds >= 5
