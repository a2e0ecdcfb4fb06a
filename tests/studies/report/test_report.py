"""The report: what it shows is what the store holds, and nothing less. No browser, no torch."""

from __future__ import annotations

import html
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from halflife.errors import StoreError, UserError
from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.evidence.claims import Panel
from halflife.studies.evidence.multiplicity import multiplicity_of
from halflife.studies.evidence.stats import NOT_COVERED, Interval
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report import build_report
from halflife.studies.report.figures.fields import size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.ladder import ladder_figure
from halflife.studies.report.figures.panels import panel_figure, panel_figures
from halflife.studies.report.figures.theme import PALETTE, arm_styles
from halflife.studies.report.pages.page import render_study
from halflife.studies.report.pages.provenance import banners, provenance_of
from halflife.studies.report.pages.sections import section_of
from halflife.studies.report.pages.tables import numbers, rules_markdown, typeset, verdict_markdown, verdict_rows
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
from tests.studies.synthetic import ARMS, DATA, bits, make_store, spec_of

FAILURE = "the training loss became nan in epoch 3 (lr 0.1, lam 0, seed 1): lower the learning rate"


def results_of(store: Store, index: int = 0) -> StudyResults:
    manifest = store.manifests()[index]
    return StudyResults(store, get_study(manifest["study"]), manifest)


def chart_rows(figure: Figure, part: int = 0) -> list[dict[str, Any]]:
    return rows_of(figure.charts[part][1].to_dict())


def rows_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A chart's table."""
    rows: list[dict[str, Any]] = spec["datasets"][spec["data"]["name"]]
    return rows


SIGNS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{PLUS-MINUS SIGN}": "+-", "\N{NO-BREAK SPACE}": " "})


def text_of(page: str) -> str:
    """The page's words, without tags and scripts, with plain signs."""
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]+>", "", body))
    return re.sub(r"\s+", " ", words.translate(SIGNS))


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("report") / "store")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("report") / "ladder",
        preset="night",
        sizes=(4, 8, 16),
        status=lambda key, seed, size: "absent" if (seed, size) == (1, 16) else "finished",
    )


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    return study_page(store)


def study_page(store: Store) -> str:
    """The page of the store's first study."""
    first, page, *_ = build_report(store)
    assert first == store.path / "report.html"
    return page.read_text(encoding="utf-8")


# ---- the page


def test_the_page_loads_nothing(page: str) -> None:
    for tag, attributes in Tags(page).found:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "audio", "video"}
        assert attributes.get("src", "report-charts.js") == "report-charts.js"
        if tag != "a":
            assert "href" not in attributes
    assert not re.search("cdn|jsdelivr|unpkg", page)
    assert not re.search(r"@import|url\(", re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0])
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page


def test_pages_share_one_script(store: Store, page: str) -> None:
    shared = store.path / "report-charts.js"
    text = shared.read_text(encoding="utf-8")
    assert "window.vegaEmbed" in text
    assert not re.search("jsdelivr|unpkg", text)
    assert page.count('<script src="report-charts.js">') == 1
    assert len(page) < 200_000 < len(text)


