"""The examples run as scripts, and are short enough to read at a glance."""

from __future__ import annotations

import os
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
RUNS = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in IN_PACKAGES else []) for path in EXAMPLES
]


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES} == {
        *OWN,
        *IN_PACKAGES,
        "plain_loop.py",
        "step_in_backward.py",
        "three_setups.py",
    }


@pytest.mark.parametrize("path", RUNS)
def test_example_holds(path: Path, tmp_path: Path) -> None:
    """Each asserts what it shows; here without warnings, offline, in an empty folder."""
    own_warnings = IN_PACKAGES.get(path.name, [])
    done = subprocess.run(
        [sys.executable, "-W", "error", *(f"-W{words}" for words in own_warnings), str(path)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example says what it found"
    if path.name not in IN_PACKAGES:  # some of these write to standard error when they are imported
        assert not done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (SHORT if path.name in OWN else FRAMEWORK)
