"""What ``make dist`` compares, on files made here; the target itself builds, installs and tries the real ones."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import ROOT
from tests.studies.tools import load_tool

DIST = load_tool("dist")


def test_a_wheel_is_read_as_the_sources_that_it_should_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("halflife/py.typed", "a-1.dist-info/METADATA", "a-1.dist-info/licenses/LICENSE"):
            wheel.writestr(name, "")
    found = DIST.files_of_wheel(path)
    assert found == {"src/halflife/py.typed", "licence LICENSE"}
    with pytest.raises(DIST.FailedError, match=r"the wheel lacks 1 file: src/halflife/data\.xz"):
        DIST.compare("the wheel", found, found | {"src/halflife/data.xz"})
    with pytest.raises(
        DIST.FailedError, match=r"the wheel should not have 2 files: licence LICENSE, src/halflife/py\.typed"
    ):
        DIST.compare("the wheel", found, set())


def test_an_sdist_is_read_without_its_own_folder(tmp_path: Path) -> None:
    path, content = tmp_path / "a.tar.gz", tmp_path / "content"
    content.write_text("", encoding="utf-8")
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a-1/PKG-INFO", "a-1/tools/dist.py"):
            archive.add(content, name)
    assert DIST.files_of_sdist(path) == {"tools/dist.py"}


def test_the_wheel_is_to_hold_the_data_their_licence_and_the_marker_of_types(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "src/halflife/studies/lab/images/files/fashion-mnist"
    known = {"src/halflife/py.typed", f"{data}-5k.xz", f"{data}.LICENSE"}
    monkeypatch.setattr(DIST, "tracked", lambda folder: known)
    assert DIST.expected_of_wheel() == known | {"licence LICENSE", f"licence {data}.LICENSE"}
    monkeypatch.setattr(DIST, "tracked", lambda folder: known - {f"{data}-5k.xz"})
    with pytest.raises(DIST.FailedError, match=r"git does not know .*5k\.xz, which the wheel needs"):
        DIST.expected_of_wheel()


def test_the_examples_are_those_of_the_library() -> None:
    page = "# x\n```python\na = 1\n```\n## Prove\n```sh\nb\n```\n```python\nc = a\n```\n## Study\n```python\nd\n```\n"
    assert DIST.library_examples(page) == ["a = 1\n", "c = a\n"]
    assert DIST.library_examples((ROOT / "README.md").read_text(encoding="utf-8"))
