"""What `make demo` does: it installs quietly, says what is true of three set-ups, and shows what was found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halflife.audit.target import audit
from tests import ROOT
from tests.studies.tools import load_tool

QUIETLY = [sys.executable, str(ROOT / "tools" / "quietly.py")]


def run_quietly(log: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [*QUIETLY, str(log), "Installing", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_a_command_says_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "install.log"
    done = run_quietly(log, "import sys; print('much'); print('more', file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    assert sorted(log.read_text().split()) == ["more", "much"]
    assert done.stdout.splitlines() == [f"Installing (log: {log})", "  done in 0 s"]
    assert not done.stderr


def test_the_end_of_the_log_is_shown_when_the_command_fails(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    done = run_quietly(log, "for i in range(50): print('line', i)\nraise SystemExit(3)")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[0] == f"Installing: this failed, and {log} ends with:"
    assert lines[1:] == [f"line {i}" for i in range(30, 50)]


# A job that a script starts in the background ignores Ctrl-C, and so does what it starts: the tests too, then.
HEARS_CTRL_C = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)


def test_ctrl_c_ends_the_command_and_says_how_to_go_on(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    sleeps = [
        *HEARS_CTRL_C,
        *QUIETLY,
        str(log),
        "Installing",
        sys.executable,
        "-c",
        "import time; print(1, flush=True); time.sleep(60)",
    ]
    process = subprocess.Popen(
        sleeps, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (log.exists() and log.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped; the same command goes on" in said
    assert not errors


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return load_tool("demo")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "adam",
            "the decay is l2-preconditioned, and no fixed fraction of a weight is removed. And 4 of the 6 tensors",
        ),
        ("two_groups", "positions.weight decays, and so does tokens.weight, which is the head as well. Half of"),
        ("sgd", "A step removes 0.0005 of a weight at the first learning rate, 10 times lr * lam = 5e-05"),
    ],
)
def test_a_surprise_is_what_the_audit_found(demo: ModuleType, name: str, words: str) -> None:
    found = audit(str(ROOT / demo.SETUPS) + f":{name}", total_steps=demo.TOTAL_STEPS)
    assert words in demo.SURPRISES[name](found)


def test_findings_are_written_once_and_again_for_newer_results(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    codes = [1, 0, 0]

    def quietly(log: Path, words: str, command: list[str]) -> int:
        calls.append(command)
        return codes[len(calls) - 1]

    (tmp_path / "results").mkdir()
    archive = tmp_path / "results" / "one.tar.xz"
    archive.touch()
    pages = tmp_path / "halflife-report"
    pages.mkdir()
    for name, value in {"quietly": quietly, "ROOT": tmp_path, "PAGES": pages}.items():
        monkeypatch.setattr(demo, name, value)
    assert demo.show_findings() == 1  # and is tried again
    assert [demo.show_findings(), demo.show_findings()] == [0, 0]
    assert len(calls) == 2
    assert str(pages / "report.html") in capsys.readouterr().out
    later = time.time() + 10
    os.utime(archive, (later, later))
    assert demo.show_findings() == 0
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("terminal", "environment", "opened"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (False, {"DISPLAY": ":0"}, False),
        (True, {"DISPLAY": ":0", "CI": "true"}, False),
        (True, {}, False),
    ],
)
def test_a_browser_is_opened_on_a_desktop_alone(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], opened: bool
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    demo.open_page("file:///page.html")
    assert len(started) == opened
    for command, options in started:
        assert command[-1] == "file:///page.html"
        assert options["start_new_session"]  # nothing waits for it
