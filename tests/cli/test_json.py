"""``--json`` of every command: one strict document on standard output, with a version, errors included."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from halflife.cli import main as cli
from halflife.cli.documents import VERSION
from halflife.selfcheck import table
from halflife.studies.specs import base
from tests.cli.own_files import write_files
from tests.studies.synthetic import make_store

AUDITED = """
import torch
print("loud")
model = torch.nn.Linear(2, 2)


def make():
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


if __name__ == "__main__":
    make()[1].step()
"""


@dataclass(frozen=True)
class Case:
    """A command, words that it takes, words that are wrong, the code then, and keys of what it writes."""

    right: str
    wrong: str
    message: str
    keys: frozenset[str]
    code: int = 0


def keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


FOUND = keys("target found groups rows schedule warnings expectations ok")
CASES: dict[str, list[Case]] = {
    "audit": [
        Case("make.py:make --expect decoupled:0.2", "nothere.py:make", "there is no file nothere.py", FOUND, code=1),
        Case("make.py --run", "make.py --run --expect x", "expected decay as LAW:LAM", FOUND),
        Case("", "--total-steps lots make.py:make", "Invalid value for '--total-steps'", FOUND),
        Case("", "make.py:no", "make.py has no no", FOUND),
    ],
    "selfcheck": [
        Case("--quick", "--device nodevice", "nodevice", keys("ok versions num_cases failed table wrong_answers"))
    ],
    "study list": [Case("walk.py:WALK", "no-such-study", "no-such-study", keys("studies"))],
    "study run": [
        Case("walk.py:WALK --preset smoke --dry-run", "walk.py:WALK --workers 0", "--workers is 0", keys("studies")),
        Case("", "", "Missing argument", keys("")),
    ],
    "study verdicts": [Case("", "--store nowhere", "there is no store at nowhere", keys("verdicts problems"))],
    "report": [Case("", "--format gif", "--format is 'gif'", keys("files"))],
    "export": [Case("", "--frmat csv", "No such option: --frmat", keys("files"))],
}


def commands(of: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that name it."""
    for key, command in getattr(of, "commands", {}).items():
        yield from commands(command, f"{name} {key}".strip())
    if not hasattr(of, "commands"):
        yield name, of


ALL = dict(commands(importlib.import_module("typer").main.get_command(cli.app)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("user")
    write_files(made)
    make_store(made / "store")
    (made / "make.py").write_text(AUDITED, encoding="utf-8")
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HALFLIFE_STORE", "store")
    monkeypatch.setattr(sys, "path", sys.path[:])
    ours = {name: kind for name, kind in base._KINDS.items() if kind.__module__.startswith("halflife.")}
    monkeypatch.setattr(base, "_KINDS", ours)  # those of a file are of one test
    monkeypatch.setattr(table, "plan", lambda where, quick: [])  # the table is the others' test
    monkeypatch.setattr(table, "BAD_INPUTS", [])


def document(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, Any, str]:
    """Run the command by its ``main``; return the exit code, what stands on standard output, and standard error."""
    monkeypatch.setattr(sys, "argv", ["halflife", *words, "--json"])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    printed = capsys.readouterr()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return code, json.loads(printed.out, parse_constant=refuse), printed.err


def test_every_command_has_it_and_is_tried_here() -> None:
    assert set(ALL) == set(CASES)
    for name, command in ALL.items():
        (option,) = (each for each in command.params if "--json" in each.opts)
        assert option.help == "Write one JSON document to standard output and nothing else", name


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name, cases in CASES.items()
        for case in cases
        if case.right or name not in {"audit", "study run"}
    ],
)
def test_one_document(
    name: str, case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, errors = document([*name.split(), *case.right.split()], monkeypatch, capsys)
    assert code == case.code, errors
    assert found["version"] == VERSION
    assert case.keys <= found.keys()
    assert "error" not in found


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_an_error_is_one_document(
    name: str, case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, errors = document([*name.split(), *case.wrong.split()], monkeypatch, capsys)
    assert code == 2
    assert found["version"] == VERSION
    assert case.message in found["error"]
    assert "Traceback" not in errors
    assert case.message in errors.replace("\n", " ")


@pytest.mark.slow
def test_a_run_is_one_document(folder: Path) -> None:
    command = [sys.executable, "-m", "halflife", "study", "run", "walk.py:WALK", "--preset", "smoke", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found.keys() == keys("version store studies verdicts failures problems report")
    (study,) = found["studies"]
    assert study["num_finished"] == study["num_runs"] > 0
    assert Path(found["report"]).is_file()
    assert "runs, 0 finished before" in done.stderr


def test_what_could_be_read_stands_beside_the_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "store" / "sheets" / "bad-smoke.json"
    bad.write_text("{}", encoding="utf-8")
    try:
        code, found, errors = document(["study", "verdicts"], monkeypatch, capsys)
    finally:
        bad.unlink()
    assert code == 2
    assert found["verdicts"]
    assert len(found["problems"]) == 1
    assert found["error"] in errors


def test_numbers_that_json_has_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    documents = importlib.import_module("halflife.cli.documents")
    inf = float("inf")
    documents.write(sys.stdout, {"a": [inf, -inf, inf - inf, 1.5], "b": {1: (Path("x"), "\ud800\x1b")}})
    assert json.loads(capsys.readouterr().out) == {
        "version": VERSION, "a": [None, None, None, 1.5], "b": {"1": ["x", "\ud800\x1b"]},
    }  # fmt: skip


def test_ctrl_c_is_a_document_as_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("halflife.studies.catalog.own.known_studies", stop)
    with contextlib.suppress(KeyboardInterrupt):
        code, found, _ = document(["study", "list"], monkeypatch, capsys)
    assert (code, found) == (130, {"version": VERSION, "error": "stopped"})
