"""The study of where SGD settles: its rules on made-up means at known places, its arms, and a small run for real."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.theory.stationary_mean.quantities import CLOSED, NETS
from halflife.studies.catalog.theory.stationary_mean.study import STATIONARY_MEAN
from halflife.studies.catalog.theory.stationary_mean.theory import Path as Minima
from halflife.studies.catalog.theory.stationary_mean.theory import fitted
from halflife.studies.evidence.claims import Arm, PointsPanel, Verdict
from halflife.studies.evidence.readings import unpacked
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs import StationaryRun
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store
from tests.studies.smoke_in_process import smoke_results

PRESET = STATIONARY_MEAN.presets["laptop"]
NUM_INPUTS, NUM_SEEDS = 6, 5
SPREAD = (-1.2, 0.3, -0.4, 1.5, -0.2)  # over seeds: mean 0, standard deviation 1
ACROSS = np.array([1.0, -1.0, 0.5, -0.5, 0.2, -0.2])  # outputs move along ALONG with c; this is orthogonal to it
ALONG = np.array([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])

Change = dict[tuple[str, str], float]
"""Arm (``"*"``: every arm) and quantity to its value."""

NORMAL = {
    "c": 0.25,  # the prefactor that fits
    "spread": 0.03,  # of its logarithm over seeds
    "off": 0.01,  # distance of the mean from the path of ||J||^2, over that without a regularizer
    "trace_off": 0.1,  # the same for the trace
    "trace_c": 0.2,
    "weights": 0.1,  # distance of the mean weights' outputs
    "drift": 0.1,
    "gradient": 1e-8,
}


def packed(values: NDArray[Any]) -> Array:
    return Array("<f4", values.size, values.astype("<f4").tobytes())


def reading_of(key: str, spec: StationaryRun, seed: int, change: Change) -> Reading:
    at = {name: change.get((key, name), change.get(("*", name), value)) for name, value in NORMAL.items()}
    c = at["c"] * np.exp(at["spread"] * SPREAD[seed])
    base_N, unit = np.sin(np.arange(NUM_INPUTS) + seed), np.sqrt((ALONG**2).mean()) / np.sqrt((ACROSS**2).mean())
    prefactors_K1 = np.array(spec.prefactors)[:, None]
    mean_N = base_N + c * ALONG + at["off"] * c * unit * ACROSS
    distance = c * np.sqrt((ALONG**2).mean())
    # The trace's path passes the mean, at its own c, at about this distance more than that of ||J||^2.
    to_trace_N = (c * ALONG - at["trace_off"] * c * unit * ACROSS) / at["trace_c"]
    arrays: dict[str, Array] = {}
    for inputs in ("train", "held-out"):
        arrays |= {
            f"mean/{inputs}": packed(mean_N),
            f"se/{inputs}": packed(np.full(NUM_INPUTS, 0.001)),
            f"weights/{inputs}": packed(mean_N + at["weights"] * distance),
            f"minimum/jacobian/{inputs}": packed(base_N + prefactors_K1 * ALONG),
            f"minimum/hessian/{inputs}": packed(base_N + prefactors_K1 * to_trace_N),
        }
        # The lowest minimum is another one, half as far again as that without a regularizer.
        far_N = mean_N + 1.5 * distance
        arrays[f"lowest/jacobian/{inputs}"] = packed(np.concatenate([far_N for _ in spec.searched] or [far_N]))
    values = {"drift": at["drift"] * distance, "gradient": at["gradient"], "noise_sq": 0.3, "noise_scale": 0.5}
    return Reading(step=spec.num_steps, epoch=1.0, values=values, arrays=arrays)


def results_of(
    path: Path, change: Change, arms: tuple[Arm, ...] = PRESET.arms, num_seeds: int = NUM_SEEDS
) -> StudyResults:
    store = Store(path)
    store.create()
    manifest_arms = []
    for number, arm in enumerate(arms):
        runs = {}
        for seed in range(num_seeds):
            identity = f"{number:08d}{seed:08d}"
            folder = store.run(identity)
            spec = cast("StationaryRun", arm.build(seed))
            folder.write_header({"id": identity, "status": "finished", "spec": spec.to_json()})
            (folder.path / "readings.jsonl").write_text(reading_of(arm.key, spec, seed, change).to_line() + "\n")
            runs[str(seed)] = identity
        manifest_arms.append({"key": arm.key, "label": arm.label, "size": arm.size, "runs": runs})
    manifest = {
        "study": "stationary-mean", "preset": "laptop", "main_size": PRESET.main_size, "max_steps": None,
        "arms": manifest_arms,
    }  # fmt: skip
    return StudyResults(store, STATIONARY_MEAN, manifest)


class MadeUp:
    """What rules ask of `StudyResults`, without a store: only the arms that are asked for are made."""

    def __init__(self, change: Change) -> None:
        self.change, self.built = change, {(arm.key, arm.size): arm for arm in PRESET.arms}
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in PRESET.arms]
        self.main_size = PRESET.main_size

    def spec(self, key: str, size: int, seed: int = 0) -> StationaryRun:
        return cast("StationaryRun", self.built[key, size].build(seed))

    @functools.cache  # noqa: B019  # it lives as long as one test
    def readings(self, key: str, size: int) -> list[Reading]:
        return [reading_of(key, self.spec(key, size, seed), seed, self.change) for seed in range(NUM_SEEDS)]

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        readings = self.readings(key, size)
        if name in readings[0].values:
            return np.array([reading.values[name] for reading in readings])
        return np.array([unpacked(reading.arrays[name]) for reading in readings])


Make = Callable[..., StudyResults]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda change=None: results_of(tmp_path, change or {})


def verdicts_of(results: StudyResults) -> dict[str, Verdict]:
    return {verdict.claim.key: verdict for verdict in results.verdicts()}


# ---- fits


def test_a_fit_is_the_nearest_point_of_the_polygon() -> None:
    """Against a fine search."""
    rng = np.random.default_rng(0)
    c_K, minima_KN, mean_N = np.array([0, 0.25, 0.7, 2.0]), rng.normal(size=(4, 5)), rng.normal(size=5)
    fine = np.linspace(0, 2, 200_001)
    outputs = np.stack([np.interp(fine, c_K, minima_KN[:, n]) for n in range(5)], axis=1)
    nearest = fine[np.argmin(((outputs - mean_N) ** 2).sum(axis=1))]
    assert fitted(c_K, minima_KN, mean_N) == pytest.approx(nearest, abs=2e-5)


def test_outputs_between_prefactors_are_linear() -> None:
    rng = np.random.default_rng(1)
    c_K, minima_SKN = np.array([0, 0.5, 2.0]), rng.normal(size=(3, 3, 2))
    path = Minima(c_K, minima_SKN, np.zeros((3, 2)), np.zeros((3, 2)))
    found = path.outputs(np.array([0.0, 0.8, 2.0]))
    assert found[0] == pytest.approx(minima_SKN[0, 0])
    assert found[1] == pytest.approx(0.8 * minima_SKN[1, 1] + 0.2 * minima_SKN[1, 2])
    assert found[2] == pytest.approx(minima_SKN[2, 2])
    assert path.distance(0.5) == pytest.approx(np.sqrt((minima_SKN[:, 1] ** 2).mean(axis=1)))


def test_a_prefactor_from_the_other_seeds_knows_nothing_of_its_own() -> None:
    c_K = np.array([0.0, 0.25, 1.0, 4.0])
    minima_SKN = np.broadcast_to(c_K[:, None], (3, 4, 1))
    path = Minima(c_K, minima_SKN, np.array([[0.2], [0.8], [0.5]]), np.zeros((3, 1)))
    assert path.fit() == pytest.approx([0.2, 0.8, 0.5])
    assert path.fit_of_others() == pytest.approx([np.sqrt(0.8 * 0.5), np.sqrt(0.2 * 0.5), 0.4])
    assert not path.at_edge()
    for value in (-0.1, 4.5):
        assert Minima(c_K, minima_SKN, np.array([[0.2], [value], [0.5]]), np.zeros((3, 1))).at_edge()


# ---- claims


def test_a_quarter_everywhere(make: Make) -> None:
    """The world that the theory of label noise describes: all reproduced but the conjecture's own prefactor."""
    found = {key: verdict.finding for key, verdict in verdicts_of(make()).items()}
    outcomes = {key: finding.outcome for key, finding in found.items()}
    failing = {"prefactor", "prefactor-net", "as-written", "as-written-net"}
    assert outcomes == {key: "not reproduced" if key in failing else "reproduced" for key in outcomes}
    assert len(outcomes) == 13
    prefactor, form = found["prefactor"].effect, found["form"].effect
    assert prefactor is not None
    assert prefactor.estimate == pytest.approx(0.25, rel=1e-3)
    assert form is not None
    assert form.estimate < 0.1
    effect = found["regularizer"].effect
    assert effect is not None
    assert effect.estimate == pytest.approx(11, rel=0.05)  # 0.1 to the one side, 0.01 to the other


