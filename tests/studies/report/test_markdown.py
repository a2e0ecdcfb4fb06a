"""The pages of the docs: what they say is what the store holds, links lead somewhere, and what is stale is found."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.catalog.papers import PAPERS, Paper, PaperStep
from halflife.studies.evidence.stats import NOT_COVERED
from halflife.studies.report.markdown import Told, docs_files, index_page, measured, paper_page, study_page, told_of
from halflife.studies.report.pages.sections import together_words
from halflife.studies.report.pages.tables import SYMBOLS, effect_text, verdict_rows
from halflife.studies.store.archives import ArchivedStore
from halflife.studies.store.store import Store
from tests.studies.synthetic import make_store
from tests.studies.synthetic_text import TEXT_STUDY, make_text_store
from tests.studies.tools import load_tool


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    folder = tmp_path_factory.mktemp("docs") / "store"
    make_store(folder, preset="night", sizes=(4, 8))
    return told_of(make_store(folder))


@pytest.fixture(scope="module")
def files(many: list[Told]) -> dict[str, str]:
    return {name: content for name, content in docs_files(many).items() if content is not None}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("results")


def test_presets_stand_in_their_order(many: list[Told]) -> None:
    assert [told.name for told in many] == ["stabilization-laptop", "stabilization-night"]


def test_there_is_a_page_a_study_a_page_a_paper_and_every_picture(files: dict[str, str]) -> None:
    pages = [name for name in files if name.endswith(".md")]
    papers = [f"papers/{paper.key}.md" for paper in PAPERS]
    assert pages == ["findings.md", "results/index.md", "results/stabilization.md", *papers]
    shown = {
        Path("docs", page).parent.joinpath(picture).resolve()
        for page in pages
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", files[page])
    }
    assert shown == {Path("docs", name).resolve() for name in files if name.endswith(".svg")}
    assert len(shown) >= 5


def test_pictures_need_not_be_drawn_to_know_which_there_are(many: list[Told], files: dict[str, str]) -> None:
    quick = docs_files(many, draw=False)
    assert quick.keys() == files.keys()
    assert {name for name, content in quick.items() if content is None} == {n for n in files if n.endswith(".svg")}
    assert all(files[name] == content for name, content in quick.items() if content is not None)


def test_links_lead_to_pages_and_places_that_there_are(files: dict[str, str]) -> None:
    for page in (name for name in files if name.endswith(".md")):
        for address in re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", files[page]):
            file, _, place = address.partition("#")
            if file.startswith("http"):
                continue
            target = Path("docs", page).parent.joinpath(file).resolve().relative_to(Path("docs").resolve()).as_posix()
            if file and target != "studies.md":
                assert target in files, f"{address} on {page}"
                assert not place or f'id="{place}"' in files[target], f"{address} on {page}"


def test_the_page_of_a_study_has_its_verdicts_and_what_decided_them(many: list[Told]) -> None:
    page, figures = study_page(many)
    assert page.startswith("# Loss stabilization in a ResNet with BatchNorm\n")
    assert page.index("## Laptop") < page.index("## Night")
    for told in many:
        part = page.partition(f"## {told.results.preset_name.capitalize()}\n")[2].partition("\n## ")[0]
        for row in verdict_rows(told.verdicts):
            assert (
                f"| {SYMBOLS[row['outcome']]} {row['outcome']} | {row['effect']} | {row['sample']} |".replace("+-", "±")
                in part
            )
            assert row["text"] in part
            for of_rule in row["rows"]:
                assert f"| {of_rule['quantity']} | {of_rule['effect']} | {of_rule['test']} |" in part
        assert ("### Against size" in part) == (told.results.preset_name == "night")
        first, *_ = [name for name in figures if name.startswith(told.name)]
        assert part.index(f"../images/{first}.svg") < part.index("| claim |"), "the key figure comes first"
        assert measured(told.results) in part
        assert "when the rules were fixed." in part, "the made-up manifests record no claims"
        assert together_words(told.verdicts) in part
        assert " 8 with 2 seeds. `halflife study run" in part


def test_against_size_every_effect_stands_with_its_interval(many: list[Told]) -> None:
    page, _ = study_page(many)
    table = page.partition("### Against size\n")[2]
    assert "| claim | width 4 (2 seeds) | width 8 (2 seeds) |" in table
    for verdict in many[1].verdicts:
        cells = [
            f"{effect_text(verdict.by_size[size].effect, verdict.claim.unit)}, {verdict.by_size[size].outcome}"
            for size in (4, 8)
        ]
        assert f"| {' | '.join(cells)} |" in table


def test_the_index_counts(many: list[Told]) -> None:
    page = index_page(many)
    for told in many:
        counts = [sum(v.finding.outcome == outcome for v in told.verdicts) for outcome in SYMBOLS]
        row = f"| {told.results.preset_name} | {' | '.join(map(str, counts))} |"
        assert f"| [{told.results.study.title}](stabilization.md) {row}" in page


def test_the_index_says_how_many_tests_there_are_and_what_intervals_do_not_cover(many: list[Told]) -> None:
    page = index_page(many)
    assert together_words([verdict for told in many for verdict in told.verdicts]) in page
    for words in NOT_COVERED:
        assert f"- {words}" in page


def test_a_paper_s_page_has_all_steps_and_says_which_were_not_run(many: list[Told]) -> None:
    why = PAPERS[0]
    page, figures = paper_page(why, many)
    assert re.findall(r"^## (\d+)\. ", page, re.MULTILINE) == [str(n + 1) for n in range(len(why.steps))]
    assert "Study [`stabilization`](../results/stabilization.md), preset `night`." in page
    assert page.count("Not run yet: `halflife study run ") == len(why.steps) - 1
    assert all(name.startswith("stabilization-night-") for name in figures)


@pytest.mark.parametrize("what", ["page", "picture", "missing", "left over"])
def test_what_is_stale_is_found(files: dict[str, str], tool: ModuleType, tmp_path: Path, what: str) -> None:
    """A picture, too: one that shows other numbers, not only one that is not there."""
    content = {f"docs/{name}": text for name, text in files.items()}
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "docs" / "images" / "curvature-cost.svg").write_text("of a benchmark")
    assert tool.stale(tmp_path, content) == []
    picture = next(name for name in content if name.endswith(".svg"))
    if what == "page":
        changed = "docs/results/index.md"
        (tmp_path / changed).write_text(content[changed] + "\n", encoding="utf-8")
    elif what == "picture":
        changed = picture
        digit = re.search(r"M\d+", content[changed])
        assert digit
        (tmp_path / changed).write_text(content[changed].replace(digit[0], digit[0] + "1", 1), encoding="utf-8")
    elif what == "missing":
        changed = picture
        (tmp_path / changed).unlink()
    else:
        changed = "docs/images/of-an-older-study.svg"
        (tmp_path / changed).write_text("", encoding="utf-8")
    assert tool.stale(tmp_path, content) == [changed]


# ---- a study of language models


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A made-up study of language models in a store of its own."""
    monkeypatch.setitem(STUDIES, TEXT_STUDY.name, TEXT_STUDY)
    (told,) = told_of(make_text_store(tmp_path / "store"))
    return told


