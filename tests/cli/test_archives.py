"""Commands that read archives as they read a store, and archives that are none."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from halflife.errors import StoreError
from tests.cli.test_study_list import said
from tests.studies.synthetic import make_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one archive in it, the current one."""
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "store")
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives/stabilization-laptop.tar.xz", "w:xz") as archive:
        for path in sorted(store.path.rglob("*")):
            if path.is_file():
                archive.add(path, path.relative_to(store.path).as_posix())
    shutil.rmtree(store.path)
    return tmp_path


def test_archives_are_read_like_a_store_and_stay_as_they_are(folder: Path) -> None:
    before = (folder / "archives/stabilization-laptop.tar.xz").read_bytes()
    assert "stabilization (laptop)" in said("study", "verdicts", folder=Path("archives"))
    assert "stabilization (laptop)" in said("study", "verdicts", folder=Path("archives/stabilization-laptop.tar.xz"))
    assert said("export", folder=Path("archives")).split() == ["halflife-export/stabilization-laptop.csv"]
    with pytest.raises(StoreError, match="archives holds archives, which are only read: choose another folder with"):
        said("study", "run", "stabilization", "--preset", "smoke", folder=Path("archives"))
    assert [path.name for path in (folder / "archives").iterdir()] == ["stabilization-laptop.tar.xz"]
    assert (folder / "archives/stabilization-laptop.tar.xz").read_bytes() == before


def test_an_archive_that_is_none_is_named_and_the_others_are_shown(folder: Path) -> None:
    (folder / "archives/broken.tar.xz").write_bytes(b"no archive")
    words = said("study", "verdicts", folder=Path("archives"))
    assert "archives/broken.tar.xz is no whole archive of runs (" in words
    assert "fetch it again, or leave it out" in words
    assert "stabilization (laptop)" in words
    with pytest.raises(StoreError, match=r"broken.tar.xz is no whole archive of runs \(.*\), expected what"):
        said("study", "verdicts", folder=Path("archives/broken.tar.xz"))
