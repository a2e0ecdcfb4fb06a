"""Grids and planes: cells stand where their numbers belong, words stand out, a unit is as long on both axes. No browser."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from halflife.errors import StoreError
from halflife.studies.evidence.claims import Cell, HeatPanel, PointRow, PointsPanel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.panels import panel_figure, panel_figures, why_not_drawn
from halflife.studies.report.files import render_figure
from halflife.studies.store.store import Store
from tests.studies.synthetic_text import LAMS, RATES, TEXT_STUDY, make_text_store, name_of

SVG = "{http://www.w3.org/2000/svg}"
GRID, PLANE = TEXT_STUDY.panels[4:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    store = make_text_store(tmp_path_factory.mktemp("heat") / "store")
    return StudyResults(store, TEXT_STUDY, store.manifests()[0])


def heat(*cells: Cell, **fields: Any) -> HeatPanel:
    given = {"slug": "s", "title": "T", "x_label": "x", "y_label": "y", "value_label": "v"} | fields
    return HeatPanel(cells=lambda results: list(cells), **given)


def drawn_cells(svg: str) -> list[tuple[float, float, str, str, str]]:
    """Left, top, fill, words and the words' fill of each cell of a file, as it is drawn."""
    groups = list(ElementTree.fromstring(svg).iter(f"{SVG}g"))
    (boxes,) = [group for group in groups if "mark-rect role-mark" in group.get("class", "")]
    (words,) = [group for group in groups if "mark-text role-mark" in group.get("class", "")]
    cells = []
    for box, text in zip(boxes.iter(f"{SVG}path"), words.iter(f"{SVG}text"), strict=True):
        left, top, width, height = map(float, re.findall(r"-?[\d.]+", box.get("d", ""))[:4])
        x, y = map(float, re.findall(r"-?[\d.]+", text.get("transform", ""))[:2])
        assert left < x < left + width
        assert top < y < top + height
        cells.append((left, top, box.get("fill", ""), text.text or "", text.get("fill", "")))
    return cells


