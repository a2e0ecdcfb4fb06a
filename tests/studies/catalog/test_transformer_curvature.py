"""The study of curvature in transformers: each rule on made-up numbers whose answer is known, presets, figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.transformer.quantities import LAMS, RATES, branch_of, key_of
from halflife.studies.catalog.curvature.transformer.study import TRANSFORMER_CURVATURE
from halflife.studies.evidence.claims import Finding, Panel, PointsPanel
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.branches import TextBranch
from halflife.studies.specs.text import TextRun
from tests.studies.smoke_in_process import smoke_results

NUM_SEEDS, NUM_BLOCKS = 5, 40
LAPTOP = TRANSFORMER_CURVATURE.presets["laptop"]
END = 3_072
Numbers = Mapping[tuple[str, str], Any]


class MadeUp:
    """What the rules ask of `halflife.studies.evidence.results.Results`: given numbers, with noise of each arm and seed."""

    def __init__(self, numbers: Numbers, jitter: float) -> None:
        self.numbers, self.jitter = numbers, jitter
        self.built = {arm.key: arm.build(0) for arm in LAPTOP.arms}
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in LAPTOP.arms]
        self.main_size = LAPTOP.main_size

    def _noise(self, *name: object) -> NDArray[np.float64]:
        return np.random.default_rng(zlib.crc32(repr(name).encode())).normal(0, self.jitter, NUM_SEEDS)

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key]

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert epoch is None
        if step is not None:
            return np.asarray(self.numbers[key, f"{name} at {step}"] + self._noise(key, name, step), dtype=np.float64)
        if name != "val/loss_blocks":
            return np.asarray(self.numbers[key, name] + self._noise(key, name), dtype=np.float64)
        blocks_N = np.random.default_rng(3).normal(0, 0.3, NUM_BLOCKS)
        own_SN = np.random.default_rng(zlib.crc32(key.encode())).normal(0, self.jitter, (NUM_SEEDS, NUM_BLOCKS))
        return np.asarray(self.read(key, "val/loss", size)[:, None] + blocks_N + own_SN, dtype=np.float64)

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        curve_E = np.asarray(self.numbers[key, f"{metric} along"], dtype=np.float64)
        noise_ES = np.array([self._noise(key, metric, index) for index in range(len(curve_E))])
        steps_E = np.arange(len(curve_E), dtype=np.float64)
        return [(steps_E, np.asarray(curve_E + noise_ES[:, seed], dtype=np.float64)) for seed in range(NUM_SEEDS)]


def training(none: tuple[float, float], strong: tuple[float, float]) -> Numbers:
    """Training losses half-way and at the end, at the large rate."""
    pairs = {"none": none, "strong": strong}
    return {
        (key_of("large", lam), f"train/loss at {step}"): loss
        for lam, losses in pairs.items()
        for step, loss in zip((END // 2, END), losses, strict=True)
    }


def after(val: Mapping[str, float], train: Mapping[str, float] | None = None) -> dict[tuple[str, str], float]:
    """Losses after branches, by arm."""
    found = {(f"{key}-branch", "val/loss"): loss for key, loss in val.items()}
    return found | {(f"{key}-branch", "train/loss"): loss for key, loss in (train or {}).items()}


def two(strong: float, none: float) -> dict[str, float]:
    return {"large-strong": strong, "large-none": none}


def four(large: tuple[float, float], small: tuple[float, float]) -> Numbers:
    """Validation losses after the branches, without decay and with."""
    pairs = zip(RATES, (large, small), strict=True)
    return after(
        {key_of(rate, lam): v for rate, pair in pairs for lam, v in zip(("none", "strong"), pair, strict=True)}
    )


def curves(none: list[float], decay: list[float], branches: float = 9.0) -> Numbers:
    """Validation losses along the runs with and without decay, the same at both rates; branches are no better."""
    arms = [(rate, lam) for rate in RATES for lam in LAMS]
    return after({key_of(*arm): branches for arm in arms}) | {
        (key_of(rate, lam), "val/loss along"): none if lam == "none" else decay for rate, lam in arms
    }  # fmt: skip


def measured(metric: str, where: str, values: Mapping[str, float]) -> Numbers:
    if where == "branch":
        return {(f"{key}-branch", metric): value for key, value in values.items()}
    return {(key, f"ema-0.99/{metric}"): value for key, value in values.items()}


def ranked(metric: str, curvature: list[float], losses: list[float]) -> Numbers:
    keys = [branch_of(rate, lam) for rate in RATES for lam in LAMS]
    return {(key, metric): value for key, value in zip(keys, curvature, strict=True)} | {
        (key, "val/loss"): value for key, value in zip(keys, losses, strict=True)
    }


LOSSES = [3.0, 2.5, 2.0, 2.8, 2.6, 2.4]
CASES: list[tuple[str, Numbers, float, str, float]] = [
    ("plateau", training((1.3, 0.9), (2.06, 1.98)), 1e-3, "reproduced", 2.2),
    ("plateau", training((1.3, 0.9), (2.38, 1.98)), 0.02, "undecided", 2.2),  # not yet: 0.37 - 2 * 0.19 is 0 within noise
    ("plateau", training((1.3, 0.9), (2.9, 1.98)), 1e-3, "not reproduced", 2.2),  # both fall
    ("plateau", training((1.3, 0.9), (1.55, 1.5)), 1e-3, "not reproduced", 1.667),  # not held up
    ("plateau", training((1.3, 0.9), (2.06, 1.98)), 0.2, "undecided", 2.2),
    ("generalizes", after(two(2.5, 4.5), two(1.8, 0.9)), 1e-3, "reproduced", -2.0),
    ("generalizes", after(two(4.5, 4.4), two(1.8, 0.9)), 1e-3, "not reproduced", 0.1),
    ("generalizes", after(two(4.3, 4.5), two(0.5, 0.9)), 1e-3, "not reproduced", -0.2),  # a larger gap
    ("generalizes", after(two(4.55, 4.5), two(1.8, 0.9)), 0.1, "undecided", 0.05),
    ("early", curves([5.0, 2.7, 3.5], [5.0, 2.6, 2.5]), 1e-3, "not tested", -0.2),  # two rates have no best one
    ("early", curves([5.0, 2.5, 3.5], [5.0, 2.7, 2.6]), 1e-3, "not tested", 0.1),
    ("early", curves([5.0, 2.6, 3.5], [5.0, 2.7, 2.58]), 0.05, "not tested", -0.02),
    ("early", {**curves([5.0, 2.7, 3.5], [5.0, 2.6, 2.5], branches=2.3), **after({"large-none": 2.2})}, 1e-3,
     "not tested", 0.1),  # branches count too
    ("small-rate", four((4.5, 2.5), (4.0, 3.9)), 1e-3, "reproduced", 0.9),
    ("small-rate", four((4.5, 2.5), (4.0, 2.2)), 1e-3, "not reproduced", -0.8),
    ("small-rate", four((4.5, 4.3), (4.0, 3.9)), 0.1, "undecided", 0.0),
    ("small-rate", four((2.5, 4.5), (4.0, 3.9)), 1e-3, "not tested", -1.1),  # nothing at the large rate
    ("hessian-branch-decay", measured("hessian_trace", "branch", two(10, 40)), 0.1, "reproduced", 0.25),
    ("hessian-branch-decay", measured("hessian_trace", "branch", two(40, 10)), 0.1, "not reproduced", 4.0),
    ("hessian-branch-decay", measured("hessian_trace", "branch", two(10, 10)), 1.0, "undecided", 1.0),
    ("hessian-average-decay", measured("hessian_trace", "average", two(10, 40)), 0.1, "reproduced", 0.25),
    ("hessian-average-rate", measured("hessian_trace", "average", {"large-strong": 10, "small-strong": 20}), 0.1,
     "reproduced", 0.5),
    ("jacobian-branch-rate", measured("jacobian_norm", "branch", {"large-strong": 20, "small-strong": 10}), 0.1,
     "not reproduced", 2.0),
    ("jacobian-branch-decay", measured("jacobian_norm", "branch", two(10, 40)), 0.1, "reproduced", 0.25),
    ("jacobian-average-decay", measured("jacobian_norm", "average", two(40, 10)), 0.1, "not reproduced", 4.0),
    ("jacobian-average-rate", measured("jacobian_norm", "average", {"large-strong": 10, "small-strong": 10}), 1.0,
     "undecided", 1.0),
    ("hessian-branch-rate", measured("hessian_trace", "branch", {"large-strong": 10, "small-strong": 20}), 0.1,
     "reproduced", 0.5),
    ("hessian-ranks", ranked("hessian_trace", [10 * loss for loss in LOSSES], LOSSES), 1e-3, "reproduced", 1.0),
    ("hessian-ranks", ranked("hessian_trace", [50 - 10 * loss for loss in LOSSES], LOSSES), 1e-3, "not reproduced", -1.0),
    ("jacobian-ranks", ranked("jacobian_norm", [3.0, 1.0, 2.0, 2.1, 2.9, 2.2], LOSSES), 0.3, "undecided", 0.2),
    ("jacobian-ranks", ranked("jacobian_norm", LOSSES, LOSSES), 1e-3, "reproduced", 1.0),
]  # fmt: skip


def measure(key: str) -> Callable[[StudyResults, int], Finding]:
    return next(claim.decide for claim in TRANSFORMER_CURVATURE.claims if claim.key == key)


@pytest.mark.parametrize(("key", "numbers", "jitter", "outcome", "effect"), CASES)
def test_a_claim_is_decided_as_its_rule_says(
    key: str, numbers: Numbers, jitter: float, outcome: str, effect: float
) -> None:
    finding = measure(key)(cast("StudyResults", MadeUp(numbers, jitter)), 32)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=0.005 + 3 * jitter if jitter < 0.2 else 0.5)
    assert finding.effect.num_seeds == NUM_SEEDS


def test_every_claim_has_cases() -> None:
    assert {case[0] for case in CASES} == {claim.key for claim in TRANSFORMER_CURVATURE.claims}


def test_a_trace_below_0_has_no_ratio() -> None:
    numbers = measured("hessian_trace", "branch", two(-1.0, 10.0))
    finding = measure("hessian-branch-decay")(cast("StudyResults", MadeUp(numbers, 0.01)), 32)
    assert (finding.outcome, finding.effect) == ("not tested", None)
    assert "not above 0 in every seed" in finding.reason
    both = measure("hessian-branch-decay")(
        cast("StudyResults", MadeUp(measured("hessian_trace", "branch", two(-10.0, -20.0)), 0.01)), 32
    )
    assert both.outcome == "not tested"  # a ratio of two traces below 0 says nothing of how curved they are


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for _ in range(20):
        x_A, y_A = rng.integers(0, 5, (2, 7)).astype(float)  # with ties
        assert rank_correlation(x_A, y_A) == pytest.approx(spearmanr(x_A, y_A).statistic, abs=1e-9)
    assert rank_correlation(np.ones(4), np.arange(4.0)) == 0


def test_the_best_step_is_chosen_on_the_other_seeds() -> None:
    """Noise alone, and many more evaluations with decay than without: a choice on the same seed would favour them."""
    numbers = curves([2.5] * 12, [2.5] * 12)
    finding = measure("early")(cast("StudyResults", MadeUp(numbers, 0.1)), 32)
    assert finding.effect is not None
    assert finding.effect.low < 0 < finding.effect.high


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_branches_share_one_rate_and_start_at_the_end_of_their_runs(name: str) -> None:
    preset = TRANSFORMER_CURVATURE.presets[name]
    specs = {(arm.key, arm.size): arm.build(3) for arm in preset.arms}
    rates = set()
    for (key, size), spec in specs.items():
        if isinstance(spec, TextRun):
            assert (spec.order, spec.keep_at[-1], spec.average_from) == ("epochs", spec.num_steps, None)
            continue
        assert isinstance(spec, TextBranch)
        assert spec.of == specs[key.removesuffix("-branch"), size]
        assert spec.at == spec.of.num_steps
        rates.add(round(spec.of.lr * spec.lr_factor, 12))
    assert len(rates) == 1
    run = cast("TextRun", specs["large-strong", preset.main_size])
    # The regime: many passes, and far longer than the time scale of decay at the large rate.
    if preset.decides:
        assert run.num_train_tokens is not None
        assert run.num_steps * run.batch_size * run.context / run.num_train_tokens >= 50
        assert run.lr * float(run.decay.removesuffix(")").rpartition("=")[2]) * run.num_steps > 10


def test_points_show_every_setting() -> None:
    numbers = ranked("hessian_trace", [10 * loss for loss in LOSSES], LOSSES)
    panel = next(panel for panel in TRANSFORMER_CURVATURE.panels if panel.file_slug == "scatter-hessian")
    assert isinstance(panel, PointsPanel)
    rows = panel.rows(cast("StudyResults", MadeUp(numbers, 1e-3)))
    assert [row.series for row in rows][:2] == ["lr 0.01, lam 0", "lr 0.01, lam 0.3"]
    assert [row.y for row in rows] == pytest.approx(LOSSES, abs=0.01)
    assert [row.x for row in rows] == pytest.approx([10 * loss for loss in LOSSES], abs=0.01)


@pytest.mark.slow
def test_the_smoke_preset_runs_decides_and_draws(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, TRANSFORMER_CURVATURE)
    assert results.num_finished == results.num_planned == 24
    verdicts = results.verdicts()
    assert all(v.finding.reason.startswith("the preset is too small to decide") for v in verdicts)
    for panel in TRANSFORMER_CURVATURE.panels:
        if isinstance(panel, PointsPanel):
            assert len(panel.rows(results)) == 6
        else:
            assert isinstance(panel, Panel)
            assert panel.metric in results.frame.columns
            assert set(panel.arms or ()) <= {arm["key"] for arm in results.arms}
