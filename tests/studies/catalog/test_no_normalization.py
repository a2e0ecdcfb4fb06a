"""The study of nets without normalization: each rule on made-up runs whose answer is known, presets, figures."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.images.no_normalization import quantities as rules
from halflife.studies.catalog.images.no_normalization.quantities import (
    MIXED,
    PLAIN,
    RATES,
    SAME_LAM,
    TWIN,
    key_of,
    prediction_errors,
)
from halflife.studies.catalog.images.no_normalization.study import NO_NORMALIZATION
from halflife.studies.evidence.claims import Panel, PointsPanel
from halflife.studies.evidence.decisions import Finding
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.images import ImageRun
from tests.studies.smoke_in_process import smoke_results

NUM_SEEDS, NUM_TEST = 3, 8_000
LAPTOP = NO_NORMALIZATION.presets["laptop"]
Law = Callable[[ImageRun], float]


def _constant(value: float) -> Law:
    return lambda spec: value


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """How decay acts in a made-up world.

    Args:
        error: Test error of the average before the drop and at the end, in points.
        twin: The change of that error by decay in the net with BatchNorm, which is 20 without.
        effective: lr / ||w||^2.
        hessian: The Hessian trace.
        jacobian: The Jacobian norm.
        plateau: Loss ~ epochs^-p with decay and without, and the losses before the drop.
        jitter: Standard deviation over seeds, in points or relative.
    """

    error: Law = lambda spec: 20.0 if spec.lam == 0 else 17 + 4 * np.log10(spec.lr * spec.lam / 1e-3) ** 2
    twin: float = -1.0
    effective: Law = lambda spec: spec.lr / 100
    hessian: Law = lambda spec: 1.0 / (spec.lr * max(spec.lam, 1e-4))
    jacobian: Law = lambda spec: 1.0 / (spec.lr * max(spec.lam, 1e-4)) ** 0.5
    plateau: tuple[float, float, float, float] = (0.2, 2.0, 0.3, 0.03)
    jitter: float = 0.01


class MadeUp:
    """What the rules and figures ask of `halflife.studies.evidence.results.Results`, without a store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.built = {arm.key: cast("ImageRun", arm.build(0)) for arm in LAPTOP.arms}
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in LAPTOP.arms]
        self.main_size = LAPTOP.main_size

    def _noise(self, *name: object) -> NDArray[np.float64]:
        return np.random.default_rng(zlib.crc32(repr(name).encode())).normal(0, self.world.jitter, NUM_SEEDS)

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key]

    def _error(self, key: str) -> NDArray[np.float64]:
        spec = self.built[key]
        level = self.world.error(spec) if spec.model == "resnet-plain" else 20 + self.world.twin * (spec.lam > 0)
        return (level + self._noise(key, "error")) / 100

    def _wrong(self, key: str) -> NDArray[np.float64]:
        # The first examples are the hard ones, so that two rates differ in the examples between them, and in no other.
        return np.array([np.arange(NUM_TEST) / NUM_TEST < rate for rate in self._error(key)], dtype=np.float64)

    def last_array(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        assert name == "test/wrong"
        return self._wrong(key)

    def per_example(self, key: str, name: str, epoch: int, size: int) -> NDArray[np.float64]:
        assert (name, epoch) == ("ema-0.99/test/wrong", self.built[key].drop_epoch)
        return self._wrong(key)

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        return self._value(key, metric)

    def per_seed(self, key: str, metric: str, epoch: int, size: int) -> NDArray[np.float64]:
        assert epoch == self.built[key].drop_epoch
        if metric == "train/loss":
            return self.world.plateau[2 if self.built[key].lam else 3] * np.exp(self._noise(key, metric))
        assert metric.startswith("ema-0.99/") or metric == "effective_lr"
        return self._value(key, metric.removeprefix("ema-0.99/"))

    def _value(self, key: str, metric: str) -> NDArray[np.float64]:
        if metric == "test/error":
            return self._error(key)
        laws: Mapping[str, Law] = {
            "effective_lr": self.world.effective,
            "hessian_trace": self.world.hessian,
            "jacobian_norm": self.world.jacobian,
        }
        return laws[metric](self.built[key]) * np.exp(self._noise(key, metric))

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        assert metric == "train/running_loss"
        epochs_E = np.arange(1.0, self.built[key].num_epochs + 1)
        power = self.world.plateau[0 if self.built[key].lam else 1]
        return [(epochs_E, epochs_E**-power * np.exp(noise * epochs_E**0)) for noise in self._noise(key, metric)]


def made_up(world: World) -> StudyResults:
    return cast("StudyResults", MadeUp(world))


def of_product(*, rate_adds: float = 0.0) -> Law:
    """An error that depends on lr lam, and on the rate as well if something is added at the large one."""
    return lambda spec: 17 + 4 * np.log10(spec.lr * spec.lam / 1e-3 + 1e-9) ** 2 + rate_adds * (spec.lr > 0.05)


def small_rate(change: float) -> Law:
    return lambda spec: 20 + (change if spec.lam and spec.lr < 0.05 else 0)


def of_effective(spec: ImageRun) -> float:
    return float(17 + 4 * np.log10(shrunk(spec) / 1e-3) ** 2)


def shrunk(spec: ImageRun) -> float:
    return float(spec.lr**0.3 * max(spec.lam, 1e-4) ** 1.2)


def up(spec: ImageRun) -> float:
    return World().error(spec)


def down(spec: ImageRun) -> float:
    return 100 - World().error(spec)


# Neither as the errors nor against them: over the seeds' noise both signs occur.
FLAT = _constant(10.0)
CASES: list[tuple[str, World, str, float]] = [
    ("plateau", World(), "reproduced", 10.0),
    ("plateau", World(plateau=(1.5, 2.0, 0.3, 0.03)), "not reproduced", 10.0),
    ("plateau", World(plateau=(0.2, 2.0, 0.04, 0.03)), "not reproduced", 4 / 3),
    ("plateau", World(plateau=(0.2, 2.0, 0.06, 0.03), jitter=0.1), "inconclusive", 2.0),
    ("tuned", World(), "reproduced", -3.0),
    ("tuned", World(error=lambda spec: 20.0 + (spec.lam > 0)), "not reproduced", 1.0),
    ("tuned", World(error=lambda spec: 20.0 + 1.5 * (spec.lam > 0), jitter=1.5), "inconclusive", 1.5),
    ("small-rate", World(error=small_rate(2.0)), "reproduced", 3.0),
    ("small-rate", World(error=small_rate(-3.0)), "not reproduced", -2.0),
    ("small-rate", World(error=small_rate(0.0), jitter=1.5), "inconclusive", 1.0),
    ("product", World(error=of_product()), "reproduced", 0.0),
    ("product", World(error=of_product(rate_adds=3.0)), "not reproduced", 3.0),
    ("product", World(error=of_product(rate_adds=1.0), jitter=0.3), "inconclusive", 1.0),
    ("product", World(error=_constant(20.0)), "inconclusive", 0.0),  # nothing at stake
    ("effective-rate", World(), "reproduced", 0.54),
    ("effective-rate", World(error=of_effective, effective=shrunk), "not reproduced", -1.2),
    ("effective-rate", World(effective=lambda spec: spec.lr * spec.lam, jitter=0.3), "inconclusive", 0.0),
    ("hessian-falls", World(), "reproduced", -1.0),
    ("hessian-falls", World(hessian=lambda spec: spec.lr / max(spec.lam, 1e-4)), "not reproduced", -1.0),
    ("hessian-falls", World(hessian=FLAT, jitter=0.3), "inconclusive", 0.0),
    ("jacobian-falls", World(), "reproduced", -0.5),
    ("jacobian-falls", World(jacobian=lambda spec: max(spec.lam, 1e-4) / spec.lr), "not reproduced", 1.0),
    ("jacobian-falls", World(jacobian=FLAT, jitter=0.3), "inconclusive", 0.0),
    ("hessian-average", World(hessian=up, jitter=1e-3), "reproduced", 1.0),
    ("hessian-average", World(hessian=down, jitter=1e-3), "not reproduced", -1.0),
    ("hessian-average", World(hessian=FLAT), "not reproduced", -0.12),  # by chance, and never above 0.5
    ("hessian-average", World(hessian=up, jitter=1.5), "inconclusive", 0.13),
    ("hessian-end", World(hessian=up, jitter=1e-3), "reproduced", 1.0),
    ("hessian-end", World(hessian=down, jitter=1e-3), "not reproduced", -1.0),
    ("jacobian-average", World(jacobian=up, jitter=1e-3), "reproduced", 1.0),
    ("jacobian-average", World(jacobian=up, jitter=1.5), "inconclusive", 0.12),
    ("jacobian-end", World(jacobian=down, jitter=1e-3), "not reproduced", -1.0),
    ("jacobian-end", World(jacobian=FLAT), "not reproduced", -0.08),
]  # fmt: skip


def measure(key: str) -> Callable[[StudyResults, int], Finding]:
    return next(claim.measure for claim in NO_NORMALIZATION.claims if claim.key == key)


@pytest.mark.parametrize(("key", "world", "outcome", "effect"), CASES)
def test_a_claim_is_decided_as_its_rule_says(key: str, world: World, outcome: str, effect: float) -> None:
    finding = measure(key)(made_up(world), 8)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=max(0.25, 3 * world.jitter))
    assert finding.effect.num_seeds == NUM_SEEDS


