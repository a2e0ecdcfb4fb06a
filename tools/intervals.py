"""Simulations of the statistics behind verdicts: the tables and figures of docs/statistics.md.

    python tools/intervals.py write [NAME ...]     run the simulations and write what they say (about ten minutes on one core)
    python tools/intervals.py list                 their names

Every simulation has a fixed number of trials and a fixed generator, and calls the functions that verdicts call. The tests in
tests/studies/evidence have the same questions at a smaller size.

Shapes: A arms, S seeds, N examples.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.choice import best_interval
from halflife.studies.evidence.fits import fit_lines, rank_correlation
from halflife.studies.evidence.multiplicity import holm
from halflife.studies.evidence.stats import (
    Interval,
    crossed_interval,
    pair_values,
    seed_interval,
    split_confidence,
)

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "statistics.md", ROOT / "docs" / "statistics"
SEEDS = (3, 5, 8)

Array = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a figure."""

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    style: Literal["point", "line"] = "point"


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulation gives: a table, and a figure where there is one."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    points: Sequence[Point] = ()


def per_cent(hits: int, trials: int) -> str:
    """A share with its standard error, in per cent."""
    share = hits / trials
    return f"{100 * share:.1f} ± {100 * math.sqrt(max(share * (1 - share), 1 / trials) / trials):.1f}"


def covers(interval: Interval, truth: float) -> bool:
    """Whether the truth lies between its ends."""
    return bool(interval.low <= truth <= interval.high)


def covered(series: str, x: float, hits: int, trials: int) -> list[Point]:
    """A share in per cent, with twice its standard error, and a line through such points."""
    share = hits / trials
    error = 200 * math.sqrt(max(share * (1 - share), 1 / trials) / trials)
    y = 100 * share
    return [Point(series=series, x=x, y=y, low=y - error, high=y + error), Point(series=series, x=x, y=y, style="line")]


def nominal(level: float, places: Sequence[float]) -> list[Point]:
    """A line at what should be."""
    return [Point(series=f"{level:g} %", x=x, y=level, style="line") for x in (min(places), max(places))]


# ---- best against best

SHARED, SEED, EXAMPLE, REST = 0.7, 1.0, 0.28, 0.3
"""Standard deviations as the stored language-model runs show them, in units of an arm's own spread over seeds: what the arms of
a side share in a seed, what an arm has of its own, and what it owes to the examples in its mean over them."""
NUM_EXAMPLES = 16

GAPS: dict[str, Callable[[int], Array]] = {
    "equal": lambda k: np.array([0.0] * k),
    "clear winner": lambda k: np.array([0.0] + [12.0] * (k - 1)),
    "one lower by 1": lambda k: np.array([0.0] + [1.0] * (k - 1)),
    "spread evenly": lambda k: np.array([0.5 * i for i in range(k)]),
}


def arms(
    rng: Rng, means_A: Array, num_seeds: int, *, heavy: bool = False, uneven: bool = False, wild: bool = False
) -> Array:
    """The arms of a side, (A, S, N); of several the last one may diverge in two of five seeds."""
    num_arms, scale = len(means_A), math.sqrt(NUM_EXAMPLES)
    own_AS = (
        rng.standard_t(3, (num_arms, num_seeds)) / math.sqrt(3) if heavy else rng.normal(size=(num_arms, num_seeds))
    )
    if uneven:
        own_AS *= np.where(np.arange(num_arms) % 2, 3.0, 1.0)[:, None]
    if wild and num_arms > 1:
        own_AS[-1] += 20 * (rng.random(num_seeds) < 0.4)
    values_ASN = means_A[:, None, None] + SHARED * rng.normal(size=(1, num_seeds, 1)) + SEED * own_AS[:, :, None]
    values_ASN = values_ASN + scale * EXAMPLE * rng.normal(size=(num_arms, 1, NUM_EXAMPLES))
    return np.asarray(values_ASN + scale * REST * rng.normal(size=(num_arms, num_seeds, NUM_EXAMPLES)))