def test_the_page_is_a_document(page: str) -> None:
    assert page.startswith("<!doctype html>")
    found = Tags(page).found
    assert ("html", {"lang": "en"}) in found
    identities = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(set(identities)) == len(identities)
    headings = [int(tag[1]) for tag, _ in found if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_the_page_says_every_verdict(store: Store, page: str) -> None:
    words = text_of(page)
    rows = verdict_rows(results_of(store).verdicts())
    assert len(rows) == len(STUDIES["stabilization"].claims)
    for row in rows:
        assert row["text"] in words
        assert row["rule"] in words
        assert row["reason"][1:] in words
        assert row["effect_estimate"] in words
        assert row["effect_interval"] in words
        assert row["rows"]
        for part in row["rows"]:
            assert f"{part['quantity']}{part['effect']}{part['test']}" in words
            assert "(90 %)" in part["effect"] or "(95 %)" in part["effect"]
    for outcome in {row["outcome"] for row in rows}:
        count = sum(row["outcome"] == outcome for row in rows)
        assert f"{count} {outcome}" in words
    assert "2 seeds" in words
    assert "120 examples" in words


def test_the_page_says_when_rules_were_fixed_and_what_stands(tmp_path: Path) -> None:
    store = make_store(tmp_path, num_seeds=5, num_test=1_000)
    results = results_of(store)
    many = multiplicity_of(results.verdicts())
    section = section_of(results)
    assert "older than the record of claims" in section["fixed"]
    page = text_of(render_study(section, report="report.html"))
    assert section["fixed"] in page
    assert many.words in page
    for words in NOT_COVERED:
        assert words in page
    assert many.num_decided >= 3
    decided = {v.claim.key for v in results.verdicts() if v.finding.outcome in {"reproduced", "not reproduced"}}
    stand = {row["claim"] for row in section["rows"] if row["claim"] in decided and not row["falls"]}
    assert stand == {key for *_, key in many.stand}
    assert page.count("does not stand when adjusted for the number of tests") == len(decided - stand)
    # A record from before the first run, and one of a claim that was changed when runs were finished.
    digests = {claim.digest: claim.key for claim in results.study.claims}
    known = {key: digest for digest, key in digests.items()}
    fixed = StudyResults(
        store, results.study, {**results.manifest, "claims": [{"at": "2026-01-01", "finished": 0, "digests": known}]}
    )
    assert section_of(fixed)["fixed"].startswith("All claims and rules were recorded before the first run")
    assert all(row["fixed"] and not row["notes"] for row in section_of(fixed)["rows"])
    late = [
        {"at": "2026-01-01", "finished": 0, "digests": {**known, "helps": "another"}},
        {"at": "2026-01-02", "finished": 7, "digests": known},
    ]
    changed = StudyResults(store, results.study, {**results.manifest, "claims": late})
    section = section_of(changed)
    assert section["fixed"].startswith("5 of 6 claims and rules were recorded before the first run")
    assert "was changed on 2026-01-02, when 7 runs were finished" in text_of(
        render_study(section, report="report.html")
    )


def test_the_page_says_how_it_was_run(store: Store, page: str) -> None:
    words = text_of(page)
    spec = spec_of("large-decay", 0, width=8, num_epochs=8, eval_every=2).to_json()
    for name in spec.keys() - {"seed"}:
        assert name in words, name
    table = provenance_of(results_of(store))
    assert table.differing == ["lr", "lam"]
    assert {tuple(row[1:]) for row in table.arms} == {(f"{lr:g}", f"{lam:g}") for lr, lam in ARMS.values()}
    common = {name: (value, meaning) for name, value, meaning in table.common}
    assert common.keys() == spec.keys() - {"seed", "lr", "lam"}
    assert common["ema"][0] == "0.999, 0.99"
    assert common["num_train"][0] == "none"
    assert common["batch_size"] == ("128", "Images per step; a last smaller batch is left out.")
    assert all(meaning for _, meaning in common.values()), "a field without a line in the docstring"
    for fact in (
        "images, version 1",
        DATA["sha256"],
        DATA["title"],
        "halflife 0.1.0",
        "torch 2.13.0",
        "Some processor",
    ):
        assert fact in words
    for fact in ("halflife study run stabilization --preset laptop", "9 min 32 s", "2025-01-02 03:04 UTC", "seeds0, 1"):
        assert fact in words
    for identity, header in results_of(store).headers.items():
        assert identity in words
        assert header["spec_digest"] in words


def test_each_panel_is_a_chart_with_its_caption(store: Store, page: str) -> None:
    charts = [attributes for _, attributes in Tags(page).found if attributes.get("class") == "chart"]
    panels = STUDIES["stabilization"].panels
    assert len(charts) == len(panels)
    words = text_of(page)
    for chart, panel in zip(charts, panels, strict=True):
        found = re.search(rf'<script type="application/json" id="{chart["data-spec"]}">(.*?)</script>', page, re.DOTALL)
        assert found
        spec = json.loads(found[1])
        assert spec["width"] == "container"
        assert list(rows_of(spec)[0]) == ["arm", "epoch", "mean", "low", "high"]
        assert panel.title in (chart["aria-label"] or "")
        assert panel.source_figure in words
    assert "Mean over 2 seeds; the band spans the lowest and the highest seed." in words


def test_labels_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    store = make_store(
        tmp_path,
        labels={"large-decay": evil},
        command="halflife <b>run</b>",
        status=lambda key, seed, size: "failed" if (key, seed) == ("large-none", 1) else "finished",
    )
    header = next(h for h in results_of(store).headers.values() if h["status"] == "failed")
    store.run(header["id"]).write_header(header | {"failure": evil})
    text = study_page(store)
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert html.escape(evil, quote=False) in text


def test_signs_and_intervals_aretypeset() -> None:
    assert typeset("by -3.10 [-4.08, -2.12] at 1e-5, epochs^-p, x-3") == (
        "by \N{MINUS SIGN}3.10 [\N{MINUS SIGN}4.08,\N{NO-BREAK SPACE}\N{MINUS SIGN}2.12] at 1e-5, epochs^-p, x-3"
    )


# ---- figures


def test_a_figure_shows_mean_and_range_of_the_readings(store: Store) -> None:
    results = results_of(store)
    figure = panel_figure(results, STUDIES["stabilization"].panels[0])
    arm = results.arms[2]
    at_end = [
        reading.values["test/error"] * 100
        for identity in arm["runs"].values()
        for reading in store.run(identity).readings()
        if reading.epoch == 8
    ]
    assert len(at_end) == 2
    (row,) = [row for row in chart_rows(figure) if row["arm"] == arm["label"] and row["epoch"] == 8]
    assert row["mean"] == pytest.approx(sum(at_end) / 2, rel=1e-4)
    assert row["low"] == pytest.approx(min(at_end), rel=1e-4)
    assert row["high"] == pytest.approx(max(at_end), rel=1e-4)
    assert len(chart_rows(figure)) == 4 * 4  # arms x evaluations
    assert figure.header == ("arm", "epoch 4", "epoch 8")
    assert "drops after epoch 4" in figure.caption


def test_an_arm_looks_the_same_in_all_panels(store: Store) -> None:
    styles = arm_styles(results_of(store))
    look = {style.key: (style.colour, style.dash) for style in styles}
    assert len(set(look.values())) == 4
    assert look["large-decay"][0] == look["large-none"][0] != look["small-decay"][0]
    assert look["large-decay"][1] == look["small-decay"][1] != look["large-none"][1]
    for figure in panel_figures(results_of(store)):
        spec = figure.charts[0][1].to_dict()
        scales = [
            layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer.get("encoding", {})
        ]
        assert scales
        for scale in scales:
            assert scale == {"domain": [s.label for s in styles], "range": [s.colour for s in styles]}


def test_arms_that_share_rate_and_decay_get_colours_of_their_own(store: Store) -> None:
    results = results_of(store)
    double = {**results.arms[0], "key": "again"}
    results.arms.append(double)
    styles = arm_styles(results)
    assert [style.colour for style in styles] == list(PALETTE[:5])
    assert len({style.label for style in styles}) == 5


def without(
    metric: str, where: Callable[[str, int, float], bool]
) -> Callable[[str, int, list[Reading]], list[Reading]]:
    """A change that removes a quantity where ``where(key, seed, epoch)``."""

    def change(key: str, seed: int, readings: list[Reading]) -> list[Reading]:
        return [
            replace(r, values={n: v for n, v in r.values.items() if n != metric}) if where(key, seed, r.epoch) else r
            for r in readings
        ]

    return change


@pytest.mark.parametrize("epoch", [2, 8])
def test_a_missing_row_is_an_error_that_names_the_run(tmp_path: Path, epoch: int) -> None:
    gone = ("small-none", 1, epoch)
    store = make_store(tmp_path, change=without("weight_norm", lambda *place: place == gone))
    identity = results_of(store).arms[3]["runs"]["1"]
    with pytest.raises(
        StoreError, match=f"the run {identity} has no weight_norm at epoch {epoch}.* remove (the run's|its) folder"
    ):
        build_report(store)
    assert not (store.path / "report.html").exists()


def test_runs_that_all_stop_too_early_are_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, change=without("weight_norm", lambda key, seed, epoch: epoch == 8))
    with pytest.raises(StoreError, match="has no weight_norm at epoch 8"):
        build_report(store, fmt="svg")
    assert not (store.path / "figures").exists()


