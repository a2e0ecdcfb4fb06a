"""What the docs quote is what the committed archives say, and these hold the presets as they are now."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from typing import Any

import pytest

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.papers import PAPERS
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs.base import spec_from_json
from halflife.studies.store.store import Store
from tests import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("results")
    for path in (ROOT / "results").glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return Store(folder)


def test_every_study_has_its_laptop_runs(store: Store) -> None:
    packed = {(manifest["study"], manifest["preset"]) for manifest in store.manifests()}
    assert {(study, "laptop") for study in STUDIES} <= packed
    assert {preset for _, preset in packed} <= {"laptop", "night"}
    names = {path.name.removesuffix(".tar.xz") for path in (ROOT / "results").glob("*.tar.xz")}
    assert names == {f"{study}-{preset}" for study, preset in packed}


def code_of(header: dict[str, Any]) -> str:
    """What the header says of the code: the trainer's version, or the digest of older runs."""
    return str(header["trainer"]["version"]) if "trainer" in header else str(header["code_digest"])


def test_the_runs_are_those_of_the_presets(store: Store) -> None:
    for manifest in store.manifests():
        study = get_study(manifest["study"])
        preset = study.presets[manifest["preset"]]
        results = StudyResults(store, study, manifest)
        assert results.num_finished == results.num_planned
        assert len(results.seeds(preset.main_size)) == preset.num_seeds
        data: dict[str, set[str]] = {}
        code: dict[str, set[str]] = {}
        arms = {(arm["key"], arm["size"]): arm for arm in manifest["arms"]}
        assert set(arms) == {(arm.key, arm.size) for arm in preset.arms}
        for arm in preset.arms:
            for seed, identity in arms[arm.key, arm.size]["runs"].items():
                header = results.headers[identity]
                assert header["spec_digest"] == arm.build(int(seed)).digest()
                data.setdefault(header["data"]["name"], set()).add(header["data"]["sha256"])
                code.setdefault(spec_from_json(header["spec"]).trainer.name, set()).add(code_of(header))
        # A study may train on images and on text, or on nothing; what has one name must be one thing.
        assert {len(digests) for digests in (*data.values(), *code.values())} == {1}


@pytest.mark.slow  # without the pictures `make docs` checks the same
def test_the_docs_are_made_from_them() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/results.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_papers_of_the_docs_are_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for paper in PAPERS:
        assert f"papers/{paper.key}.md" in nav
    assert {path.stem for path in (ROOT / "docs/papers").glob("*.md")} == {paper.key for paper in PAPERS}
