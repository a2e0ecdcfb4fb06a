"""Guides through the papers: every step has its study, claims and figures, and every study its step; no browser needed."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from halflife.errors import StoreError
from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.papers import PAPERS, Paper, PaperStep
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report import build_report
from halflife.studies.report.pages.guide import guide_of
from halflife.studies.report.pages.page import render_paper
from halflife.studies.report.pages.sections import section_of
from halflife.studies.report.pages.tables import verdict_rows
from halflife.studies.store.store import Store
from tests.studies.report.test_report import text_of
from tests.studies.synthetic import make_store

WHY, SCHEDULING, EARLY = PAPERS


def results_in(store: Store) -> list[StudyResults]:
    return [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]


def section_words(page: str, number: int) -> str:
    """The words of one step."""
    found = re.search(rf'<section class="step" id="step-{number}".*?</section>', page, re.DOTALL)
    assert found
    return text_of(found[0])


# ---- the guides as data


def test_every_study_is_in_a_guide() -> None:
    assert STUDIES.keys() <= {step.study for paper in PAPERS for step in paper.steps}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.key)
def test_steps_name_claims_and_figures_that_there_are(paper: Paper) -> None:
    names = [step.study for step in paper.steps]
    assert len(set(names)) == len(names), "figures have one place on a page"
    for step in paper.steps:
        study = STUDIES[step.study]
        assert set(step.claims) <= {claim.key for claim in study.claims}
        assert set(step.panels) <= {panel.file_slug for panel in study.panels}
        (shown,) = [found for found in guide_of(paper, []) if found.told is step]
        assert 1 <= len(shown.panels) <= 8
        assert shown.results is None
    assert re.search(r"arXiv \d{4}\.\d{5}", paper.reference)
    assert len({step.heading for step in paper.steps}) == len(paper.steps)
    assert all(step.words.endswith(".") for step in paper.steps)


def test_the_paper_is_told_in_its_own_order() -> None:
    names = [step.study for step in WHY.steps]
    images = [
        "dataset-size",
        "stabilization",
        "eta-lambda",
        "stationary-mean",
        "averaging",
        "sphere",
    ]  # figures 1 to 15
    texts = ["lm-schedules", "lm-effective-lr", "lm-generalization", "lm-ablations"]  # figures 6, 7, 19, 20
    assert [name for name in names if name in {*images, *texts}] == images + texts


# ---- which runs a step shows


def test_a_step_shows_the_largest_finished_preset(tmp_path: Path) -> None:
    store = make_store(tmp_path, preset="laptop")
    make_store(tmp_path, preset="night", sizes=(4, 8, 16))
    make_store(tmp_path, preset="smoke")
    (step,) = [step for step in guide_of(WHY, results_in(store)) if step.results is not None]
    assert step.results is not None
    assert (step.study.name, step.results.preset_name) == ("stabilization", "night")
    assert [other.preset_name for other in step.others] == ["smoke", "laptop"]


@pytest.mark.parametrize("missing", ["run", "steps"])
def test_a_part_of_a_large_preset_gives_way_to_a_whole_small_one(tmp_path: Path, missing: str) -> None:
    store = make_store(tmp_path, preset="laptop")
    make_store(
        tmp_path,
        preset="night",
        sizes=(4, 8, 16),
        status=lambda key, seed, size: "absent" if missing == "run" and (seed, size) == (1, 16) else "finished",
        max_steps=100 if missing == "steps" else None,
    )
    (step,) = [step for step in guide_of(WHY, results_in(store)) if step.results is not None]
    assert step.results is not None
    assert step.results.preset_name == "laptop"


# ---- the pages


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("papers") / "store"
    make_store(folder, preset="night", sizes=(4, 8, 16))
    make_store(folder)
    return make_store(folder, study="stabilization-vgg")


@pytest.fixture(scope="module")
def pages(store: Store) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in build_report(store)}


def test_a_paper_whose_studies_were_not_run_has_no_page(pages: dict[str, str]) -> None:
    studies = ("stabilization-laptop", "stabilization-night", "stabilization-vgg-laptop")
    assert list(pages) == [
        "report.html",
        *(f"study-{name}.html" for name in studies),
        "paper-why.html",
        "report-charts.js",
    ]
    assert 'href="paper-why.html"' in pages["report.html"]
    assert "paper-early" not in pages["report.html"] + pages["paper-why.html"]


def test_a_step_has_words_verdicts_numbers_figures_and_how_it_was_run(store: Store, pages: dict[str, str]) -> None:
    page = pages["paper-why.html"]
    (step,) = [step for step in guide_of(WHY, results_in(store)) if step.study.name == "stabilization"]
    words = section_words(page, step.number)
    assert step.told.words in words
    assert f"{step.number}. {step.told.heading}" in words
    assert step.results is not None
    for row in verdict_rows(step.results.verdicts()):
        assert row["text"] in words
        assert f"{row['effect_estimate']} {row['effect_interval']}" in words
        assert f'href="study-stabilization-night.html#{row["claim"]}"' in page
    for published in step.study.published:
        assert f"{published.published} (read off the figure)" in words
        assert published.ours(step.results) in words
    section = re.search(rf'<section class="step" id="step-{step.number}".*?</section>', page, re.DOTALL)
    assert section
    drawn = re.findall(r'class="chart" data-spec="([\w-]+)"', section[0])
    first, *further = [f"stabilization-night-{panel.file_slug.replace('.', '-')}" for panel in step.panels]
    assert drawn == [f"{first}-0"]
    for name in further:
        assert f'href="study-stabilization-night.html#{name}"' in section[0]
    assert [panel.file_slug for panel in step.panels] == [
        "test-error",
        "train-running-loss",
        "ema-0.999-test-error",
        "weight-norm",
    ]
    assert "halflife study run stabilization --preset night" in words
    assert "24 of 24 finished" in words
    assert "decided at width 8" in words
    for address in ("study-stabilization-night.html", "study-stabilization-laptop.html"):
        assert f'href="{address}"' in section[0]
        assert address in pages


def test_ours_is_the_mean_of_the_seeds(store: Store) -> None:
    (results,) = [r for r in results_in(store) if (r.study.name, r.preset_name) == ("stabilization-vgg", "laptop")]
    mean = 100 * results.last("small-none", "test/error", 8).mean()
    ours = [row.ours(results) for row in results.study.published if "small" in row.quantity]
    assert len(ours) == 1
    assert float(ours[0].partition(" / ")[2].split()[0]) == pytest.approx(mean, abs=0.05)


def test_a_step_without_runs_says_how_to_run_it(pages: dict[str, str]) -> None:
    page = pages["paper-why.html"]
    steps = guide_of(WHY, [])
    (step,) = [step for step in steps if step.study.name == "lm-schedules"]
    words = section_words(page, step.number)
    assert "This was not run yet. halflife study run lm-schedules runs it" in words
    assert step.told.words in words
    contents = re.search(r'<nav aria-label="Steps".*?</nav>', page, re.DOTALL)
    assert contents
    assert text_of(contents[0]).count("not run") == len(steps) - 2
    assert page.count('<section class="step"') == len(steps)


def test_a_step_may_show_a_part_of_a_study(store: Store) -> None:
    told = PaperStep(
        "A part", "Only one.", "stabilization", claims=("plateau",), panels=("weight-norm",), published=False
    )
    paper = Paper(
        key="k", title="A paper", authors="N", reference="arXiv 1111.11111", steps=(told,), untested="All else."
    )
    many = results_in(store)
    page = render_paper(paper, guide_of(paper, many), [section_of(r) for r in many], report="r.html", papers=[paper])
    words = text_of(page)
    rows = {row["claim"]: row for row in verdict_rows(many[0].verdicts())}
    assert rows["plateau"]["text"] in words
    assert not any(row["text"] in words for key, row in rows.items() if key != "plateau")
    assert "The paper's numbers and ours" not in words
    assert page.count('class="chart"') == 1
    assert "All else." in words
    assert words.count(f"1 {rows['plateau']['outcome']}") == 1


def test_pages_are_documents_that_load_nothing(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        if not name.endswith(".html"):
            continue
        assert page.startswith("<!doctype html>")
        assert "default-src 'none'" in page
        identities = re.findall(r' id="([^"]+)"', page)
        assert len(set(identities)) == len(identities), name
        levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search(r"<(link|img|iframe)| src=", own)
        assert set(re.findall(r"<script[^>]* src=([^ >]+)", page)) <= {'"report-charts.js"'}
        for address in re.findall(r'href="([^"]+)"', own):
            file, _, place = address.partition("#")
            if not address.startswith("https://arxiv.org/abs/"):
                assert not place or f' id="{place}"' in (pages[file] if file else page)
                assert not file or file in pages


def test_names_restrict_the_guide(store: Store, tmp_path: Path) -> None:
    paths = build_report(store, ["stabilization-vgg"], out=tmp_path / "vgg.html")
    names = ["vgg.html", "study-stabilization-vgg-laptop.html", "paper-why.html", "report-charts.js"]
    assert [path.name for path in paths] == names
    page = paths[2].read_text(encoding="utf-8")
    assert page.count('<section class="step"') == 1
    assert "stabilization-vgg" in page
    assert 'href="vgg.html"' in page
    assert "not run" not in page


# ---- what is damaged


def test_a_damaged_manifest_is_a_named_problem_and_the_other_studies_are_shown(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    store = make_store(tmp_path / "store", study="stabilization-vgg", sizes=(16,))  # other widths, so other runs
    path = store.path / "sheets" / "stabilization-laptop.json"
    path.write_text("{}", encoding="utf-8")
    problem = f"stabilization, preset laptop, cannot be shown: {path} cannot be used, study is missing, expected a name"
    said: list[str] = []
    pages = {p.name: p.read_text(encoding="utf-8") for p in build_report(store, notice=said.append)}
    (words,) = said
    assert words.startswith(problem)
    report = text_of(pages["report.html"])
    assert problem in report
    assert "Loss stabilization in a VGG without BatchNorm (laptop)" in report
    assert "study-stabilization-laptop.html" not in pages
    (step,) = [step for step in guide_of(WHY, []) if step.study.name == "stabilization"]
    told = section_words(pages["paper-why.html"], step.number)
    assert "stabilization, preset laptop, cannot be shown" in told
    assert "not run yet" not in told
    said.clear()
    files = build_report(store, fmt="svg", out=tmp_path / "figures", notice=said.append)
    assert {path.name.partition("-laptop")[0] for path in files} == {"stabilization-vgg"}
    assert len(said) == 1


def test_a_study_with_a_damaged_run_is_shown_without_it_and_not_decided(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", num_seeds=3)
    path = store.run(store.manifests()[0]["arms"][1]["runs"]["0"]).path / "readings.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:]]) + "\n", encoding="utf-8")
    said: list[str] = []
    pages = {p.name: text_of(p.read_text(encoding="utf-8")) for p in build_report(store, notice=said.append)}
    (words,) = said
    assert words.startswith(
        f"stabilization, preset laptop, is shown without a damaged run: {path} is damaged (line 3 is no"
    )
    page = pages["study-stabilization-laptop.html"]
    assert "Runs that are damaged and left out of the figures: 1 of 12. No claim is decided." in page
    assert f"{path} is damaged (line 3 is no reading" in page
    (results,) = results_in(store)
    assert results.seeds(8) == [1, 2]
    assert {verdict.finding.outcome for verdict in results.verdicts()} == {"not tested"}


def test_where_nothing_can_be_shown_the_report_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / "sheets" / "stabilization-laptop.json"
    path.write_text("{}", encoding="utf-8")
    for fmt in ("html", "svg"):
        with pytest.raises(StoreError, match=f"{re.escape(str(path))} cannot be used, study is missing"):
            build_report(store, fmt=fmt)
    assert not (store.path / "report.html").exists()


def test_a_study_of_a_newer_halflife_is_a_named_problem(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write_manifest("from-tomorrow-laptop", store.manifests()[0] | {"study": "from-tomorrow"})
    words = text_of(build_report(store)[0].read_text(encoding="utf-8"))
    assert "from-tomorrow, preset laptop, cannot be shown: there is no study 'from-tomorrow'" in words
    assert "Loss stabilization in a ResNet with BatchNorm (laptop)" in words
