"""The averaging study: its rules on made-up numbers whose answer is known, its presets, and a real smoke run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from halflife.studies.catalog import get_study
from halflife.studies.catalog.curvature.averaging import quantities as rules
from halflife.studies.catalog.curvature.averaging.quantities import AVERAGE as WHOSE_AVERAGE
from halflife.studies.catalog.curvature.averaging.quantities import FINE_TUNED as WHOSE_TUNED
from halflife.studies.catalog.curvature.averaging.quantities import SLOW, late_values, rate_keys
from halflife.studies.catalog.curvature.averaging.study import AVERAGING
from halflife.studies.evidence.results import Results
from halflife.studies.report import build_report
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.images import ImageBranch, ImageRun
from halflife.studies.store.store import Store
from tests.studies.smoke_in_process import smoke_results

NUM_SEEDS, NUM_TEST, SIZE = 4, 2_000, 8
CLAIMS = {claim.key: claim for claim in AVERAGING.claims}
Value = Callable[[float, float], float]
"""A number from the learning rate and the epoch of the noisy run."""

# What is true where every claim holds: (whose, reading) to a number.
TRUE: dict[tuple[str, str], Value] = {
    ("raw", "test/error"): lambda lr, _: 0.30,
    ("average", "test/error"): lambda lr, _: 0.150,
    ("fine-tuned", "test/error"): lambda lr, epoch: 0.157 + 0.02 * lr - 0.0002 * epoch,
    ("ensemble", "test/error"): lambda lr, _: 0.150,
    ("slow average", "test/error"): lambda lr, _: 0.19,
    ("slow ensemble", "test/error"): lambda lr, _: 0.15,
    ("raw", "train/running_loss"): lambda lr, epoch: lr**0.5 * (0.8 + epoch**-1.5),
    ("average", "jacobian_norm"): lambda lr, _: 90 * lr**-0.3,
    ("fine-tuned", "jacobian_norm"): lambda lr, _: 120 * lr**0.5,
    ("fine-tuned", "hessian_trace"): lambda lr, epoch: 400 * lr**0.8 * np.exp(-epoch / 100),
    ("average", "hessian_trace"): lambda lr, _: 250,
    ("average", "weight_norm"): lambda lr, _: 9.0,
    ("raw", "weight_norm"): lambda lr, _: 9.5,
    ("fine-tuned", "weight_norm"): lambda lr, _: 10.0,
    ("ensemble", "total_variation"): lambda lr, _: 0.08,
}


class MadeUp:
    """Results of the laptop preset with given numbers; seeds vary a little, by themselves in every arm and reading."""

    def __init__(self, given: Mapping[tuple[str, str], Value] | None = None, jitter: float = 0.002) -> None:
        self.values, self.jitter = TRUE | dict(given or {}), jitter
        preset = AVERAGING.presets["laptop"]
        self.arms = [{"key": arm.key, "size": arm.size} for arm in preset.arms]
        self.built = {arm.key: arm.build(0) for arm in preset.arms}

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key]

    def _value(self, key: str, metric: str, epoch: float) -> float:
        spec = self.built[key]
        if isinstance(spec, ImageBranch):
            return self.values["fine-tuned", metric](spec.of.lr, spec.at)
        assert isinstance(spec, ImageRun)
        whose = "raw"
        for prefix, name in (("ensemble/ema-0.99/", "ensemble"), ("ensemble/", "ensemble"), ("ema-0.99/", "average")):
            if metric.startswith(prefix):
                whose, metric = name, metric.removeprefix(prefix)
                break
        if key == SLOW and whose in {"average", "ensemble"} and metric == "test/error":
            whose = f"slow {whose}"
        return self.values[whose, metric](spec.lr, epoch)

    def _noise(self, key: str, metric: str, epoch: float) -> NDArray[np.float64]:
        rng = np.random.default_rng(zlib.crc32(f"{key} {metric} {epoch:g}".encode()))
        noise = rng.normal(0, 1, NUM_SEEDS)
        return np.asarray(self.jitter * (noise - noise.mean()))

    def per_seed(self, key: str, metric: str, epoch: float, size: int) -> NDArray[np.float64]:
        return np.asarray(self._value(key, metric, epoch) * np.exp(self._noise(key, metric, epoch)))

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        return self.per_seed(key, metric, 60, size)

    def last_array(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        assert name.endswith("test/wrong")
        metric = name.replace("wrong", "error")
        rate = self._value(key, metric, 60)
        # The first examples are the hard ones, so that two rates differ in the examples between them, and in no other.
        seeds = self._noise(key, metric, 60)
        return np.array([np.arange(NUM_TEST) / NUM_TEST < rate + seed for seed in seeds], dtype=np.float64)

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        epochs = np.arange(1.0, 61)
        curve = np.array([self._value(key, metric, epoch) for epoch in epochs])
        return [(epochs, curve * np.exp(seed)) for seed in self._noise(key, metric, 0)]


def flat(value: float) -> Value:
    return lambda lr, epoch: value


AVERAGE, TUNED = "average", "fine-tuned"
CASES: list[tuple[str, dict[tuple[str, str], Value], float, str, float | None]] = [
    ("a-average", {}, 0.002, "reproduced", -15.0),
    ("a-average", {(AVERAGE, "test/error"): flat(0.301)}, 0.0002, "not reproduced", 0.1),
    ("a-average", {(AVERAGE, "test/error"): flat(0.298)}, 0.01, "inconclusive", -0.2),
    ("a-fine-tuning", {}, 0.002, "reproduced", -14.3),
    ("a-fine-tuning", {(TUNED, "test/error"): flat(0.31)}, 0.002, "not reproduced", 1.0),
    ("a-fine-tuning", {(TUNED, "test/error"): flat(0.298)}, 0.01, "inconclusive", -0.2),
    ("b", {}, 0.002, "reproduced", -0.2),
    ("b", {(AVERAGE, "test/error"): flat(0.17)}, 0.002, "not reproduced", 1.8),
    ("b", {(AVERAGE, "test/error"): flat(0.157)}, 0.01, "inconclusive", 0.5),
    ("c", {}, 0.002, "reproduced", 0.5),
    ("c", {("raw", "train/running_loss"): lambda lr, epoch: lr**-0.5 * (0.8 + epoch**-1.5)}, 0.002, "not reproduced", -0.5),
    ("c", {("raw", "train/running_loss"): lambda lr, epoch: lr**0.5 * epoch**-0.8}, 0.002, "not reproduced", 0.5),
    ("c", {("raw", "train/running_loss"): lambda lr, epoch: 0.8}, 0.05, "inconclusive", 0.0),
    ("d", {}, 0.002, "reproduced", -0.3),
    ("d", {(AVERAGE, "jacobian_norm"): lambda lr, _: 90 * lr**0.3}, 0.002, "not reproduced", 0.3),
    ("d", {(AVERAGE, "jacobian_norm"): flat(90)}, 0.1, "inconclusive", 0.0),
    ("e", {}, 0.002, "reproduced", 0.5),
    ("e", {(TUNED, "jacobian_norm"): lambda lr, _: 90 * lr**-0.3}, 0.002, "not reproduced", -0.3),
    ("e", {(TUNED, "jacobian_norm"): flat(90)}, 0.1, "inconclusive", 0.0),
    ("f", {}, 0.002, "reproduced", 0.8),
    ("f", {(TUNED, "hessian_trace"): lambda lr, _: 90 / lr}, 0.002, "not reproduced", -1.0),
    ("f", {(TUNED, "hessian_trace"): lambda lr, _: -1.0}, 0.002, "inconclusive", None),
    ("g", {}, 0.002, "reproduced", 0.0),
    ("g", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**0.4}, 0.002, "not reproduced", 0.4),
    ("g", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**-0.4}, 0.002, "not reproduced", -0.4),
    ("g", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**0.25}, 0.02, "inconclusive", 0.25),
    ("h", {}, 0.0002, "reproduced", None),
    ("h", {(TUNED, "hessian_trace"): lambda lr, epoch: 90 / lr + epoch}, 0.0002, "not reproduced", None),
    ("h", {(TUNED, "test/error"): lambda lr, _: 0.1 * lr**0.5}, 0.3, "inconclusive", None),
    ("h-along", {}, 0.0002, "reproduced", None),
    # Across learning rates they go together, within each run against each other.
    ("h-along", {(TUNED, "hessian_trace"): lambda lr, epoch: 400 * lr + epoch}, 0.0002, "not reproduced", None),
    ("h-along", {(TUNED, "test/error"): lambda lr, epoch: 0.1 - epoch / 800}, 0.3, "inconclusive", None),
    ("i", {}, 0.002, "reproduced", 10 / 9),
    ("i", {("raw", "weight_norm"): flat(8.5)}, 0.002, "not reproduced", 10 / 9),
    ("i", {(TUNED, "weight_norm"): flat(9.51)}, 0.02, "inconclusive", 9.51 / 9),
    ("j", {}, 0.002, "reproduced", 0.0),
    # One learning rate of three suffices.
    ("j", {(AVERAGE, "test/error"): lambda lr, _: 0.18 if lr == 0.3 else 0.15}, 0.002, "not reproduced", 3.0),
    ("j", {("ensemble", "total_variation"): flat(0.2)}, 0.002, "not reproduced", 0.0),
    ("j", {(AVERAGE, "test/error"): flat(0.16)}, 0.002, "inconclusive", 1.0),
    ("j-unmixed", {}, 0.002, "reproduced", 4.0),
    ("j-unmixed", {("slow average", "test/error"): flat(0.14)}, 0.002, "not reproduced", -1.0),
    ("j-unmixed", {("slow average", "test/error"): flat(0.15)}, 0.01, "inconclusive", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "jitter", "outcome", "effect"), CASES)
def test_a_rule_decides_what_it_should(
    key: str, given: dict[tuple[str, str], Value], jitter: float, outcome: str, effect: float | None
) -> None:
    finding = CLAIMS[key].measure(cast("Results", MadeUp(given, jitter)), SIZE)
    assert finding.outcome == outcome, finding.reason
    if effect is not None:
        assert finding.effect is not None
        near = 0.12 if CLAIMS[key].unit == "points" else max(0.01, jitter)
        assert finding.effect.estimate == pytest.approx(effect, abs=near)


def test_every_claim_is_tried_with_all_three_outcomes() -> None:
    tried = {(key, outcome) for key, _, _, outcome, _ in CASES}
    assert tried == {(key, outcome) for key in CLAIMS for outcome in ("reproduced", "not reproduced", "inconclusive")}


def test_every_claim_states_the_bounds_that_its_rule_uses() -> None:
    texts = {key: claim.words for key, claim in CLAIMS.items()}
    assert f"{rules.SMALLEST_EFFECT} points" in texts["a-average"]
    assert f"below {rules.WORSE_MARGIN} points" in texts["b"]
    assert f"q < {rules.PLATEAU_EXPONENT}" in texts["c"]
    assert f"within {rules.NO_RANKING} of 0" in texts["g"]
    assert f"above {rules.MIRROR}" in texts["h"]
    assert f"within {rules.ENSEMBLE_MARGIN:g} point" in texts["j"]
    assert f"below {rules.ENSEMBLE_VARIATION}" in texts["j"]


def test_correlations_are_those_of_scipy_and_numpy() -> None:
    """With equal values among them, and traces that differ in size between learning rates."""
    rng = np.random.default_rng(3)
    made = MadeUp()
    keys = [key for key in made.built if key.startswith("fine-tuned")]
    trace = {key: 10.0 ** (1 + index % 3) + rng.normal(0, 2, NUM_SEEDS) for index, key in enumerate(keys)}
    error = {key: rng.integers(2, 6, NUM_SEEDS) / 10 for key in keys}
    for key in keys[:3]:
        error[key][0] = 0.3  # no correlation in a run whose errors are all the same: it counts as 0
    made.last = lambda key, metric, size: (trace if metric == "hessian_trace" else error)[key]  # type: ignore[method-assign]
    results = cast("Results", made)
    pairs = [([trace[key][seed] for key in keys], [error[key][seed] for key in keys]) for seed in range(NUM_SEEDS)]
    spearman = np.mean([scipy.stats.spearmanr(one, other).statistic for one, other in pairs])
    found = rules.mirrors_error(results, SIZE).effect
    assert found is not None
    assert found.estimate == pytest.approx(spearman, abs=1e-12)
    runs = [slice(3 * rate, 3 * rate + 3) for rate in range(3)]
    pearson = [
        0.0 if len({*other[run]}) == 1 else np.corrcoef(one[run], other[run])[0, 1]
        for one, other in pairs
        for run in runs
    ]
    within = rules.mirrors_within_runs(results, SIZE).effect
    assert within is not None
    assert within.estimate == pytest.approx(np.mean(pearson), abs=1e-12)


def test_late_values_are_of_the_second_half_and_of_the_right_branch() -> None:
    given: dict[tuple[str, str], Value] = {
        (TUNED, "hessian_trace"): lambda lr, epoch: 1000 * lr + epoch,
        (AVERAGE, "hessian_trace"): lambda lr, epoch: 2000 * lr + epoch,
    }
    results = cast("Results", MadeUp(given, jitter=0.0))
    assert rate_keys(results, SIZE) == ["lr-0", "lr-1", "lr-2"]
    for of, factor in ((WHOSE_AVERAGE, 2000), (WHOSE_TUNED, 1000)):
        found = late_values(results, of, "hessian_trace", SIZE)
        assert found.shape == (3, 2, NUM_SEEDS)
        expected = [[factor * lr + epoch for epoch in (30, 60)] for lr in (0.15, 0.3, 0.6)]
        np.testing.assert_allclose(found[:, :, 0], expected)


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_presets_are_in_the_regime_that_the_claims_are_about(name: str) -> None:
    preset = AVERAGING.presets[name]
    for size in {arm.size for arm in preset.arms}:
        built = {arm.key: arm.build(7) for arm in preset.arms if arm.size == size}
        runs = [spec for key, spec in built.items() if key.startswith("lr-")]
        assert [spec.lr for spec in runs if isinstance(spec, ImageRun)] == sorted(
            {cast("ImageRun", s).lr for s in runs}
        )
        for spec in runs:
            assert isinstance(spec, ImageRun)
            assert (spec.drop_epoch, spec.keep_at[-1]) == (spec.num_epochs, spec.num_epochs)  # one rate to the end
            late = [epoch for epoch in spec.keep_at if 2 * epoch >= spec.num_epochs]
            assert len(late) >= 2
            assert all(epoch % spec.probe_every == 0 or epoch == spec.num_epochs for epoch in late)
            assert set(spec.probes) == {"hessian-trace", "jacobian-norm"}
            if name in {"laptop", "night"}:
                steps = spec.num_epochs * (2_000 // spec.batch_size)
                assert 1 / (spec.lr * spec.lam) < steps / 4
        slow = built[SLOW]
        assert isinstance(slow, ImageRun)
        if name in {"laptop", "night"}:
            assert 1 / (slow.lr * slow.lam) >= slow.num_epochs * 40
        branches = [spec for spec in built.values() if isinstance(spec, ImageBranch)]
        assert len(branches) == sum(len(cast("ImageRun", spec).keep_at) for spec in runs)
        for branch in branches:
            assert (branch.then.lam, branch.seed, branch.then.ema, branch.then.probe_every) == (0.0, 7, (), 0)
            assert branch.then.lr <= branch.of.lr / 25
            assert branch.of in runs


def test_the_paper_preset_is_the_papers() -> None:
    specs = [arm.build(0) for arm in AVERAGING.presets["paper"].arms if arm.key.startswith("lr-")]
    assert [(s.lr, s.lam) for s in specs if isinstance(s, ImageRun)] == [
        (lr, 0.0125) for lr in (0.05, 0.1, 0.15, 0.2, 0.25)
    ]
    first = specs[0]
    assert isinstance(first, ImageRun)
    assert (first.width, first.blocks, first.batch_size, first.ema, first.num_epochs) == (
        64,
        (2, 2, 2, 2),
        128,
        (0.999,),
        100,
    )
    branch = AVERAGING.presets["paper"].arms[1].build(0)
    assert isinstance(branch, ImageBranch)
    assert (branch.then.lr, branch.then.num_epochs) == (1e-3, 100)


def test_the_smoke_preset_runs_decides_nothing_and_is_drawn(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, get_study("averaging"))
    verdicts = results.verdicts()
    assert {verdict.finding.outcome for verdict in verdicts} == {"inconclusive"}
    assert all("too small to decide" in verdict.finding.reason for verdict in verdicts)
    branch = results.last("fine-tuned-0-1", "weight_norm", 4)
    assert (
        np.abs(branch / results.last("lr-0", "weight_norm", 4) - 1) < 0.01
    ).all()  # it started from the parent's end
    page = build_report(Store(tmp_path), notice=pytest.fail)[0].read_text(encoding="utf-8")
    page = page.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    for words in (*(panel.title for panel in AVERAGING.panels), *(row.ours(results) for row in AVERAGING.published)):
        assert words in page
