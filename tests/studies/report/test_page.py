"""The page in a browser: it is drawn, it answers to the pointer, it fits, and it asks nobody for anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report import build_report
from halflife.studies.report.pages.page import render_page
from tests.studies.report.browsers import ARGUMENTS, BROWSERS
from tests.studies.synthetic import make_store
from tests.studies.synthetic_text import TEXT_STUDY, make_text_store

PANELS = len(STUDIES["stabilization"].panels)
LADDER = 5  # claims in points
TEXT_PANELS, TEXT_LADDER = len(TEXT_STUDY.panels), len(TEXT_STUDY.claims)
SWEEP = 2 * PANELS + LADDER + 3  # the text study's points
GRID = SWEEP + 1
ALL_DRAWN = "() => document.querySelectorAll('.chart[data-drawn]').length == document.querySelectorAll('.chart').length"
CONTRASTS = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const worst = (selector, property) => Math.min(...[...document.querySelectorAll(selector)]
    .map((e) => ratio(getComputedStyle(e)[property], behind(e))));
  return {
    words: worst("p, a, th, td, dt, dd, li, h1, h2, h3, h4, summary, figcaption, .outcome, .muted", "color"),
    labels: worst(".chart text:not([fill='#ffffff'], [fill='#000000'])", "fill"),
    lines: worst(".chart .mark-line path", "stroke"),
  };
}"""  # the least of words, of labels and of lines


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(
            f"these tests look at the page in a browser and none of {', '.join(BROWSERS)} is on PATH: install one (Debian,"
            " Ubuntu: apt-get install chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a study at two presets, one of them with a ladder and with missing runs, and one of language models."""
    folder = tmp_path_factory.mktemp("page")
    store = make_store(folder)
    make_store(
        folder,
        preset="night",
        sizes=(4, 8, 16),
        labels={"large-decay": "lr 0.1, lam 0.01 <script>alert(1)</script>"},
        status=lambda key, seed, size: "failed" if (key, seed, size) == ("large-none", 1, 4) else "finished",
    )
    text = make_text_store(folder / "text")
    many = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    many += [StudyResults(text, TEXT_STUDY, manifest) for manifest in text.manifests()]
    page = folder / "page.html"
    page.write_text(render_page(many), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def page(browser: Browser, path: Path) -> Iterator[Page]:
    """The page, watched: whatever it asks for or complains about fails the test that looks at it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)  # milliseconds; a machine may be busy with a study
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.on("request", lambda request: complaints.append(f"request: {request.url}"))
    page.route(lambda url: url != path.as_uri(), lambda route: route.abort())
    page.goto(path.as_uri())
    page.wait_for_function(ALL_DRAWN)
    assert complaints.pop(0) == f"request: {path.as_uri()}"
    yield page
    assert not complaints
    context.close()


def plot(page: Page, index: int) -> Locator:
    chart = page.locator(".chart").nth(index)
    chart.evaluate("element => element.scrollIntoView({block: 'center', behavior: 'instant'})")
    return chart


def drawing(chart: Locator) -> str:
    return chart.locator("svg").inner_html()


def test_every_figure_is_drawn(page: Page) -> None:
    charts = page.locator(".chart")
    assert charts.count() == 2 * PANELS + LADDER + TEXT_PANELS + TEXT_LADDER
    for chart in charts.all():
        box = chart.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 150
        curves = chart.locator(".mark-line path, .mark-rect.role-mark path")
        assert curves.count() >= 1
        for curve in curves.all():
            assert len(curve.get_attribute("d") or "") > 15
        assert chart.get_attribute("aria-label")
    first = charts.first
    assert first.locator(".mark-line path").count() == 4
    assert first.locator(".mark-area path").count() == 4
    assert first.get_by_text("lr drop").count() == 1
    assert first.get_by_text("epoch", exact=True).count() == 1


def test_a_legend_names_every_arm(page: Page) -> None:
    legend = page.locator(".chart").first.locator(".role-legend")
    assert legend.locator("text").all_text_contents() == [
        "lr 0.1, lam 0.01",
        "lr 0.1, lam 0",
        "lr 0.02, lam 0.01",
        "lr 0.02, lam 0",
    ]


@pytest.mark.parametrize("height", [0.35, 0.6, 0.8])
def test_pointing_anywhere_in_a_plot_shows_numbers(page: Page, height: float) -> None:
    chart = plot(page, 1)
    box = chart.bounding_box()
    assert box is not None
    x, y = box["x"] + 0.6 * box["width"], box["y"] + height * box["height"]
    page.mouse.move(x, y)
    page.mouse.move(x + 3, y)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    said = dict(row.locator("td").all_text_contents() for row in tooltip.locator("tr").all())
    assert list(said) == ["arm", "epoch", "mean", "lowest seed", "highest seed", "seeds"]
    assert re.fullmatch(r"lr 0\.\d+, lam 0(\.01)?", said["arm"])
    assert float(said["lowest seed"]) <= float(said["mean"]) <= float(said["highest seed"])
    assert float(said["mean"]) > 0
    assert said["epoch"] in {str(epoch) for epoch in range(1, 9)}
    assert said["seeds"] == "2"
    assert chart.locator(".role-mark.mark-rule line").count() == 2, "the drop, and a rule at the pointer"
    page.mouse.move(2, 2)
    page.locator("#vg-tooltip-element.visible").wait_for(state="hidden")


def test_a_point_of_the_ladder_shows_its_interval(page: Page) -> None:
    chart = plot(page, 2 * PANELS)
    chart.locator("g.mark-symbol path").nth(1).hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    said = tooltip.inner_text()
    assert re.search(r"effect\s+[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\] points", said)
    assert "2 seeds, 120 examples" in said
    page.mouse.move(2, 2)


def test_a_legend_entry_selects_an_arm(page: Page) -> None:
    chart = plot(page, 0)
    before = drawing(chart)
    entry = chart.locator(".role-legend").get_by_text("lr 0.02, lam 0", exact=True)
    entry.click()
    page.wait_for_function(
        "([box, before]) => box.querySelector('svg').innerHTML != before", arg=[chart.element_handle(), before]
    )
    shown = [line.evaluate("path => getComputedStyle(path).opacity") for line in chart.locator(".mark-line path").all()]
    assert sorted(shown) == ["0.12", "0.12", "0.12", "1"]
    entry.click()
    page.wait_for_function(
        "box => ![...box.querySelectorAll('.mark-line path')].some(p => getComputedStyle(p).opacity < 1)",
        arg=chart.element_handle(),
    )


def test_a_point_shows_its_numbers_and_its_series_can_be_picked(page: Page) -> None:
    chart = plot(page, SWEEP)
    chart.locator("g.mark-symbol.role-mark path").nth(4).hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    said = dict(row.locator("td").all_text_contents() for row in tooltip.locator("tr").all())
    assert list(said) == ["series", "x", "y", "low", "high", "style"]
    assert said["series"] == "lr 0.006"
    assert float(said["low"]) < float(said["y"]) < float(said["high"])
    page.mouse.move(2, 2)
    entry = chart.locator(".role-legend").get_by_text("lr 0.002", exact=True)
    entry.click()
    dots = "[...box.querySelectorAll('.mark-symbol.role-mark path')].map(p => getComputedStyle(p).opacity)"
    page.wait_for_function(f"box => {dots}.filter(o => o == '0.12').length == 3", arg=chart.element_handle())
    assert chart.evaluate(f"box => {dots}.filter(o => o == '1').length") == 3
    entry.click()
    page.wait_for_function(f"box => {dots}.filter(o => o == '0.12').length == 0", arg=chart.element_handle())


def test_a_cell_of_a_grid_shows_its_place_and_its_value(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    chart = plot(page, GRID)
    chart.locator(".mark-rect.role-mark path").nth(3).hover(force=True, position={"x": 8, "y": 8})
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    said = dict(row.locator("td").all_text_contents() for row in tooltip.locator("tr").all())
    assert list(said) == ["lam", "learning rate", "final validation loss (nats per token)"]
    # Cells come by learning rate, and each of these has three lams but for one.
    assert (said["lam"], said["learning rate"]) == ("0.1", "0.006")
    page.mouse.move(2, 2)
    words = chart.locator(".mark-text.role-mark text").all_text_contents()
    assert said["final validation loss (nats per token)"] in words
    assert len(words) == 5


def test_words_in_cells_shrink_with_them(page: Page) -> None:
    sizes = []
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("width => innerWidth == width", arg=width)
        chart = plot(page, GRID)
        page.wait_for_function(
            "box => Math.abs(box.querySelector('svg').getBoundingClientRect().width - box.clientWidth) < 12",
            arg=chart.element_handle(),
        )
        sizes.append(
            chart.evaluate(
                """box => [...box.querySelectorAll('.mark-text.role-mark text')].every((text, i) => {
                  const cell = box.querySelectorAll('.mark-rect.role-mark path')[i].getBoundingClientRect();
                  const words = text.getBoundingClientRect();
                  return cell.left < words.left && words.right < cell.right
                    && cell.top < words.top && words.bottom < cell.bottom;
                })"""
            )
        )
    page.set_viewport_size({"width": 1280, "height": 900})
    assert sizes == [True, True]


def test_steps_are_the_axis_of_language_models(page: Page) -> None:
    first = page.locator("#made-up-lm-laptop .chart").first
    assert first.get_by_text("step", exact=True).count() == 1
    assert first.get_by_text("40,000", exact=True).count() == 1
    assert page.locator("#made-up-lm-laptop").get_by_text("epoch", exact=True).count() == 0


def test_how_it_was_run_is_folded_on_screens_and_open_on_paper(page: Page) -> None:
    folded = page.locator("details.run")
    is_open = "parts => parts.map(part => part.open)"
    assert folded.evaluate_all(is_open) == [False] * 3
    folded.first.locator("summary").first.click()
    assert page.get_by_text("The same again, from the same seeds").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.evaluate_all(is_open) == [True] * 3
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.evaluate_all(is_open) == [True, False, False], "what the reader opened stays"
    folded.first.locator("summary").first.click()


@pytest.mark.parametrize("width", [1280, 1024, 768, 390, 360])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    # Charts redraw on a frame of their own after the window changed.
    page.wait_for_function(
        "width => innerWidth == width && [...document.querySelectorAll('.chart')].every("
        "box => Math.abs(box.querySelector('svg').getBoundingClientRect().width - box.clientWidth) < 12 || box.matches("
        "'.fixed'))",
        arg=width,
    )
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Labels stay inside the window, too: an SVG hides nothing that hangs out.
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().right))"
    )
    assert right <= width
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = false)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out(page: Page, scheme: str) -> None:
    """WCAG's contrast: 4.5 for words, 3 for the lines of figures."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # pytest passes str
    ratios = page.evaluate(CONTRASTS)
    page.emulate_media(color_scheme="light")
    assert ratios["words"] >= 4.5
    assert ratios["labels"] >= 4.5
    assert ratios["lines"] >= 3


def test_paper_is_white(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.chart text')).fill") == "rgb(87, 96, 106)"
    page.emulate_media(media="screen", color_scheme="light")


def test_what_is_missing_is_said_first(page: Page) -> None:
    banner = page.locator("#stabilization-night .banner.alert")
    assert "23 of 24 runs finished" in banner.inner_text()
    assert "the training loss became nan" in banner.inner_text()
    assert page.locator("#stabilization-laptop .banner").count() == 0


def test_the_table_of_contents_leads_to_the_studies(page: Page) -> None:
    links = page.locator("nav a")
    assert links.count() == 3
    links.nth(1).click()
    page.wait_for_function(
        "() => Math.abs(document.getElementById('stabilization-night').getBoundingClientRect().top) < 5"
    )


def test_the_rule_opens(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    details = page.locator(".verdicts details").first
    rule = STUDIES["stabilization"].claims[0].words
    assert not page.get_by_text(rule).first.is_visible()
    details.locator("summary").click()
    assert page.get_by_text(rule).first.is_visible()


# ---- pages of papers


@pytest.fixture(scope="module")
def paper(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a paper beside the report, watched likewise."""
    folder = tmp_path_factory.mktemp("paper") / "store"
    make_store(folder)
    paths = build_report(make_store(folder, study="stabilization-vgg", sizes=(16,)))
    assert [path.name for path in paths] == ["report.html", "paper-why.html"]
    files = {path.as_uri() for path in paths}
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if request.url.partition("#")[0] not in files else None,
    )
    page.goto(paths[1].as_uri())
    page.wait_for_function(ALL_DRAWN)
    yield page
    assert not complaints
    context.close()


def test_the_figures_of_a_guide_are_drawn_in_their_steps(paper: Page) -> None:
    drawn = [step.locator(".chart svg").count() for step in paper.locator(".step").all()]
    assert [count for count in drawn if count] == [4, 2]
    assert paper.locator(".step .banner.note").count() == len(drawn) - 2, "the others say how to run them"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_guide_fits_and_can_be_read(paper: Page, width: int, scheme: str) -> None:
    paper.set_viewport_size({"width": width, "height": 900})
    paper.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # pytest passes str
    paper.wait_for_function(
        "width => innerWidth == width && [...document.querySelectorAll('.chart')].every("
        "box => Math.abs(box.querySelector('svg').getBoundingClientRect().width - box.clientWidth) < 12)",
        arg=width,
    )
    paper.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert paper.evaluate("document.documentElement.scrollWidth") == width
    paper.evaluate("document.querySelectorAll('details').forEach(element => element.open = false)")
    ratios = paper.evaluate(CONTRASTS)
    assert ratios["words"] >= 4.5
    assert ratios["labels"] >= 4.5
    paper.emulate_media(color_scheme="light")
    paper.set_viewport_size({"width": 1280, "height": 900})


def test_links_lead_from_the_guide_to_the_studies_and_back(paper: Page) -> None:
    paper.locator("nav[aria-label=Steps] a").get_by_text("Loss stabilization").click()
    step = paper.locator(".step").filter(has=paper.get_by_role("heading", name="Loss stabilization")).first
    paper.wait_for_function("box => Math.abs(box.getBoundingClientRect().top) < 5", arg=step.element_handle())
    step.locator("details.run summary").click()
    step.get_by_role("link", name="stabilization-laptop").click()
    paper.wait_for_url("**/report.html#stabilization-laptop")
    assert paper.locator("#stabilization-laptop").is_visible()
    paper.locator("nav[aria-label=Papers] a").first.click()
    paper.wait_for_url("**/paper-why.html")
    paper.wait_for_function(ALL_DRAWN)
