"""The study of bad minima: its rules and figures on made-up errors with known gaps, and what its arms are."""

from __future__ import annotations

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

from halflife.studies.catalog import get_study
from halflife.studies.catalog.images import bad_minima as rules
from halflife.studies.catalog.images.bad_minima import BAD_MINIMA
from halflife.studies.evidence.claims import Finding, HeatPanel, PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.specs import ImageBranch, ImageRun, RunSpec

NUM_SEEDS, NUM_TEST = 5, 4000
LAPTOP = BAD_MINIMA.presets["laptop"]

RESNET_GAPS = {"small-none": 2.5, "small-decay": 0.5, "small-matched": 0.2, "large-none": 0.6, "large-decay": 0.1}
MLP_GAPS = {
    rules.grid_setting(lr, product): 4.0 if not product else 1.2 - 1.5 * (index - 1)
    for lr in rules.GRID_RATES
    for index, product in enumerate(rules.GRID_PRODUCTS)
}  # 4, 1.2, -0.3, -1.8
MLP_GAPS["0.1-0.001"] = -0.2

Change = Mapping[str, float]
"""Setting, with its model before it, to another gap; ``<arm> train`` to another training error in per cent."""


class MadeUp:
    """What rules and figures ask of `Results`, without a store: gaps in points as given, spread over seeds by ``jitter``."""

    def __init__(self, change: Change | None = None, jitter: float = 0.1) -> None:
        self.specs = {arm.key: arm.build(0) for arm in LAPTOP.arms}
        self.main_size, self.change, self.jitter = LAPTOP.main_size, change or {}, jitter

    def spec(self, key: str, size: int) -> RunSpec:
        return self.specs[key]

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: int | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert step is None
        if name == "train/error":
            value = self.change.get(f"{key} train", 0.1) / 100
            return value * np.array([0.5, 0.5, 1.0, 1.5, 1.5])
        assert name == "test/wrong"
        model, start, setting = key.split("-", 2)
        # The number of wrong examples is that of the difference exactly, but for whole examples; a fresh start has 20 %.
        level = 20.0
        if start == rules.BAD:
            gaps = RESNET_GAPS if model == rules.RESNET else MLP_GAPS
            level += self.change.get(f"{model} {setting}", gaps[setting])
            noise_S = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(NUM_SEEDS)
            levels_S = level + self.jitter * (noise_S - noise_S.mean())
        else:
            levels_S = np.full(NUM_SEEDS, level)
        rows = [np.arange(NUM_TEST) < round(NUM_TEST * value / 100) for value in levels_S]
        return np.array(rows, dtype=np.float64)


def measured(key: str, change: Change | None = None, jitter: float = 0.1) -> Finding:
    (claim,) = (claim for claim in BAD_MINIMA.claims if claim.key == key)
    return claim.decide(cast("Results", MadeUp(change, jitter)), LAPTOP.main_size)


def test_with_the_paper_right_every_claim_is_reproduced() -> None:
    slope = [gap for setting, gap in MLP_GAPS.items() if not setting.endswith("-0")]
    x = np.log10([product for _, product in itertools.product(rules.GRID_RATES, rules.GRID_PRODUCTS[1:])])
    effects = {
        "bad": 2.5, "escape": 0.1, "rate-alone": 0.6 - 1.25, "decay-alone": 0.5 - 1.25, "product": 0.2 - 1.25,
        "mlp-bad": 4.0, "mlp-escape": -0.2, "mlp-falls": float(np.polyfit(x, slope, 1)[0]), "mlp-product": 0.0,
    }  # fmt: skip
    assert set(effects) == {claim.key for claim in BAD_MINIMA.claims}
    for key, effect in effects.items():
        finding = measured(key)
        assert finding.outcome == "reproduced", (key, finding.reason)
        assert finding.effect is not None
        assert finding.effect.estimate == pytest.approx(effect, abs=0.06), key
        assert finding.effect.low <= finding.effect.estimate <= finding.effect.high


