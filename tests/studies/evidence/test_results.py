"""What the docs quote is what the committed archives say, and these hold the presets as they are now."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.papers import PAPERS, Paper, PaperStep
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs.base import spec_from_json
from halflife.studies.store.store import Store
from tests import ROOT
from tests.studies.synthetic_text import TEXT_STUDY, make_text_store


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


def test_the_docs_tables_are_made_from_them() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/results.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- the tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools/results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text_results(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StudyResults]:
    """A made-up study of language models in a store of its own, as the tool sees it."""
    for studies in (STUDIES, tool.STUDIES):
        monkeypatch.setitem(studies, TEXT_STUDY.name, TEXT_STUDY)
    found: dict[str, StudyResults] = tool.all_results(make_text_store(tmp_path / "store"))
    return found


def test_what_runs_keep_for_branches_is_not_packed(
    tool: ModuleType, tmp_path: Path, text_results: dict[str, StudyResults]
) -> None:
    (results,) = text_results.values()
    for identity in results.headers:
        kept = tmp_path / "store" / "runs" / identity / "kept"
        kept.mkdir()
        (kept / "step-16000").write_bytes(b"x" * 100)
        (kept.parent / "checkpoint.safetensors").write_bytes(b"x" * 100)
    (archive,) = tool.pack(tmp_path / "store", tmp_path / "packed")
    assert archive.name == "made-up-lm-laptop.tar.xz"
    with tarfile.open(archive) as found:
        names = found.getnames()
        found.extractall(tmp_path / "again", filter="data")
    assert {Path(name).name for name in names} == {"store.json", "made-up-lm-laptop.json", "run.json", "readings.jsonl"}
    assert len(names) == 2 + 2 * len(results.headers)
    again = StudyResults(Store(tmp_path / "again"), TEXT_STUDY, Store(tmp_path / "again").manifests()[0])
    assert [v.finding for v in again.verdicts()] == [v.finding for v in results.verdicts()]


def test_runs_that_are_not_finished_are_not_packed(
    tool: ModuleType, tmp_path: Path, text_results: dict[str, StudyResults]
) -> None:
    (results,) = text_results.values()
    identity, header = next(iter(results.headers.items()))
    Store(tmp_path / "store").run(identity).write_header(header | {"status": "running"})
    with pytest.raises(SystemExit, match="made-up-lm, laptop: 59 of 60 runs finished"):
        tool.pack(tmp_path / "store", tmp_path / "packed")


def test_the_docs_page_of_a_language_model_study(tool: ModuleType, text_results: dict[str, StudyResults]) -> None:
    (results,) = text_results.values()
    verdicts = results.verdicts()
    page, pictures = tool.results_page(text_results, dict.fromkeys(text_results, verdicts))
    lines = page.splitlines()
    counts = [sum(v.finding.outcome == o for v in verdicts) for o in ("reproduced", "not reproduced", "inconclusive")]
    row = "| [Made-up study of language models](#made-up-study-of-language-models-laptop) | laptop |"
    assert f"{row} {counts[0]} | {counts[1]} | {counts[2]} |" in lines
    assert "Decided at width 32; measured at 16 too." in page
    assert "| claim | width 16 (2 seeds) | width 32 (3 seeds) |" in lines
    effect = verdicts[0].by_size[16].effect
    assert effect is not None
    cell = f"{effect.estimate:+.4f} [{effect.low:+.4f}, {effect.high:+.4f}], {verdicts[0].by_size[16].outcome}"
    assert any(
        line.startswith("| (a) final validation loss with decay minus without (nats) | " + cell) for line in lines
    )
    assert "| parameters | 124 M | section 3 | 31,264 |" in lines
    # The study names its pictures, and they stand in its own order.
    names = [f"made-up-lm-laptop-{slug}.svg" for slug in ("branches", "sweep", "ladder")]
    assert list(pictures) == names
    assert [line for line in lines if line.startswith("![")] == [
        f"![{title}](images/{name})"
        for name, title in zip(
            names,
            ("Validation loss of the branches", "Final loss against decay", "Effects against width"),
            strict=True,
        )
    ]


def test_the_docs_page_of_a_paper(
    tool: ModuleType, text_results: dict[str, StudyResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDIES, TEXT_STUDY.name, TEXT_STUDY)
    (results,) = text_results.values()
    verdicts = {"made-up-lm-laptop": results.verdicts()}
    steps = (
        PaperStep("What it says", "It says so.", "made-up-lm", claims=("b",), panels=("grid", "sweep")),
        PaperStep("What nobody ran", "It says that, too.", "stabilization"),
    )
    paper = Paper(
        key="made-up", title="A paper", authors="N", reference="arXiv 1111.11111", steps=steps, untested="No c."
    )
    page, pictures = tool.paper_page(paper, text_results, verdicts)
    lines = page.splitlines()
    assert lines[:3] == ["# A paper", "", "N. arXiv 1111.11111."]
    outcome = verdicts["made-up-lm-laptop"][1].finding.outcome
    counts = " | ".join(str(int(outcome == name)) for name in ("reproduced", "not reproduced", "inconclusive"))
    assert f"| 1. What it says | `made-up-lm` | {counts} |" in lines
    assert "| 2. What nobody ran | `stabilization` | not run |  |  |" in lines
    assert "Not run yet: `halflife study run stabilization`." in lines
    assert "preset `laptop`, 3 seeds. Decided at width 32; measured at 16 too." in page
    assert "](../results.md#made-up-study-of-language-models-laptop)" in page
    claims = [line for line in lines if line.startswith("| (")]
    assert len(claims) == 1
    assert claims[0].startswith("| (b) So it does with the best learning rate of each. | ")
    assert "| parameters | 124 M | section 3 | 31,264 |" in lines
    assert list(pictures) == ["made-up-lm-laptop-sweep.svg", "made-up-lm-laptop-grid.svg"], "in the study's order"
    assert [line for line in lines if line.startswith("![")] == [
        "![Final loss against decay](../images/made-up-lm-laptop-sweep.svg)",
        "![Final loss over learning rate and decay](../images/made-up-lm-laptop-grid.svg)",
    ]
    assert page.endswith("\n")
    assert "No c." in page


def test_papers_of_the_docs_are_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for paper in PAPERS:
        assert f"papers/{paper.key}.md" in nav
    assert {path.stem for path in (ROOT / "docs/papers").glob("*.md")} == {paper.key for paper in PAPERS}
