"""The study of bias and variance: its rules on made-up results with known answers, its arms, and the rules for real."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.language.bias_variance import figures
from halflife.studies.catalog.language.bias_variance.quantities import OverBound, bias, variance
from halflife.studies.catalog.language.bias_variance.study import BIAS_VARIANCE, SYNTHETIC_CLAIMS
from halflife.studies.catalog.language.bias_variance.theory import expected, paper_bound
from halflife.studies.catalog.language.quantities import BLOCKS
from halflife.studies.catalog.language.schedules import LM_SCHEDULES
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import Arm, PointsPanel
from halflife.studies.evidence.quantities import Best, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding
from halflife.studies.evidence.stats import Interval
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.lab.trainer import train
from halflife.studies.specs import LeastSquaresRun, RunSpec, TextBranch, TextRun
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store

SPREAD = (-1.2, 0.3, -0.4, 1.5, -0.2)  # over five seeds: mean 0, standard deviation 1.0
NUM_BLOCKS = 12
PRESET = BIAS_VARIANCE.presets["laptop"]

Change = dict[tuple[str, str], tuple[float, float]]
"""Arm and reading to a factor and to a spread over seeds, in logarithms; for losses to an addition and a spread."""


def wobble(text: str, seed: int, size: float) -> float:
    """Another number for each arm and reading, the mean over seeds being 0."""
    shift = sum(text.encode()) % len(SPREAD)
    return size * SPREAD[(seed + shift) % len(SPREAD)]


def least_squares_readings(key: str, spec: LeastSquaresRun, seed: int, change: Change) -> list[Reading]:
    readings = []
    for step, theory in expected(spec).items():
        values = {"lr": spec.lr_at(max(step - 1, 0))}
        for name, value in theory.items():
            factor, spread = change.get((key, f"{name}@{step}"), change.get((key, name), (1.0, 1e-3)))
            values[name] = value * factor * math.exp(wobble(key + name, seed, spread))
            values[f"{name}_se"] = 1e-3 * values[name]
        readings.append(Reading(step=step, epoch=0.0, values=values))
    return readings


VARIANCE = {"none": 0.05, "moderate": 0.1, "large": 0.2}
LATE_BIAS = {"none": 0.03, "moderate": 0.02, "large": 0.01}
EARLY_GAIN = {"none": 0.0, "moderate": 0.002, "large": 0.004}
AFTER_COOLDOWN = {"none": 2.02, "moderate": 2.005, "large": 2.0}
RECOVERS = {"ema-0.99/": 0.8, "mean/": 0.7}


def bias_at(lam: str, share: float) -> float:
    return (0.5 - EARLY_GAIN[lam]) * (1 - share) + LATE_BIAS[lam] * share**3


def loss_reading(key: str, step: int, losses: dict[str, float], seed: int, change: Change) -> Reading:
    """Losses in blocks: what a seed and a block add is the same in every arm, and a little differs."""
    values, arrays = {}, {}
    for prefix, loss in losses.items():
        add, spread = change.get((key, f"{prefix}{step}"), change.get((key, prefix), (0.0, 1e-4)))
        level = loss + add + wobble(key + prefix, seed, spread)
        blocks_N = level + 0.1 * np.sin(np.arange(NUM_BLOCKS)) + 0.01 * seed
        blocks_N += 1e-4 * np.cos(sum(key.encode()) + 7 * np.arange(NUM_BLOCKS))
        values[f"{prefix}val/loss"] = float(blocks_N.mean())
        arrays[f"{prefix}val/loss_blocks"] = Array("<f4", NUM_BLOCKS, blocks_N.astype("<f4").tobytes())
    return Reading(step=step, epoch=0.1, values=values, arrays=arrays)


def lam_in(key: str) -> str:
    return next(lam for lam in LAMS if f"-{lam}" in key)


def text_readings(key: str, spec: TextRun | TextBranch, seed: int, change: Change) -> list[Reading]:
    lam = lam_in(key)
    if isinstance(spec, TextBranch):
        loss = AFTER_COOLDOWN[lam] if spec.branch == "cooldown" else 2.0 + bias_at(lam, spec.at / spec.of.num_steps)
        return [loss_reading(key, spec.num_steps, {"": loss}, seed, change)]
    readings = []
    for step in spec.keep_at:
        loss = 2.0 + bias_at(lam, step / spec.num_steps) + VARIANCE[lam]
        losses = {"": loss}
        if spec.average_from is not None and step >= spec.average_from:
            losses |= {name: loss - share * VARIANCE[lam] for name, share in RECOVERS.items()}
        readings.append(loss_reading(key, step, losses, seed, change))
    return readings


def readings_of(arm: Arm, seed: int, change: Change) -> tuple[RunSpec, list[Reading]]:
    spec = arm.build(seed)
    if isinstance(spec, LeastSquaresRun):
        return spec, least_squares_readings(arm.key, arm_spec(arm), seed, change)
    assert isinstance(spec, TextRun | TextBranch)
    return spec, text_readings(arm.key, spec, seed, change)


def arm_spec(arm: Arm) -> LeastSquaresRun:
    spec = arm.build(0)
    assert isinstance(spec, LeastSquaresRun)
    return spec


Source = Callable[[Arm, int], tuple[RunSpec, list[Reading]]]


def results_of(
    path: Path, source: Source, arms: tuple[Arm, ...], *, preset: str = "laptop", num_seeds: int = 5
) -> StudyResults:
    store = Store(path)
    store.create()
    manifest_arms = []
    for number, arm in enumerate(arms):
        runs = {}
        for seed in range(num_seeds):
            identity = f"{number:08d}{seed:08d}"
            folder = store.run(identity)
            spec, readings = source(arm, seed)
            folder.write_header({"id": identity, "status": "finished", "spec": spec.to_json()})
            (folder.path / "readings.jsonl").write_text("".join(reading.to_line() + "\n" for reading in readings))
            runs[str(seed)] = identity
        manifest_arms.append({"key": arm.key, "label": arm.label, "size": arm.size, "runs": runs})
    manifest = {
        "study": "bias-variance", "preset": preset, "main_size": BIAS_VARIANCE.presets[preset].main_size,
        "max_steps": None, "arms": manifest_arms,
    }  # fmt: skip
    return StudyResults(store, BIAS_VARIANCE, manifest)


class InMemory:
    """What `Results.read` gives, without a store; only arms that are asked for are made up."""

    def __init__(self, source: Source, arms: tuple[Arm, ...] = PRESET.arms, num_seeds: int = 5) -> None:
        self.main_size, self.source, self.num_seeds = PRESET.main_size, source, num_seeds
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in arms]
        self.by_key = {(arm.key, arm.size): arm for arm in arms}
        self.made: dict[tuple[str, int], list[list[Reading]]] = {}

    def seeds(self, size: int) -> list[int]:
        return list(range(self.num_seeds))

    def spec(self, key: str, size: int) -> RunSpec:
        return self.by_key[key, size].build(0)

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        if (key, size) not in self.made:
            self.made[key, size] = [self.source(self.by_key[key, size], seed)[1] for seed in self.seeds(size)]
        found = []
        for readings in self.made[key, size]:
            (reading,) = (
                [reading for reading in readings if reading.step == step] if step is not None else readings[-1:]
            )
            array = reading.arrays.get(name)
            found.append(reading.values[name] if array is None else np.frombuffer(array.data, array.dtype))
        return np.array(found, dtype=np.float64)


def in_memory(change: Change | None = None, num_seeds: int = 5) -> Results:
    return cast("Results", InMemory(functools.partial(readings_of, change=change or {}), num_seeds=num_seeds))


def effect_of(finding: Finding) -> Interval:
    assert finding.effect is not None
    return finding.effect


def test_with_the_paper_right_every_claim_is_reproduced_but_one() -> None:
    """Losses as the paper has them, risks as theory does; theory itself says that the bound fails with samples at lr 0.4."""
    results = in_memory()
    found = {claim.key: claim.decide(results, PRESET.main_size) for claim in BIAS_VARIANCE.claims}
    outcomes = {key: finding.outcome for key, finding in found.items()}
    assert outcomes == dict.fromkeys(outcomes, "reproduced") | {"bound-sampled": "not reproduced"}
    # By hand: 2 (2 - 0.02) is the bound over the floor, n lr mu / (2 - lr mu) about the gain of averaging n iterates.
    assert effect_of(found["bound-loose"]).estimate == pytest.approx(3.96, rel=0.01)
    assert effect_of(found["average-floor"]).estimate == pytest.approx(0.02 * 1000 / 1.98, rel=0.06)
    assert effect_of(found["decay-is-a-bias"]).estimate == pytest.approx((1 / (1.1 * (2 - 0.11))) / (1 / 1.9), rel=0.01)
    assert effect_of(found["floor"]).estimate == pytest.approx(1.0, abs=1e-3)
    assert effect_of(found["variance-grows"]).estimate == pytest.approx(
        0.1 - 0.05, abs=1e-3
    )  # the smaller of two steps
    assert effect_of(found["late-bias"]).estimate == pytest.approx(0.01 - 0.03, abs=1e-3)
    early = bias_at("large", 0.2) - bias_at("none", 0.2)
    assert effect_of(found["early-bias"]).estimate == pytest.approx(early, abs=3e-4)
    assert effect_of(found["first-bias"]).estimate == pytest.approx(early, abs=3e-4)
    assert effect_of(found["ema"]).estimate == pytest.approx((0.8 - 0.5) * 0.2, abs=1e-3)
    assert effect_of(found["mean"]).estimate == pytest.approx((0.7 - 0.5) * 0.2, abs=1e-3)


def test_the_parts_add_up_to_the_loss() -> None:
    results, size = in_memory(), PRESET.main_size
    reference_SN = Best(tuple(f"cooldown-constant-{lam}-100" for lam in LAMS), BLOCKS)(results, size)
    for lam in LAMS:
        for share in (20, 40, 60, 80, 100):
            bias_SN, variance_SN = (part(lam, share)(results, size) for part in (bias, variance))
            loss_SN = results.read(key_of("constant", lam), BLOCKS, size, step=20 * share)
            np.testing.assert_allclose(reference_SN + bias_SN + variance_SN, loss_SN, atol=1e-6)
            assert variance_SN.mean() == pytest.approx(VARIANCE[lam], abs=1e-3)
            assert bias_SN.mean() == pytest.approx(bias_at(lam, share / 100), abs=1e-3)


def test_the_largest_of_noisy_risks_is_not_taken_for_the_largest_expectation() -> None:
    """Every reading has noise of its own, and none has a larger expectation: a maximum over readings would be far off."""
    rng = np.random.default_rng(0)
    (arm,) = (arm for arm in PRESET.arms if arm.key == "line-0.1")

    def source(made: Arm, seed: int) -> tuple[RunSpec, list[Reading]]:
        spec, readings = readings_of(made, seed, {})
        least = {reading.step: paper_bound(arm_spec(arm), reading.step) for reading in readings if reading.step <= 2000}
        return spec, [
            dataclasses.replace(
                reading,
                values={**reading.values, "risk": 0.5 * least.get(reading.step, 1.0) * math.exp(rng.normal(0, 0.3))},
            )
            for reading in readings
        ]

    results = cast("Results", InMemory(source))
    ratios = OverBound("line-0.1")
    found = Quantity(name="risk over bound", values=ratios, log=True).interval(results, PRESET.main_size, 0.95)
    assert found.low < 0.5 < found.high
    values_PS = ratios.side(results, PRESET.main_size).values
    assert np.log(values_PS).mean(axis=1).max() > np.log(0.5) + 0.2


FLIP_END = "risk@3000"
CASES: list[tuple[str, Change, str]] = [
    ("floor", {("line-0.2", "tail/risk"): (1.1, 1e-3)}, "not reproduced"),
    ("floor", {("line-0.2", "tail/risk"): (1.0, 0.1)}, "undecided"),
    ("bound", {("line-0.1", "risk"): (5.0, 1e-3)}, "not reproduced"),
    ("bound", {("line-0.1", "risk@2000"): (3.8, 0.1)}, "undecided"),
    ("bound", {("line-0.1", "risk@2000"): (3.7, 1e-3), ("line-0.1", "risk@0"): (1.9, 1e-3)}, "reproduced"),
    ("bound-sampled", {("sampled-0.4", "risk"): (0.5, 1e-3)}, "reproduced"),
    ("bound-loose", {("line-0.02", "tail/risk"): (1.2, 1e-3)}, "not reproduced"),
    ("bound-loose", {("line-0.02", "tail/risk"): (1.05, 0.1)}, "undecided"),
    ("ranking", {("sampled-0.2", FLIP_END): (3.0, 1e-3)}, "not reproduced"),
    ("ranking", {("sampled-0.2", FLIP_END): (2.2, 0.3)}, "undecided"),
    ("ranking", {("sampled-0.2", "risk@100"): (4.0, 1e-3)}, "not reproduced"),
    ("ranking", {("sampled-0.2", "risk@2000"): (0.1, 1e-3)}, "not reproduced"),
    ("average-floor", {("line-0.02", "average/risk"): (3.0, 1e-3)}, "not reproduced"),
    ("average-floor", {("line-0.02", "average/risk"): (2.1, 0.3)}, "undecided"),
    ("spectrum", {("additive-0.05", "tail/risk"): (0.9, 1e-3)}, "not reproduced"),
    ("spectrum", {("sampled-0.4", "tail/risk"): (1.0, 0.2)}, "undecided"),
    ("decay-is-a-bias", {("line-0.1-decay", "bias"): (1.2, 1e-3)}, "not reproduced"),
    ("decay-is-a-bias", {("line-0.1-decay", "variance"): (1.0, 0.2)}, "undecided"),
    ("decay-is-a-bias", {("line-0.1", "variance"): (0.8, 1e-3)}, "not reproduced"),  # decay would raise the variance
    ("variance-grows", {("constant-moderate-x1", ""): (-0.08, 1e-4)}, "not reproduced"),
    ("variance-grows", {("constant-moderate-x1", ""): (-0.05, 5e-3)}, "undecided"),
    ("late-bias", {("tiny-lr-constant-none-100", ""): (-0.05, 1e-4)}, "not reproduced"),
    ("late-bias", {("tiny-lr-constant-none-100", ""): (-0.02, 1e-2)}, "undecided"),
    ("first-bias", {("tiny-lr-constant-none-20", ""): (-0.02, 1e-4)}, "not reproduced"),
    ("first-bias", {("tiny-lr-constant-none-20", ""): (-0.003, 1e-2)}, "undecided"),
    ("early-bias", {("tiny-lr-constant-large-20", ""): (0.03, 1e-4)}, "not reproduced"),
    ("early-bias", {("tiny-lr-constant-large-20", ""): (0.0133, 2e-3)}, "undecided"),
    # The run with moderate decay is only 0.008 above the one without: branches as close as that say nothing.
    ("early-bias", {("constant-moderate-x1", "400"): (-0.04, 1e-4)}, "not tested"),
    ("ema", {("constant-large-x1", "ema-0.99/"): (0.1, 1e-4)}, "not reproduced"),
    ("ema", {("constant-large-x1", "ema-0.99/"): (0.06, 5e-3)}, "undecided"),
    # Without a variance part there is nothing to recover, however good the average.
    ("mean", {("constant-large-x1", ""): (-0.3, 1e-4), ("constant-large-x1", "mean/"): (-0.6, 1e-4)}, "not tested"),
    ("mean", {("constant-large-x1", "mean/"): (0.1, 1e-4)}, "not reproduced"),
]


@pytest.mark.parametrize(("key", "change", "outcome"), CASES, ids=[f"{n}-{k}-{o}" for n, (k, _, o) in enumerate(CASES)])
def test_each_rule_reaches_each_outcome(key: str, change: Change, outcome: str) -> None:
    claim = next(claim for claim in BIAS_VARIANCE.claims if claim.key == key)
    finding = claim.decide(in_memory(change), PRESET.main_size)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None


def test_figures_and_published_rows() -> None:
    results = in_memory()
    for panel in BIAS_VARIANCE.panels:
        assert isinstance(panel, PointsPanel)
        rows = panel.rows(results)
        assert len(rows) > 10
        assert all(
            math.isfinite(row.y) and (row.y > 0 or not panel.log_y) and (row.x > 0 or not panel.log_x) for row in rows
        )
    floors = {(row.series, row.x): row.y for row in figures.floor_against_rate(results) if row.style == "line"}
    assert floors["last iterate", 0.5] == pytest.approx(0.5 / (2 * 1.5))
    assert floors["bound, lr sigma^2", 0.5] == 0.5
    parts = {(row.series, row.x): row for row in figures.split_against_lam(results) if row.style == "point"}
    lams = sorted({x for _, x in parts})
    assert lams[0] == 0
    assert parts["variance at 100 %", lams[2]].y == pytest.approx(0.2, abs=1e-3)
    assert parts["bias at 20 %", lams[1]].y == pytest.approx(bias_at("moderate", 0.2), abs=1e-3)
    texts = [published.ours(results) for published in BIAS_VARIANCE.published]
    assert texts[0].startswith("0.050 [0.0")
    assert texts[1].startswith("0.160 [0.1")


@pytest.mark.parametrize("name", sorted(BIAS_VARIANCE.presets))
def test_the_language_model_runs_are_those_of_the_schedules_study(name: str) -> None:
    preset, other = BIAS_VARIANCE.presets[name], LM_SCHEDULES.presets[name]
    theirs = {arm.build(0).digest() for arm in other.arms}
    text = [arm for arm in preset.arms if not isinstance(arm.build(0), LeastSquaresRun)]
    assert {arm.build(0).digest() for arm in text} <= theirs
    sizes = {arm.size for arm in other.arms}
    for size in sizes:
        keys = [arm.key for arm in text if arm.size == size]
        assert (
            len(keys) == len(set(keys)) == 3 + 3 + 3 * len([k for k in keys if k.startswith("tiny-lr-constant-none")])
        )
    assert {arm.size for arm in preset.arms if arm not in text} == {preset.main_size}


def test_the_least_squares_runs_are_measured(tmp_path: Path) -> None:
    """Small simulations by the real trainer, seeds that no preset uses; only what is exact or gross is asked of them."""
    preset = BIAS_VARIANCE.presets["smoke"]
    arms = tuple(arm for arm in preset.arms if isinstance(arm.build(0), LeastSquaresRun))

    def source(arm: Arm, seed: int) -> tuple[RunSpec, list[Reading]]:
        spec = arm.build(1000 + seed)
        readings: list[Reading] = []
        assert isinstance(spec, LeastSquaresRun)
        train(spec, sink=readings.append)
        return spec, readings

    results = results_of(tmp_path, source, arms, preset="smoke", num_seeds=2)
    for claim in SYNTHETIC_CLAIMS:
        finding = claim.decide(results, preset.main_size)
        assert finding.effect is not None
        assert math.isfinite(finding.effect.estimate)
    ratio = next(claim for claim in SYNTHETIC_CLAIMS if claim.key == "average-floor").decide(results, preset.main_size)
    assert ratio.effect is not None
    # 100 iterates at lr 0.02: a thousandth of what they would be if floor and average were mixed up.
    assert 0.2 < ratio.effect.estimate < 5


def test_figures_of_two_noisy_seeds_stay_above_zero() -> None:
    """Logarithmic axes refuse an interval that reaches below 0, which that of a mean over two seeds easily does."""
    arms = tuple(arm for arm in PRESET.arms if isinstance(arm.build(0), LeastSquaresRun))
    change: Change = {(arm.key, name): (1.0, 1.0) for arm in arms for name in ("risk", "tail/risk", "average/risk")}
    results = in_memory(change, num_seeds=2)
    for rows in (figures.risk_along_the_run, figures.floor_against_rate, figures.ranking_along_the_run):
        assert all(row.low is None or row.low > 0 for row in rows(results))
