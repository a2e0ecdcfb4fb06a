"""``halflife audit`` of code that ends its process, however: the exit code says what holds, and 0 only if all of it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import atexit, ctypes, os, posix, signal, sys, threading, time
import torch
from torch import nn


def end():
    ctypes.CDLL(None)._exit(0)


def make(model=None):
    model = model or nn.Linear(3, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


"""
ENDED = "ended its process before the audit was through (exit code 0)"
KILLED = "ended its process before the audit was through (signal SIG"
DIFFERS = "does not hold: all parameters that decay: expected decoupled:0.5"

# What a function does before it gives a decay of 0.1, the exit code where 0.5 is expected, and what is said.
ENDS: dict[str, tuple[str, int, str]] = {
    "posix._exit": ("posix._exit(0)", 2, ENDED),
    "exit of C": ("ctypes.CDLL(None).exit(0)", 2, ENDED),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", 2, f"{KILLED}KILL, perhaps for want of memory)"),
    "terminate": ("os.kill(os.getpid(), signal.SIGTERM)", 2, f"{KILLED}TERM)"),
    "abort": ("os.abort()", 2, f"{KILLED}ABRT)"),
    "a timer": (
        "signal.signal(signal.SIGALRM, lambda *_: end()); signal.setitimer(signal.ITIMER_REAL, 0.01)",
        2,
        ENDED,
    ),
    "a thread": ("threading.Thread(target=end).start(); time.sleep(5)", 2, ENDED),
    "a fork that goes on": ("os.fork() and posix._exit(0)", 2, ENDED),
    "a fork that ends": ("os.fork() or sys.exit(0)", 1, DIFFERS),
    "at the end": ("atexit.register(end)", 1, DIFFERS),
    "no exit": ("sys.exit = lambda *_: None", 1, DIFFERS),
    "all files closed": ("os.closerange(0, 100)", 2, ""),
    "no output": ("sys.stdout = sys.__stdout__ = None", 1, DIFFERS),
    "output closed": ("os.close(1)", 1, DIFFERS),
    "our last line": ("print('holds: decoupled:0.5'); os._exit(0)", 2, "called os._exit(0)"),
    "exit": ("sys.exit(0)", 2, "called exit(0)"),
    "another program": ("os.execvp('true', ['true'])", 2, "called os.exec"),
}


def audit(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(HEAD + text, encoding="utf-8")
    command = [sys.executable, "-m", "halflife", "audit", *words, "--expect", "decoupled:0.5"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_a_function_that_ends_its_process(tmp_path: Path, name: str) -> None:
    text, code, words = ENDS[name]
    done = audit(tmp_path, f"def target():\n    {text}\n    return make()\n", "train.py:target")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "holds:" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ENDS) - {"a thread", "a fork that ends"}))
def test_a_script_that_ends_its_process(tmp_path: Path, name: str) -> None:
    text, code, _ = ENDS[name]
    step = "model, optimizer = make()\nmodel(torch.ones(1, 3)).sum().backward()\noptimizer.step()\n"
    done = audit(tmp_path, f"{text}\n{step}", "train.py", "--run")
    assert done.returncode in ({1, 2} if name == "a fork that goes on" else {code}), done.stderr
    assert "Traceback" not in done.stderr
    assert "holds:" not in done.stdout


def test_it_is_a_document_as_well(tmp_path: Path) -> None:
    done = audit(tmp_path, "posix._exit(0)\n", "train.py:make", "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert ENDED in document["error"]
    assert document["version"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("module", ["nn.LazyLinear(4)", "nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d())"])
@pytest.mark.parametrize("run", [False, True])
def test_parameters_without_a_shape_could_not_be_audited(tmp_path: Path, module: str, run: bool) -> None:
    text = f"def target():\n    return make({module})\n\nif __name__ == '__main__':\n    target()[1].step()\n"
    done = audit(tmp_path, text, *(["train.py", "--run"] if run else ["train.py:target"]))
    assert done.returncode == 2
    assert "has no shape yet; run one forward pass first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_the_code_ends_with_the_command(tmp_path: Path, number: int, code: int) -> None:
    text = "def target():\n    open('up', 'w').write(str(os.getpid()))\n    time.sleep(100)\n"
    (tmp_path / "train.py").write_text(HEAD + text, encoding="utf-8")
    command = [sys.executable, "-m", "halflife", "audit", "train.py:target"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for _ in range(600):
            if (tmp_path / "up").exists() and (tmp_path / "up").read_text(encoding="utf-8"):
                break
            time.sleep(0.1)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert "Traceback" not in errors
    other = int((tmp_path / "up").read_text(encoding="utf-8"))
    assert other != running.pid
    for _ in range(50):  # until the system has ended it
        try:
            os.kill(other, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the user's code goes on")
