"""What each seed of an arm read, found by name and place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halflife.errors import StoreError, UserError
from halflife.studies.evidence.results import Results
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
from tests.studies.synthetic_text import AT, BLOCKS, STEPS, make_text_store

KEY = "lr0.006-lam0.1"


def results_of(store: Store) -> Results:
    return Results(store, store.manifests()[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_text_store(tmp_path_factory.mktemp("text") / "store")


@pytest.fixture(scope="module")
def results(store: Store) -> Results:
    return results_of(store)


def test_a_number_and_an_array_are_read_by_one_method(store: Store, results: Results) -> None:
    name = "val/loss_blocks"
    own = next(arm for arm in results.arms if (arm["key"], arm["size"]) == (KEY, 32))
    raw = [store.run(own["runs"][str(seed)]).readings() for seed in results.seeds(32)]
    for place in ({"step": 8_000}, {"epoch": 8_000 / STEPS}):
        at = [next(r.values["val/loss"] for r in readings if r.step == 8_000) for readings in raw]
        assert results.read(KEY, "val/loss", 32, **place).tolist() == at
    assert results.read(KEY, "val/loss", 32).tolist() == [readings[-1].values["val/loss"] for readings in raw]
    for place, step in (({}, STEPS), ({"step": AT[0]}, AT[0]), ({"epoch": AT[0] / STEPS}, AT[0])):
        arrays = [next(r.arrays[name] for r in readings if r.step == step) for readings in raw]
        found = results.read(KEY, name, 32, **place)
        assert found.tolist() == [np.frombuffer(array.data, array.dtype).tolist() for array in arrays]
        assert found.shape == (3, BLOCKS)


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("val/loss", {"step": 7}, r"the run \w{16} has no reading at step 7: remove its folder"),
        ("val/loss", {"epoch": 0.33}, r"the run \w{16} has no reading at epoch 0.33: remove its folder"),
        ("val/loss", {"step": 2_000}, r"the run \w{16} has no val/loss at step 2000: remove its folder"),
        ("val/loss_blocks", {"step": 8_000}, r"the run \w{16} has no val/loss_blocks at step 8000: remove its folder"),
        ("test/error", {}, r"the run \w{16} has no test/error at any step: correct the name, or remove"),
        ("val/los", {}, r"has no val/los at any step \(did you mean val/loss\?\): correct the name"),
        ("val/loss_block", {}, r"\(did you mean val/loss_blocks\?\)"),
    ],
)
def test_what_one_method_does_not_find_is_an_error(
    results: Results, name: str, place: dict[str, Any], said: str
) -> None:
    with pytest.raises(StoreError, match=said):
        results.read(KEY, name, 32, **place)


def test_a_seed_without_an_array_is_an_error(tmp_path: Path) -> None:
    def change(key: str, spec: RunSpec, readings: list[Reading]) -> list[Reading]:
        one = key == KEY and spec.seed == 1
        return [replace(r, arrays={}) if one and r.step == AT[0] else r for r in readings]

    said = rf"the run \w{{16}} has no val/loss_blocks at step {AT[0]}: remove its folder"
    with pytest.raises(StoreError, match=said):
        results_of(make_text_store(tmp_path, change=change)).read(KEY, "val/loss_blocks", 32, step=AT[0])


def test_one_place_is_asked_for(results: Results) -> None:
    said = "val/loss is asked for at epoch 1 and at step 3, expected one: leave one out"
    with pytest.raises(UserError, match=said):
        results.read(KEY, "val/loss", 32, epoch=1, step=3)


def test_a_table_holds_what_is_asked_for(store: Store, results: Results) -> None:
    """A row for each reading that has one of the quantities, compared with the lines."""
    names = ("val/loss", "train/running_loss", "unknown")
    (own,) = (arm for arm in results.arms if (arm["key"], arm["size"]) == (KEY, 32))
    expected = [
        (KEY, own["label"], 32, seed, own["runs"][str(seed)], r.step, r.epoch, *(r.values.get(name) for name in names))
        for seed in results.seeds(32)
        for r in store.run(own["runs"][str(seed)]).readings()
        if not r.values.keys().isdisjoint(names)
    ]
    table = results.table(*names, arms=[KEY], size=32)
    assert table.columns == ["arm", "label", "size", "seed", "run", "step", "epoch", *names]
    assert table.rows() == expected
    assert {None} < {row[8] for row in expected}  # logged more often than it is evaluated


def test_the_frame_is_the_table_of_everything(results: Results) -> None:
    names = results.frame.columns[7:]
    assert {"val/loss", "train/running_loss", "weight_norm"} <= set(names)
    assert results.frame.equals(results.table(*names))
    sizes = {arm["size"] for arm in results.arms}
    assert sum(len(results.table(*names, size=size)) for size in sizes) == len(results.frame)
    assert results.table("unknown").is_empty()
    assert results.table("val/loss", arms=["unknown"]).rows() == []
