"""Output that nobody reads, has no room or is closed; other terminals; Ctrl-C: no traceback, and a code that says it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.studies.synthetic import make_store

AUDITED = """
import torch
model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(50)])


def make():
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
"""
HOLDS, FAILS = "--expect *=decoupled:0.1", "--expect *=decoupled:0.5"
# Commands, with the exit code when nobody reads the output, and when it is closed from the start.
COMMANDS: dict[str, tuple[int, int]] = {
    "study list": (141, 0),
    "study list --long": (141, 0),
    "study list --json": (141, 0),
    "study run stabilization --preset smoke --dry-run": (141, 0),
    "study verdicts": (141, 0),
    f"audit make.py:make {HOLDS}": (0, 0),
    f"audit make.py:make {FAILS}": (1, 1),
    f"audit make.py:make {FAILS} --json": (1, 1),
}
FAST = {"study list --long"}
ALL = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("user")
    (made / "make.py").write_text(AUDITED, encoding="utf-8")
    make_store(made / "halflife-runs")
    return made


def shell(folder: Path, words: str, redirected: str, **environment: str) -> tuple[int, str]:
    """Run the command in a shell; return its code and what it says on standard error."""
    quoted = f'set -f; "{sys.executable}" -m halflife {words}'
    done = subprocess.run(
        ["bash", "-c", f"{quoted} {redirected}"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ALL)
def test_nobody_reads_the_output(folder: Path, words: str) -> None:
    code, errors = shell(folder, words, "| true; exit ${PIPESTATUS[0]}")
    assert code == COMMANDS[words][0]
    assert (errors == "") == (FAILS not in words)


@pytest.mark.parametrize("words", ALL)
def test_the_output_is_closed(folder: Path, words: str) -> None:
    assert shell(folder, words, ">&-")[0] == COMMANDS[words][1]
    assert shell(folder, words, "2>&- >&- <&-")[0] == COMMANDS[words][1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ALL)
def test_the_output_has_no_room(folder: Path, words: str) -> None:
    code, errors = shell(folder, words, "> /dev/full")
    assert code == 2
    assert "error: there is no room left to write the output" in errors


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_other_terminals(folder: Path, words: str) -> None:
    code = COMMANDS[words][1]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in (
        ascii_only,
        {"COLUMNS": "40"},
        {"COLUMNS": "x"},
        {"COLUMNS": "1"},
        {"TERM": "dumb", "NO_COLOR": "1"},
    ):
        assert shell(folder, words, "", **environment)[0] == code, environment


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["study list", "selfcheck", "report", "study run stabilization --preset night --workers 1"]
)
@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_ctrl_c(folder: Path, words: str, seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "halflife", *words.split()],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        time.sleep(seconds)
        running.send_signal(signal.SIGINT)
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)  # an impatient user
        _, errors = running.communicate(timeout=120)
    assert running.returncode in {0, 130, -signal.SIGINT}  # the last while Python starts or ends
    assert "Traceback" not in errors


@pytest.mark.parametrize("words", ["study verdicts --store", "report --out", "export --out"])
def test_an_empty_path_is_refused(folder: Path, words: str) -> None:
    code, errors = shell(folder, f"{words} ''", "", COLUMNS="200")
    assert code == 2
    assert "it is empty, expected a path: give one, or leave the option out" in errors