CASES: list[tuple[str, Change, float, str]] = [
    ("bad", {"resnet small-none": 0.3}, 0.1, "not reproduced"),
    ("bad", {"resnet small-none": 1.2}, 1.0, "undecided"),
    ("bad", {"resnet-random train": 3.0}, 0.1, "not tested"),  # random labels were not fitted
    ("bad", {"resnet-bad-small-none train": 3.0}, 0.1, "not tested"),  # nor the true ones
    ("bad", {"resnet-fresh-small-none train": 3.0}, 0.1, "reproduced"),  # a fresh start need not be through
    ("escape", {"resnet large-decay": 2.0}, 0.1, "not reproduced"),
    ("escape", {"resnet large-decay": -2.0}, 0.1, "not reproduced"),  # as far on the other side
    ("escape", {"resnet large-decay": 0.9}, 0.5, "undecided"),
    ("escape", {"resnet small-none": 0.8}, 0.1, "not tested"),  # there was nothing to leave
    ("rate-alone", {"resnet large-none": 2.2}, 0.1, "not reproduced"),
    ("rate-alone", {"resnet large-none": 1.2}, 0.5, "undecided"),
    ("rate-alone", {"resnet small-none": 0.0}, 0.1, "not tested"),
    ("decay-alone", {"resnet small-decay": 2.2}, 0.1, "not reproduced"),
    ("decay-alone", {"resnet small-decay": 1.2}, 0.5, "undecided"),
    ("product", {"resnet small-matched": 2.2}, 0.1, "not reproduced"),
    ("product", {"resnet small-matched": -2.2}, 0.1, "not reproduced"),  # a gap of the other sign is no closed one
    ("product", {"resnet small-matched": -1.2}, 0.5, "undecided"),
    ("mlp-bad", {"mlp 0.01-0": 0.3}, 0.1, "not reproduced"),
    ("mlp-bad", {"mlp-random train": 3.0}, 0.1, "not tested"),
    ("mlp-escape", {"mlp 0.1-0.001": 2.0}, 0.1, "not reproduced"),
    ("mlp-escape", {"mlp 0.1-0.001": 1.0}, 0.5, "undecided"),
    ("mlp-falls", {f"mlp {lr:g}-0.001": 4.0 for lr in rules.GRID_RATES}, 0.1, "not reproduced"),
    ("mlp-falls", {f"mlp {lr:g}-0.001": 1.2 for lr in rules.GRID_RATES}, 1.0, "undecided"),
    ("mlp-product", {"mlp 0.01-0.0003": 3.0}, 0.1, "not reproduced"),
    ("mlp-product", {"mlp 0.01-0.0003": 0.6}, 0.5, "undecided"),
    ("mlp-product", {"mlp 0.01-0": 0.9}, 0.1, "not tested"),
]


@pytest.mark.parametrize(
    ("key", "change", "jitter", "outcome"), CASES, ids=[f"{n}-{case[0]}-{case[3]}" for n, case in enumerate(CASES)]
)
def test_each_rule_reaches_each_outcome(key: str, change: Change, jitter: float, outcome: str) -> None:
    finding = measured(key, change, jitter)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None


def test_every_claim_has_a_case_that_refutes_it() -> None:
    assert {key for key, _, _, outcome in CASES if outcome == "not reproduced"} == {c.key for c in BAD_MINIMA.claims}


def test_every_mlp_is_run_beside_the_main_size_alone() -> None:
    for preset in BAD_MINIMA.presets.values():
        assert {arm.size for arm in preset.arms if arm.key.startswith(rules.MLP)} == {preset.main_size}