def one_left_out(values_ASN: Array) -> Array:
    """The procedure that this replaces: each seed with the arm that is best on all others, on the same examples."""
    scores_AS = values_ASN.mean(axis=2)
    picked = [int(np.delete(scores_AS, s, axis=1).mean(axis=1).argmin()) for s in range(scores_AS.shape[1])]
    return values_ASN[picked, np.arange(len(picked))]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two sides of arms."""

    gaps: str
    sides: tuple[int, int]
    options: dict[str, bool] = field(default_factory=dict)
    name: str = ""

    def run(self, num_seeds: int, trials: int) -> tuple[tuple[str, ...], int, int]:
        """A row of the table, and how often both intervals cover."""
        rng = np.random.default_rng([1, num_seeds, *self.sides, list(GAPS).index(self.gaps), *map(len, self.options)])
        means = [GAPS[self.gaps](k) for k in self.sides]
        truth = means[0].min() - means[1].min()
        hits, old_hits, errors, widths, old_widths = 0, 0, [], [], []
        for _ in range(trials):
            first, second = (arms(rng, side, num_seeds, **self.options) for side in means)
            found = best_interval(first, second)
            old = crossed_interval(one_left_out(first) - one_left_out(second))
            hits, old_hits = hits + covers(found, truth), old_hits + covers(old, truth)
            errors.append(found.estimate - truth)
            widths.append(found.high - found.low)
            old_widths.append(old.high - old.low)
        row = (
            self.name or self.gaps,
            f"{self.sides[0]}:{self.sides[1]}",
            str(num_seeds),
            per_cent(hits, trials),
            per_cent(old_hits, trials),
            f"{np.mean(errors):+.2f} ± {np.std(errors) / math.sqrt(trials):.2f}",
            f"{np.median(widths) / np.median(old_widths):.2f}",
        )
        print("|", " | ".join(row), "|", flush=True)
        return row, hits, old_hits


BEST_HEADER = ("arms", "sides", "seeds", "covered, %", "one seed left out, %", "mean error", "width, times that")


def best() -> Simulated:
    """Coverage of the best against the best where arms are equal, and where one is clearly best."""
    rows, points = [], []
    for gaps in ("equal", "clear winner"):
        for sides in ((2, 1), (6, 3), (12, 5), (52, 26)):
            for num_seeds in SEEDS:
                trials = 150 if sides[0] > 12 else 400
                row, hits, old_hits = Case(gaps=gaps, sides=sides).run(num_seeds, trials)
                rows.append(row)
                if gaps == "equal" and sides in {(6, 3), (52, 26)}:
                    name = f"{sides[0]} arms against {sides[1]}"
                    points += covered(name, num_seeds, hits, trials)
                    points += covered(f"{name}, one seed left out", num_seeds, old_hits, trials)
    return Simulated(
        header=BEST_HEADER,
        rows=rows,
        title="The best of equal arms: how often a 95 % interval covers",
        x_label="seeds",
        y_label="covered, %",
        points=[*points, *nominal(95, SEEDS)],
    )


def between() -> Simulated:
    """The same where gaps are as large as what separates them from chance, and where the simulation's assumptions fail."""
    cases = [Case(gaps=gaps, sides=sides) for gaps in ("one lower by 1", "spread evenly") for sides in ((6, 1), (6, 3))]
    cases += [
        Case(gaps="equal", sides=(6, 3), options={"heavy": True}, name="equal, heavy tails (t with 3 degrees)"),
        Case(gaps="clear winner", sides=(6, 3), options={"heavy": True}, name="clear winner, heavy tails"),
        Case(gaps="equal", sides=(6, 3), options={"uneven": True}, name="equal, every other arm 3 times as noisy"),
        Case(gaps="equal", sides=(6, 1), options={"wild": True}, name="equal, one higher by 20 in 40 % of seeds"),
    ]
    return Simulated(header=BEST_HEADER, rows=[case.run(num_seeds, 400)[0] for case in cases for num_seeds in SEEDS])


# ---- intervals over seeds and examples


