"""The best lam: as a sample of seeds and blocks, along an axis, and the rules that decide on its exponent."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.studies.catalog.language.timescale import quantities as rules
from halflife.studies.catalog.language.timescale.study import PRESETS, TIMESCALE
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.optimum import Optimum, exponents_of, find_optimum, lam_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.text import TextRun
from tests.studies.catalog.made_up_losses import NUM_BLOCKS, NUM_SEEDS, MadeUpLosses

LAMS = [0.1 * 2.0**power for power in range(6)]
LAPTOP = PRESETS["laptop"]


def bowl(lam_best: float, lam: float, curvature: float = 0.02, skew: float = 0.0) -> float:
    u = np.log(lam / lam_best)
    return float(2 + curvature * u**2 + skew * u**3)


def noisy(
    lam_best: float, rng: np.random.Generator, *, seed_sd: float, block_sd: float, **shape: float
) -> NDArray[Any]:
    """Losses (L, S, N); each seed and lam, and each block and lam, has noise of its own."""
    levels_L = np.array([bowl(lam_best, lam, **shape) for lam in LAMS])
    shape_LSN = (len(LAMS), NUM_SEEDS, NUM_BLOCKS)
    seeds_LS = rng.normal(0, seed_sd, shape_LSN[:2])
    blocks_LN = rng.normal(0, block_sd, (len(LAMS), NUM_BLOCKS))
    rest_LSN = rng.normal(0, block_sd, shape_LSN)
    return levels_L[:, None, None] + seeds_LS[:, :, None] + blocks_LN[:, None, :] + rest_LSN


def exponent_of(places: list[float], optima: list[Optimum]) -> Interval:
    return crossed_interval(exponents_of(places, optima), example_name="blocks")


# ---- the optimum of one sweep


def log_vertices(blocks_LSN: NDArray[Any]) -> NDArray[np.float64]:
    """By seed the vertex of numpy's parabola through the lowest mean and its neighbours."""
    found = []
    for losses_L in blocks_LSN.mean(axis=2).T:
        lowest = int(np.argmin(losses_L))
        assert 0 < lowest < len(LAMS) - 1
        part = slice(lowest - 1, lowest + 2)
        a, b, _ = np.polyfit(np.log(LAMS[part]), losses_L[part], 2)
        found.append(-b / (2 * a))
    return np.array(found)


def test_the_vertex_is_the_one_that_a_fit_of_each_seed_finds() -> None:
    blocks_LSN = noisy(0.5, np.random.default_rng(0), seed_sd=1e-3, block_sd=1e-3)
    found = find_optimum(LAMS, blocks_LSN)
    each_S = log_vertices(blocks_LSN)
    assert found.problem == ""
    assert found.log_lam_SN.mean(axis=1) == pytest.approx(each_S, abs=2e-3)
    assert found.lam().estimate == pytest.approx(np.exp(each_S.mean()), rel=2e-3)


def test_pseudo_values_are_the_jackknife_of_the_blocks() -> None:
    blocks_LSN = noisy(0.5, np.random.default_rng(1), seed_sd=1e-3, block_sd=3e-3)
    found = find_optimum(LAMS, blocks_LSN)
    lowest = int(np.argmin(blocks_LSN.mean(axis=(1, 2))))
    part = slice(lowest - 1, lowest + 2)

    def vertex(losses_L: NDArray[Any]) -> float:
        a, b, _ = np.polyfit(np.log(LAMS[part]), losses_L[part], 2)
        return float(-b / (2 * a))

    for seed in (0, NUM_SEEDS - 1):
        whole = vertex(blocks_LSN[:, seed].mean(axis=1))
        for block in (0, 7):
            without = vertex(np.delete(blocks_LSN[:, seed], block, axis=1).mean(axis=1))
            expected = NUM_BLOCKS * whole - (NUM_BLOCKS - 1) * without
            assert found.log_lam_SN[seed, block] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("seed_sd", "block_sd"), [(1.5e-3, 1e-4), (1e-4, 6e-3), (1e-3, 6e-3)])