def test_the_docs_page_of_a_language_model_study(text: Told) -> None:
    page, pictures = study_page([text])
    lines = page.splitlines()
    assert "| claim | width 16 (2 seeds) | width 32 (3 seeds) |" in lines
    assert "| parameters | 124 M | section 3 | 31,264 |" in lines
    # The study names its pictures, and the first of them is its key figure.
    assert list(pictures) == [f"made-up-lm-laptop-{slug}" for slug in ("sweep", "branches", "ladder")]
    assert [line for line in lines if line.startswith("![")] == [
        f"![{title}](../images/{name}.svg)"
        for name, title in zip(
            pictures,
            ("Final loss against decay", "Validation loss of the branches", "Effects against width"),
            strict=True,
        )
    ]
    for verdict in text.verdicts:
        reason = f"- **{verdict.claim.key}**: {verdict.finding.reason}.".replace("+-", "\N{PLUS-MINUS SIGN}")
        assert (reason in page) == bool(verdict.finding.reason)


def test_a_step_of_a_paper_shows_its_claims_and_figures_alone(text: Told) -> None:
    first, second = text.verdicts
    steps = (
        PaperStep("What it says", "It says so.", "made-up-lm", claims=(second.claim.key,), panels=("grid", "sweep")),
        PaperStep("What nobody ran", "It says that, too.", "stabilization"),
    )
    paper = Paper(
        key="made-up", title="A paper", authors="N", reference="arXiv 1111.11111", steps=steps, untested="No c."
    )
    page, pictures = paper_page(paper, [text])
    lines = page.splitlines()
    assert lines[:3] == ["# A paper", "", "N. arXiv 1111.11111."]
    counts = " | ".join(str(int(second.finding.outcome == name)) for name in SYMBOLS)
    assert f"| 1. What it says | `made-up-lm` | {counts} |" in lines
    assert "| 2. What nobody ran | `stabilization` | not run |  |  |  |" in lines
    assert "Not run yet: `halflife study run stabilization`." in lines
    assert second.claim.text in page
    assert first.claim.text not in page
    assert "| parameters | 124 M | section 3 | 31,264 |" in lines
    assert list(pictures) == ["made-up-lm-laptop-sweep", "made-up-lm-laptop-grid"], "in the study's order"
    assert page.endswith("\n")
    assert "No c." in page


# ---- packing


def test_what_runs_keep_for_branches_is_not_packed(tool: ModuleType, tmp_path: Path, text: Told) -> None:
    for identity in text.results.headers:
        kept = tmp_path / "store" / "runs" / identity / "kept"
        kept.mkdir()
        (kept / "step-16000").write_bytes(b"x" * 100)
        (kept.parent / "checkpoint.safetensors").write_bytes(b"x" * 100)
    (archive,) = tool.pack(tmp_path / "store", tmp_path / "packed")
    assert archive.name == "made-up-lm-laptop.tar.xz"
    with tarfile.open(archive) as found:
        names = found.getnames()
    assert {Path(name).name for name in names} == {"store.json", "made-up-lm-laptop.json", "run.json", "readings.jsonl"}
    assert len(names) == 2 + 2 * len(text.results.headers)
    (again,) = told_of(ArchivedStore(archive))
    assert [v.finding for v in again.verdicts] == [v.finding for v in text.verdicts]


def test_runs_that_are_not_finished_are_not_packed(tool: ModuleType, tmp_path: Path, text: Told) -> None:
    identity, header = next(iter(text.results.headers.items()))
    Store(tmp_path / "store").run(identity).write_header(header | {"status": "running"})
    with pytest.raises(SystemExit, match="made-up-lm, laptop: 59 of 60 runs finished"):
        tool.pack(tmp_path / "store", tmp_path / "packed")