def crossed() -> Simulated:
    """Coverage over seeds and examples, by which of them the variance comes from."""
    rows, points, trials = [], [], 4_000
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        shown = []
        for num_seeds in SEEDS:
            rng = np.random.default_rng([2, num_seeds, int(10 * share)])
            hits, num_examples = 0, 64
            seed_sd, example_sd = math.sqrt((1 - share) * num_seeds), math.sqrt(share * num_examples)
            for _ in range(trials):
                values_SN = seed_sd * rng.normal(size=(num_seeds, 1)) + example_sd * rng.normal(size=(1, num_examples))
                hits += covers(crossed_interval(values_SN + rng.normal(size=(num_seeds, num_examples))), 0.0)
            shown.append(per_cent(hits, trials))
            points += covered(f"{num_seeds} seeds", 100 * share, hits, trials)
        rows.append((f"{100 * share:.0f}", *shown))
    return Simulated(
        header=("variance of the mean from examples, %", *(f"{s} seeds, covered, %" for s in SEEDS)),
        rows=rows,
        title="Seeds and examples both as samples: how often a 95 % interval covers",
        x_label="part of the mean's variance that comes from the examples, %",
        y_label="covered, %",
        points=[*points, *nominal(95, (0, 100))],
    )


def skewed() -> Simulated:
    """A positive quantity whose logarithm is normal: on its own scale, and on a log scale."""
    rows, points, trials = [], [], 4_000
    for spread in (0.1, 0.3, 0.5, 1.0, 1.5):
        shown = []
        for num_seeds in SEEDS:
            rng = np.random.default_rng([3, num_seeds, int(10 * spread)])
            plain, logs, below = 0, 0, 0
            for _ in range(trials):
                logs_S = spread * rng.normal(size=num_seeds)
                found = seed_interval(np.exp(logs_S))
                plain += covers(found, math.exp(spread**2 / 2))
                below += found.low < 0
                logs += covers(seed_interval(logs_S).exp(), 1.0)
            shown += [per_cent(plain, trials), f"{100 * below / trials:.0f}", per_cent(logs, trials)]
            if num_seeds == 5:
                for name, hits in (("mean, on its own scale", plain), ("geometric mean, on a log scale", logs)):
                    points += covered(name, spread, hits, trials)
        rows.append((f"{spread:g}", *shown))
    return Simulated(
        header=(
            "sd of the logarithm",
            *(f"{s} seeds: {what}" for s in SEEDS for what in ("covered, %", "end below 0, %", "log scale, %")),
        ),
        rows=rows,
        title="Positive and skewed: how often a 95 % interval over 5 seeds covers",
        x_label="standard deviation of the logarithm over seeds",
        y_label="covered, %",
        points=[*points, *nominal(95, (0.1, 1.5))],
    )


# ---- errors of decisions


