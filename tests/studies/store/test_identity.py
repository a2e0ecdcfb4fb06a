"""A run is named by its spec, its trainer's version and its data, and by nothing else; its header says who made it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.pages.provenance import provenance_of
from halflife.studies.runner import plan
from halflife.studies.runner.plan import make_plan
from halflife.studies.runner.pool import timed_manifest
from halflife.studies.runner.worker import header_of
from halflife.studies.specs import ImageBranch, ImageRun, LeastSquaresRun, RunSpec, SeparableRun, TextBranch, TextRun
from halflife.studies.specs.base import _KINDS
from halflife.studies.specs.trainers import IMAGES, Trainer
from halflife.studies.store import machine
from halflife.studies.store.machine import describe_commit, describe_versions
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store, run_id
from tests.studies.synthetic import make_store

IMAGE = ImageRun(lr=0.1, lam=0.01, num_epochs=2, keep_at=(1,))
TEXT = TextRun(
    context=8, width=16, depth=1, lr=0.003, decay="Decoupled(lam=0.1)", num_steps=10, batch_size=2, keep_at=(5,)
)
DATA = "d47a" * 16

# Names in stores that people keep. What changes one of them makes all finished runs of its kind be trained anew.
PINNED = [
    (IMAGE, "images-1", DATA, "40423f3b681187d5"),
    (replace(IMAGE, seed=1), "images-1", DATA, "fa887b479f4b865e"),
    (IMAGE, "images-2", DATA, "7bd0b7afee84f0b4"),
    (IMAGE, "images-1", "da7a" * 16, "e45c16eb4292e081"),
    (ImageBranch(of=IMAGE, at=1, then=replace(IMAGE, keep_at=())), "images-1", DATA, "153cd5dff52d3581"),
    (TEXT, "text-1", DATA, "94cb3bd1d7ccfbb9"),
    (TextBranch(of=TEXT, at=5, branch="tiny-lr", num_steps=3), "text-1", DATA, "91c6b4d5f2076b8f"),
    (LeastSquaresRun(lr=0.1, num_steps=100, eigenvalues=(1.0, 0.1)), "least-squares-1", "", "71f97634837d0f40"),
    (SeparableRun(num_steps=100), "separable-1", "", "e53718521674ac81"),
]


@pytest.mark.parametrize(("spec", "trainer", "data", "name"), PINNED)
def test_names_stay_what_they_are(spec: RunSpec, trainer: str, data: str, name: str) -> None:
    assert run_id(spec.digest(), trainer, data) == name
    assert trainer.rpartition("-")[0] == spec.trainer.name


def test_a_name_is_computed_from_plain_values() -> None:
    canonical = json.dumps(IMAGE.to_json(), sort_keys=True, separators=(",", ":"))
    spec = hashlib.sha256(canonical.encode()).hexdigest()
    assert (
        run_id(IMAGE.digest(), "images-1", DATA)
        == hashlib.sha256(f"{spec}\0images-1\0{DATA}".encode()).hexdigest()[:16]
    )


def planned() -> dict[str, Any]:
    return {run.id: run for run in make_plan(STUDIES["averaging"], "smoke", STUDIES["averaging"].presets["smoke"]).runs}


def test_the_plan_names_runs_by_spec_trainer_and_data() -> None:
    for name, run in planned().items():
        sha256 = plan.describe_data(run.spec, None).sha256
        assert name == run_id(run.spec.digest(), f"images-{IMAGES.version}", sha256)


def test_a_raised_version_renames_runs_and_a_moved_module_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(planned())

    def names(trainer: Trainer) -> set[str]:
        for kind in (ImageRun, ImageBranch):
            monkeypatch.setattr(kind, "trainer", trainer)
        return set(planned())

    assert names(replace(IMAGES, module="halflife.elsewhere")) == before
    assert not names(replace(IMAGES, version=IMAGES.version + 1)) & before
    assert not names(replace(IMAGES, name="pictures")) & before


def test_trainers_are_told_apart_and_shared_by_runs_and_their_branches() -> None:
    trainers = {kind.trainer for kind in _KINDS.values() if isinstance(kind, type) and issubclass(kind, RunSpec)}
    assert len({trainer.name for trainer in trainers}) == len({trainer.module for trainer in trainers}) == len(trainers)
    assert all(trainer.version >= 1 for trainer in trainers)
    for child in (spec for spec, *_ in PINNED if spec.parent is not None):
        assert child.parent is not None
        assert child.trainer is child.parent.trainer


def test_runs_of_older_names_are_shown_and_stay_in_the_store(tmp_path: Path) -> None:
    study = STUDIES["stabilization"]
    fresh = make_plan(study, "smoke", study.presets["smoke"])
    older = replace(fresh, runs=tuple(replace(run, id=run.id[::-1]) for run in fresh.runs))
    store = Store(tmp_path)
    store.create()
    for run in older.needed:
        head = {"id": run.id, "status": "finished", "spec": run.spec.to_json(), "spec_digest": run.spec.digest()}
        folder = store.run(run.id)
        folder.write_header(head | {"code_digest": "c0de" * 16})
        folder.append(Reading(step=1, epoch=1, values={"train/loss": 1.0}))
        folder.close()
    store.write_manifest("stabilization-smoke", older.manifest(1, None))
    shown = StudyResults(store, study, store.manifests()[0])
    assert shown.num_finished == shown.num_planned == len(older.needed)
    assert dict(provenance_of(shown).facts)["trainer"] == "before trainer versions (code digest c0dec0de)"
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/*/*") if path.is_file()}
    with timed_manifest(store, fresh, 1):  # what `study run` does around its runs
        assert not [run for run in fresh.needed if store.run(run.id).finished]
    assert StudyResults(store, study, store.manifests()[0]).num_finished == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("runs/*/*") if path.is_file()} == before


# ---- who made a run


def test_a_header_says_who_made_the_run(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    header = header_of(store.run("0123" * 4), IMAGE, "cpu", None, None)
    assert header["trainer"] == {"name": "images", "version": IMAGES.version}
    assert header["versions"] == describe_versions()
    assert {"python", "torch", "numpy"} <= set(header["versions"])
    assert header["commit"] == describe_commit()
    assert "code_digest" not in header
    json.dumps(header)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    describe_versions.cache_clear()
    assert list(describe_versions()) == ["python", "torch"]
    describe_versions.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A repository with one commit: a package, a file beside it, and a folder that git ignores."""
    package = tmp_path / "repository" / "src" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    (package.parent / "words.txt").write_text("one\n")
    (package.parent / ".gitignore").write_text("venv/\n__pycache__/\n")
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "One")
    yield package
    describe_commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


