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
from halflife.studies.catalog.curvature.averaging import quantities
from halflife.studies.catalog.curvature.averaging.study import AVERAGING
from halflife.studies.catalog.curvature.common import rate_keys
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.images import ImageBranch, ImageRun
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
        if key == quantities.SLOW and whose in {"average", "ensemble"} and metric == "test/error":
            whose = f"slow {whose}"
        return self.values[whose, metric](spec.lr, epoch)

    def _noise(self, key: str, metric: str, epoch: float) -> NDArray[np.float64]:
        rng = np.random.default_rng(zlib.crc32(f"{key} {metric} {epoch:g}".encode()))
        noise = rng.normal(0, 1, NUM_SEEDS)
        return np.asarray(self.jitter * (noise - noise.mean()))

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert step is None
        epoch = 60 if epoch is None else epoch
        if not name.endswith("/wrong"):
            return np.asarray(self._value(key, name, epoch) * np.exp(self._noise(key, name, epoch)))
        metric = name.replace("wrong", "error")
        rate = self._value(key, metric, epoch)
        # The first examples are the hard ones, so that two rates differ in the examples between them, and in no other.
        seeds = self._noise(key, metric, epoch)
        return np.array([np.arange(NUM_TEST) / NUM_TEST < rate + seed for seed in seeds], dtype=np.float64)

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        epochs = np.arange(1.0, 61)
        curve = np.array([self._value(key, metric, epoch) for epoch in epochs])
        return [(epochs, curve * np.exp(seed)) for seed in self._noise(key, metric, 0)]


def flat(value: float) -> Value:
    return lambda lr, epoch: value


