"""``tools/gpu_check.sh`` on a CPU: parts of it here, the whole in the slow set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.studies.tools import load_tool

CHECK = load_tool("gpu_check")


def gpu_check(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "gpu_check.sh"), *words],
        env=os.environ | {"PYTHON": sys.executable, "OUT": str(out)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_parts_on_a_cpu(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--device", "cpu", "--parts", "environment,no-sync")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert done.stdout.splitlines()[0] == json.dumps(document)
    assert document["ok"] is True
    statuses = {(row["part"], row["check"]): row["status"] for row in document["rows"]}
    assert statuses["environment", "versions"] == "ok"
    assert statuses["no-sync", "Stable on AdamW, fused"] == "ok"
    assert statuses["no-sync", "waits for the device"] == "skipped"
    last = done.stdout.splitlines()[-1]
    assert f"{list(statuses.values()).count('ok')} ok, 1 skipped; on cpu, in" in last


def test_what_cannot_be_run_is_a_sentence(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--parts", "nosuch")
    assert done.returncode == 2
    assert "expected parts of environment," in done.stderr
    assert "got nosuch" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_part_over_its_limit_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    words = ["bash", "-c", f"sleep 300 & echo $! >{pid}; echo begun; wait"]
    begun = time.monotonic()
    assert CHECK.supervised(words, 1.0, dict(os.environ), tmp_path / "log") is None
    assert time.monotonic() - begun < 60
    assert (tmp_path / "log").read_text(encoding="utf-8") == "begun\n"
    child = Path("/proc", pid.read_text(encoding="utf-8").strip(), "stat")
    for _ in range(100):  # an orphan is buried by the system in its own time
        if not child.exists() or child.read_text(encoding="utf-8").split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the part's child lives on")


def test_rows_of_a_part_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"check": "a"}\n{"check": "b', encoding="utf-8")
    assert CHECK.rows_in(path) == [{"check": "a"}]
    assert CHECK.rows_in(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("time.sleep(300)", "not reached", "killed after 3 s"),
        ("raise ValueError('it broke')", "FAILED", "ValueError: it broke"),
        ("os._exit(7)", "FAILED", ""),
    ],
)
def test_a_part_that_does_not_come_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: str, said: str
) -> None:
    """What it found before counts, and the end is told."""
    script = tmp_path / "check.py"
    source = (ROOT / "tools" / "gpu_check.py").read_text(encoding="utf-8")
    broken = (
        f'def environment(device: str) -> Rows:\n    yield row("first", True)\n    {body}\n\n\ndef unused() -> Rows:'
    )
    script.write_text(source.replace("def environment(device: str) -> Rows:", broken), encoding="utf-8")
    monkeypatch.setattr(CHECK, "__file__", str(script))
    found = CHECK.run_part("environment", "cpu", 3.0, dict(os.environ), tmp_path)
    assert [(each["check"], each["status"]) for each in found] == [("first", "ok"), ("the rest", status)]
    assert said in found[1]["note"]
    assert all(each["part"] == "environment" for each in found)


def test_what_is_missing_is_told_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHECK, "there", lambda package, env: package != "safetensors")
    (found,) = CHECK.run_part("smoke", "cpu", 60.0, {}, tmp_path)
    assert found["status"] == "not reached"
    assert found["note"].startswith("safetensors missing: bash tools/gpu_check.sh --pack .whl")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_on_a_cpu(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--device", "cpu", "--seconds", "800")
    document = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert done.returncode == 0, [row for row in document["rows"] if row["status"] not in {"ok", "measured", "skipped"}]
    assert {row["part"] for row in document["rows"]} == set(CHECK.PARTS)
    assert document["seconds"] < 800