def test_every_claim_has_cases() -> None:
    assert {case[0] for case in CASES} == {claim.key for claim in NO_NORMALIZATION.claims}


def test_what_has_no_logarithm_has_no_exponents() -> None:
    finding = measure("hessian-falls")(made_up(World(hessian=_constant(-1.0))), 8)
    assert (finding.outcome, finding.effect) == ("inconclusive", None)
    # As a predictor it is only one among others.
    assert measure("effective-rate")(made_up(World(hessian=_constant(-1.0))), 8).outcome == "reproduced"


def test_exponents_are_those_of_the_law() -> None:
    world = World(hessian=lambda spec: spec.lr**-0.3 * max(spec.lam, 1e-4) ** -0.8)
    reason = measure("hessian-falls")(made_up(world), 8).reason
    assert "a = -0.3" in reason
    assert "b = -0.8" in reason
    assert "100 % of the variance" in reason


def test_predictions_are_of_seeds_that_were_not_fitted() -> None:
    """Eight points of pure noise: a parabola fitted to them would look better than their spread, one of others worse."""
    rng = np.random.default_rng(1)
    spread, errors = [], []
    for _ in range(50):
        x_AS, y_AS = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
        errors.append(prediction_errors(x_AS, y_AS).mean())
        spread.append(y_AS.std())
    assert np.mean(errors) > 1.03 * np.mean(spread)