def test_the_conjecture_as_written(make: Make) -> None:
    outcomes = {key: verdict.finding.outcome for key, verdict in verdicts_of(make({("*", "c"): 1.0})).items()}
    failing = {"quarter", "quarter-net"}
    assert outcomes == {key: "not reproduced" if key in failing else "reproduced" for key in outcomes}


def test_other_minima_and_the_other_sigma_are_shown(make: Make) -> None:
    results = make()
    panel = next(panel for panel in STATIONARY_MEAN.panels if panel.file_slug == "lowest")
    assert isinstance(panel, PointsPanel)
    heights = {(row.series, row.x): row.y for row in panel.rows(results)}
    for c, nearest in ((0.25, 0.0), (1.0, 3.0)):
        assert heights["squared loss, label noise, lowest", c] == pytest.approx(1.5, rel=0.02)
        assert heights["squared loss, label noise, nearest", c] == pytest.approx(nearest, abs=0.05)
    texts = [row.ours(results) for row in STATIONARY_MEAN.published]
    assert texts[0].startswith("0.250 [0.241, 0.259] / 0.250")
    assert texts[3].startswith("0.300")  # 0.3 / 0.5^2 times that


CASES: list[tuple[Change, str, str]] = [
    ({("sparse", "off"): 0.9}, "form", "not reproduced"),
    ({("sparse", "spread"): 0.8, ("sparse", "c"): 0.5}, "form", "undecided"),
    ({("line-0.1", "off"): 0.9}, "form", "reproduced"),
    ({("net-logistic", "off"): 0.9}, "form", "reproduced"),
    ({("net-logistic", "off"): 0.9}, "form-net", "not reproduced"),
    ({("net-logistic", "drift"): 0.8}, "form-net", "not tested"),
    ({("net-logistic", "gradient"): 1e-3}, "form-net", "not tested"),
    ({("sparse", "c"): 9.0}, "prefactor", "not tested"),  # at an edge: that another arm decides does not count
    ({("*", "c"): 9.0}, "prefactor", "not tested"),
    ({("*", "c"): 0.7, ("*", "spread"): 0.2}, "prefactor", "undecided"),
    ({("*", "c"): 0.8}, "prefactor", "reproduced"),
    ({("line-0.2", "c"): 0.32}, "quarter", "not reproduced"),
    ({("line-0.2", "c"): 0.29}, "quarter", "reproduced"),
    ({("net-flips", "c"): 0.35}, "quarter-net", "reproduced"),
    ({("net-flips", "c"): 0.45}, "quarter-net", "not reproduced"),
    ({("net-logistic", "c"): 0.1}, "quarter-net", "reproduced"),
    ({("*", "c"): 0.55}, "as-written", "reproduced"),
    ({("*", "c"): 0.5, ("*", "spread"): 0.1}, "as-written", "undecided"),
    ({("sparse-batch", "c"): 0.33}, "batch", "not reproduced"),
    ({("sparse-batch", "c"): 0.28}, "batch", "reproduced"),
    ({("sparse-batch", "c"): 0.31, ("sparse-batch", "spread"): 0.1}, "batch", "undecided"),
    ({("sparse-batch", "drift"): 0.9}, "batch", "not tested"),
    ({("sparse", "c"): 0.0}, "batch", "not tested"),  # no ratio to it
    ({("sparse-square", "off"): 0.3, ("sparse-square", "trace_off"): -0.2}, "regularizer", "not reproduced"),
    ({("net-flips", "trace_c"): 9.0}, "regularizer-net", "not tested"),
    ({("sparse", "weights"): 0.6}, "weights", "not reproduced"),
    ({("net-flips", "weights"): 0.6}, "weights", "reproduced"),
    ({("net-flips", "weights"): 0.6}, "weights-net", "not reproduced"),
]