def test_intervals_of_the_exponent_cover_it_as_often_as_they_say(seed_sd: float, block_sd: float) -> None:
    """Seeds alone, blocks alone and both as the source of noise; the places of an axis share the seeds' and blocks' text."""
    rng, covered, trials, true = np.random.default_rng(2), 0, 300, 0.7
    places = [1.0, 2.0, 4.0]
    for _ in range(trials):
        optima = [find_optimum(LAMS, noisy(0.35 * x**true, rng, seed_sd=seed_sd, block_sd=block_sd)) for x in places]
        interval = exponent_of(places, optima)
        covered += interval.low <= true <= interval.high
    assert 0.91 <= covered / trials <= 0.995  # three standard errors around 0.95, and the caution of few seeds


def test_intervals_over_seeds_alone_would_miss_what_the_blocks_add() -> None:
    rng, widths = np.random.default_rng(3), []
    for _ in range(20):
        sweeps = [noisy(0.35 * x, rng, seed_sd=1e-4, block_sd=1e-2) for x in (1.0, 2.0)]
        both = exponent_of([1.0, 2.0], [find_optimum(LAMS, sweep) for sweep in sweeps])
        first_S, second_S = (log_vertices(sweep) for sweep in sweeps)
        seeds = seed_interval((second_S - first_S) / np.log(2))
        widths.append((both.high - both.low) / (seeds.high - seeds.low))
    assert np.median(widths) > 1.3


def test_a_skew_that_all_places_share_does_not_bend_the_exponent() -> None:
    places = [1.0, 2.0, 4.0]
    rng = np.random.default_rng(4)
    optima = [find_optimum(LAMS, noisy(0.4 * x**0.5, rng, seed_sd=1e-5, block_sd=1e-5, skew=0.004)) for x in places]
    assert exponent_of(places, optima).estimate == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("lam_best", "problem"),
    [
        (0.02, "the lowest loss of here is at lam 0.1, an edge of its grid"),
        (0.1, "the lowest loss of here is at lam 0.1, an edge of its grid"),
        (9.0, "the lowest loss of here is at lam 3.2, an edge of its grid"),
        (0.3, ""),
    ],
)
def test_an_optimum_at_an_edge_is_a_problem_and_no_estimate(lam_best: float, problem: str) -> None:
    blocks = noisy(lam_best, np.random.default_rng(5), seed_sd=1e-5, block_sd=1e-5)
    assert find_optimum(LAMS, blocks, "here").problem == problem


def test_one_seed_without_a_minimum_is_a_problem() -> None:
    blocks = noisy(0.4, np.random.default_rng(6), seed_sd=1e-5, block_sd=1e-5)
    blocks[:, 2] = 2 - 1e-3 * np.log(LAMS)[:, None] ** 2
    assert find_optimum(LAMS, blocks, "here").problem == "here has no minimum in every seed"
    blocks[:, 2] = 2 - 0.01 * np.log(LAMS)[:, None] + 1e-6 * np.log(LAMS)[:, None] ** 2
    outside = "the minimum of here lies outside the lams that it is fitted to in some seed"
    assert find_optimum(LAMS, blocks, "here").problem == outside


def test_a_minimum_beyond_the_fitted_places_is_an_extrapolation() -> None:
    """Inside the grid, but where no loss went into the parabola."""
    blocks = noisy(0.4, np.random.default_rng(6), seed_sd=1e-5, block_sd=1e-5)
    blocks[:, 2] = np.array([bowl(1.5, lam) for lam in LAMS])[:, None]  # fitted to 0.2, 0.4 and 0.8
    assert find_optimum(LAMS, blocks, "here").problem.startswith("the minimum of here lies outside the lams")
    blocks[:, 2] = np.array([bowl(0.7, lam) for lam in LAMS])[:, None]
    assert find_optimum(LAMS, blocks, "here").problem == ""


