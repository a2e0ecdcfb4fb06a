"""What the docs give to copy for a CI, run as it would be there."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.test_docs import Block, blocks

TRAIN = """
import argparse

import torch
from torch import nn

import halflife


def make_optimizer():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    return model, torch.optim.AdamW(halflife.param_groups(model, weight_decay=LAM), lr=1e-3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    model, optimizer = make_optimizer()
    for _ in range(parser.parse_args().steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
"""


def recipes(language: str) -> list[Block]:
    """The blocks of the page's section."""
    text = (ROOT / "docs" / "prove.md").read_text(encoding="utf-8")
    section = text.partition("## Audit your own code")[2].partition("\n## ")[0]
    return [block for block in blocks(section) if block.language == language]


def yaml_of(text: str) -> Any:
    return importlib.import_module("yaml").safe_load(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project, and a ``halflife`` on the PATH that is the one under test."""
    (tmp_path / "train.py").write_text(TRAIN.replace("LAM", "0.1"), encoding="utf-8")
    command = tmp_path / "bin" / "halflife"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m halflife "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return tmp_path


def started(words: list[str] | str, project: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(project / "bin"), os.environ["PATH"]])
    return subprocess.run(
        words, shell=isinstance(words, str), cwd=project, env={**os.environ, "PATH": path}, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "code"), [("0.1", 0), ("0.2", 1)])
def test_the_step_of_a_workflow(project: Path, lam: str, code: int) -> None:
    (project / "train.py").write_text(TRAIN.replace("LAM", lam), encoding="utf-8")
    ((step,),) = [steps for block in recipes("yaml") if isinstance(steps := yaml_of(block.body), list)]
    lines = step["run"].strip().splitlines()
    assert len(lines) == 2
    # As a workflow runs it: bash, which ends with the first line that fails.
    done = started(["bash", "-e", "-c", step["run"]], project)
    assert done.returncode == code, done.stderr
    assert done.stdout.count("holds: matrices=decoupled:0.1") == (2 if code == 0 else 0)
    for line in lines:
        assert started(line, project).returncode == code


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "code"), [("0.1", 0), ("0.2", 1)])
def test_the_hook_of_pre_commit(project: Path, lam: str, code: int) -> None:
    (project / "train.py").write_text(TRAIN.replace("LAM", lam), encoding="utf-8")
    (hook,) = yaml_of((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (config,) = [found for block in recipes("yaml") if isinstance(found := yaml_of(block.body), dict)]
    (used,) = config["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    assert (hook["language"], hook["pass_filenames"]) == ("system", False)
    done = started([*shlex.split(hook["entry"]), *used["args"]], project)  # what pre-commit does for such a hook
    assert done.returncode == code, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "code"), [("0.1", 0), ("0.2", 1)])
def test_the_test_of_pytest(project: Path, lam: str, code: int) -> None:
    (project / "train.py").write_text(TRAIN.replace("LAM", lam), encoding="utf-8")
    (recipe,) = recipes("py")
    (project / "test_decay.py").write_text(recipe.body, encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_decay.py"]
    done = started(words, project)
    assert done.returncode == code, done.stdout
    assert ("1 passed" if code == 0 else "found decoupled:0.2") in done.stdout


def test_the_recipes_are_there() -> None:
    assert [len(recipes(language)) for language in ("yaml", "py")] == [2, 1]
    (hook,) = yaml_of((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["entry"] == "halflife audit"