@pytest.mark.parametrize(("change", "claim", "outcome"), CASES)
def test_a_rule_decides_what_it_should(change: Change, claim: str, outcome: str) -> None:
    (asked,) = (each for each in STATIONARY_MEAN.claims if each.key == claim)
    finding = asked.decide(cast("StudyResults", MadeUp(change)), PRESET.main_size)
    assert finding.outcome == outcome, finding.reason


@pytest.mark.parametrize(
    ("change", "claim", "reason"),
    [
        (
            {("net-flips", "drift"): 0.8},
            "weights-net",
            "logistic loss, flipped labels: it moves by 0.80 of that distance",
        ),
        ({("square", "gradient"): 1e-3}, "quarter", "h = u^2, lr 0.05: the gradient at a minimum is 1.0e-03"),
        ({("sparse", "c"): 9.0}, "as-written", "u v, B = 1: a seed's fitted c is 0 or the largest of its grid"),
        ({("sparse-square", "trace_c"): 9.0}, "regularizer", "u^2, B = 1: a seed's fitted c is 0 or the largest"),
    ],
)
def test_a_premise_that_does_not_hold_names_the_arm(change: Change, claim: str, reason: str) -> None:
    (asked,) = (each for each in STATIONARY_MEAN.claims if each.key == claim)
    finding = asked.decide(cast("StudyResults", MadeUp(change)), PRESET.main_size)
    assert finding.outcome == "not tested"
    assert reason in finding.reason


