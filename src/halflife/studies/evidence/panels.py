"""What a study's figures show: curves along runs, points, grids. All of it is data, drawn by `halflife.studies.report`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from halflife.studies.evidence.results import Results

__all__ = ["AnyPanel", "Cell", "HeatPanel", "Panel", "PointRow", "PointsPanel"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of curves: a quantity along the runs, one line an arm, the spread over seeds as a band.

    Args:
        metric: Name of the reading.
        title: What the figure shows.
        y_label: The axis, with unit.
        log: Whether the axis is logarithmic.
        factor: The reading is multiplied by this (100 for per cent).
        source_figure: The paper's figure that it corresponds to.
        x: Against ``"epoch"`` or ``"step"``.
        arms: Keys of the arms to draw, in the legend's order (``None``: all of the main size).
        slug: Names the figure's file within a study and preset (empty: made from the metric). Panels of one study that
            share a metric need one each.
        note: A sentence added to the caption.
        start: Draw only what was read after this part of the longest run, in [0, 1): a first loss far above all others would
            leave no height to what follows. The caption says so.
    """

    metric: str
    title: str
    y_label: str
    log: bool = False
    factor: float = 1.0
    source_figure: str = ""
    x: Literal["epoch", "step"] = "epoch"
    arms: tuple[str, ...] | None = None
    slug: str = ""
    note: str = ""
    start: float = 0.0

    @property
    def file_slug(self) -> str:
        """The slug, made from the metric where none is given."""
        return self.slug or re.sub(r"[^a-z0-9.]+", "-", self.metric.lower())


@dataclass(frozen=True)
class PointRow:
    """One point of a `PointsPanel`.

    Args:
        series: The legend's name; rows of one series share a colour.
        x: Where it stands.
        y: Its height.
        low: Lower end of its interval or range (``None``: no bar).
        high: Upper end.
        style: ``"point"``; ``"line"``: such rows of one series are joined in the order of x; or ``"path"``: joined in the
            order in which they stand, for the boundary of a region, say.
    """

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    style: Literal["point", "line", "path"] = "point"


@dataclass(frozen=True, kw_only=True)
class PointsPanel:
    """Any other figure: the study computes its points from the results.

    It is drawn when at least two seeds are finished in every arm of the main size and no run was cut.

    Args:
        slug: Names the figure's file within a study and preset.
        title: What the figure shows.
        x_label: The horizontal axis, with unit.
        y_label: The vertical axis, with unit.
        rows: The points, in the legend's order.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical one is.
        source_figure: The paper's figure that it corresponds to.
        note: What points and bars are, in one sentence or more; the caption.
        equal: Whether the figure shows a plane: one unit is as long on both axes, which must be linear. Each series has a
            shape of its own, no line marks 0, and points with the same coordinates are not moved apart.
        zero_first: Whether the first place of a logarithmic axis stands for 0 (`halflife.studies.evidence.optimum.lam_places`):
            its tick and its numbers say so.
        named: Whether each series is one point with a name and no place: they stand one below the other, named at the
            left, ``y_label`` is the horizontal axis, and ``x_label`` says what the names are.
    """

    slug: str
    title: str
    x_label: str
    y_label: str
    rows: Callable[[Results], list[PointRow]]
    log_x: bool = False
    log_y: bool = False
    source_figure: str = ""
    note: str = ""
    equal: bool = False
    zero_first: bool = False
    named: bool = False

    def __post_init__(self) -> None:
        is_logarithmic = self.log_x or self.log_y
        assert not (self.equal and is_logarithmic), f"{self.slug}: a plane has linear axes"
        assert not (self.named and is_logarithmic), f"{self.slug}: a list of names has a linear axis"
        assert self.log_x or not self.zero_first, f"{self.slug}: a linear axis has a place for 0"

    @property
    def file_slug(self) -> str:
        """The slug."""
        return self.slug


@dataclass(frozen=True)
class Cell:
    """The value of one setting, a cell of a `HeatPanel`.

    Args:
        x: Its column: a number, or a name. All cells of a panel have the same kind.
        y: Its row, likewise.
        value: What its colour shows.
        text: What is written in it (empty: the value, with three digits, or four where all are nearly the same).
    """

    x: str | float
    y: str | float
    value: float
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatPanel:
    """A quantity over a grid of settings, one coloured cell a setting, with its value written in it.

    The settings are drawn at equal distances, whatever the numbers, so that 0 stands beside the others. Numbers grow to the
    right and upwards; names stand in the order in which they come, from the left and from the top. Several quantities are
    several panels.

    It is drawn when at least two seeds are finished in every arm of the main size and no run was cut.

    Args:
        slug: Names the figure's file within a study and preset.
        title: What the figure shows.
        x_label: What the columns are, with unit.
        y_label: What the rows are, with unit.
        value_label: What the colours show, with unit.
        cells: The cells, each setting at most once; a setting of the grid without one stays empty, and the caption says so.
        log_value: Whether the scale of colours is logarithmic.
        factor: The values are multiplied by this (100 for per cent).
        source_figure: The paper's figure that it corresponds to.
        note: What the values are, in one sentence or more; the caption.
    """

    slug: str
    title: str
    x_label: str
    y_label: str
    value_label: str
    cells: Callable[[Results], list[Cell]]
    log_value: bool = False
    factor: float = 1.0
    source_figure: str = ""
    note: str = ""

    @property
    def file_slug(self) -> str:
        """The slug."""
        return self.slug


AnyPanel = Panel | PointsPanel | HeatPanel
