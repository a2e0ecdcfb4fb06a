"""The report of a study of language models: steps, branches, blocks, points, numbers of the paper. No browser, no torch."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from halflife.errors import StoreError
from halflife.studies.evidence.claims import Panel, PointRow, PointsPanel
from halflife.studies.evidence.stats import Interval
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.beside import HEADER, beside_rows
from halflife.studies.report.figures.fields import flat_fields, size_name, without_decay
from halflife.studies.report.figures.ladder import ladder_figure
from halflife.studies.report.figures.panels import panel_figure, panel_figures, why_not_drawn
from halflife.studies.report.figures.theme import PALETTE, arm_styles, series_styles
from halflife.studies.report.files import render_files
from halflife.studies.report.pages.page import render_study
from halflife.studies.report.pages.provenance import banners, provenance_of
from halflife.studies.report.pages.sections import section_of
from halflife.studies.report.pages.tables import effect_text, markdown_table, verdict_markdown
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
from tests.studies.synthetic import spec_of
from tests.studies.synthetic_text import AT, BLOCKS, LAMS, RATES, STEPS, TEXT_STUDY, branch_of, make_text_store, run_of

SVG = "{http://www.w3.org/2000/svg}"
LOSS, BRANCHES, EVERY_ARM, SWEEP = TEXT_STUDY.panels[:4]


def results_of(store: Store) -> StudyResults:
    return StudyResults(store, TEXT_STUDY, store.manifests()[0])


def rows_of(figure: Any) -> list[dict[str, Any]]:
    spec = figure.charts[0][1].to_dict()
    rows: list[dict[str, Any]] = spec["datasets"][spec["data"]["name"]]
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_text_store(tmp_path_factory.mktemp("text") / "store")


@pytest.fixture(scope="module")
def results(store: Store) -> StudyResults:
    return results_of(store)


@pytest.fixture(scope="module")
def words(results: StudyResults) -> str:
    body = re.sub(
        r"<(script|style).*?</\1>", " ", render_study(section_of(results), report="report.html"), flags=re.DOTALL
    )
    plain = html.unescape(re.sub(r"<[^>]+>", "", body))
    return re.sub(r"\s+", " ", plain.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " "))


# ---- readings by step


def test_readings_are_found_by_step_and_at_the_end(store: Store, results: StudyResults) -> None:
    key = "lr0.006-lam0.1"
    seeds = results.seeds(32)
    assert seeds == [0, 1, 2]
    own = next(arm for arm in results.arms if (arm["key"], arm["size"]) == (key, 32))
    raw = [store.run(own["runs"][str(seed)]).readings() for seed in seeds]
    at = [next(r.values["val/loss"] for r in readings if r.step == 8_000) for readings in raw]
    assert results.read(key, "val/loss", 32, step=8_000).tolist() == at
    assert results.last(key, "val/loss", 32).tolist() == [readings[-1].values["val/loss"] for readings in raw]
    blocks = results.read(key, "val/loss_blocks", 32)
    assert blocks.shape == (3, BLOCKS)
    assert blocks.mean(axis=1) == pytest.approx(results.last(key, "val/loss", 32), abs=1e-6)
    early = results.read(key, "val/loss_blocks", 32, step=AT[0])
    assert early.mean(axis=1) == pytest.approx(results.read(key, "val/loss", 32, step=AT[0]), abs=1e-6)
    steps, values = results.series_by_step(key, "val/loss", 32)[2]
    assert steps.tolist() == list(range(0, STEPS + 1, 8_000))
    assert values[-1] == raw[2][-1].values["val/loss"]
    assert results.series(key, "val/loss", 32)[2][0].tolist() == [step / STEPS for step in steps]


def test_what_was_not_read_is_an_error(results: StudyResults) -> None:
    with pytest.raises(StoreError, match=r"the run \w{16} has no reading at step 7: remove its folder"):
        results.read("lr0.006-lam0.1", "val/loss", 32, step=7)
    with pytest.raises(StoreError, match=r"the run \w{16} has no val/loss at step 2000: remove its folder"):
        results.read("lr0.006-lam0.1", "val/loss", 32, step=2_000)
    with pytest.raises(StoreError, match=r"the run \w{16} has no test/error at any step"):
        results.last("lr0.006-lam0.1", "test/error", 32)
    with pytest.raises(StoreError, match=r"the run \w{16} has no val/loss_blocks at step 8000"):
        results.read("lr0.006-lam0.1", "val/loss_blocks", 32, step=8_000)


def dropped(gone: Callable[[str, RunSpec, Reading], bool], name: str) -> Callable[..., list[Reading]]:
    """A change that takes a quantity or array out of readings."""

    def change(key: str, spec: RunSpec, readings: list[Reading]) -> list[Reading]:
        return [
            replace(
                r,
                values={n: v for n, v in r.values.items() if n != name},
                arrays={n: v for n, v in r.arrays.items() if n != name},
            )
            if gone(key, spec, r)
            else r
            for r in readings
        ]

    return change


@pytest.mark.parametrize("name", ["val/loss", "val/loss_blocks"])
def test_a_seed_that_ends_early_is_no_last_reading(tmp_path: Path, name: str) -> None:
    gone = dropped(lambda key, spec, r: (key, spec.seed, r.step) == ("lr0.006-lam0", 1, STEPS), name)
    found = results_of(make_text_store(tmp_path, change=gone))
    read = found.read
    with pytest.raises(
        StoreError, match=rf"has no {name} after step 32000, and other seeds of lr0.006-lam0 have it at"
    ):
        read("lr0.006-lam0", name, 32)
    assert len(read("lr0.006-lam0.1", name, 32)) == 3


def test_arrays_of_different_length_are_an_error(tmp_path: Path) -> None:
    def shorter(reading: Reading) -> Reading:
        short = {n: replace(a, length=BLOCKS - 1, data=a.data[:-4]) for n, a in reading.arrays.items()}
        return replace(reading, arrays=short)

    def change(key: str, spec: RunSpec, readings: list[Reading]) -> list[Reading]:
        return [shorter(reading) for reading in readings] if (key, spec.seed) == ("lr0.006-lam0", 1) else readings

    found = results_of(make_text_store(tmp_path, change=change))
    with pytest.raises(StoreError, match=r"val/loss_blocks of lr0\.006-lam0 has 15 and 16 elements in different seeds"):
        found.read("lr0.006-lam0", "val/loss_blocks", 32)


def test_runs_that_arms_share_count_once(tmp_path: Path) -> None:
    store = make_text_store(tmp_path)
    manifest = store.manifests()[0]
    again = {**manifest["arms"][0], "key": "again"}
    found = StudyResults(store, TEXT_STUDY, manifest | {"arms": [*manifest["arms"], again]})
    assert found.num_planned == found.num_finished == 12 * (2 + 3)


# ---- curves against steps


def test_curves_stand_against_steps_and_show_their_arms_alone(results: StudyResults) -> None:
    figure = panel_figure(results, LOSS)
    rows = rows_of(figure)
    assert list(rows[0]) == ["arm", "step", "mean", "low", "high"]
    assert list(dict.fromkeys(row["arm"] for row in rows)) == [
        f"lr {lr:g}, lam {lam:g}" for lr in RATES for lam in LAMS
    ]
    assert {row["step"] for row in rows} == {16_000, 24_000, 32_000, 40_000}, "from 35 % of the run on"
    values = 1.0 * results.last("lr0.006-lam0.3", "val/loss", 32)
    (row,) = [row for row in rows if (row["arm"], row["step"]) == ("lr 0.006, lam 0.3", 40_000)]
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert (row["low"], row["high"]) == pytest.approx((values.min(), values.max()), rel=1e-4)
    assert figure.header == ("arm", "step 40,000")
    assert figure.caption == (
        "Mean over 3 seeds; the band spans the lowest and the highest seed. Drawn from step 16,000 on. Width 32."
        " Corresponds to figure 5 of the paper."
    )
    assert "against the step, one line per arm. At step 40,000, lr 0.002, lam 0: 2." in figure.description
    for figure in panel_figures(results):
        assert "epoch" not in figure.caption + figure.description
        assert "test error" not in figure.caption + figure.description


def test_runs_of_different_length_show_their_own_ends(results: StudyResults) -> None:
    figure = panel_figure(results, EVERY_ARM)
    assert figure.header == ("arm", "last step", "there")
    ends = {row[0]: row[1] for row in figure.rows}
    assert ends["lr 0.002, lam 0"] == "40,000"
    assert ends["tiny lr from step 16,000, lam 0"] == "1,000"
    assert panel_figure(results, BRANCHES).caption.count("Steps count from the checkpoint.") == 1


@pytest.mark.parametrize(
    ("panel", "metric", "key", "step"),
    [
        (LOSS, "val/loss", "lr0.002-lam0.1", 24_000),
        (LOSS, "val/loss", "lr0.002-lam0.1", 0),  # before the part that is drawn
        (BRANCHES, "val/loss", f"tiny-{AT[0]}-lam0", 500),
        (EVERY_ARM, "train/running_loss", "lr0.006-lam0.3", 2_000),
    ],
)
def test_a_missing_step_is_an_error(tmp_path: Path, panel: Panel, metric: str, key: str, step: int) -> None:
    gone = dropped(lambda k, spec, r: (k, spec.seed, r.step) == (key, 2, step), metric)
    found = results_of(make_text_store(tmp_path, change=gone))
    with pytest.raises(StoreError, match=rf"the run \w{{16}} has no {metric} at step {step}, and a figure draws all"):
        panel_figure(found, panel)


def test_evaluations_that_all_lack_the_end_are_an_error(tmp_path: Path) -> None:
    found = results_of(make_text_store(tmp_path, change=dropped(lambda k, spec, r: r.step == STEPS, "val/loss")))
    with pytest.raises(StoreError, match="has no val/loss at step 40000"):
        panel_figure(found, LOSS)


def test_an_arm_without_the_quantity_is_an_error(tmp_path: Path) -> None:
    change = dropped(lambda k, spec, r: k.startswith("tiny"), "train/running_loss")
    found = results_of(make_text_store(tmp_path, change=change))
    with pytest.raises(StoreError, match=r"has no train/running_loss at any step"):
        panel_figure(found, EVERY_ARM)


def test_arms_that_a_preset_does_not_have_are_left_out_and_lost_ones_are_an_error(
    store: Store, results: StudyResults
) -> None:
    assert isinstance(LOSS, Panel)
    panel = replace(LOSS, arms=("lr0.006-lam0.1", "only-at-night"))
    assert {row["arm"] for row in rows_of(panel_figure(results, panel))} == {"lr 0.006, lam 0.1"}
    assert why_not_drawn(results, replace(LOSS, arms=("only-at-night",))) == (
        "the preset has none of its arms, or runs of each diverged"
    )
    manifest = dict(results.manifest) | {"arms": [arm for arm in results.arms if arm["key"] != "lr0.006-lam0.1"]}
    with pytest.raises(StoreError, match=r"has no arm 'lr0\.006-lam0\.1', which its figure 'Validation loss' draws"):
        panel_figure(StudyResults(store, TEXT_STUDY, manifest), LOSS)


# ---- points


def test_points_are_those_that_the_study_computes(results: StudyResults) -> None:
    assert isinstance(SWEEP, PointsPanel)
    figure = panel_figure(results, SWEEP)
    rows = rows_of(figure)
    computed = SWEEP.rows(results)
    assert len(rows) == len(computed) == 9
    for row, point in zip(rows, computed, strict=True):
        assert (row["series"], row["style"]) == (point.series, point.style)
        assert (row["x"], row["y"]) == pytest.approx((point.x, point.y), rel=1e-4)
        if point.low is None:
            assert "low" not in row
        else:
            assert (row["low"], row["high"]) == pytest.approx((point.low, point.high), rel=1e-4)
    assert [row[0] for row in figure.rows] == ["lr 0.002"] * 3 + ["lr 0.006"] * 3, "a fitted line is no number"
    assert figure.header == ("series", "lam", "final validation loss (nats per token)", "interval")
    assert "Mean with 95 % interval over seeds. Width 32, 3 seeds. Corresponds to figure 6" in figure.caption


def points(*rows: PointRow, **fields: Any) -> PointsPanel:
    return PointsPanel(slug="s", title="T", x_label="x", y_label="y", rows=lambda results: list(rows), **fields)


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (points(), "the figure 'T' of made-up-lm has no points"),
        (points(PointRow("a", 1.0, np.nan)), "the point of 'a' at 1 of the figure 'T' is not finite"),
        (points(PointRow("a", 1.0, 2.0, 1.0)), "has one end of its interval, expected both or none"),
        (points(PointRow("a", 0.0, 2.0), log_x=True), "at 0 of the figure 'T' is not above 0"),
        (points(PointRow("a", 1.0, 2.0, 0.0, 3.0), log_y=True), "is not above 0, so its logarithmic axis"),
        (
            points(PointRow("a", 0.0, 2.0), PointRow("a", 0.0, 3.0), named=True),
            "has two points of one name: mend the study",
        ),
    ],
)
def test_points_that_cannot_be_drawn_are_an_error(results: StudyResults, panel: PointsPanel, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        panel_figure(results, panel)


def test_points_wait_for_seeds_and_whole_runs(tmp_path: Path, results: StudyResults) -> None:
    one = results_of(make_text_store(tmp_path / "one", num_seeds=1))
    assert why_not_drawn(one, SWEEP) == "1 of 2 seeds are finished in every arm"
    assert [figure.slug for figure in panel_figures(one)] == ["val-loss", "branches", "train-running-loss"]
    words = "Final loss against decay, Final loss over learning rate and decay, Two classes and a boundary: 1 of 2 seeds are"
    assert f"Not drawn: {words} finished" in render_study(section_of(one), report="report.html")
    assert {row[3] for row in beside_rows(one)} == {"not measured yet"}
    cut = results_of(make_text_store(tmp_path / "cut", max_steps=2))
    assert why_not_drawn(cut, SWEEP) == "runs were cut"
    assert {row[3] for row in beside_rows(cut)} == {"not measured yet"}
    assert not why_not_drawn(results, SWEEP)


@pytest.mark.parametrize(("log_x", "log_y"), [(False, False), (True, True)])
def test_points_are_drawn_as_files(results: StudyResults, log_x: bool, log_y: bool) -> None:
    rows = tuple(PointRow(f"series {i}", x, y, y / 2, 2 * y) for i in range(9) for x, y in ((1.0, 2.0 + i), (8.0, 3.0)))
    svg = drawn(results, points(*rows, log_x=log_x, log_y=log_y))
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "mark-symbol role-mark" in g.get("class", "")]
    seen = [path for g in groups for path in g.iter(f"{SVG}path") if path.get("opacity") != "0"]
    assert len(seen) == len(rows)
    assert len({path.get("stroke") for path in seen}) == len(PALETTE)
    assert "series 8" in svg


def test_named_points_stand_below_each_other_with_their_names(results: StudyResults) -> None:
    names = ["with the update", "a name so long that it takes two lines at the left of its point", "<b> & 'quoted'"]
    rows = [PointRow(name, 0.0, y, y - 1.0, y + 1.0) for name, y in zip(names, (0.5, 3.0, -2.0), strict=True)]
    panel = points(*rows, named=True)
    figure = panel_figure(results, panel)
    assert figure.header == ("x", "y", "interval")
    assert figure.rows == tuple((row.series, f"{row.y:.4g}", f"{row.low:.4g} to {row.high:.4g}") for row in rows)
    assert "with the update: 0.5" in figure.description
    svg = drawn(results, panel)
    words = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    squeezed = [word.replace(" ", "") for word in words]  # a name of two lines has no space between them
    assert [word for word in squeezed if word in {name.replace(" ", "") for name in names}] == [
        name.replace(" ", "") for name in names
    ]
    with pytest.raises(AssertionError, match="a list of names has a linear axis"):
        replace(panel, log_y=True)


def test_the_place_of_0_on_a_logarithmic_axis_says_0(results: StudyResults) -> None:
    rows = [
        PointRow(series, x, y) for series in "ab" for x, y in ((0.033333333, 1.0), (0.1, 2.0), (0.333, 3.0), (1.0, 2.5))
    ]
    panel = points(*rows, log_x=True, zero_first=True)
    figure = panel_figure(results, panel)
    assert [row[1] for row in figure.rows] == ["0", "0.1", "0.333", "1"] * 2
    assert figure.charts[0][1].to_dict()["usermeta"] == {"across": "x", "zero": 0.033333333}
    words = ["".join(text.itertext()) for text in ElementTree.fromstring(drawn(results, panel)).iter(f"{SVG}text")]
    assert {"0", "0.1", "0.333"} <= set(words)
    assert not any(word.startswith("0.03") for word in words)
    assert "0.0333" in "".join(drawn(results, replace(panel, zero_first=False)))
    with pytest.raises(AssertionError, match="a linear axis has a place for 0"):
        points(*rows, zero_first=True)


def drawn(results: StudyResults, panel: PointsPanel) -> str:
    one = StudyResults.__new__(StudyResults)
    one.__dict__.update(results.__dict__)
    one.study = replace(TEXT_STUDY, panels=(panel,), doc_panels=())
    (svg, _) = render_files([one], "svg").values()
    assert isinstance(svg, str)
    return svg


# ---- looks


def test_arms_that_share_a_panel_never_look_alike(results: StudyResults) -> None:
    looks = {style.key: (style.colour, style.dash) for style in arm_styles(results)}
    assert len(looks) == 12
    for panel in (LOSS, BRANCHES, EVERY_ARM):
        assert isinstance(panel, Panel)
        for one, other in itertools.combinations(panel.arms or looks, 2):
            assert looks[one] != looks[other]
    assert isinstance(BRANCHES, Panel)
    assert BRANCHES.arms is not None
    assert len({looks[key][0] for key in BRANCHES.arms}) == 6, "six arms have a colour each"


def test_many_series_differ_in_colour_or_shape() -> None:
    styles = series_styles([f"s{i}" for i in range(20)])
    assert len({(style.colour, style.shape) for style in styles}) == 20
    assert [style.colour for style in styles[:6]] == list(PALETTE)


# ---- nested specs


def test_a_branch_shows_the_fields_of_its_parent_and_its_own() -> None:
    branch = branch_of(3, lam=0.1, at=AT[1], width=16)
    fields = flat_fields(branch.to_json())
    parent = run_of(3, lam=0.1, lr=RATES[1], width=16).to_json()
    assert {name: fields[name] for name in parent if name != "kind"} == {n: v for n, v in parent.items() if n != "kind"}
    assert fields["kind"] == "text-branch"
    assert (fields["at"], fields["branch"], fields["branch.num_steps"], fields["seed"]) == (AT[1], "tiny-lr", 1_000, 3)
    assert set(fields) - set(parent) == {"at", "branch", "lr_factor", "branch.num_steps"}
    assert not without_decay(fields)
    assert without_decay(flat_fields(branch_of(3, lam=0.0, at=AT[1], width=16).to_json()))
    penalty = replace(run_of(0, lam=0.0, lr=0.1, width=16), loss_penalty=0.1)
    assert not without_decay(penalty.to_json())
    assert without_decay(spec_of("small-none", 0, width=8, num_epochs=8, eval_every=2).to_json())


def test_the_size_is_found_inside_branches(results: StudyResults) -> None:
    assert size_name(results) == "width"
    named = StudyResults.__new__(StudyResults)
    named.__dict__.update(results.__dict__)
    named.study = replace(TEXT_STUDY, size_name="residual width")
    assert size_name(named) == "residual width"


def test_provenance_tells_branches_from_runs(results: StudyResults) -> None:
    table = provenance_of(results)
    assert table.differing == ["kind", "width", "lr", "decay", "at", "branch", "lr_factor", "branch.num_steps"]
    by_label = {row[0]: dict(zip(table.differing, row[1:], strict=True)) for row in table.arms if row[2] == "32"}
    assert by_label["lr 0.006, lam 0.1"]["at"] == "\N{EN DASH}"
    branch = by_label["tiny lr from step 16,000, lam 0.1"]
    assert (branch["at"], branch["lr"], branch["decay"]) == ("16000", "0.006", "Decoupled(lam=0.1)")
    meanings = dict(table.meanings)
    assert meanings["at"] == "The parent's step at which the branch starts."
    assert meanings["branch.num_steps"] == "Optimizer steps of the branch."
    assert {name: words for name, _, words in table.common}["num_steps"] == "Optimizer steps."
    assert table.runs_header == (
        *("arm", "width", "seed", "run", "status", "time", "starts from", "digest of the spec"),
    )
    parents = {row[3]: row[6] for row in table.runs}
    run = next(row for row in table.runs if row[0] == "lr 0.006, lam 0.1" and row[1] == "32")
    branches = [row for row in table.runs if "lam 0.1" in row[0] and row[0].startswith("tiny") and row[1:3] == run[1:3]]
    assert [row[6] for row in branches] == [run[3]] * 2
    assert parents[run[3]] == ""
    facts = dict(table.facts)
    assert facts["tokens per second"] == "51,236 (median of the runs)"
    assert facts["peak memory"] == "402 MiB"


def test_runs_of_different_kinds_may_have_different_code_and_data(tmp_path: Path) -> None:
    store = make_text_store(tmp_path)
    found = results_of(store)
    assert banners(found) == []
    first, second = list(found.headers)[:2]
    image = spec_of("small-none", 0, width=8, num_epochs=8, eval_every=2).to_json()
    version = {"name": "images", "version": 7}
    other = {"spec": image, "trainer": version, "data": {"name": "fashion", "title": "F", "sha256": "aa" * 32}}
    store.run(first).write_header(found.headers[first] | other)
    assert banners(results_of(store)) == []
    store.run(second).write_header(found.headers[second] | {"trainer": {"name": "text", "version": 7}})
    assert "The runs differ in their code;" in banners(results_of(store))[0][1]


# ---- words


def test_effects_in_nats_have_the_digits_they_need() -> None:
    assert effect_text(Interval(-0.01234, -0.02, -0.005, 3), "nats") == "-0.0123 nats [-0.0200, -0.0050] (95 %)"
    assert effect_text(Interval(-1.234, -2, -0.5, 3), "%") == "-1.23 % [-2.00, -0.50] (95 %)"
    assert effect_text(Interval(0.97, 0.9, 1.04, 3), "") == "0.97 [0.90, 1.04] (95 %)"


def test_the_page_of_a_language_model_study(results: StudyResults, words: str) -> None:
    assert re.search(r"[+-]0\.\d{4} nats \[[+-]0\.\d{4}, [+-]0\.\d{4}\] \(95 %\)", words)
    assert "3 seeds, 16 blocks" in words
    assert "about -0.02 (read off the figure)" in words
    assert "124 M" in words
    assert "(read off" not in words.partition("124 M")[2].partition("Figures")[0]
    assert "3 seeds, 16 blocks" in verdict_markdown(results.verdicts())


def test_the_ladder_keeps_units_apart(results: StudyResults) -> None:
    figure = ladder_figure(results, results.verdicts())
    assert figure is not None
    titles, domains = [], []
    for _, chart in figure.charts:
        y = chart.to_dict()["layer"][0]["encoding"]["y"]
        titles.append(y["title"])
        domains.append(tuple(y["scale"]["domain"]))
    assert titles == ["nats", "%"]
    assert domains[0] != domains[1]
    lows = [finding.effect.low for finding in results.verdicts()[0].by_size.values() if finding.effect]
    assert domains[0][0] == min(0.0, *lows)
    assert figure.caption == (
        "Effect against width, with 95 % intervals; 0 means no effect. Panels in the same unit share their axes."
    )


def test_numbers_of_the_paper_as_markdown(results: StudyResults) -> None:
    lines = markdown_table(HEADER, [("a | b", "1", "figure 2", "3"), *beside_rows(results)]).splitlines()
    assert lines[0] == "| quantity | paper | where | here |"
    assert lines[2] == r"| a \| b | 1 | figure 2 | 3 |"
    assert lines[3].startswith(
        "| change of the final validation loss by lam 0.1 (nats) | about -0.02 (read off the figure) |"
    )
    assert lines[4] == "| parameters | 124 M | section 3 | 31,264 |"