def looks() -> Simulated:
    """Wrong decisions when seeds are added until an interval excludes 0."""
    rows, trials = [], 40_000
    for counts in ((5,), (3, 4, 5), (3, 5, 8), tuple(range(3, 11)), tuple(range(3, 31))):
        rng = np.random.default_rng([4, *counts])
        wrong = [0, 0]
        levels = 0.95, split_confidence(0.95, len(counts))
        for _ in range(trials if len(counts) < 9 else trials // 8):
            values_S = rng.normal(size=max(counts))
            p = [seed_interval(values_S[:count]).p_value() for count in counts]
            least = min(value for value in p if value is not None)
            wrong = [count + (least < 1 - level) for count, level in zip(wrong, levels, strict=True)]
        done = trials if len(counts) < 9 else trials // 8
        name = ", ".join(map(str, counts)) if len(counts) < 5 else f"{counts[0]} to {counts[-1]}"
        rows.append((name, *(per_cent(count, done) for count in wrong)))
    return Simulated(
        header=("looks at so many seeds", "wrong with 95 % at each, %", "with 1 - 0.05 / looks at each, %"), rows=rows
    )


def parts() -> Simulated:
    """Wrong "not reproduced" of a rule of k parts, all of them at their bounds."""
    rows, points, trials = [], [], 10_000
    for count in (1, 2, 3, 4, 6, 8):
        rng, wrong = np.random.default_rng([5, count]), [0, 0]
        levels = 0.95, split_confidence(0.95, count)
        for _ in range(trials):
            intervals = [seed_interval(rng.normal(size=5)) for _ in range(count)]
            below = [i.p_value() for i in intervals if i.estimate < 0]
            least = min((p for p in below if p is not None), default=1.0)
            wrong = [done + (least < 1 - level) for done, level in zip(wrong, levels, strict=True)]
        rows.append((str(count), *(per_cent(done, trials) for done in wrong)))
        for name, done in zip(("each at 95 %", "each at 1 - 0.05 / k"), wrong, strict=True):
            points += covered(name, count, done, trials)
    return Simulated(
        header=("parts", "wrong with each at 95 %, %", "with each at 1 - 0.05 / k, %"),
        rows=rows,
        title="A true claim of k parts, each at its bound: how often it is called not reproduced",
        x_label="parts",
        y_label="wrong, %",
        points=[*points, *nominal(2.5, (1, 8))],
    )


def tables() -> Simulated:
    """Wrong decisions in a table of m claims that all lie at their bounds, plain and with Holm's adjustment."""
    rows, trials = [], 1_000
    for count in (1, 10, 50, 200):
        rng, wrong, plain, adjusted = np.random.default_rng([6, count]), 0, 0, 0
        for _ in range(trials):
            values_MS = rng.normal(size=(count, 5))
            means_M = values_MS.mean(axis=1)
            p_M = [seed_interval(row).p_value() or 0.0 for row in values_MS]
            up = [p < 0.05 and mean > 0 for p, mean in zip(p_M, means_M, strict=True)]
            wrong += sum(up)
            plain += any(up)
            adjusted += any(p < 0.05 and mean > 0 for p, mean in zip(holm(p_M), means_M, strict=True))
        rows.append((str(count), f"{wrong / trials:.2f}", per_cent(plain, trials), per_cent(adjusted, trials)))
    return Simulated(
        header=("claims", "wrong decisions a table", "tables with one or more, %", "with Holm's adjustment, %"),
        rows=rows,
    )


# ---- other quantities


def pairs() -> Simulated:
    """The mean log distance between runs of different seeds."""
    rows, trials, width = [], 3_000, 50

    def distances(rng: Rng, num_seeds: int) -> Array:
        points = rng.normal(size=(num_seeds, width)) * np.exp(rng.normal(0, 0.3, (num_seeds, 1)))
        squares = np.square(points).sum(axis=1)
        apart = squares[:, None] + squares - 2 * points @ points.T
        return np.asarray(np.log(np.where(np.eye(num_seeds, dtype=bool), 1.0, apart)) / 2)

    many = distances(np.random.default_rng(7), 3_000)
    truth = many.sum() / (3_000 * 2_999)
    for num_seeds in SEEDS:
        rng, naive, right = np.random.default_rng([7, num_seeds]), 0, 0
        means, shown = [], []
        for _ in range(trials):
            log_SS = distances(rng, num_seeds)
            mean_S = log_SS.sum(axis=1) / (num_seeds - 1)
            naive += covers(seed_interval(mean_S), truth)
            right += covers(seed_interval(pair_values(log_SS)), truth)
            means.append(mean_S.mean())
            shown.append(seed_interval(mean_S).standard_error)
        times = np.std(means) / math.sqrt(np.mean(np.square(np.array(shown, dtype=np.float64))))
        rows.append((str(num_seeds), per_cent(naive, trials), f"{times:.1f}", per_cent(right, trials)))
    return Simulated(
        header=(
            "seeds",
            "each seed's mean over its pairs, covered, %",
            "its spread is too small by",
            "`pair_values`, %",
        ),
        rows=rows,
    )


def bars() -> Simulated:
    """Error bars of paired points: their mean square against the variance of a place."""
    rows, trials, num_seeds = [], 4_000, 5
    for places in (2, 3, 6, 12):
        rng, squares = np.random.default_rng([8, places]), 0.0
        for _ in range(trials):
            values_LS = rng.normal(size=(places, num_seeds))
            centred_LS = values_LS - values_LS.mean(axis=0) + values_LS.mean()
            squares += float(centred_LS.var(axis=1, ddof=1).mean()) / trials
        rows.append((str(places), f"{math.sqrt(squares):.3f}", f"{math.sqrt(squares * places / (places - 1)):.3f}"))
    return Simulated(
        header=("places on the line", "bar without Morey's factor, times the right one", "with it"), rows=rows
    )


def slopes() -> Simulated:
    """Slopes along runs whose residuals depend on each other."""
    rows, trials, num_points = [], 2_000, 40
    x = np.linspace(0, 1, num_points)
    for memory in (0.0, 0.5, 0.9):
        for num_seeds in SEEDS:
            rng, own, pooled = np.random.default_rng([9, num_seeds, int(10 * memory)]), 0, 0
            for _ in range(trials):
                noise_SP = rng.normal(size=(num_seeds, num_points))
                for place in range(1, num_points):
                    noise_SP[:, place] += memory * noise_SP[:, place - 1]
                found = fit_lines([x] * num_seeds, list(x + rng.normal(size=(num_seeds, 1)) + noise_SP))
                own, pooled = own + covers(found.slope, 1.0), pooled + covers(found.pooled_slope, 1.0)
            rows.append((f"{memory:g}", str(num_seeds), per_cent(own, trials), per_cent(pooled, trials)))
    return Simulated(
        header=(
            "correlation of neighbouring residuals",
            "seeds",
            "seeds' own slopes (decides), covered, %",
            "residuals as independent, %",
        ),
        rows=rows,
    )


def _correlations(rng: Rng, x_A: Array, y_A: Array, num_seeds: int) -> list[float]:
    """Each seed's, with noise of half the settings' spread."""
    noise = 0.5 * rng.normal(size=(num_seeds, 2, len(x_A)))
    return [rank_correlation(x_A + one, y_A + other) for one, other in noise]


def ranks() -> Simulated:
    """Rank correlations over settings: of these settings, and as if settings were a sample."""
    rows, trials = [], 2_000
    for num_arms in (6, 8, 19):
        for num_seeds in (3, 5):
            rng, these, zero, half = np.random.default_rng([10, num_arms, num_seeds]), 0, 0, 0
            for _ in range(trials):
                # No relation between the two in the population of settings.
                true_x, true_y = rng.normal(size=(2, num_arms))

                found = seed_interval(_correlations(rng, true_x, true_y, num_seeds))
                these += covers(found, float(np.mean(_correlations(rng, true_x, true_y, 60))))
                zero += not covers(found, 0.0)
                half += found.low > 0.5
            rows.append((str(num_arms), str(num_seeds), *(per_cent(n, trials) for n in (these, zero, half))))
    return Simulated(
        header=(
            "settings",
            "seeds",
            "covers the mean correlation of these settings, %",
            "excludes 0 without any relation, %",
            "lies above 0.5 without any relation, %",
        ),
        rows=rows,
    )


SIMULATIONS: dict[str, Callable[[], Simulated]] = {
    f.__name__: f for f in (crossed, skewed, looks, parts, tables, pairs, bars, slopes, ranks, best, between)
}


def table(found: Simulated) -> str:
    """As Markdown."""
    lines = [found.header, ["---"] * len(found.header), *found.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(name: str, found: Simulated) -> str:
    """The figure as SVG."""
    from halflife.studies.report.figures.charts import points_chart
    from halflife.studies.report.figures.figure import Figure
    from halflife.studies.report.figures.theme import STROKE, series_styles
    from halflife.studies.report.files import render_figure

    data = []
    for p in found.points:
        numbers = {"x": p.x, "y": p.y, "low": p.low, "high": p.high}
        rounded = {key: round(value, 2) for key, value in numbers.items() if value is not None}
        data.append({"series": p.series, **rounded, "style": p.style})
    drawn = {p.series for p in found.points if p.style == "point"}
    styles = series_styles(list(dict.fromkeys(p.series for p in found.points)))
    chart = points_chart(
        data,
        styles=[style if style.label in drawn else replace(style, shape=STROKE) for style in styles],
        x_label=found.x_label,
        y_label=found.y_label,
        log_x=False,
        log_y=False,
        equal=False,
    )
    figure = Figure(
        slug=name,
        title=found.title,
        caption="",
        description=found.title,
        charts=(("", chart),),
        header=tuple(found.header),
        rows=(),
    )
    return str(render_figure(figure, "svg"))


def write(names: Sequence[str]) -> None:
    """Run simulations and write their tables into the page, their figures beside it."""
    for name in names:
        found = SIMULATIONS[name]()
        text = PAGE.read_text(encoding="utf-8")
        begin, end = f"<!-- {name}: made by tools/intervals.py -->", "<!-- end -->"
        before, rest = text.split(begin)
        PAGE.write_text(f"{before}{begin}\n\n{table(found)}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
        if found.points:
            PICTURES.mkdir(exist_ok=True)
            (PICTURES / f"{name}.svg").write_text(picture(name, found), encoding="utf-8")
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["list"]:
            print("\n".join(SIMULATIONS))
        case ["write", *names] if set(names) <= set(SIMULATIONS):
            write(names or list(SIMULATIONS))
        case _:
            sys.exit(__doc__)
