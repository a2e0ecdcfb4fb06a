"""Figures as files: they look the same in any font, and hold what is seen and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

from halflife.studies.catalog import get_study
from halflife.studies.evidence.claims import Panel, PointRow, PointsPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import ladder_chart, points_chart
from halflife.studies.report.figures.figure import Figure, static_chart
from halflife.studies.report.figures.panels import panel_figure
from halflife.studies.report.figures.theme import series_styles
from halflife.studies.report.figures.words import pinned, text_width, wrapped
from halflife.studies.report.files import render_figure
from halflife.studies.store.records import Reading
from tests.studies.report.browsers import ARGUMENTS, BROWSERS
from tests.studies.synthetic import make_store

# Every text that leaves the picture, and every two that lie on each other.
FAULTS = """() => {
  const box = document.querySelector('svg').getBoundingClientRect();
  const texts = [...document.querySelectorAll('svg text')].map((t) => [t.textContent, t.getBoundingClientRect()])
    .filter(([words, r]) => words.trim() && r.width > 0);
  const out = texts.filter(([, r]) => r.left < box.left - 0.5 || r.right > box.right + 0.5 || r.top < box.top - 0.5)
    .map(([words]) => words);
  for (const [i, [a, r]] of texts.entries()) for (const [b, q] of texts.slice(0, i)) {
    const across = Math.min(r.right, q.right) - Math.max(r.left, q.left);
    const down = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
    if (across > 2 && down > 4) out.push(`${a} / ${b}`);
  }
  return out;
}"""
LONG = (
    "What decay changes of the final loss by averages of the weights at a constant rate, and by branches at a tiny one"
)

ASCII = "".join(map(chr, range(33, 127)))
EMPTY = Figure(slug="s", title="t", caption="", description="", charts=(), header=(), rows=())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    store = make_store(tmp_path_factory.mktemp("files") / "store")
    return StudyResults(store, get_study("stabilization"), store.manifests()[0])


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found is not None, f"none of {', '.join(BROWSERS)} is on PATH: install one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


def sweep(*rows: PointRow, **fields: Any) -> PointsPanel:
    words: dict[str, Any] = {"slug": "sweep", "title": LONG, "x_label": "lam", "y_label": LONG} | fields
    return PointsPanel(rows=lambda results: list(rows), **words)


BARS = tuple(
    PointRow(f"an average of the weights over the last {k} % of the run", x, y, y - 0.001, y + 0.001)
    for k in (1, 10, 50)
    for x, y in ((0.01, 1.0 + k / 9), (0.0101, 1.5), (0.03, 2.0), (1.0, 3.0))
)
CURVES = Panel(metric="test/error", title=LONG, y_label=LONG)


@pytest.mark.parametrize("family", ["DejaVu Sans", "monospace"])
@pytest.mark.parametrize("panel", [CURVES, sweep(*BARS, log_x=True), sweep(*BARS)], ids=["curves", "log", "linear"])
def test_words_stay_in_the_picture_and_apart_in_any_font(
    results: StudyResults, page: Page, panel: Panel | PointsPanel, family: str
) -> None:
    svg = str(render_figure(panel_figure(results, panel), "svg"))
    page.set_content(f"<body>{svg.replace('Liberation Sans, Arial, Helvetica, sans-serif', family)}")
    assert page.evaluate(FAULTS) == []
    unpinned = re.sub(r' textLength="[^"]*"', "", svg).replace("Liberation Sans, Arial, Helvetica", "monospace")
    page.set_content(f"<body>{unpinned}")
    assert page.evaluate(FAULTS) != [], "the check sees what it is for"


def test_widths_are_those_that_the_chart_was_laid_out_with() -> None:
    """An entry of a legend in vl-convert's layout is 29 pixels and its words wide."""
    for words in ("lr 0.1, lam 0.01", *(ASCII[k : k + 32] for k in (0, 32, 64)), "J^2 / ||J||, QWERTY qwerty"):
        rows = [
            {"series": words, "x": 1.0, "y": 1.0, "style": "line"},
            {"series": words, "x": 2.0, "y": 2.0, "style": "line"},
        ]
        chart = points_chart(rows, styles=series_styles([words]), x_label="x", y_label="y", log_x=False, log_y=False)
        figure = replace(EMPTY, charts=(("", chart),))
        svg = str(render_figure(figure, "svg"))
        width = re.search(r'd="M0,0h([\d.]+)v18\.5h-', svg)
        assert width
        assert float(width[1]) - 29 == pytest.approx(text_width(words, 12), rel=0.005)  # kerning


def test_wrapping_keeps_the_words() -> None:
    lines = wrapped(LONG, 300, 14, bold=True)
    assert " ".join(lines) == LONG
    assert len(lines) > 1
    assert all(text_width(line, 14, bold=True) <= 300 for line in lines)
    assert wrapped("unbreakable", 5, 12) == ["unbreakable"]
    assert wrapped("", 5, 12) == [""]


def test_pinning_leaves_markup_alone() -> None:
    text = (
        '<text font-size="10px" font-weight="bold">a &lt; b</text><text font-size="10px">0</text><text>no size</text>'
    )
    assert pinned(text) == (
        '<text font-size="10px" font-weight="bold" textLength="23.1" lengthAdjust="spacingAndGlyphs">a &lt; b</text>'
        '<text font-size="10px">0</text><text>no size</text>'
    )