def test_a_quantity_that_was_never_read_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, change=without("effective_lr", lambda *place: True))
    with pytest.raises(StoreError, match=r"no run of stabilization \(laptop\) has readings of effective_lr"):
        build_report(store)


def test_a_logarithmic_axis_refuses_what_it_cannot_show(store: Store) -> None:
    panel = Panel(metric="train/running_loss", title="t", y_label="y", log=True, factor=-1)
    with pytest.raises(StoreError, match="not above 0 everywhere"):
        panel_figure(results_of(store), panel)


# ---- the ladder


def test_the_ladder_shows_every_effect_in_points_at_every_size(ladder: Store) -> None:
    results = results_of(ladder)
    verdicts = results.verdicts()
    figure = ladder_figure(results, verdicts)
    assert figure is not None
    assert size_name(results) == "width"
    assert figure.title == "Effects against width"
    assert [heading[:3] for heading, _ in figure.charts] == ["(he", "(sm", "(sa", "(av", "(sh"]
    effect = verdicts[0].by_size[4].effect
    assert effect is not None
    row = chart_rows(figure)[0]
    assert (row["size"], row["low"], row["high"]) == (4, pytest.approx(effect.low, abs=1e-6), round(effect.high, 6))
    assert [row["size"] for row in chart_rows(figure)] == [4, 8]
    assert figure.caption.endswith(
        "Not drawn: width 16: 1 of 2 seeds are finished in every arm, at least 2 are needed."
    )
    one = replace(verdicts[1], by_size={**verdicts[1].by_size, 4: verdicts[1].by_size[16]})
    figure = ladder_figure(results, [verdicts[0], one])
    assert figure is not None
    assert " Not drawn: width 16: 1 of 2 seeds are " in figure.caption
    assert "; (small-rate) at width 4: 1 of 2 seeds are " in figure.caption


