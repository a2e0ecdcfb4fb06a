"""The study of one budget of samples: its images, its rules on made-up numbers whose answer is known, its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from halflife.studies.catalog.images.dataset_size import BUDGET, DATASET_SIZE, LAMS, change_at
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.lab.images import sources, views
from halflife.studies.lab.images.data import image_tensors
from halflife.studies.lab.images.sources import ImageSource, describe, read_source
from halflife.studies.specs import ImageRun
from tests.studies.catalog.made_up_images import MadeUpImages
from tests.studies.smoke_in_process import smoke_results

NAME = "fashion-mnist-views"
PRESET = DATASET_SIZE.presets["laptop"]

# ---- images


@pytest.fixture(scope="module")
def shipped() -> ImageSource:
    return read_source("fashion-mnist-5k")


@pytest.fixture(scope="module")
def viewed(shipped: ImageSource) -> ImageSource:
    return sources._viewed(None)


def _image(source: ImageSource, part: str, number: int) -> np.ndarray[Any, Any]:
    split = getattr(source, part)
    _, height, width = split.shape
    raw = split.images[number * height * width : (number + 1) * height * width]
    return np.frombuffer(raw, dtype=np.uint8).reshape(height, width).astype(int)


def _seen(image: np.ndarray[Any, Any], mirrored: bool, down: int, right: int) -> np.ndarray[Any, Any]:
    """Pixel by pixel: mirror, move, average over squares of two pixels, halves upwards."""
    out = np.zeros((14, 14), dtype=int)
    for row in range(14):
        for column in range(14):
            total = 0
            for i in (2 * row - down, 2 * row + 1 - down):
                for j in (2 * column - right, 2 * column + 1 - right):
                    if 0 <= i < 28 and 0 <= j < 28:
                        total += image[i, 27 - j if mirrored else j]
            out[row, column] = int(np.floor(total / 4 + 0.5))
    return out


@pytest.mark.parametrize("number", [0, 1, 4_999, 5_000, 10_999, 11_000, 38_017, 109_999])
def test_a_view_is_what_a_loop_over_pixels_sees(shipped: ImageSource, viewed: ImageSource, number: int) -> None:
    image, which = number % 11_000, number // 11_000
    part, place = ("train", image) if image < 5_000 else ("test", image - 5_000)
    expected = _seen(_image(shipped, part, place), *views.view_of(image, which))
    assert np.array_equal(_image(viewed, "train", number), expected)
    assert viewed.train.labels[number] == getattr(shipped, part).labels[place]


def test_the_test_set_shares_no_image_with_the_training_set(shipped: ImageSource, viewed: ImageSource) -> None:
    assert (viewed.train.count, viewed.test.count, viewed.train.shape) == (110_000, 4_000, (1, 14, 14))
    assert viewed.test.labels == shipped.test.labels[6_000:]
    for number in (0, 3_999):
        expected = _seen(_image(shipped, "test", 6_000 + number), *views.view_of(number, 0))
        assert np.array_equal(_image(viewed, "test", number), expected)


def test_an_image_is_seen_in_ten_views_spread_over_all() -> None:
    assert views.NUM_VIEWS == 98
    drawn = np.array([views.view_of(image, which) for image in range(9_800) for which in range(10)])
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == 98
    assert set(counts.tolist()) == {1_000}
    assert all(len({views.view_of(image, which) for which in range(10)}) == 10 for image in range(98))


def test_it_is_named_and_hashed_without_being_read(viewed: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256()
    for split in (viewed.train, viewed.test):
        digest.update(split.images + split.labels)
    assert digest.hexdigest() == viewed.sha256 == views.SHA256
    monkeypatch.setattr(sources, "_read", lambda *_: pytest.fail("read"))
    spec = ImageRun(lr=0.1, lam=0.0, num_epochs=1, data=NAME)
    assert not spec.reads_folder
    described = describe(spec)
    assert (described.name, described.sha256) == (NAME, views.SHA256)
    assert "110,000 flipped and moved copies of 11,000 images" in described.title
    assert ImageRun(lr=0.1, lam=0.0, num_epochs=1, data="cifar10").reads_folder


def test_views_of_other_images_are_refused(shipped: ImageSource) -> None:
    with pytest.raises(AssertionError, match="the views are not those of other machines"):
        views.many_views(shipped.test, shipped.test)


def test_one_pass_holds_every_view_once(viewed: ImageSource) -> None:
    train_set, test_set = image_tensors(
        viewed, num_train=22_000, num_test=None, downsample=2, device=torch.device("cpu")
    )
    assert train_set.x_NCHW.shape == (22_000, 1, 7, 7)
    assert len(test_set) == 4_000
    assert torch.equal(train_set.y_N[:11_000], train_set.y_N[11_000:])
    same = (train_set.x_NCHW[:11_000] == train_set.x_NCHW[11_000:]).flatten(1).all(dim=1)
    assert same.double().mean() < 0.002  # a second view is another example


# ---- rules


def made_up(
    gain: Callable[[ImageRun], float], train: Callable[[ImageRun], float] = lambda spec: 0.002, **given: Any
) -> StudyResults:
    """Test errors of 40 % at 250 examples, 4 points less for each step on the ladder, less the gain of decay."""

    def test(spec: ImageRun) -> float:
        counts = sorted({cast("ImageRun", arm.build(0)).num_train for arm in PRESET.arms}, key=lambda n: n or 0)
        return 0.4 - 0.04 * counts.index(spec.num_train) - (gain(spec) if spec.lam else 0)

    errors = {"ema-0.98/test/error": test, "ema-0.98/train/error": train}
    return cast("StudyResults", MadeUpImages(PRESET.arms, errors=errors, **given))


def small(spec: ImageRun) -> bool:
    return cast("int", spec.num_train) <= 1_000


def falling(spec: ImageRun) -> float:
    """3 points with few examples, 0.1 in one pass, at lam 0.005; at the other lam 2 points worse."""
    return (0.03 if small(spec) else 0.001) - (0.02 if spec.lam > 0.01 else 0)


CASES: list[tuple[str, str, Any, dict[str, Any], str, float | None]] = [
    ("a gain", "helps", falling, {}, "reproduced", -3.0),
    ("harm", "helps", lambda spec: -0.02, {}, "not reproduced", 2.0),
    ("nothing, precisely", "helps", lambda spec: 0.0, {}, "not reproduced", 0.0),
    ("too little to tell", "helps", lambda spec: 0.005, {"jitter": 0.01}, "undecided", None),
    ("interpolated", "interpolates", falling, {"train": lambda spec: 0.0}, "reproduced", None),
    ("not with decay", "interpolates", falling, {"train": lambda spec: 0.05 if spec.lam else 0.0}, "not reproduced", 5.0),
    ("not without", "interpolates", falling, {"train": lambda spec: 0.0 if spec.lam else 0.05}, "not reproduced", None),
    ("no gain by decay", "interpolates", lambda spec: 0.0, {"train": lambda spec: 0.0}, "not tested", None),
    ("at the bound", "interpolates", falling, {"train": lambda spec: 0.01}, "undecided", 1.0),
    ("same in one pass", "one-pass", falling, {}, "reproduced", -0.1),
    ("harm in one pass", "one-pass", lambda spec: 0.03 if small(spec) else -0.02, {}, "not reproduced", 2.0),
    ("nothing at stake", "one-pass", lambda spec: 0.001, {}, "not tested", -0.1),
    ("near the margin", "one-pass", lambda spec: 0.03 if small(spec) else 0.01, {"jitter": 0.004}, "undecided", None),
    ("shrinks", "shrinks", falling, {}, "reproduced", 2.9),
    ("grows", "shrinks", lambda spec: 0.01 if small(spec) else 0.03, {}, "not reproduced", -2.0),
    ("harm everywhere", "shrinks", lambda spec: -0.02 if small(spec) else -0.06, {}, "not tested", 4.0),
    ("stays", "shrinks", lambda spec: 0.03, {"jitter": 0.01}, "undecided", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key", "gain", "given", "outcome", "effect"), CASES, ids=[f"{c[1]}: {c[0]}" for c in CASES]
)
def test_a_rule_decides_what_it_should(
    name: str, key: str, gain: Any, given: dict[str, Any], outcome: str, effect: float | None
) -> None:
    claim = next(claim for claim in DATASET_SIZE.claims if claim.key == key)
    finding = claim.decide(made_up(gain, **given), 8)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    if effect is not None:
        assert finding.effect.estimate == pytest.approx(effect, abs=0.25 if key != "interpolates" else 1.2)


def test_one_lam_is_chosen_where_examples_are_few() -> None:
    def turned(spec: ImageRun) -> float:
        return 0.02 if (spec.lam > 0.01) == small(spec) else -0.05

    found = [change_at((place,))(made_up(turned), 8).mean() for place in range(5)]
    assert found == pytest.approx([-2.0, -2.0, 5.0, 5.0, 5.0], abs=0.1)


def test_every_run_sees_the_budget_and_the_last_sees_each_example_once() -> None:
    for name in ("laptop", "night", "paper", "smoke"):
        preset = DATASET_SIZE.presets[name]
        specs = [cast("ImageRun", arm.build(0)) for arm in preset.arms]
        samples = {s.num_epochs * (cast("int", s.num_train) // s.batch_size) * s.batch_size for s in specs}
        assert len(samples) == 1, "every pass is of whole batches"
        largest = max(cast("int", s.num_train) for s in specs)
        assert samples == {largest}
        assert {s.drop_epoch - s.num_epochs for s in specs} == {0}
    assert largest == 1_600
    assert {cast("ImageRun", arm.build(0)).lam for arm in PRESET.arms} == set(LAMS)
    assert max(cast("int", cast("ImageRun", arm.build(0)).num_train) for arm in PRESET.arms) == BUDGET


def test_a_preset_keeps_to_its_budget_on_two_cores() -> None:
    for name, budget in (("laptop", 600), ("night", 5_400)):
        preset = DATASET_SIZE.presets[name]
        seconds = 0.0
        for arm in preset.arms:
            spec = cast("ImageRun", arm.build(0))
            seeds = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
            step = {4: 2.2e-3, 8: 3.0e-3, 16: 5.5e-3}[spec.width]
            seconds += seeds * (BUDGET / spec.batch_size * step + 1 + cast("int", spec.num_train) * 5e-5)
        assert seconds / 2 <= budget


def test_figures_and_published_numbers() -> None:
    results = made_up(falling)
    rows: dict[str, list[Any]] = {}
    for panel in DATASET_SIZE.panels:
        assert isinstance(panel, PointsPanel)
        rows[panel.slug] = panel.rows(results)
    assert {row.series for row in rows["test-error"]} == {"lam 0", "lam 0.005", "lam 0.02"}
    assert len(rows["train-error"]) == 2 * 15
    gain = {row.x: row for row in rows["gain"]}
    assert list(gain) == [250, 1_000, 5_000, 27_500, 110_000]
    assert gain[250].low < 3.0 < gain[250].high + 1e-9
    assert gain[110_000].y == pytest.approx(0.1, abs=0.1)
    ours = [row.ours(results) for row in DATASET_SIZE.published]
    assert ours[0].endswith("(lam 0.005) at 250")
    assert ours[2].endswith("points in 440 passes over 250")
    assert ours[3].endswith("points in one pass over 110,000")
    assert all(row.how == "fig-read" for row in DATASET_SIZE.published)


@pytest.mark.slow
def test_the_smoke_preset_runs_and_is_read(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, DATASET_SIZE)
    assert (results.num_finished, results.failures) == (12, [])
    for verdict in results.verdicts():
        assert verdict.finding.outcome == "not tested"
        assert verdict.finding.reason == "the preset is too small to decide, it is made for tests"
        assert verdict.finding.effect is not None
    assert all(row.ours(results) for row in DATASET_SIZE.published)
