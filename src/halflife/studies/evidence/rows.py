"""Makers of what figures and the tables beside the paper show: a quantity against a setting, along a run, over a grid.

Each takes what to draw as data and gives the function of the results that a panel asks for. A place's value is a measure, or
any function of the results and a size with a value per seed (and example, over which the mean is taken).

Shapes: L places, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.optimum import paired_rows
from halflife.studies.evidence.panels import Cell, PointRow
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = ["Bars", "against", "along", "by_name", "grid", "published_level", "rows_of"]

Values = Callable[[Results, int], NDArray[np.float64]]
Lines = Mapping[str, Sequence[tuple[float, Values]]]
Curves = Mapping[str, tuple[str, str]]
Bars = Literal["paired", "seeds", "range", "none"]
"""``"paired"``: intervals for a comparison along the line (`paired_rows`); ``"seeds"``: Student's over seeds; ``"range"``: from
the lowest to the highest seed."""


def _per_seed(values: Values, results: Results, size: int) -> NDArray[np.float64]:
    found = np.asarray(values(results, size), dtype=np.float64)
    return found if found.ndim == 1 else found.mean(axis=1)


def rows_of(
    series: str,
    x_L: Sequence[float],
    values_LS: NDArray[np.float64],
    *,
    bars: Bars = "paired",
    line: bool = True,
    apart: int = 0,
) -> list[PointRow]:
    """A line through means over seeds, and points with bars.

    Args:
        series: Its name.
        x_L: The places.
        values_LS: One value per place and seed.
        bars: What the bars are.
        line: Whether the points are joined.
        apart: So many of the first places are not on the line.

    Returns:
        The line's rows, then the points.
    """
    if bars == "paired":
        rows = paired_rows(series, x_L, values_LS, apart=apart)
        return rows if line else [row for row in rows if row.style == "point"]
    means_L = values_LS.mean(axis=1)
    ends: list[tuple[float | None, float | None]]
    if bars == "seeds":
        ends = [(found.low, found.high) for found in map(seed_interval, values_LS)]
    elif bars == "range":
        ends = [(float(values.min()), float(values.max())) for values in values_LS]
    else:
        ends = [(None, None)] * len(means_L)
    places = list(zip(x_L, means_L.tolist(), ends, strict=True))
    joined = [PointRow(series=series, x=x, y=y, style="line") for x, y, _ in places[apart:]] if line else []
    return joined + [PointRow(series=series, x=x, y=y, low=low, high=high) for x, y, (low, high) in places]


def against(
    lines: Lines | Callable[[Results, int], Lines], *, bars: Bars = "paired", line: bool = True, apart: int = 0
) -> Callable[[Results], list[PointRow]]:
    """Rows of a figure in which quantities stand against a setting.

    Args:
        lines: By the legend's names, each place with its value; or what gives them.
        bars: What the bars are.
        line: Whether the points are joined.
        apart: So many of the first places are not on the line.

    Returns:
        What `PointsPanel.rows` asks for.
    """

    def rows(results: Results) -> list[PointRow]:
        size, found = results.main_size, []
        for series, places in (lines(results, size) if callable(lines) else lines).items():
            values_LS = np.array([_per_seed(values, results, size) for _, values in places])
            found += rows_of(series, [x for x, _ in places], values_LS, bars=bars, line=line, apart=apart)
        return found

    return rows


def by_name(
    values: Mapping[str, Values] | Callable[[Results, int], Mapping[str, Values]],
) -> Callable[[Results], list[PointRow]]:
    """Rows of a figure that lists quantities by name, with intervals over seeds: of a `PointsPanel` that is ``named``.

    Args:
        values: By name; or what gives them.

    Returns:
        What `PointsPanel.rows` asks for.
    """

    def lines(results: Results, size: int) -> Lines:
        found = values(results, size) if callable(values) else values
        return {name: [(0.0, one)] for name, one in found.items()}

    return against(lines, bars="seeds", line=False)


def along(
    curves: Curves | Callable[[Results, int], Curves],
    *,
    x: Literal["epoch", "step"] = "epoch",
    factor: float = 1.0,
    bars: Bars = "none",
    points: bool = False,
) -> Callable[[Results], list[PointRow]]:
    """Rows of a figure in which a reading stands along the runs.

    Args:
        curves: By the legend's names, the arm and the reading; or what gives them.
        x: Against ``"epoch"`` or ``"step"``.
        factor: The reading is multiplied by this.
        bars: What the bars are.
        points: Whether there are points on the line.

    Returns:
        What `PointsPanel.rows` asks for.
    """

    def rows(results: Results) -> list[PointRow]:
        size, found = results.main_size, []
        for series, (arm, name) in (curves(results, size) if callable(curves) else curves).items():
            read = results.series(arm, name, size) if x == "epoch" else results.series_by_step(arm, name, size)
            values_LS = factor * np.array([values for _, values in read]).T
            own = rows_of(series, read[0][0].tolist(), values_LS, bars=bars)
            found += [row for row in own if points or bars != "none" or row.style == "line"]
        return found

    return rows


def grid(
    places: Sequence[tuple[str | float, str | float, Values]]
    | Callable[[Results, int], Sequence[tuple[str | float, str | float, Values]]],
) -> Callable[[Results], list[Cell]]:
    """Cells of a figure in which a quantity stands over a grid of settings, as means over seeds.

    Args:
        places: Column, row and value of each; or what gives them.

    Returns:
        What `HeatPanel.cells` asks for.
    """

    def cells(results: Results) -> list[Cell]:
        size = results.main_size
        found = places(results, size) if callable(places) else places
        return [Cell(x, y, float(_per_seed(values, results, size).mean())) for x, y, values in found]

    return cells


def published_level(*levels: Values, form: str = ".3g", interval: bool = True) -> Callable[[Results], str]:
    """Our numbers beside one of the paper: means over seeds, each with its 95 % interval over seeds, separated by slashes.

    Args:
        levels: The numbers, in the paper's order.
        form: Format of a number.
        interval: Whether the intervals are written.

    Returns:
        What `Published.ours` asks for.
    """

    def ours(results: Results) -> str:
        found = [seed_interval(_per_seed(level, results, results.main_size)) for level in levels]
        return " / ".join(
            f"{one.estimate:{form}}" + (f" [{one.low:{form}}, {one.high:{form}}]" if interval else "") for one in found
        )

    return ours
