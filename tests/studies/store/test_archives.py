"""Archives read as a store: what pack wrote comes back, and anything else is one sentence."""

from __future__ import annotations

import gc
import io
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from halflife.errors import StoreError
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report import report_folder
from halflife.studies.report.pages.tables import verdict_rows
from halflife.studies.store import archives
from halflife.studies.store.archives import ArchivedStore, holds_archives
from halflife.studies.store.store import Store
from tests.studies.synthetic import make_store
from tests.studies.tools import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("results")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("archives") / "store"
    make_store(folder)
    return make_store(folder, study="stabilization-vgg")  # the same runs, so both archives hold them


@pytest.fixture(scope="module")
def packed(source: Store, tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    assert [path.name for path in tool.pack(source.path, folder)] == [
        "stabilization-laptop.tar.xz",
        "stabilization-vgg-laptop.tar.xz",
    ]
    return folder


def rows_of(store: Store) -> list[dict[str, object]]:
    many = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    return [row for results in many for row in verdict_rows(results.verdicts())]


def test_archives_say_what_the_store_said(source: Store, packed: Path) -> None:
    assert holds_archives(packed)
    assert not holds_archives(source.path)
    assert not holds_archives(packed / "nothing")
    store = ArchivedStore(packed, notice=pytest.fail)
    assert store.manifests() == source.manifests()
    assert rows_of(store) == rows_of(source)
    (one,) = ArchivedStore(packed / "stabilization-laptop.tar.xz").manifests()
    assert one["study"] == "stabilization"


def test_what_was_unpacked_goes_with_the_store(packed: Path) -> None:
    store = ArchivedStore(packed)
    folder = store.path
    assert folder.is_dir()
    assert packed not in folder.parents
    del store
    assert not folder.exists()


def test_results_keep_what_they_read(packed: Path, source: Store) -> None:
    """Runs are read when they are asked for: long after the last word of the store itself."""
    store = ArchivedStore(packed)
    many = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    del store
    gc.collect()
    assert [row for results in many for row in verdict_rows(results.verdicts())] == rows_of(source)


def test_a_report_of_archives_is_written_elsewhere(packed: Path, source: Store) -> None:
    assert report_folder(ArchivedStore(packed)) == Path("halflife-report")
    assert report_folder(source) == source.path


Member = tuple[str, bytes]
READABLE = (("store.json", b'{"schema": 1}'), ("sheets/a-laptop.json", b"{}"))


def archive(path: Path, *members: Member, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> Path:
    with tarfile.open(path, "w:xz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            file.addfile(info, io.BytesIO(content))
    return path


def as_link(info: tarfile.TarInfo) -> None:
    if info.name.startswith("sheets"):
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def as_folder(info: tarfile.TarInfo) -> None:
    if info.name.startswith("sheets"):
        info.type, info.size = tarfile.DIRTYPE, 0


def no_archives() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    yield "empty", lambda path: path.write_bytes(b""), "it ends too early"
    yield "no xz", lambda path: path.write_bytes(b"PK\x03\x04 some other file"), "format not supported"
    yield "xz of words", lambda path: path.write_bytes(lzma.compress(b"words " * 500)), "header|no file|holds no runs"
    yield "xz of nothing", lambda path: path.write_bytes(lzma.compress(b"")), "empty|end of file|holds no runs"
    yield (
        "a name that leads out",
        lambda path: archive(path, *READABLE, ("../out", b"")),
        "'../out' is no file of a store",
    )
    yield "an absolute name", lambda path: archive(path, *READABLE, ("/tmp/out", b"")), "is no file of a store"
    yield (
        "another file",
        lambda path: archive(path, *READABLE, ("runs/x.pkl", b"")),
        "'runs/x.pkl' is no file of a store",
    )
    yield (
        "a link",
        lambda path: archive(path, *READABLE, change=as_link),
        "'sheets/a-laptop.json' is no file of a store",
    )
    yield "a folder", lambda path: archive(path, *READABLE, change=as_folder), "is no file of a store"
    yield "twice", lambda path: archive(path, *READABLE, READABLE[1]), "sheets/a-laptop.json is in it twice"
    yield "no runs", lambda path: archive(path, READABLE[0]), "it holds no runs"
    yield "no store.json", lambda path: archive(path, READABLE[1]), "it holds no runs"


CASES = list(no_archives())


@pytest.mark.parametrize(("write", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_no_archive_is_one_sentence(
    packed: Path, tmp_path: Path, write: Callable[[Path], object], why: str
) -> None:
    bad = tmp_path / "aa.tar.xz"
    write(bad)
    message = (
        rf"aa\.tar\.xz is no whole archive of runs \(.*({why}).*\), expected what .* fetch it again, or leave it out"
    )
    with pytest.raises(StoreError, match=message):
        ArchivedStore(bad)
    shutil.copy(packed / "stabilization-laptop.tar.xz", tmp_path)
    said: list[str] = []
    store = ArchivedStore(tmp_path, notice=said.append)
    assert [manifest["study"] for manifest in store.manifests()] == ["stabilization"], "the others are read"
    assert len(said) == 1
    assert not (tmp_path.parent / "out").exists()
    assert sorted(path.name for path in store.path.iterdir()) == ["runs", "sheets", "store.json"]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_of_a_torn_archive_nothing_is_used(packed: Path, tmp_path: Path, part: float) -> None:
    whole = (packed / "stabilization-laptop.tar.xz").read_bytes()
    (tmp_path / "torn.tar.xz").write_bytes(whole[: int(part * len(whole))])
    shutil.copy(packed / "stabilization-vgg-laptop.tar.xz", tmp_path)
    said: list[str] = []
    store = ArchivedStore(tmp_path, notice=said.append)
    assert [manifest["study"] for manifest in store.manifests()] == ["stabilization-vgg"]
    assert "torn.tar.xz is no whole archive" in said[0]


def test_archives_that_disagree_about_a_run_are_told_apart(packed: Path, tmp_path: Path, source: Store) -> None:
    """Two archives share runs; who changes one of them does not change what the other says."""
    identity = next(iter(source.manifests()[0]["arms"][0]["runs"].values()))
    members = [("store.json", (source.path / "store.json").read_bytes()), (f"runs/{identity}/run.json", b"{}")]
    archive(tmp_path / "zz.tar.xz", *members)
    shutil.copy(packed / "stabilization-laptop.tar.xz", tmp_path)
    said: list[str] = []
    store = ArchivedStore(tmp_path, notice=said.append)
    assert rows_of(store) == [row for row in rows_of(source) if row["study"] == "stabilization"]
    assert f"its runs/{identity}/run.json differs from that of another archive" in said[0]


def test_sizes_and_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "a.tar.xz", *READABLE, ("sheets/b-laptop.json", b"0" * 200_000))
    monkeypatch.setattr(archives, "LARGEST_JSON", 100_000)
    with pytest.raises(StoreError, match=r"sheets/b-laptop\.json is in it twice, or too large"):
        ArchivedStore(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 100_000)
    with pytest.raises(StoreError, match=r"is no whole archive of runs \(it is too large\)"):
        ArchivedStore(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "LARGEST_DICTIONARY", 1 << 16)
    with pytest.raises(StoreError, match=r"is no whole archive of runs .*[Mm]emory"):
        ArchivedStore(tmp_path)


def test_a_folder_without_archives_is_none(tmp_path: Path) -> None:
    assert not holds_archives(tmp_path)
    with pytest.raises(StoreError, match=r"holds no archive, expected \*\.tar\.xz: name another --store"):
        ArchivedStore(tmp_path)