# ---- the claims


def made_up(jitter: float = 1e-4, shift: float = 0.0, **exponents: float) -> Results:
    """Losses whose best lam is a power of batch, targets, text and parameters; by default as the power law of tokens per
    parameter says."""
    p = {"batch": 1.0, "tokens": -0.48, "width": -0.52, "text": -1.0, **exponents}
    base = cast("TextRun", next(arm for arm in LAPTOP.arms if arm.key == "base +0").build(0))

    def loss(key: str, spec: RunSpec) -> float:
        assert isinstance(spec, TextRun)
        if spec.order == "epochs":
            best = 1.3 * ((spec.num_train_tokens or 0) / 65_536) ** p["text"]
        else:
            best = 0.38 * (spec.batch_size / base.batch_size) ** p["batch"]
            best *= (rules.num_targets(spec) / rules.num_targets(base)) ** p["tokens"]
            best *= (rules.num_parameters(spec) / rules.num_parameters(base)) ** p["width"]
        return bowl(best * np.exp(shift), lam_of(spec))

    return cast("Results", MadeUpLosses(LAPTOP.arms, loss, jitter))


def decide(key: str, results: Results) -> Finding:
    return next(claim for claim in TIMESCALE.claims if claim.key == key).decide(results, 32)


@pytest.mark.parametrize(
    ("key", "exponents", "jitter", "outcome", "effect"),
    [
        ("batch", {}, 1e-4, "reproduced", 1.0),
        ("batch", {"batch": 0.5}, 1e-4, "not reproduced", 0.5),
        ("batch", {"batch": 1.3}, 1e-4, "not reproduced", 1.3),
        ("batch", {"batch": 1.25}, 1e-3, "undecided", 1.25),
        ("tokens", {}, 1e-4, "reproduced", -0.48),
        ("tokens", {"tokens": -1.0}, 1e-4, "not reproduced", -1.0),
        ("tokens-constant", {}, 1e-4, "not reproduced", -0.48),
        ("tokens-constant", {"tokens": -1.0}, 1e-4, "reproduced", -1.0),
        ("tokens-constant", {"tokens": -0.75}, 1e-3, "undecided", -0.75),
        ("text", {}, 1e-4, "reproduced", -1.0),
        ("text", {"text": -0.5}, 1e-4, "not reproduced", -0.5),
        ("width", {"width": 0.0}, 1e-4, "reproduced", 0.0),
        ("width", {}, 1e-4, "not reproduced", -0.52),
        ("width-power", {}, 1e-4, "reproduced", -0.52),
        ("width-power", {"width": 0.0}, 1e-4, "not reproduced", 0.0),
    ],
)
def test_an_exponent_is_decided_as_the_rule_says(
    key: str, exponents: dict[str, float], jitter: float, outcome: str, effect: float
) -> None:
    finding = decide(key, made_up(jitter, **exponents))
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=80 * jitter)
    assert finding.effect.example_name == "blocks"


def test_both_answers_for_tokens_cannot_be_reproduced_at_once() -> None:
    """Where one 90 % interval would lie for the two claims on one exponent: two ranges that do not overlap."""
    for keys in (("tokens", "tokens-constant"), ("width", "width-power")):
        rules_of = [claim.rule for claim in TIMESCALE.claims if claim.key in keys]
        (first, second) = sorted(rule.parts[0][1].holds for rule in rules_of)
        assert first[0][1] <= second[0][0]
    (tokens,) = (claim for claim in TIMESCALE.claims if claim.key == "tokens")
    assert "lies within 0.25 of -0.48" in tokens.words


