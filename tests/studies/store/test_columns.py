"""Readings by quantity: the same as the lines say, from memory and from the compact form, which is never believed blindly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from halflife.errors import StoreError
from halflife.studies.store import columns as module
from halflife.studies.store.columns import Columns, Recent, read_columns, tensors_of
from halflife.studies.store.records import Array, Reading, read_records
from halflife.studies.store.store import RunFolder, Store

RUN = "0123456789abcdef"
HEADER: dict[str, Any] = {"id": RUN, "status": "running", "spec": {"kind": "images", "seed": 0}}

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=4)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
places = st.tuples(st.integers(1, 9), st.floats(0, 100))
readings = st.lists(
    st.tuples(places, st.dictionaries(names, numbers, max_size=4), st.sets(st.sampled_from("ab"))), max_size=6
)


def made(found: list[tuple[tuple[int, float], dict[str, float], set[str]]]) -> list[Reading]:
    """Readings in order, with arrays of bits and of floats."""
    step, out = -1, []
    for (more, epoch), values, arrays in found:
        step += more
        kinds = {
            "a": Array("bits", 11, bytes([step % 256, 0x20])),
            "b": Array("<f4", 2, np.array([step, -0.5], "<f4").tobytes()),
        }
        out.append(
            Reading(step=step, epoch=epoch, values=values, arrays={f"array/{name}": kinds[name] for name in arrays})
        )
    return out


def numbers_of(array: Array) -> list[float]:
    """An array's numbers, without the code under test."""
    if array.dtype == "bits":
        return [array.data[i // 8] >> (7 - i % 8) & 1 for i in range(array.length)]
    return [float(value) for value in memoryview(array.data).cast("f")]


def check(columns: Columns, expected: list[Reading]) -> None:
    """Compare with the readings one by one."""
    assert columns.step.tolist() == [reading.step for reading in expected]
    assert columns.epoch.tolist() == [reading.epoch for reading in expected]
    quantities = {name for reading in expected for name in reading.values}
    assert columns.quantities == sorted(quantities)
    for name in (*quantities, "array/a", "array/b", "unknown"):
        rows = [i for i, r in enumerate(expected) if name in r.values or name in r.arrays]
        assert columns.rows(name).tolist() == rows
        assert columns.quantity(name).tolist() == [r.values[name] for r in expected if name in r.values]
        for row, reading in enumerate(expected):
            found = columns.at(row, name)
            if name in reading.arrays:
                assert isinstance(found, np.ndarray)
                assert found.tolist() == numbers_of(reading.arrays[name])
            else:
                assert found == reading.values.get(name)


@given(readings)
def test_columns_say_what_the_lines_say(found: list[Any]) -> None:
    expected = made(found)
    text = "".join(reading.to_line() + "\n" for reading in expected)
    check(Columns(tensors_of(read_records(text))), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(readings)
def test_the_compact_form_says_what_the_lines_say(tmp_path: Path, found: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALLEST_COMPACT", 0)
        expected = made(found)
        path = tmp_path / "readings.jsonl"
        path.write_text("".join(reading.to_line() + "\n" for reading in expected))
        check(read_columns(path, None, Recent()), expected)
        patch.setattr(module, "_read_lines", None)  # the form alone serves from here on
        check(read_columns(path, None, Recent()), expected)
        patch.setattr(module, "_read_lines", None)
        check(read_columns(path, None, Recent(most=1)), expected)


READINGS = made(
    [
        (
            (3, i / 2),
            {"train/loss": 1 / (i + 1)} | ({"test/error": 0.1 * i} if i % 4 else {}),
            set("a" if i % 8 == 0 else ""),
        )
        for i in range(400)
    ]
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run with many readings."""
    folder = Store(tmp_path / "store").run(RUN)
    folder.write_header(HEADER)
    (folder.path / "readings.jsonl").write_text("".join(reading.to_line() + "\n" for reading in READINGS))
    folder.finish(HEADER)
    return folder


def compact(run: RunFolder) -> Path:
    return run.path / "readings.safetensors"


def no_lines(_lines: Path, _recorded: Any) -> dict[str, Any]:
    raise AssertionError("the lines were read")


def test_a_run_that_ends_records_its_readings_and_leaves_the_compact_form(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = run.header()
    assert header["status"] == "finished"
    assert header["readings"]["count"] == len(READINGS)
    assert header["readings"]["bytes"] == (run.path / "readings.jsonl").stat().st_size
    monkeypatch.setattr(module, "_read_lines", no_lines)
    check(run.columns(header), READINGS)
    # It is a plain file of a known format.
    tensors = load_file(compact(run))
    assert tensors["value:train/loss"].tolist() == [reading.values["train/loss"] for reading in READINGS]
    assert tensors["array-rows:array/a"].tolist() == [11, *range(0, 400, 8)]


def test_only_what_is_asked_for_is_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(file, size, offset)

    columns = run.columns(run.header())
    monkeypatch.setattr(os, "pread", counted)
    columns.quantity("train/loss")
    columns.quantity("train/loss")  # held
    assert read == [8 * len(READINGS)]


def test_a_run_that_read_nothing_may_end(tmp_path: Path) -> None:
    folder = Store(tmp_path / "store").run(RUN)
    folder.write_header(HEADER)
    folder.finish(HEADER)
    assert folder.header()["readings"]["count"] == 0
    check(folder.columns(folder.header()), [])


@pytest.mark.parametrize("place", [*range(0, 400, 13), -1, -100, -2000, -5000])
def test_a_flipped_bit_of_the_compact_form_changes_nothing(
    run: RunFolder, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are read again, and the form is written anew."""
    raw = bytearray(compact(run).read_bytes())
    raw[place] ^= 4
    compact(run).write_bytes(raw)
    check(run.columns(run.header()), READINGS)
    monkeypatch.setattr(module, "_read_lines", no_lines)
    check(run.columns(run.header()), READINGS)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 1000, 5000])
def test_a_compact_form_that_is_cut_is_written_anew(run: RunFolder, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(run).write_bytes(compact(run).read_bytes()[:size])
    check(run.columns(run.header()), READINGS)
    monkeypatch.setattr(module, "_read_lines", no_lines)
    check(run.columns(run.header()), READINGS)


def test_a_compact_form_of_other_lines_is_not_believed(run: RunFolder) -> None:
    header = {name: value for name, value in run.header().items() if name != "readings"}  # as of older runs
    path = run.path / "readings.jsonl"
    about = path.stat()
    path.write_text(path.read_text().replace('"train/loss":1.0', '"train/loss":9.0'))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # size and time as before
    assert path.stat().st_size == about.st_size
    assert run.columns(header).at(0, "train/loss") == 9.0
    with pytest.raises(StoreError, match="its sha256 is not the one with which the run finished"):
        run.columns(run.header())


def test_a_compact_form_that_came_with_a_store_is_not_believed(run: RunFolder, tmp_path: Path) -> None:
    """One with false numbers and true checksums."""
    tensors = load_file(compact(run))
    tensors["value:train/loss"] = tensors["value:train/loss"] - 1
    raw = compact(run).read_bytes()
    words = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    name = "value:train/loss"
    words[f"crc32 {name}"] = module._checksum(name, "F64", tensors[name].shape, tensors[name].tobytes())
    save_file(tensors, compact(run), words)
    assert run.columns(run.header()).at(0, "train/loss") == 0.0  # it would work
    store = Store(shutil.copytree(run.path.parents[1], tmp_path / "copy"))
    assert store.run(RUN).columns(run.header()).at(0, "train/loss") == 1.0


def test_a_store_that_is_read_only_is_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(run).unlink()

    def denied(*_: object, **__: object) -> None:
        raise StoreError("it cannot be written")

    monkeypatch.setattr(module, "write_whole", denied)
    check(run.columns(run.header()), READINGS)
    assert not compact(run).exists()


def test_few_lines_need_no_compact_form(tmp_path: Path) -> None:
    folder = Store(tmp_path / "store").run(RUN)
    folder.write_header(HEADER)
    (folder.path / "readings.jsonl").write_text(READINGS[0].to_line() + "\n")
    folder.finish(HEADER)
    check(folder.columns(folder.header()), READINGS[:1])
    assert sorted(path.name for path in folder.path.iterdir()) == ["readings.jsonl", "run.json"]


def test_what_was_read_last_is_held() -> None:
    recent, loaded = Recent(most=3 * 80), list[str]()

    def get(name: str) -> None:
        recent.get(("a", name), lambda: loaded.append(name) or np.zeros(10))  # type: ignore[func-returns-value]

    for name in "abcabcdaa":
        get(name)
    assert "".join(loaded) == "abcda"
