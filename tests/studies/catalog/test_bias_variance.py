"""The study of bias and variance: its rules on made-up results with known answers, its arms, and the rules for real."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from halflife.studies.catalog.language.bias_variance import figures
from halflife.studies.catalog.language.bias_variance import quantities as rules
from halflife.studies.catalog.language.bias_variance.quantities import Split
from halflife.studies.catalog.language.bias_variance.study import BIAS_VARIANCE
from halflife.studies.catalog.language.bias_variance.theory import expected
from halflife.studies.catalog.language.schedules import LM_SCHEDULES
from halflife.studies.catalog.language.settings import LAMS
from halflife.studies.evidence.claims import Arm, PointsPanel, Verdict
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


Make = Callable[..., StudyResults]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(change: Change | None = None) -> StudyResults:
        return results_of(tmp_path, functools.partial(readings_of, change=change or {}), PRESET.arms)

    return made


def verdicts_of(results: StudyResults) -> dict[str, Verdict]:
    return {verdict.claim.key: verdict for verdict in results.verdicts()}


def effect_of(verdict: Verdict) -> Interval:
    assert verdict.finding.effect is not None
    return verdict.finding.effect


def test_with_the_paper_right_every_claim_is_reproduced_but_one(make: Make) -> None:
    """Losses as the paper has them, risks as theory does; theory itself says that the bound fails with samples at lr 0.4."""
    found = verdicts_of(make())
    outcomes = {key: verdict.finding.outcome for key, verdict in found.items()}
    assert outcomes == dict.fromkeys(outcomes, "reproduced") | {"b-sampled": "not reproduced"}
    # By hand: 2 (2 - 0.02) is the bound over the floor, n lr mu / (2 - lr mu) about the gain of averaging n iterates.
    assert effect_of(found["b-loose"]).estimate == pytest.approx(3.96, rel=0.01)
    assert effect_of(found["d"]).estimate == pytest.approx(0.02 * 1000 / 1.98, rel=0.06)
    assert effect_of(found["f"]).estimate == pytest.approx((1 / (1.1 * (2 - 0.11))) / (1 / 1.9), rel=0.01)
    assert abs(effect_of(found["a"]).estimate) < 0.1
    assert effect_of(found["g"]).estimate == pytest.approx(0.2 - 0.05, abs=1e-3)
    assert effect_of(found["h"]).estimate == pytest.approx(0.01 - 0.03, abs=1e-3)
    early = bias_at("large", 0.2) - bias_at("none", 0.2)
    assert effect_of(found["h-early"]).estimate == pytest.approx(early, abs=3e-4)
    assert effect_of(found["h-first"]).estimate == pytest.approx(early, abs=3e-4)
    assert effect_of(found["i-ema"]).estimate == pytest.approx((0.8 - 0.5) * 0.2, abs=1e-3)
    assert effect_of(found["i-mean"]).estimate == pytest.approx((0.7 - 0.5) * 0.2, abs=1e-3)
    assert "80% of what the branch does (large)" in found["i-ema"].finding.reason


def test_the_parts_add_up_to_the_loss(make: Make) -> None:
    split = Split(make(), PRESET.main_size)
    assert split.shares == [20, 40, 60, 80, 100]
    for lam in LAMS:
        for share in split.shares:
            np.testing.assert_allclose(
                split.reference + split.bias(lam, share) + split.variance(lam, share), split.loss(lam, share), atol=1e-6
            )
            assert split.variance(lam, share).mean() == pytest.approx(VARIANCE[lam], abs=1e-3)
            assert split.bias(lam, share).mean() == pytest.approx(bias_at(lam, share / 100), abs=1e-3)


FLIP_END = "risk@3000"
CASES: list[tuple[str, Change, str]] = [
    ("a", {("line-0.2", "tail/risk"): (1.1, 1e-3)}, "not reproduced"),
    ("a", {("line-0.2", "tail/risk"): (1.0, 0.1)}, "inconclusive"),
    ("b", {("line-0.1", "risk"): (5.0, 1e-3)}, "not reproduced"),
    ("b", {("line-0.1", "risk@2000"): (3.8, 0.1)}, "inconclusive"),
    ("b", {("line-0.1", "risk@2000"): (3.7, 1e-3), ("line-0.1", "risk@0"): (1.9, 1e-3)}, "reproduced"),
    ("b-sampled", {("sampled-0.4", "risk"): (0.5, 1e-3)}, "reproduced"),
    ("b-loose", {("line-0.02", "tail/risk"): (1.2, 1e-3)}, "not reproduced"),
    ("b-loose", {("line-0.02", "tail/risk"): (1.05, 0.1)}, "inconclusive"),
    ("c", {("sampled-0.2", FLIP_END): (3.0, 1e-3)}, "not reproduced"),
    ("c", {("sampled-0.2", FLIP_END): (2.2, 0.3)}, "inconclusive"),
    ("c", {("sampled-0.2", "risk@100"): (4.0, 1e-3)}, "not reproduced"),
    ("c", {("sampled-0.2", "risk@2000"): (0.1, 1e-3)}, "not reproduced"),
    ("d", {("line-0.02", "average/risk"): (3.0, 1e-3)}, "not reproduced"),
    ("d", {("line-0.02", "average/risk"): (2.1, 0.3)}, "inconclusive"),
    ("e", {("additive-0.05", "tail/risk"): (0.9, 1e-3)}, "not reproduced"),
    ("e", {("sampled-0.4", "tail/risk"): (1.0, 0.2)}, "inconclusive"),
    ("f", {("line-0.1-decay", "bias"): (1.2, 1e-3)}, "not reproduced"),
    ("f", {("line-0.1-decay", "variance"): (1.0, 0.2)}, "inconclusive"),
    ("f", {("line-0.1", "variance"): (0.8, 1e-3)}, "not reproduced"),  # decay would raise the variance
    ("g", {("constant-moderate-x1", ""): (-0.08, 1e-4)}, "not reproduced"),
    ("g", {("constant-moderate-x1", ""): (-0.05, 5e-3)}, "inconclusive"),
    ("h", {("tiny-lr-constant-none-100", ""): (-0.05, 1e-4)}, "not reproduced"),
    ("h", {("tiny-lr-constant-none-100", ""): (-0.02, 1e-2)}, "inconclusive"),
    ("h-first", {("tiny-lr-constant-none-20", ""): (-0.02, 1e-4)}, "not reproduced"),
    ("h-first", {("tiny-lr-constant-none-20", ""): (-0.003, 1e-2)}, "inconclusive"),
    ("h-early", {("tiny-lr-constant-large-20", ""): (0.03, 1e-4)}, "not reproduced"),
    ("h-early", {("tiny-lr-constant-large-20", ""): (0.0133, 2e-3)}, "inconclusive"),
    # The run with moderate decay is only 0.008 above the one without: branches as close as that say nothing.
    ("h-early", {("constant-moderate-x1", "400"): (-0.04, 1e-4)}, "inconclusive"),
    ("i-ema", {("constant-large-x1", "ema-0.99/"): (0.1, 1e-4)}, "not reproduced"),
    ("i-ema", {("constant-large-x1", "ema-0.99/"): (0.06, 5e-3)}, "inconclusive"),
    # Without a variance part there is nothing to recover, however good the average.
    ("i-mean", {("constant-large-x1", ""): (-0.3, 1e-4), ("constant-large-x1", "mean/"): (-0.6, 1e-4)}, "inconclusive"),
    ("i-mean", {("constant-large-x1", "mean/"): (0.1, 1e-4)}, "not reproduced"),
]


@pytest.mark.parametrize(("key", "change", "outcome"), CASES, ids=[f"{n}-{k}-{o}" for n, (k, _, o) in enumerate(CASES)])
def test_each_rule_reaches_each_outcome(tmp_path: Path, key: str, change: Change, outcome: str) -> None:
    """Only the claim's own arms are written."""
    claim = next(claim for claim in BIAS_VARIANCE.claims if claim.key == key)
    is_least_squares = key[0] in "abcdef"
    arms = tuple(arm for arm in PRESET.arms if isinstance(arm.build(0), LeastSquaresRun) == is_least_squares)
    results = results_of(tmp_path, functools.partial(readings_of, change=change), arms)
    finding = claim.measure(results, PRESET.main_size)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None


