"""The examples run as scripts, and are short enough to read at a glance."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHORT, FRAMEWORK = 40, 60  # lines
OWN = {"audit_in_ci.py", "drop_in_adams.py", "early_decay.py", "half_life.py"}
# Those that train in another package, and what it warns of itself.
IN_PACKAGES = {
    "accelerate_loop.py": [],
    "lightning_module.py": ["ignore:`isinstance(treespec, LeafSpec)`:FutureWarning"],
    "transformers_trainer.py": [],
}


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES} == {
        *OWN,
        *IN_PACKAGES,
        "plain_loop.py",
        "step_in_backward.py",
        "three_setups.py",
    }


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.name not in IN_PACKAGES], ids=lambda path: path.name)
def test_example_holds(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each asserts what it shows; here without warnings, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr()
    assert said.out.strip(), "an example says what it found"
    assert not said.err, said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PACKAGES)
def test_example_holds_in_its_package(name: str, tmp_path: Path) -> None:
    """Offline, in a process of its own, as the package may log and change what it likes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *(f"-W{words}" for words in IN_PACKAGES[name]), str(ROOT / "examples" / name)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example says what it found"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (SHORT if path.name in OWN else FRAMEWORK)