@pytest.mark.parametrize("name", sorted(BAD_MINIMA.presets))
def test_the_two_starts_of_a_setting_differ_in_nothing_else(name: str) -> None:
    preset = BAD_MINIMA.presets[name]
    arms = {(arm.key, arm.size): arm for arm in preset.arms}
    settings = 0
    for (key, size), arm in arms.items():
        if f"-{rules.BAD}-" not in key:
            continue
        bad, fresh = arm.build(7), arms[key.replace(rules.BAD, rules.FRESH), size].build(7)
        assert isinstance(bad, ImageBranch)
        assert isinstance(fresh, ImageRun)
        assert bad.then == fresh
        parent = arms[rules.parent_key(key.split("-")[0]), size].build(7)
        assert bad.of == parent
        assert (bad.of.label_noise, bad.of.lam, bad.of.keep_at) == (1.0, 0.0, (bad.of.num_epochs,))
        assert (fresh.label_noise, fresh.seed, bad.seed) == (0.0, 7, 7)
        settings += 1
    sizes = len({arm.size for arm in preset.arms})
    assert settings == 5 * sizes + 12
    specs = {key: arm.build(0) for (key, size), arm in arms.items() if size == preset.main_size}
    products = {}
    for setting in rules.SETTINGS:
        spec = cast("ImageRun", specs[rules.key_of(rules.RESNET, rules.FRESH, setting)])
        products[setting] = (spec.lr, spec.lam, spec.lr * spec.lam)
    assert products["small-matched"][2] == pytest.approx(products["large-decay"][2])
    assert products["small-decay"][1] == products["large-decay"][1]
    assert products["small-decay"][0] == products["small-none"][0] < products["large-none"][0]
    for lr, product in itertools.product(rules.GRID_RATES, rules.GRID_PRODUCTS):
        spec = cast("ImageRun", specs[rules.key_of(rules.MLP, rules.FRESH, rules.grid_setting(lr, product))])
        assert spec.lr == lr
        assert spec.lr * spec.lam == pytest.approx(product, rel=1e-3)


def test_figures() -> None:
    results = cast("Results", MadeUp())
    for panel in BAD_MINIMA.panels:
        if isinstance(panel, PointsPanel):
            assert len(panel.rows(results)) > 10
        elif isinstance(panel, HeatPanel):
            assert len(panel.cells(results)) in {5, 12}
        else:
            assert set(panel.arms or ()) <= {arm.key for arm in LAPTOP.arms}
    heat = {panel.slug: panel.cells for panel in BAD_MINIMA.panels if isinstance(panel, HeatPanel)}
    cells = {(cell.x, cell.y): cell.value for cell in heat["mlp-gaps"](results)}
    assert cells[0.01, 0.0] == pytest.approx(4.0, abs=0.1)
    assert cells[0.1, 0.001] == pytest.approx(-0.2, abs=0.1)
    cells = {(cell.x, cell.y): cell.value for cell in heat["resnet-gaps"](results)}
    assert cells[0.02, 0.0] == pytest.approx(2.5, abs=0.1)
    assert cells[0.02, 0.1] == pytest.approx(0.2, abs=0.1)
    assert BAD_MINIMA.published[0].ours(results).startswith("2.5")
    assert get_study("bad-minima").name == "bad-minima"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["bad-minima", "textbook"])
def test_the_smoke_presets_run_and_report(tmp_path: Path, name: str) -> None:
    """Trained, decided and drawn, branches after what they start from, by the real runner and with warnings as errors."""
    store = tmp_path / "store"
    command = [sys.executable, "-W", "error", "-m", "halflife", "study"]
    done = subprocess.run(
        [*command, "run", name, "--preset", "smoke", "--store", str(store), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # seconds on an idle machine
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    preset = get_study(name).presets["smoke"]
    digests = {arm.build(seed).digest() for arm in preset.arms for seed in range(preset.num_seeds)}
    assert len(list(store.glob("runs/*/run.json"))) == len(digests)
    told = subprocess.run(
        [*command, "verdicts", name, "--store", str(store), "--json"], capture_output=True, text=True, check=True
    )
    assert told.stdout.count('"not tested"') >= len(get_study(name).claims)
    assert get_study(name).title in (store / "report.html").read_text(encoding="utf-8")
