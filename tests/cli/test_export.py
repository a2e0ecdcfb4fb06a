"""``halflife export``: what the tables hold, against the readings as they lie in the store."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import polars as pl
import pytest

from halflife.errors import StoreError, UserError
from halflife.studies import Results, Store
from halflife.studies.store.files import read_object, write_object
from tests.cli.test_study_list import said
from tests.studies.synthetic import make_store

HEAD = ["arm", "label", "size", "seed", "run", "step", "epoch"]


def lines_of(store: Path, identity: str) -> list[dict[str, object]]:
    text = (store / "runs" / identity / "readings.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_csv_has_every_reading_of_paired_seeds(tmp_path: Path) -> None:
    make_store(
        tmp_path / "store",
        num_seeds=3,
        sizes=(4, 8),
        status=lambda key, seed, size: "running" if (key, seed, size) == ("small-none", 1, 8) else "finished",
    )
    said("export", folder=tmp_path / "store")
    path = tmp_path / "store" / "export" / "stabilization-laptop.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(HEAD)] == HEAD
    (manifest,) = Store(tmp_path / "store").manifests()
    expected = 0
    for arm in manifest["arms"]:
        for seed, identity in arm["runs"].items():
            own = [row for row in rows if (row["run"], row["arm"]) == (identity, arm["key"])]
            if (arm["size"], seed) == (8, "1"):  # an arm of that size has not finished this seed
                assert not own
                continue
            readings = lines_of(tmp_path / "store", identity)
            expected += len(readings)
            assert [(row["label"], row["size"], row["seed"]) for row in own] == [
                (arm["label"], str(arm["size"]), seed)
            ] * len(readings)
            for row, reading in zip(own, readings, strict=True):
                assert (int(row["step"]), float(row["epoch"])) == (reading["step"], reading["epoch"])
                values = {name: float(cell) for name, cell in row.items() if name not in HEAD and cell}
                assert values == reading["values"], "to the last bit, and empty where nothing was read"
    assert len(rows) == expected


def test_parquet_is_the_documented_frame(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    make_store(tmp_path / "store", study="stabilization-vgg")
    words = said(
        "export", "stabilization", "--format", "parquet", "--out", str(tmp_path / "a/b"), folder=tmp_path / "store"
    )
    (path,) = (tmp_path / "a/b").iterdir()
    assert words.split() == [str(path)]
    manifest = next(m for m in Store(tmp_path / "store").manifests() if m["study"] == "stabilization")
    assert pl.read_parquet(path).equals(Results(Store(tmp_path / "store"), manifest).frame)


def test_a_study_without_a_whole_seed_is_named_and_the_others_are_written(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    make_store(tmp_path / "store", preset="night", num_seeds=1, sizes=(16,), status=lambda key, seed, size: "running")
    words = said("export", folder=tmp_path / "store")
    assert (
        "stabilization-night has no seed that is finished in every arm, so there is nothing to export of it yet"
        in words
    )
    assert [path.name for path in (tmp_path / "store/export").iterdir()] == ["stabilization-laptop.csv"]
    make_store(tmp_path / "bare", status=lambda key, seed, size: "running")
    with pytest.raises(StoreError, match="has nothing to export yet: let `halflife study run` finish a seed first"):
        said("export", folder=tmp_path / "bare")


def test_wrong_input_of_export_is_one_sentence(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    with pytest.raises(UserError, match="--format is 'xlsx', expected csv or parquet: choose one of these"):
        said("export", "--format", "xlsx", folder=tmp_path / "store")
    with pytest.raises(UserError, match="there is no study 'nothing', expected one of"):
        said("export", "nothing", folder=tmp_path / "store")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(File exists\)"):
        said("export", "--out", str(tmp_path / "file"), folder=tmp_path / "store")
    make_store(tmp_path / "foreign")
    sheet = tmp_path / "foreign/sheets/stabilization-laptop.json"
    write_object(sheet, read_object(sheet) | {"study": "../../up"})
    with pytest.raises(StoreError, match=r"study is '../../up', expected a name of at most"):
        said("export", folder=tmp_path / "foreign")
    assert not list(tmp_path.glob("up*"))