def test_a_best_lam_at_an_edge_leaves_its_axes_open_and_says_where() -> None:
    results = made_up(shift=3.0)
    finding = decide("batch", results)
    assert (finding.outcome, finding.effect) == ("not tested", None)
    assert "the lowest loss of 1,024 targets per batch is at lam 7.2, an edge of its grid" in finding.reason
    rows = _rows("optimum-batch", results)
    assert {(row.series, row.low) for row in rows} == {("lowest of a grid, no estimate", None)}
    assert [row.y for row in rows] == pytest.approx([0.9, 1.8, 3.6, 7.2])


@pytest.mark.parametrize(
    ("exponents", "jitter", "outcome"),
    [
        ({}, 1e-4, "reproduced"),
        ({"batch": 0.0}, 1e-4, "not reproduced"),
        ({"batch": 0.5}, 1e-4, "not reproduced"),
        ({"batch": 0.6}, 8e-3, "undecided"),
    ],
)
def test_a_scaled_lam_is_compared_with_the_kept_one_and_with_the_best(
    exponents: dict[str, float], jitter: float, outcome: str
) -> None:
    finding = decide("matched", made_up(jitter, **exponents))
    assert finding.outcome == outcome, finding.reason
    if not exponents and jitter < 0.01:
        assert finding.effect is not None
        steps = np.array([-1.0, 1.0, 2.0])  # doublings of the batch; of the base's grid 0.45 is nearest to 0.38
        kept, scaled = np.log(0.45 / 0.38) - steps * np.log(2), np.log(0.45 / 0.38)
        expected = float((0.02 * (kept**2 - scaled**2)).mean())
        assert finding.effect.estimate == pytest.approx(expected, abs=1e-3)


def test_a_kept_lam_that_no_grid_has_is_open() -> None:
    finding = decide("matched", made_up(shift=-1.6))
    assert (finding.outcome, finding.effect) == ("not tested", None)
    assert "the base's best lam is not on the grid of batch*2" in finding.reason


# ---- presets, figures, published numbers


def fields_that_differ(a: TextRun, b: TextRun) -> set[str]:
    always = {"lr_schedule", "decay", "eval_every", "log_every"}
    return {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)} - always


@pytest.mark.parametrize("name", list(PRESETS))
def test_places_differ_from_the_base_in_their_axis_alone(name: str) -> None:
    allowed = {
        "batch": {"batch_size", "num_steps", "accumulate"},
        "tokens": {"num_steps"},
        "width": {"width", "heads"},
        "text": {"order", "num_train_tokens", "num_steps"},
    }
    preset = PRESETS[name]
    for size in {arm.size for arm in preset.arms}:
        specs = {arm.key: cast("TextRun", arm.build(0)) for arm in preset.arms if arm.size == size}
        places = {key.split(" ")[0] for key in specs}
        assert places == {place for axis in rules.AXES.values() for place in axis.places}
        assert len(specs) == len(places) * len(rules.GRID)
        base = specs["base +0"]
        assert base.width == size
        for key, axis in rules.AXES.items():
            numbers = [axis.x(specs[rules.arm_key(place, 0)]) for place in axis.places]
            assert numbers == sorted(set(numbers))
            for place in axis.places:
                spec = specs[rules.arm_key(place, 0)]
                assert fields_that_differ(base, spec) <= allowed[key], place
                lams = [lam_of(specs[rules.arm_key(place, power)]) for power in rules.GRID]
                assert lams == pytest.approx([lams[3] * 2.0**power for power in rules.GRID], rel=1e-3)
                if key == "batch":
                    assert rules.num_targets(spec) == rules.num_targets(base)
                    assert lams[3] / spec.batch_size == pytest.approx(lam_of(base) / base.batch_size, rel=1e-3)
                if key == "text":
                    assert rules.num_targets(spec) == 8 * (spec.num_train_tokens or 0)