def test_one_size_has_no_ladder(store: Store) -> None:
    results = results_of(store)
    assert ladder_figure(results, results.verdicts()) is None


def test_the_ladder_is_on_the_page(ladder: Store) -> None:
    text = study_page(ladder)
    assert text.count('class="chart"') == len(STUDIES["stabilization"].panels) + 5
    assert "Effects against width" in text_of(text)


# ---- what is not finished, cut, or only a test


def test_missing_runs_are_announced(tmp_path: Path) -> None:
    states = {("large-none", 1): "failed", ("small-none", 2): "absent", ("small-decay", 2): "running"}
    store = make_store(tmp_path, num_seeds=3, status=lambda key, seed, size: states.get((key, seed), "finished"))
    words = text_of(study_page(store))
    assert "9 of 12 runs finished. At the main size 1 of 3 seeds are finished in every arm" in words
    assert FAILURE in words
    assert "Mean over 1 seed; one seed, so there is no band." in words
    assert "6 not tested" in words
    assert "1 of 3 seeds are finished in every arm, at least 2 are needed" in words


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    store = make_store(tmp_path, status=lambda key, seed, size: "absent" if key == "large-none" else "finished")
    text = study_page(store)
    assert "Nothing can be drawn yet" in text
    assert 'report-charts.js"></script>' not in text, "no figure, no scripts"
    assert not (store.path / "report-charts.js").exists()
    with pytest.raises(StoreError, match=r"stabilization-laptop has 6 of 8 runs .* nothing to draw: run"):
        build_report(store, fmt="pdf")


def test_a_cut_run_and_a_test_preset_are_marked(tmp_path: Path) -> None:
    store = make_store(tmp_path, preset="smoke", max_steps=100)
    words = text_of(study_page(store))
    assert "Runs were cut at 100 steps by --max-steps, so no claim is decided." in words
    assert "The preset smoke decides nothing: 640 training and 500 test images" in words


def test_seeds_that_differ_by_size_are_told_by_size(ladder: Store) -> None:
    results = results_of(ladder)
    for arm in results.arms:
        if arm["size"] == 8:
            arm["runs"]["2"] = "f" * 16  # a plan with one more seed
    results.headers["f" * 16] = {}
    assert dict(provenance_of(results).facts)["seeds"] == "0, 1 at width 4 and 16; 0, 1, 2 at width 8"