AVERAGE, TUNED = "average", "fine-tuned"
CASES: list[tuple[str, dict[tuple[str, str], Value], float, str, float | None]] = [
    ("average", {}, 0.002, "reproduced", -15.0),
    ("average", {(AVERAGE, "test/error"): flat(0.301)}, 0.0002, "not reproduced", 0.1),
    ("average", {(AVERAGE, "test/error"): flat(0.298)}, 0.01, "undecided", -0.2),
    ("fine-tuning", {}, 0.002, "reproduced", -14.3),
    ("fine-tuning", {(TUNED, "test/error"): flat(0.31)}, 0.002, "not reproduced", 1.0),
    ("fine-tuning", {(TUNED, "test/error"): flat(0.298)}, 0.01, "undecided", -0.2),
    ("as-good", {}, 0.002, "reproduced", -0.2),
    ("as-good", {(AVERAGE, "test/error"): flat(0.17)}, 0.002, "not reproduced", 1.8),
    ("as-good", {(AVERAGE, "test/error"): flat(0.157)}, 0.01, "undecided", 0.5),
    ("plateau", {}, 0.002, "reproduced", 0.5),
    ("plateau", {("raw", "train/running_loss"): lambda lr, epoch: lr**-0.5 * (0.8 + epoch**-1.5)}, 0.002,
     "not reproduced", -0.5),
    ("plateau", {("raw", "train/running_loss"): lambda lr, epoch: lr**0.5 * epoch**-0.8}, 0.002, "not reproduced", 0.5),
    ("plateau", {("raw", "train/running_loss"): lambda lr, epoch: 0.8}, 0.05, "undecided", 0.0),
    ("average-jacobian", {}, 0.002, "reproduced", -0.3),
    ("average-jacobian", {(AVERAGE, "jacobian_norm"): lambda lr, _: 90 * lr**0.3}, 0.002, "not reproduced", 0.3),
    ("average-jacobian", {(AVERAGE, "jacobian_norm"): flat(90)}, 0.1, "undecided", 0.0),
    ("fine-tuned-jacobian", {}, 0.002, "reproduced", 0.5),
    ("fine-tuned-jacobian", {(TUNED, "jacobian_norm"): lambda lr, _: 90 * lr**-0.3}, 0.002, "not reproduced", -0.3),
    ("fine-tuned-jacobian", {(TUNED, "jacobian_norm"): flat(90)}, 0.1, "undecided", 0.0),
    ("fine-tuned-trace", {}, 0.002, "reproduced", 0.8),
    ("fine-tuned-trace", {(TUNED, "hessian_trace"): lambda lr, _: 90 / lr}, 0.002, "not reproduced", -1.0),
    ("fine-tuned-trace", {(TUNED, "hessian_trace"): flat(90)}, 0.1, "undecided", 0.0),
    ("fine-tuned-trace", {(TUNED, "hessian_trace"): lambda lr, _: -1.0}, 0.002, "not tested", None),
    ("average-trace", {}, 0.002, "reproduced", 0.0),
    ("average-trace", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**0.4}, 0.002, "not reproduced", 0.4),
    ("average-trace", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**-0.4}, 0.002, "not reproduced", -0.4),
    ("average-trace", {(AVERAGE, "hessian_trace"): lambda lr, _: 90 * lr**0.25}, 0.02, "undecided", 0.25),
    ("mirrors", {}, 0.0002, "reproduced", None),
    ("mirrors", {(TUNED, "hessian_trace"): lambda lr, epoch: 90 / lr + epoch}, 0.0002, "not reproduced", None),
    ("mirrors", {(TUNED, "test/error"): lambda lr, _: 0.1 * lr**0.5}, 0.3, "undecided", None),
    ("mirrors-along", {}, 0.0002, "reproduced", None),
    # Across learning rates they go together, within each run against each other.
    ("mirrors-along", {(TUNED, "hessian_trace"): lambda lr, epoch: 400 * lr + epoch}, 0.0002, "not reproduced", None),
    ("mirrors-along", {(TUNED, "test/error"): lambda lr, epoch: 0.1 - epoch / 800}, 0.3, "undecided", None),
    ("norms", {}, 0.002, "reproduced", 9.5 / 9),
    ("norms", {("raw", "weight_norm"): flat(8.5)}, 0.002, "not reproduced", 8.5 / 9),
    ("norms", {(TUNED, "weight_norm"): flat(9.51)}, 0.02, "undecided", 9.5 / 9),
    ("ensemble", {}, 0.002, "reproduced", 0.0),
    # One learning rate of three suffices.
    ("ensemble", {(AVERAGE, "test/error"): lambda lr, _: 0.18 if lr == 0.3 else 0.15}, 0.002, "not reproduced", 3.0),
    ("ensemble", {("ensemble", "total_variation"): flat(0.2)}, 0.002, "not reproduced", 0.0),
    ("ensemble", {(AVERAGE, "test/error"): flat(0.16)}, 0.002, "undecided", 1.0),
    ("ensemble-slow", {}, 0.002, "reproduced", 4.0),
    ("ensemble-slow", {("slow average", "test/error"): flat(0.14)}, 0.002, "not reproduced", -1.0),
    ("ensemble-slow", {("slow average", "test/error"): flat(0.15)}, 0.01, "undecided", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "jitter", "outcome", "effect"), CASES)
def test_a_rule_decides_what_it_should(
    key: str, given: dict[tuple[str, str], Value], jitter: float, outcome: str, effect: float | None
) -> None:
    finding = CLAIMS[key].decide(cast("Results", MadeUp(given, jitter)), SIZE)
    assert finding.outcome == outcome, finding.reason
    if effect is not None:
        assert finding.effect is not None
        near = 0.12 if CLAIMS[key].unit == "points" else max(0.01, jitter)
        assert finding.effect.estimate == pytest.approx(effect, abs=near)


def test_every_claim_is_tried_with_all_three_outcomes() -> None:
    tried = {(key, outcome) for key, _, _, outcome, _ in CASES}
    outcomes = ("reproduced", "not reproduced", "undecided")
    assert tried - {("fine-tuned-trace", "not tested")} == {(key, outcome) for key in CLAIMS for outcome in outcomes}


