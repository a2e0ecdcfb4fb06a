"""What the docs quote is what the committed archives say, and these hold the presets as they are now."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from halflife.store import Store
from halflife.studies import STUDIES, get_study
from halflife.studies.results import Results

ROOT = Path(__file__).parents[1]
EXPECTED = [f"{study}-{preset}" for study in STUDIES for preset in ("laptop", "night")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("results")
    for path in (ROOT / "results").glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return Store(folder)


def test_every_study_has_its_laptop_and_night_runs(store: Store) -> None:
    assert sorted(f"{sheet['study']}-{sheet['preset']}" for sheet in store.sheets()) == sorted(EXPECTED)


def test_the_runs_are_those_of_the_presets(store: Store) -> None:
    for sheet in store.sheets():
        study = get_study(sheet["study"])
        preset = study.presets[sheet["preset"]]
        results = Results(store, study, sheet)
        assert results.num_finished == results.num_planned
        assert len(results.seeds(preset.main_size)) == preset.num_seeds
        arms = {(arm["key"], arm["size"]): arm for arm in sheet["arms"]}
        assert set(arms) == {(arm.key, arm.size) for arm in preset.arms}
        for arm in preset.arms:
            for seed, identity in arms[arm.key, arm.size]["runs"].items():
                header = results.headers[identity]
                assert header["spec_digest"] == arm.build(int(seed)).digest()
                assert header["data"]["sha256"] == results.headers[next(iter(results.headers))]["data"]["sha256"]
        assert len({header["code_digest"] for header in results.headers.values()}) == 1


def test_the_docs_tables_are_made_from_them() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/results.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
