"""What ``make compat`` reads and writes, on a report made here; the target itself installs another torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import ROOT
from tests.studies.tools import load_tool

COMPAT = load_tool("compat")
REPORT = """<testsuites><testsuite>
<testcase classname="a" name="passes"/>
<testcase classname="a" name="fails"><failure message="no"/></testcase>
<testcase classname="b" name="breaks"><error message="no"/></testcase>
<testcase classname="b" name="first"><skipped message="this torch has no Muon"/></testcase>
<testcase classname="b" name="second"><skipped message="this torch has
 no Muon"/></testcase>
</testsuite></testsuites>"""


def test_the_page_has_what_was_seen() -> None:
    assert COMPAT.table() in (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def test_a_report_is_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(REPORT, encoding="utf-8")
    seen = COMPAT.counted(tmp_path / "tests.xml")
    assert (seen["passed"], seen["failed"]) == (1, ["a::fails", "b::breaks"])
    assert seen["skipped"] == {"this torch has no Muon": 2}
    about = {"torch": "2.9.1+cpu", "python": "3.12.1", "numpy": "2.4.6", "missing": {"torchao": "ImportError: a | b"}}
    assert COMPAT.row({**seen, **about, "date": "2026-11-30"}) == (
        "| 2.9.1+cpu | 3.12.1 | 2.4.6 | 1 | 2: a::fails, b::breaks | 2 x this torch has no Muon; without torchao: ImportError:"
        " a \\| b | 2026-11-30 |"
    )


def test_what_is_seen_again_replaces_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPAT, "RECORD", tmp_path / "seen.json")
    monkeypatch.setattr(COMPAT, "PAGE", tmp_path / "page.md")
    COMPAT.PAGE.write_text(f"# Head\n\n{COMPAT.BEGIN}\n\nold\n\n{COMPAT.END}\n\nfoot\n", encoding="utf-8")
    row = {"numpy": "2.4.6", "passed": 5, "failed": [], "skipped": {}, "missing": {}, "date": "2026-11-30"}
    for torch, python, passed in (("2.14.1+cu130", "3.13.5", 5), ("2.9.1", "3.11.7", 6), ("2.14.1+cpu", "3.13.6", 7)):
        COMPAT.keep({**row, "torch": torch, "python": python, "passed": passed})
    lines = COMPAT.PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| 2")] == [
        "| 2.9.1 | 3.11.7 | 2.4.6 | 6 | 0 | - | 2026-11-30 |",
        "| 2.14.1+cpu | 3.13.6 | 2.4.6 | 7 | 0 | - | 2026-11-30 |",
    ]
    assert (lines[0], lines[-1]) == ("# Head", "foot")
    assert "old" not in lines
