"""Damaged and forged files of every kind: a reader says one sentence, or gets what it got before, and nothing else."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from halflife.cli.main import main
from halflife.studies.store import columns
from tests.studies.store.fuzz_targets import TARGETS, Target, Whole, make_whole, outcome
from tests.studies.store.mutations import damaged_bytes

FEW, MANY, COMMANDS = 3, 100, 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(columns, "SMALLEST_COMPACT", 1)
        yield make_whole(tmp_path_factory.mktemp("whole"))


def attempt(whole: Whole, target: Target, seeds: range) -> int:
    """Change a file once a seed; the number of times that it was refused."""
    path = target.file(whole)
    content, refused = path.read_bytes(), 0
    expected = outcome(lambda: target.read(whole, path))
    assert not isinstance(expected, Exception), expected
    for seed in seeds:
        changed = target.change(content, random.Random(f"{target.name} {seed}"))
        path.write_bytes(changed)
        try:
            found = outcome(lambda: target.read(whole, path))
        except Exception as error:
            error.add_note(f"seed {seed} of {target.name}: {changed[:300]!r}")
            raise
        finally:
            path.write_bytes(content)
        refused += isinstance(found, Exception)
        assert isinstance(found, Exception) or target.forged or found == expected, (seed, changed[:300])
    return refused


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_few_changes_of_each_file(whole: Whole, target: Target) -> None:
    attempt(whole, target, range(FEW))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_many_changes_of_each_file(whole: Whole, target: Target) -> None:
    refused = attempt(whole, target, range(FEW, FEW + MANY * target.times))
    assert refused > 0 or target.name.startswith(("columns", "spec"))


def test_there_are_enough_tries() -> None:
    assert len(TARGETS) * FEW >= 150
    assert len(TARGETS) * MANY >= 5000


@pytest.mark.slow
@pytest.mark.parametrize("command", [("study", "verdicts"), ("report",), ("export",)], ids=lambda words: words[-1])
def test_the_command_says_it(
    whole: Whole,
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On standard error, with an exit code of its own."""
    files = sorted(path for path in whole.store.rglob("*.json*") if path.is_file())
    monkeypatch.setattr(
        sys,
        "argv",
        ["halflife", *command, "--store", str(whole.store), *(["--out", str(tmp_path)] * (len(command) == 1))],
    )
    for seed in range(COMMANDS // 4 if command == ("report",) else COMMANDS):
        rng = random.Random(seed)
        path = rng.choice(files)
        content = path.read_bytes()
        path.write_bytes(damaged_bytes(content, rng))
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            path.write_bytes(content)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert caught.value.code in {0, 2}
        assert caught.value.code == 0 or said.err.startswith(("error: ", "warning: "))
