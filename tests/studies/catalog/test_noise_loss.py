"""The study of gradient noise against the loss: rules on made-up runs that follow known laws, and a small run for real."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from halflife.studies.catalog.curvature.noise_loss import DECAY, NOISE_LOSS, NONE, noise_of
from halflife.studies.evidence.claims import Arm
from halflife.studies.evidence.panels import PointsPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
from tests.studies.smoke_in_process import smoke_results

PRESET = NOISE_LOSS.presets["laptop"]
SPREAD = (-1.0, 0.2, 0.8)  # over seeds

World = dict[str, float]
"""How loss, noise and Jacobian go."""

NORMAL = {
    "end": 1e-3,  # the loss without decay at the end
    "floor": 0.2,  # the loss with decay
    "early": 1.0,  # slopes of noise / ||J||^2 in the loss, above and below a loss of 0.1
    "late": 2.0,
    "growth": 0.0,  # ||J||^2 = 1000 L^-growth
    "level": 0.05,  # noise / (||J||^2 L) at a loss of 1
    "decayed": 1.0,  # a factor on the noise with decay
    "spread": 0.02,  # of slopes over seeds
}


def readings_of(key: str, spec: ImageRun, seed: int, world: World) -> list[Reading]:
    at = NORMAL | world
    readings = []
    for number, epoch in enumerate(range(spec.probe_every, spec.num_epochs + 1, spec.probe_every)):
        share = epoch / spec.num_epochs
        wiggle = 1 + 0.1 * math.sin(5 * number + seed)
        loss = 2.0 * (at["end"] / 2.0) ** share * wiggle
        if key == DECAY:
            loss = max(loss, at["floor"] * wiggle)
        jacobian_sq = 1000 * loss ** -at["growth"]
        early, late = (at[name] + at["spread"] * SPREAD[seed] for name in ("early", "late"))
        noise = at["level"] * jacobian_sq * (loss**early if loss > 0.1 else 0.1 ** (early - late) * loss**late)
        if key == DECAY:
            noise *= at["decayed"]
        values = {"probe_loss": loss, "gradient_noise_trace": noise, "jacobian_norm": jacobian_sq**0.5}
        readings.append(Reading(step=10 * epoch, epoch=epoch, values=values | {"train/running_loss": loss}))
    return readings


def results_of(path: Path, source: Callable[[Arm, int], list[Reading]]) -> StudyResults:
    store = Store(path)
    store.create()
    arms = []
    for number, arm in enumerate(PRESET.arms):
        runs = {}
        for seed in range(3):
            identity = f"{number:08d}{seed:08d}"
            folder = store.run(identity)
            folder.write_header({"id": identity, "status": "finished", "spec": arm.build(seed).to_json()})
            lines = "".join(reading.to_line() + "\n" for reading in source(arm, seed))
            (folder.path / "readings.jsonl").write_text(lines)
            runs[str(seed)] = identity
        arms.append({"key": arm.key, "label": arm.label, "size": arm.size, "runs": runs})
    main = PRESET.main_size
    manifest = {"study": "noise-loss", "preset": "laptop", "main_size": main, "max_steps": None, "arms": arms}
    return StudyResults(store, NOISE_LOSS, manifest)


Make = Callable[..., StudyResults]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(world: World | None = None) -> StudyResults:
        def source(arm: Arm, seed: int) -> list[Reading]:
            return readings_of(arm.key, cast("ImageRun", arm.build(seed)), seed, world or {})

        return results_of(tmp_path, source)

    return made


def outcomes(results: StudyResults) -> dict[str, str]:
    return {verdict.claim.key: verdict.finding.outcome for verdict in results.verdicts()}


ALL = {claim.key: "reproduced" for claim in NOISE_LOSS.claims}


def test_a_noise_that_is_linear_early_and_squared_late(make: Make) -> None:
    results = make()
    assert outcomes(results) == ALL | {"late-one": "not reproduced"}
    effects = {verdict.claim.key: verdict.finding.effect for verdict in results.verdicts()}
    for key, value in (("early", 1), ("late-two", 2), ("bound", 0.05)):
        effect = effects[key]
        assert effect is not None
        assert effect.estimate == pytest.approx(value, rel=0.08), key


def test_a_noise_that_is_linear_throughout_is_the_propositions(make: Make) -> None:
    found = outcomes(make({"late": 1.0}))
    failing = {"late-two", "late-two-per-jacobian", "constant-none"}
    assert found == {key: "not reproduced" if key in failing else "reproduced" for key in ALL}


def test_a_growing_jacobian_bends_the_noise_and_not_the_noise_over_it(make: Make) -> None:
    found = outcomes(make({"growth": 1.2}))
    assert found["early"] == "not reproduced"
    assert found["early-per-jacobian"] == "reproduced"
    assert found["late-two"] == "not reproduced"
    assert found["late-two-per-jacobian"] == "reproduced"
    assert found["bound"] == "reproduced"


CASES: list[tuple[World, str, str]] = [
    ({"level": 0.9}, "bound", "reproduced"),
    ({"level": 1.2}, "bound", "undecided"),  # the largest Jacobian may be larger than the mean
    ({"decayed": 30.0}, "bound", "undecided"),
    ({"early": 1.4}, "early", "not reproduced"),
    ({"early": 1.3}, "early", "undecided"),
    ({"spread": 0.5}, "early", "undecided"),
    ({"end": 0.06}, "late-two", "not tested"),  # never below 0.05
    ({"end": 0.06}, "constant-none", "not reproduced"),
    ({"late": 2.4}, "late-two", "not reproduced"),
    ({"late": 1.5}, "late-one", "not reproduced"),
    ({"late": 1.5}, "late-two", "not reproduced"),
    ({"floor": 0.001}, "constant-decay", "not reproduced"),
    ({"decayed": 0.1}, "constant-decay", "not reproduced"),
    ({"decayed": 0.1}, "constant-none", "reproduced"),
    ({"decayed": 0.335}, "constant-decay", "undecided"),
    ({"spread": 1.5}, "constant-none", "undecided"),
]


@pytest.mark.parametrize(("world", "claim", "outcome"), CASES)
def test_a_rule_decides_what_it_should(make: Make, world: World, claim: str, outcome: str) -> None:
    (asked,) = (each for each in NOISE_LOSS.claims if each.key == claim)
    finding = asked.decide(make(world), PRESET.main_size)
    assert finding.outcome == outcome, finding.reason


def test_too_few_readings_in_a_range_are_said(make: Make) -> None:
    (asked,) = (each for each in NOISE_LOSS.claims if each.key == "late-two")
    finding = asked.decide(make({"end": 0.06}), PRESET.main_size)
    assert finding.effect is None
    assert finding.reason == "a seed has 0 readings at losses below 0.05 nats"


def test_figures_show_the_laws(make: Make) -> None:
    results = make()
    panels = {panel.slug: panel for panel in NOISE_LOSS.panels if isinstance(panel, PointsPanel)}
    rows = panels["noise-per-jacobian"].rows(results)
    series = {row.series for row in rows}
    assert series == {"lam 0", "lam 0.02", "slope 1", "slope 2"}
    two = sorted((row.x, row.y) for row in rows if row.series == "slope 2")
    assert math.log(two[1][1] / two[0][1]) / math.log(two[1][0] / two[0][0]) == pytest.approx(2)
    late = [row.y for row in panels["per-loss"].rows(results) if row.series == "lam 0" and row.x == 120]
    assert late[0] == pytest.approx(0.05 * 10 * 1e-3, rel=0.25)
    # The margins of the text, from a closed form of their own: l = log(1 + e^-z).
    margin = {(row.series, row.x): row.y for row in panels["margin"].rows(results)}
    for z, value in ((0.0, 0.25 / math.log(2)), (2.0, 0.1119), (4.0, 0.0178), (8.0, 3.353e-4)):
        assert margin["l'^2 / l", z] == pytest.approx(value, rel=5e-3)
    assert margin["l'^2 / l^2", 10.0] == pytest.approx(1, rel=1e-4)


def test_the_bound_of_the_cross_entropy_with_many_classes() -> None:
    """||p - y||^2 <= 2 (1 - p_y)^2 <= 0.82 l, on random and on extreme logits."""
    rng = np.random.default_rng(0)
    logits_NK = rng.normal(size=(20_000, 10)) * rng.choice([0.1, 1, 5, 30], size=(20_000, 1))
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    log_p_NK = shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))
    loss_N, p_NK = -log_p_NK[:, 0], np.exp(log_p_NK)
    slope_sq_N = (1 - p_NK[:, 0]) ** 2 + (p_NK[:, 1:] ** 2).sum(axis=1)
    # 1 - p is taken as -expm1(-l): for p near 1 the difference loses its digits.
    bound_N = 2 * np.expm1(-loss_N) ** 2
    assert (slope_sq_N <= bound_N * (1 + 1e-9) + 1e-15).all()
    assert (bound_N <= 0.82 * loss_N + 1e-15).all()
    assert (bound_N / np.maximum(loss_N, 1e-300)).max() > 0.8


def test_a_small_study_for_real(tmp_path: Path) -> None:
    """The smoke preset's runs give readings from which every claim and figure can be computed."""
    results = smoke_results(tmp_path, NOISE_LOSS)
    for verdict in results.verdicts():
        assert verdict.finding.outcome == "not tested"
        assert verdict.finding.reason
    runs = noise_of(results, NONE, results.main_size)
    assert [len(run.loss_P) for run in runs] == [3, 3]
    assert all((run.per_loss_P < 1).all() for run in runs)
    for panel in NOISE_LOSS.panels:
        if isinstance(panel, PointsPanel):
            assert panel.rows(results)