def test_a_file_holds_what_is_seen(results: StudyResults) -> None:
    """Four lines, four bands: nothing that waits for a pointer."""
    panel = get_study("stabilization").panels[0]
    spec = static_chart(panel_figure(results, panel))
    assert all("opacity" not in str(layer["mark"]) for layer in spec["layer"])
    assert not any("near" in str(part) for part in (spec["layer"], spec["params"]))
    svg = str(render_figure(panel_figure(results, panel), "svg"))
    dots = 16  # four arms at four epochs
    marks = re.findall(r'<g class="mark-(\w+) role-mark[^>]*>(.*?)</g>', svg)
    drawn = {kind: sum(content.count("<path") for k, content in marks if k == kind) for kind, _ in marks}
    assert drawn == {"rule": 0, "text": 0, "area": 4, "line": 4, "symbol": dots}
    assert 'opacity="0"' not in svg


def test_an_interval_within_its_dot_is_seen(results: StudyResults) -> None:
    rows = [
        PointRow("one", 1, 1, 0.9999, 1.0001),
        PointRow("one", 2, 2, 1, 3),
        PointRow("two", 1, 3),
        PointRow("two", 2, 3),
    ]
    svg = str(render_figure(panel_figure(results, sweep(*rows)), "svg"))
    marks = re.findall(r'<g class="mark-(symbol|rule) role-mark[^>]*>(.*?)</g>', svg)
    shapes = [(kind, re.findall(r"<(?:path|line)[^>]*>", content)) for kind, content in marks]
    own = [(kind, marks) for kind, marks in shapes if marks]  # the legend's follow
    assert [kind for kind, _ in own[:3]] == ["symbol", "rule", "symbol"], "the bars lie above their dots"
    assert all('fill="#ffffff"' in dot and 'stroke="#d55e00"' in dot for dot in own[0][1]), "which are open"
    assert all('fill="#0072b2"' in dot for dot in own[2][1]), "a dot without a bar is filled"


def test_a_dot_of_the_ladder_is_open_and_its_bar_above_it() -> None:
    rows = [
        {"size": s, "effect": 1.0, "low": 0.999, "high": 1.001, "text": "", "outcome": "", "sample": ""} for s in (4, 8)
    ]
    spec = ladder_chart(rows, sizes=[4, 8], size_name="width", unit="points", domain=[0, 2]).to_dict()
    kinds = [layer["mark"]["type"] for layer in spec["layer"]]
    assert kinds == ["line", "rule", "point", "rule"]
    assert spec["layer"][2]["mark"]["filled"] is False


# ---- long runs


def long_results(tmp_path: Path, num_epochs: int) -> StudyResults:
    store = make_store(tmp_path, num_epochs=num_epochs, eval_every=1, num_test=8)
    return StudyResults(store, get_study("stabilization"), store.manifests()[0])


@pytest.mark.parametrize("num_epochs", [460, 461, 1_000])
def test_a_long_run_has_no_more_points_than_pixels(tmp_path: Path, num_epochs: int) -> None:
    """Every drawn point is a reading; the band holds those between, the ends and the extremes are kept."""
    results = long_results(tmp_path, num_epochs)
    panel = Panel(metric="weight_norm", title="Norm", y_label="norm")
    figure = panel_figure(results, panel)
    spec = figure.charts[0][1].to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    every = -(-num_epochs // 460)
    assert ("One reading of " in figure.caption) == (every > 1)
    for arm in results.arms:
        own = [row for row in rows if row["arm"] == arm["label"]]
        assert len(own) == -(-num_epochs // every) <= 460
        assert own[-1]["epoch"] == num_epochs
        assert own[0]["epoch"] <= every
        series = results.series(arm["key"], "weight_norm", 8)
        seeds = np.array([values for _, values in series])
        mean = dict(zip(series[0][0], seeds.mean(0), strict=True))
        assert [row["mean"] for row in own] == pytest.approx([mean[row["epoch"]] for row in own], rel=1e-4)
        assert min(row["low"] for row in own) == pytest.approx(seeds.min(), rel=1e-4)
        assert max(row["high"] for row in own) == pytest.approx(seeds.max(), rel=1e-4)
    last = next(row for row in figure.rows if row[0] == results.arms[0]["label"])[-1]
    ends = [values[-1] for _, values in results.series("large-decay", "weight_norm", 8)]
    assert float(last.split()[0]) == pytest.approx(np.mean(ends), rel=1e-3)


def test_a_spike_between_drawn_points_is_in_the_band(tmp_path: Path) -> None:
    def change(key: str, seed: int, readings: list[Reading]) -> list[Reading]:
        return [
            replace(r, values={**r.values, "weight_norm": 1e6}) if (key, seed, r.epoch) == ("small-none", 1, 500) else r
            for r in readings
        ]

    store = make_store(tmp_path, num_epochs=1_000, eval_every=1_000, num_test=8, change=change)
    results = StudyResults(store, get_study("stabilization"), store.manifests()[0])
    figure = panel_figure(results, Panel(metric="weight_norm", title="Norm", y_label="norm"))
    spec = figure.charts[0][1].to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    assert 500 not in {row["epoch"] for row in rows}
    assert max(row["high"] for row in rows) == 1e6
