"""Figures of a study as Altair charts, drawn from `Results.frame` alone. A missing row is an error, never a gap.

One chart serves the page and the files; each brings its own colours (`halflife.report.theme`).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from halflife.errors import StoreError
from halflife.report.charts import curves_chart, ladder_chart
from halflife.report.tables import effect_text, sample_text
from halflife.report.theme import ArmStyle, arm_styles
from halflife.studies.base import Panel, Verdict
from halflife.studies.results import Results

__all__ = ["Figure", "ladder_figure", "panel_figure", "panel_figures", "size_name"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: what is drawn, in words and as charts.

    Args:
        slug: Names the figure's file within a study and preset.
        title: A headline.
        caption: What is drawn, the spread, the number of seeds, the paper's figure.
        description: The same with the last numbers, for who does not see the figure.
        charts: One chart, or small multiples, each with its own heading ("" for a single chart).
        header: Column titles of the figure's numbers.
        rows: The numbers themselves.
    """

    slug: str
    title: str
    caption: str
    description: str
    charts: tuple[tuple[str, alt.LayerChart], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def panel_figures(results: Results) -> list[Figure]:
    """All panels of the study, at its main size.

    Args:
        results: What the store holds of the study.

    Returns:
        The figures in the study's order; none when no seed is finished in every arm.
    """
    if not results.seeds(results.main_size):
        return []
    return [panel_figure(results, panel) for panel in results.study.panels]


def size_name(results: Results) -> str:
    """What the sizes of a study are: the one field of the specs that equals the size in every arm.

    Args:
        results: What the store holds of the study.

    Returns:
        Such as ``"width"``; ``"size"`` where no field or more than one fits.
    """
    fitting: set[str] | None = None
    for arm in results.arms:
        for identity in arm["runs"].values():
            spec = results.headers[identity].get("spec", {})
            same = {name for name, value in spec.items() if value == arm["size"] and not isinstance(value, bool)}
            if spec:
                fitting = same if fitting is None else fitting & same
    return fitting.pop() if fitting and len(fitting) == 1 else "size"


def _readings(results: Results, panel: Panel) -> pl.DataFrame:
    """The rows of one panel, one a run and epoch; a missing one is an error that names the run."""
    everything = results.frame.filter(pl.col("size") == results.main_size)
    again = "run the study again, or use the halflife that made these runs"
    if panel.metric not in everything.columns or everything[panel.metric].is_null().all():
        raise StoreError(
            f"no run of {results.study.name} ({results.preset_name}) has readings of {panel.metric}: {again}"
        )
    rows = everything.filter(pl.col(panel.metric).is_not_null())
    # Runs of one plan are read at the same epochs, so the union over the runs of a plan is what each must have.
    expected: dict[tuple[Any, ...], set[float]] = {}
    plan_of: dict[str, tuple[Any, ...]] = {}
    for identity in everything["run"].unique(maintain_order=True):
        spec = results.headers[identity]["spec"]
        plan_of[identity] = plan = tuple(
            spec.get(name) for name in ("num_epochs", "eval_every", "drop_at", "max_steps")
        )
        epochs = expected.setdefault(plan, set())
        epochs.update(rows.filter(pl.col("run") == identity)["epoch"])
        if plan[0] is not None and plan[-1] is None:
            epochs.add(float(plan[0]))
    for identity, plan in plan_of.items():
        found = set(rows.filter(pl.col("run") == identity)["epoch"])
        lacking = sorted(expected[plan] - found)
        if lacking:
            raise StoreError(
                f"the run {identity} has no {panel.metric} at epoch {lacking[0]:g}, and a figure draws all of a run or"
                " nothing: remove the run's folder and run the study again"
            )
    return rows


def _summary(rows: pl.DataFrame, panel: Panel, styles: Sequence[ArmStyle]) -> list[dict[str, Any]]:
    """Mean and range over seeds, one row an arm and epoch, in the arms' order."""
    value = pl.col(panel.metric) * panel.factor
    frame = (
        rows.group_by("arm", "epoch")
        .agg(
            value.mean().alias("mean"),
            value.min().alias("lowest seed"),
            value.max().alias("highest seed"),
            pl.len().alias("seeds"),
        )
        .sort("epoch")
    )
    if panel.log and not (frame["lowest seed"] > 0).all():
        raise StoreError(
            f"{panel.metric} is not above 0 everywhere, so its logarithmic axis would draw less: {panel.title}"
        )
    out = []
    for style in styles:
        for row in frame.filter(pl.col("arm") == style.key).iter_rows(named=True):
            numbers = {name: float(f"{row[name]:.5g}") for name in ("epoch", "mean", "lowest seed", "highest seed")}
            out.append({"arm": style.label, **numbers, "seeds": row["seeds"]})
    return out


def _drops(results: Results, last: float) -> list[float]:
    """The epochs at which a learning rate drops, each once."""
    specs = (results.spec(arm["key"], arm["size"]) for arm in results.arms if arm["size"] == results.main_size)
    epochs = {float(epoch) for spec in specs if (epoch := getattr(spec, "drop_epoch", None)) is not None}
    return sorted(epoch for epoch in epochs if epoch < last)


def panel_figure(results: Results, panel: Panel) -> Figure:
    """One quantity against the epoch: a line per arm, the range over seeds as a band.

    Args:
        results: What the store holds of the study, at least one seed finished in every arm.
        panel: What to draw.

    Returns:
        The figure.

    Raises:
        StoreError: A row is missing; the message names the run.
    """
    rows = _readings(results, panel)
    styles = arm_styles(results)
    data = _summary(rows, panel, styles)
    last = max(row["epoch"] for row in data)
    drops = _drops(results, last)
    seeds = len(results.seeds(results.main_size))
    spread = "the band spans the lowest and the highest seed" if seeds > 1 else "one seed, so there is no band"
    caption = f"Mean over {seeds} {'seeds' if seeds > 1 else 'seed'}; {spread}."
    if drops:
        caption += f" The learning rate drops after epoch {' and '.join(f'{drop:g}' for drop in drops)} (dashed rule)."
    caption += f" {size_name(results).capitalize()} {results.main_size}."
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    shown = [*drops, last]
    numbers = {(row["arm"], row["epoch"]): row for row in data}
    table = tuple((style.label, *(_cell(numbers.get((style.label, epoch))) for epoch in shown)) for style in styles)
    ends = "; ".join(f"{line[0]}: {line[-1]}" for line in table)
    chart = curves_chart(data, styles=styles, y_label=panel.y_label, log=panel.log, drops=drops)
    return Figure(
        slug=re.sub(r"[^a-z0-9.]+", "-", panel.metric.lower()),
        title=panel.title,
        caption=caption,
        description=f"{panel.title}: {panel.y_label} against the epoch, one line per arm. At epoch {last:g}, {ends}.",
        charts=(("", chart),),
        header=("arm", *(f"epoch {epoch:g}" for epoch in shown)),
        rows=table,
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not read"
    return f"{row['mean']:.4g}" + (
        f" ({row['lowest seed']:.4g} to {row['highest seed']:.4g})" if row["seeds"] > 1 else ""
    )


def ladder_figure(results: Results, verdicts: Sequence[Verdict]) -> Figure | None:
    """The effect of each claim that is measured in points, against size.

    Args:
        results: What the store holds of the study.
        verdicts: Its verdicts.

    Returns:
        One small chart a claim; ``None`` when the study ran at one size only, or no size can be drawn.
    """
    measured = [v for v in verdicts if v.claim.unit == "points" and any(f.effect for f in v.by_size.values())]
    if len(results.sizes) < 2 or not measured:
        return None
    name = size_name(results)
    effects = [f.effect for v in measured for f in v.by_size.values() if f.effect is not None]
    domain = [min(0.0, *(e.low for e in effects)), max(0.0, *(e.high for e in effects))]
    charts, table = [], []
    missing: dict[str, list[str]] = {}
    for verdict in measured:
        data = []
        for size, finding in sorted(verdict.by_size.items()):
            effect = finding.effect
            if effect is None:
                missing.setdefault(f"{name} {size}: {finding.reason}", []).append(f"({verdict.claim.key})")
                continue
            words = effect_text(effect, "points")
            data.append({
                "size": size,
                "effect": round(effect.estimate, 4),
                "low": round(effect.low, 4),
                "high": round(effect.high, 4),
                "text": words,
                "outcome": finding.outcome,
                "sample": sample_text(effect),
            })  # fmt: skip
            table.append((f"({verdict.claim.key}) {verdict.claim.effect_name}", str(size), words, sample_text(effect)))
        chart = ladder_chart(data, sizes=results.sizes, size_name=name, domain=domain)
        charts.append((f"({verdict.claim.key}) {verdict.claim.effect_name}", chart))
    caption = (
        f"Effect against {name}, in points of test error, with 95 % intervals; 0 means no effect. All panels share their"
        " axes."
    )
    if missing:
        # Most often a whole size is not finished, which need not be said once a claim.
        which = {why: "" if len(keys) == len(measured) else f"{', '.join(keys)} at " for why, keys in missing.items()}
        caption += " Not drawn: " + "; ".join(f"{keys}{why}" for why, keys in which.items()) + "."
    ends = "; ".join(f"{line[0]} at {name} {line[1]}: {line[2]}" for line in table)
    return Figure(
        slug="ladder",
        title=f"Effects against {name}",
        caption=caption,
        description=f"Effect of each claim against {name}. {ends}.",
        charts=tuple(charts),
        header=("effect", name, "points [95 % interval]", "n"),
        rows=tuple(table),
    )


def static_chart(figure: Figure) -> alt.TopLevelMixin:
    """The figure as one chart of fixed size with its title, for a file.

    Args:
        figure: The figure.

    Returns:
        An Altair chart.
    """
    if len(figure.charts) == 1:
        return figure.charts[0][1].properties(width=460, height=300, title=figure.title)
    parts = [
        chart.properties(
            width=210, height=180, title=alt.Title(textwrap.wrap(heading, 40), fontSize=12, fontWeight="normal")
        )
        for heading, chart in figure.charts
    ]
    return alt.concat(*parts, columns=3, title=figure.title)