def test_runs_of_different_code_are_marked(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    header = next(iter(results_of(store).headers.values()))
    store.run(header["id"]).write_header(header | {"trainer": {"name": "images", "version": 2}})
    assert "The runs differ in their code" in banners(results_of(store))[0][1]
    words = "images, version 2 (1 runs); images, version 1 (7 runs)"
    assert dict(provenance_of(results_of(store)).facts)["trainer"] == words


def test_runs_made_before_trainers_had_versions_tell_their_code_digest(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first, *others = results_of(store).headers.values()
    for header in (first, *others):
        old = {key: value for key, value in header.items() if key != "trainer"}
        store.run(header["id"]).write_header(old | {"code_digest": "c0de" * 16})
    assert banners(results_of(store)) == []
    words = "before trainer versions (code digest c0dec0de)"
    assert dict(provenance_of(results_of(store)).facts)["trainer"] == words
    store.run(first["id"]).write_header(first)
    assert "The runs differ in their code" in banners(results_of(store))[0][1]
    other = results_of(store).headers[others[0]["id"]] | {"id": first["id"], "code_digest": "beef" * 16}
    store.run(first["id"]).write_header(other)
    assert "The runs differ in their code" in banners(results_of(store))[0][1]


def test_runs_without_a_digest_of_their_readings_are_told(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    words = "without sha256, so that a missing one is not noticed"
    assert dict(provenance_of(results_of(store)).facts)["readings"] == words
    run = store.run(next(iter(results_of(store).headers)))
    run.finish(run.header())
    words = f"checked by their sha256 (1 runs); {words} (7 runs)"
    assert dict(provenance_of(results_of(store)).facts)["readings"] == words


def test_the_commit_of_a_run_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert "commit" not in dict(provenance_of(results_of(store)).facts)
    first, second, *_ = results_of(store).headers.values()
    store.run(first["id"]).write_header(first | {"commit": {"id": "f00d" * 10, "changed": False}})
    store.run(second["id"]).write_header(second | {"commit": {"id": "f00d" * 10, "changed": True}})
    words = f"{'f00d' * 10} (1 runs); {'f00d' * 10} with changes (1 runs)"
    assert dict(provenance_of(results_of(store)).facts)["commit"] == words
    assert banners(results_of(store)) == []


def test_a_test_sheet_gives_way_to_a_real_one(tmp_path: Path) -> None:
    store = make_store(tmp_path, preset="smoke")
    make_store(tmp_path, preset="laptop")
    make_store(tmp_path, study="stabilization-vgg", preset="smoke")
    names = [path.name for path in build_report(store)]
    assert names[:3] == ["report.html", "study-stabilization-laptop.html", "study-stabilization-vgg-smoke.html"]
    assert "study-stabilization-smoke.html" not in names
    words = text_of((store.path / "report.html").read_text(encoding="utf-8"))
    assert "Loss stabilization in a ResNet with BatchNorm (laptop)" in words, "a list of the studies"
    words = text_of(build_report(store, ["stabilization-vgg"])[0].read_text(encoding="utf-8"))
    assert "Loss stabilization in a ResNet with BatchNorm (laptop)" not in words


def test_what_older_sheets_lack_is_left_out(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    manifest = store.manifests()[0]
    needed = {"study", "preset", "main_size", "arms"}
    store.write_manifest("stabilization-laptop", {key: value for key, value in manifest.items() if key in needed})
    for identity, header in results_of(store).headers.items():
        kept = {"id", "status", "spec"}
        store.run(identity).write_header({key: value for key, value in header.items() if key in kept})
    words = text_of(study_page(store))
    assert "halflife study run stabilization --preset laptop" in words
    assert "trainernot recorded" in words


# ---- files


def test_svg_files(ladder: Store, tmp_path: Path) -> None:
    paths = build_report(ladder, fmt="svg", out=tmp_path / "a" / "b")
    names = [path.name for path in paths]
    assert len(names) == len(STUDIES["stabilization"].panels) + 1
    assert names[0] == "stabilization-night-test-error.svg"
    assert names[-1] == "stabilization-night-ladder.svg"
    for path in paths:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10
        assert "var(" not in path.read_text(encoding="utf-8")


def test_pdf_files(store: Store) -> None:
    paths = build_report(store, fmt="pdf")
    assert paths[1] == store.path / "figures" / "stabilization-laptop-train-running-loss.pdf"
    assert all(path.read_bytes().startswith(b"%PDF-") for path in paths)


def test_where_the_report_lands(store: Store, tmp_path: Path) -> None:
    others = ["study-stabilization-laptop.html", "paper-why.html", "report-charts.js"]
    assert build_report(store, out=tmp_path) == [tmp_path / name for name in ("report.html", *others)]
    new = tmp_path / "new"
    assert build_report(store, out=new / "folder") == [new / "folder" / name for name in ("report.html", *others)]
    assert build_report(store, out=new / "page.html") == [new / name for name in ("page.html", *others)]
    with pytest.raises(StoreError, match=r"cannot be made \(.*choose another --out"):
        build_report(store, out=tmp_path / "report.html" / "under" / "a-file.html")
    with pytest.raises(UserError, match="the format is 'png', expected one of html, svg, pdf"):
        build_report(store, fmt="png")  # type: ignore[arg-type]


def test_a_report_without_torch(store: Store, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from halflife.studies.report import build_report
from halflife.studies.store.store import Store
build_report(Store({str(store.path)!r}), out=Path({str(tmp_path / "page.html")!r}))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_the_tables_need_no_altair() -> None:
    code = "import sys, halflife.studies.report.pages.tables; print('altair' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- tables


def test_rows_are_json_and_hold_the_ladder(ladder: Store) -> None:
    verdicts = results_of(ladder).verdicts()
    rows = json.loads(json.dumps(verdict_rows(verdicts)))
    first, effect = rows[0], verdicts[0].finding.effect
    assert effect is not None
    assert (first["study"], first["preset"], first["claim"]) == ("stabilization", "night", "helps")
    assert (first["estimate"], first["low"], first["high"]) == (effect.estimate, effect.low, effect.high)
    assert (first["num_seeds"], first["num_examples"], first["confidence"]) == (2, 120, 0.95)
    assert [by["size"] for by in first["by_size"]] == [4, 8, 16]
    assert first["by_size"][2]["estimate"] is None


def test_a_verdict_without_effect_has_a_dash(tmp_path: Path) -> None:
    store = make_store(tmp_path, num_seeds=1)
    for row in verdict_rows(results_of(store).verdicts()):
        assert (row["outcome"], row["effect"], row["sample"], row["low"]) == ("not tested", "-", "-", None)
    for verdict in results_of(store).verdicts():
        assert verdict.finding.reason == "1 of 1 seeds are finished in every arm, at least 2 are needed"


def test_markdown_says_the_same(store: Store) -> None:
    verdicts = results_of(store).verdicts()
    effect = Interval(4000.0, 3.0, 12345.0, 3, confidence=0.9)
    claim = replace(verdicts[0].claim, text="a | b")
    finding = replace(verdicts[0].finding, outcome="not reproduced", effect=effect)
    text = verdict_markdown([replace(verdicts[0], claim=claim, finding=finding), *verdicts[1:]], anchor="x-")
    lines = text.splitlines()
    assert lines[2] == (
        r'| <span id="x-helps"></span>**helps**: a \| b | ✗ not reproduced | +4000 points [+3, +12345] (90 %) | 3 seeds |'
    )
    assert len(lines) == 2 + len(verdicts)
    assert "<span" not in verdict_markdown(verdicts)
    table = rules_markdown(verdicts)
    for row in verdict_rows(verdicts):
        for part in row["rows"]:
            assert f"| {part['quantity']} | {part['effect']} | {part['test']} |" in table
        assert (f"- **{row['claim']}**: {row['reason']}." in table) == bool(row["reason"])


@pytest.mark.parametrize(
    ("interval", "unit", "words"),
    [
        ((-1.908, -2.188, -1.628), "points", ("-1.91", "-2.19", "-1.63")),
        ((0.0004, 0.0001, 0.0007), "", ("0.0004", "0.0001", "0.0007")),  # two decimals would say 0 [0, 0]
        ((1.5256, 1.5169, 1.5341), "x", ("1.526", "1.517", "1.534")),
        ((0.97, 0.9, 1.04), "", ("0.97", "0.90", "1.04")),
        ((-0.01234, -0.02, -0.005), "nats", ("-0.0123", "-0.0200", "-0.0050")),
        ((1.0, 1.0, 1.0), "%", ("+1.00", "+1.00", "+1.00")),
    ],
)
def test_numbers_have_the_digits_that_their_interval_needs(
    interval: tuple[float, float, float], unit: str, words: tuple[str, str, str]
) -> None:
    assert numbers(Interval(*interval, 3), unit) == words


def test_the_helper_packs_bits_as_the_lab_does() -> None:
    flags = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    assert bits(flags).data == bytes([0b10000000, 0b11000000])