def luminance(colour: str) -> float:
    if colour.startswith("#"):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    else:
        parts = [int(number) / 255 for number in re.findall(r"\d+", colour)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


# ---- grids


def test_a_grid_shows_the_study_s_numbers_where_they_belong(results: StudyResults) -> None:
    figure = panel_figure(results, GRID)
    assert figure.header == ("learning rate, by lam", "0", "0.1", "0.3")
    assert [row[0] for row in figure.rows] == ["0.006", "0.002"], "numbers grow upwards"
    for row, lr in zip(figure.rows, RATES[::-1], strict=True):
        for said, lam in zip(row[1:], LAMS, strict=True):
            if (lam, lr) == (0.3, 0.002):
                assert said == ""
            else:
                mean = results.last(name_of(lam, lr), "val/loss", 32).mean()
                assert said == f"{mean:.4g}", "four digits, for all lie within a twentieth"
    assert figure.caption == (
        "Means over seeds. Width 32, 3 seeds. 1 of 6 settings of the grid were not run. Corresponds to figure 3 of the paper."
    )
    lowest = min(
        (float(said), lam, row[0]) for row in figure.rows for lam, said in zip(LAMS, row[1:], strict=True) if said
    )
    assert f"lowest {lowest[0]:g} at lam {lowest[1]:g}, learning rate {lowest[2]}; highest" in figure.description


def test_the_drawing_has_the_places_of_the_table(results: StudyResults) -> None:
    figure = panel_figure(results, GRID)
    svg = render_figure(figure, "svg")
    assert isinstance(svg, str)
    cells = drawn_cells(svg)
    columns, rows = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    found = {(rows.index(y), columns.index(x)): said for x, y, _, said, _ in cells}
    table = {(i, j): said for i, row in enumerate(figure.rows) for j, said in enumerate(row[1:]) if said}
    assert found == table
    assert "final validation loss (nats per token)" in svg


@pytest.mark.parametrize("log", [False, True])
def test_words_stand_out_on_every_colour_and_colours_grow_lighter(results: StudyResults, log: bool) -> None:
    values = [1.25**step if log else 1 + step for step in range(24)]
    panel = heat(*(Cell(float(i % 6), float(i // 6), value) for i, value in enumerate(values)), log_value=log)
    svg = render_figure(panel_figure(results, panel), "svg")
    assert isinstance(svg, str)
    cells = sorted(drawn_cells(svg), key=lambda cell: float(cell[3]))
    assert len(cells) == 24
    lightness = [luminance(fill) for _, _, fill, _, _ in cells]
    assert all(after > before for before, after in itertools.pairwise(lightness))
    assert min(contrast(fill, ink) for _, _, fill, _, ink in cells) >= 4.5
    assert {ink for *_, ink in cells} == {"#000000", "#ffffff"}


def test_names_stand_in_their_order_and_texts_and_factors_are_kept(results: StudyResults) -> None:
    panel = heat(
        Cell("no", "first", 0.125),
        Cell("yes", "first", 0.25, "a quarter"),
        Cell("no", "second", 0.5),
        factor=100,
    )
    figure = panel_figure(results, panel)
    assert figure.header == ("y, by x", "no", "yes")
    assert figure.rows == (("first", "12.5", "a quarter"), ("second", "50", ""))
    spec = figure.charts[0][1].to_dict()
    assert [row["value"] for row in spec["datasets"][spec["data"]["name"]]] == [12.5, 25, 50]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [12.5, 50]


def test_one_cell_is_a_grid(results: StudyResults) -> None:
    for log in (False, True):
        svg = render_figure(panel_figure(results, heat(Cell(1, 1, 3.0), log_value=log)), "svg")
        assert isinstance(svg, str)
        ((*_, fill, said, ink),) = drawn_cells(svg)
        assert said == "3"
        assert contrast(fill, ink) >= 4.5


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (heat(), "the figure 'T' of made-up-lm has no values: run the study again"),
        (heat(Cell(1, 2, float("nan"))), "the value at 1, 2 of the figure 'T' is not finite"),
        (heat(Cell(float("inf"), "a", 1.0)), "the value at inf, a of the figure 'T' is not finite"),
        (heat(Cell(1, 2, 0.0), log_value=True), "at 1, 2 of the figure 'T' is not above 0, so its logarithmic scale"),
        (heat(Cell(1, 2, 1.0), Cell(1.0, 2.0, 2.0)), "two values for one setting: mend the study"),
    ],
)
def test_cells_that_cannot_be_drawn_are_an_error(results: StudyResults, panel: HeatPanel, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        panel_figure(results, panel)


def test_a_grid_waits_for_seeds_and_whole_runs(tmp_path: Path, results: StudyResults) -> None:
    def found(folder: Path, **given: Any) -> StudyResults:
        store: Store = make_text_store(folder, **given)
        return StudyResults(store, TEXT_STUDY, store.manifests()[0])

    one = found(tmp_path / "one", num_seeds=1)
    assert why_not_drawn(one, GRID) == "1 of 2 seeds are finished in every arm"
    assert why_not_drawn(found(tmp_path / "cut", max_steps=2), GRID) == "runs were cut"
    assert not why_not_drawn(results, GRID)
    assert "grid" not in {figure.slug for figure in panel_figures(one)}


# ---- planes


def plane(*rows: PointRow) -> PointsPanel:
    return PointsPanel(slug="s", title="T", x_label="x", y_label="y", rows=lambda results: list(rows), equal=True)


@pytest.mark.parametrize("ends", [((-1.0, -2.0), (2.0, 2.0)), ((0.0, 0.0), (10.0, 1.0)), ((0.0, 0.0), (0.0, 5.0))])
def test_a_unit_is_as_long_on_both_axes_of_a_plane(
    results: StudyResults, ends: tuple[tuple[float, float], tuple[float, float]]
) -> None:
    figure = panel_figure(results, plane(*(PointRow("a", x, y) for x, y in ends)))
    assert figure.fixed
    spec = figure.charts[0][1].to_dict()
    encoding = next(layer["encoding"] for layer in spec["layer"] if "y" in layer["encoding"])
    units = []
    for axis, pixels in (("x", spec["width"]), ("y", spec["height"])):
        low, high = encoding[axis]["scale"]["domain"]
        units.append(pixels / (high - low))
        index = 0 if axis == "x" else 1
        assert low < min(end[index] for end in ends)
        assert high > max(end[index] for end in ends)
    assert units[0] == pytest.approx(units[1], rel=1e-3)
    assert spec["width"] <= 270
    assert spec["height"] <= 380


def test_a_path_keeps_the_order_of_its_rows_and_a_line_that_of_x(results: StudyResults) -> None:
    rows = [(0.0, -2.0), (0.4, -0.5), (0.2, 0.5), (0.6, 2.0)]
    for style, order in (("path", rows), ("line", sorted(rows))):
        panel = plane(*(PointRow("b", x, y, style=style) for x, y in rows))  # type: ignore[arg-type]  # both are styles
        svg = render_figure(panel_figure(results, panel), "svg")
        assert isinstance(svg, str)
        groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "mark-line role-mark" in g.get("class", "")]
        (path,) = [path for group in groups for path in group.iter(f"{SVG}path")]
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
        drawn = list(zip(numbers[::2], numbers[1::2], strict=True))
        wanted = sorted(range(4), key=lambda i: order[i][0])
        assert sorted(range(4), key=lambda i: drawn[i][0]) == wanted
        assert sorted(range(4), key=lambda i: -drawn[i][1]) == sorted(range(4), key=lambda i: order[i][1])


def test_classes_differ_in_shape_and_a_boundary_is_a_stroke_in_the_legend(results: StudyResults) -> None:
    figure = panel_figure(results, PLANE)
    spec = figure.charts[0][1].to_dict()
    shapes = next(layer["encoding"]["shape"]["scale"] for layer in spec["layer"] if "shape" in layer["encoding"])
    assert shapes["domain"] == ["class 0", "class 1", "boundary"]
    assert shapes["range"][:2] == ["circle", "square"]
    assert shapes["range"][2].startswith("M-1.6")
    offsets = {layer["mark"].get("xOffset", 0) for layer in spec["layer"]}
    assert offsets == {0}, "points above each other stay above each other"
    assert not any(layer["mark"].get("style") == "zero" for layer in spec["layer"]), "0 is a place like any other"
    assert {row[0] for row in figure.rows} == {"class 0", "class 1"}
    assert isinstance(PLANE, PointsPanel)
    with pytest.raises(AssertionError, match="a plane has linear axes"):
        replace(PLANE, log_x=True)