def test_least_squares_says_nothing_at_other_sizes(make: Make) -> None:
    results = make()
    for claim in BIAS_VARIANCE.claims:
        if claim.key[0] in "abcdef":
            finding = claim.measure(results, PRESET.main_size + 1)
            assert (finding.outcome, finding.effect) == ("inconclusive", None)


def test_figures_and_published_rows(make: Make) -> None:
    results = make()
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
    assert texts[0].startswith("0.050 ± 0.00")
    assert texts[1].startswith("0.160 ± 0.00")


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
    for claim in BIAS_VARIANCE.claims[:8]:
        finding = claim.measure(results, preset.main_size)
        assert finding.effect is not None
        assert math.isfinite(finding.effect.estimate)
    ratio = rules.average_removes_the_floor(results, preset.main_size).effect
    assert ratio is not None
    # 100 iterates at lr 0.02: a thousandth of what they would be if floor and average were mixed up.
    assert 0.2 < ratio.estimate < 5


def test_figures_of_two_noisy_seeds_stay_above_zero(tmp_path: Path) -> None:
    """Logarithmic axes refuse an interval that reaches below 0, which that of a mean over two seeds easily does."""
    arms = tuple(arm for arm in PRESET.arms if isinstance(arm.build(0), LeastSquaresRun))
    change: Change = {(arm.key, name): (1.0, 1.0) for arm in arms for name in ("risk", "tail/risk", "average/risk")}
    results = results_of(tmp_path, functools.partial(readings_of, change=change), arms, num_seeds=2)
    for rows in (figures.risk_along_the_run, figures.floor_against_rate, figures.ranking_along_the_run):
        assert all(row.low is None or row.low > 0 for row in rows(results))
