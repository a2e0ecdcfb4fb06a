"""The page in a browser: it is drawn, it answers to the pointer, it fits, and it asks nobody for anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report import build_report
from halflife.studies.report.pages.page import CHARTS_FILE, charts_script, render_first, render_study
from halflife.studies.report.pages.sections import section_of
from halflife.studies.report.pages.tables import typeset
from tests.studies.report.browsers import ARGUMENTS, BROWSERS
from tests.studies.synthetic import make_store
from tests.studies.synthetic_text import TEXT_STUDY, make_text_store

PANELS = len(STUDIES["stabilization"].panels)
LADDER = 5  # claims in points
TEXT_PANELS, TEXT_LADDER = len(TEXT_STUDY.panels), len(TEXT_STUDY.claims)
FIRST, LADDER_STUDY, TEXT = (
    "study-stabilization-laptop.html",
    "study-stabilization-night.html",
    "study-made-up-lm-laptop.html",
)
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


Open = Callable[[str], Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a study at two presets, one of them with a ladder and with missing runs, and of one of language models."""
    folder = tmp_path_factory.mktemp("page")
    store = make_store(folder / "images")
    make_store(
        folder / "images",
        preset="night",
        sizes=(4, 8, 16),
        labels={"large-decay": "lr 0.1, lam 0.01 <script>alert(1)</script>"},
        status=lambda key, seed, size: "failed" if (key, seed, size) == ("large-none", 1, 4) else "finished",
    )
    text = make_text_store(folder / "text")
    many = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    many += [StudyResults(text, TEXT_STUDY, manifest) for manifest in text.manifests()]
    sections = [section_of(results) for results in many]
    pages = {section["file"]: render_study(section, sections, report="report.html") for section in sections}
    pages |= {"report.html": render_first(sections), CHARTS_FILE: charts_script()}
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def opened(browser: Browser, folder: Path) -> Iterator[Open]:
    """Opens a page of the folder, watched: whatever it asks for or complains about fails the tests that look at it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    pages: dict[str, Page] = {}
    complaints: list[str] = []

    def asked(url: str, allowed: set[str]) -> None:
        if url not in allowed:
            complaints.append(f"request: {url}")

    def open_page(name: str) -> Page:
        if name not in pages:
            page = pages[name] = context.new_page()
            page.set_default_timeout(90_000)  # milliseconds; a machine may be busy with a study
            allowed = {(folder / name).as_uri(), (folder / CHARTS_FILE).as_uri()}
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            page.on("dialog", lambda dialog: dialog.dismiss())
            page.on("request", lambda request: asked(request.url, allowed))
            page.goto((folder / name).as_uri())
            page.wait_for_function(ALL_DRAWN)
        return pages[name]

    yield open_page
    assert not complaints
    context.close()


@pytest.fixture
def page(opened: Open) -> Page:
    return opened(FIRST)


@pytest.fixture
def night(opened: Open) -> Page:
    return opened(LADDER_STUDY)


@pytest.fixture
def text(opened: Open) -> Page:
    return opened(TEXT)


def plot(page: Page, figure: int | str) -> Locator:
    """The chart of a figure, by its place on the page or by the end of its id, in the middle of the window."""
    chart = (
        page.locator(".chart").nth(figure) if isinstance(figure, int) else page.locator(f"[id$=laptop-{figure}] .chart")
    )
    chart.evaluate("element => element.scrollIntoView({block: 'center', behavior: 'instant'})")
    return chart


def drawing(chart: Locator) -> str:
    return chart.locator("svg").inner_html()


@pytest.mark.parametrize(
    ("name", "count"), [(FIRST, PANELS), (LADDER_STUDY, PANELS + LADDER), (TEXT, TEXT_PANELS + TEXT_LADDER)]
)
def test_every_figure_is_drawn(opened: Open, name: str, count: int) -> None:
    page = opened(name)
    charts = page.locator(".chart")
    assert charts.count() == count
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


def test_the_key_figure_is_on_the_first_screen(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    first = page.locator(".chart").first
    box, title = first.bounding_box(), page.locator("h1").bounding_box()
    assert box is not None
    assert title is not None
    assert box["y"] + box["height"] <= 720
    assert title["x"] + title["width"] <= box["x"], "beside the title"
    assert first.locator(".mark-line path").count() == 4
    assert first.locator(".mark-area path").count() == 4
    assert first.get_by_text("lr drop").count() == 1
    assert first.get_by_text("epoch", exact=True).count() == 1
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_legend_names_every_arm(page: Page) -> None:
    legend = page.locator(".chart").first.locator(".role-legend")
    assert legend.locator("text").all_text_contents() == [
        "lr 0.1, lam 0.01",
        "lr 0.1, lam 0",
        "lr 0.02, lam 0.01",
        "lr 0.02, lam 0",
    ]


def pointed(page: Page, chart: Locator, x: float, y: float) -> dict[str, str]:
    """What is said when the pointer is at a part of a chart's width and height."""
    box = chart.bounding_box()
    assert box is not None
    place = box["x"] + x * box["width"], box["y"] + y * box["height"]
    page.mouse.move(*place)
    page.mouse.move(place[0] + 2, place[1])
    page.locator("#tip:not([hidden])").wait_for()
    return told(page)


