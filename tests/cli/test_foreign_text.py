"""Text that is not ours on a terminal: markup is text, and control characters are written out, in every command."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from halflife.cli.console import PlainConsole, plain
from tests.studies.synthetic import make_store

EVIL = "a[/]b[red]c\x1b]0;t\x07\x1b[2J\u202e\x85"
WRITTEN = r"a[/]b[red]c\x1b]0;t\x07\x1b[2J\u202e\x85"
AUDITED = f"""
import torch
model = torch.nn.ModuleDict({{{EVIL!r}: torch.nn.Linear(2, 2), "tail\\\\": torch.nn.LayerNorm(2)}})


def make():
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def fails():
    raise RuntimeError({EVIL!r})
"""


def on_a_terminal(folder: Path, *words: str) -> str:
    """What the command writes to a terminal, without the colours of our own."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "halflife", *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert done.wait(60) in {0, 1, 2}
    return re.sub(r"\x1b\[[\d;]*m", "", said.decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "make.py").write_text(AUDITED, encoding="utf-8")
    return tmp_path


COMMANDS = [
    ("audit", "make.py:make"),
    ("audit", "make.py:make", "--expect", "*=decoupled:0.5"),
    ("audit", "make.py:fails"),
    ("audit", f"{EVIL}.py:make"),
    ("audit", "make.py:make", "--expect", EVIL),
    ("audit", "make.py:make", f"--{EVIL}"),
    ("audit", "make.py:make", "--total-steps", EVIL),
    (EVIL,),
    ("study", "list", EVIL),
    ("study", "run", "stabilization", "--preset", EVIL),
    ("study", "run", "stabilization", "--preset", "smoke", "--dry-run", "--store", EVIL),
    ("study", "verdicts", "--store", EVIL),
    ("report", "--format", EVIL),
    ("export", "--store", EVIL),
    ("selfcheck", "--device", EVIL),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words).replace(EVIL, "EVIL") for words in COMMANDS])
def test_on_a_terminal(folder: Path, words: tuple[str, ...]) -> None:
    said = on_a_terminal(folder, *words)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", said), ascii(said)
    assert "Traceback" not in said
    assert "[/]b[red]c" in said or "--total-steps" in words  # whose message does not repeat it


@pytest.mark.slow
def test_a_store_with_such_a_name_is_read(tmp_path: Path) -> None:
    make_store(tmp_path / EVIL.replace("/", "|"))
    for words in (["study", "verdicts"], ["report"], ["export"]):
        said = on_a_terminal(tmp_path, *words, "--store", EVIL.replace("/", "|"))
        assert "Traceback" not in said
        assert words[0] == "study" or WRITTEN.replace("/", "|") in said.replace("\r\n", "")


def test_control_characters_are_written_out() -> None:
    assert plain(EVIL) == WRITTEN
    assert plain("two\nlines\tä😀") == "two\nlines\tä😀"
    console = PlainConsole(force_terminal=True, width=200, color_system=None)
    with console.capture() as said:
        console.print(EVIL, markup=False)
    assert said.get() == WRITTEN.replace(r"\x07", "") + "\n"  # rich leaves the bell out
