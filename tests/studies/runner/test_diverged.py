"""A run that diverged is done: the same command does not train it again, nor what would start from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from halflife.cli.study import study_app
from halflife.studies.catalog import get_study
from halflife.studies.runner.plan import PlannedRun, make_plan, split_missing
from halflife.studies.store.store import Store
from tests.studies.lab.text_runs import write_corpus
from tests.studies.runner.branch_study import plan_of


def end(store: Store, run: PlannedRun, *, diverged: bool) -> None:
    header = {"id": run.id, "status": "failed", "failure": "it failed", "spec": run.spec.to_json()}
    store.run(run.id).write_header(header | ({"diverged_at": 3} if diverged else {}))


def test_what_starts_from_a_diverged_run_is_not_started(tmp_path: Path) -> None:
    runs = plan_of(str(write_corpus(tmp_path / "corpus"))).needed
    parent = next(run for run in runs if any(other.parent_id == run.id for other in runs))
    store = Store(tmp_path / "store")
    store.create()
    assert split_missing(store, runs) == (runs, [])
    end(store, parent, diverged=False)  # a crash: the next try may do better
    assert split_missing(store, runs) == (runs, [])
    end(store, parent, diverged=True)
    lost = [run for run in runs if parent.id in {run.id, run.parent_id}]
    assert len(lost) > 1
    assert split_missing(store, runs) == ([run for run in runs if run not in lost], lost)


def test_the_command_says_so_and_its_claims_are_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    study = get_study("stabilization")
    store = Store(tmp_path / "store")
    store.create()
    for run in make_plan(study, "smoke", study.presets["smoke"]).needed:
        end(store, run, diverged=True)
    said = CliRunner().invoke(study_app, ["run", "stabilization", "--preset", "smoke", "--store", str(store.path)])
    words = " ".join(said.output.split())
    assert "8 runs, 0 finished before" in words
    assert "8 runs diverged before, or would start from one that did, and would do so again: remove" in words
    assert "2 of 2 seeds of lr 0.1, lam 0.01 diverged (0, 1)" in words
    assert said.exit_code == 0, said.output