def test_models_without_a_size_say_nothing_along_the_ladder(tmp_path: Path) -> None:
    arms = STATIONARY_MEAN.presets["night"].arms
    verdicts = verdicts_of(results_of(tmp_path, {}, arms, num_seeds=2))
    assert verdicts["form"].by_size[3].outcome == "not tested"
    assert verdicts["batch"].by_size[12].effect is None
    assert verdicts["form-net"].by_size[12].outcome == "reproduced"


# ---- figures and arms


def test_figures_show_what_was_made_up(make: Make) -> None:
    results = make()
    panels = {panel.slug: panel for panel in STATIONARY_MEAN.panels if isinstance(panel, PointsPanel)}
    assert len(panels) == 7
    rows = panels["profile"].rows(results)
    at = {(row.series, row.x): row.y for row in rows}
    assert at["u v, B = 1", 1.0] == pytest.approx(3.0, rel=0.02)  # (1 - 1/4) / (1/4)
    assert at["u v, B = 1", 0.25] < 0.05
    assert {row.series for row in panels["profile-nets"].rows(results)} == {
        "squared loss, label noise", "logistic loss, flipped labels", "logistic loss, no label noise",
    }  # fmt: skip
    fits = [row.y for row in panels["prefactors"].rows(results) if row.style == "point"]
    assert fits == pytest.approx([0.25] * 10, rel=1e-3)
    shifts = [row for row in panels["shift"].rows(results) if row.series == "c = 1"]
    assert [row.y for row in shifts] == pytest.approx(ALONG.tolist(), rel=1e-4)
    assert {row.series for row in panels["profile-trace"].rows(results)} >= {"u^2, B = 1"}


def test_regimes_are_what_the_claims_need() -> None:
    """Arms rest: burn-ins of at least ten times the decay's time scale, and every arm has the prefactors to decide on."""
    for arm in PRESET.arms:
        spec = cast("StationaryRun", arm.build(0))
        assert {0.25, 1.0} <= set(spec.prefactors)
        if spec.lam:
            assert spec.burn_in >= 10 / (spec.lr * spec.lam)
        else:
            assert spec.burn_in >= 7.9 / (spec.lr * spec.label_noise) ** 2 or spec.model == "square"
    assert {arm.key for arm in PRESET.arms} == {*CLOSED, *NETS}


@pytest.mark.slow
def test_a_small_study_for_real(tmp_path: Path) -> None:
    """The smoke preset's runs give readings from which every claim and figure can be computed."""
    results = smoke_results(tmp_path, STATIONARY_MEAN)
    for verdict in results.verdicts():
        assert verdict.finding.outcome == "not tested"
        assert verdict.finding.rows
        assert verdict.finding.reason.startswith("the preset is too small to decide")
    for panel in STATIONARY_MEAN.panels:
        assert isinstance(panel, PointsPanel)
        assert panel.rows(results)