def test_correlations_are_those_of_scipy_and_numpy() -> None:
    """With equal values among them, and traces that differ in size between learning rates."""
    rng = np.random.default_rng(3)
    made = MadeUp()
    keys = [key for key in made.built if key.startswith("fine-tuned")]
    trace = {key: 10.0 ** (1 + index % 3) + rng.normal(0, 2, NUM_SEEDS) for index, key in enumerate(keys)}
    error = {key: rng.integers(2, 6, NUM_SEEDS) / 10 for key in keys}
    for key in keys[:3]:
        error[key][0] = 0.3  # no correlation in a run whose errors are all the same: it counts as 0
    made.read = lambda key, name, size, **_: (trace if name == "hessian_trace" else error)[key]  # type: ignore[method-assign]
    results = cast("Results", made)
    pairs = [([trace[key][seed] for key in keys], [error[key][seed] for key in keys]) for seed in range(NUM_SEEDS)]
    spearman = np.mean([scipy.stats.spearmanr(one, other).statistic for one, other in pairs])
    assert quantities.mirrors_over_all(results, SIZE).mean() == pytest.approx(spearman, abs=1e-12)
    runs = [slice(3 * rate, 3 * rate + 3) for rate in range(3)]
    pearson = [
        0.0 if len({*other[run]}) == 1 else np.corrcoef(one[run], other[run])[0, 1]
        for one, other in pairs
        for run in runs
    ]
    assert quantities.mirrors_within_runs(results, SIZE).mean() == pytest.approx(np.mean(pearson), abs=1e-12)


@pytest.mark.parametrize(
    ("key", "given", "quantity"),
    [
        ("average-trace", {(TUNED, "hessian_trace"): flat(90)}, "of the fine-tuned weights"),
        ("ensemble", {("raw", "test/error"): flat(0.1501)}, "that of the weights at the end, at lr 0.15"),
    ],
)
def test_two_equal_things_say_nothing_where_nothing_could_differ(
    key: str, given: dict[tuple[str, str], Value], quantity: str
) -> None:
    """A trace that ranks no weights at all; an average that changes nothing."""
    finding = CLAIMS[key].decide(cast("Results", MadeUp(given)), SIZE)
    assert finding.outcome == "not tested"
    assert "what is at stake does not hold" in finding.reason
    assert quantity in finding.reason


def test_late_values_are_of_the_second_half_and_of_the_right_branch() -> None:
    given: dict[tuple[str, str], Value] = {
        (TUNED, "hessian_trace"): lambda lr, epoch: 1000 * lr + epoch,
        (AVERAGE, "hessian_trace"): lambda lr, epoch: 2000 * lr + epoch,
    }
    results = cast("Results", MadeUp(given, jitter=0.0))
    assert rate_keys(results, SIZE) == ["lr-0", "lr-1", "lr-2"]
    for of, factor in ((quantities.AVERAGE, 2000), (quantities.FINE_TUNED, 1000)):
        found = quantities.late_values(results, SIZE, weights=of, metric="hessian_trace")
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
        slow = built[quantities.SLOW]
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


@pytest.mark.slow
def test_the_smoke_preset_runs_decides_nothing_and_is_drawn(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, get_study("averaging"))
    verdicts = results.verdicts()
    assert {verdict.finding.outcome for verdict in verdicts} == {"not tested"}
    assert all("too small to decide" in verdict.finding.reason for verdict in verdicts)
    branch = results.last("fine-tuned-0-1", "weight_norm", 4)
    assert (
        np.abs(branch / results.last("lr-0", "weight_norm", 4) - 1) < 0.01
    ).all()  # it started from the parent's end
    for panel in AVERAGING.panels:
        assert isinstance(panel, PointsPanel)
        rows = panel.rows(results)
        assert rows
        assert all(row.y > 0 for row in rows if panel.log_y)
    assert all(row.ours(results) for row in AVERAGING.published)
