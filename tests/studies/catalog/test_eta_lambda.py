"""The study of the product of learning rate and decay: its rules on made-up grids whose answer is known, and its figures."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import spearmanr

from halflife.studies.catalog.images.eta_lambda import quantities as rules
from halflife.studies.catalog.images.eta_lambda.study import ETA_LAMBDA, ETA_LAMBDA_VGG
from halflife.studies.evidence.claims import HeatPanel, PointsPanel
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs import ImageRun
from tests.studies.catalog.made_up_images import NUM_SEEDS, MadeUpImages
from tests.studies.smoke_in_process import smoke_results

ARMS = ETA_LAMBDA.presets["laptop"].arms
STEPS_PER_EPOCH = 10
BEST = 4e-3


def product(spec: ImageRun) -> float:
    return spec.lr * spec.lam


def doublings(spec: ImageRun) -> float:
    """How far from the best product, in factors of 2; no decay is as good as far away."""
    return math.log2(product(spec) / BEST) if spec.lam else -6.0


def across(spec: ImageRun) -> float:
    """The other direction of the grid, in factors of 2."""
    return math.log2(spec.lr / spec.lam) if spec.lam else math.log2(spec.lr)


def u(spec: ImageRun) -> float:
    return 0.2 + 0.005 * doublings(spec) ** 2


def made_up(
    error: Callable[[ImageRun], float] = u,
    loss: Callable[[ImageRun], float] = lambda spec: 0.3 * 1.5 ** doublings(spec),
    noise: Callable[[ImageRun], float] = lambda spec: 0.3 * 1.3 ** doublings(spec),
    jacobian: Callable[[ImageRun], float] = lambda spec: 30 * 0.6 ** doublings(spec),
    **given: Any,
) -> StudyResults:
    errors = {"ema-0.98/test/error": error}
    values = {"train/running_loss": loss, "noise_scale": noise, "ema-0.98/jacobian_norm": jacobian}
    return cast("StudyResults", MadeUpImages(ARMS, errors=errors, values=values, **given))


def both(spec: ImageRun, *, by: float) -> float:
    """A loss that also depends on lr / lam."""
    return 0.3 + 0.05 * doublings(spec) + by * across(spec)


CASES: list[tuple[str, str, dict[str, Any], str, float | None]] = [
    # The smallest forgotten product is two doublings left of the best one, the largest three right of it.
    ("a U", "u-shape", {}, "reproduced", 2.0),
    ("falls all the way", "u-shape", {"error": lambda s: 0.2 - 0.01 * doublings(s)}, "not reproduced", -1.0),
    ("flat", "u-shape", {"error": lambda s: 0.2, "jitter": 2e-3}, "undecided", None),
    ("25 epochs", "tau", {}, "not reproduced", 25.0),
    # As in 62.5 steps an epoch: tau at the best product is 4 epochs.
    ("4 epochs", "tau", {"steps_per_epoch": 62.5}, "reproduced", 4.0),
    ("lowest at an end", "tau", {"error": lambda s: 0.2 - 0.01 * doublings(s)}, "not tested", None),
    ("on the bound", "tau", {"steps_per_epoch": 125.0 / 3, "jitter": 4e-3}, "undecided", None),
    ("rises", "loss-rises", {}, "reproduced", None),
    ("rises with lr instead", "loss-rises", {"loss": lambda s: s.lr}, "not reproduced", None),
    ("rises by chance", "loss-rises", {"loss": lambda s: 1.0, "jitter": 0.1}, "not reproduced", None),
    ("rises, noisily", "noise-rises", {"jitter": 0.28}, "undecided", None),
    ("falls", "jacobian-falls", {}, "reproduced", None),
    ("does not fall", "jacobian-falls", {"jacobian": lambda s: 30 * 1.2 ** doublings(s)}, "not reproduced", None),
    ("falls with lr", "jacobian-rate", {"jacobian": lambda s: s.lr**-0.4 * (1 + s.lam)}, "reproduced", -0.4),
    ("rises with lr", "jacobian-rate", {"jacobian": lambda s: s.lr**0.3 / (1e-3 + s.lam)}, "not reproduced", 0.3),
    ("no matter of lr", "jacobian-rate", {"jacobian": lambda s: 30.0, "jitter": 0.1}, "undecided", None),
    ("the product alone", "collapse-error", {}, "reproduced", 1.0),
    ("the product alone, any shape", "collapse-loss", {"loss": lambda s: 2 + math.sin(3 * doublings(s))}, "reproduced", 1.0),
    ("log of a power", "collapse-jacobian", {}, "reproduced", 1.0),
    ("lr / lam as well", "collapse-loss", {"loss": lambda s: both(s, by=0.04)}, "not reproduced", None),
    ("neither matters", "collapse-noise", {"noise": lambda s: 1.0, "jitter": 0.05}, "not tested", None),
    ("forgets nothing", "unforgotten", {"error": lambda s: u(s) + (0.02 if doublings(s) < -3 else 0.002) * across(s)},
     "reproduced", None),
    ("spreads everywhere", "unforgotten",
     {"error": lambda s: 0.3 + (0.02 if doublings(s) > -3 else 0.002) * across(s)}, "not reproduced", None),
    ("the same spread", "unforgotten", {"error": lambda s: 0.3, "jitter": 0.01}, "undecided", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "given", "outcome", "effect"), CASES, ids=[f"{c[1]}: {c[0]}" for c in CASES])
def test_a_rule_decides_what_it_should(
    name: str, key: str, given: dict[str, Any], outcome: str, effect: float | None
) -> None:
    claim = next(claim for claim in ETA_LAMBDA.claims if claim.key == key)
    finding = claim.decide(made_up(**given), 8)
    assert finding.outcome == outcome, finding.reason
    if effect is not None:
        assert finding.effect is not None
        assert finding.effect.estimate == pytest.approx(effect, rel=0.03, abs=0.02)
        assert finding.effect.low <= finding.effect.estimate <= finding.effect.high


def test_what_the_product_explains_is_the_share_between_its_diagonals() -> None:
    results = made_up(loss=functools.partial(both, by=0.02), jitter=1e-7)
    shares = rules.shares_explained(results, 8, "loss")
    cells = [
        cell for cells in rules.shared(rules.forgotten(rules.cells_of(results, 8))).values() for cell in cells
    ]  # by hand: the share of the sum of squares that lies between means at equal product
    y = np.array([both(cast("ImageRun", results.spec(cell.key, 8)), by=0.02) for cell in cells])
    p = np.array([cell.product for cell in cells])
    means = np.array([y[p == one].mean() for one in p])
    by_hand = 1 - ((y - means) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert 0.5 < by_hand < 0.95
    # The seeds' common factor of 1 % scales what is explained in one by what is fitted in the others.
    assert shares[0] == pytest.approx([by_hand] * NUM_SEEDS, abs=2e-3)
    assert shares[1] == pytest.approx([1.0] * NUM_SEEDS, abs=2e-3)


@pytest.mark.parametrize(("little", "outcome"), [(0.0, "reproduced"), (0.3, "not tested")])
def test_where_little_is_explained_there_is_nothing_to_share(
    little: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product_S = np.array([0.60, 0.61, 0.62, 0.61]) - little
    monkeypatch.setattr(rules, "shares_explained", lambda *_: (product_S, product_S + 0.01))
    finding = next(claim for claim in ETA_LAMBDA.claims if claim.key == "collapse-error").decide(made_up(), 8)
    assert finding.outcome == outcome
    assert finding.effect is not None
    assert finding.effect.low > 0.9


def test_the_spread_at_equal_product_is_that_of_the_cells() -> None:
    def error(spec: ImageRun) -> float:
        return 0.3 + 0.02 * across(spec) * (1 if doublings(spec) < -3 else 0.5)

    results = made_up(error, jitter=1e-7)
    # In factors of 2, five cells without decay at -2 to 2 from their middle, two of 2.5e-4 at -1 and 1; 2 points each.
    expected = [2 * math.sqrt((4 + 1 + 0 + 1 + 4 + 1 + 1) / 5)] * NUM_SEEDS
    assert rules.Spread("error", rules.unforgotten)(results, 8) == pytest.approx(expected, rel=0.03)


def test_a_column_more_explains_no_noise_of_a_seed_left_out() -> None:
    rng = np.random.default_rng(0)
    product_CL, both_CQ = rules.designs(rules.shared(rules.forgotten(rules.cells_of(made_up(), 8))))
    assert both_CQ.shape[1] == product_CL.shape[1] + 3
    assert np.linalg.matrix_rank(both_CQ) == both_CQ.shape[1]
    values_CS = rng.normal(size=(len(product_CL), 400))
    shares = [rules.explained(design, values_CS) for design in (product_CL, both_CQ)]
    assert shares[0].mean() < 0.01
    assert shares[1].mean() < shares[0].mean()


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        x, y = rng.integers(0, 5, 19).astype(float), rng.integers(0, 9, 19).astype(float)
        assert rank_correlation(x, y) == pytest.approx(float(spearmanr(x, y)[0]))
    assert rank_correlation(np.ones(4), np.arange(4.0)) == 0


def test_cells_are_forgotten_where_the_run_is_three_lifetimes_long() -> None:
    cells = rules.cells_of(made_up(), 8)
    assert len(cells) == 30
    assert [(c.lr, c.lam) for c in cells] == sorted((c.lr, c.lam) for c in cells)
    assert {(c.num_steps, c.num_epochs, c.average) for c in cells} == {(3_200, 320, "ema-0.98/")}
    inside = rules.diagonals(rules.forgotten(cells))
    assert {p: len(found) for p, found in inside.items()} == {
        0.001: 4, 0.002: 5, 0.004: 4, 0.008: 3, 0.016: 2, 0.032: 1
    }  # fmt: skip
    assert min(inside) * 3_200 == pytest.approx(3.2)
    assert set(rules.shared(rules.forgotten(cells))) == set(inside) - {0.032}
    apart = rules.diagonals(rules.unforgotten(cells))
    assert {p: len(found) for p, found in apart.items()} == {0.0: 5, 0.000125: 1, 0.00025: 2}


def test_the_loss_is_the_median_of_the_last_quarter() -> None:
    class Spiked(MadeUpImages):
        def series(self, key: str, metric: str, size: int) -> Any:
            found = super().series(key, metric, size)
            for epochs, losses in found:
                losses[epochs <= 240] = 100.0
                losses[-3:] = 1_000.0
            return found

    spiked = Spiked(ARMS, errors={}, values={"train/running_loss": lambda spec: 0.3})
    results = cast("StudyResults", spiked)
    values_CS = rules.values_of(results, 8, rules.cells_of(results, 8), "loss")
    assert values_CS.shape == (30, NUM_SEEDS)
    assert values_CS == pytest.approx(0.3, rel=0.05)


def test_too_small_a_grid_is_not_tested_and_no_error() -> None:
    arms = [arm for arm in ARMS if arm.key in {"lr 0.05, lam 0", "lr 0.1, lam 0.04"}]
    constant = dict.fromkeys(("train/running_loss", "noise_scale", "ema-0.98/jacobian_norm"), lambda spec: 1.0)
    results = cast("StudyResults", MadeUpImages(arms, errors={"ema-0.98/test/error": u}, values=constant))
    for claim in ETA_LAMBDA.claims:
        finding = claim.decide(results, 8)
        assert (finding.outcome, finding.effect) == ("not tested", None)
        assert finding.reason.startswith("too few settings")


def test_figures_show_the_grid_and_the_collapse() -> None:
    results = made_up()
    found = {panel.file_slug: panel for panel in ETA_LAMBDA.panels}
    heat = found["grid-error"]
    assert isinstance(heat, HeatPanel)
    cells = {(cell.x, cell.y): cell.value for cell in heat.cells(results)}
    assert len(cells) == 30
    assert cells[0.2, 0.02] == pytest.approx(20, abs=1.1)  # the seeds' common level moves by 1 point
    curve = found["product-jacobian"]
    assert isinstance(curve, PointsPanel)
    rows = curve.rows(results)
    line = [row for row in rows if row.style == "line"]
    assert [row.x for row in line] == sorted(1.25e-4 * 2**k for k in range(9))
    assert [row.y for row in line] == sorted((row.y for row in line), reverse=True)
    assert sum(row.style == "point" for row in rows) == 25  # without decay there is no place on a logarithmic axis
    by_rate = found["jacobian-by-rate"]
    assert isinstance(by_rate, PointsPanel)
    assert {row.series for row in by_rate.rows(results)} == {
        f"lam {lam:g}" for lam in (0, 0.0025, 0.005, 0.01, 0.02, 0.04)
    }


def test_the_papers_numbers_stand_beside_ours_and_its_slip_is_named() -> None:
    rows = ETA_LAMBDA.published
    assert [row.published for row in rows if row.how == "text"] == ["0.005"]
    assert {row.how for row in rows} == {"text", "fig-read"}
    ours = [row.ours(made_up()) for row in rows]
    assert ours[0] == ours[1] == ours[2]
    low, high = (float(end) for end in ours[0].split("[")[1].rstrip("]").split(","))
    assert low <= BEST <= high
    assert ours[3].startswith("25.")
    assert ours[3].endswith(" of 320")
    assert ours[4].endswith("at 0.032")
    assert ours[5].endswith("at 0.032")
    edge = rows[0].ours(made_up(error=lambda spec: 0.2 - 0.01 * doublings(spec)))
    assert edge == "none: the lowest value of the test error is at lr * lam 0.032, an edge of its grid"


@pytest.mark.parametrize("study", [ETA_LAMBDA, ETA_LAMBDA_VGG], ids=lambda study: study.name)
def test_grids_share_products_and_stay_in_the_budget(study: Any) -> None:
    # Seconds of one core a step of 50 images and a run's readings, as measured on seed 1000.
    per_step = {("resnet", 4): 2.2e-3, ("resnet", 8): 3.0e-3, ("resnet", 16): 5.5e-3}
    per_step |= {("vgg", 8): 1.2e-3, ("vgg", 16): 1.5e-3, ("vgg", 32): 2.5e-3}
    for name, budget in (("laptop", 600), ("night", 5_400)):
        preset = study.presets[name]
        seconds = 0.0
        for arm in preset.arms:
            spec = cast("ImageRun", arm.build(0))
            steps = spec.num_epochs * (cast("int", spec.num_train) // spec.batch_size)
            seeds = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
            seconds += seeds * (steps * per_step[spec.model, spec.width] + 1.5)
            assert spec.drop_epoch == spec.num_epochs  # no drop
            assert dataclasses.replace(spec, seed=1) == arm.build(1)
        assert seconds / 2 <= budget, f"{study.name} {name}: {seconds:.0f} s"


@pytest.mark.parametrize(
    "study", [ETA_LAMBDA_VGG, pytest.param(ETA_LAMBDA, marks=pytest.mark.slow)], ids=lambda study: study.name
)
def test_the_smoke_preset_runs_and_is_read(study: Any, tmp_path: Path) -> None:
    results = smoke_results(tmp_path, study)
    assert (results.num_finished, results.failures) == (24, [])
    for verdict in results.verdicts():
        assert verdict.finding.outcome == "not tested"
        assert verdict.finding.reason == "the preset is too small to decide, it is made for tests"
        assert verdict.finding.effect is not None or verdict.claim.key == "tau"
    for panel in study.panels:
        found = panel.cells(results) if isinstance(panel, HeatPanel) else panel.rows(results)
        assert len(found) >= 12
    assert all(row.ours(results) for row in study.published)
