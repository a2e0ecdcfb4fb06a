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

from halflife.studies.catalog.images import no_normalization
from halflife.studies.catalog.images.no_normalization import (
    NO_NORMALIZATION,
    PLAIN,
    RATES,
    SAME_LAM,
    TWIN,
    key_of,
    prediction_errors,
    same_product,
)
from halflife.studies.evidence.claims import Finding, Panel, PointsPanel
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
        steps_per_epoch: 40 is that of the preset.
    """

    error: Law = lambda spec: 20.0 if spec.lam == 0 else 17 + 4 * np.log10(spec.lr * spec.lam / 1e-3) ** 2
    twin: float = -1.0
    effective: Law = lambda spec: spec.lr / 100
    hessian: Law = lambda spec: 1.0 / (spec.lr * max(spec.lam, 1e-4))
    jacobian: Law = lambda spec: 1.0 / (spec.lr * max(spec.lam, 1e-4)) ** 0.5
    plateau: tuple[float, float, float, float] = (0.2, 2.0, 0.3, 0.03)
    jitter: float = 0.01
    steps_per_epoch: int = 40


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

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: int | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        spec = self.built[key]
        assert step is None
        averaged = name.startswith("ema-0.99/")
        at_drop = averaged or name in {"effective_lr", "train/loss"}
        assert epoch == spec.drop_epoch if at_drop else epoch in {None, spec.num_epochs}
        name = name.removeprefix("ema-0.99/")
        if name == "test/wrong":
            ranks_N = np.random.default_rng(7).permutation(NUM_TEST) / NUM_TEST  # either half has hard ones
            return np.array([ranks_N < rate for rate in self._error(key)], dtype=np.float64)
        if name == "train/loss":
            return self.world.plateau[2 if spec.lam else 3] * np.exp(self._noise(key, name))
        return self._value(key, name)

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

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return [
            (self.world.steps_per_epoch * epochs_E, found_E) for epochs_E, found_E in self.series(key, metric, size)
        ]


def made_up(world: World) -> StudyResults:
    return cast("StudyResults", MadeUp(world))


def of_product(*, rate_adds: float = 0.0) -> Law:
    """An error that depends on lr lam, and on the rate as well if something is added at the large one."""
    return lambda spec: 17 + 4 * np.log10(spec.lr * spec.lam / 1e-3 + 1e-9) ** 2 + rate_adds * (spec.lr > 0.05)


def small_rate(change: float) -> Law:
    """The change by decay at the small rate; at the large one it gains 2 points."""
    return lambda spec: 20 + ((change if spec.lr < 0.05 else -2.0) if spec.lam else 0)


def cancelling(spec: ImageRun) -> float:
    """At the large rate 3 points more at the largest product, and 3 less at the one before it."""
    return 20 + (3 if spec.lam * spec.lr > 1.5e-3 else -3) * (spec.lr > 0.05)


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
    ("plateau", World(plateau=(0.2, 2.0, 0.06, 0.03), jitter=0.1), "undecided", 2.0),
    ("small-rate", World(error=small_rate(2.0)), "reproduced", 3.0),
    ("small-rate", World(error=small_rate(-3.0)), "not reproduced", -2.0),
    ("small-rate", World(error=small_rate(-1.0), jitter=0.15), "undecided", 0.0),
    ("small-rate", World(error=lambda spec: 20 + spec.lam), "not tested", 1.0),  # no gain at the large rate
    ("product", World(error=of_product()), "reproduced", 0.0),
    ("product", World(error=of_product(rate_adds=3.0)), "not reproduced", 3.0),
    ("product", World(error=of_product(rate_adds=1.0), jitter=0.3), "undecided", 1.0),
    ("product", World(error=_constant(20.0)), "not tested", 0.0),  # nothing at stake
    ("product", World(error=cancelling), "not reproduced", 3.0),  # though the mean over products is 0
    ("effective-rate", World(), "reproduced", 0.54),
    ("effective-rate", World(error=of_effective, effective=shrunk), "not reproduced", -1.2),
    ("effective-rate", World(effective=lambda spec: spec.lr * spec.lam, jitter=0.3), "undecided", 0.0),
    ("hessian-falls", World(), "reproduced", -1.0),
    ("hessian-falls", World(hessian=lambda spec: spec.lr / max(spec.lam, 1e-4)), "not reproduced", -1.0),
    ("hessian-falls", World(hessian=FLAT, jitter=0.3), "undecided", 0.0),
    ("jacobian-falls", World(), "reproduced", -0.5),
    ("jacobian-falls", World(jacobian=lambda spec: max(spec.lam, 1e-4) / spec.lr), "not reproduced", 1.0),
    ("jacobian-falls", World(jacobian=FLAT, jitter=0.3), "undecided", 0.0),
    ("hessian-average", World(hessian=up, jitter=1e-3), "reproduced", 1.0),
    ("hessian-average", World(hessian=down, jitter=1e-3), "not reproduced", -1.0),
    ("hessian-average", World(hessian=FLAT), "not reproduced", -0.12),  # by chance, and never above 0.5
    ("hessian-average", World(hessian=up, jitter=1.5), "undecided", 0.13),
    ("hessian-end", World(hessian=up, jitter=1e-3), "reproduced", 1.0),
    ("hessian-end", World(hessian=down, jitter=1e-3), "not reproduced", -1.0),
    ("jacobian-average", World(jacobian=up, jitter=1e-3), "reproduced", 1.0),
    ("jacobian-average", World(jacobian=up, jitter=1.5), "undecided", 0.12),
    ("jacobian-end", World(jacobian=down, jitter=1e-3), "not reproduced", -1.0),
    ("jacobian-end", World(jacobian=FLAT), "not reproduced", -0.08),
]  # fmt: skip


def decide(key: str, world: World) -> Finding:
    (claim,) = (claim for claim in NO_NORMALIZATION.claims if claim.key == key)
    return claim.decide(made_up(world), 8)


@pytest.mark.parametrize(("key", "world", "outcome", "effect"), CASES)
def test_a_claim_is_decided_as_its_rule_says(key: str, world: World, outcome: str, effect: float) -> None:
    finding = decide(key, world)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=max(0.25, 3 * world.jitter))
    assert finding.effect.num_seeds == NUM_SEEDS


@pytest.mark.parametrize(
    ("world", "outcome", "with_more_rates", "effect"),
    [
        (World(), "holds", "reproduced", -3.0),
        (World(error=lambda spec: 20.0 + (spec.lam > 0)), "fails", "not reproduced", 1.0),
        (World(error=lambda spec: 20.0 + 1.5 * (spec.lam > 0), jitter=1.5), "open", "undecided", 1.5),
    ],
)
def test_a_best_rate_needs_three(
    world: World, outcome: str, with_more_rates: str, effect: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = decide("tuned", world)
    assert (finding.outcome, finding.rows[0].outcome) == ("not tested", outcome)
    assert finding.reason == "the learning rates without decay are 0.025, 0.1, and a best one needs 3"
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=max(0.25, 3 * world.jitter))
    monkeypatch.setattr(no_normalization, "MIN_RATES", 2)
    assert decide("tuned", world).outcome == with_more_rates


def test_every_claim_has_cases() -> None:
    assert {case[0] for case in CASES} | {"tuned"} == {claim.key for claim in NO_NORMALIZATION.claims}


def test_what_has_no_logarithm_has_no_exponents() -> None:
    finding = decide("hessian-falls", World(hessian=_constant(-1.0)))
    assert (finding.outcome, finding.effect) == ("not tested", None)
    assert finding.reason == "the Hessian trace is not above 0 everywhere, so that it has no exponents"


def test_exponents_are_those_of_the_law() -> None:
    finding = decide("hessian-falls", World(hessian=lambda spec: spec.lr**-0.3 * max(spec.lam, 1e-4) ** -0.8))
    found = [row.interval.estimate for row in finding.rows if row.interval is not None]
    assert found == pytest.approx([-0.8, -0.3], abs=0.02)


def test_products_are_compared_where_their_time_scale_fits_twice_before_the_drop() -> None:
    for steps_per_epoch, expected in (
        (40, ["0.001", "0.002"]),
        (160, ["0.00025", "0.0005", "0.001", "0.002"]),
        (10, []),
    ):
        found = same_product(made_up(World(steps_per_epoch=steps_per_epoch)), 8)
        assert [one.name.rpartition(" = ")[2] for one in found] == expected
    assert decide("product", World(steps_per_epoch=10)).outcome == "not tested"


def test_predictions_are_of_seeds_that_were_not_fitted() -> None:
    """Eight points of pure noise: a parabola fitted to them would look better than their spread, one of others worse."""
    rng = np.random.default_rng(1)
    spread, errors = [], []
    for _ in range(50):
        x_AS, y_AS = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
        errors.append(prediction_errors(x_AS, y_AS).mean())
        spread.append(y_AS.std())
    assert np.mean(errors) > 1.03 * np.mean(spread)


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
        assert [specs[key_of(PLAIN, rate, 0)].lam for rate in RATES] == [0, 0]


def test_figures_and_published_rows_show_every_setting() -> None:
    results = made_up(World())
    rows = {p.slug: p.rows(results) for p in NO_NORMALIZATION.panels if isinstance(p, PointsPanel)}
    points = [row for row in rows["error-product"] if row.style == "point"]
    assert [row.x for row in points] == [2.5e-4, 5e-4, 1e-3, 2e-3] * 2
    assert points[2].y == pytest.approx(17.0, abs=0.1)
    assert len(rows["error-hessian"]) == 10
    ours = [row.ours(results) for row in NO_NORMALIZATION.published]
    assert ours[0].startswith("17.0 [")
    assert ours[0].split(" / ")[1].startswith("20.0 [")


@pytest.mark.slow
def test_the_smoke_preset_runs_decides_and_draws(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, NO_NORMALIZATION)
    assert results.num_finished == results.num_planned == 28
    verdicts = results.verdicts()
    assert {v.finding.reason for v in verdicts} == {"the preset is too small to decide, it is made for tests"}
    for panel in NO_NORMALIZATION.panels:
        if isinstance(panel, PointsPanel):
            assert len(panel.rows(results)) in {10, 16}
        else:
            assert isinstance(panel, Panel)
            assert panel.metric in results.frame.columns
    assert all("[" in row.ours(results) for row in NO_NORMALIZATION.published)