def told(page: Page) -> dict[str, str]:
    return dict(row.locator("td").all_text_contents() for row in page.locator("#tip tr").all())


def away(page: Page) -> None:
    page.mouse.move(2, 2)
    page.locator("#tip").wait_for(state="hidden")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("height", [pytest.param(0.35, marks=SLOW), 0.6, pytest.param(0.8, marks=SLOW)])
def test_pointing_anywhere_in_a_plot_shows_all_arms_and_hides_no_line(page: Page, height: float) -> None:
    chart = plot(page, 1)
    said = pointed(page, chart, 0.6, height)
    assert list(said) == ["epoch", "lr 0.1, lam 0.01", "lr 0.1, lam 0", "lr 0.02, lam 0.01", "lr 0.02, lam 0"]
    assert said.pop("epoch") in {str(epoch) for epoch in range(1, 9)}
    for words in said.values():
        mean, low, high = map(float, re.findall(r"[\d.e-]+", words))
        assert 0 < low <= mean <= high
    assert chart.locator(".role-mark.mark-rule line").count() >= 2, "the drop, and a rule at the pointer"
    tip, box = page.locator("#tip").bounding_box(), chart.bounding_box()
    assert tip is not None
    assert box is not None
    assert tip["y"] >= box["y"] + box["height"] or tip["y"] + tip["height"] <= box["y"]
    away(page)


def test_the_tooltip_stays_in_the_window_and_off_the_lines(page: Page) -> None:
    """With the chart at the lower edge it stands above."""
    page.set_viewport_size({"width": 390, "height": 800})
    chart = page.locator(".chart").nth(1)
    page.wait_for_function("() => innerWidth == 390")
    chart.evaluate("box => box.scrollIntoView({block: 'end', behavior: 'instant'})")
    for x in (0.25, 0.95):
        pointed(page, chart, x, 0.5)
        tip, box = page.locator("#tip").bounding_box(), chart.bounding_box()
        assert tip is not None
        assert box is not None
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= 390
        assert tip["y"] >= 0
        assert tip["y"] + tip["height"] <= box["y"]
    away(page)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_point_of_the_ladder_shows_its_interval(night: Page) -> None:
    chart = plot(night, 1)
    chart.locator("g.mark-symbol path").nth(1).hover(force=True)
    night.locator("#tip:not([hidden])").wait_for()
    said = told(night)
    assert re.fullmatch(r"[+-]\d+\.\d\d points \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\] \(95 %\)", said["effect"])
    assert said["n"] == "2 seeds, 120 examples"
    away(night)


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


def test_a_place_of_a_sweep_shows_all_series_and_one_can_be_picked(text: Page) -> None:
    page = text
    chart = plot(page, "sweep")
    said = pointed(page, chart, 0.55, 0.5)
    assert list(said)[:3] == ["lam", "lr 0.002", "lr 0.006"]
    for words in [said["lr 0.002"], said["lr 0.006"]]:
        value, low, high = map(float, re.findall(r"[\d.e-]+", words))
        assert low < value < high
    away(page)
    entry = chart.locator(".role-legend").get_by_text("lr 0.002", exact=True)
    entry.click()
    dots = "[...box.querySelectorAll('.mark-symbol.role-mark path')].map(p => getComputedStyle(p).opacity)"
    page.wait_for_function(f"box => {dots}.filter(o => o == '0.12').length == 3", arg=chart.element_handle())
    assert chart.evaluate(f"box => {dots}.filter(o => o == '1').length") == 3
    entry.click()
    page.wait_for_function(f"box => {dots}.filter(o => o == '0.12').length == 0", arg=chart.element_handle())


def test_a_cell_of_a_grid_shows_its_place_and_its_value(text: Page) -> None:
    page = text
    page.set_viewport_size({"width": 1280, "height": 900})
    chart = plot(page, "grid")
    chart.locator(".mark-rect.role-mark path").nth(3).hover(force=True, position={"x": 8, "y": 8})
    page.locator("#tip:not([hidden])").wait_for()
    said = told(page)
    assert list(said) == ["lam", "learning rate", "final validation loss (nats per token)"]
    # Cells come by learning rate, and each of these has three lams but for one.
    assert (said["lam"], said["learning rate"]) == ("0.1", "0.006")
    page.mouse.move(2, 2)
    words = chart.locator(".mark-text.role-mark text").all_text_contents()
    assert said["final validation loss (nats per token)"] in words
    assert len(words) == 5