def test_rules_in_words_hold_the_bounds() -> None:
    texts = {claim.key: claim.words for claim in NO_NORMALIZATION.claims}
    assert f"improvement of {rules.SMALLEST_EFFECT} points" in texts["tuned"]
    assert f"within {rules.EQUAL_MARGIN:g} point of 0" in texts["product"]
    assert "p < 0.5 with decay, p > 1 without" in texts["plateau"]


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_arms_of_the_same_lam_and_of_the_same_product_are_so(name: str) -> None:
    preset = NO_NORMALIZATION.presets[name]
    for size in {arm.size for arm in preset.arms}:
        specs = {arm.key: cast("ImageRun", arm.build(1)) for arm in preset.arms if arm.size == size}
        same = [specs[key_of(net, rate, SAME_LAM[rate])] for net in (PLAIN, TWIN) for rate in RATES]
        assert len({spec.lam for spec in same}) == 1
        assert {spec.model for spec in same} == {"resnet-plain", "resnet"}
        for index in range(1, 5):
            products = [spec.lr * spec.lam for spec in (specs[key_of(PLAIN, rate, index)] for rate in RATES)]
            assert products[0] == pytest.approx(products[1], rel=0.02)
        if preset.decides and name != "paper":
            for index in MIXED:
                spec = specs[key_of(PLAIN, "large", index)]
                assert spec.num_train is not None
                phase = spec.drop_epoch * (spec.num_train // spec.batch_size)
                assert 1 / (spec.lr * spec.lam) <= phase / 2
        assert [specs[key_of(PLAIN, rate, 0)].lam for rate in RATES] == [0, 0]


def test_figures_and_published_rows_show_every_setting() -> None:
    results = made_up(World())
    rows = {p.slug: p.rows(results) for p in NO_NORMALIZATION.panels if isinstance(p, PointsPanel)}
    points = [row for row in rows["error-product"] if row.style == "point"]
    assert [row.x for row in points] == [2.5e-4, 5e-4, 1e-3, 2e-3] * 2
    assert points[2].y == pytest.approx(17.0, abs=0.1)
    assert len(rows["error-hessian"]) == 10
    ours = [row.ours(results) for row in NO_NORMALIZATION.published]
    assert ours[0].startswith("17.0 ± ")
    assert ours[0].split(" / ")[1].startswith("20.0 ± ")


@pytest.mark.slow
def test_the_smoke_preset_runs_decides_and_draws(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, NO_NORMALIZATION)
    assert results.num_finished == results.num_planned == 28
    verdicts = results.verdicts()
    assert all(v.finding.reason.startswith("too small to decide, only a test; ") for v in verdicts)
    for panel in NO_NORMALIZATION.panels:
        if isinstance(panel, PointsPanel):
            assert len(panel.rows(results)) in {10, 16}
        else:
            assert isinstance(panel, Panel)
            assert panel.metric in results.frame.columns
    assert all("±" in row.ours(results) for row in NO_NORMALIZATION.published)