def test_presets_keep_to_their_budgets() -> None:
    """A model of the time, as measured on one of two busy cores: 1.05 ms a step, 33 GFLOP/s with 6 FLOP per parameter and
    target, and 0.4 s of evaluation."""

    def seconds(name: str) -> float:
        preset = PRESETS[name]
        total = 0.0
        for arm in preset.arms:
            spec = cast("TextRun", arm.build(0))
            flop = 6 * rules.num_parameters(spec) * rules.num_targets(spec)
            seeds = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
            total += seeds * (spec.num_steps * 1.05e-3 + flop / 3.3e10 + 0.4)
        return total

    assert seconds("laptop") / 2 < 600
    assert seconds("night") / 2 < 5_400
    assert PRESETS["laptop"].num_seeds >= 5
    assert len({arm.size for arm in PRESETS["night"].arms}) == 3
    paper = next(cast("TextRun", arm.build(0)) for arm in PRESETS["paper"].arms if arm.key == "base +0")
    assert rules.num_parameters(paper) == 123_783_936  # GPT-2 with 256 positions and 50,304 tokens, no biases
    assert (paper.lr, paper.batch_size, paper.num_steps, paper.context) == (6e-4, 256, 50_000, 256)


@pytest.mark.parametrize("name", ["smoke", "laptop"])
def test_parameters_are_those_of_the_model(name: str) -> None:
    spec = cast("TextRun", PRESETS[name].arms[0].build(0))
    gpt = TextRun(context=5, width=8, depth=2, heads=2, vocab_size=11, lr=0.1, num_steps=3, batch_size=7)
    for made in (spec, gpt, dataclasses.replace(gpt, tied=True, norm_gain=False)):
        assert rules.num_parameters(made) == sum(p.numel() for p in build_text_model(made, 0).parameters())
    assert rules.num_targets(gpt) == 3 * 7 * 5


def _rows(slug: str, results: Results) -> list[Any]:
    panel = next(panel for panel in TIMESCALE.panels if panel.file_slug == slug)
    assert isinstance(panel, PointsPanel)
    return panel.rows(results)


def test_figures_draw_the_sweeps_the_optima_and_the_lines() -> None:
    results = made_up()
    sweep = _rows("sweep-batch", results)
    assert len(sweep) == 4 * 6 * 2  # a line and points with bars
    widths = [row.high - row.low for row in sweep if row.style == "point"]
    assert max(widths) < 0.01  # the seeds' own levels, 0.02 apart, are taken out
    share = _rows("sweep-batch-share", results)
    lowest = {row.series: row.x for row in sorted(share, key=lambda row: -row.y)}
    assert len(set(np.round(list(lowest.values()), 6))) == 1  # at equal tau / T, whatever the batch
    assert lowest[share[0].series] == pytest.approx(1 / (1e-2 * 0.45 * 1_024))
    rows = _rows("optimum-tokens", results)
    points = [row for row in rows if row.style == "point"]
    assert [row.x for row in points] == [131_072, 262_144, 524_288]
    assert [row.y for row in points] == pytest.approx([0.38 * 2**0.48, 0.38, 0.38 * 2**-0.48], rel=0.02)
    assert all(row.low < row.y < row.high for row in points)
    lines = {row.series for row in rows if row.style == "line"}
    assert lines == {
        "fitted: exponent -0.48",
        "Bergsma et al.: exponent -0.48",
        "Wang and Aitchison: exponent -1.00",
    }


def test_published_numbers_are_marked_and_stand_beside_ours() -> None:
    results = made_up()
    ours = [row.ours(results) for row in TIMESCALE.published]
    assert ours[0].startswith("1.00 [")
    assert ours[1].startswith("-0.52 [")
    assert ours[2].startswith("0.257 [")  # 1 / (0.01 * 0.38 * 1024)
    assert "at 19 tokens per parameter (the power law: 0.228)" in ours[2]
    assert all(row.where.startswith("second-hand") for row in TIMESCALE.published)
    low, high = (float(end) for end in ours[1].split("[")[1].rstrip("]").split(","))
    assert low <= -0.52 <= high
    assert TIMESCALE.published[0].ours(made_up(shift=3.0)).startswith("none: the lowest loss of")