def test_words_in_cells_shrink_with_them(text: Page) -> None:
    page = text
    sizes = []
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("width => innerWidth == width", arg=width)
        chart = plot(page, "grid")
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


def test_steps_are_the_axis_of_language_models(text: Page) -> None:
    first = plot(text, "val-loss")
    assert first.get_by_text("step", exact=True).count() == 1
    assert first.get_by_text(re.compile(r"^[246]0,000$")).count() >= 1
    assert text.get_by_text("epoch", exact=True).count() == 0


def test_how_it_was_run_is_folded_on_screens_and_open_on_paper(page: Page) -> None:
    folded = page.locator("details.run")
    is_open = "parts => parts.map(part => part.open)"
    assert folded.evaluate_all(is_open) == [False]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.evaluate_all(is_open) == [True]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.evaluate_all(is_open) == [False]
    folded.first.locator("summary").first.click()
    assert page.get_by_text("The same again, from the same seeds").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")
    assert folded.evaluate_all(is_open) == [True], "what the reader opened stays"
    folded.first.locator("summary").first.click()


@pytest.mark.parametrize("width", [1280, 1024, 768, 390, 360])
@pytest.mark.parametrize("name", [LADDER_STUDY, TEXT, "report.html"])
def test_nothing_is_wider_than_the_screen(opened: Open, name: str, width: int) -> None:
    page = opened(name)
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
    page.wait_for_function(  # those in what was opened are drawn a frame later
        "width => Math.max(0, ...[...document.querySelectorAll('.chart text')]"
        ".map(t => t.getBoundingClientRect().right)) <= width",
        arg=width,
    )
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = false)")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_table_that_is_wider_than_the_screen_says_so(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("() => innerWidth == 390")
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    table = page.locator("details .scroll", has=page.get_by_text("digest of the spec"))
    page.wait_for_function("box => box.classList.contains('more')", arg=table.element_handle())
    words = "box => getComputedStyle(box, '::before').content"
    assert "more to the right" in table.evaluate(words)
    table.evaluate("box => box.scrollLeft = box.scrollWidth")
    page.wait_for_function("box => !box.classList.contains('more')", arg=table.element_handle())
    assert table.evaluate(words) == "none"
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = false)")
    page.set_viewport_size({"width": 1280, "height": 900})


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


def test_what_is_missing_is_said_first(page: Page, night: Page) -> None:
    banner = night.locator(".banner.alert")
    assert "23 of 24 runs finished" in banner.inner_text()
    assert "the training loss became nan" in banner.inner_text()
    assert page.locator(".banner").count() == 0


def test_the_first_page_leads_to_the_studies(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    links = page.locator("nav a")
    assert links.count() == 3
    links.nth(1).click()
    page.wait_for_url(f"**/{LADDER_STUDY}")
    page.get_by_role("link", name="the same at laptop").click()
    page.wait_for_url(f"**/{FIRST}")
    page.get_by_role("link", name="halflife report").click()
    page.wait_for_url("**/report.html")
    page.close()


def test_a_page_without_its_script_says_what_is_missing(browser: Browser, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / FIRST, tmp_path / FIRST)
    page = browser.new_page()
    page.goto((tmp_path / FIRST).as_uri())
    page.get_by_text("could not be drawn: the file report-charts.js is not beside this page").first.wait_for()
    page.close()


def test_the_rule_opens(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    details = page.locator(".claim details").first
    rule = typeset(STUDIES["stabilization"].claims[0].words)
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
    names = ["report.html", "study-stabilization-laptop.html", "study-stabilization-vgg-laptop.html", "paper-why.html"]
    assert [path.name for path in paths] == [*names, "report-charts.js"]
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
    page.goto(paths[3].as_uri())
    page.wait_for_function(ALL_DRAWN)
    yield page
    assert not complaints
    context.close()


def test_the_figures_of_a_guide_are_drawn_in_their_steps(paper: Page) -> None:
    drawn = [step.locator(".chart svg").count() for step in paper.locator(".step").all()]
    assert [count for count in drawn if count] == [1, 1]
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
    paper.wait_for_url("**/study-stabilization-laptop.html")
    paper.wait_for_function(ALL_DRAWN)
    paper.get_by_role("link", name="halflife report").click()
    paper.wait_for_url("**/report.html")
    paper.locator("nav[aria-label=Papers] a").first.click()
    paper.wait_for_url("**/paper-why.html")
    paper.wait_for_function(ALL_DRAWN)