def commit_of(folder: Path) -> dict[str, Any] | None:
    describe_commit.cache_clear()
    return describe_commit(folder)


def test_the_commit_and_whether_sources_were_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    clean = {"id": commit, "changed": False}
    assert commit_of(checkout) == clean
    (checkout.parent / "words.txt").write_text("two\n")  # trains nothing
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "code.pyc").write_text("x")
    assert commit_of(checkout) == clean
    (checkout / "code.py").write_text("x = 2\n")
    assert commit_of(checkout) == {"id": commit, "changed": True}
    git(checkout, "checkout", "--quiet", "code.py")
    assert commit_of(checkout) == clean
    (checkout / "more.py").write_text("y = 1\n")
    assert commit_of(checkout) == {"id": commit, "changed": True}


def test_it_is_asked_once(checkout: Path) -> None:
    first = commit_of(checkout)
    (checkout / "code.py").write_text("x = 2\n")
    assert describe_commit(checkout) == first


def test_a_package_in_somebody_elses_repository_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    installed = checkout.parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("x = 1\n")
    assert commit_of(installed) is None
    untracked = checkout.parent / "untracked"
    untracked.mkdir()
    (untracked / "code.py").write_text("x = 1\n")
    assert commit_of(untracked) is None
    outside = tmp_path / "outside"
    outside.mkdir()
    assert commit_of(outside) is None
    assert commit_of(tmp_path / "missing") is None


def test_a_repository_without_commits_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    assert commit_of(tmp_path) is None


def test_the_variables_of_a_git_hook_do_not_count(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = commit_of(checkout)
    assert expected is not None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another" / ".git"))
    assert commit_of(checkout) == expected


def test_without_git_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(checkout) is None


def test_a_git_that_does_not_answer_is_not_waited_for(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    monkeypatch.setattr(machine, "GIT_SECONDS", 0.1)
    assert commit_of(checkout) is None
