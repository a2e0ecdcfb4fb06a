"""The store is readable after a crash at any byte, by one writer at a time, and says what is wrong in a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from halflife.errors import StoreError
from halflife.studies.store.files import write_whole
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store, run_id

RUN = "0123456789abcdef"
READINGS = [
    Reading(step=39 * epoch, epoch=epoch, values={"train/loss": 1 / (epoch + 1), "é": 0.1})
    for epoch in range(4)
]  # fmt: skip
READINGS.append(Reading(step=200, epoch=5.1, values={}, arrays={"test/wrong": Array("bits", 9, b"\x80\x80")}))


def test_readings_come_back_as_they_were(tmp_path: Path) -> None:
    folder = Store(tmp_path).run(RUN)
    with folder.locked():
        for reading in READINGS:
            folder.append(reading)
    assert Store(tmp_path).run(RUN).readings() == READINGS


def test_a_crash_at_any_byte_leaves_every_whole_line(tmp_path: Path) -> None:
    folder = Store(tmp_path).run(RUN)
    with folder.locked():
        for reading in READINGS:
            folder.append(reading)
    path = folder.path / "readings.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        torn = bool(whole[:size]) and not whole[:size].endswith(b"\n")
        if torn:
            with pytest.warns(UserWarning, match=r"dropped a torn last line of \d+ bytes"):
                assert folder.readings() == READINGS[:kept]
        else:
            assert folder.readings() == READINGS[:kept]
        # A resumed run repeats what follows its checkpoint; the file ends as if nothing had happened.
        with folder.locked():
            for reading in READINGS:
                folder.append(reading)
        assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_said(tmp_path: Path) -> None:
    folder = Store(tmp_path).run(RUN)
    folder.path.mkdir(parents=True)
    (folder.path / "readings.jsonl").write_text(f"{READINGS[0].to_line()}\n{{broken\n{READINGS[1].to_line()}\n")
    with pytest.raises(StoreError, match=rf"readings.jsonl is damaged .*: remove the folder .*{RUN} and run again"):
        folder.readings()


def test_a_whole_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def dies(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    folder = Store(tmp_path).run(RUN)
    with folder.locked():
        folder.append(READINGS[0])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            StoreError, match=r"the disk of .* is full, and everything written so far is kept: free some"
        ):
            folder.append(READINGS[1])
    with pytest.raises(StoreError, match="is full"):
        folder.write_header({"status": "running"})
    monkeypatch.undo()
    assert folder.readings()[0] == READINGS[0]


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    """The kernel's own limit on a file's size stands in for a full disk: EFBIG in the middle of a line."""
    program = f"""
import resource, signal
from halflife.errors import StoreError
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Store({str(tmp_path)!r}).run("{RUN}")
with folder.locked():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        for step in range(100):
            folder.append(Reading(step=step, epoch=step, values={{"train/loss": 0.123456789}}))
    except StoreError as error:
        print(step, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    step, said = done.stdout.split(maxsplit=1)
    assert "is full, and everything written so far is kept" in said
    folder = Store(tmp_path).run(RUN)
    with pytest.warns(UserWarning, match="torn"):
        assert [reading.step for reading in folder.readings()] == list(range(int(step)))


def test_a_folder_that_may_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"file/store cannot be written \(Not a directory\), expected a place that you"
    ):
        Store(tmp_path / "file" / "store").create()
    with pytest.raises(StoreError, match=r"the store .*file is a file, expected a folder: choose another with --store"):
        Store(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_store_that_is_read_only_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its folders are there, so the lock is the first thing that would be written."""
    store = Store(tmp_path)
    store.create()
    folder = store.run(RUN)
    folder.path.mkdir()

    def refuses(path: str, flags: int, *rest: object, **more: object) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuses)
    said = rf"{tmp_path}.* cannot be written \({os.strerror(number)}\), expected a place that you may write to: choose"
    for held in (store, folder):
        with pytest.raises(StoreError, match=said), held.locked():
            pass


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).create()
    (tmp_path / "store.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match=r"has schema version 99, and this halflife writes 1: choose another folder"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "holds a list, expected a JSON object")]
)
def test_a_broken_header_is_said(tmp_path: Path, text: str, message: str) -> None:
    folder = Store(tmp_path).run(RUN)
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        folder.header()


def test_one_process_writes_a_store_and_others_read_it(tmp_path: Path) -> None:
    program = f"""
from halflife.studies.store.store import Store
from halflife.errors import StoreError
store = Store({str(tmp_path)!r})
print(len(store.manifests()))
try:
    with store.locked():
        print("held")
except StoreError as error:
    print(error)
try:
    with store.run("{RUN}").locked(timeout=0):
        print("held")
except StoreError as error:
    print(error)
"""
    store = Store(tmp_path)
    with store.locked(), store.run(RUN).locked():
        arm = {"key": "k", "label": "an arm", "size": 1, "runs": {}}
        store.write_manifest("a-b", {"study": "a", "preset": "b", "main_size": 1, "arms": [arm]})
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "1",
        f"another halflife process is writing the store {tmp_path}: wait until it ends, or give this one its own folder"
        " with --store",
        f"another process still works on the run {RUN}: wait until it ends, or stop it",
    ]
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["1", "held", "held"]


def test_a_run_is_named_by_spec_trainer_and_data() -> None:
    names = {
        run_id(*parts)
        for parts in (("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("ab", "", "c"))
    }
    assert len(names) == 5
    assert all(len(name) == 16 for name in names)
