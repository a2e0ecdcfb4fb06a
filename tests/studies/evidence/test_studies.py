"""Decision rules on made-up numbers whose answer is known, and what `StudyResults` makes of a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.errors import StoreError, UserError
from halflife.studies.catalog import STUDIES, get_preset, get_study
from halflife.studies.catalog.amendments import AMENDMENTS
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.results import ArmDivergedError
from halflife.studies.evidence.verdicts import StudyResults, manifests_of
from halflife.studies.report.figures.beside import beside_rows
from halflife.studies.report.figures.panels import panel_figure, why_not_drawn
from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Reading
from tests.studies.synthetic import make_store

NUM_SEEDS, NUM_TEST, DROP, END = 4, 2_000, 40, 80
ARMS = ("large-decay", "large-none", "small-decay", "small-none")


class MadeUp:
    """Results with given error rates, losses and norms; seeds and examples vary a little, the same way in all arms."""

    def __init__(self, **given: Any) -> None:
        self.errors: dict[tuple[str, str, int], float] = given.get("errors", {})
        self.curves: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = given.get("curves", {})
        self.numbers: dict[tuple[str, str], float] = given.get("numbers", {})
        self.jitter: float = given.get("jitter", 0.002)

    def spec(self, key: str, size: int) -> ImageRun:
        return ImageRun(lr=0.1, lam=0.01, num_epochs=END)

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: int | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert step is None
        if not name.endswith("/wrong"):
            noise = np.random.default_rng(len(key)).normal(0, self.jitter, NUM_SEEDS)
            return np.array(self.numbers[key, name] * np.exp(noise))
        # The first examples are the hard ones, so that two rates differ in the examples between them, and in no other.
        epoch = END if epoch is None else epoch
        rate = self.errors[key, name, epoch]
        seeds = np.random.default_rng(len(key) + epoch).normal(0, self.jitter, NUM_SEEDS)
        return np.array([np.arange(NUM_TEST) / NUM_TEST < rate + seed for seed in seeds], dtype=np.float64)

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        epochs = np.arange(1.0, END + 1)
        rng = np.random.default_rng(len(key))
        noise = [np.exp(rng.normal(0, 0.01, END)) for _ in range(NUM_SEEDS)]
        return [(epochs, self.curves[key](epochs) * factor) for factor in noise]


def errors(**rates: float) -> dict[tuple[str, str, int], float]:
    """Final test errors of the arms, as fractions; names with _ for -."""
    return {(key.replace("_", "-"), "test/wrong", END): rate for key, rate in rates.items()}


def averaged(before: float, average: float, after: float) -> dict[tuple[str, str, int], float]:
    name = "ema-0.999/test/wrong"
    arm = "large-decay"
    return {(arm, "test/wrong", DROP): before, (arm, name, DROP): average, (arm, "test/wrong", END): after}


def falling(p_decay: float, p_none: float) -> dict[str, Any]:
    return {"large-decay": lambda t: 2 * t**-p_decay, "large-none": lambda t: 2 * t**-p_none}


def levels(decay: float, none: float) -> dict[tuple[str, str], float]:
    return {("large-decay", "train/loss"): decay, ("large-none", "train/loss"): none}


def ends(norm: float, loss: float, norm_without: float = 1.5) -> dict[tuple[str, str], float]:
    return {
        ("large-none", "weight_norm"): 20.0,
        ("small-none", "weight_norm"): 20.0 * norm_without,
        ("large-decay", "weight_norm"): 9.0,
        ("small-decay", "weight_norm"): 9.0 * norm,
        ("large-decay", "train/loss"): 0.1,
        ("small-decay", "train/loss"): 0.1 * loss,
    }


CASES: list[tuple[str, str, dict[str, Any], str, float]] = [
    ("a clear gain", "helps", {"errors": errors(large_decay=0.15, large_none=0.17)}, "reproduced", -2.0),
    ("clear harm", "helps", {"errors": errors(large_decay=0.17, large_none=0.15)}, "not reproduced", 2.0),
    ("nothing, precisely", "helps", {"errors": errors(large_decay=0.15, large_none=0.15), "jitter": 1e-4},
     "not reproduced", 0.0),
    ("nothing, vaguely", "helps", {"errors": errors(large_decay=0.15, large_none=0.15), "jitter": 0.02},
     "undecided", 0.0),
    ("large gain, small none", "small-rate",
     {"errors": errors(large_decay=0.15, large_none=0.18, small_decay=0.17, small_none=0.17)}, "reproduced", 1.5),
    ("large gain, small harm", "small-rate",
     {"errors": errors(large_decay=0.15, large_none=0.18, small_decay=0.18, small_none=0.17)}, "reproduced", 2.5),
    ("the same gain at both", "small-rate",
     {"errors": errors(large_decay=0.15, large_none=0.18, small_decay=0.15, small_none=0.18)}, "not reproduced", -1.5),
    ("half the gain", "small-rate",
     {"errors": errors(large_decay=0.15, large_none=0.18, small_decay=0.165, small_none=0.18)}, "undecided", 0.0),
    ("no gain to compare with", "small-rate",
     {"errors": errors(large_decay=0.18, large_none=0.15, small_decay=0.17, small_none=0.17)}, "not tested", -1.5),
    ("plateau and fall", "plateau", {"curves": falling(0.2, 2.0), "numbers": levels(0.3, 0.03)}, "reproduced", 10.0),
    ("both fall", "plateau", {"curves": falling(1.5, 2.0), "numbers": levels(0.3, 0.03)}, "not reproduced", 10.0),
    ("both stay", "plateau", {"curves": falling(0.2, 0.2), "numbers": levels(0.3, 0.03)}, "not reproduced", 10.0),
    ("same level", "plateau", {"curves": falling(0.2, 2.0), "numbers": levels(0.04, 0.03)}, "not reproduced", 4 / 3),
    ("on the bound", "plateau", {"curves": falling(0.5, 2.0), "numbers": levels(0.3, 0.03)}, "undecided", 10.0),
    ("same end, other error", "same-norm",
     {"numbers": ends(1.02, 1.03), "errors": errors(large_decay=0.15, small_decay=0.18)}, "reproduced", 3.0),
    ("same norms whatever decay does", "same-norm",
     {"numbers": ends(1.02, 1.03, 1.02), "errors": errors(large_decay=0.15, small_decay=0.18)}, "not tested", 3.0),
    ("other norm", "same-norm",
     {"numbers": ends(1.3, 1.03), "errors": errors(large_decay=0.15, small_decay=0.18)}, "not reproduced", 3.0),
    ("other loss", "same-norm",
     {"numbers": ends(1.02, 0.5), "errors": errors(large_decay=0.15, small_decay=0.18)}, "not reproduced", 3.0),
    ("same error too", "same-norm",
     {"numbers": ends(1.02, 1.03), "errors": errors(large_decay=0.15, small_decay=0.15), "jitter": 1e-4},
     "not reproduced", 0.0),
    ("norm at the margin", "same-norm",
     {"numbers": ends(1.1, 1.03), "errors": errors(large_decay=0.15, small_decay=0.18), "jitter": 0.01}, "undecided", 3.0),
    ("the average does it all", "average", {"errors": averaged(0.18, 0.15, 0.15)}, "reproduced", 1.5),
    ("the average does nothing", "average", {"errors": averaged(0.18, 0.18, 0.15)}, "not reproduced", -1.5),
    ("the average does half", "average", {"errors": averaged(0.18, 0.165, 0.15)}, "undecided", 0.0),
    ("the drop does nothing", "average", {"errors": averaged(0.15, 0.12, 0.15)}, "not tested", 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "given", "outcome", "effect"), CASES, ids=[case[0] for case in CASES])
def test_a_rule_decides_what_it_should(name: str, key: str, given: dict[str, Any], outcome: str, effect: float) -> None:
    (claim,) = (claim for claim in STUDIES["stabilization"].claims if claim.key == key)
    finding = claim.decide(cast("StudyResults", MadeUp(**given)), 8)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    tolerance = 4 * given.get("jitter", 0.002) * 100 if effect < 4 else 0.1
    assert finding.effect.estimate == pytest.approx(effect, abs=tolerance)
    assert finding.effect.low <= finding.effect.estimate <= finding.effect.high


def test_every_preset_builds_its_specs_and_is_the_papers_where_it_says_so() -> None:
    for study in STUDIES.values():
        assert {"smoke", "laptop", "night", "paper"} == set(study.presets)
        for preset in study.presets.values():
            keys = {(arm.key, arm.size) for arm in preset.arms}
            assert len(keys) == len(preset.arms)
            specs = [arm.build(seed) for arm in preset.arms for seed in range(2)]
            if study.name.startswith("stabilization"):  # other studies may name one run twice
                assert keys == {(key, size) for key in ARMS for size in {arm.size for arm in preset.arms}}
                assert len({spec.digest() for spec in specs}) == len(specs)
        night = study.presets["night"]
        assert len({arm.size for arm in night.arms}) == 3
        assert night.num_seeds > study.presets["laptop"].num_seeds >= 3
    paper = [cast("ImageRun", arm.build(0)) for arm in STUDIES["stabilization"].presets["paper"].arms]
    assert [(s.lr, s.lam) for s in paper] == [(0.08, 0.0125), (0.08, 0), (0.001, 0.0125), (0.001, 0)]
    assert {(s.model, s.width, s.blocks, s.num_epochs, s.drop_epoch) for s in paper} == {
        ("resnet", 64, (2, 2, 2, 2), 1000, 500)
    }
    paper = [cast("ImageRun", arm.build(0)) for arm in STUDIES["stabilization-vgg"].presets["paper"].arms]
    assert [(s.lr, s.lam) for s in paper] == [(0.1, 0.008), (0.1, 0), (0.01, 0.008), (0.01, 0)]
    assert {(s.lr_after_drop, s.batch_size, s.ema[0], s.data) for s in paper} == {(1e-4, 128, 0.999, "cifar10")}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"there is no study 'stabilisation', expected one of stabilization, stabil"):
        get_study("stabilisation")
    with pytest.raises(
        UserError, match="stabilization has no preset 'day', expected one of smoke, laptop, night, paper"
    ):
        get_preset(get_study("stabilization"), "day")


# ---- StudyResults


def results(tmp_path: Path, **kwargs: Any) -> StudyResults:
    store = make_store(tmp_path, num_seeds=3, **kwargs)
    return StudyResults(store, get_study("stabilization"), store.manifests()[0])


def test_only_seeds_that_every_arm_has_are_compared(tmp_path: Path) -> None:
    found = results(tmp_path, status=lambda key, seed, _: "running" if (key, seed) == ("small-none", 1) else "finished")
    assert (found.num_planned, found.num_finished) == (12, 11)
    assert found.seeds(8) == [0, 2]
    assert found.read("large-decay", "weight_norm", 8, epoch=8).shape == (2,)
    assert found.read("large-decay", "test/wrong", 8, epoch=8).shape == (2, 120)
    assert sorted(found.frame["seed"].unique()) == [0, 2]
    assert {v.finding.effect.num_seeds for v in found.verdicts() if v.finding.effect is not None} == {2}


def test_a_run_that_diverged_is_a_result_and_not_a_seed_less(tmp_path: Path) -> None:
    """With three of five seeds gone, the two that are left would say what lucky ones do."""
    gone = {("large-none", 1), ("large-none", 2)}
    found = results(tmp_path, status=lambda key, seed, _: "diverged" if (key, seed) in gone else "finished")
    assert found.seeds(8) == [0, 1, 2]
    assert (found.diverged("large-none", 8), found.diverged("large-decay", 8)) == ([1, 2], [])
    verdicts = {verdict.claim.key: verdict.finding for verdict in found.verdicts()}
    # Each claim that reads the arm is undecided; the others have all their seeds.
    for key, touched in {
        "helps": True,
        "small-rate": True,
        "plateau": True,
        "same-norm": True,  # of its stake
        "average": False,
    }.items():
        finding = verdicts[key]
        if touched:
            assert (finding.outcome, finding.effect) == ("undecided", None)
            assert "2 of 3 seeds of lr 0.1, lam 0" in finding.reason
            assert finding.reason.endswith("diverged (1, 2), and the others are no sample of that setting")
        else:
            assert finding.effect is not None
            assert finding.effect.num_seeds == 3
    assert sorted(found.frame.filter(found.frame["arm"] == "large-none")["seed"].unique()) == [0]
    with pytest.raises(ArmDivergedError, match="2 of 3 seeds of"):
        found.series("large-none", "train/running_loss", 8)


def test_the_last_good_reading_of_a_run_that_reads_its_divergence_is_no_end(tmp_path: Path) -> None:
    """Its losses before are numbers like any other; those after are not there, in one seed or in all."""

    def diverging(key: str, seed: int, readings: list[Reading]) -> list[Reading]:
        if key != "large-none":
            return readings
        first = readings[:2]
        last = first[-1].step
        return [*first, Reading(step=last + 5, epoch=3, values={"diverged_at": last + 1})]

    found = results(tmp_path, change=diverging)
    at = found.read("large-none", "diverged_at", 8)
    assert (at > 0).all()
    assert found.read("large-none", "weight_norm", 8, step=int(at[0]) - 1).shape == (3,)
    for step in (None, int(at[0])):
        with pytest.raises(ArmDivergedError, match=r"3 of 3 seeds of lr 0.1, lam 0 diverged \(0, 1, 2\)"):
            found.read("large-none", "weight_norm", 8, step=step)
    assert len(found.series_by_step("large-none", "weight_norm", 8)) == 3
    assert found.read("large-decay", "weight_norm", 8).shape == (3,)


def test_figures_leave_out_an_arm_that_diverged_and_say_so(tmp_path: Path) -> None:
    found = results(tmp_path, status=lambda key, seed, _: "diverged" if key == "large-none" else "finished")
    curves, *_ = found.study.panels
    figure = panel_figure(found, curves)
    assert "Not drawn, because runs diverged: lr 0.1, lam 0" in figure.caption
    points = PointsPanel(slug="p", title="p", x_label="x", y_label="y", rows=lambda r: [])
    assert why_not_drawn(found, points).startswith("runs of lr 0.1, lam 0")
    assert {ours for *_, ours in beside_rows(found)} == {"not measured yet"}


def test_too_few_seeds_and_cut_runs_give_no_verdict(tmp_path: Path) -> None:
    few = results(tmp_path / "few", status=lambda key, seed, _: "absent" if seed else "finished")
    assert {(v.finding.outcome, v.finding.effect) for v in few.verdicts()} == {("not tested", None)}
    assert few.verdicts()[0].finding.reason == "1 of 3 seeds are finished in every arm, at least 2 are needed"
    cut = results(tmp_path / "cut", max_steps=5)
    assert {v.finding.reason for v in cut.verdicts()} == {"runs were cut at 5 steps by --max-steps"}


def test_the_ladder_is_measured_at_every_size_and_decided_at_the_main_one(tmp_path: Path) -> None:
    found = results(tmp_path, sizes=(4, 8, 16))
    for verdict in found.verdicts():
        assert list(verdict.by_size) == [4, 8, 16]
        assert verdict.finding == verdict.by_size[8]


def _without(metric: str) -> Callable[[str, int, list[Reading]], list[Reading]]:
    def change(key: str, seed: int, readings: list[Reading]) -> list[Reading]:
        last = readings[-1]
        values = {name: value for name, value in last.values.items() if name != metric}
        arrays = {name: value for name, value in last.arrays.items() if name != metric}
        return [*readings[:-1], Reading(step=last.step, epoch=last.epoch, values=values, arrays=arrays)]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("test/wrong"), r"the run \w{16} has no test/wrong at epoch 8: remove its folder"),
        (_without("weight_norm"), r"the run \w{16} has no weight_norm at epoch 8: remove its folder"),
        (
            lambda key, seed, readings: readings[:-1],
            r"the run \w{16} has no reading at epoch 8: remove its folder and run",
        ),
    ],
)
def test_a_missing_row_is_an_error_and_not_a_smaller_sample(
    tmp_path: Path, change: Callable[[str, int, list[Reading]], list[Reading]], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        results(tmp_path, change=change).verdicts()


def test_a_sheet_of_another_version_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    manifest = store.manifests()[0]
    with pytest.raises(StoreError, match=r"holds stabilization at a preset 'day' that this halflife does not know"):
        StudyResults(store, get_study("stabilization"), manifest | {"preset": "day"})
    broken = StudyResults(store, get_study("stabilization"), manifest | {"arms": manifest["arms"][1:]})
    with pytest.raises(
        StoreError,
        match=r"has no arm 'large-decay' at size 8 \(did you mean .*\): it was written by another version",
    ):
        broken.verdicts()


def test_sheets_are_found_by_name(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert [manifest["preset"] for manifest in manifests_of(store, [])] == ["laptop"]
    with pytest.raises(
        UserError, match=r"has no runs of stabilization-vgg: run `halflife study run stabilization-vgg`"
    ):
        manifests_of(store, ["stabilization-vgg"])
    json.dumps(store.manifests())


def test_every_amendment_is_of_a_claim_that_exists() -> None:
    known = {(study.name, claim.key) for study in STUDIES.values() for claim in study.claims}
    assert set(AMENDMENTS) <= known
    amended = {(study.name, claim.key) for study in STUDIES.values() for claim in study.claims if claim.amended}
    assert amended == set(AMENDMENTS)
